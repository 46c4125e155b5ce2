package store

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// Dead letters are the failed tasks whose content is still there, those that expired included: they can be replayed, which is
// a retry, or dropped, which erases their content as EraseTask does. Either takes a task out of them, under the load row's
// lock, so that of a replay and a drop of the same task one finds it and the other does not. A task that its customer
// canceled is none; it can be retried all the same. All of it is found through the index tasks_ended_badly.

// MaxBulk is how many tasks one call of RetryEnded and DropDeadLetters changes at most.
const MaxBulk = 1000

// EndedFilter chooses tasks that failed or were canceled and are not erased; zero fields choose all.
type EndedFilter struct {
	IDs            []uuid.UUID // only these; nil: all
	Status         string      // StatusFailed or StatusCanceled; "": both
	Agent          string
	ErrorCode      string
	FinishedAfter  *time.Time // exclusive
	FinishedBefore *time.Time // exclusive
	Metadata       map[string]string
}

// where is the condition on tasks t, with its parameters behind the workspace, which is $1. Statuses stand in it as
// literals: a partial index cannot be matched with parameters.
func (f EndedFilter) where(ws uuid.UUID) (string, []any) {
	args := []any{ws}
	arg := func(v any) string {
		args = append(args, v)
		return "$" + strconv.Itoa(len(args))
	}
	status := `(t.status = 'failed' OR t.status = 'canceled')`
	switch f.Status {
	case StatusFailed:
		status = `t.status = 'failed'`
	case StatusCanceled:
		status = `t.status = 'canceled'`
	}
	where := []string{`t.workspace_id = $1`, status, `t.erased_at IS NULL`}
	if f.IDs != nil {
		where = append(where, `t.id = ANY(`+arg(pq.Array(f.IDs))+`)`)
	}
	if f.Agent != "" {
		where = append(where, `t.agent = `+arg(f.Agent))
	}
	if f.ErrorCode != "" {
		where = append(where, `t.error->>'code' = `+arg(f.ErrorCode))
	}
	if f.FinishedAfter != nil {
		where = append(where, `t.finished_at > `+arg(*f.FinishedAfter))
	}
	if f.FinishedBefore != nil {
		where = append(where, `t.finished_at < `+arg(*f.FinishedBefore))
	}
	if len(f.Metadata) > 0 {
		pairs, _ := json.Marshal(f.Metadata) // strings only: cannot fail
		where = append(where, `t.metadata @> `+arg(string(pairs))+`::jsonb`)
	}
	return strings.Join(where, ` AND `), args
}

// EndedCursor is where a page of dead letters ended.
type EndedCursor struct {
	FinishedAt time.Time
	ID         uuid.UUID
}

// DeadLetters lists the workspace's dead letters that the filter chooses (its Status means nothing here), what failed last
// first, those after the cursor (nil: from the start).
func (a *API) DeadLetters(ctx context.Context, ws uuid.UUID, f EndedFilter, after *EndedCursor, limit int) ([]TaskView, error) {
	f.Status = StatusFailed
	where, args := f.where(ws)
	if after != nil {
		args = append(args, after.FinishedAt, after.ID)
		where += fmt.Sprintf(` AND (t.finished_at, t.id) < ($%d, $%d)`, len(args)-1, len(args))
	}
	args = append(args, limit)
	views := []TaskView{}
	err := a.inWorkspace(ctx, ws, func(tx *sqlx.Tx) error {
		return tx.SelectContext(ctx, &views, `SELECT `+listColumns+` FROM `+taskTables+` WHERE `+where+
			fmt.Sprintf(` ORDER BY t.finished_at DESC, t.id DESC LIMIT $%d`, len(args)), args...)
	})
	if err != nil {
		return nil, fmt.Errorf("list dead letters: %w", err)
	}
	return views, nil
}

// CountEnded counts the tasks that the filter chooses.
func (a *API) CountEnded(ctx context.Context, ws uuid.UUID, f EndedFilter) (n int, err error) {
	where, args := f.where(ws)
	err = a.inWorkspace(ctx, ws, func(tx *sqlx.Tx) error {
		return tx.GetContext(ctx, &n, `SELECT count(*) FROM tasks t WHERE `+where, args...)
	})
	if err != nil {
		return 0, fmt.Errorf("count ended tasks: %w", err)
	}
	return n, nil
}

// Bulk is what a change of many tasks came to.
type Bulk struct {
	Count int  // tasks that were changed
	More  bool // further tasks matched: call again
}

// ended is a task that a bulk change takes.
type ended struct {
	ID        uuid.UUID `db:"id"`
	CreatedAt time.Time `db:"created_at"`
}

