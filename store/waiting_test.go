package store_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// moment is one workspace's rows while its load row is held, which is the only way to move its tasks: so the rows, and what
// the API answers meanwhile, are of one moment. Expected answers are derived from them here by the words of the HTTP contract.
type moment struct {
	load struct {
		Paused    bool  `db:"paused"`
		Cap       int   `db:"cap"`
		QuotaMS   int64 `db:"quota_ms"`
		Budget    int64 `db:"provider_budget_microusd"`
		TaskCost  int64 `db:"max_task_cost_microusd"`
		UsedMS    int64 `db:"used_ms"`     // billable agent time of this month's metering rows
		Ended     int64 `db:"ended"`       // cost of this month's calls that have ended
		Open      int64 `db:"open"`        // what open calls reserve
		Running   int   `db:"running"`     // leases
		Reserved  int64 `db:"reserved_ms"` // by them
		ClockIsMS int64 `db:"clock_ms"`
	}
	tasks []momentTask // not ended
}

type momentTask struct {
	ID        uuid.UUID  `db:"id"`
	Status    string     `db:"status"`
	Leased    bool       `db:"leased"`
	Priority  int        `db:"priority"`
	TimeoutMS int64      `db:"timeout_ms"`
	Needs     int64      `db:"needs_microusd"`
	ExpiresAt *time.Time `db:"expires_at"`
	Attempts  int        `db:"attempts"` // that have ended
	Crashes   int        `db:"crashed"`  // those of them that ended in a crash
}

// freeze holds the workspace's load row until release is called.
func (l *line) freeze(db *sqlx.DB, ws uuid.UUID) (m moment, release func(), err error) {
	tx, err := db.Beginx()
	if err != nil {
		return m, nil, err
	}
	release = func() { _ = tx.Rollback() }
	if _, err = tx.Exec(`SELECT 1 FROM workspace_load WHERE workspace_id = $1 FOR UPDATE`, ws); err != nil {
		return m, release, err
	}
	if err = tx.Get(&m.load, `SELECT w.paused IS NOT NULL AS paused, w.cap, w.quota_ms, w.provider_budget_microusd, w.max_task_cost_microusd,
			(SELECT coalesce(sum(quantity), 0)::bigint FROM metering_rows m WHERE m.workspace_id = $1 AND m.meter = 'agent_ms' AND m.billable
				AND m.day >= date_trunc('month', now() AT TIME ZONE 'UTC')) AS used_ms,
			(SELECT coalesce(sum(cost_microusd), 0)::bigint FROM provider_calls c WHERE c.workspace_id = $1 AND c.outcome <> 'started'
				AND c.finished_at AT TIME ZONE 'UTC' >= date_trunc('month', now() AT TIME ZONE 'UTC')) AS ended,
			(SELECT coalesce(sum(cost_microusd), 0)::bigint FROM provider_calls c WHERE c.workspace_id = $1 AND c.outcome = 'started') AS open,
			(SELECT count(*) FROM leases l WHERE l.workspace_id = $1) AS running,
			(SELECT coalesce(sum(reserved_ms), 0)::bigint FROM leases l WHERE l.workspace_id = $1) AS reserved_ms,
			(extract(epoch FROM clock_timestamp()) * 1000)::bigint AS clock_ms
		FROM workspace_load w WHERE w.workspace_id = $1`, ws); err != nil {
		return m, release, err
	}
	err = tx.Select(&m.tasks, `SELECT t.id, t.status, l.id IS NOT NULL AS leased, t.priority, t.timeout_ms, t.needs_microusd, t.expires_at,
			(SELECT count(*) FROM attempts a WHERE a.workspace_id = $1 AND a.task_id = t.id) AS attempts,
			(SELECT count(*) FROM attempts a WHERE a.workspace_id = $1 AND a.task_id = t.id AND a.outcome = 'crashed') AS crashed
		FROM tasks t LEFT JOIN leases l ON l.workspace_id = $1 AND l.task_id = t.id
		WHERE t.workspace_id = $1 AND t.finished_at IS NULL`, ws)
	return m, release, err
}

