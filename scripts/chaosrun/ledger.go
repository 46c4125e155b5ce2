//go:build unix

package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"

	"github.com/generic-corp/muster/store"
)

// The run looks into the ledger as the superuser, over connections of its own that no fault cuts, and has triggers in it,
// which note each lease, each task's end, return and request to stop, in the transaction that makes it so. All of these change
// under the lock of their workspace's load row, so the numbers of the notes are their order; and what could have started
// instead of a task, when its lease is given, is what the claim could see.
const noteTriggers = `
CREATE SCHEMA chaos;
CREATE TABLE chaos.notes (seq bigserial PRIMARY KEY, what text NOT NULL, workspace_id uuid NOT NULL, task_id uuid NOT NULL,
	lease_id uuid, worker_id uuid, running integer NOT NULL DEFAULT 0, passed_over integer NOT NULL DEFAULT 0, status text NOT NULL DEFAULT '',
	code text NOT NULL DEFAULT '', clock timestamptz NOT NULL DEFAULT clock_timestamp(), begun timestamptz NOT NULL DEFAULT now());
CREATE FUNCTION chaos.note_lease() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
	IF TG_OP = 'INSERT' THEN
		INSERT INTO chaos.notes (what, workspace_id, task_id, lease_id, worker_id, running, passed_over) SELECT 'leased', NEW.workspace_id, NEW.task_id,
			NEW.id, NEW.worker_id, (SELECT count(*) FROM public.leases l WHERE l.workspace_id = NEW.workspace_id),
			(SELECT count(*) FROM public.tasks t WHERE t.workspace_id = NEW.workspace_id AND t.status = 'queued' AND t.priority > mine.priority
				AND (t.expires_at IS NULL OR t.expires_at > now())
				AND NOT EXISTS (SELECT 1 FROM public.leases l WHERE l.workspace_id = t.workspace_id AND l.task_id = t.id))
			FROM public.tasks mine WHERE mine.workspace_id = NEW.workspace_id AND mine.id = NEW.task_id;
	ELSE
		INSERT INTO chaos.notes (what, workspace_id, task_id, lease_id, worker_id, running) SELECT 'released', OLD.workspace_id, OLD.task_id, OLD.id,
			OLD.worker_id, count(*) FROM public.leases l WHERE l.workspace_id = OLD.workspace_id;
	END IF;
	RETURN NULL;
END $$;
CREATE TRIGGER chaos_note AFTER INSERT OR DELETE ON public.leases FOR EACH ROW EXECUTE FUNCTION chaos.note_lease();
CREATE FUNCTION chaos.note_task() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
	INSERT INTO chaos.notes (what, workspace_id, task_id, status, code) VALUES (CASE
		WHEN NEW.finished_at IS NOT DISTINCT FROM OLD.finished_at THEN 'stopping' WHEN NEW.finished_at IS NULL THEN 'requeued' ELSE 'over' END,
		NEW.workspace_id, NEW.id, NEW.status, coalesce(NEW.error->>'code', ''));
	RETURN NULL;
END $$;
CREATE TRIGGER chaos_note AFTER UPDATE ON public.tasks FOR EACH ROW
	WHEN (OLD.finished_at IS DISTINCT FROM NEW.finished_at OR OLD.cancel_requested_at IS DISTINCT FROM NEW.cancel_requested_at)
	EXECUTE FUNCTION chaos.note_task();`

// watcher copies the triggers' notes and the ledger's workers into the history while the run goes on.
type watcher struct {
	db   *sqlx.DB
	hist *history

	mu      sync.Mutex
	last    int64 // the highest number read
	seen    map[int64]bool
	workers map[uuid.UUID]bool
}

const (
	watchPause = 100 * time.Millisecond
	// A number may become visible after a higher one of another workspace: so far back it is looked for again.
	watchBack = 2000
)

