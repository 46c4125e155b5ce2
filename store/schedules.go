package store

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// A schedule sends a task at each occurrence of its cron expression (cron.go); fire.go says how.
//
// next_at is the first occurrence that is not decided, null while it is paused and after its last. Whoever changes when it
// occurs computes next_at anew from the database's clock, so what was due and not yet fired at that moment is not made up.

// What a schedule does with occurrences that nobody was there to fire in time.
const (
	MissedSkip    = "skip"     // none of them
	MissedRunOnce = "run_once" // the last of them
	MissedRunAll  = "run_all"  // each, the newest maxCatchUp of them
)

// What a schedule does while its last task has not ended.
const (
	OverlapAllow = "allow" // sends the next all the same
	OverlapSkip  = "skip"  // misses the occurrence
)

// MinOccurrenceGap is the least time between two occurrences of any schedule; a plan may ask for more.
const MinOccurrenceGap = time.Minute

// ScheduleSpec is what its owners say of a schedule, already validated where ParseCron does not (see api).
type ScheduleSpec struct {
	Name           string     `db:"name"` // 1..100 characters
	Cron           string     `db:"cron"`
	Timezone       string     `db:"timezone"`    // IANA
	MissedRuns     string     `db:"missed_runs"` // MissedSkip, …
	Overlap        string     `db:"overlap"`     // OverlapAllow, …
	Paused         bool       `db:"paused"`
	StartsAt       *time.Time `db:"starts_at"`        // no occurrence before; nil: any
	EndsAt         *time.Time `db:"ends_at"`          // no occurrence after; nil: any
	ExpiresAfterMS *int64     `db:"expires_after_ms"` // its tasks expire so long after their occurrence; nil: never

	// The task, as in NewTask.
	Agent       string        `db:"agent"`
	Model       string        `db:"model"`
	Prompt      string        `db:"prompt"`   // empty in lists
	Input       []byte        `db:"input"`    // a JSON object; null in lists
	Metadata    []byte        `db:"metadata"` // a JSON object of strings
	Priority    int           `db:"priority"`
	TimeoutMS   int           `db:"timeout_ms"`
	MaxAttempts int           `db:"max_attempts"`
	APIKeyID    uuid.NullUUID `db:"api_key_id"` // who made the schedule, and for whom its tasks are sent: a key,
	UserID      uuid.NullUUID `db:"created_by_user"`
}

// Schedule is a schedule as the ledger has it.
type Schedule struct {
	ID         uuid.UUID     `db:"id"`
	Version    int64         `db:"version"`
	NextAt     *time.Time    `db:"next_at"` // nil: paused or ended
	LastAt     *time.Time    `db:"last_at"` // the last occurrence that was decided
	LastTaskID uuid.NullUUID `db:"last_task_id"`
	CreatedAt  time.Time     `db:"created_at"`
	UpdatedAt  time.Time     `db:"updated_at"`
	ScheduleSpec
}

const (
	scheduleHead = `id, version, next_at, last_at, last_task_id, created_at, updated_at, name, cron, timezone, missed_runs, overlap, paused,
		starts_at, ends_at, expires_after_ms, agent, model, metadata, priority, timeout_ms, max_attempts, api_key_id, created_by_user`
	scheduleColumns     = scheduleHead + `, prompt, input`
	scheduleListColumns = scheduleHead + `, '' AS prompt, 'null'::jsonb AS input`
)

// first is the schedule's first occurrence at or after a moment; nil: none.
func (s *ScheduleSpec) first(c *Cron, from time.Time) *time.Time {
	if s.StartsAt != nil && s.StartsAt.After(from) {
		from = *s.StartsAt
	}
	return s.next(c, from.Add(-time.Nanosecond))
}

// next is the schedule's next occurrence after one; nil: none.
func (s *ScheduleSpec) next(c *Cron, after time.Time) *time.Time {
	at := c.Next(after)
	if at.IsZero() || s.EndsAt != nil && at.After(*s.EndsAt) {
		return nil
	}
	return &at
}