// waiting derives what each task that waits is to be told, nil for one that runs. A task that has expired and was not ended
// yet will never run: nobody waits behind it, and it is left out itself.
func (m *moment) waiting(now time.Time) map[uuid.UUID]*store.Waiting {
	told := map[uuid.UUID]*store.Waiting{}
	var line []momentTask
	for _, t := range m.tasks {
		switch {
		case t.Leased:
			told[t.ID] = nil
		case t.ExpiresAt != nil && !t.ExpiresAt.After(now):
		case t.Status == "queued":
			line = append(line, t)
		case t.Crashes >= 2:
			told[t.ID] = &store.Waiting{Reason: "isolated"}
		case t.Attempts > 0:
			told[t.ID] = &store.Waiting{Reason: "retry_backoff"}
		default:
			told[t.ID] = &store.Waiting{Reason: "scheduled"}
		}
	}
	slices.SortFunc(line, func(a, b momentTask) int {
		return cmp.Or(b.Priority-a.Priority, slices.Compare(a.ID[:], b.ID[:]))
	})
	for i, t := range line {
		head, reason := line[0], "in_line"
		budget := m.load.Budget - m.load.Ended
		if m.load.Budget > 0 && head.Needs > min(m.load.Budget, m.load.TaskCost) {
			head.Needs = 0 // its call can never begin: it waits for nothing, and fails
		}
		if head.Needs > 0 {
			budget -= m.load.Open
		}
		switch {
		case m.load.Paused:
			reason = "workspace_paused"
		case m.load.QuotaMS-m.load.UsedMS-m.load.Reserved < min(head.TimeoutMS, 10_000):
			reason = "quota_exhausted"
		case budget < head.Needs:
			reason = "provider_budget"
		case m.load.Running >= m.load.Cap:
			reason = "workspace_cap"
		}
		told[t.ID] = &store.Waiting{Reason: reason, InLine: true, Position: min(i, 1000), More: i > 1000}
	}
	return told
}

// compare holds what the API says of the workspace's tasks, one by one and in its lists, against the moment's rows.
func (l *line) compare(db *sqlx.DB, ws uuid.UUID, singles int, seen func(*store.Waiting)) error {
	ctx := context.Background()
	m, release, err := l.freeze(db, ws)
	if release != nil {
		defer release()
	}
	if err != nil {
		return err
	}
	before := time.UnixMilli(m.load.ClockIsMS)
	views := map[uuid.UUID][]store.TaskView{}
	for page := uuid.Nil; ; {
		list, _, err := l.api.Tasks(ctx, ws, store.TaskFilter{}, page, 200)
		if err != nil {
			return err
		}
		for _, v := range list {
			views[v.ID] = append(views[v.ID], v)
		}
		if len(list) < 200 {
			break
		}
		page = list[len(list)-1].ID
	}
	for _, i := range rand.Perm(len(m.tasks))[:min(singles, len(m.tasks))] {
		v, err := l.api.Task(ctx, ws, m.tasks[i].ID)
		if err != nil {
			return err
		}
		views[v.ID] = append(views[v.ID], v)
	}
	var after time.Time
	if err := db.Get(&after, `SELECT clock_timestamp()`); err != nil {
		return err
	}
	for _, t := range m.tasks { // one that expired while we looked would be answered in both ways
		if t.ExpiresAt != nil && t.ExpiresAt.After(before.Add(-2*time.Millisecond)) && t.ExpiresAt.Before(after) {
			return nil
		}
	}
	for id, want := range m.waiting(before) {
		if len(views[id]) == 0 {
			return fmt.Errorf("task %s is in no list", id)
		}
		for i, v := range views[id] {
			if (v.Waiting == nil) != (want == nil) || want != nil && *v.Waiting != *want {
				return fmt.Errorf("task %s (%s, view %d) is told %+v, want %+v; load %+v", id, v.Status, i, v.Waiting, want, m.load)
			}
			seen(want)
		}
	}
	return nil
}

