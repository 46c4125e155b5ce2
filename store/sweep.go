package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// What the scheduler's leader does each second. Each function is safe to run twice and at once in two processes: all
// decide under the load row's lock.

// dueBatch bounds how many tasks one transaction of PromoteDue moves.
const dueBatch = 1000

// dueTask is a task whose time has come.
type dueTask struct {
	Workspace uuid.UUID `db:"workspace_id"`
	Task      uuid.UUID `db:"id"`
}

// PromoteDue moves tasks whose run_at has come to their place in line and returns how many, and the turns to enqueue.
// Call it again while there is more. Workspaces whose load rows somebody holds, or whose own trouble fails them, are
// left for the next round and delay nobody.
func (s *System) PromoteDue(ctx context.Context) (promoted int, more bool, turns []Turn, err error) {
	left := []uuid.UUID{} // for the next round
	var failures []error
	for promoted < dueBatch {
		var due []dueTask
		err := s.db.SelectContext(ctx, &due, `SELECT workspace_id, id FROM tasks WHERE status = 'scheduled' AND run_at <= now()
			AND workspace_id <> ALL($2) ORDER BY run_at LIMIT $1`, dueBatch, pq.Array(left))
		if err != nil {
			return promoted, false, turns, errors.Join(append(failures, fmt.Errorf("look for due tasks: %w", err))...)
		}
		n, issued, held, err := s.promote(ctx, due, false)
		if isLockTimeout(err) {
			n, issued, held, err = s.promote(ctx, due, true)
		}
		if err != nil && sqlCode(err) != "" && !Unavailable(err) {
			n, issued, held, err = s.promoteEach(ctx, due)
			failures, err = append(failures, err), nil
		}
		promoted, turns, left = promoted+n, append(turns, issued...), append(left, held...)
		if err != nil {
			return promoted, false, turns, errors.Join(append(failures, err)...)
		}
		if len(due) < dueBatch {
			return promoted, false, turns, errors.Join(failures...)
		}
		if n == 0 && len(held) == 0 { // canceled or promoted by somebody else meanwhile
			break
		}
	}
	return promoted, true, turns, errors.Join(failures...)
}

// promote moves due tasks in one transaction; with skip it leaves out, and returns, the workspaces whose rows are held.
func (s *System) promote(ctx context.Context, due []dueTask, skip bool) (promoted int, turns []Turn, held []uuid.UUID, err error) {
	if len(due) == 0 {
		return 0, nil, nil, nil
	}
	workspaces := make([]uuid.UUID, len(due))
	for i, d := range due {
		workspaces[i] = d.Workspace
	}
	err = inTx(ctx, s.db, func(tx *sqlx.Tx) error {
		lock := lockLoads
		if skip {
			lock = lockFreeLoads
		} else if err := impatient(ctx, tx); err != nil {
			return err
		}
		loads, err := lock(ctx, tx, workspaces)
		if err != nil {
			return err
		}
		var free, tasks []uuid.UUID // in parallel
		locked := workspacesOf(loads)
		for _, d := range due {
			if slices.Contains(locked, d.Workspace) {
				free, tasks = append(free, d.Workspace), append(tasks, d.Task)
			} else {
				held = append(held, d.Workspace)
			}
		}
		// The number waiting stays: scheduled tasks count as waiting. One that was canceled or scheduled anew meanwhile is
		// left alone. CASE, because by the index on run_at each of all that are due would be compared with each of these.
		done, err := tx.ExecContext(ctx, `UPDATE tasks t SET status = 'queued' FROM unnest($1::uuid[], $2::uuid[]) AS v (workspace_id, id)
			WHERE t.workspace_id = v.workspace_id AND t.id = v.id AND CASE WHEN t.status = 'scheduled' THEN t.run_at <= now() END`,
			pq.Array(free), pq.Array(tasks))
		if err != nil {
			return fmt.Errorf("promote due tasks: %w", err)
		}
		n, err := done.RowsAffected()
		if err != nil {
			return fmt.Errorf("promote due tasks: %w", err)
		}
		promoted = int(n)
		turns, err = settle(ctx, tx, loads...)
		return err
	})
	if err != nil {
		return 0, nil, nil, err
	}
	return promoted, turns, held, nil
}

