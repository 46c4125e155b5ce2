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

// TestAHostileFreeWorkspaceStaysWithinItsBounds lets a Free workspace do its worst at random (floods, cancels and retries,
// attempts that fail, are handed back or overrun their deadline) and holds what the ledger can hold of the table
// of WorstMonth after each step: slots, agent time, backlog, letters. Rate limits, model calls and the size of tasks are
// held by the tests of api/ratelimit, of the provider budget and of api.
func TestAHostileFreeWorkspaceStaysWithinItsBounds(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	plan := store.Plans[0]
	ws := storetest.NewWorkspace(t, l.env, plan.ID)
	ctx := context.Background()
	// The month's last forty minutes and a backlog that fills up, so that the walk meets both ends.
	quota, backlog := int64(40*60_000), 40
	operator := store.Operator{Name: "test"}
	if _, err := l.system.SetLimits(ctx, ws, map[string]int64{"agent_ms": quota, "max_waiting": int64(backlog)}, operator); err != nil {
		t.Fatal(err)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	var running []store.ClaimedTask
	var tasks []uuid.UUID
	steps, refused, claimed := 0, 0, 0
	turn := func() *store.Turn {
		var rows []struct {
			Turn  uuid.UUID `db:"turn"`
			Queue string    `db:"queue"`
		}
		if err := l.env.Admin(t).Select(&rows, `SELECT turn, queue FROM workspace_load WHERE workspace_id = $1 AND turn IS NOT NULL`, ws); err != nil {
			t.Fatal(err)
		}
		if len(rows) == 0 {
			return nil
		}
		return &store.Turn{Workspace: ws, ID: rows[0].Turn, Queue: rows[0].Queue}
	}
	work := func(fn func(w *store.Work) error) {
		_, err := l.api.Do(ctx, store.Scope{Workspace: ws}, nil, func(w *store.Work) (store.Answer, error) { return store.Answer{}, fn(w) })
		if k := store.KindOf(err); k == store.BacklogFull || k == store.Conflict {
			refused++
		} else if err != nil {
			t.Fatal(err)
		}
	}
	outcomes := []store.Outcome{store.Succeeded, store.Failed, store.Retry, store.Timeout, store.HandedBack, store.QuotaCut, store.Canceled}
	for ; steps < 600; steps++ {
		switch r.IntN(7) {
		case 0, 1: // a flood
			batch := make([]store.NewTask, 1+r.IntN(8))
			for i := range batch {
				batch[i] = store.NewTask{Agent: "yuki", Model: "auto", Prompt: "x", TimeoutMS: 1 + r.IntN(store.MaxTimeoutMS), MaxAttempts: 1 + r.IntN(store.MaxAttemptsLimit)}
			}
			work(func(w *store.Work) error {
				created, err := w.Submit(ctx, batch)
				for _, c := range created {
					if err == nil { // else there is no such task
						tasks = append(tasks, c.ID)
					}
				}
				return err
			})
		case 2, 3: // deliveries, more of them than there are slots
			if next := turn(); next != nil {
				if c := l.claim(next); c.Outcome == store.ClaimWon {
					running, claimed = append(running, c.Task), claimed+1
				}
			}
		case 4, 5: // an end, and a claim of more time than was reserved
			if len(running) == 0 {
				continue
			}
			i := r.IntN(len(running))
			task := running[i]
			running = append(running[:i], running[i+1:]...)
			f := &store.Finish{Workspace: ws, Task: task.ID, Lease: task.Lease, Outcome: outcomes[r.IntN(len(outcomes))], CustomerFault: r.IntN(2) == 0,
				Usage: store.AttemptUsage{AgentMS: r.Int64N(2 * int64(task.ReservedMS))}}
			if f.Outcome == store.Succeeded {
				f.Result = []byte(`{"output": "x", "data": null}`)
			} else {
				f.Error = &store.TaskError{Code: "x", Message: "x"}
			}
			if _, err := l.fleet.Finish(ctx, f, false); err != nil {
				t.Fatal(err)
			}
		default:
			if len(tasks) == 0 {
				continue
			}
			id := tasks[r.IntN(len(tasks))]
			work(func(w *store.Work) error {
				if r.IntN(2) == 0 {
					return w.Retry(ctx, id)
				}
				_, err := w.Cancel(ctx, id)
				return err
			})
		}
		w, err := l.system.Workspace(ctx, ws)
		if err != nil {
			t.Fatal(err)
		}
		// What ran comes back to the line however full it is.
		if w.Running > plan.Concurrency || w.Waiting > backlog+plan.Concurrency || w.UsedMS+w.ReservedMS > quota {
			t.Fatalf("step %d: %d of %d run, %d of %d wait, %d ms used and %d reserved of %d", steps, w.Running, plan.Concurrency, w.Waiting, backlog+plan.Concurrency, w.UsedMS, w.ReservedMS, quota)
		}
	}
	if _, err := l.system.AddressNotices(ctx); err != nil {
		t.Fatal(err)
	}
	if n := l.count(`SELECT count(*) FROM notice_mails WHERE workspace_id = $1`, ws); n > 2 {
		t.Errorf("%d letters about one quota", n)
	}
	if refused == 0 || claimed < 10 {
		t.Errorf("a tame walk: %d refusals, %d attempts", refused, claimed)
	}
	t.Logf("%d steps, %d refusals, %d attempts, %d tasks", steps, refused, claimed, len(tasks))
}

func TestWorstMonthGrowsWithEachLimit(t *testing.T) {
	t.Parallel()
	sum := func(p store.Plan) (total int64) {
		for _, term := range store.WorstMonth(p) {
			if term.Quantity <= 0 || term.MicroUSD <= 0 || term.Bound == "" {
				t.Errorf("%+v", term)
			}
			total += term.MicroUSD
		}
		return total
	}
	for name, grow := range map[string]func(p *store.Plan){
		"requests per hour": func(p *store.Plan) { p.RequestsPerHour++ },
		"concurrency":       func(p *store.Plan) { p.Concurrency++ },
		"provider budget":   func(p *store.Plan) { p.ProviderBudgetMicroUSD += 1_000_000 },
	} {
		larger := store.Plans[0]
		grow(&larger)
		if sum(larger) <= sum(store.Plans[0]) {
			t.Errorf("more %s costs nothing", name)
		}
	}
}
