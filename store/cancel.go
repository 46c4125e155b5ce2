package store

import (
	"context"
	"fmt"

	"github.com/google/uuid"
)

// CancelOutcome says what a cancel found.
type CancelOutcome int

const (
	CanceledNow     CancelOutcome = iota + 1 // it was waiting and has ended
	CancelAsked                              // it runs and was asked to stop
	AlreadyCanceled                          // it had ended so before
)

const canceledError = `{"code": "canceled", "message": "canceled before it started", "retryable": false}`

// Cancel ends a waiting task at once and asks a running one to stop; it is then never retried. A task that has ended
// otherwise is a Conflict, one that is not the workspace's NotFound.
func (w *Work) Cancel(ctx context.Context, id uuid.UUID) (CancelOutcome, error) {
	w.about = uuid.NullUUID{UUID: id, Valid: true}
	l, err := w.lockLoad(ctx)
	if err != nil {
		return 0, err
	}
	var status string
	err = w.tx.GetContext(ctx, &status, `SELECT CASE WHEN l.id IS NULL THEN t.status ELSE 'running' END FROM `+taskTables+`
		WHERE t.workspace_id = $1 AND t.id = $2`, w.Workspace, id)
	if err != nil {
		return 0, noRows(fmt.Errorf("read task: %w", err), "task")
	}
	switch {
	case status == StatusCanceled:
		return AlreadyCanceled, nil
	case Final(status):
		return 0, refuse(Conflict, "the task has already %s", status)
	}
	waiting, running, err := w.cancel(ctx, l, `t.id = $2`, id)
	if err != nil {
		return 0, err
	}
	if waiting+running != 1 {
		return 0, fmt.Errorf("cancel task %s: %d waiting and %d running rows changed, want one", id, waiting, running)
	}
	if running == 1 {
		return CancelAsked, nil
	}
	return CanceledNow, nil
}

// cancel ends the waiting tasks that the condition chooses, asks the running ones to stop, and takes the workspace out
// of line when nothing is left to run. $1 is the workspace.
func (w *Work) cancel(ctx context.Context, l *load, condition string, args ...any) (waiting, running int, err error) {
	args = append([]any{w.Workspace}, args...)
	var asked []uuid.UUID
	err = w.tx.SelectContext(ctx, &asked, `UPDATE tasks SET cancel_requested_at = coalesce(tasks.cancel_requested_at, now())
		FROM leases l, tasks t
		WHERE l.workspace_id = $1 AND t.workspace_id = $1 AND t.id = l.task_id AND (`+condition+`)
			AND tasks.workspace_id = $1 AND tasks.id = t.id
		RETURNING tasks.id`, args...)
	if err != nil {
		return 0, 0, fmt.Errorf("ask running tasks to stop: %w", err)
	}
	// Joined to itself, so that the condition reads the same t and l in both statements. OR instead of IN lets two partial
	// indexes (tasks_line, tasks_scheduled) find what waits: a workspace's history may be long.
	var ended []uuid.UUID
	err = w.tx.SelectContext(ctx, &ended, `UPDATE tasks SET status = 'canceled', finished_at = now(),
			cancel_requested_at = coalesce(tasks.cancel_requested_at, now()), error = '`+canceledError+`'
		FROM `+taskTables+`
		WHERE t.workspace_id = $1 AND (t.status = 'queued' OR t.status = 'scheduled') AND l.id IS NULL AND (`+condition+`)
			AND tasks.workspace_id = $1 AND tasks.id = t.id
		RETURNING tasks.id`, args...)
	if err != nil {
		return 0, 0, fmt.Errorf("cancel waiting tasks: %w", err)
	}
	if err := l.announce(ctx, w.tx, ended...); err != nil {
		return 0, 0, err
	}
	n := len(ended)
	w.cancels = append(w.cancels, asked...)
	if n == 0 {
		return 0, len(asked), nil // who runs keeps its slot until its agent has returned
	}
	turns, err := l.leave(ctx, w.tx, n)
	w.turns = append(w.turns, turns...)
	return n, len(asked), err
}

// Retry puts a failed or canceled task back in line: its attempts go on counting and max_attempts grows by its first
// value. Any other state is a Conflict, and so is a task whose content was erased.
func (w *Work) Retry(ctx context.Context, id uuid.UUID) error {
	w.about = uuid.NullUUID{UUID: id, Valid: true}
	l, err := w.lockLoad(ctx)
	if err != nil {
		return err
	}
	if l.Leaving { // an operator's retry; the API's role does not come so far
		return errLeaving()
	}
	var status string
	var erased bool
	err = w.tx.QueryRowxContext(ctx, `SELECT status, erased_at IS NOT NULL FROM tasks WHERE workspace_id = $1 AND id = $2`, w.Workspace, id).Scan(&status, &erased)
	if err != nil {
		return noRows(fmt.Errorf("read task: %w", err), "task")
	}
	if status != StatusFailed && status != StatusCanceled {
		return refuse(Conflict, "only a failed or canceled task can be retried; this one is %s", status)
	}
	if erased {
		return refuse(Conflict, "the task's content was erased; there is nothing left to run")
	}
	if l.Waiting >= l.MaxWaiting {
		return errBacklogFull()
	}
	if err := w.requeue(ctx, id); err != nil {
		return err
	}
	l.Waiting++
	return w.settle(ctx, l)
}
