package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// A task with expires_at that still waits then ends: failed, with the code "expired". It waits while it has no lease, so
// that also covers one between two attempts, and one that was handed back; a task that runs is not touched. Two things make it
// exact, both by the database's clock: no claim gives out a task that has expired (unexpired, in look), however late the sweep
// is, and the sweep ends it under the load row's lock, where it either sees the claim's lease or no claim sees the task. No
// attempt is spent and nothing is metered.

// unexpired is the condition on tasks t under which one may start. line_look has it too (migration 00014).
const unexpired = `(t.expires_at IS NULL OR t.expires_at > now())`

// ExpiredCode is the error code of a task that expired.
const ExpiredCode = "expired"

const expiredError = `{"code": "` + ExpiredCode + `", "message": "it was still waiting when it expired", "retryable": false}`

// expireBatch bounds how many tasks one transaction of ExpireDue ends.
const expireBatch = 1000

// ExpireDue ends waiting tasks whose expires_at has come and returns how many, and the turns to enqueue. Call it again while
// there is more. Workspaces whose load rows somebody holds, or whose own trouble fails them, are left for the next round and
// delay nobody. Index tasks_expiring.
func (s *System) ExpireDue(ctx context.Context) (expired int, more bool, turns []Turn, err error) {
	left := []uuid.UUID{} // for the next round
	var failures []error
	for expired < expireBatch {
		var due []dueTask
		err := s.db.SelectContext(ctx, &due, `SELECT workspace_id, id FROM tasks t WHERE expires_at <= now() AND (status = 'queued' OR status = 'scheduled')
			AND workspace_id <> ALL($2) AND NOT EXISTS (SELECT 1 FROM leases l WHERE l.workspace_id = t.workspace_id AND l.task_id = t.id)
			ORDER BY expires_at LIMIT $1`, expireBatch, pq.Array(left))
		if err != nil {
			return expired, false, turns, errors.Join(append(failures, fmt.Errorf("look for expired tasks: %w", err))...)
		}
		byWorkspace := map[uuid.UUID][]uuid.UUID{}
		for _, d := range due {
			byWorkspace[d.Workspace] = append(byWorkspace[d.Workspace], d.Task)
		}
		for ws, tasks := range byWorkspace {
			n, issued, err := s.expire(ctx, ws, tasks)
			if err != nil || n < len(tasks) { // held, claimed meanwhile, or its own trouble
				left = append(left, ws)
			}
			if err != nil {
				failures = append(failures, fmt.Errorf("expire tasks of workspace %s: %w", ws, err))
				if Unavailable(err) || ctx.Err() != nil {
					return expired, false, turns, errors.Join(failures...)
				}
			}
			expired, turns = expired+n, append(turns, issued...)
		}
		if len(due) < expireBatch {
			return expired, false, turns, errors.Join(failures...)
		}
	}
	return expired, true, turns, errors.Join(failures...)
}

// expire ends those of the workspace's tasks that still wait, in one transaction; none when its load row is held.
func (s *System) expire(ctx context.Context, ws uuid.UUID, tasks []uuid.UUID) (expired int, turns []Turn, err error) {
	err = inTx(ctx, s.db, func(tx *sqlx.Tx) error {
		loads, err := lockFreeLoads(ctx, tx, []uuid.UUID{ws})
		if err != nil || len(loads) == 0 {
			return err
		}
		l := loads[0]
		var ended []uuid.UUID
		err = tx.SelectContext(ctx, &ended, `UPDATE tasks t SET status = 'failed', finished_at = now(), error = '`+expiredError+`'
			WHERE t.workspace_id = $1 AND t.id = ANY($2) AND t.expires_at <= now() AND (t.status = 'queued' OR t.status = 'scheduled')
				AND NOT EXISTS (SELECT 1 FROM leases l WHERE l.workspace_id = $1 AND l.task_id = t.id)
			RETURNING t.id`, ws, pq.Array(tasks))
		if err != nil {
			return fmt.Errorf("end expired tasks: %w", err)
		}
		if err := l.announce(ctx, tx, ended...); err != nil {
			return err
		}
		expired = len(ended)
		turns, err = l.leave(ctx, tx, expired)
		return err
	})
	if err != nil {
		return 0, nil, err
	}
	return expired, turns, nil
}

// leave settles a locked load row whose line so many waiting tasks have left: it withdraws the turn when nothing is left to
// run, and issues one when what stands behind them now needs less than they did.
func (l *load) leave(ctx context.Context, tx *sqlx.Tx, n int) ([]Turn, error) {
	if n == 0 {
		return nil, nil
	}
	l.Waiting -= n
	if l.Turn != nil {
		best, err := look(ctx, tx, []*load{l}, nil)
		if err != nil {
			return nil, err
		}
		if len(best) == 0 {
			l.withdraw()
		}
	}
	return settle(ctx, tx, l)
}
