package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// A cancel in bulk holds its workspace's load row for one batch at a time, so that the workspace's own submits and claims come
// through between two batches, however many tasks wait. The transaction that asks for it (CancelMatching, Leave) cancels the
// first batch, what runs and the head of the line, and when there is more it leaves a row in task_cancels, which commits with it.
// GoOnCanceling does the rest, a batch in each transaction, from whichever process comes next: one that dies loses nothing.
//
// What is chosen is what waited or ran when it was asked for. A task that is submitted or brought back by a retry later stays,
// and one that has started or come due since is canceled all the same. Nothing moves out of sight: until a task has ended or was
// asked to stop it is queued (running or not) or scheduled, and one look at those that are finds it wherever it has gone.

const (
	cancelBatchSize = 1000   // how many tasks one transaction cancels at most
	cancelAhead     = 20_000 // how many tasks GoOnCanceling reads at once: it looks for them without a lock
)

// maxCancels is how many cancels of a workspace may be under way, each by another filter.
const maxCancels = 20

// CancelFilter chooses tasks for CancelMatching; zero fields choose all that have not ended.
type CancelFilter struct {
	Status   string // scheduled, queued or running
	Agent    string
	Metadata map[string]string // all of these pairs
}

// bulkCancel is a CancelFilter at a moment: a row of task_cancels.
type bulkCancel struct {
	Workspace uuid.UUID `db:"workspace_id"`
	ID        uuid.UUID `db:"id"` // follows from the filter
	Status    string    `db:"status"`
	Agent     string    `db:"agent"`
	Metadata  string    `db:"metadata"` // a JSON object
	At        time.Time `db:"requested_at"`

	tasks []uuid.UUID // the first of them, not locked
	total int         // all of them
}

// toCancel is the condition on tasks t LEFT JOIN leases l of workspace $1 by which one is still to be canceled; args are its
// parameters. A status is that of the moment At: what was claimed or came due since was queued or scheduled then.
const toCancel = `t.workspace_id = $1 AND (t.status = 'queued' OR t.status = 'scheduled') AND t.cancel_requested_at IS NULL
	AND CASE $2 WHEN '' THEN true WHEN 'running' THEN l.claimed_at <= $5::timestamptz
		WHEN 'queued' THEN t.status = 'queued' AND (l.id IS NULL OR l.claimed_at > $5) AND coalesce(t.run_at <= $5, true)
		ELSE t.status = 'scheduled' OR coalesce(t.run_at > $5, false) END
	AND ($3 = '' OR t.agent = $3) AND t.metadata @> $4::jsonb AND coalesce(t.requeued_at, t.created_at) <= $5`

// stillChosen is the condition for w.cancel on tasks that were looked at before the lock: none that has ended and come back since.
const stillChosen = `t.id = ANY($2) AND coalesce(t.requeued_at, t.created_at) <= $3`

func (c *bulkCancel) args() []any { return []any{c.Workspace, c.Status, c.Agent, c.Metadata, c.At} }

// bulk is the filter at a moment.
func (f CancelFilter) bulk(ws uuid.UUID, at time.Time) *bulkCancel {
	metadata := []byte("{}")
	if len(f.Metadata) > 0 {
		metadata, _ = json.Marshal(f.Metadata) // strings only, keys in order: cannot fail
	}
	c := &bulkCancel{Workspace: ws, Status: f.Status, Agent: f.Agent, Metadata: string(metadata), At: at}
	c.ID = uuid.NewSHA1(ws, fmt.Appendf(nil, "%s\x00%s\x00%s", c.Status, c.Agent, c.Metadata))
	return c
}

