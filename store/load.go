package store

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// Turn is a workspace's place in its tier's line: what travels through Redis instead of a task. At most one per
// workspace is current; a delivery whose ID is no longer the load row's turn is dropped.
type Turn struct {
	Workspace uuid.UUID
	ID        uuid.UUID // random; the message's id in Redis too
	Queue     string    // the tier
	IssuedAt  time.Time // by the database's clock
}

// load is one row of workspace_load, locked. It is the only lock of the line, and these are its rules:
//
//   - Lock in a statement of its own, then read tasks in a later one: a single READ COMMITTED statement that locks and
//     reads keeps its old snapshot of the tasks and loses a wake-up.
//   - Several rows are locked in id order, load rows before tasks.
//   - Running tasks and reservations are derived from leases under the lock, never counted.
//   - Whoever changes what could run calls settle before the commit: it issues the turn that is due.
type load struct {
	Workspace  uuid.UUID      `db:"workspace_id"`
	Queue      string         `db:"queue"`
	Cap        int            `db:"cap"`
	MaxWaiting int            `db:"max_waiting"`
	Waiting    int            `db:"waiting"`
	Paused     pq.StringArray `db:"paused"` // who paused it, nil for nobody
	Turn       *uuid.UUID     `db:"turn"`
	TurnAt     *time.Time     `db:"turn_at"`
	QuotaMS    int64          `db:"quota_ms"`
	Period     time.Time      `db:"period"`
	UsedMS     int64          `db:"used_ms"`
	Leaving    bool           `db:"leaving"`  // the workspace is being deleted: nothing is submitted, claimed or retried
	Models     pq.StringArray `db:"models"`   // that its tasks may run on, see AllowsModel
	Webhooks   bool           `db:"webhooks"` // an endpoint is enabled: what ends is announced (announce)
	Now        time.Time      `db:"now"`      // the database's clock in this transaction

	Overage        bool  `db:"overage_enabled"`
	SpendCapCents  int64 `db:"spend_cap_cents"`
	AllowanceMS    int64 `db:"overage_allowance_ms"` // what the cap buys past the quota
	OverageMS      int64 `db:"overage_used_ms"`      // the part of UsedMS that is charged
	BudgetMicroUSD int64 `db:"provider_budget_microusd"`
	SpentMicroUSD  int64 `db:"provider_used_microusd"`
	MaxTaskCost    int64 `db:"max_task_cost_microusd"`

	running  int   // leases
	reserved int64 // milliseconds they hold
	open     int64 // micro-dollars that open calls hold; derived where a task needs it (deriveOpen)
}

// loadColumns select a load of workspace_load w. A period that has passed reads as a fresh one; saveLoads writes it down.
var loadColumns = `w.workspace_id, w.queue, w.cap, w.max_waiting, w.waiting, w.paused, w.turn, w.turn_at, w.quota_ms, w.leaving, w.models, w.webhooks, now() AS now,
	w.overage_enabled, w.spend_cap_cents, w.overage_allowance_ms, w.provider_budget_microusd, w.max_task_cost_microusd,
	greatest(w.period, ` + currentPeriod + `) AS period, ` + usedNow("used_ms") + ` AS used_ms, ` + usedNow("overage_used_ms") + ` AS overage_used_ms,
	` + usedNow("provider_used_microusd") + ` AS provider_used_microusd`

// currentPeriod and currentDay are UTC whatever the session's time zone.
const (
	currentPeriod = `date_trunc('month', now() AT TIME ZONE 'UTC')::date`
	currentDay    = `(now() AT TIME ZONE 'UTC')::date`
)

// lockLoads locks the load rows of the given workspaces in id order and returns them; unknown ones are left out.
func lockLoads(ctx context.Context, tx *sqlx.Tx, workspaces []uuid.UUID) ([]*load, error) {
	var loads []*load
	if err := tx.SelectContext(ctx, &loads, `SELECT * FROM line_lock($1)`, uuids(workspaces)); err != nil {
		return nil, fmt.Errorf("lock load rows: %w", err)
	}
	return loads, nil
}

// lockFreeLoads leaves out rows that somebody holds.
func lockFreeLoads(ctx context.Context, tx *sqlx.Tx, workspaces []uuid.UUID) ([]*load, error) {
	var loads []*load
	err := tx.SelectContext(ctx, &loads, `SELECT `+loadColumns+` FROM workspace_load w
		WHERE w.workspace_id = ANY($1) ORDER BY w.workspace_id FOR NO KEY UPDATE SKIP LOCKED`, uuids(workspaces))
	if err != nil {
		return nil, fmt.Errorf("lock free load rows: %w", err)
	}
	return loads, nil
}

func lockLoad(ctx context.Context, tx *sqlx.Tx, ws uuid.UUID) (*load, error) {
	loads, err := lockLoads(ctx, tx, []uuid.UUID{ws})
	if err != nil {
		return nil, err
	}
	if len(loads) == 0 {
		return nil, refuse(NotFound, "no such workspace")
	}
	return loads[0], nil
}

// minReservationMS: a claim that could reserve less than this (or the task's own timeout, when that is shorter) is not
// made; the workspace waits for its period to turn or its plan to grow.
const minReservationMS = 10_000

// reservation is how many milliseconds a claim of a task with this timeout may reserve, 0 when too little is left.
func (l *load) reservation(timeoutMS int) int {
	left := l.leftMS() - l.reserved
	if left < int64(min(timeoutMS, minReservationMS)) {
		return 0
	}
	return int(min(int64(timeoutMS), left))
}