// promoteEach moves each workspace's due tasks in a transaction of its own; those that fail are among held.
func (s *System) promoteEach(ctx context.Context, due []dueTask) (promoted int, turns []Turn, held []uuid.UUID, err error) {
	byWorkspace := map[uuid.UUID][]dueTask{}
	for _, d := range due {
		byWorkspace[d.Workspace] = append(byWorkspace[d.Workspace], d)
	}
	var failures []error
	for ws, tasks := range byWorkspace {
		n, issued, _, err := s.promote(ctx, tasks, false)
		if err != nil {
			held, failures = append(held, ws), append(failures, fmt.Errorf("promote tasks of workspace %s: %w", ws, err))
			continue
		}
		promoted, turns = promoted+n, append(turns, issued...)
	}
	return promoted, turns, held, errors.Join(failures...)
}

// aheadMS is how far ahead of the database's clock a turn may be dated. None is, unless the clock was set back.
const aheadMS = 5_000

// ReissueLost replaces turns of a queue that were issued before the given time and are still not claimed: they were
// lost between commit and Redis, or with Redis. Their order is kept. The replaced turn's message, should it turn up
// after all, is stale. The caller takes before from the queue's oldest pending message (see jobs.Line). Turns of the
// future (by more than aheadMS), which the database's clock left behind when it was set back, are replaced too: nobody
// could tell them lost until their time has come.
func (s *System) ReissueLost(ctx context.Context, queue string, before time.Time) ([]Turn, error) {
	var lost []uuid.UUID
	err := s.db.SelectContext(ctx, &lost, `SELECT workspace_id FROM workspace_load
		WHERE queue = $1 AND turn IS NOT NULL AND (turn_at < $2 OR turn_at > now() + $3 * interval '1 millisecond') ORDER BY turn_at LIMIT 10000`,
		queue, before, aheadMS)
	if err != nil {
		return nil, fmt.Errorf("look for lost turns: %w", err)
	}
	return s.settleAll(ctx, lost, func(l *load) bool {
		if l.Turn == nil || l.Queue != queue || !l.TurnAt.Before(before) && l.TurnAt.Before(l.Now.Add(aheadMS*time.Millisecond)) {
			return false // claimed meanwhile
		}
		l.withdraw()
		return true
	})
}

// IssueMissed finds runnable work with room and no turn and issues the turn. Those in missed should not be there: no
// path may leave work behind, and the caller counts them as repairs. Those in turned waited for their period to turn.
func (s *System) IssueMissed(ctx context.Context) (missed, turned []Turn, err error) {
	var found []struct {
		Workspace uuid.UUID `db:"workspace_id"`
		Turned    bool      `db:"turned"`
	}
	err = s.db.SelectContext(ctx, &found, `SELECT w.workspace_id, w.period < `+currentPeriod+` AS turned FROM workspace_load w
		CROSS JOIN LATERAL (SELECT count(*) AS running, coalesce(sum(reserved_ms), 0) AS reserved FROM leases l WHERE l.workspace_id = w.workspace_id) r
		CROSS JOIN LATERAL (
			SELECT t.timeout_ms, t.needs_microusd FROM tasks t WHERE t.workspace_id = w.workspace_id AND t.status = 'queued' AND `+unexpired+`
				AND NOT EXISTS (SELECT 1 FROM leases l WHERE l.workspace_id = t.workspace_id AND l.task_id = t.id)
			ORDER BY t.priority DESC, t.id LIMIT 1) best
		WHERE w.turn IS NULL AND w.paused IS NULL AND NOT w.leaving AND w.waiting > 0 AND r.running < w.cap
			AND `+quotaLeft+` >= least(best.timeout_ms, $1) AND `+affordsSQL("best.needs_microusd")+`
		LIMIT 1000`, minReservationMS)
	if err != nil {
		return nil, nil, fmt.Errorf("look for missed work: %w", err)
	}
	var unexpected, expected []uuid.UUID
	for _, f := range found {
		if f.Turned {
			expected = append(expected, f.Workspace)
		} else {
			unexpected = append(unexpected, f.Workspace)
		}
	}
	always := func(*load) bool { return true }
	missed, err1 := s.settleAll(ctx, unexpected, always)
	turned, err2 := s.settleAll(ctx, expected, always)
	return missed, turned, errors.Join(err1, err2)
}

