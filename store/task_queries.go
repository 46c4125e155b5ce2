package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// TaskView is a task as customers see it: with the reason why it is not running, when it could be.
type TaskView struct {
	Task
	Waiting *Waiting // nil while it runs and when it has ended
}

// TaskFilter chooses tasks for a list; zero fields choose all.
type TaskFilter struct {
	Status        string // StatusRunning included
	Agent         string
	CreatedAfter  *time.Time // exclusive
	CreatedBefore *time.Time // exclusive
	Schedule      uuid.UUID  // that sent them
	Metadata      map[string]string
}

// taskQuery reads the task $2 of the workspace $1.
const taskQuery = `SELECT ` + taskColumns + `, ` + waitingColumns + ` FROM ` + taskTables + ` WHERE t.workspace_id = $1 AND t.id = $2`

// Task reads one task of the workspace.
func (a *API) Task(ctx context.Context, ws, id uuid.UUID) (TaskView, error) {
	var row waitingRow
	if err := a.readOne(ctx, ws, &row, taskQuery, ws, id); err != nil {
		return TaskView{}, noRows(fmt.Errorf("read task: %w", err), "task")
	}
	return row.view(), nil
}

// Task reads one task as this transaction sees it.
func (w *Work) Task(ctx context.Context, id uuid.UUID) (TaskView, error) {
	var row waitingRow
	if err := w.tx.GetContext(ctx, &row, taskQuery, w.Workspace, id); err != nil {
		return TaskView{}, noRows(fmt.Errorf("read task: %w", err), "task")
	}
	return row.view(), nil
}

// TaskStatus reads only a task's status: what a client that waits for the end costs per look.
func (a *API) TaskStatus(ctx context.Context, ws, id uuid.UUID) (string, error) {
	var row struct {
		Status string `db:"status"`
	}
	if err := a.readOne(ctx, ws, &row, `SELECT status FROM tasks WHERE workspace_id = $1 AND id = $2`, ws, id); err != nil {
		return "", noRows(fmt.Errorf("read task status: %w", err), "task")
	}
	return row.Status, nil
}

// Tasks lists the workspace's tasks, newest first, those below the id before (uuid.Nil: from the start).
//
// It runs down the primary key, so a page costs the same at any depth and new tasks never shift it. Filters are
// applied on the way; running tasks are found through leases and a short line through its index, so that a few of
// them among very many ended ones are found at once. A filter that few tasks pass gives up behind walkLimit of them: stopped
// is then the id to go on below, and the list may be shorter than limit, or empty; it is uuid.Nil otherwise.
func (a *API) Tasks(ctx context.Context, ws uuid.UUID, f TaskFilter, before uuid.UUID, limit int) (views []TaskView, stopped uuid.UUID, err error) {
	views = []TaskView{}
	err = a.inWorkspace(ctx, ws, func(tx *sqlx.Tx) error {
		w := &Work{Workspace: ws, tx: tx}
		var waiting int
		if err := tx.GetContext(ctx, &waiting, `SELECT waiting FROM workspace_load WHERE workspace_id = $1`, ws); err != nil {
			return noRows(fmt.Errorf("read load row: %w", err), "workspace")
		}
		q := f.query(ws, before, limit, waiting)
		if err := tx.SelectContext(ctx, &views, q.sql, q.args...); err != nil {
			return fmt.Errorf("list tasks: %w", err)
		}
		if q.walk != "" && len(views) < limit {
			err := tx.GetContext(ctx, &stopped, q.walk, q.walkArgs...)
			if err != nil && !errors.Is(err, sql.ErrNoRows) { // none: it went down to the oldest
				return fmt.Errorf("find where a walk down the tasks stopped: %w", err)
			}
		}
		return w.explain(ctx, views)
	})
	return views, stopped, err
}

const (
	// shortLine is up to how many waiting tasks a list of queued ones reads the line and sorts it, instead of running down
	// the primary key until it has met enough of them.
	shortLine = 2000

	// walkLimit is how many tasks a list looks at to fill a page of those that pass its filter.
	walkLimit = 10_000
)

// listQuery is how a list is read.
type listQuery struct {
	sql  string
	args []any

	walk     string // where the walk down the primary key stopped; empty when the list needs none
	walkArgs []any
}

