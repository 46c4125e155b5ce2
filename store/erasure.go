package store

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"
)

// A task's content is what its customer or its agent wrote: prompt, input, metadata, result, and the texts of errors. It
// may be erased once the task is final; id, times, agent, model, usage and metering stay, because invoices stand on them.

// erasedError keeps what is ours of an error: its code, and whether another attempt could have helped.
const erasedError = `jsonb_build_object('code', error->'code', 'message', 'erased', 'retryable', error->'retryable')`

// EraseTask erases a final task's content wherever the ledger holds it: in the task, its attempts, and the answers that
// are stored for idempotency keys. It reports false when that was done before. A task that has not ended is a Conflict.
//
// Under the load row's lock no retry brings the task back meanwhile, and no answer that shows it is on its way.
func (w *Work) EraseTask(ctx context.Context, id uuid.UUID) (erased bool, err error) {
	if _, err := w.lockLoad(ctx); err != nil {
		return false, err
	}
	var task struct {
		Status    string    `db:"status"`
		Erased    bool      `db:"erased"`
		CreatedAt time.Time `db:"created_at"`
	}
	err = w.tx.GetContext(ctx, &task, `SELECT CASE WHEN l.id IS NULL THEN t.status ELSE 'running' END AS status, t.erased_at IS NOT NULL AS erased,
		t.created_at FROM `+taskTables+` WHERE t.workspace_id = $1 AND t.id = $2`, w.Workspace, id)
	if err != nil {
		return false, noRows(fmt.Errorf("read task: %w", err), "task")
	}
	if !Final(task.Status) {
		return false, refuse(Conflict, "only a task that has ended can be erased; this one is %s", task.Status)
	}
	if task.Erased {
		return false, nil
	}
	return true, w.erase(ctx, ended{id, task.CreatedAt})
}

// erase erases the content of tasks that have ended. The load row is locked.
func (w *Work) erase(ctx context.Context, tasks ...ended) error {
	ids, createdAt := make([]uuid.UUID, len(tasks)), make([]*time.Time, len(tasks))
	for i, t := range tasks {
		ids[i], createdAt[i] = t.ID, &t.CreatedAt
	}
	// The answer to the submit was stored in the submit's transaction, so it bears the same time (index
	// idempotency_keys_age); later answers name the task (idempotency_keys_task). The keys stay: a repeat is still no
	// second task.
	for _, what := range []struct {
		of, sql string
		arg     any
	}{
		{"tasks", `UPDATE tasks SET prompt = '', input = '{}', metadata = '{}', result = NULL,
			error = CASE WHEN error IS NOT NULL THEN ` + erasedError + ` END, erased_at = now() WHERE workspace_id = $1 AND id = ANY($2)`, pq.Array(ids)},
		{"errors", `UPDATE attempts SET error = ` + erasedError + ` WHERE workspace_id = $1 AND task_id = ANY($2) AND error IS NOT NULL`, pq.Array(ids)},
		{"events", erasingEvents, pq.Array(ids)},
		{"answers to submits", `UPDATE idempotency_keys SET response = NULL WHERE workspace_id = $1 AND created_at = ANY($2::timestamptz[])`, times(createdAt)},
		{"later answers", `UPDATE idempotency_keys SET response = NULL WHERE workspace_id = $1 AND task_id = ANY($2)`, pq.Array(ids)},
	} {
		if _, err := w.tx.ExecContext(ctx, what.sql, w.Workspace, what.arg); err != nil {
			return fmt.Errorf("erase %s of tasks: %w", what.of, err)
		}
	}
	return nil
}