// find reads so many of those that are to be canceled first: what runs, then the head of the line, then what is scheduled. One
// statement, so that nothing is missed that moves meanwhile; indexes leases_pkey, tasks_line and tasks_scheduled.
func (c *bulkCancel) find(ctx context.Context, db sqlx.QueryerContext, most int) error {
	c.tasks = nil
	err := sqlx.SelectContext(ctx, db, &c.tasks, `
		(SELECT t.id FROM leases l JOIN tasks t ON t.workspace_id = l.workspace_id AND t.id = l.task_id WHERE l.workspace_id = $1 AND `+toCancel+`)
		UNION ALL
		(SELECT t.id FROM `+taskTables+` WHERE t.status = 'queued' AND l.id IS NULL AND `+toCancel+` ORDER BY t.priority DESC, t.id LIMIT $6)
		UNION ALL
		(SELECT t.id FROM `+taskTables+` WHERE t.status = 'scheduled' AND `+toCancel+` LIMIT $6)
		LIMIT $6`, append(c.args(), most)...)
	if err != nil {
		return fmt.Errorf("choose tasks to cancel: %w", err)
	}
	return nil
}

// choose finds what the filter chooses now.
func (w *Work) choose(ctx context.Context, f CancelFilter) (*bulkCancel, error) {
	var at time.Time
	if err := w.tx.GetContext(ctx, &at, `SELECT clock_timestamp()`); err != nil {
		return nil, fmt.Errorf("read the database's clock: %w", err)
	}
	c := f.bulk(w.Workspace, at)
	if err := c.find(ctx, w.tx, cancelBatchSize+1); err != nil {
		return nil, err
	}
	if c.total = len(c.tasks); c.total > cancelBatchSize {
		if err := c.count(ctx, w.tx); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (c *bulkCancel) count(ctx context.Context, db sqlx.QueryerContext) error {
	if err := sqlx.GetContext(ctx, db, &c.total, `SELECT count(*) FROM `+taskTables+` WHERE `+toCancel, c.args()...); err != nil {
		return fmt.Errorf("count tasks to cancel: %w", err)
	}
	return nil
}

// CancelMatching cancels every task of the workspace that the filter chooses and returns how many: cancelBatchSize of them in this
// transaction, the rest soon after it (GoOnCanceling). Conflict while too many other such cancels are under way.
func (w *Work) CancelMatching(ctx context.Context, f CancelFilter) (int, error) {
	chosen, err := w.choose(ctx, f) // before the lock: a filter may have to read a long line
	if err != nil {
		return 0, err
	}
	l, err := w.lockLoad(ctx)
	if err != nil {
		return 0, err
	}
	waiting, running, err := w.cancelChosen(ctx, l, chosen)
	return waiting + running, err
}

// cancelChosen cancels the first batch and leaves the rest, which it counts as if it were done, to GoOnCanceling.
func (w *Work) cancelChosen(ctx context.Context, l *load, c *bulkCancel) (waiting, running int, err error) {
	if len(c.tasks) == 0 {
		return 0, 0, nil
	}
	first := c.tasks[:min(len(c.tasks), cancelBatchSize)]
	waiting, running, err = w.cancel(ctx, l, stillChosen, pq.Array(first), c.At)
	if err != nil || len(c.tasks) == len(first) {
		return waiting, running, err
	}
	var others int
	if err := w.tx.GetContext(ctx, &others, `SELECT count(*) FROM task_cancels WHERE workspace_id = $1 AND id <> $2`, w.Workspace, c.ID); err != nil {
		return 0, 0, fmt.Errorf("count cancels under way: %w", err)
	}
	if others >= maxCancels {
		return 0, 0, refuse(Conflict, "%d cancels of many tasks are under way; ask again when some have come to their end", others)
	}
	// The later moment stays: the same asked for earlier, which has waited longer for the lock, chooses nothing that it does not.
	_, err = w.tx.ExecContext(ctx, `INSERT INTO task_cancels (workspace_id, id, status, agent, metadata, requested_at) VALUES ($1, $6, $2, $3, $4::jsonb, $5)
		ON CONFLICT (workspace_id, id) DO UPDATE SET requested_at = greatest(task_cancels.requested_at, excluded.requested_at)`, append(c.args(), c.ID)...)
	if err != nil {
		return 0, 0, fmt.Errorf("insert cancel: %w", err)
	}
	return waiting + max(c.total-len(first), 0), running, nil
}

// CountCancelable counts the tasks that CancelMatching would take.
func (a *API) CountCancelable(ctx context.Context, ws uuid.UUID, f CancelFilter) (n int, err error) {
	err = a.inWorkspace(ctx, ws, func(tx *sqlx.Tx) error {
		c, err := (&Work{Workspace: ws, tx: tx}).choose(ctx, f)
		if err == nil {
			n = c.total
		}
		return err
	})
	return n, err
}

// GoneOn is what a round of GoOnCanceling has done.
type GoneOn struct {
	Canceled int    // tasks that were waiting, or were asked to stop: their workers hear of it with their next beat
	Turns    []Turn // to enqueue
	More     bool   // call again
}

// GoOnCanceling cancels up to cancelAhead further tasks of each cancel that is under way, in one workspace or (uuid.Nil) in all,
// and ends those that find none. Workspaces whose load rows somebody holds for long are left for the next round. Safe to run
// twice and at once.
func (s *System) GoOnCanceling(ctx context.Context, ws uuid.UUID) (g GoneOn, err error) {
	var underWay []*bulkCancel
	err = s.db.SelectContext(ctx, &underWay, `SELECT workspace_id, id, status, agent, metadata, requested_at FROM task_cancels
		WHERE workspace_id = $1 OR $1 = '00000000-0000-0000-0000-000000000000' ORDER BY requested_at LIMIT 1000`, ws)
	if err != nil {
		return g, fmt.Errorf("list cancels under way: %w", err)
	}
	var failures []error
	for _, c := range underWay {
		err := inTx(ctx, s.db, func(tx *sqlx.Tx) error {
			// The planner takes the conditions for stricter than they are and would sort a long line each time.
			if _, err := tx.ExecContext(ctx, `SELECT set_config('enable_sort', 'off', true), set_config('enable_seqscan', 'off', true)`); err != nil {
				return fmt.Errorf("set plan: %w", err)
			}
			return c.find(ctx, tx, cancelAhead)
		})
		if err == nil && len(c.tasks) == 0 { // unless it was renewed meanwhile
			_, err = s.db.ExecContext(ctx, `DELETE FROM task_cancels WHERE workspace_id = $1 AND id = $2 AND requested_at = $3`, c.Workspace, c.ID, c.At)
		}
		for batch := range slices.Chunk(c.tasks, cancelBatchSize) {
			var n int
			var turns []Turn
			n, turns, err = s.cancelSome(ctx, c, batch)
			g.Canceled, g.Turns = g.Canceled+n, append(g.Turns, turns...)
			g.More = g.More || err == nil
			if err != nil {
				break
			}
		}
		if err == nil || isConcurrency(err) {
			continue
		}
		failures = append(failures, fmt.Errorf("go on canceling tasks of workspace %s: %w", c.Workspace, err)) // one's trouble delays nobody
		if Unavailable(err) || ctx.Err() != nil {
			break
		}
	}
	return g, errors.Join(failures...)
}

// cancelSome cancels those of the tasks that are still to be canceled, in one transaction, and returns how many.
func (s *System) cancelSome(ctx context.Context, c *bulkCancel, tasks []uuid.UUID) (n int, turns []Turn, err error) {
	err = inTx(ctx, s.db, func(tx *sqlx.Tx) error {
		if err := impatient(ctx, tx); err != nil {
			return err
		}
		w := &Work{Workspace: c.Workspace, tx: tx}
		l, err := w.lockLoad(ctx)
		if err != nil {
			return err
		}
		waiting, running, err := w.cancel(ctx, l, stillChosen, pq.Array(tasks), c.At)
		n, turns = waiting+running, w.turns
		return err
	})
	if err != nil {
		return 0, nil, err
	}
	return n, turns, nil
}