func (f TaskFilter) query(ws, before uuid.UUID, limit, waiting int) listQuery {
	args := []any{ws, orMax(before)}
	arg := func(v any) string {
		args = append(args, v)
		return "$" + strconv.Itoa(len(args))
	}
	// Ids carry the submitting process's clock, created_at the database's: an hour's margin lets the key's range help.
	keys := "workspace_id = $1 AND id < $2"
	if f.CreatedAfter != nil {
		keys += " AND id >= " + arg(idAt(f.CreatedAfter.Add(-time.Hour)))
	}
	if f.CreatedBefore != nil {
		keys += " AND id < " + arg(idAt(f.CreatedBefore.Add(time.Hour)))
	}
	q := listQuery{walkArgs: slices.Clone(args)}
	with, tables := "", `(SELECT * FROM tasks WHERE `+keys+`) t `+withLease
	var where []string
	walk := false
	switch f.Status {
	case "":
	case StatusRunning:
		tables = `leases l JOIN (SELECT * FROM tasks WHERE ` + keys + `) t ON t.workspace_id = l.workspace_id AND t.id = l.task_id`
		where = append(where, "l.workspace_id = $1")
	case StatusQueued:
		if walk = waiting > shortLine; !walk {
			with = `WITH line AS MATERIALIZED (SELECT id FROM tasks WHERE workspace_id = $1 AND status = 'queued') `
			where = append(where, "t.id IN (SELECT id FROM line)")
		}
		// As a parameter, so that a generic plan cannot use the line's index and sort all of a long line.
		where = append(where, "t.status = "+arg(f.Status), "l.id IS NULL")
	default:
		walk = true
		where = append(where, "t.status = "+arg(f.Status))
	}
	if f.Agent != "" {
		walk = walk || f.Status == ""
		where = append(where, "t.agent = "+arg(f.Agent))
	}
	if len(f.Metadata) > 0 {
		walk = walk || f.Status == ""
		pairs, _ := json.Marshal(f.Metadata) // strings only: cannot fail
		where = append(where, "t.metadata @> "+arg(string(pairs))+"::jsonb")
	}
	if f.Schedule != uuid.Nil {
		walk = false
		where = append(where, "t.schedule_id = "+arg(f.Schedule)) // index tasks_schedule
	}
	if f.CreatedAfter != nil {
		where = append(where, "t.created_at > "+arg(*f.CreatedAfter))
	}
	if f.CreatedBefore != nil {
		where = append(where, "t.created_at < "+arg(*f.CreatedBefore))
	}
	if walk {
		down := `FROM tasks WHERE ` + keys + ` ORDER BY id DESC `
		tables = `(SELECT * ` + down + `LIMIT ` + strconv.Itoa(walkLimit) + `) t ` + withLease
		q.walk = `SELECT id ` + down + `OFFSET ` + strconv.Itoa(walkLimit-1) + ` LIMIT 1`
	}
	condition := ""
	if len(where) > 0 {
		condition = ` WHERE ` + strings.Join(where, " AND ")
	}
	q.sql = with + `SELECT ` + listColumns + ` FROM ` + tables + condition + ` ORDER BY t.id DESC LIMIT ` + arg(limit)
	q.args = args
	return q
}

// idAt is the least UUIDv7 of a moment.
func idAt(t time.Time) uuid.UUID {
	ms := max(t.UnixMilli(), 0)
	id := uuid.UUID{6: 0x70, 8: 0x80}
	for i := range 6 {
		id[i] = byte(ms >> (40 - 8*i))
	}
	return id
}

// Attempt is one try at a task, running or ended.
type Attempt struct {
	ID         uuid.UUID       `db:"id"`
	Attempt    int             `db:"attempt"` // 1, 2, …; a handed-back or crashed try does not count on
	Worker     uuid.UUID       `db:"worker_id"`
	Outcome    string          `db:"outcome"` // "running" while it runs
	Billable   bool            `db:"billable"`
	Error      json.RawMessage `db:"error"` // null when there is none
	StartedAt  time.Time       `db:"started_at"`
	FinishedAt *time.Time      `db:"finished_at"`
	Usage
	Calls []Call
}

