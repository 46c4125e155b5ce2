package store_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// begin asks for a call that costs so much at most.
func (l *line) begin(task store.ClaimedTask, ceiling int64) (uuid.UUID, error) {
	l.t.Helper()
	id := uuid.New()
	return id, l.fleet.BeginCall(context.Background(), callOf(task, id, ceiling))
}

// called begins a call that must be allowed.
func (l *line) called(task store.ClaimedTask, ceiling int64) uuid.UUID {
	l.t.Helper()
	id, err := l.begin(task, ceiling)
	if err != nil {
		l.t.Fatal(err)
	}
	return id
}

// end closes a call at a cost.
func (l *line) end(ws, call uuid.UUID, cost int64) store.CallEnded {
	l.t.Helper()
	ended, err := l.fleet.EndCall(context.Background(), ws, call, store.CallEnd{Outcome: "ok", CostMicroUSD: cost})
	if err != nil {
		l.t.Fatal(err)
	}
	return ended
}

// cut sends a task back to the line whose call of so much did not fit.
func (l *line) cut(task store.ClaimedTask, needs int64) store.Finished {
	l.t.Helper()
	f := finishOf(task, store.BudgetCut, 3)
	f.NeedsMicroUSD = needs
	r, err := l.fleet.Finish(context.Background(), f, false)
	if err != nil || !r.Accepted {
		l.t.Fatalf("%+v %v", r, err)
	}
	return r
}

// limit sets limits and returns the turn that they make due.
func (l *line) limit(ws uuid.UUID, limits map[string]int64) *store.Turn {
	l.t.Helper()
	turns, err := l.system.SetLimits(context.Background(), ws, limits, store.Operator{Name: "test"})
	if err != nil {
		l.t.Fatal(err)
	}
	return one(l.t, turns)
}

// reason is why a task waits.
func (l *line) reason(ws, task uuid.UUID) string {
	l.t.Helper()
	view, err := l.api.Task(context.Background(), ws, task)
	if err != nil {
		l.t.Fatal(err)
	}
	if view.Waiting == nil {
		return view.Status
	}
	return view.Waiting.Reason
}

// budget makes a Pro workspace with a provider budget, and tasks that run in it.
func (l *line) budget(microUSD int64, running int) (uuid.UUID, []store.ClaimedTask) {
	l.t.Helper()
	ws := storetest.NewWorkspace(l.t, l.env, "pro")
	l.limit(ws, map[string]int64{"provider_budget_microusd": microUSD})
	var claimed []store.ClaimedTask
	for range running {
		_, turn := l.submit(ws, task("x"))
		claimed = append(claimed, l.won(turn).Task)
	}
	return ws, claimed
}

func (l *line) used(ws uuid.UUID) int64 {
	l.t.Helper()
	return l.count(`SELECT provider_used_microusd FROM workspace_load WHERE workspace_id = $1`, ws)
}

// monthPasses makes everything so far have happened in the month before.
func (l *line) monthPasses(ws uuid.UUID) {
	l.t.Helper()
	admin := l.env.Admin(l.t)
	admin.MustExec(`UPDATE workspace_load SET period = (period - interval '1 month')::date WHERE workspace_id = $1`, ws)
	admin.MustExec(`UPDATE metering_rows SET day = (day - interval '1 month')::date WHERE workspace_id = $1`, ws)
	admin.MustExec(`UPDATE provider_calls SET finished_at = finished_at - interval '1 month' WHERE workspace_id = $1`, ws)
}

