package store_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// watchCommits looks at every commit that changes what is used, reserved or running, under the lock that it was made
// under: past its limit by how much? While the limits stay as they are that may only fall. And what is claimed is the
// best that waits.
const watchCommits = `
CREATE TABLE watch_state (workspace_id uuid PRIMARY KEY, limits text, over bigint[]);
CREATE TABLE watch_violations (workspace_id uuid, what text);
CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$
DECLARE
	ws uuid; w workspace_load; past boolean; used bigint; charged bigint; spent bigint; reserved bigint; running bigint; open bigint;
	now_limits text; now_over bigint[]; was watch_state;
BEGIN
	IF TG_OP = 'DELETE' THEN ws := OLD.workspace_id; ELSE ws := NEW.workspace_id; END IF;
	SELECT * INTO w FROM workspace_load WHERE workspace_id = ws;
	past := w.period < date_trunc('month', now() AT TIME ZONE 'UTC')::date;
	used := CASE WHEN past THEN 0 ELSE w.used_ms END;
	charged := CASE WHEN past THEN 0 ELSE w.overage_used_ms END;
	spent := CASE WHEN past THEN 0 ELSE w.provider_used_microusd END;
	SELECT coalesce(sum(reserved_ms), 0), count(*) INTO reserved, running FROM leases WHERE workspace_id = ws;
	SELECT coalesce(sum(cost_microusd), 0) INTO open FROM provider_calls WHERE workspace_id = ws AND outcome = 'started';
	now_limits := concat_ws(' ', w.quota_ms, w.overage_allowance_ms, w.provider_budget_microusd, w.cap);
	now_over := ARRAY[greatest(reserved - greatest(w.quota_ms - (used - charged), 0) - greatest(w.overage_allowance_ms - charged, 0), 0),
		greatest(charged - w.overage_allowance_ms, 0), greatest(spent + open - w.provider_budget_microusd, 0), greatest(running - w.cap, 0)];
	SELECT * INTO was FROM watch_state WHERE workspace_id = ws;
	IF was.limits = now_limits OR was.limits IS NULL THEN
		FOR i IN 1..4 LOOP
			IF now_over[i] > coalesce(was.over[i], 0) THEN
				INSERT INTO watch_violations VALUES (ws, format('%s: %s over by %s, was %s (%s on %s)', now_limits,
					(ARRAY['time', 'overage', 'provider budget', 'cap'])[i], now_over[i], was.over[i], TG_OP, TG_TABLE_NAME));
			END IF;
		END LOOP;
	END IF;
	INSERT INTO watch_state VALUES (ws, now_limits, now_over) ON CONFLICT (workspace_id) DO UPDATE SET limits = now_limits, over = now_over;
	IF TG_TABLE_NAME <> 'leases' OR TG_OP <> 'INSERT' THEN
		RETURN NULL;
	END IF;
	IF EXISTS (SELECT 1 FROM tasks c JOIN tasks t ON t.workspace_id = c.workspace_id
			AND t.status = 'queued' AND (t.priority > c.priority OR t.priority = c.priority AND t.id < c.id)
		WHERE c.workspace_id = ws AND c.id = NEW.task_id AND NOT EXISTS (SELECT 1 FROM leases l WHERE l.workspace_id = ws AND l.task_id = t.id)) THEN
		INSERT INTO watch_violations VALUES (ws, 'a task was claimed before its elders');
	END IF;
	RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER watch_load AFTER UPDATE ON workspace_load DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION watch();
CREATE CONSTRAINT TRIGGER watch_leases AFTER INSERT OR DELETE ON leases DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION watch();
CREATE CONSTRAINT TRIGGER watch_calls AFTER INSERT OR UPDATE ON provider_calls DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION watch();`

// walk is a random history of several workspaces.
type walk struct {
	*line
	seed       uint64
	workspaces []uuid.UUID
	turns      chan store.Turn
	quiet      sync.RWMutex // held for reading by each deed, for writing by who wants a still picture

	mu    sync.Mutex
	count map[string]int // what happened
}

func (w *walk) happened(what string) {
	w.mu.Lock()
	w.count[what]++
	w.mu.Unlock()
}