// NextRuns lists the next n occurrences that are not decided.
func (s *Schedule) NextRuns(n int) []time.Time {
	list := []time.Time{}
	c, err := ParseCron(s.Cron, s.Timezone)
	if err != nil {
		return list
	}
	for at := s.NextAt; at != nil && len(list) < n; at = s.next(c, *at) {
		list = append(list, at.UTC())
	}
	return list
}

// CreateSchedule makes a schedule. PlanLimit when the workspace has as many as its plan allows, or when it would occur more
// often than the plan allows; Invalid when its expression or time zone is none.
func (w *Work) CreateSchedule(ctx context.Context, spec ScheduleSpec) (Schedule, error) {
	limits, err := w.lockSchedules(ctx)
	if err != nil {
		return Schedule{}, err
	}
	var have int
	if err := w.tx.GetContext(ctx, &have, `SELECT count(*) FROM schedules WHERE workspace_id = $1`, w.Workspace); err != nil {
		return Schedule{}, fmt.Errorf("count schedules: %w", err)
	}
	if have >= limits.Max {
		return Schedule{}, refuse(PlanLimit, "the workspace has %d schedules; its plan allows %d", have, limits.Max)
	}
	c, err := limits.check(spec)
	if err != nil {
		return Schedule{}, err
	}
	var next *time.Time
	if !spec.Paused {
		next = spec.first(c, limits.Now)
	}
	id := NewID()
	_, err = w.tx.ExecContext(ctx, `INSERT INTO schedules (workspace_id, id, name, cron, timezone, missed_runs, overlap, paused, starts_at, ends_at,
			expires_after_ms, next_at, agent, model, prompt, input, metadata, priority, timeout_ms, max_attempts, api_key_id, created_by_user)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16::jsonb, $17::jsonb, $18, $19, $20, $21, $22)`,
		w.Workspace, id, spec.Name, spec.Cron, spec.Timezone, spec.MissedRuns, spec.Overlap, spec.Paused, spec.StartsAt, spec.EndsAt,
		spec.ExpiresAfterMS, next, spec.Agent, spec.Model, spec.Prompt, objectOr(spec.Input), objectOr(spec.Metadata), spec.Priority, spec.TimeoutMS,
		spec.MaxAttempts, spec.APIKeyID, spec.UserID)
	if err != nil {
		return Schedule{}, fmt.Errorf("insert schedule: %w", err)
	}
	return w.Schedule(ctx, id)
}

// scheduleLimits are what the plan allows, with the database's clock.
type scheduleLimits struct {
	Max        int       `db:"max_schedules"`
	MinSeconds int       `db:"min_schedule_seconds"`
	Now        time.Time `db:"now"`
}

// lockSchedules locks the workspace's row, under which alone schedules are made and changed by their owners.
func (w *Work) lockSchedules(ctx context.Context) (scheduleLimits, error) {
	var limits scheduleLimits
	if _, err := w.lockMembers(ctx); err != nil {
		return limits, err
	}
	err := w.tx.GetContext(ctx, &limits, `SELECT max_schedules, min_schedule_seconds, now() AS now FROM workspaces WHERE id = $1`, w.Workspace)
	if err != nil {
		return limits, fmt.Errorf("read limits of schedules: %w", err)
	}
	return limits, nil
}

// check reads the cron expression and compares how often it occurs.
func (limits scheduleLimits) check(spec ScheduleSpec) (*Cron, error) {
	c, err := ParseCron(spec.Cron, spec.Timezone)
	if err != nil {
		return nil, err
	}
	least := max(MinOccurrenceGap, time.Duration(limits.MinSeconds)*time.Second)
	if gap := c.shortest(limits.Now); gap < least {
		return nil, refuse(PlanLimit, "the schedule would occur again after %d seconds; the plan allows every %d", int(gap.Seconds()), int(least.Seconds()))
	}
	return c, nil
}

