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

// Firing: the scheduler looks each second for schedules whose next_at has come (index schedules_due). In one transaction it
// locks their workspaces' load rows and then the schedules, notes each occurrence in schedule_runs, inserts the tasks of those
// that were noted just now, moves next_at on, and settles. So it happens whole or not at all; a schedule that somebody else
// has fired or changed meanwhile is left alone; and the primary key of schedule_runs refuses a second task of an occurrence
// even where the database's clock was set back and its owners computed next_at anew.
//
// Every occurrence is noted: as sent with its task, or as missed with the reason. A paused workspace, one without quota or at
// its cap gets the task as by a submit, and the task waits.

// What became of an occurrence.
const (
	RunSent   = "sent"
	RunMissed = "missed"
)

// Why an occurrence was missed.
const (
	missedLate    = "late"              // nobody was there to fire it in time, and missed_runs says not to make it up; or its task would have expired
	missedOverlap = "overlap"           // its last task had not ended, and overlap is skip
	missedBacklog = "backlog_full"      // the plan's waiting tasks were used up
	missedModel   = "model_not_allowed" // the plan does not include the task's model any more
	missedAgent   = "unknown_agent"     // the workspace has no such agent any more
)

const (
	fireBatch  = 200         // schedules that one transaction fires
	fireRounds = 25          // transactions of one call
	inTime     = time.Minute // an occurrence that is fired within this was not missed
	maxCatchUp = 100         // occurrences that MissedRunAll makes up at most
	maxPlanned = 100_000     // occurrences that one look at a schedule goes through; beyond, they are missed and the next look goes on
)

// Fired is what FireSchedules did.
type Fired struct {
	Sent   int    // tasks
	Missed int    // occurrences
	Turns  []Turn // to enqueue
}

// dueSchedule is what a plan needs to know.
type dueSchedule struct {
	Workspace uuid.UUID `db:"workspace_id"`
	Now       time.Time `db:"now"`
	Schedule
	after *time.Time // the first occurrence that is left, once it is decided
}

// span is one occurrence, or several missed ones.
type span struct {
	first, last time.Time
	n           int
	reason      string // empty: to be sent
}

// plan says what is to become of the occurrences that are due, and which comes next.
func (d *dueSchedule) plan() (spans []span, next *time.Time, err error) {
	c, err := ParseCron(d.Cron, d.Timezone)
	if err != nil {
		return nil, nil, fmt.Errorf("schedule %s: %w", d.ID, err)
	}
	keep := maxCatchUp
	if d.MissedRuns == MissedRunOnce {
		keep = 1
	}
	var missed span
	miss := func(at time.Time) {
		if missed.n++; missed.n == 1 {
			missed.first, missed.reason = at, missedLate
		}
		missed.last = at
	}
	var send []time.Time
	n := 0
	for next = d.NextAt; next != nil && !next.After(d.Now) && n < maxPlanned; next = d.next(c, *next) {
		n++
		if d.MissedRuns == MissedSkip && d.Now.Sub(*next) > inTime {
			miss(*next)
			continue
		}
		if send = append(send, *next); len(send) > keep {
			miss(send[0])
			send = send[1:]
		}
	}
	if n == maxPlanned && next != nil && !next.After(d.Now) {
		for _, at := range send {
			miss(at)
		}
		send = nil
	}
	if missed.n > 0 {
		spans = append(spans, missed)
	}
	for _, at := range send {
		spans = append(spans, span{first: at, last: at, n: 1})
	}
	return spans, next, nil
}

// FireSchedules sends the tasks of schedules that are due. Safe to run twice and at once in several processes. Workspaces whose
// load rows somebody holds, or whose own trouble fails them, are left for the next round and delay nobody.
func (s *System) FireSchedules(ctx context.Context) (Fired, error) {
	var fired Fired
	var failures []error
	left := []uuid.UUID{} // schedules for the next round
	for range fireRounds {
		var due []*dueSchedule
		err := s.db.SelectContext(ctx, &due, `SELECT s.workspace_id, now() AS now, s.id, s.version, s.next_at, s.cron, s.timezone, s.missed_runs, s.overlap,
				s.ends_at, s.expires_after_ms, s.agent, s.model
			FROM schedules s JOIN workspace_load w ON w.workspace_id = s.workspace_id
			WHERE s.next_at <= now() AND NOT w.leaving AND s.id <> ALL($2) ORDER BY s.next_at LIMIT $1`, fireBatch, pq.Array(left))
		if err != nil {
			return fired, errors.Join(append(failures, fmt.Errorf("look for due schedules: %w", err))...)
		}
		took, err := s.fire(ctx, due, &fired)
		if err != nil && len(due) > 1 && !Unavailable(err) && ctx.Err() == nil {
			err = nil
			for _, d := range due { // each by itself, so that only who is at fault fails
				one, failed := s.fire(ctx, []*dueSchedule{d}, &fired)
				took, err = append(took, one...), errors.Join(err, failed)
			}
		}
		failures = append(failures, err)
		for _, d := range due {
			if !slices.Contains(took, d.ID) {
				left = append(left, d.ID)
			}
		}
		if len(due) < fireBatch || ctx.Err() != nil || Unavailable(err) {
			break
		}
	}
	return fired, errors.Join(failures...)
}

