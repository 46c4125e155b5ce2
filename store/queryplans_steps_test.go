package store_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

// planStep is a call of the product whose statements' plans are kept.
type planStep struct {
	group, name string
	calls       string // the function, for who reads the page
	why         string // it is bounded, or by what
	most        int64  // buffers that each of its statements may touch; 0: bounded by something else, see why
	whole       bool   // it may read a growing table as a whole
	once        bool   // a second call would find nothing to do
	call        func(ctx context.Context, l *planLedger) error
}

const perBatch = " A batch of up to 64 costs that for each workspace in it."

var planSteps = []planStep{
	{group: "A task's way", name: "submit", calls: "API.Submit", most: 150,
		why: "Two probes of the line's ends, one insert, the load row, the head of the line: the depth of the indexes, whatever waits. With more than one priority in line the tasks ahead are counted, up to 1,001.",
		call: func(ctx context.Context, l *planLedger) error {
			_, _, err := l.api.Submit(ctx, l.workspaces[0], []store.NewTask{{Agent: "yuki", Model: "auto", Prompt: "p", TimeoutMS: 60_000, MaxAttempts: 1}})
			return err
		}},
	{group: "A task's way", name: "forty submits in company", calls: "API.Submit", most: 4000,
		why:  "The same for each workspace of a flush, in four statements for all of them. The ledger of one workspace has one submit of forty tasks here.",
		call: func(_ context.Context, l *planLedger) error { return l.submitTogether(40) }},
	{group: "A task's way", name: "claim", calls: "Fleet.Claim", most: 300,
		why:  "`line_lock` reads the load row by its key; `line_look` counts the workspace's leases (at most its cap) and reads the head of `tasks_line` in order, one task more than is asked for, stepping over those that run (at most the cap); `line_lease` inserts by key." + perBatch,
		call: func(ctx context.Context, l *planLedger) error { return l.claim(ctx, l.worker) }},
	{group: "A task's way", name: "beat", calls: "Fleet.Beat", most: 200, why: "The worker's row by its key, its leases by `leases_worker`: at most its slots.",
		call: func(ctx context.Context, l *planLedger) error {
			_, err := l.fleet.Beat(ctx, l.worker, 1, false)
			return err
		}},
	{group: "A task's way", name: "model call", calls: "Fleet.BeginCall, Fleet.EndCall", most: 150, why: "The lease, the task and the attempt's calls by their keys; open calls of the workspace by `provider_calls_reserved`: at most one for each task that runs.",
		call: func(ctx context.Context, l *planLedger) error {
			t, id := l.claimed[0], store.NewID()
			err := l.fleet.BeginCall(ctx, store.CallStart{ID: id, Workspace: t.Workspace, Task: t.ID, Lease: t.Lease, Provider: "openai", Model: "m", Step: 1, Try: 1, CeilingMicroUSD: 10})
			if err != nil {
				return err
			}
			_, err = l.fleet.EndCall(ctx, t.Workspace, id, store.CallEnd{Outcome: "ok", CostMicroUSD: 5})
			return err
		}},
	{group: "A task's way", name: "finish", calls: "Fleet.Finish", most: 300,
		why: "`line_end` deletes the lease by its key, `line_book` changes the task by its key and inserts the attempt and its metering rows; then the look of a claim." + perBatch,
		call: func(ctx context.Context, l *planLedger) error {
			t := l.claimed[0]
			l.claimed = l.claimed[1:]
			done, err := l.fleet.Finish(ctx, &store.Finish{Workspace: t.Workspace, Task: t.ID, Lease: t.Lease, Outcome: store.Succeeded, Result: json.RawMessage(`{}`),
				Usage: store.AttemptUsage{AgentMS: 5}}, false)
			if err == nil && !done.Accepted {
				err = fmt.Errorf("refused")
			}
			return err
		}},

	{group: "Customers' reading", name: "one task, in the middle of a long line", calls: "API.Task", most: 400,
		why: "By its key; the reason from the load row and the line's head; the position counts at most 1,001 tasks ahead in `tasks_line`.",
		call: func(ctx context.Context, l *planLedger) error {
			_, err := l.api.Task(ctx, l.workspaces[0], l.waiting)
			return err
		}},
	{group: "Customers' reading", name: "one task's status", calls: "API.TaskStatus", most: 20, why: "By its key.",
		call: func(ctx context.Context, l *planLedger) error {
			_, err := l.api.TaskStatus(ctx, l.workspaces[0], l.ended)
			return err
		}},
	{group: "Customers' reading", name: "attempts of a task", calls: "API.Attempts", most: 60, why: "By `attempts_task` and `provider_calls_attempt`: what the task has had.",
		call: func(ctx context.Context, l *planLedger) error {
			_, err := l.api.Attempts(ctx, l.workspaces[0], l.ended, nil, 50)
			return err
		}},
	lists("tasks", store.TaskFilter{}, "Down the primary key from the cursor, as many as the page holds."),
	lists("tasks, status=running", store.TaskFilter{Status: store.StatusRunning}, "From the leases: at most the cap."),
	lists("tasks, status=queued", store.TaskFilter{Status: store.StatusQueued}, "A line of up to 2,000 is read through `tasks_line` and sorted; a longer one is met down the primary key."),
	lists("tasks, status=scheduled", store.TaskFilter{Status: store.StatusScheduled}, filtered),
	lists("tasks, status=failed", store.TaskFilter{Status: store.StatusFailed}, filtered),
	lists("tasks, an agent that has none", store.TaskFilter{Agent: "sable"}, filtered),
	lists("tasks, metadata that none has", store.TaskFilter{Metadata: map[string]string{"n": "none"}}, filtered),
	lists("tasks of a schedule", store.TaskFilter{Schedule: uuid.Max}, "By `tasks_schedule`, in order."),
	{group: "Customers' reading", name: "tasks of one day", calls: "API.Tasks", most: 1500, why: "The ids of a range of time are a range of the primary key, with an hour's margin.",
		call: func(ctx context.Context, l *planLedger) error {
			from, to := time.Now().Add(-40*24*time.Hour), time.Now().Add(-39*24*time.Hour)
			_, _, err := l.api.Tasks(ctx, l.workspaces[0], store.TaskFilter{CreatedAfter: &from, CreatedBefore: &to}, uuid.Nil, 50)
			return err
		}},
	{group: "Customers' reading", name: "dead letters", calls: "API.DeadLetters", most: 250, why: "Down `tasks_ended_badly` in order, as many as the page holds. A filter of agent, error code or metadata is applied on the way: at most the workspace's failed tasks that are kept.",
		call: func(ctx context.Context, l *planLedger) error {
			_, err := l.api.DeadLetters(ctx, l.workspaces[0], store.EndedFilter{}, nil, 50)
			return err
		}},
	{group: "Customers' reading", name: "usage of a day, by agent", calls: "API.Usage", why: "By `metering_rows_day`: the rows of the days that are asked for, which is what is summed: a day of 33,000 attempts takes 30 ms.",
		call: func(ctx context.Context, l *planLedger) error {
			_, err := l.api.Usage(ctx, l.workspaces[0], store.UsageQuery{From: time.Now().Add(-41 * 24 * time.Hour), To: time.Now().Add(-40 * 24 * time.Hour), GroupBy: "agent", Limit: 50})
			return err
		}},
	{group: "Customers' reading", name: "quota", calls: "API.Quota", most: 100, why: "The load row, the leases, the open calls: at most the cap.",
		call: func(ctx context.Context, l *planLedger) error {
			_, err := l.api.Quota(ctx, l.workspaces[0])
			return err
		}},
	{group: "Customers' reading", name: "events", calls: "API.EventsAfter", most: 50, why: "Up the primary key from the last one seen.",
		call: func(ctx context.Context, l *planLedger) error {
			_, err := l.api.EventsAfter(ctx, l.workspaces[0], 2, 100)
			return err
		}},
	{group: "Customers' reading", name: "deliveries of a webhook", calls: "API.Deliveries", most: 250, why: "Down the primary key from the cursor. A filter of status is applied on the way, over at most the 30 days for which deliveries are kept.",
		call: func(ctx context.Context, l *planLedger) error {
			_, err := l.api.Deliveries(ctx, l.workspaces[0], l.endpoint, store.DeliveryFilter{}, uuid.Nil, 50)
			return err
		}},

	{group: "Customers' changes of many tasks", name: "choose what to cancel in bulk", calls: "Work.CancelMatching", once: true, whole: true,
		why: "What runs and what waits, read before the load row is locked: at most the plan's waiting tasks (200,000 with Pro, which takes a tenth of the second below). The filter here chooses none, so it meets all of them. What is chosen is canceled 1,000 in a transaction.",
		call: func(ctx context.Context, l *planLedger) error {
			return l.work(ctx, func(w *store.Work) error {
				_, err := w.CancelMatching(ctx, store.CancelFilter{Metadata: map[string]string{"n": "none"}})
				return err
			})
		}},
	{group: "Customers' changes of many tasks", name: "replay dead letters", calls: "Work.RetryEnded", once: true,
		why: "Up `tasks_ended_badly` in order, at most 1,000 a call (here 20).",
		call: func(ctx context.Context, l *planLedger) error {
			return l.work(ctx, func(w *store.Work) error {
				_, err := w.RetryEnded(ctx, store.EndedFilter{Status: store.StatusFailed}, 20)
				return err
			})
		}},

	{group: "The scheduler, each second", name: "what expires", calls: "System.ExpireDue", once: true, why: "By `tasks_expiring`, which holds only what may expire, up to now: what is due, at most 1,000 a round.",
		call: func(ctx context.Context, l *planLedger) error {
			n, _, _, err := l.system.ExpireDue(ctx)
			return some(n, err)
		}},
	{group: "The scheduler, each second", name: "cron schedules", calls: "System.FireSchedules", once: true, why: "By `schedules_due` up to now: what is due, 200 in a transaction.",
		call: func(ctx context.Context, l *planLedger) error {
			f, err := l.system.FireSchedules(ctx)
			return some(f.Sent+f.Missed, err)
		}},
	{group: "The scheduler, each second", name: "what comes due", calls: "System.PromoteDue", once: true, why: "By `tasks_due` up to now: what is due, at most 1,000 a round.",
		call: func(ctx context.Context, l *planLedger) error {
			n, _, _, err := l.system.PromoteDue(ctx)
			return some(n, err)
		}},
	{group: "The scheduler, each second", name: "lost turns", calls: "System.ReissueLost", why: "One pass over the load rows for each tier: by the number of workspaces, not by tasks.",
		call: func(ctx context.Context, l *planLedger) error {
			_, err := l.system.ReissueLost(ctx, "pro", time.Now().Add(-time.Hour))
			return err
		}},
	{group: "The scheduler, each second", name: "missed turns", calls: "System.IssueMissed", why: "One pass over the load rows; leases and the line's head are looked at only where work waits without a turn, which is where a workspace runs as much as its cap or is paused by its quota.",
		call: func(ctx context.Context, l *planLedger) error {
			_, _, err := l.system.IssueMissed(ctx)
			return err
		}},
	{group: "The scheduler, each second", name: "dead workers", calls: "System.LiveWorkers, System.RecoverDeadWorkers", once: true, why: "The workers and the leases: the fleet's slots. What a dead worker held is then finished by keys.",
		call: func(ctx context.Context, l *planLedger) error {
			dead := store.NewID()
			if err := l.fleet.Register(ctx, store.Worker{ID: dead, Name: "d", Slots: 1}); err != nil {
				return err
			}
			if err := l.claim(ctx, dead); err != nil {
				return err
			}
			l.claimed = nil
			if err := l.fleet.Leave(ctx, dead); err != nil {
				return err
			}
			if _, err := l.system.LiveWorkers(ctx); err != nil {
				return err
			}
			n, _, err := l.system.RecoverDeadWorkers(ctx)
			return some(n, err)
		}},
	{group: "The scheduler, each second", name: "webhooks that are due", calls: "System.TakeLanes, System.Due", why: "Along `webhook_deliveries_due` from endpoint to endpoint, one probe each, however much waits: by the number of endpoints that something waits for.",
		call: func(ctx context.Context, l *planLedger) error {
			lanes, err := l.system.TakeLanes(ctx, false, 1)
			if err != nil || len(lanes) == 0 {
				return err
			}
			_, err = l.system.Due(ctx, lanes[0], 100)
			return err
		}},

	{group: "The scheduler, less often", name: "orphaned model calls", calls: "System.CloseOrphanedCalls", most: 100, why: "By `provider_calls_open`: what is open, and older than two minutes.",
		call: func(ctx context.Context, l *planLedger) error {
			_, _, err := l.system.CloseOrphanedCalls(ctx, 2*time.Minute)
			return err
		}},
	{group: "The scheduler, less often", name: "sweep", calls: "System.Sweep", why: "What is old, 5,000 rows a statement. Keys and runs of schedules by their index on age; sessions, invitations and mailed tokens as a whole: by the number of users, every ten minutes.",
		call: func(ctx context.Context, l *planLedger) error { return l.system.Sweep(ctx, 48*time.Hour) }},
	{group: "The scheduler, less often", name: "sweep of webhooks", calls: "System.SweepWebhooks", once: true, why: "Along the lanes, as above; old deliveries by `webhook_deliveries_age`, 5,000 rows a statement.",
		call: func(ctx context.Context, l *planLedger) error { return l.system.SweepWebhooks(ctx) }},
	{group: "The scheduler, less often", name: "retention: who has something old", calls: "System.Keepings", why: "One probe of the primary key for each of 100 workspaces a call.",
		call: func(ctx context.Context, l *planLedger) error {
			_, _, err := l.system.Keepings(ctx, uuid.Nil, 100)
			return err
		}},
	{group: "The scheduler, less often", name: "retention: remove 100 tasks", calls: "System.RemoveEnded", once: true, why: "Up the primary key from the oldest, a batch a call; attempts and model calls by their indexes.",
		call: func(ctx context.Context, l *planLedger) error {
			r, _, _, err := l.system.RemoveEnded(ctx, store.Keeping{Workspace: l.workspaces[0], Days: 30, Before: time.Now().Add(-30 * 24 * time.Hour)}, uuid.Nil, 100)
			return some(int(r.Tasks), err)
		}},

	{group: "Figures", name: "tiers' load", calls: "System.TierLoad", why: "One look at each workspace with work: its leases and at most as many of its line as its cap leaves room for. By the number of workspaces with work; a process makes a reading again only after twenty times as long as it took, ten seconds at most (`tierLoads`).",
		call: func(ctx context.Context, l *planLedger) error {
			_, err := l.system.TierLoad(ctx)
			return err
		}},
	{group: "Figures", name: "fleet's load", calls: "System.FleetLoad", most: 200, why: "Workers and leases.",
		call: func(ctx context.Context, l *planLedger) error {
			_, err := l.system.FleetLoad(ctx)
			return err
		}},
	{group: "Figures", name: "webhooks' backlog", calls: "System.WebhookBacklog", why: "As for webhooks that are due.",
		call: func(ctx context.Context, l *planLedger) error {
			_, err := l.system.WebhookBacklog(ctx)
			return err
		}},
	{group: "Figures", name: "margins by plan", calls: "System.PlanMargins", whole: true, why: "This month's metering rows, by `metering_rows_day`: grows with the month's work. A scheduler's metric reads it anew after five minutes at the earliest.",
		call: func(ctx context.Context, l *planLedger) error {
			_, err := l.system.PlanMargins(ctx)
			return err
		}},

	{group: "The night", name: "roll-up", calls: "System.RollUp", once: true, whole: true, why: "The metering rows of 40 days, once a night: by the work of 40 days, not by the ledger's age.",
		call: func(ctx context.Context, l *planLedger) error {
			today := time.Now().UTC()
			from, err := l.system.RollUpFrom(ctx, today)
			if err != nil {
				return err
			}
			_, err = l.system.RollUp(ctx, from, today)
			return err
		}},
	{group: "The night", name: "whom to push", calls: "System.PushAccounts", why: "One probe of `metering_rows_day` and one of `push_ledger_pending` for each workspace with a Stripe customer, or, where the planner expects most of them to have rows, one pass over those of the 36 days: once a night.",
		call: func(ctx context.Context, l *planLedger) error {
			today := time.Now().UTC()
			_, err := l.system.PushAccounts(ctx, today.AddDate(0, 0, -35), today, today)
			return err
		}},
	{group: "The night", name: "a workspace's days to push", calls: "System.PushDays", most: 200, why: "The daily sums by their key, 35 of them, and the ledger's rows of these days.",
		call: func(ctx context.Context, l *planLedger) error {
			today := time.Now().UTC()
			_, err := l.system.PushDays(ctx, l.workspaces[0], store.MeterAgentMS, today.AddDate(0, 0, -35), today, false)
			return err
		}},
}