func newWatcher(ctx context.Context, db *sqlx.DB, h *history) (*watcher, error) {
	if _, err := db.ExecContext(ctx, noteTriggers); err != nil {
		return nil, fmt.Errorf("put the triggers on leases and tasks: %w", err)
	}
	return &watcher{db: db, hist: h, seen: map[int64]bool{}, workers: map[uuid.UUID]bool{}}, nil
}

// run watches until ctx ends. While the ledger is away there is nothing to see.
func (w *watcher) run(ctx context.Context) {
	for ctx.Err() == nil {
		_ = w.look(ctx, watchBack)
		pause(ctx, watchPause)
	}
}

// look reads what is new.
func (w *watcher) look(ctx context.Context, back int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var workers []struct {
		ID   uuid.UUID `db:"id"`
		Name string    `db:"name"`
	}
	if err := w.db.SelectContext(ctx, &workers, `SELECT id, name FROM workers`); err != nil {
		return err
	}
	for _, row := range workers {
		if !w.workers[row.ID] {
			w.workers[row.ID] = true
			_, pid, _ := strings.Cut(row.Name, "/")
			number, _ := strconv.Atoi(pid) // muster names a worker host/pid
			w.hist.add(event{What: worker, Worker: row.ID.String(), PID: number})
		}
	}
	var rows []struct {
		Seq        int64         `db:"seq"`
		What       string        `db:"what"`
		Workspace  uuid.UUID     `db:"workspace_id"`
		Task       uuid.UUID     `db:"task_id"`
		Lease      uuid.NullUUID `db:"lease_id"`
		Worker     uuid.NullUUID `db:"worker_id"`
		Running    int           `db:"running"`
		PassedOver int           `db:"passed_over"`
		Status     string        `db:"status"`
		Code       string        `db:"code"`
		Clock      time.Time     `db:"clock"`
		Begun      time.Time     `db:"begun"`
	}
	if err := w.db.SelectContext(ctx, &rows, `SELECT seq, what, workspace_id, task_id, lease_id, worker_id, running, passed_over, status, code, clock, begun
		FROM chaos.notes WHERE seq > $1 ORDER BY seq`, w.last-back); err != nil {
		return err
	}
	for _, row := range rows {
		if w.seen[row.Seq] {
			continue
		}
		w.seen[row.Seq] = true
		w.last = max(w.last, row.Seq)
		e := event{What: row.What, Seq: row.Seq, Workspace: row.Workspace.String(), Task: taskID(row.Task), Running: row.Running, PassedOver: row.PassedOver,
			Clock: row.Clock.UnixMilli(), Begun: row.Begun.UnixMilli()}
		if row.Lease.Valid {
			e.Lease, e.Worker = row.Lease.UUID.String(), row.Worker.UUID.String()
		}
		if row.What == over {
			e.Status, e.Code = row.Status, row.Code
		}
		w.hist.add(e)
	}
	return nil
}