// TestWaitingIsTrueWhileAFleetDrains compares, thousands of times, what tasks are told about why they wait and behind how many
// with what the rows of the same moment say, while workers drain workspaces in each of the states that keep a task from running.
func TestWaitingIsTrueWhileAFleetDrains(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	db := l.env.Admin(t)
	workspaces := make([]uuid.UUID, 6)
	for i := range workspaces {
		workspaces[i] = storetest.NewWorkspace(t, l.env, []string{"pro", "starter", "free"}[i%3])
	}
	deep := workspaces[0] // its line is longer than positions are exact

	turns := make(chan store.Turn, 100_000)
	deliver := func(issued ...store.Turn) {
		for _, turn := range issued {
			turns <- turn
		}
	}
	submit := func(ws uuid.UUID, n int) error {
		tasks := make([]store.NewTask, n)
		for i := range tasks {
			tasks[i] = task("x")
			tasks[i].Priority = rand.IntN(5) - 2
			tasks[i].TimeoutMS = []int{5_000, 60_000, 300_000}[rand.IntN(3)]
			if at := time.Now().Add(time.Duration(rand.IntN(3000)) * time.Millisecond); rand.IntN(6) == 0 {
				tasks[i].RunAt = &at
			} else if rand.IntN(10) == 0 {
				tasks[i].ExpiresAt = &at
			}
		}
		_, issued, err := l.api.Submit(ctx, ws, tasks)
		deliver(issued...)
		return err
	}
	anyone := func() uuid.UUID { return workspaces[rand.IntN(len(workspaces))] }
	for _, ws := range workspaces {
		n := 60
		if ws == deep {
			n = 1000
		}
		if err := submit(ws, n); err != nil {
			t.Fatal(err)
		}
	}
	if err := submit(deep, 400); err != nil {
		t.Fatal(err)
	}

	run := func(turn store.Turn) error {
		claim, c := &store.Claim{Workspace: turn.Workspace, Turn: turn.ID, Lease: uuid.New(), Worker: l.worker}, store.Claimed{}
		if err := persist(ctx, func(again bool) (err error) { c, err = l.fleet.Claim(ctx, claim, again); return err }); err != nil {
			return err
		}
		if c.Turn != nil {
			deliver(*c.Turn)
		}
		if c.Outcome != store.ClaimWon {
			return nil
		}
		call, refused := uuid.New(), int64(0)
		err := persist(ctx, func(bool) error { return l.fleet.BeginCall(ctx, callOf(c.Task, call, 40)) })
		if err == nil {
			time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond) // the agent's work
			var ended store.CallEnded
			if err := persist(ctx, func(bool) (err error) {
				ended, err = l.fleet.EndCall(ctx, c.Task.Workspace, call, store.CallEnd{Outcome: "ok", CostMicroUSD: 20})
				return err
			}); err != nil {
				return err
			}
			if ended.Turn != nil {
				deliver(*ended.Turn)
			}
		} else if !errors.Is(err, store.ErrTaskCost) {
			refused = 40
		}
		outcomes := []store.Outcome{store.Succeeded, store.Succeeded, store.Retry, store.HandedBack, store.Crashed}
		f := finishOf(c.Task, outcomes[rand.IntN(len(outcomes))], int64(rand.IntN(50)))
		switch {
		case errors.Is(err, store.ErrTaskCost):
			f = finishOf(c.Task, store.Failed, 1)
		case refused > 0:
			f = finishOf(c.Task, store.BudgetCut, 1)
			f.NeedsMicroUSD = refused
		case f.Outcome == store.Crashed:
			f.Apart, f.Error = c.Task.Suspect(), &store.TaskError{Code: store.CodeAgentCrashed, Message: "died", Retryable: true}
		}
		var r store.Finished
		err = persist(ctx, func(again bool) (err error) { r, err = l.fleet.Finish(ctx, f, again); return err })
		if err == nil && r.Turn != nil {
			deliver(*r.Turn)
		}
		return err
	}
	by := store.Operator{Name: "test"}
	operate := func() (err error) {
		var issued []store.Turn
		switch ws := anyone(); rand.IntN(6) {
		case 0:
			err = l.system.Pause(ctx, ws, by)
		case 1, 2:
			issued, err = l.system.Resume(ctx, ws, by)
		case 3:
			issued, err = l.system.SetLimits(ctx, ws, map[string]int64{"concurrency": int64(1 + rand.IntN(4))}, by)
		case 4:
			issued, err = l.system.SetLimits(ctx, ws, map[string]int64{"agent_ms": []int64{4_000, 400_000, 60_000_000}[rand.IntN(3)]}, by)
		case 5:
			issued, err = l.system.SetLimits(ctx, ws, map[string]int64{"provider_budget_microusd": []int64{0, 30, 100, 500, 60_000_000}[rand.IntN(5)]}, by)
		}
		deliver(issued...)
		return err
	}
	sweep := func() error {
		_, _, promoted, err := l.system.PromoteDue(ctx)
		deliver(promoted...)
		if err != nil {
			return err
		}
		_, _, issued, err := l.system.ExpireDue(ctx)
		deliver(issued...)
		return err
	}

	var all sync.WaitGroup
	var failures atomic.Int64
	loop := func(pace time.Duration, step func() error) {
		all.Go(func() {
			for tick := time.NewTicker(pace); ctx.Err() == nil; {
				if err := step(); err != nil && ctx.Err() == nil {
					failures.Add(1)
					t.Error(err)
					stop()
				}
				select {
				case <-tick.C:
				case <-ctx.Done():
				}
			}
		})
	}
	for range 8 {
		all.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case turn := <-turns:
					if err := run(turn); err != nil && ctx.Err() == nil {
						t.Error(err)
						stop()
					}
				}
			}
		})
	}
	loop(20*time.Millisecond, operate)
	loop(300*time.Millisecond, sweep)
	loop(40*time.Millisecond, func() error {
		err := submit(workspaces[1+rand.IntN(len(workspaces)-1)], 1+rand.IntN(5))
		if store.KindOf(err) == store.BacklogFull {
			return nil
		}
		return err
	})

	counts, beyond, compared := map[string]int{}, 0, 0
	enough := func() bool {
		for _, reason := range []string{"workspace_cap", "in_line", "quota_exhausted", "workspace_paused", "scheduled", "retry_backoff", "provider_budget", "isolated"} {
			if counts[reason] < 20 {
				return false
			}
		}
		return beyond > 100 && compared >= 150
	}
	for limit := time.Now().Add(time.Minute); !enough() && ctx.Err() == nil; compared++ {
		if time.Now().After(limit) {
			t.Errorf("after a minute: %v, %d beyond the exact positions", counts, beyond)
			break
		}
		ws := anyone()
		if compared%10 > 0 && ws == deep { // its lists are long
			ws = workspaces[1+rand.IntN(len(workspaces)-1)]
		}
		err := l.compare(db, ws, 15, func(w *store.Waiting) {
			if w != nil {
				if counts[w.Reason]++; w.More {
					beyond++
				}
			}
		})
		if err != nil && ctx.Err() == nil {
			t.Error(err)
			stop()
		}
	}
	stop()
	all.Wait()
	t.Logf("%d moments compared: %v, %d beyond the exact positions", compared, counts, beyond)
}

// persist asks as workers do: again, while the ledger says that it is unavailable, as it is on a machine so busy that a load row
// is waited for longer than the role may.
func persist(ctx context.Context, ask func(again bool) error) error {
	err := ask(false)
	for store.Unavailable(err) && ctx.Err() == nil {
		err = ask(true)
	}
	return err
}
