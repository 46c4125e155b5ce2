package store_test

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// What a cap buys costs no more than the cap, and a millisecond more would; the invoice's rounding changes nothing.
func TestTheSpendCapIsNeverPassedNorWasted(t *testing.T) {
	t.Parallel()
	invoice := func(ms int64) (cents int64) { // each tier's line, rounded to a cent
		below := int64(0)
		for _, tier := range store.OverageTiers {
			upTo := ms
			if tier.UpToMS != 0 {
				upTo = min(ms, tier.UpToMS)
			}
			cents += ((upTo-below)*tier.PicoCents + 500_000_000_000) / 1_000_000_000_000
			below = upTo
		}
		return cents
	}
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	caps := []int64{0, 1, 2, 100_000, 100_001, 460_000, 460_001, store.MaxSpendCapCents}
	for range 20_000 {
		caps = append(caps, random.Int64N(store.MaxSpendCapCents+1))
	}
	for _, cents := range caps {
		ms := store.OverageMS(cents)
		if cost := store.OverageMicroUSD(ms); cost > cents*10_000 {
			t.Fatalf("%d cents buy %d ms, which cost %d micro-dollars", cents, ms, cost)
		}
		if billed := invoice(ms); billed > cents {
			t.Fatalf("%d cents buy %d ms, which are billed at %d", cents, ms, billed)
		}
		if cost := store.OverageMicroUSD(ms + 1); cents > 0 && cost < cents*10_000 {
			t.Fatalf("%d cents buy only %d ms: one more costs %d micro-dollars", cents, ms, cost)
		}
	}
	if ms := store.OverageMS(100); ms != 5_999_999 { // a dollar: 100 minutes less what the price is above a sixtieth
		t.Errorf("a dollar buys %d ms", ms)
	}
}

// overage turns paid time on, as an owner does.
func (l *line) overage(ws uuid.UUID, enabled bool, cents int64) *store.Turn {
	l.t.Helper()
	return one(l.t, l.do(ws, func(w *store.Work) error {
		_, err := w.Change(context.Background(), store.WorkspaceChange{Overage: &store.OverageSetting{Enabled: enabled, SpendCapCents: &cents}})
		return err
	}).Turns)
}

func (l *line) quota(ws uuid.UUID) store.Quota {
	l.t.Helper()
	q, err := l.api.Quota(context.Background(), ws)
	if err != nil {
		l.t.Fatal(err)
	}
	return q
}