// UpdateSchedule lets change alter a schedule. When it then occurs at other times, or was resumed, it occurs from now on.
func (w *Work) UpdateSchedule(ctx context.Context, id uuid.UUID, change func(*ScheduleSpec) error) (Schedule, error) {
	limits, err := w.lockSchedules(ctx)
	if err != nil {
		return Schedule{}, err
	}
	var s Schedule
	err = w.tx.GetContext(ctx, &s, `SELECT `+scheduleColumns+` FROM schedules WHERE workspace_id = $1 AND id = $2 FOR UPDATE`, w.Workspace, id)
	if err != nil {
		return s, noRows(fmt.Errorf("read schedule: %w", err), "schedule")
	}
	before := s.ScheduleSpec
	if err := change(&s.ScheduleSpec); err != nil {
		return s, err
	}
	retimed := s.Cron != before.Cron || s.Timezone != before.Timezone
	if retimed {
		if _, err := limits.check(s.ScheduleSpec); err != nil {
			return s, err
		}
	}
	if retimed || s.Paused != before.Paused || !sameTime(s.StartsAt, before.StartsAt) || !sameTime(s.EndsAt, before.EndsAt) {
		c, err := ParseCron(s.Cron, s.Timezone)
		if err != nil {
			return s, err
		}
		if s.NextAt = nil; !s.Paused {
			s.NextAt = s.first(c, limits.Now)
		}
	}
	_, err = w.tx.ExecContext(ctx, `UPDATE schedules SET name = $3, cron = $4, timezone = $5, missed_runs = $6, overlap = $7, paused = $8, starts_at = $9,
			ends_at = $10, expires_after_ms = $11, next_at = $12, agent = $13, model = $14, prompt = $15, input = $16::jsonb, metadata = $17::jsonb,
			priority = $18, timeout_ms = $19, max_attempts = $20, version = version + 1, updated_at = now()
		WHERE workspace_id = $1 AND id = $2`,
		w.Workspace, id, s.Name, s.Cron, s.Timezone, s.MissedRuns, s.Overlap, s.Paused, s.StartsAt, s.EndsAt, s.ExpiresAfterMS, s.NextAt,
		s.Agent, s.Model, s.Prompt, objectOr(s.Input), objectOr(s.Metadata), s.Priority, s.TimeoutMS, s.MaxAttempts)
	if err != nil {
		return s, fmt.Errorf("update schedule %s: %w", id, err)
	}
	return w.Schedule(ctx, id)
}

// SwitchSchedule pauses a schedule or lets it occur again from now on: an operator's change, of nothing else.
func (w *Work) SwitchSchedule(ctx context.Context, id uuid.UUID, paused bool) (Schedule, error) {
	limits, err := w.lockSchedules(ctx)
	if err != nil {
		return Schedule{}, err
	}
	s, err := w.Schedule(ctx, id)
	if err != nil || s.Paused == paused {
		return s, err
	}
	c, err := ParseCron(s.Cron, s.Timezone)
	if err != nil {
		return s, err
	}
	var next *time.Time
	if !paused {
		next = s.first(c, limits.Now)
	}
	_, err = w.tx.ExecContext(ctx, `UPDATE schedules SET paused = $3, next_at = $4, version = version + 1, updated_at = now() WHERE workspace_id = $1 AND id = $2`,
		w.Workspace, id, paused, next)
	if err != nil {
		return s, fmt.Errorf("switch schedule %s: %w", id, err)
	}
	return w.Schedule(ctx, id)
}

func sameTime(a, b *time.Time) bool {
	return a == b || a != nil && b != nil && a.Equal(*b)
}

// DeleteSchedule removes a schedule with the list of its runs. The tasks that it has sent stay.
func (w *Work) DeleteSchedule(ctx context.Context, id uuid.UUID) error {
	done, err := w.tx.ExecContext(ctx, `DELETE FROM schedules WHERE workspace_id = $1 AND id = $2`, w.Workspace, id)
	if err != nil {
		return fmt.Errorf("delete schedule %s: %w", id, err)
	}
	if n, err := done.RowsAffected(); err != nil || n == 0 {
		return noSuchSchedule(err)
	}
	if _, err := w.tx.ExecContext(ctx, `DELETE FROM schedule_runs WHERE workspace_id = $1 AND schedule_id = $2`, w.Workspace, id); err != nil {
		return fmt.Errorf("delete runs of schedule %s: %w", id, err)
	}
	return nil
}

