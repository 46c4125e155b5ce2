package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// A worker process holds its tasks through one row here: leases name the worker, and the worker lives while its beat
// moves. No wall clock decides: the scheduler watches the counter by its own monotonic clock.

// Worker describes a worker process.
type Worker struct {
	ID       uuid.UUID  `db:"id"`
	Name     string     `db:"name"` // host and process, for people
	Version  string     `db:"version"`
	Slots    int        `db:"slots"`   // attempts it can run at once
	Running  int        `db:"running"` // as of its last beat
	Beat     int64      `db:"beat"`
	Started  time.Time  `db:"started_at"`
	Draining bool       `db:"draining"`
	DeadAt   *time.Time `db:"dead_at"`
}

// Register enters a worker. Its ID must be fresh: a process that was declared dead registers anew.
func (f *Fleet) Register(ctx context.Context, w Worker) error {
	_, err := f.db.ExecContext(ctx, `INSERT INTO workers (id, name, version, slots) VALUES ($1, $2, $3, $4) ON CONFLICT (id) DO NOTHING`,
		w.ID, w.Name, w.Version, w.Slots)
	if err != nil {
		return fmt.Errorf("register worker: %w", err)
	}
	return nil
}

// HeldLease is a lease that the ledger says this worker holds.
type HeldLease struct {
	Workspace   uuid.UUID `db:"workspace_id"`
	Task        uuid.UUID `db:"task_id"`
	Lease       uuid.UUID `db:"id"`
	AskedToStop bool      `db:"asked_to_stop"` // its customer canceled it
}

// Beat says that the worker lives and returns what it holds. ErrWorkerDead means that everything it held is lost.
func (f *Fleet) Beat(ctx context.Context, worker uuid.UUID, running int, draining bool) ([]HeldLease, error) {
	done, err := f.db.ExecContext(ctx, `UPDATE workers SET beat = beat + 1, running = $2, draining = $3 WHERE id = $1 AND dead_at IS NULL`,
		worker, running, draining)
	if err != nil {
		return nil, fmt.Errorf("beat: %w", err)
	}
	if n, err := done.RowsAffected(); err != nil {
		return nil, fmt.Errorf("beat: %w", err)
	} else if n == 0 {
		return nil, ErrWorkerDead
	}
	var held []HeldLease
	err = f.db.SelectContext(ctx, &held, `SELECT l.workspace_id, l.task_id, l.id, t.cancel_requested_at IS NOT NULL AS asked_to_stop
		FROM leases l JOIN tasks t ON t.workspace_id = l.workspace_id AND t.id = l.task_id WHERE l.worker_id = $1`, worker)
	if err != nil {
		return nil, fmt.Errorf("read held leases: %w", err)
	}
	return held, nil
}

// Leave says that the worker has stopped and holds nothing.
func (f *Fleet) Leave(ctx context.Context, worker uuid.UUID) error {
	_, err := f.db.ExecContext(ctx, `UPDATE workers SET dead_at = now(), running = 0 WHERE id = $1 AND dead_at IS NULL`, worker)
	if err != nil {
		return fmt.Errorf("leave: %w", err)
	}
	return nil
}

// LiveWorkers lists the workers that have not left and were not declared dead.
func (s *System) LiveWorkers(ctx context.Context) ([]Worker, error) {
	var workers []Worker
	err := s.db.SelectContext(ctx, &workers, `SELECT id, name, version, slots, running, beat, started_at, draining, dead_at
		FROM workers WHERE dead_at IS NULL ORDER BY id`)
	if err != nil {
		return nil, fmt.Errorf("list workers: %w", err)
	}
	return workers, nil
}

// DeclareDead marks a worker whose beat has not moved from the given one; false when it has moved after all.
func (s *System) DeclareDead(ctx context.Context, worker uuid.UUID, beat int64) (bool, error) {
	done, err := s.db.ExecContext(ctx, `UPDATE workers SET dead_at = now() WHERE id = $1 AND beat = $2 AND dead_at IS NULL`, worker, beat)
	if err != nil {
		return false, fmt.Errorf("declare worker dead: %w", err)
	}
	n, err := done.RowsAffected()
	return n == 1, err
}

// RecoverDeadWorkers takes back the leases of workers that are dead or unknown: their tasks go back to their place in
// line (see decide for suspects), no attempt is spent, what their provider calls cost is booked. A worker that had only
// been slow finds its writes refused. It returns how many leases were recovered and the turns to enqueue.
func (s *System) RecoverDeadWorkers(ctx context.Context) (recovered int, turns []Turn, err error) {
	var orphans []struct {
		Workspace uuid.UUID `db:"workspace_id"`
		Task      uuid.UUID `db:"task_id"`
		Lease     uuid.UUID `db:"id"`
	}
	err = s.db.SelectContext(ctx, &orphans, `SELECT l.workspace_id, l.task_id, l.id FROM leases l LEFT JOIN workers w ON w.id = l.worker_id
		WHERE w.id IS NULL OR w.dead_at IS NOT NULL ORDER BY l.workspace_id, l.claimed_at`)
	if err != nil {
		return 0, nil, fmt.Errorf("look for dead workers' leases: %w", err)
	}
	var failures []error
	for start := 0; start < len(orphans); {
		ws := orphans[start].Workspace
		end := start
		var finishes []*Finish
		for ; end < len(orphans) && orphans[end].Workspace == ws; end++ {
			o := orphans[end]
			finishes = append(finishes, &Finish{Workspace: ws, Task: o.Task, Lease: o.Lease, Outcome: Crashed,
				Error: &TaskError{Code: CodeWorkerCrashed, Message: "the worker died while running this attempt", Retryable: true}})
		}
		n, issued, err := s.recoverLeases(ctx, ws, finishes)
		recovered, turns = recovered+n, append(turns, issued...)
		if err != nil {
			failures = append(failures, err) // one workspace's trouble delays nobody
		}
		start = end
	}
	return recovered, turns, errors.Join(failures...)
}

func (s *System) recoverLeases(ctx context.Context, ws uuid.UUID, finishes []*Finish) (recovered int, turns []Turn, err error) {
	err = s.inAudited(ctx, func(tx *sqlx.Tx, n *notes) error {
		recovered, turns = 0, nil
		if err := impatient(ctx, tx); err != nil {
			return err
		}
		l, err := lockLoad(ctx, tx, ws)
		if err != nil {
			return err
		}
		for _, f := range finishes {
			if f.Usage, err = closeCalls(ctx, tx, n, l, f.Lease); err != nil {
				return err
			}
		}
		results, err := finishAll(ctx, tx, n, map[uuid.UUID]*load{ws: l}, finishes)
		if err != nil {
			return err
		}
		for _, r := range results {
			if r.Accepted {
				recovered++
			}
		}
		turns, err = settle(ctx, tx, l)
		return err
	})
	if err != nil {
		return 0, nil, fmt.Errorf("recover tasks of workspace %s: %w", ws, err)
	}
	return recovered, turns, nil
}
