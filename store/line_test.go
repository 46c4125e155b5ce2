package store_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }

// line is one test's ledger with the three sides that act on it.
type line struct {
	t      testing.TB
	env    *storetest.Env
	api    *store.API
	fleet  *store.Fleet
	system *store.System
	worker uuid.UUID
}

func newLine(t testing.TB) *line {
	l := newLineOn(t, storetest.New(t))
	t.Cleanup(func() { storetest.CheckLedger(t, l.env) })
	return l
}

// newLineOn is a line whose ledger is not checked, as when a test makes its figures up.
func newLineOn(t testing.TB, env *storetest.Env) *line {
	l := &line{t: t, env: env, api: store.NewAPI(env.API(t)), system: store.NewSystem(env.System(t)), fleet: store.NewFleet(env.Worker(t))}
	t.Cleanup(l.fleet.Close)
	l.worker = l.register()
	return l
}

// makeUp gives a workspace figures: cap, quota_ms, used_ms, overage_allowance_ms, overage_used_ms, provider_budget_microusd, provider_used_microusd,
// whether it is paused, whether they are the last month's, max_task_cost_microusd.
func (l *line) makeUp(ws uuid.UUID, figures ...any) {
	l.t.Helper()
	l.env.Admin(l.t).MustExec(`UPDATE workspace_load SET cap = $2, quota_ms = $3, used_ms = $4, overage_enabled = true, overage_allowance_ms = $5, overage_used_ms = $6,
		provider_budget_microusd = $7, provider_used_microusd = $8, paused = CASE WHEN $9 THEN ARRAY['operator'] END, max_task_cost_microusd = $11,
		period = date_trunc('month', now() AT TIME ZONE 'UTC')::date - CASE WHEN $10 THEN interval '1 month' ELSE interval '0' END
		WHERE workspace_id = $1`, append([]any{ws}, figures...)...)
}

func (l *line) register() uuid.UUID {
	l.t.Helper()
	id := store.NewID()
	if err := l.fleet.Register(context.Background(), store.Worker{ID: id, Name: "test", Slots: 10}); err != nil {
		l.t.Fatal(err)
	}
	return id
}

func task(prompt string) store.NewTask {
	return store.NewTask{Agent: "yuki", Model: "auto", Prompt: prompt, TimeoutMS: 60_000, MaxAttempts: 3}
}

// submit sends tasks and returns their ids and the turn that was issued, if one was.
func (l *line) submit(ws uuid.UUID, tasks ...store.NewTask) ([]uuid.UUID, *store.Turn) {
	l.t.Helper()
	var ids []uuid.UUID
	done, err := l.api.Do(context.Background(), store.Scope{Workspace: ws}, nil, func(w *store.Work) (store.Answer, error) {
		created, err := w.Submit(context.Background(), tasks)
		ids = ids[:0]
		for _, c := range created {
			ids = append(ids, c.ID)
		}
		return store.Answer{}, err
	})
	if err != nil {
		l.t.Fatalf("submit: %v", err)
	}
	return ids, one(l.t, done.Turns)
}

func one(t testing.TB, turns []store.Turn) *store.Turn {
	t.Helper()
	if len(turns) > 1 {
		t.Fatalf("%d turns of one workspace issued at once", len(turns))
	}
	if len(turns) == 0 {
		return nil
	}
	return &turns[0]
}

// claim delivers a turn.
func (l *line) claim(turn *store.Turn) store.Claimed {
	l.t.Helper()
	if turn == nil {
		l.t.Fatal("there is no turn to claim")
	}
	c, err := l.fleet.Claim(context.Background(), &store.Claim{Workspace: turn.Workspace, Turn: turn.ID, Lease: uuid.New(), Worker: l.worker}, false)
	if err != nil {
		l.t.Fatal(err)
	}
	return c
}