func TestProviderBudget(t *testing.T) {
	t.Parallel()
	ctx := context.Background()

	t.Run("ACallReservesItsCeilingAndIsSettledAtItsCost", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws, running := l.budget(100, 2)
		call := l.called(running[0], 60)
		if _, err := l.begin(running[1], 41); !errors.Is(err, store.ErrBudgetHeld) {
			t.Fatalf("41 beside 60 of 100: %v", err)
		}
		other := l.called(running[1], 40)
		if l.used(ws) != 0 {
			t.Error("an open call is used already")
		}
		l.end(ws, call, 10)
		l.end(ws, other, 40)
		if n := l.used(ws); n != 50 {
			t.Fatalf("used %d", n)
		}
		if _, err := l.begin(running[0], 51); !errors.Is(err, store.ErrBudgetUsed) {
			t.Fatalf("51 of 50 left: %v", err)
		}
		l.called(running[0], 50)
	})

	t.Run("ARepeatedBeginAndEndCountOnce", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws, running := l.budget(100, 1)
		start := callOf(running[0], uuid.New(), 60)
		for range 3 { // the answers were lost
			if err := l.fleet.BeginCall(ctx, start); err != nil {
				t.Fatal(err)
			}
		}
		for range 3 {
			l.end(ws, start.ID, 60)
		}
		if l.used(ws) != 60 || l.count(`SELECT count(*) FROM provider_calls`) != 1 {
			t.Errorf("used %d", l.used(ws))
		}
		if err := l.fleet.BeginCall(ctx, start); !errors.Is(err, store.ErrLeaseLost) {
			t.Errorf("a call that has ended began again: %v", err)
		}
	})

	t.Run("CallsAtOnceNeverPassTheBudget", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		const budget = 10_000
		ws, running := l.budget(budget, 10)
		var refused, made sync.Map
		var all sync.WaitGroup
		for i := range 50 {
			all.Go(func() {
				random := rand.New(rand.NewPCG(uint64(i), 7))
				for range 6 {
					id, ceiling := uuid.New(), 1+random.Int64N(2_000)
					err := l.fleet.BeginCall(ctx, callOf(running[i%10], id, ceiling))
					switch {
					case errors.Is(err, store.ErrBudgetHeld), errors.Is(err, store.ErrBudgetUsed):
						refused.Store(id, true)
						continue
					case err != nil:
						t.Error(err)
						return
					}
					made.Store(id, true)
					if _, err := l.fleet.EndCall(ctx, ws, id, store.CallEnd{Outcome: "ok", CostMicroUSD: random.Int64N(ceiling/10 + 1)}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		watch := l.watch(`SELECT w.provider_used_microusd + coalesce((SELECT sum(cost_microusd) FROM provider_calls c
			WHERE c.workspace_id = w.workspace_id AND c.outcome = 'started'), 0) FROM workspace_load w WHERE workspace_id = '` + ws.String() + `'`)
		all.Wait()
		if highest, looks := watch(); highest > budget || highest < budget/4 {
			t.Errorf("used and reserved reached %d of %d in %d looks", highest, budget, looks)
		}
		if size(&refused) == 0 || size(&made) < 50 {
			t.Errorf("%d refused, %d made: the run proved little", size(&refused), size(&made))
		}
	})

	t.Run("AUsedUpBudgetCostsEachTaskOneAttemptAndWaitsInItsPlace", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws, running := l.budget(100, 1)
		l.end(ws, l.called(running[0], 100), 95)
		l.finish(running[0], store.Succeeded, 1)
		ids, turn := l.submit(ws, task("a"), task("b"), task("c"))
		deliveries, attempts := 0, 0
		for ; turn != nil && deliveries < 20; deliveries++ {
			c := l.claim(turn)
			if turn = c.Turn; c.Outcome != store.ClaimWon {
				continue
			}
			attempts++
			if _, err := l.begin(c.Task, 30); !errors.Is(err, store.ErrBudgetUsed) {
				t.Fatal(err)
			}
			if next := l.cut(c.Task, 30).Turn; next != nil {
				turn = next
			}
		}
		if attempts != 1 || deliveries != 2 { // the second is the turn that was out when the first was refused
			t.Fatalf("%d attempts in %d deliveries for tasks that could not go on", attempts, deliveries)
		}
		for range 3 { // rounds of the scheduler, submits, a sibling's end: nothing brings it in line
			missed, turned, err := l.system.IssueMissed(ctx)
			if err != nil || len(missed)+len(turned) != 0 {
				t.Fatalf("%v %v %v", missed, turned, err)
			}
			if more, turn := l.submit(ws, task("d")); turn != nil || l.reason(ws, more[0]) != store.WaitBudget {
				t.Fatalf("a turn %v, waits for %s", turn, l.reason(ws, more[0]))
			}
		}
		for _, id := range ids {
			if r := l.reason(ws, id); r != store.WaitBudget {
				t.Errorf("waits for %s", r)
			}
		}
		if turn := l.limit(ws, map[string]int64{"provider_budget_microusd": 124}); turn != nil {
			t.Fatal("29 are left of what needs 30")
		}
		c := l.won(l.limit(ws, map[string]int64{"provider_budget_microusd": 125}))
		if c.Task.ID != ids[0] || c.Task.Attempt != 1 {
			t.Fatalf("the first in line lost its place or an attempt: %+v", c.Task)
		}
		l.called(c.Task, 30)
	})

	t.Run("TheMonthsTurnBringsItBack", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws, running := l.budget(100, 1)
		l.end(ws, l.called(running[0], 100), 95)
		if r := l.cut(running[0], 30); r.Turn != nil || r.Status != store.StatusQueued {
			t.Fatalf("%+v", r)
		}
		l.monthPasses(ws)
		missed, turned, err := l.system.IssueMissed(ctx)
		if err != nil || len(missed) != 0 || len(turned) != 1 {
			t.Fatalf("%v %v %v", missed, turned, err)
		}
		l.called(l.won(&turned[0]).Task, 30)
	})

	t.Run("ACancelOfTheHeadThatLackedBudgetWakesTheNext", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws, running := l.budget(100, 1)
		l.limit(ws, map[string]int64{"concurrency": 1})
		ids, _ := l.submit(ws, task("behind"))
		l.end(ws, l.called(running[0], 100), 95)
		if r := l.cut(running[0], 30); r.Turn != nil {
			t.Fatal("the head does not fit")
		}
		if r := l.reason(ws, ids[0]); r != store.WaitBudget {
			t.Errorf("what is behind waits for %s", r)
		}
		done := l.do(ws, func(w *store.Work) error { _, err := w.Cancel(ctx, running[0].ID); return err })
		if c := l.won(one(t, done.Turns)); c.Task.ID != ids[0] {
			t.Errorf("claimed %+v", c.Task)
		}
	})

	t.Run("WhatWaitsForHeldBudgetComesBackWithTheEndOfACall", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws, running := l.budget(100, 2)
		call := l.called(running[0], 90)
		if _, err := l.begin(running[1], 30); !errors.Is(err, store.ErrBudgetHeld) {
			t.Fatal(err)
		}
		if r := l.cut(running[1], 30); r.Turn != nil {
			t.Fatal("in line again while the call is open")
		}
		if missed, _, err := l.system.IssueMissed(ctx); err != nil || len(missed) != 0 {
			t.Fatalf("%v %v", missed, err)
		}
		if r := l.reason(ws, running[1].ID); r != store.WaitBudget {
			t.Errorf("waits for %s", r)
		}
		ended := l.end(ws, call, 5)
		if ended.Turn == nil {
			t.Fatal("the end of the call woke nobody")
		}
		if again := l.end(ws, call, 5); again.Turn == nil || again.Turn.ID != ended.Turn.ID {
			t.Error("the lost answer's turn is not told again")
		}
		l.called(l.won(ended.Turn).Task, 30)
	})

	t.Run("ATaskIsStoppedBeforeItCostsMoreThanATaskMay", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws, running := l.budget(1_000, 1)
		l.limit(ws, map[string]int64{"max_task_cost_microusd": 100})
		l.end(ws, l.called(running[0], 50), 40)
		f := finishOf(running[0], store.Retry, 1)
		f.Usage.CostMicroUSD = 40
		if _, err := l.fleet.Finish(ctx, f, false); err != nil {
			t.Fatal(err)
		}
		l.env.Admin(t).MustExec(`UPDATE tasks SET run_at = now()`)
		_, _, turns, err := l.system.PromoteDue(ctx)
		if err != nil {
			t.Fatal(err)
		}
		c := l.won(one(t, turns)).Task
		if _, err := l.begin(c, 61); !errors.Is(err, store.ErrTaskCost) {
			t.Fatalf("40 and 61 of 100: %v", err)
		}
		l.called(c, 60)
		if _, err := l.begin(c, 1); !errors.Is(err, store.ErrTaskCost) {
			t.Fatalf("an open call counts: %v", err)
		}
	})

	t.Run("AnOverrunIsBookedAsItIsAndStopsTheBudget", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws, running := l.budget(100, 1)
		if ended := l.end(ws, l.called(running[0], 100), 130); ended.OverrunMicroUSD != 30 || l.used(ws) != 130 {
			t.Fatalf("%+v, used %d", ended, l.used(ws))
		}
		if _, err := l.begin(running[0], 0); !errors.Is(err, store.ErrBudgetUsed) {
			t.Errorf("a call past the budget: %v", err)
		}
		l.cut(running[0], 1)
	})

	t.Run("ACallOverTheMonthsEndCountsWhereItEnds", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws, running := l.budget(100, 1)
		l.end(ws, l.called(running[0], 100), 70)
		call := l.called(running[0], 30)
		l.monthPasses(ws)
		if _, err := l.begin(running[0], 71); !errors.Is(err, store.ErrBudgetHeld) {
			t.Fatalf("the open call holds nothing of the new month: %v", err)
		}
		l.end(ws, call, 20)
		if n := l.used(ws); n != 20 {
			t.Fatalf("the new month has used %d", n)
		}
		// A transaction that began before midnight may close a call under a row that has turned already.
		late := l.called(running[0], 30)
		l.env.Admin(t).MustExec(`UPDATE workspace_load SET period = period + interval '1 month', provider_used_microusd = 0 WHERE workspace_id = $1`, ws)
		l.end(ws, late, 9)
		if n := l.used(ws); n != 9 {
			t.Fatalf("used %d", n)
		}
	})

	t.Run("ABudgetBelowWhatIsUsedStartsNothingAndKillsNothing", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws, running := l.budget(100, 2)
		l.end(ws, l.called(running[0], 50), 50)
		open := l.called(running[1], 30)
		l.limit(ws, map[string]int64{"provider_budget_microusd": 40})
		if _, err := l.begin(running[0], 1); !errors.Is(err, store.ErrBudgetUsed) {
			t.Fatal(err)
		}
		l.end(ws, open, 20)
		ids, turn := l.submit(ws, task("x"))
		if turn != nil || l.reason(ws, ids[0]) != store.WaitBudget {
			t.Fatalf("%v, waits for %s", turn, l.reason(ws, ids[0]))
		}
		if l.limit(ws, map[string]int64{"provider_budget_microusd": 71}) == nil {
			t.Error("raised, and nobody is woken")
		}
	})

	t.Run("OrphansCloseAtTheirCeilingAndKeepTheirFirstEnd", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws, running := l.budget(100, 2)
		lost := l.called(running[0], 80)
		l.finish(running[0], store.Succeeded, 1) // its worker could not write the call's end
		if r := l.cut(running[1], 15); r.Turn == nil {
			t.Fatal("15 of 20 fit")
		} else if c := l.won(r.Turn); l.cut(c.Task, 30).Turn != nil {
			t.Fatal("30 of 20 do not fit")
		}
		if n, _, err := l.system.CloseOrphanedCalls(ctx, time.Hour); err != nil || n != 0 {
			t.Fatalf("closed %d, %v", n, err)
		}
		n, turns, err := l.system.CloseOrphanedCalls(ctx, 0)
		if err != nil || n != 1 || l.used(ws) != 80 || len(turns) != 0 {
			t.Fatalf("closed %d, used %d, turns %v, %v", n, l.used(ws), turns, err)
		}
		if ended := l.end(ws, lost, 7); ended.OverrunMicroUSD != 0 || l.used(ws) != 80 {
			t.Errorf("a late end counted again: used %d", l.used(ws))
		}
	})
}

// watch looks at a figure again and again until the returned function is called, which tells the highest.
func (l *line) watch(query string) (stop func() (highest int64, looks int)) {
	db, done, ended := l.env.Admin(l.t), make(chan struct{}), make(chan struct{})
	var highest int64
	looks := 0
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			default:
			}
			var n int64
			if err := db.Get(&n, query); err != nil {
				l.t.Error(err)
				return
			}
			highest = max(highest, n)
			looks++
		}
	}()
	return func() (int64, int) {
		close(done)
		<-ended
		return highest, looks
	}
}

func size(m *sync.Map) (n int) {
	m.Range(func(any, any) bool { n++; return true })
	return n
}