// deliver puts turns in line; now and then one is lost on the way.
func (w *walk) deliver(random *rand.Rand, turns ...store.Turn) {
	for _, t := range turns {
		if random.IntN(40) == 0 {
			w.happened("turn lost")
			continue
		}
		select {
		case w.turns <- t:
		default:
			w.happened("turn lost")
		}
	}
}

func (w *walk) deliverOne(random *rand.Rand, t *store.Turn) {
	if t != nil {
		w.deliver(random, *t)
	}
}

// deed does something while nobody looks at a still picture. Only an unreachable or busy ledger may refuse it.
func (w *walk) deed(what string, do func() error) {
	w.quiet.RLock()
	defer w.quiet.RUnlock()
	if err := do(); err != nil && !store.Unavailable(err) {
		w.t.Errorf("%s: %v (seed %d)", what, err, w.seed)
		return
	}
	w.happened(what)
}

// work is one worker's life: turns, calls, ends, and now and then its death.
func (w *walk) work(random *rand.Rand, done <-chan struct{}) {
	ctx := context.Background()
	me := w.register()
	for {
		var turn store.Turn
		select {
		case <-done:
			return
		case turn = <-w.turns:
		}
		var c store.Claimed
		w.deed("claim", func() (err error) {
			c, err = w.fleet.Claim(ctx, &store.Claim{Workspace: turn.Workspace, Turn: turn.ID, Lease: uuid.New(), Worker: me}, false)
			return err
		})
		w.deliverOne(random, c.Turn)
		if c.Outcome != store.ClaimWon {
			continue
		}
		f := finishOf(c.Task, []store.Outcome{store.Succeeded, store.Succeeded, store.Failed, store.Retry, store.Timeout, store.HandedBack, store.Canceled}[random.IntN(7)],
			random.Int64N(int64(c.Task.ReservedMS)+1))
		f.CustomerFault = random.IntN(2) == 0
		for range random.IntN(4) {
			w.call(random, c.Task, f)
			if f.NeedsMicroUSD > 0 {
				break
			}
		}
		if random.IntN(25) == 0 {
			w.deed("crash", func() error {
				if dead, err := w.system.DeclareDead(ctx, me, 0); err != nil || !dead {
					return errors.Join(err, errors.New("not declared dead"))
				}
				_, turns, err := w.system.RecoverDeadWorkers(ctx)
				w.deliver(random, turns...)
				return err
			})
			me = w.register()
			continue
		}
		if r := c.Task.ReservedMS; r < c.Task.TimeoutMS && f.NeedsMicroUSD == 0 && random.IntN(3) > 0 {
			f.Outcome, f.Usage.AgentMS = store.QuotaCut, int64(r)+5
			w.happened("quota cut")
		}
		w.deed("finish", func() error {
			r, err := w.fleet.Finish(ctx, f, false)
			w.deliverOne(random, r.Turn)
			return err
		})
	}
}