// firing is a schedule in a transaction that fires it.
type firing struct {
	ID         uuid.UUID      `db:"id"`
	Version    int64          `db:"version"`
	NextAt     *time.Time     `db:"next_at"`
	Busy       bool           `db:"busy"`        // its last task has not ended
	KnowsAgent bool           `db:"knows_agent"` // built-in agents are known elsewhere
	Models     pq.StringArray `db:"models"`
}

// run is a row of schedule_runs about to be written.
type run struct {
	of   *dueSchedule
	load *load
	span
	task uuid.NullUUID
}

// fire fires schedules in one transaction and returns those that it has fired. fired grows only when it is committed.
func (s *System) fire(ctx context.Context, due []*dueSchedule, fired *Fired) (took []uuid.UUID, err error) {
	if len(due) == 0 {
		return nil, nil
	}
	var sum Fired
	err = inTx(ctx, s.db, func(tx *sqlx.Tx) error {
		took, sum = nil, Fired{}
		workspaces, ids := make([]uuid.UUID, len(due)), make([]uuid.UUID, len(due))
		for i, d := range due {
			workspaces[i], ids[i] = d.Workspace, d.ID
		}
		loads, err := lockFreeLoads(ctx, tx, workspaces)
		if err != nil {
			return err
		}
		var free []firing
		err = tx.SelectContext(ctx, &free, `SELECT s.id, s.version, s.next_at, w.models,
				EXISTS (SELECT 1 FROM tasks t WHERE t.workspace_id = s.workspace_id AND t.id = s.last_task_id AND (t.status = 'queued' OR t.status = 'scheduled')) AS busy,
				EXISTS (SELECT 1 FROM agents a WHERE a.workspace_id = s.workspace_id AND a.name = s.agent) AS knows_agent
			FROM schedules s JOIN workspace_load w ON w.workspace_id = s.workspace_id
			WHERE s.workspace_id = ANY($1) AND s.id = ANY($2) ORDER BY s.id FOR UPDATE OF s SKIP LOCKED`, pq.Array(workspacesOf(loads)), pq.Array(ids))
		if err != nil {
			return fmt.Errorf("lock due schedules: %w", err)
		}
		byID, byLoad := make(map[uuid.UUID]firing, len(free)), loadsByID(loads)
		for _, f := range free {
			byID[f.ID] = f
		}
		var runs []*run
		var moved []*dueSchedule
		for _, d := range due {
			f, there := byID[d.ID]
			l := byLoad[d.Workspace]
			if !there || l == nil || l.Leaving || f.Version != d.Version || f.NextAt == nil || !f.NextAt.Equal(*d.NextAt) {
				continue
			}
			decided, err := d.decide(f, l)
			if err != nil {
				return err
			}
			runs, moved, took = append(runs, decided...), append(moved, d), append(took, d.ID)
		}
		if len(moved) == 0 {
			return nil
		}
		if err := writeRuns(ctx, tx, runs, &sum); err != nil {
			return err
		}
		if err := moveOn(ctx, tx, moved, runs); err != nil {
			return err
		}
		sum.Turns, err = settle(ctx, tx, loads...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("fire schedules: %w", err)
	}
	fired.Sent, fired.Missed, fired.Turns = fired.Sent+sum.Sent, fired.Missed+sum.Missed, append(fired.Turns, sum.Turns...)
	return took, nil
}

// decide says what becomes of the schedule's due occurrences and counts the tasks to be sent as waiting. It is called under
// the locks, when next_at has proved to be as it was read.
func (d *dueSchedule) decide(f firing, l *load) (runs []*run, err error) {
	spans, after, err := d.plan()
	if err != nil {
		return nil, err
	}
	d.after = after
	_, builtin := BuiltinAgent(d.Agent)
	for _, sp := range spans {
		r := &run{of: d, load: l, span: sp}
		switch {
		case r.reason != "":
		case d.ExpiresAfterMS != nil && !sp.first.Add(time.Duration(*d.ExpiresAfterMS)*time.Millisecond).After(d.Now):
			r.reason = missedLate
		case d.Overlap == OverlapSkip && f.Busy:
			r.reason = missedOverlap
		case !builtin && !f.KnowsAgent:
			r.reason = missedAgent
		case !AllowsModel(f.Models, d.Model):
			r.reason = missedModel
		case l.Waiting >= l.MaxWaiting:
			r.reason = missedBacklog
		default:
			r.task = uuid.NullUUID{UUID: NewID(), Valid: true}
			l.Waiting++
			f.Busy = true
		}
		runs = append(runs, r)
	}
	return runs, nil
}

// writeRuns notes the occurrences and inserts the tasks of those that nobody has noted before.
func writeRuns(ctx context.Context, tx *sqlx.Tx, runs []*run, sum *Fired) error {
	n := len(runs)
	workspaces, schedules, tasks, ns := make([]uuid.UUID, n), make([]uuid.UUID, n), make([]*string, n), make([]int64, n)
	firsts, lasts, outcomes, reasons := make([]*string, n), make([]*string, n), make([]string, n), make([]string, n)
	for i, r := range runs {
		workspaces[i], schedules[i], tasks[i], ns[i] = r.of.Workspace, r.of.ID, textOf(r.task), int64(r.n)
		firsts[i], lasts[i], outcomes[i], reasons[i] = textOfTime(&r.first), textOfTime(&r.last), RunMissed, r.reason
		if r.task.Valid {
			outcomes[i] = RunSent
		}
	}
	var noted []struct {
		Schedule   uuid.UUID     `db:"schedule_id"`
		Occurrence time.Time     `db:"occurrence"`
		Task       uuid.NullUUID `db:"task_id"`
		N          int           `db:"occurrences"`
	}
	err := tx.SelectContext(ctx, &noted, `INSERT INTO schedule_runs (workspace_id, schedule_id, occurrence, until, occurrences, outcome, reason, task_id)
		SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::timestamptz[], $5::int[], $6::text[], $7::text[], $8::uuid[])
		ON CONFLICT DO NOTHING RETURNING schedule_id, occurrence, occurrences, task_id`,
		pq.Array(workspaces), pq.Array(schedules), pq.Array(firsts), pq.Array(lasts), pq.Array(ns), pq.Array(outcomes), pq.Array(reasons), pq.Array(tasks))
	if err != nil {
		return fmt.Errorf("note occurrences: %w", err)
	}
	sent := make(map[uuid.UUID]bool, len(noted))
	for _, r := range noted {
		if sent[r.Task.UUID] = r.Task.Valid; r.Task.Valid {
			sum.Sent++
		} else {
			sum.Missed += r.N
		}
	}
	for i, r := range runs {
		if r.task.Valid && !sent[r.task.UUID] { // it had been sent before
			r.load.Waiting--
			r.task = uuid.NullUUID{}
		}
		tasks[i] = textOf(r.task)
	}
	// What a task is made of never leaves the ledger.
	_, err = tx.ExecContext(ctx, `INSERT INTO tasks (workspace_id, id, status, agent, model, prompt, input, metadata, priority, timeout_ms, max_attempts,
			first_max_attempts, expires_at, api_key_id, created_by_user, schedule_id)
		SELECT s.workspace_id, v.task, 'queued', s.agent, s.model, s.prompt, s.input, s.metadata, s.priority, s.timeout_ms, s.max_attempts, s.max_attempts,
			v.occurrence + s.expires_after_ms * interval '1 millisecond', s.api_key_id, s.created_by_user, s.id
		FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::uuid[]) AS v (workspace_id, schedule_id, occurrence, task)
		JOIN schedules s ON s.workspace_id = v.workspace_id AND s.id = v.schedule_id WHERE v.task IS NOT NULL`,
		pq.Array(workspaces), pq.Array(schedules), pq.Array(firsts), pq.Array(tasks))
	if err != nil {
		return fmt.Errorf("send tasks of schedules: %w", err)
	}
	return nil
}

// moveOn writes down up to where the schedules are decided.
func moveOn(ctx context.Context, tx *sqlx.Tx, moved []*dueSchedule, runs []*run) error {
	n := len(moved)
	place := make(map[uuid.UUID]int, n)
	workspaces, ids, next, last, task := make([]uuid.UUID, n), make([]uuid.UUID, n), make([]*string, n), make([]*string, n), make([]*string, n)
	for i, d := range moved {
		place[d.ID] = i
		workspaces[i], ids[i], next[i] = d.Workspace, d.ID, textOfTime(d.after)
	}
	for _, r := range runs {
		i := place[r.of.ID]
		last[i] = textOfTime(&r.last)
		if r.task.Valid {
			task[i] = textOf(r.task)
		}
	}
	_, err := tx.ExecContext(ctx, `UPDATE schedules s SET next_at = v.next, last_at = coalesce(v.last, s.last_at), last_task_id = coalesce(v.task, s.last_task_id)
		FROM unnest($1::uuid[], $2::uuid[], $3::timestamptz[], $4::timestamptz[], $5::uuid[]) AS v (workspace_id, id, next, last, task)
		WHERE s.workspace_id = v.workspace_id AND s.id = v.id`, pq.Array(workspaces), pq.Array(ids), pq.Array(next), pq.Array(last), pq.Array(task))
	if err != nil {
		return fmt.Errorf("move schedules on: %w", err)
	}
	return nil
}