// admits is how many milliseconds a claim of the task would reserve, 0 when quota or provider budget do not allow it.
func (l *load) admits(r runnable) int {
	if !l.affords(r.Needs) {
		return 0
	}
	return l.reservation(r.TimeoutMS)
}

// hasRoom reports whether a claim could be made now, quota and budget aside.
func (l *load) hasRoom() bool { return l.Paused == nil && !l.Leaving && l.running < l.Cap }

// issue puts the workspace in line.
func (l *load) issue() Turn {
	id := uuid.New()
	l.Turn, l.TurnAt = &id, &l.Now
	return Turn{Workspace: l.Workspace, ID: id, Queue: l.Queue, IssuedAt: l.Now}
}

// withdraw takes the workspace out of line; the message that is out becomes stale.
func (l *load) withdraw() { l.Turn, l.TurnAt = nil, nil }

// runnable is a task at the head of its workspace's line.
type runnable struct {
	Workspace uuid.UUID `db:"workspace_id"`
	Task      uuid.UUID `db:"id"`
	TimeoutMS int       `db:"timeout_ms"`
	Attempt   int       `db:"attempt"`        // attempts spent
	Needs     int64     `db:"needs_microusd"` // of the provider budget, micro-dollars; 0 unless a call was refused before
}

// look derives from leases what runs in each workspace and what it reserves, and returns the best tasks that it could
// run now, one more than are wanted of it, best first (index tasks_line, in order), with what is reserved of the provider
// budget where one of them has been waiting for it. One statement: it is part of every claim and finish.
func look(ctx context.Context, tx *sqlx.Tx, loads []*load, wanted map[uuid.UUID]int64) (map[uuid.UUID][]runnable, error) {
	most := make([]int64, len(loads))
	for i, l := range loads {
		most[i] = wanted[l.Workspace] + 1
	}
	var rows []struct {
		Workspace uuid.UUID     `db:"workspace_id"`
		Running   int           `db:"running"`
		Reserved  int64         `db:"reserved"`
		Task      uuid.NullUUID `db:"id"` // null: nothing to run
		TimeoutMS *int          `db:"timeout_ms"`
		Attempt   *int          `db:"attempt"`
		Needs     *int64        `db:"needs_microusd"`
	}
	err := tx.SelectContext(ctx, &rows, `SELECT * FROM line_look($1, $2)`, uuids(workspacesOf(loads)), bigints(most))
	if err != nil {
		return nil, fmt.Errorf("look for runnable work: %w", err)
	}
	byID := loadsByID(loads)
	best := make(map[uuid.UUID][]runnable, len(loads))
	for _, r := range rows {
		l := byID[r.Workspace]
		l.running, l.reserved = r.Running, r.Reserved
		if r.Task.Valid {
			best[r.Workspace] = append(best[r.Workspace], runnable{Workspace: r.Workspace, Task: r.Task.UUID, TimeoutMS: *r.TimeoutMS, Attempt: *r.Attempt, Needs: *r.Needs})
		}
	}
	return best, deriveOpen(ctx, tx, loads, best)
}

func loadsByID(loads []*load) map[uuid.UUID]*load {
	byID := make(map[uuid.UUID]*load, len(loads))
	for _, l := range loads {
		byID[l.Workspace] = l
	}
	return byID
}

// settle ends every change of what could run: it issues a turn for each workspace that has none, has room, quota, budget
// and a task to run, and writes the load rows. The turns it returns go to Redis after the commit.
func settle(ctx context.Context, tx *sqlx.Tx, loads ...*load) ([]Turn, error) {
	best, err := look(ctx, tx, loads, nil)
	if err != nil {
		return nil, err
	}
	var turns []Turn
	for _, l := range loads {
		turns = append(turns, l.issueFor(best[l.Workspace])...)
	}
	return turns, saveLoads(ctx, tx, loads)
}

// issueFor puts the workspace in line if it is not, has room, and the first of best could run.
func (l *load) issueFor(best []runnable) []Turn {
	if l.Turn != nil || !l.hasRoom() || len(best) == 0 || l.admits(best[0]) == 0 {
		return nil
	}
	return []Turn{l.issue()}
}

// saveLoads writes what the line changes in load rows. Limits are written by their own statements (workspaces.go).
func saveLoads(ctx context.Context, tx *sqlx.Tx, loads []*load) error {
	if _, err := tx.ExecContext(ctx, `SELECT line_save($1, $2, $3, $4, $5, $6, $7, $8)`, loadsArgs(loads)...); err != nil {
		return fmt.Errorf("save load rows: %w", err)
	}
	return nil
}

func loadsArgs(loads []*load) []any {
	n := len(loads)
	waiting, turns, turnsAt, periods := make([]int64, n), make([]*uuid.UUID, n), make([]*time.Time, n), make([]time.Time, n)
	used, overage, spent := make([]int64, n), make([]int64, n), make([]int64, n)
	for i, l := range loads {
		waiting[i], turns[i], turnsAt[i], periods[i] = int64(l.Waiting), l.Turn, l.TurnAt, l.Period
		used[i], overage[i], spent[i] = l.UsedMS, l.OverageMS, l.SpentMicroUSD
	}
	return []any{uuids(workspacesOf(loads)), bigints(waiting), nullUUIDs(turns), times(turnsAt), dates(periods), bigints(used), bigints(overage), bigints(spent)}
}

func workspacesOf(loads []*load) []uuid.UUID {
	ids := make([]uuid.UUID, len(loads))
	for i, l := range loads {
		ids[i] = l.Workspace
	}
	return ids
}
