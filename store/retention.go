package store

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// Retention removes tasks that ended longer ago than their workspace keeps them, with their attempts and provider calls.
// What money stands on stays: metering rows (nobody may remove those), daily usage, the push ledger; so no answer about
// usage changes. A task's id is a UUIDv7, so the primary key finds the old ones without an index of its own; removing goes
// in batches behind the last id, each a short transaction under the load row's lock, which a batch that is not free leaves
// for later.

// Keeping is what a workspace keeps and since when.
type Keeping struct {
	Workspace uuid.UUID `db:"id"`
	Days      int       `db:"retention_days"` // 0: for ever
	Before    time.Time `db:"before"`         // what ended earlier goes; of no meaning when Days is 0
	First     uuid.UUID `db:"first"`          // its oldest task
}

// Oldest is when the workspace's oldest task was sent.
func (k Keeping) Oldest() time.Time { return time.UnixMilli(sentAt(k.First)) }

// Due reports whether there may be something to remove: a task that was sent early enough.
func (k Keeping) Due() bool { return k.Days > 0 && sentAt(k.First) < k.Before.UnixMilli() }

// Keepings lists workspaces that have tasks, behind the given one in the order of ids, from among the next limit; next is
// where to go on, uuid.Nil at the end. One probe of the primary key per workspace.
func (s *System) Keepings(ctx context.Context, after uuid.UUID, limit int) (list []Keeping, next uuid.UUID, err error) {
	var rows []struct {
		ID     uuid.UUID     `db:"id"`
		Days   int           `db:"retention_days"`
		Before time.Time     `db:"before"`
		First  uuid.NullUUID `db:"first"`
	}
	err = s.db.SelectContext(ctx, &rows, `SELECT w.id, w.retention_days, now() - w.retention_days * interval '1 day' AS before,
			(SELECT t.id FROM tasks t WHERE t.workspace_id = w.id ORDER BY t.id LIMIT 1) AS first
		FROM workspaces w WHERE w.id > $1 AND w.status = 'active' ORDER BY w.id LIMIT $2`, after, limit)
	if err != nil {
		return nil, next, fmt.Errorf("look what workspaces keep: %w", err)
	}
	for _, r := range rows {
		if r.First.Valid {
			list = append(list, Keeping{Workspace: r.ID, Days: r.Days, Before: r.Before, First: r.First.UUID})
		}
	}
	if len(rows) == limit {
		next = rows[len(rows)-1].ID
	}
	return list, next, nil
}

// Removed counts what one batch has removed.
type Removed struct {
	Tasks    int64 `db:"tasks"`
	Attempts int64 `db:"attempts"`
	Calls    int64 `db:"calls"`
}

// RemoveEnded looks at the workspace's next limit tasks behind the given one and removes those of them that ended before
// k.Before. next is where to go on, uuid.Nil when nothing older is left. While somebody holds the load row, or when removing
// so many takes longer than removalLimit, nothing is removed, and held is true: try again later, with fewer.
func (s *System) RemoveEnded(ctx context.Context, k Keeping, after uuid.UUID, limit int) (r Removed, next uuid.UUID, held bool, err error) {
	var old []struct {
		ID  uuid.UUID `db:"id"`
		Due bool      `db:"due"`
	}
	err = s.db.SelectContext(ctx, &old, `SELECT id, coalesce(finished_at < $3, false) AS due FROM tasks
		WHERE workspace_id = $1 AND id > $2 AND id < $4 ORDER BY id LIMIT $5`, k.Workspace, after, k.Before, firstIDOf(k.Before), limit)
	if err != nil {
		return r, after, false, fmt.Errorf("look for ended tasks: %w", err)
	}
	var due []uuid.UUID
	for _, t := range old {
		if t.Due {
			due = append(due, t.ID)
		}
	}
	if len(old) == limit {
		next = old[len(old)-1].ID
	}
	if len(due) == 0 {
		return r, next, false, nil
	}
	err = inTx(ctx, s.db, func(tx *sqlx.Tx) error {
		r = Removed{}
		loads, err := lockFreeLoads(ctx, tx, []uuid.UUID{k.Workspace}) // whoever brings a task back holds it
		if err != nil {
			return err
		}
		if held = len(loads) == 0; held {
			return nil
		}
		if _, err := tx.ExecContext(ctx, `SET LOCAL statement_timeout = `+removalLimit); err != nil {
			return fmt.Errorf("bound the removal: %w", err)
		}
		err = tx.GetContext(ctx, &r, `WITH task AS (
				DELETE FROM tasks WHERE workspace_id = $1 AND id = ANY($2) AND finished_at < $3 RETURNING id),
			attempt AS (DELETE FROM attempts a USING task WHERE a.workspace_id = $1 AND a.task_id = task.id RETURNING a.id),
			call AS (DELETE FROM provider_calls c USING attempt WHERE c.workspace_id = $1 AND c.attempt_id = attempt.id RETURNING 1)
			SELECT (SELECT count(*) FROM task) AS tasks, (SELECT count(*) FROM attempt) AS attempts, (SELECT count(*) FROM call) AS calls`,
			k.Workspace, pq.Array(due), k.Before)
		if err != nil {
			return fmt.Errorf("remove ended tasks: %w", err)
		}
		return nil
	})
	if held = held || sqlCode(err) == "57014"; held {
		return Removed{}, after, true, nil
	}
	if err != nil {
		return Removed{}, after, false, err
	}
	return r, next, false, nil
}

// removalLimit is how long a batch may hold its workspace's load row, in milliseconds; one that takes longer is undone.
const removalLimit = "300"

// sentAt is the time in a UUIDv7, in milliseconds since 1970.
func sentAt(id uuid.UUID) int64 {
	return int64(binary.BigEndian.Uint64(append([]byte{0, 0}, id[:6]...)))
}

// firstIDOf is below every UUIDv7 that is made at t or later.
func firstIDOf(t time.Time) (id uuid.UUID) {
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(t.UnixMilli()))
	copy(id[:6], ms[2:])
	return id
}