func noSuchSchedule(err error) error {
	if err != nil {
		return fmt.Errorf("count deleted schedules: %w", err)
	}
	return refuse(NotFound, "no such schedule")
}

// Schedule reads one schedule as this transaction sees it.
func (w *Work) Schedule(ctx context.Context, id uuid.UUID) (Schedule, error) {
	var s Schedule
	err := w.tx.GetContext(ctx, &s, `SELECT `+scheduleColumns+` FROM schedules WHERE workspace_id = $1 AND id = $2`, w.Workspace, id)
	if err != nil {
		return s, noRows(fmt.Errorf("read schedule: %w", err), "schedule")
	}
	return s, nil
}

// Schedule reads one schedule of the workspace.
func (a *API) Schedule(ctx context.Context, ws, id uuid.UUID) (s Schedule, err error) {
	err = a.inWorkspace(ctx, ws, func(tx *sqlx.Tx) (err error) {
		s, err = (&Work{Workspace: ws, tx: tx}).Schedule(ctx, id)
		return err
	})
	return s, err
}

// Schedules lists the workspace's schedules without their prompts and inputs, newest first, those below the id before
// (uuid.Nil: from the start).
func (a *API) Schedules(ctx context.Context, ws, before uuid.UUID, limit int) ([]Schedule, error) {
	list := []Schedule{}
	err := a.inWorkspace(ctx, ws, func(tx *sqlx.Tx) error {
		return tx.SelectContext(ctx, &list, `SELECT `+scheduleListColumns+` FROM schedules WHERE workspace_id = $1 AND id < $2 ORDER BY id DESC LIMIT $3`, ws, orMax(before), limit)
	})
	if err != nil {
		return nil, fmt.Errorf("list schedules: %w", err)
	}
	return list, nil
}

// ScheduleRun is what became of an occurrence, or of a span of missed ones.
type ScheduleRun struct {
	Occurrence  time.Time     `db:"occurrence"`
	Until       time.Time     `db:"until"`       // the last of the span; of a single one the same
	Occurrences int           `db:"occurrences"` // in the span
	Outcome     string        `db:"outcome"`     // RunSent or RunMissed
	Reason      string        `db:"reason"`      // why it was missed
	TaskID      uuid.NullUUID `db:"task_id"`     // of one that was sent; the task may have been removed since
	At          time.Time     `db:"at"`          // when it was decided
}

// ScheduleRuns lists what became of a schedule's occurrences, newest first, those before a moment (nil: from the start). A
// schedule that is not the workspace's is NotFound. Runs are kept for 30 days.
func (a *API) ScheduleRuns(ctx context.Context, ws, id uuid.UUID, before *time.Time, limit int) ([]ScheduleRun, error) {
	list := []ScheduleRun{}
	err := a.inWorkspace(ctx, ws, func(tx *sqlx.Tx) error {
		var exists bool
		if err := tx.GetContext(ctx, &exists, `SELECT EXISTS (SELECT 1 FROM schedules WHERE workspace_id = $1 AND id = $2)`, ws, id); err != nil {
			return err
		}
		if !exists {
			return noSuchSchedule(nil)
		}
		return tx.SelectContext(ctx, &list, `SELECT occurrence, until, occurrences, outcome, reason, task_id, at FROM schedule_runs
			WHERE workspace_id = $1 AND schedule_id = $2 AND occurrence < coalesce($3::timestamptz, 'infinity') ORDER BY occurrence DESC LIMIT $4`, ws, id, before, limit)
	})
	if err != nil && KindOf(err) == 0 {
		return nil, fmt.Errorf("list runs of schedule %s: %w", id, err)
	}
	return list, err
}