// settleBatch is how many workspaces one transaction of settleAll takes.
const settleBatch = 200

// settleAll locks and settles workspaces, except those to which prepare says no, and returns their turns in the given
// order. One whose row somebody holds is left for the next round; one whose own trouble fails its batch fails alone.
func (s *System) settleAll(ctx context.Context, workspaces []uuid.UUID, prepare func(*load) bool) ([]Turn, error) {
	var turns []Turn
	var failures []error
	for batch := range slices.Chunk(workspaces, settleBatch) {
		issued, err := s.settleFree(ctx, batch, prepare)
		if err != nil && sqlCode(err) != "" && !Unavailable(err) && len(batch) > 1 {
			issued, err = nil, nil
			for _, ws := range batch {
				one, failed := s.settleFree(ctx, []uuid.UUID{ws}, prepare)
				if failed != nil {
					failed = fmt.Errorf("workspace %s: %w", ws, failed)
				}
				issued, err = append(issued, one...), errors.Join(err, failed)
			}
		}
		turns, failures = append(turns, issued...), append(failures, err)
		if ctx.Err() != nil {
			break
		}
	}
	return turns, errors.Join(failures...)
}

// settleFree settles those of the workspaces whose rows are free, in one transaction.
func (s *System) settleFree(ctx context.Context, workspaces []uuid.UUID, prepare func(*load) bool) (turns []Turn, err error) {
	err = inTx(ctx, s.db, func(tx *sqlx.Tx) error {
		loads, err := lockFreeLoads(ctx, tx, workspaces)
		if err != nil {
			return err
		}
		loads = slices.DeleteFunc(loads, func(l *load) bool { return !prepare(l) })
		if len(loads) == 0 {
			return nil
		}
		slices.SortFunc(loads, func(a, b *load) int {
			return slices.Index(workspaces, a.Workspace) - slices.Index(workspaces, b.Workspace)
		})
		turns, err = settle(ctx, tx, loads...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("settle: %w", err)
	}
	return turns, nil
}

// impatient lets a transaction of a sweep wait only shortly for a row that somebody holds: everybody else's turns wait
// behind it, and the next round comes in a second.
func impatient(ctx context.Context, tx *sqlx.Tx) error {
	if _, err := tx.ExecContext(ctx, `SET LOCAL lock_timeout = '100ms'`); err != nil {
		return fmt.Errorf("set lock timeout: %w", err)
	}
	return nil
}

// Now is the database's clock, by which turns are dated.
func (s *System) Now(ctx context.Context) (time.Time, error) {
	var now time.Time
	if err := s.db.GetContext(ctx, &now, `SELECT now()`); err != nil {
		return time.Time{}, fmt.Errorf("read the database's clock: %w", err)
	}
	return now, nil
}

// Lead tries to become or stay the leader under a name. The lease row holds a beat; a rival may take it over only with
// the beat it has seen standing still (see scheduler.go), so that no wall clock decides. It returns the row as it is.
func (s *System) Lead(ctx context.Context, name string, me uuid.UUID, takeOverBeat int64) (holder uuid.UUID, beat int64, err error) {
	err = s.db.QueryRowContext(ctx, `INSERT INTO leaders AS l (name, holder, beat) VALUES ($1, $2, 1)
		ON CONFLICT (name) DO UPDATE SET beat = l.beat + CASE WHEN l.holder = $2 OR l.beat = $3 THEN 1 ELSE 0 END,
			holder = CASE WHEN l.beat = $3 THEN $2 ELSE l.holder END
		RETURNING holder, beat`, name, me, takeOverBeat).Scan(&holder, &beat)
	if err != nil {
		return uuid.Nil, 0, fmt.Errorf("lead %s: %w", name, err)
	}
	return holder, beat, nil
}

// Resign gives leadership up, so that a rival need not wait.
func (s *System) Resign(ctx context.Context, name string, me uuid.UUID) error {
	if _, err := s.db.ExecContext(ctx, `DELETE FROM leaders WHERE name = $1 AND holder = $2`, name, me); err != nil {
		return fmt.Errorf("resign %s: %w", name, err)
	}
	return nil
}

// sweepBatch is how many rows one statement of Sweep removes: what has piled up goes batch by batch, not in one statement
// that times out and starts over.
const sweepBatch = 5000

// Sweep removes what has served: workers that left a day ago, idempotency keys older than keep (at least 24 h by
// contract), sessions, invitations that ended and Stripe events that were handled a month ago, unhandled ones after 180
// days, mailed tokens that lapsed a day ago. What it did stands when ctx ends; the next round goes on.
func (s *System) Sweep(ctx context.Context, keepKeys time.Duration) error {
	const ended = `least(s.expires_at, coalesce(s.revoked_at, s.expires_at)) < now() - interval '30 days'`
	const itsTokens = `(SELECT 1 FROM refresh_tokens r WHERE r.workspace_id = s.workspace_id AND r.session_id = s.id)`
	for _, q := range []struct {
		what, sql string
		args      []any
	}{
		{"old workers", `DELETE FROM workers WHERE id IN (SELECT w.id FROM workers w WHERE w.dead_at < now() - interval '1 day'
			AND NOT EXISTS (SELECT 1 FROM leases l WHERE l.worker_id = w.id) LIMIT $1)`, nil},
		{"old idempotency keys", `DELETE FROM idempotency_keys WHERE (workspace_id, route, key) IN (SELECT workspace_id, route, key
			FROM idempotency_keys WHERE created_at < now() - $2 * interval '1 millisecond' LIMIT $1)`, []any{keepKeys.Milliseconds()}},
		{"old refresh tokens", `DELETE FROM refresh_tokens r USING (SELECT workspace_id, id FROM sessions s WHERE ` + ended + ` AND EXISTS ` + itsTokens + ` LIMIT $1) s
			WHERE r.workspace_id = s.workspace_id AND r.session_id = s.id`, nil},
		{"old invitations", `DELETE FROM invitations WHERE (workspace_id, id) IN (SELECT workspace_id, id FROM invitations
			WHERE least(expires_at, coalesce(accepted_at, revoked_at, expires_at)) < now() - interval '30 days' LIMIT $1)`, nil},
		{"old mailed tokens", `DELETE FROM user_tokens WHERE (user_id, created_at) IN (SELECT user_id, created_at FROM user_tokens
			WHERE expires_at < now() - interval '1 day' LIMIT $1)`, nil},
		{"old sessions", `DELETE FROM sessions WHERE (workspace_id, id) IN (SELECT workspace_id, id FROM sessions s WHERE ` + ended + ` AND NOT EXISTS ` + itsTokens + ` LIMIT $1)`, nil},
		{"old runs of schedules", `DELETE FROM schedule_runs WHERE (workspace_id, schedule_id, occurrence) IN (SELECT workspace_id, schedule_id, occurrence
			FROM schedule_runs WHERE at < now() - interval '30 days' LIMIT $1)`, nil},
		{"old stripe events", `DELETE FROM stripe_events WHERE id IN (SELECT id FROM stripe_events WHERE handled_at < now() - interval '30 days'
			OR received_at < now() - interval '180 days' LIMIT $1)`, nil},
	} {
		for n := int64(1); n > 0; {
			done, err := s.db.ExecContext(ctx, q.sql, append([]any{sweepBatch}, q.args...)...)
			if err == nil {
				n, err = done.RowsAffected()
			}
			if err != nil {
				return fmt.Errorf("sweep %s: %w", q.what, err)
			}
		}
	}
	return nil
}