// books copies tasks, attempts and metering rows into the history, once all has ended.
func (w *watcher) books(ctx context.Context) error {
	if err := w.look(ctx, w.last); err != nil {
		return fmt.Errorf("read the notes: %w", err)
	}
	var tasks []struct {
		ID       uuid.UUID     `db:"id"`
		N        int           `db:"n"`
		Status   string        `db:"status"`
		Attempt  int           `db:"attempt"`
		Schedule uuid.NullUUID `db:"schedule_id"`
	}
	if err := w.db.SelectContext(ctx, &tasks, `SELECT id, coalesce(substring(prompt FROM '\mn=(\d+)')::int, 0) AS n, status, attempt, schedule_id FROM tasks ORDER BY id`); err != nil {
		return fmt.Errorf("read tasks: %w", err)
	}
	for _, t := range tasks {
		e := event{What: stored, N: t.N, Task: taskID(t.ID), Status: t.Status, Attempt: t.Attempt}
		if t.Schedule.Valid {
			e.Schedule = store.FormatID(store.SchedulePrefix, t.Schedule.UUID)
		}
		w.hist.add(e)
	}
	var attempts []struct {
		ID        uuid.UUID `db:"id"`
		Workspace uuid.UUID `db:"workspace_id"`
		Task      uuid.UUID `db:"task_id"`
		Worker    uuid.UUID `db:"worker_id"`
		Outcome   string    `db:"outcome"`
		AgentMS   int64     `db:"agent_ms"`
		Billable  bool      `db:"billable"`
	}
	if err := w.db.SelectContext(ctx, &attempts, `SELECT id, workspace_id, task_id, worker_id, outcome, agent_ms, billable FROM attempts ORDER BY finished_at`); err != nil {
		return fmt.Errorf("read attempts: %w", err)
	}
	for _, a := range attempts {
		w.hist.add(event{What: attempted, Lease: a.ID.String(), Workspace: a.Workspace.String(), Task: taskID(a.Task), Worker: a.Worker.String(),
			Status: a.Outcome, Used: a.AgentMS, Billable: a.Billable})
	}
	var rows []struct {
		Attempt   uuid.UUID `db:"attempt_id"`
		Workspace uuid.UUID `db:"workspace_id"`
		Quantity  int64     `db:"quantity"`
		Billable  bool      `db:"billable"`
	}
	if err := w.db.SelectContext(ctx, &rows, `SELECT attempt_id, workspace_id, quantity, billable FROM metering_rows WHERE meter = 'agent_ms' ORDER BY at`); err != nil {
		return fmt.Errorf("read metering rows: %w", err)
	}
	for _, r := range rows {
		w.hist.add(event{What: metered, Lease: r.Attempt.String(), Workspace: r.Workspace.String(), Used: r.Quantity, Billable: r.Billable})
	}
	return nil
}

func taskID(id uuid.UUID) string { return store.FormatID(store.TaskPrefix, id) }

// heldLease is what a worker process holds.
type heldLease struct {
	Task    uuid.UUID `db:"task_id"`
	Lease   uuid.UUID `db:"id"`
	Crashes int       `db:"crashes"`
}

func (w *watcher) heldBy(ctx context.Context, pid int) (held []heldLease, err error) {
	err = w.db.SelectContext(ctx, &held, `SELECT l.task_id, l.id, t.crashes FROM leases l JOIN workers w ON w.id = l.worker_id
		JOIN tasks t ON t.workspace_id = l.workspace_id AND t.id = l.task_id WHERE w.name LIKE '%/' || $1::text`, strconv.Itoa(pid))
	return held, err
}

// runAgain returns those of the leases whose tasks neither run under another lease nor have ended nor wait as suspects.
func (w *watcher) stillHeld(ctx context.Context, held []heldLease) (left int, err error) {
	for _, h := range held {
		var again bool
		if err := w.db.GetContext(ctx, &again, `SELECT t.finished_at IS NOT NULL OR t.crashes >= 2 OR l.id IS NOT NULL AND l.id <> $2 FROM tasks t
			LEFT JOIN leases l ON l.workspace_id = t.workspace_id AND l.task_id = t.id WHERE t.id = $1`, h.Task, h.Lease); err != nil {
			return 0, err
		}
		if !again {
			left++
		}
	}
	return left, nil
}

// waiting names the workspaces that have work in line and room for it.
func (w *watcher) waiting(ctx context.Context) (workspaces []string, err error) {
	err = w.db.SelectContext(ctx, &workspaces, `SELECT w.name FROM workspace_load l JOIN workspaces w ON w.id = l.workspace_id
		WHERE l.cap > (SELECT count(*) FROM leases x WHERE x.workspace_id = l.workspace_id)
			AND EXISTS (SELECT 1 FROM tasks t WHERE t.workspace_id = l.workspace_id AND t.status = 'queued'
				AND NOT EXISTS (SELECT 1 FROM leases x WHERE x.workspace_id = t.workspace_id AND x.task_id = t.id))`)
	return workspaces, err
}

func (w *watcher) count(ctx context.Context, query string, args ...any) (n int, err error) {
	err = w.db.GetContext(ctx, &n, query, args...)
	return n, err
}

// pause sleeps, or less when ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