const filtered = "Down the primary key from the cursor, the filter applied on the way, over at most 10,000 tasks: then the page ends, with a cursor to go on from."

func lists(name string, f store.TaskFilter, why string) planStep {
	return planStep{group: "Customers' reading", name: name, calls: "API.Tasks", why: why, most: 12_000,
		call: func(ctx context.Context, l *planLedger) error {
			_, _, err := l.api.Tasks(ctx, l.workspaces[0], f, uuid.Nil, 50)
			return err
		}}
}

// some wants a call to have found something to do.
func some(n int, err error) error {
	if err == nil && n == 0 {
		return fmt.Errorf("found nothing to do")
	}
	return err
}

// claim takes the first workspace's next task for a worker.
func (l *planLedger) claim(ctx context.Context, worker uuid.UUID) error {
	if worker == uuid.Nil {
		l.worker = store.NewID()
		if err := l.fleet.Register(ctx, store.Worker{ID: l.worker, Name: "w", Slots: 100}); err != nil {
			return err
		}
		worker = l.worker
	}
	var turn uuid.UUID
	if err := l.admin.Get(&turn, `SELECT turn FROM workspace_load WHERE workspace_id = $1`, l.workspaces[0]); err != nil {
		return err
	}
	won, err := l.fleet.Claim(ctx, &store.Claim{Workspace: l.workspaces[0], Turn: turn, Lease: store.NewID(), Worker: worker}, false)
	if err == nil && won.Outcome != store.ClaimWon {
		err = fmt.Errorf("claim: %s", won.Outcome)
	}
	l.claimed = append(l.claimed, won.Task)
	return err
}