// takeEnded reads at most limit tasks that the filter chooses, what ended first first. The load row is locked.
func (w *Work) takeEnded(ctx context.Context, f EndedFilter, without []string, limit int) (tasks []ended, more bool, err error) {
	where, args := f.where(w.Workspace)
	args = append(args, pq.Array(without), limit+1)
	err = w.tx.SelectContext(ctx, &tasks, `SELECT t.id, t.created_at FROM tasks t WHERE `+where+
		fmt.Sprintf(` AND t.model <> ALL($%d::text[]) ORDER BY t.status, t.finished_at, t.id LIMIT $%d`, len(args)-1, len(args)), args...)
	if err != nil {
		return nil, false, fmt.Errorf("choose ended tasks: %w", err)
	}
	return tasks[:min(len(tasks), limit)], len(tasks) > limit, nil
}

// RetryEnded puts at most limit (1..MaxBulk) of the tasks that the filter chooses back in line, each as Retry does, what ended
// first first, and no more than the backlog has room for; BacklogFull when it has none. Those whose model the workspace may
// not use any more are left where they are. A second call finds none of them: they have not ended any more.
func (w *Work) RetryEnded(ctx context.Context, f EndedFilter, limit int) (Bulk, error) {
	l, err := w.lockLoad(ctx)
	if err != nil {
		return Bulk{}, err
	}
	if l.Leaving { // an operator's retry; the API's role does not come so far
		return Bulk{}, errLeaving()
	}
	barred, err := w.barredModels(ctx, f)
	if err != nil {
		return Bulk{}, err
	}
	room := max(l.MaxWaiting-l.Waiting, 0)
	tasks, more, err := w.takeEnded(ctx, f, barred, min(limit, room))
	if err != nil {
		return Bulk{}, err
	}
	if len(tasks) == 0 {
		if more { // there is no room for a single one
			return Bulk{}, errBacklogFull()
		}
		return Bulk{}, nil
	}
	ids := make([]uuid.UUID, len(tasks))
	for i, t := range tasks {
		ids[i] = t.ID
	}
	if err := w.requeue(ctx, ids...); err != nil {
		return Bulk{}, err
	}
	l.Waiting += len(ids)
	return Bulk{Count: len(ids), More: more}, w.settle(ctx, l)
}

// barredModels lists the models among the chosen tasks that the workspace may not use. Most plans bar none.
func (w *Work) barredModels(ctx context.Context, f EndedFilter) ([]string, error) {
	all, err := w.Allowance(ctx)
	if err != nil || len(all.Models) == 0 {
		return []string{}, err
	}
	where, args := f.where(w.Workspace)
	models := []string{}
	if err := w.tx.SelectContext(ctx, &models, `SELECT DISTINCT t.model FROM tasks t WHERE `+where, args...); err != nil {
		return nil, fmt.Errorf("list models of ended tasks: %w", err)
	}
	return slices.DeleteFunc(models, func(model string) bool { return AllowsModel(all.Models, model) }), nil
}

// requeue puts ended tasks, which are locked by the load row, back in line. It waives when they were to run and to expire, and
// for how much of the provider budget they wait: who asks for them again wants them now.
func (w *Work) requeue(ctx context.Context, ids ...uuid.UUID) error {
	_, err := w.tx.ExecContext(ctx, `UPDATE tasks SET status = 'queued', max_attempts = max_attempts + first_max_attempts, finished_at = NULL,
			run_at = NULL, expires_at = NULL, requeued_at = clock_timestamp(), cancel_requested_at = NULL, error = NULL, result = NULL, crashes = 0, losses = 0,
			needs_microusd = 0
		WHERE workspace_id = $1 AND id = ANY($2)`, w.Workspace, pq.Array(ids))
	if err != nil {
		return fmt.Errorf("requeue tasks: %w", err)
	}
	return nil
}

// DropDeadLetters erases the content of at most limit (1..MaxBulk) of the dead letters that the filter chooses (its Status
// means nothing here), what failed first first. Usage and metering stay.
func (w *Work) DropDeadLetters(ctx context.Context, f EndedFilter, limit int) (Bulk, error) {
	if _, err := w.lockLoad(ctx); err != nil {
		return Bulk{}, err
	}
	f.Status = StatusFailed
	tasks, more, err := w.takeEnded(ctx, f, []string{}, limit)
	if err != nil || len(tasks) == 0 {
		return Bulk{}, err
	}
	slices.SortFunc(tasks, func(a, b ended) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	return Bulk{Count: len(tasks), More: more}, w.erase(ctx, tasks...)
}
