package api

import (
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

// Cron schedules. What a schedule sends is checked as a submitted task is, when it is made and when it is changed.

type scheduleBody struct {
	Name                string       `json:"name" required:"true" minLength:"1" maxLength:"100"`
	Cron                string       `json:"cron" required:"true" maxLength:"100" description:"Five fields (minute, hour, day of month, month, day of week) or @hourly, @daily, @weekly, @monthly, @yearly. With a fixed hour each time of the day occurs once: one that the clocks skip when they are changed, at that moment; one that they show twice, at the first. With an hour field that begins with * time simply passes."`
	Timezone            string       `json:"timezone" maxLength:"64" default:"UTC" description:"IANA, as in Europe/Berlin."`
	MissedRuns          string       `json:"missed_runs" enum:"skip,run_once,run_all" default:"run_once" description:"What happens to occurrences that were due for more than a minute while nobody could fire them: none is made up, the last, or each of the newest 100."`
	Overlap             string       `json:"overlap" enum:"allow,skip" default:"allow" description:"While the last task has not ended: send the next all the same, or miss the occurrence."`
	Paused              bool         `json:"paused" description:"Nothing occurs until it is resumed."`
	StartsAt            *time.Time   `json:"starts_at" description:"No occurrence before."`
	EndsAt              *time.Time   `json:"ends_at" description:"No occurrence after."`
	ExpiresAfterSeconds *int         `json:"expires_after_seconds" minimum:"1" maximum:"2592000" description:"expires_at of its tasks, counted from the occurrence; never when absent."`
	Task                taskTemplate `json:"task" required:"true"`
}

// schedulePatch changes what it names, as a JSON merge patch (RFC 7396), but that a task is replaced whole.
type schedulePatch struct {
	Name                *string       `json:"name" minLength:"1" maxLength:"100" nullable:"false"`
	Cron                *string       `json:"cron" minLength:"1" maxLength:"100" nullable:"false"`
	Timezone            *string       `json:"timezone" minLength:"1" maxLength:"64" nullable:"true" description:"null: UTC."`
	MissedRuns          *string       `json:"missed_runs" enum:"skip,run_once,run_all" nullable:"true" description:"null: run_once."`
	Overlap             *string       `json:"overlap" enum:"allow,skip" nullable:"true" description:"null: allow."`
	Paused              *bool         `json:"paused" nullable:"true" description:"true pauses, false and null resume: it then occurs from now on."`
	StartsAt            *time.Time    `json:"starts_at" nullable:"true" description:"null: any time."`
	EndsAt              *time.Time    `json:"ends_at" nullable:"true" description:"null: never."`
	ExpiresAfterSeconds *int          `json:"expires_after_seconds" minimum:"0" maximum:"2592000" nullable:"true" description:"0 and null: its tasks do not expire."`
	Task                *taskTemplate `json:"task" nullable:"false" description:"Replaces the whole task."`
}

// scheduleItemJSON is a schedule in a list.
type scheduleItemJSON struct {
	ID                  string           `json:"id"`
	Name                string           `json:"name"`
	Status              string           `json:"status" enum:"active,paused,ended" description:"ended: it does not occur any more."`
	Cron                string           `json:"cron"`
	Timezone            string           `json:"timezone"`
	MissedRuns          string           `json:"missed_runs" enum:"skip,run_once,run_all"`
	Overlap             string           `json:"overlap" enum:"allow,skip"`
	Paused              bool             `json:"paused"`
	StartsAt            *time.Time       `json:"starts_at"`
	EndsAt              *time.Time       `json:"ends_at"`
	ExpiresAfterSeconds *int             `json:"expires_after_seconds"`
	NextRuns            []time.Time      `json:"next_runs" description:"Up to five."`
	LastRunAt           *time.Time       `json:"last_run_at" description:"The last occurrence, sent or missed."`
	LastTaskID          *string          `json:"last_task_id"`
	CreatedAt           time.Time        `json:"created_at"`
	UpdatedAt           time.Time        `json:"updated_at"`
	CreatedBy           *string          `json:"created_by" description:"A user (usr_...) or an API key (key_...); its tasks bear the same."`
	Task                templateItemJSON `json:"task" description:"Without prompt and input."`
}

type templateItemJSON struct {
	Agent          string            `json:"agent"`
	Model          string            `json:"model"`
	Priority       int               `json:"priority"`
	TimeoutSeconds int               `json:"timeout_seconds"`
	MaxAttempts    int               `json:"max_attempts"`
	Metadata       map[string]string `json:"metadata" nullable:"false"`
}

// scheduleJSON is a schedule as such.
type scheduleJSON struct {
	scheduleItemJSON
	Task templateJSON `json:"task"`
}

type templateJSON struct {
	templateItemJSON
	Prompt string     `json:"prompt"`
	Input  jsonObject `json:"input"`
}

type scheduleRunJSON struct {
	Occurrence  time.Time `json:"occurrence"`
	Until       time.Time `json:"until" description:"The last of a span of missed occurrences; otherwise the same."`
	Occurrences int       `json:"occurrences" description:"How many the span has."`
	Outcome     string    `json:"outcome" enum:"sent,missed"`
	Reason      *string   `json:"reason" description:"Why it was missed: late, overlap, backlog_full, unknown_agent or model_not_allowed."`
	TaskID      *string   `json:"task_id"`
	DecidedAt   time.Time `json:"decided_at"`
}

type listRunsParams struct {
	ID string `path:"id"`
	pageParams
}

// nextRuns is how many a schedule shows.
const nextRuns = 5

// checkTimes adds what struct tags cannot say about a schedule's span.
func checkTimes(starts, ends *time.Time, f *faults) {
	if starts != nil && ends != nil && !ends.After(*starts) {
		f.wrong("ends_at", "must be after starts_at")
	}
}

func (s *Server) createSchedule(q *request) (answer, error) {
	body, err := bind(q, func(b *scheduleBody, f *faults) {
		b.Task.check("task.", f)
		setDefault(&b.Timezone, "UTC")
		setDefault(&b.MissedRuns, store.MissedRunOnce)
		setDefault(&b.Overlap, store.OverlapAllow)
		if b.Name = strings.TrimSpace(b.Name); b.Name == "" {
			f.wrong("name", "must not be empty")
		}
		checkTimes(b.StartsAt, b.EndsAt, f)
	})
	if err != nil {
		return answer{}, err
	}
	return s.work(q, true, func(w *store.Work) (answer, error) {
		if err := s.maySend(q, w, &body.Task); err != nil {
			return answer{}, err
		}
		spec := store.ScheduleSpec{Name: body.Name, Cron: body.Cron, Timezone: body.Timezone, MissedRuns: body.MissedRuns, Overlap: body.Overlap,
			Paused: body.Paused, StartsAt: body.StartsAt, EndsAt: body.EndsAt, ExpiresAfterMS: secondsToMS(body.ExpiresAfterSeconds)}
		t := body.Task.task(q.id)
		setTemplate(&spec, t)
		spec.APIKeyID, spec.UserID = t.APIKeyID, t.UserID
		made, err := w.CreateSchedule(q.ctx, spec)
		if err != nil {
			return answer{}, err
		}
		j := scheduleOf(made)
		return answer{status: http.StatusCreated, headers: map[string]string{"Location": "/v1/schedules/" + j.ID}, body: j},
			q.audit(w, "schedule.create", j.ID, map[string]any{"cron": made.Cron, "timezone": made.Timezone})
	})
}

// maySend refuses a task that could not be submitted now.
func (s *Server) maySend(q *request, w *store.Work, t *taskTemplate) error {
	if err := s.mayRun(q, w.Allowance, t.Model); err != nil {
		return err
	}
	unknown, err := w.UnknownAgents(q.ctx, []string{t.Agent})
	if err != nil {
		return err
	}
	if unknown[t.Agent] {
		return invalid(fieldError{Field: "task.agent", Detail: "no agent is called " + clip(t.Agent)})
	}
	return nil
}

// setTemplate takes over what the schedule is to send.
func setTemplate(spec *store.ScheduleSpec, t store.NewTask) {
	spec.Agent, spec.Model, spec.Prompt, spec.Input, spec.Metadata = t.Agent, t.Model, t.Prompt, t.Input, t.Metadata
	spec.Priority, spec.TimeoutMS, spec.MaxAttempts = t.Priority, t.TimeoutMS, t.MaxAttempts
}

// secondsToMS writes nil and 0 as never.
func secondsToMS(seconds *int) *int64 {
	if seconds == nil || *seconds == 0 {
		return nil
	}
	return ptr(int64(*seconds) * 1000)
}

func (s *Server) patchSchedule(q *request) (answer, error) {
	id, err := q.pathID(store.SchedulePrefix, "schedule")
	if err != nil {
		return answer{}, err
	}
	body, err := bind(q, func(b *schedulePatch, f *faults) {
		if b.Task != nil {
			b.Task.check("task.", f)
		}
		if b.Name != nil {
			if *b.Name = strings.TrimSpace(*b.Name); *b.Name == "" {
				f.wrong("name", "must not be empty")
			}
		}
		if *b == (schedulePatch{}) && f.err() == nil {
			f.wrong("name", "nothing is to change")
		}
	})
	if err != nil {
		return answer{}, err
	}
	return s.work(q, true, func(w *store.Work) (answer, error) {
		if body.Task != nil {
			if err := s.maySend(q, w, body.Task); err != nil {
				return answer{}, err
			}
		}
		changed, err := w.UpdateSchedule(q.ctx, id, func(spec *store.ScheduleSpec) error { return body.apply(spec, q.id) })
		if err != nil {
			return answer{}, err
		}
		return answer{status: http.StatusOK, body: scheduleOf(changed)}, q.audit(w, "schedule.update", store.FormatID(store.SchedulePrefix, id),
			map[string]any{"cron": changed.Cron, "timezone": changed.Timezone, "paused": changed.Paused, "task_replaced": body.Task != nil})
	})
}

// apply changes what the patch names.
func (b *schedulePatch) apply(spec *store.ScheduleSpec, id *identity) error {
	replace(&spec.Name, b.Name)
	replace(&spec.Cron, b.Cron)
	replace(&spec.Timezone, b.Timezone)
	setDefault(&spec.Timezone, "UTC")
	replace(&spec.MissedRuns, b.MissedRuns)
	setDefault(&spec.MissedRuns, store.MissedRunOnce)
	replace(&spec.Overlap, b.Overlap)
	setDefault(&spec.Overlap, store.OverlapAllow)
	replace(&spec.Paused, b.Paused)
	replaceTime(&spec.StartsAt, b.StartsAt)
	replaceTime(&spec.EndsAt, b.EndsAt)
	if b.ExpiresAfterSeconds != nil {
		spec.ExpiresAfterMS = secondsToMS(b.ExpiresAfterSeconds)
	}
	if b.Task != nil {
		setTemplate(spec, b.Task.task(id))
	}
	f := &faults{}
	checkTimes(spec.StartsAt, spec.EndsAt, f)
	return f.err()
}

func replace[T any](field, with *T) {
	if with != nil {
		*field = *with
	}
}

// replaceTime writes the zero time, a patch's null, as none.
func replaceTime(field **time.Time, with *time.Time) {
	if with != nil {
		if *field = with; with.IsZero() {
			*field = nil
		}
	}
}

func (s *Server) deleteSchedule(q *request) (answer, error) {
	id, err := q.bareID(store.SchedulePrefix, "schedule")
	if err != nil {
		return answer{}, err
	}
	return s.work(q, true, func(w *store.Work) (answer, error) {
		if err := w.DeleteSchedule(q.ctx, id); err != nil {
			return answer{}, err
		}
		return answer{status: http.StatusNoContent}, q.audit(w, "schedule.delete", store.FormatID(store.SchedulePrefix, id), nil)
	})
}

func (s *Server) getSchedule(q *request) (answer, error) {
	id, err := q.pathID(store.SchedulePrefix, "schedule")
	if err != nil {
		return answer{}, err
	}
	found, err := s.Store.Schedule(q.ctx, q.id.Workspace, id)
	return answer{status: http.StatusOK, body: scheduleOf(found)}, err
}

func (s *Server) listSchedules(q *request) (answer, error) {
	p, err := params[pageParams](q, nil)
	if err != nil {
		return answer{}, err
	}
	return listPage(s, q, "schedules", p, func(before uuid.UUID, n int) ([]store.Schedule, error) {
		return s.Store.Schedules(q.ctx, q.id.Workspace, before, n)
	}, func(c store.Schedule) uuid.UUID { return c.ID }, scheduleItemOf)
}

func (s *Server) listScheduleRuns(q *request) (answer, error) {
	id, err := q.pathID(store.SchedulePrefix, "schedule")
	if err != nil {
		return answer{}, err
	}
	p, err := params[listRunsParams](q, nil)
	if err != nil {
		return answer{}, err
	}
	return listPage(s, q, "schedule runs "+id.String(), p.pageParams, func(before *time.Time, n int) ([]store.ScheduleRun, error) {
		return s.Store.ScheduleRuns(q.ctx, q.id.Workspace, id, before, n)
	}, func(r store.ScheduleRun) *time.Time { return &r.Occurrence }, scheduleRunOf)
}

func scheduleItemOf(c store.Schedule) scheduleItemJSON {
	j := scheduleItemJSON{ID: store.FormatID(store.SchedulePrefix, c.ID), Name: c.Name, Status: "active", Cron: c.Cron, Timezone: c.Timezone,
		MissedRuns: c.MissedRuns, Overlap: c.Overlap, Paused: c.Paused, StartsAt: utc(c.StartsAt), EndsAt: utc(c.EndsAt), NextRuns: c.NextRuns(nextRuns),
		LastRunAt: utc(c.LastAt), CreatedAt: c.CreatedAt.UTC(), UpdatedAt: c.UpdatedAt.UTC(),
		Task: templateItemJSON{Agent: c.Agent, Model: c.Model, Priority: c.Priority, TimeoutSeconds: c.TimeoutMS / 1000, MaxAttempts: c.MaxAttempts, Metadata: map[string]string{}}}
	_ = json.Unmarshal(c.Metadata, &j.Task.Metadata) // our own rows: strings by the check at the request
	switch {
	case c.Paused:
		j.Status = "paused"
	case c.NextAt == nil:
		j.Status = "ended"
	}
	if c.ExpiresAfterMS != nil {
		j.ExpiresAfterSeconds = ptr(int(*c.ExpiresAfterMS / 1000))
	}
	if c.LastTaskID.Valid {
		j.LastTaskID = ptr(store.FormatID(store.TaskPrefix, c.LastTaskID.UUID))
	}
	switch {
	case c.APIKeyID.Valid:
		j.CreatedBy = ptr(store.FormatID(store.KeyPrefix, c.APIKeyID.UUID))
	case c.UserID.Valid:
		j.CreatedBy = ptr(store.FormatID(store.UserPrefix, c.UserID.UUID))
	}
	return j
}

func scheduleOf(c store.Schedule) scheduleJSON {
	item := scheduleItemOf(c)
	return scheduleJSON{scheduleItemJSON: item, Task: templateJSON{templateItemJSON: item.Task, Prompt: c.Prompt, Input: jsonObject{c.Input}}}
}

func scheduleRunOf(r store.ScheduleRun) scheduleRunJSON {
	j := scheduleRunJSON{Occurrence: r.Occurrence.UTC(), Until: r.Until.UTC(), Occurrences: r.Occurrences, Outcome: r.Outcome, DecidedAt: r.At.UTC()}
	if r.Reason != "" {
		j.Reason = &r.Reason
	}
	if r.TaskID.Valid {
		j.TaskID = ptr(store.FormatID(store.TaskPrefix, r.TaskID.UUID))
	}
	return j
}