// won delivers a turn that must bring a task.
func (l *line) won(turn *store.Turn) store.Claimed {
	l.t.Helper()
	c := l.claim(turn)
	if c.Outcome != store.ClaimWon {
		l.t.Fatalf("claim was %s, want won", c.Outcome)
	}
	return c
}

func finishOf(task store.ClaimedTask, o store.Outcome, ms int64) *store.Finish {
	f := &store.Finish{Workspace: task.Workspace, Task: task.ID, Lease: task.Lease, Outcome: o, Usage: store.AttemptUsage{AgentMS: ms}}
	if o == store.Succeeded {
		f.Result = json.RawMessage(`{"output": "ok", "data": null}`)
	} else {
		f.Error = &store.TaskError{Code: "provider_error", Message: "no answer", Retryable: o == store.Retry}
	}
	return f
}

// callOf is a call about to be made that costs so much at most.
func callOf(task store.ClaimedTask, id uuid.UUID, ceiling int64) store.CallStart {
	return store.CallStart{ID: id, Workspace: task.Workspace, Task: task.ID, Lease: task.Lease, Provider: "openai", Model: "m", Step: 1, Try: 1, CeilingMicroUSD: ceiling}
}

func (l *line) finish(task store.ClaimedTask, o store.Outcome, ms int64) store.Finished {
	l.t.Helper()
	r, err := l.fleet.Finish(context.Background(), finishOf(task, o, ms), false)
	if err != nil {
		l.t.Fatal(err)
	}
	return r
}

// status is what the ledger says of a task.
func (l *line) status(ws, id uuid.UUID) string {
	l.t.Helper()
	var s string
	err := l.env.Admin(l.t).Get(&s, `SELECT CASE WHEN l.id IS NULL THEN t.status ELSE 'running' END FROM tasks t
		LEFT JOIN leases l ON l.workspace_id = t.workspace_id AND l.task_id = t.id WHERE t.workspace_id = $1 AND t.id = $2`, ws, id)
	if err != nil {
		l.t.Fatal(err)
	}
	return s
}

func (l *line) count(query string, args ...any) int64 {
	l.t.Helper()
	var n int64
	if err := l.env.Admin(l.t).Get(&n, query, args...); err != nil {
		l.t.Fatal(err)
	}
	return n
}