// call makes a call for the attempt: begun once or twice, refused, ended, or left open.
func (w *walk) call(random *rand.Rand, t store.ClaimedTask, f *store.Finish) {
	ctx := context.Background()
	id, ceiling := uuid.New(), 1+random.Int64N(1_500)
	var refused error
	w.deed("begin", func() error {
		for range 1 + random.IntN(2) { // the first answer was lost
			err := w.fleet.BeginCall(ctx, callOf(t, id, ceiling))
			if errors.Is(err, store.ErrTaskCost) || errors.Is(err, store.ErrBudgetUsed) || errors.Is(err, store.ErrBudgetHeld) || errors.Is(err, store.ErrLeaseLost) {
				refused = err
				return nil
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	switch {
	case errors.Is(refused, store.ErrTaskCost):
		w.happened("task cost refused")
		f.Outcome, f.CustomerFault = store.Failed, true
		return
	case errors.Is(refused, store.ErrLeaseLost):
		return
	case refused != nil:
		w.happened("budget cut")
		f.Outcome, f.NeedsMicroUSD = store.BudgetCut, ceiling
		return
	case random.IntN(15) == 0:
		w.happened("end lost")
		return
	}
	cost := random.Int64N(ceiling + 1)
	f.Usage.CostMicroUSD += cost
	f.Usage.ProviderCalls++
	w.deed("end", func() error {
		ended, err := w.fleet.EndCall(ctx, t.Workspace, id, store.CallEnd{Outcome: "ok", CostMicroUSD: cost})
		w.deliverOne(random, ended.Turn)
		return err
	})
}

// disturb does what customers, owners, operators and the scheduler do meanwhile.
func (w *walk) disturb(random *rand.Rand) {
	ctx, operator := context.Background(), store.Operator{Name: "test"}
	ws := w.workspaces[random.IntN(len(w.workspaces))]
	by := func(turns []store.Turn, err error) error {
		w.deliver(random, turns...)
		return err
	}
	asCustomer := func(fn func(work *store.Work) error) error {
		done, err := w.api.Do(ctx, store.Scope{Workspace: ws}, nil, func(work *store.Work) (store.Answer, error) { return store.Answer{}, fn(work) })
		return by(done.Turns, err)
	}
	switch n := random.IntN(20); {
	case n < 8:
		w.deed("submit", func() error {
			tasks := make([]store.NewTask, 1+random.IntN(6))
			for i := range tasks {
				tasks[i] = task("x")
				tasks[i].Priority, tasks[i].TimeoutMS = random.IntN(3), 1+random.IntN(30_000)
			}
			return asCustomer(func(work *store.Work) error { _, err := work.Submit(ctx, tasks); return err })
		})
	case n == 8:
		w.deed("cancel", func() error {
			var id uuid.UUID
			if err := w.env.Admin(w.t).Get(&id, `SELECT id FROM tasks WHERE workspace_id = $1 ORDER BY random() LIMIT 1`, ws); err != nil {
				return nil // none yet
			}
			err := asCustomer(func(work *store.Work) error { _, err := work.Cancel(ctx, id); return err })
			if store.KindOf(err) == store.Conflict {
				return nil
			}
			return err
		})
	case n < 12:
		w.deed("set-limit", func() error {
			return by(w.system.SetLimits(ctx, ws, map[string]int64{"agent_ms": random.Int64N(100_000), "concurrency": random.Int64N(15),
				"provider_budget_microusd": random.Int64N(20_000), "max_task_cost_microusd": 500 + random.Int64N(4_000)}, operator))
		})
	case n == 12:
		w.deed("plan change", func() error {
			plan := store.Plans[random.IntN(len(store.Plans))]
			plan.AgentMS, plan.ProviderBudgetMicroUSD = plan.AgentMS/40_000, plan.ProviderBudgetMicroUSD/2_000 // the same, within reach
			return by(w.system.SetPlan(ctx, ws, plan, "", "", operator))
		})
	case n == 13:
		w.deed("pause", func() error { return w.system.Pause(ctx, ws, operator) })
	case n == 14, n == 15:
		w.deed("resume", func() error { return by(w.system.Resume(ctx, ws, operator)) })
	case n == 16:
		w.deed("overage", func() error {
			cents := 1 + random.Int64N(4)
			err := asCustomer(func(work *store.Work) error {
				_, err := work.Change(ctx, store.WorkspaceChange{Overage: &store.OverageSetting{Enabled: random.IntN(4) > 0, SpendCapCents: &cents}})
				return err
			})
			if store.KindOf(err) == store.PlanLimit {
				return nil
			}
			return err
		})
	case n == 17:
		w.deed("orphans", func() error {
			_, turns, err := w.system.CloseOrphanedCalls(ctx, 0)
			return by(turns, err)
		})
	case n == 18:
		w.deed("sweep", func() error { return w.sweep(random) })
	default:
		w.picture(func() {
			w.monthPasses(ws)
			w.happened("month passed")
		})
	}
}

// sweep is the scheduler's round; work without a turn that did not wait for its month is a path's mistake.
func (w *walk) sweep(random *rand.Rand) error {
	ctx := context.Background()
	w.env.Admin(w.t).MustExec(`UPDATE tasks SET run_at = now() WHERE status = 'scheduled' AND random() < 0.2`)
	_, _, promoted, err1 := w.system.PromoteDue(ctx)
	missed, turned, err2 := w.system.IssueMissed(ctx)
	if len(missed) > 0 {
		w.t.Errorf("%d workspaces had work and no turn (seed %d)", len(missed), w.seed)
	}
	w.deliver(random, append(append(promoted, missed...), turned...)...)
	var err3 error
	for _, queue := range store.Queues {
		now, err := w.system.Now(ctx)
		if err != nil {
			return err
		}
		lost, err := w.system.ReissueLost(ctx, queue, now.Add(-500*time.Millisecond))
		w.deliver(random, lost...)
		err3 = errors.Join(err3, err)
	}
	return errors.Join(err1, err2, err3)
}

// picture runs fn while nothing else happens.
func (w *walk) picture(fn func()) {
	w.quiet.Lock()
	defer w.quiet.Unlock()
	fn()
}

// compareReasons asks for the reason of waiting tasks and compares it with what the books themselves say.
func (w *walk) compareReasons() {
	db := w.env.Admin(w.t)
	for _, ws := range w.workspaces {
		var b struct {
			Paused, Turn                                                     bool
			Cap, Running                                                     int
			Quota, Allowance, Budget, Task, Used, Charged, Held, Spent, Open int64
		}
		err := db.Get(&b, `SELECT w.paused IS NOT NULL AS paused, w.turn IS NOT NULL AS turn, w.cap, w.quota_ms AS quota, w.overage_allowance_ms AS allowance,
				w.provider_budget_microusd AS budget, w.max_task_cost_microusd AS task, (SELECT count(*) FROM leases l WHERE l.workspace_id = $1) AS running,
				(SELECT coalesce(sum(reserved_ms), 0) FROM leases l WHERE l.workspace_id = $1) AS held,
				(SELECT coalesce(sum(quantity), 0)::bigint FROM metering_rows m WHERE m.workspace_id = $1 AND billable AND meter = 'agent_ms' AND day >= month) AS used,
				(SELECT coalesce(sum(quantity), 0)::bigint FROM metering_rows m WHERE m.workspace_id = $1 AND meter = 'overage_ms' AND day >= month) AS charged,
				(SELECT coalesce(sum(cost_microusd), 0)::bigint FROM provider_calls c WHERE c.workspace_id = $1 AND finished_at >= month) AS spent,
				(SELECT coalesce(sum(cost_microusd), 0)::bigint FROM provider_calls c WHERE c.workspace_id = $1 AND outcome = 'started') AS open
			FROM workspace_load w, date_trunc('month', now() AT TIME ZONE 'UTC') month WHERE w.workspace_id = $1`, ws)
		if err != nil {
			w.t.Fatal(err)
		}
		var line []struct {
			ID      uuid.UUID
			Queued  bool
			Tried   bool
			Suspect bool
			Timeout int64
			Needs   int64
		}
		const columns = `SELECT id, status = 'queued' AS queued, attempt + crashes > 0 AS tried, crashes >= 2 AS suspect, timeout_ms AS timeout, needs_microusd AS needs FROM tasks t
			WHERE workspace_id = $1 AND NOT EXISTS (SELECT 1 FROM leases l WHERE l.workspace_id = $1 AND l.task_id = t.id) AND status = `
		err = db.Select(&line, `(`+columns+`'queued' ORDER BY priority DESC, id LIMIT 8) UNION ALL (`+columns+`'scheduled' LIMIT 4)`, ws) // the head first
		if err != nil {
			w.t.Fatal(err)
		}
		for _, t := range line {
			head := line[0]
			left := max(b.Quota-(b.Used-b.Charged), 0) + max(b.Allowance-b.Charged, 0) - b.Held
			spoken := b.Spent
			if b.Budget > 0 && head.Needs > min(b.Budget, b.Task) {
				head.Needs = 0 // its call can never begin: it is tried, and fails
				w.happened("hopeless head")
			}
			if head.Needs > 0 {
				spoken += b.Open
			}
			want := "in_line"
			switch {
			case !t.Queued && t.Suspect:
				want = "isolated"
			case !t.Queued && t.Tried:
				want = "retry_backoff"
			case !t.Queued:
				want = "scheduled"
			case b.Paused:
				want = "workspace_paused"
			case left < min(head.Timeout, 10_000):
				want = "quota_exhausted"
			case b.Budget-spoken < head.Needs:
				want = "provider_budget"
			case b.Running >= b.Cap:
				want = "workspace_cap"
			}
			if got := w.reason(ws, t.ID); got != want {
				w.t.Errorf("a task waits for %s, it says %s: %+v, head %+v (seed %d)", want, got, b, head, w.seed)
			}
			w.happened("waits: " + want)
		}
	}
}

// A hundred workers at once, with everything that customers, owners, operators, months and crashes do: at no commit does a
// workspace pass its time, its overage, its provider budget or its cap, and each waiting task knows why it waits.
func TestNoHistoryPassesABudget(t *testing.T) {
	t.Parallel()
	w := &walk{line: newLine(t), seed: uint64(time.Now().UnixNano()), turns: make(chan store.Turn, 4096), count: map[string]int{}}
	t.Logf("seed %d", w.seed)
	admin := w.env.Admin(t)
	admin.MustExec(watchCommits)
	source := rand.New(rand.NewPCG(w.seed, 0))
	for range 8 {
		ws := storetest.NewWorkspace(t, w.env, "pro")
		w.workspaces = append(w.workspaces, ws)
		w.limit(ws, map[string]int64{"agent_ms": 100_000, "provider_budget_microusd": 5_000, "max_task_cost_microusd": 4_000})
	}
	done := make(chan struct{})
	var workers, disturbers sync.WaitGroup
	for i := range 100 {
		workers.Go(func() { w.work(rand.New(rand.NewPCG(w.seed, uint64(i+1))), done) })
	}
	var deeds atomic.Int64
	for i := range 4 {
		disturbers.Go(func() {
			random := rand.New(rand.NewPCG(w.seed, uint64(1_000+i)))
			for deeds.Add(1) <= 500 {
				w.disturb(random)
			}
		})
	}
	disturbers.Go(func() {
		for range 40 {
			w.picture(w.compareReasons)
			time.Sleep(20 * time.Millisecond) // let something happen between two pictures
		}
	})
	disturbers.Wait()
	w.settleDown(source)
	close(done)
	workers.Wait()

	var violations []string
	if err := admin.Select(&violations, `SELECT what FROM watch_violations`); err != nil {
		t.Fatal(err)
	}
	if len(violations) > 0 {
		t.Errorf("%d commits broke a rule (seed %d), first %q", len(violations), w.seed, violations[:min(5, len(violations))])
	}
	t.Logf("%v", w.count)
	for _, what := range []string{"claim", "finish", "begin", "end", "submit", "cancel", "set-limit", "plan change", "pause", "resume", "overage", "month passed", "crash",
		"end lost", "turn lost", "budget cut", "quota cut", "task cost refused", "waits: quota_exhausted", "waits: provider_budget", "waits: workspace_paused",
		"waits: workspace_cap", "waits: retry_backoff", "waits: in_line"} {
		if w.count[what] == 0 {
			t.Errorf("it never happened: %s (seed %d)", what, w.seed)
		}
	}
	if n := w.line.count(`SELECT count(*) FROM metering_rows WHERE meter = 'overage_ms'`); n == 0 {
		t.Error("no overage was charged")
	}
	admin.MustExec(`DROP FUNCTION watch() CASCADE`)
}

// settleDown gives everybody enough and waits until every task has ended: nothing was left behind.
func (w *walk) settleDown(random *rand.Rand) {
	ctx, operator := context.Background(), store.Operator{Name: "test"}
	for _, ws := range w.workspaces {
		w.deed("enough for all", func() error {
			turns, err := w.system.Resume(ctx, ws, operator)
			w.deliver(random, turns...)
			more, err2 := w.system.SetLimits(ctx, ws, map[string]int64{"agent_ms": 1e12, "concurrency": 20, "provider_budget_microusd": 1e12, "max_task_cost_microusd": 1e12}, operator)
			w.deliver(random, more...)
			return errors.Join(err, err2)
		})
	}
	w.env.Admin(w.t).MustExec(`UPDATE tasks SET run_at = now() WHERE status = 'scheduled'`)
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if w.line.count(`SELECT count(*) FROM tasks WHERE finished_at IS NULL`) == 0 {
			return
		}
		if time.Now().After(deadline) {
			w.t.Errorf("%s (seed %d)", fmt.Sprint(w.line.count(`SELECT count(*) FROM tasks WHERE finished_at IS NULL`), " tasks are left behind"), w.seed)
			return
		}
		w.deed("sweep", func() error { return w.sweep(random) })
	}
}