func (l *planLedger) work(ctx context.Context, do func(w *store.Work) error) error {
	_, err := l.api.Do(ctx, store.Scope{Workspace: l.workspaces[0]}, nil, func(w *store.Work) (store.Answer, error) { return store.Answer{}, do(w) })
	return err
}

// A page of a list whose filter few tasks pass ends behind walkLimit of them, and the pages together are the whole list.
func TestAListThatFewTasksPassEndsItsPages(t *testing.T) {
	t.Parallel()
	l := newPlanLedger(t, 1, 21_000)
	api := store.NewAPI(l.env.API(t))
	pages := func(f store.TaskFilter, limit int) (found []uuid.UUID, empty int) {
		for before, more := uuid.Nil, true; more; {
			views, stopped, err := api.Tasks(t.Context(), l.workspaces[0], f, before, limit)
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range views {
				found = append(found, v.ID)
			}
			switch {
			case stopped != uuid.Nil:
				before = stopped
			case len(views) == limit:
				before = views[limit-1].ID
			default:
				more = false
			}
			if len(views) == 0 {
				empty++
			}
		}
		return found, empty
	}
	if found, empty := pages(store.TaskFilter{Agent: "sable"}, 50); len(found) != 0 || empty != 3 {
		t.Errorf("%d tasks of an agent that has none on %d empty pages, want 0 on 3: two of 10,000 tasks and the rest", len(found), empty)
	}
	var failed []uuid.UUID
	if err := l.admin.Select(&failed, `SELECT id FROM tasks WHERE status = 'failed' ORDER BY id DESC`); err != nil {
		t.Fatal(err)
	}
	if found, empty := pages(store.TaskFilter{Status: store.StatusFailed}, 7); !slices.Equal(found, failed) || len(failed) == 0 || empty == 0 {
		t.Errorf("found %d failed tasks with %d empty pages, want %d in order", len(found), empty, len(failed))
	}
}