// Call is one request to an LLM provider.
type Call struct {
	ID               uuid.UUID  `db:"id"`
	AttemptID        uuid.UUID  `db:"attempt_id"`
	Step             int        `db:"step"` // of the agent's loop, from 1
	Try              int        `db:"try"`  // of this step, from 1
	Provider         string     `db:"provider"`
	Model            string     `db:"model"`
	Outcome          string     `db:"outcome"` // started, ok, transient, permanent, canceled, cut or orphaned
	ErrorCode        string     `db:"error_code"`
	LatencyMS        int64      `db:"latency_ms"`
	InputTokens      int64      `db:"input_tokens"`
	OutputTokens     int64      `db:"output_tokens"`
	CacheReadTokens  int64      `db:"cache_read_tokens"`
	CacheWriteTokens int64      `db:"cache_write_tokens"`
	CostMicroUSD     int64      `db:"cost_microusd"` // while started: the most it can cost
	Estimated        bool       `db:"estimated"`
	StartedAt        time.Time  `db:"started_at"`
	FinishedAt       *time.Time `db:"finished_at"`
}

// AttemptCursor is where a page of attempts ended.
type AttemptCursor struct {
	StartedAt time.Time
	ID        uuid.UUID
}

// Attempts lists the attempts of a task with their provider calls, newest first, those after the cursor (nil: from the
// start). A task that is not the workspace's is NotFound.
func (a *API) Attempts(ctx context.Context, ws, task uuid.UUID, after *AttemptCursor, limit int) ([]Attempt, error) {
	attempts := []Attempt{}
	if after == nil {
		after = &AttemptCursor{StartedAt: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), ID: uuid.Max}
	}
	err := a.inWorkspace(ctx, ws, func(tx *sqlx.Tx) error {
		var exists bool
		err := tx.GetContext(ctx, &exists, `SELECT EXISTS (SELECT 1 FROM tasks WHERE workspace_id = $1 AND id = $2)`, ws, task)
		if err != nil {
			return fmt.Errorf("look for task: %w", err)
		}
		if !exists {
			return refuse(NotFound, "no such task")
		}
		err = tx.SelectContext(ctx, &attempts, `SELECT * FROM (
				SELECT id, attempt, worker_id, outcome, billable, coalesce(error, 'null') AS error, started_at, finished_at, agent_ms,
					provider_calls, input_tokens, output_tokens, cost_microusd
				FROM attempts WHERE workspace_id = $1 AND task_id = $2
				UNION ALL
				SELECT id, attempt, worker_id, 'running', false, 'null'::jsonb, claimed_at, NULL, 0, 0, 0, 0, 0
				FROM leases WHERE workspace_id = $1 AND task_id = $2) a
			WHERE (started_at, id) < ($3, $4) ORDER BY started_at DESC, id DESC LIMIT $5`, ws, task, after.StartedAt, after.ID, limit)
		if err != nil {
			return fmt.Errorf("list attempts: %w", err)
		}
		return addCalls(ctx, tx, ws, attempts)
	})
	return attempts, err
}

// addCalls reads the provider calls of attempts, in the order they were made: index provider_calls_attempt.
func addCalls(ctx context.Context, tx *sqlx.Tx, ws uuid.UUID, attempts []Attempt) error {
	byID := make(map[uuid.UUID]*Attempt, len(attempts))
	ids := make([]string, len(attempts))
	for i := range attempts {
		byID[attempts[i].ID], ids[i] = &attempts[i], attempts[i].ID.String()
	}
	var calls []Call
	err := tx.SelectContext(ctx, &calls, `SELECT id, attempt_id, step, try, provider, model, outcome, error_code, latency_ms, input_tokens,
			output_tokens, cache_read_tokens, cache_write_tokens, cost_microusd, estimated, started_at, finished_at
		FROM provider_calls WHERE workspace_id = $1 AND attempt_id = ANY($2::uuid[]) ORDER BY started_at, step, try, id`,
		ws, "{"+strings.Join(ids, ",")+"}")
	if err != nil {
		return fmt.Errorf("read provider calls: %w", err)
	}
	for _, c := range calls {
		at := byID[c.AttemptID]
		at.Calls = append(at.Calls, c)
	}
	return nil
}