func TestOverage(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	const included, allowance = 60_000, 59_999 // a cent buys 59,999 ms

	// exhausted is a Pro workspace that has used its minute, with a task that waits.
	exhausted := func(t *testing.T) (*line, uuid.UUID, []uuid.UUID) {
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "pro")
		l.limit(ws, map[string]int64{"agent_ms": included})
		ids, turn := l.submit(ws, task("a"), task("b"), task("c"))
		if r := l.finish(l.won(turn).Task, store.Succeeded, included); r.Turn != nil {
			t.Fatal("a turn without quota")
		}
		return l, ws, ids
	}

	t.Run("PaidTimeGoesOnPastThePlanUpToTheCap", func(t *testing.T) {
		t.Parallel()
		l, ws, ids := exhausted(t)
		if r := l.reason(ws, ids[1]); r != store.WaitQuota {
			t.Fatalf("waits for %s", r)
		}
		c := l.won(l.overage(ws, true, 1))
		if c.Task.ReservedMS != allowance || c.Turn != nil {
			t.Fatalf("reserved %d ms of what a cent buys, next turn %v", c.Task.ReservedMS, c.Turn)
		}
		if r := l.finish(c.Task, store.Succeeded, 40_000); r.Turn == nil {
			t.Fatal("what came back woke nobody")
		} else if r = l.finish(l.won(r.Turn).Task, store.QuotaCut, 30_000); r.Turn != nil { // cut at 19,999
			t.Fatal("past the cap")
		}
		q := l.quota(ws)
		if q.Overage.UsedMS != allowance || q.UsedMS != included+allowance || q.RemainingMS != 0 || q.State != store.QuotaExhausted || q.Overage.CostMicroUSD != 10_000 {
			t.Errorf("%+v", q)
		}
		if r := l.reason(ws, ids[2]); r != store.WaitQuota {
			t.Errorf("at the cap it waits for %s", r)
		}
		if n := l.count(`SELECT sum(quantity) FROM metering_rows WHERE meter = 'overage_ms'`); n != allowance {
			t.Errorf("metered %d ms of overage", n)
		}
	})

	t.Run("AnAttemptOverTheEdgeIsDivided", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "pro")
		l.limit(ws, map[string]int64{"agent_ms": 50_000})
		l.overage(ws, true, 100)
		_, turn := l.submit(ws, task("a"))
		l.finish(l.won(turn).Task, store.Succeeded, 59_000)
		if q := l.quota(ws); q.UsedMS != 59_000 || q.Overage.UsedMS != 9_000 {
			t.Errorf("%+v", q)
		}
	})

	t.Run("ALoweredCapHoldsFromTheNextClaimAndChargesNothingPastIt", func(t *testing.T) {
		t.Parallel()
		l, ws, _ := exhausted(t)
		c := l.won(l.overage(ws, true, 100))
		if c.Task.ReservedMS != 60_000 {
			t.Fatalf("reserved %d", c.Task.ReservedMS)
		}
		second := l.won(c.Turn)
		l.overage(ws, true, 1)
		if r := l.finish(c.Task, store.Succeeded, 60_000); !r.Accepted || r.Turn != nil {
			t.Fatalf("what ran was cut, or the next came on: %+v", r)
		}
		l.finish(second.Task, store.Succeeded, 60_000)
		if q := l.quota(ws); q.Overage.UsedMS != allowance || q.UsedMS != included+120_000 {
			t.Errorf("%+v", q)
		}
		l.overage(ws, false, 1)
		if q := l.quota(ws); q.Overage.UsedMS != allowance || q.Overage.Enabled {
			t.Errorf("switched off: %+v", q)
		}
	})

	t.Run("PlansChangeInMidMonth", func(t *testing.T) {
		t.Parallel()
		l, ws, _ := exhausted(t)
		turn := l.overage(ws, true, 1)
		l.finish(l.won(turn).Task, store.Succeeded, 50_000)
		// More time: what was charged does not count against it.
		turn = l.limit(ws, map[string]int64{"agent_ms": 2 * included})
		if turn == nil {
			turn = &store.Turn{Workspace: ws, ID: l.turn(ws)}
		}
		l.finish(l.won(turn).Task, store.Succeeded, 60_000)
		if q := l.quota(ws); q.Overage.UsedMS != 50_000 || q.UsedMS != included+50_000+60_000 || q.RemainingMS != allowance-50_000 {
			t.Errorf("grown: %+v", q)
		}
		// Free has no overage; coming back does not begin it again.
		free, _ := store.PlanByID("free")
		if _, err := l.system.SetPlan(ctx, ws, free, "", "", store.Operator{Name: "test"}); err != nil {
			t.Fatal(err)
		}
		if q := l.quota(ws); q.Overage.Enabled || q.Overage.AllowanceMS != 0 {
			t.Errorf("on Free: %+v", q)
		}
		_, err := l.api.Do(ctx, store.Scope{Workspace: ws}, nil, func(w *store.Work) (store.Answer, error) {
			_, err := w.Change(ctx, store.WorkspaceChange{Overage: &store.OverageSetting{Enabled: true}})
			return store.Answer{}, err
		})
		if store.KindOf(err) != store.PlanLimit {
			t.Errorf("overage on Free: %v", err)
		}
		starter, _ := store.PlanByID("starter")
		if _, err := l.system.SetPlan(ctx, ws, starter, "", "", store.Operator{Name: "test"}); err != nil {
			t.Fatal(err)
		}
		// Less time than was used: nothing of it is charged, and paid time is there at once.
		l.limit(ws, map[string]int64{"agent_ms": 1_000})
		l.overage(ws, true, 2)
		if q := l.quota(ws); q.Overage.UsedMS != 50_000 || q.RemainingMS != store.OverageMS(2)-50_000 {
			t.Errorf("shrunk: %+v", q)
		}
	})

	t.Run("TheMonthsTurnBeginsAnew", func(t *testing.T) {
		t.Parallel()
		l, ws, _ := exhausted(t)
		l.finish(l.won(l.overage(ws, true, 1)).Task, store.Succeeded, allowance)
		l.monthPasses(ws)
		if q := l.quota(ws); q.Overage.UsedMS != 0 || q.RemainingMS != included+allowance {
			t.Errorf("%+v", q)
		}
		_, turned, err := l.system.IssueMissed(ctx)
		if err != nil || len(turned) != 1 {
			t.Fatalf("%v %v", turned, err)
		}
		l.finish(l.won(&turned[0]).Task, store.Succeeded, 10)
	})
}

// turn is the workspace's current one.
func (l *line) turn(ws uuid.UUID) (id uuid.UUID) {
	l.t.Helper()
	if err := l.env.Admin(l.t).Get(&id, `SELECT turn FROM workspace_load WHERE workspace_id = $1`, ws); err != nil {
		l.t.Fatal(err)
	}
	return id
}