func TestLine(t *testing.T) {
	t.Parallel()
	ctx := context.Background()

	t.Run("ATaskGoesThroughAndIsMetered", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "pro")
		ids, turn := l.submit(ws, task("one"))
		c := l.won(turn)
		if c.Task.ID != ids[0] || c.Task.Attempt != 1 || c.Task.ReservedMS != 60_000 || c.Turn != nil {
			t.Fatalf("claimed %+v", c)
		}
		if got := l.status(ws, ids[0]); got != store.StatusRunning {
			t.Fatalf("status %s while leased", got)
		}
		if r := l.finish(c.Task, store.Succeeded, 1234); !r.Accepted || r.Status != store.StatusSucceeded || r.Turn != nil {
			t.Fatalf("finished %+v", r)
		}
		if n := l.count(`SELECT sum(quantity) FROM metering_rows WHERE workspace_id = $1 AND meter = 'agent_ms' AND billable`, ws); n != 1234 {
			t.Fatalf("metered %d ms, want 1234", n)
		}
	})

	t.Run("OneTurnIsOutAndTheClaimIssuesTheNext", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "starter") // cap 3
		_, turn := l.submit(ws, task("a"), task("b"), task("c"), task("d"))
		if _, second := l.submit(ws, task("e")); second != nil {
			t.Fatal("a second turn was issued while one is out")
		}
		var running []store.ClaimedTask
		for i := 0; i < 3; i++ {
			c := l.won(turn)
			running, turn = append(running, c.Task), c.Turn
			if (turn != nil) != (i < 2) {
				t.Fatalf("after claim %d the next turn is %v", i+1, turn)
			}
		}
		if r := l.finish(running[0], store.Succeeded, 5); r.Turn == nil {
			t.Fatal("a freed slot with work waiting issued no turn")
		}
	})

	t.Run("AStaleTurnIsDropped", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "pro")
		_, turn := l.submit(ws, task("a"), task("b"))
		l.won(turn)
		if c := l.claim(turn); c.Outcome != store.ClaimStale {
			t.Fatalf("the second delivery of a turn was %s", c.Outcome)
		}
	})

	t.Run("PriorityThenOrderDecide", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "pro")
		low, high := task("low"), task("high")
		low.Priority, high.Priority = -5, 7
		ids, turn := l.submit(ws, low, task("first"), task("second"), high)
		for i, want := range []uuid.UUID{ids[3], ids[1], ids[2], ids[0]} {
			c := l.won(turn)
			if c.Task.ID != want {
				t.Fatalf("claim %d took %q", i, c.Task.Prompt)
			}
			turn = c.Turn
		}
	})

	t.Run("ARetryWaitsAndKeepsCounting", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "pro")
		ids, turn := l.submit(ws, task("flaky"))
		for attempt := 1; attempt <= 3; attempt++ {
			c := l.won(turn)
			if c.Task.Attempt != attempt {
				t.Fatalf("attempt %d, want %d", c.Task.Attempt, attempt)
			}
			r := l.finish(c.Task, store.Retry, 10)
			if attempt == 3 {
				if r.Status != store.StatusFailed {
					t.Fatalf("after the last attempt: %s", r.Status)
				}
				break
			}
			if r.Status != store.StatusScheduled || r.Turn != nil {
				t.Fatalf("after attempt %d: %+v", attempt, r)
			}
			l.count(`WITH u AS (UPDATE tasks SET run_at = now() WHERE id = $1 RETURNING 1) SELECT count(*) FROM u`, ids[0])
			n, _, turns, err := l.system.PromoteDue(ctx)
			if err != nil || n != 1 {
				t.Fatalf("promoted %d, %v", n, err)
			}
			turn = one(t, turns)
		}
		if n := l.count(`SELECT count(*) FROM metering_rows WHERE workspace_id = $1 AND billable`, ws); n != 0 {
			t.Fatalf("%d billable rows for provider outages", n)
		}
	})

	t.Run("AHandBackSpendsNoAttemptAndKeepsThePlace", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "pro")
		ids, turn := l.submit(ws, task("first"), task("second"))
		c := l.won(turn)
		l.finish(c.Task, store.HandedBack, 50)
		next := l.won(c.Turn)
		if next.Task.ID != ids[0] || next.Task.Attempt != 1 {
			t.Fatalf("after a hand-back came %q, attempt %d", next.Task.Prompt, next.Task.Attempt)
		}
	})

	t.Run("SubmitsRacingClaimsLoseNoWakeUp", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "free") // cap 1: every finish must wake the line
		turns := make(chan store.Turn, 1000)
		const senders, each = 8, 15
		var submits sync.WaitGroup
		for s := range senders {
			submits.Go(func() {
				for i := range each {
					if _, turn := l.submit(ws, task(fmt.Sprint(s, i))); turn != nil {
						turns <- *turn
					}
				}
			})
		}
		ran := 0
		timeout := time.After(60 * time.Second)
		for ran < senders*each {
			select {
			case turn := <-turns:
				c := l.claim(&turn)
				if c.Turn != nil {
					t.Fatal("a turn was issued beyond the cap of one")
				}
				if c.Outcome != store.ClaimWon {
					t.Fatalf("the current turn was %s", c.Outcome)
				}
				ran++
				if r := l.finish(c.Task, store.Succeeded, 1); r.Turn != nil {
					turns <- *r.Turn
				}
			case <-timeout:
				t.Fatalf("a wake-up was lost: %d of %d ran", ran, senders*each)
			}
		}
		submits.Wait()
		if missed, _, err := l.system.IssueMissed(ctx); err != nil || len(missed) != 0 {
			t.Fatalf("missed %v, %v", missed, err)
		}
	})

	t.Run("ARepeatedClaimOrFinishIsRecognisedAsItsOwn", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "pro")
		_, turn := l.submit(ws, task("a"), task("b"))
		claim := &store.Claim{Workspace: ws, Turn: turn.ID, Lease: uuid.New(), Worker: l.worker}
		first, err := l.fleet.Claim(ctx, claim, false)
		if err != nil {
			t.Fatal(err)
		}
		second, err := l.fleet.Claim(ctx, claim, true) // as after a lost reply
		if err != nil || second.Outcome != store.ClaimWon || second.Task.ID != first.Task.ID {
			t.Fatalf("repeated claim: %+v, %v", second, err)
		}
		if second.Turn == nil || second.Turn.ID != first.Turn.ID {
			t.Fatalf("the repeated claim must bring the same next turn: %v, %v", second.Turn, first.Turn)
		}
		f := finishOf(first.Task, store.Succeeded, 9)
		var wg sync.WaitGroup
		for range 5 { // at once, so that some share a batch
			wg.Go(func() {
				if r, err := l.fleet.Finish(ctx, f, true); err != nil || !r.Accepted {
					t.Errorf("repeated finish: %+v, %v", r, err)
				}
			})
		}
		wg.Wait()
		if n := l.count(`SELECT sum(quantity) FROM metering_rows WHERE workspace_id = $1 AND meter = 'agent_ms'`, ws); n != 9 {
			t.Fatalf("metered %d ms, want 9", n)
		}
	})

	t.Run("ADeadWorkerLosesItsTasksAndItsWritesAreRefused", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "pro")
		ids, turn := l.submit(ws, task("x"))
		c := l.won(turn)
		call := uuid.New()
		if err := l.fleet.BeginCall(ctx, callOf(c.Task, call, 77)); err != nil {
			t.Fatal(err)
		}
		if n, _, err := l.system.RecoverDeadWorkers(ctx); err != nil || n != 0 {
			t.Fatalf("recovered %d from a living worker, %v", n, err)
		}
		if dead, err := l.system.DeclareDead(ctx, l.worker, 99); err != nil || dead {
			t.Fatalf("declared dead by a beat it never had: %v, %v", dead, err)
		}
		if dead, err := l.system.DeclareDead(ctx, l.worker, 0); err != nil || !dead {
			t.Fatalf("not declared dead: %v, %v", dead, err)
		}
		n, turns, err := l.system.RecoverDeadWorkers(ctx)
		if err != nil || n != 1 || len(turns) != 1 {
			t.Fatalf("recovered %d with turns %v, %v", n, turns, err)
		}
		if r := l.finish(c.Task, store.Succeeded, 5); r.Accepted {
			t.Fatal("the zombie's finish was accepted")
		}
		if err := l.fleet.BeginCall(ctx, callOf(c.Task, uuid.New(), 0)); !errors.Is(err, store.ErrLeaseLost) {
			t.Fatalf("the zombie may call on: %v", err)
		}
		if _, err := l.fleet.Beat(ctx, l.worker, 1, false); !errors.Is(err, store.ErrWorkerDead) {
			t.Fatalf("the zombie beats on: %v", err)
		}
		if again := l.claim(&turns[0]); again.Outcome != store.ClaimDead || again.Turn == nil {
			t.Fatalf("the zombie claimed: %+v", again)
		} else {
			l.worker = l.register()
			next := l.won(again.Turn)
			if next.Task.ID != ids[0] || next.Task.Attempt != 1 || next.Task.Crashes != 1 {
				t.Fatalf("after the crash: %+v", next.Task)
			}
		}
		if cost := l.count(`SELECT sum(quantity) FROM metering_rows WHERE workspace_id = $1 AND meter = 'provider_cost_microusd' AND NOT billable`, ws); cost != 77 {
			t.Fatalf("the orphaned call %s is booked at %d micro-dollars, want its ceiling 77", call, cost)
		}
	})
}
