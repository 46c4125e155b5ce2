package main

import (
	"context"
	"flag"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

// Operators' commands on the cron schedules of one workspace. What they send is the customer's and is not shown.

func runSchedules(ctx context.Context, c *cli, args []string) error {
	return c.subcommand(ctx, "schedules", args, map[string]func(context.Context, *cli, []string) error{
		"list": schedulesList, "show": schedulesShow, "pause": schedulesPause, "resume": schedulesResume, "delete": schedulesDelete,
	})
}

// scheduleJSON is a schedule as --json prints it.
type scheduleJSON struct {
	ID         string            `json:"id"`
	Name       string            `json:"name"`
	Status     string            `json:"status"` // active, paused or ended
	Cron       string            `json:"cron"`
	Timezone   string            `json:"timezone"`
	MissedRuns string            `json:"missed_runs"`
	Overlap    string            `json:"overlap"`
	StartsAt   *time.Time        `json:"starts_at"`
	EndsAt     *time.Time        `json:"ends_at"`
	NextAt     *time.Time        `json:"next_at"`
	LastAt     *time.Time        `json:"last_at"`
	LastTask   *string           `json:"last_task_id"`
	Agent      string            `json:"agent"`
	Model      string            `json:"model"`
	CreatedAt  time.Time         `json:"created_at"`
	Runs       []scheduleRunJSON `json:"runs,omitempty"` // the last ones, newest first
}

type scheduleRunJSON struct {
	Occurrence  time.Time `json:"occurrence"`
	Occurrences int       `json:"occurrences"` // of a span of missed ones
	Outcome     string    `json:"outcome"`
	Reason      string    `json:"reason,omitempty"`
	Task        *string   `json:"task_id"`
	At          time.Time `json:"decided_at"`
}

// shownRuns is how many runs show lists.
const shownRuns = 20

func showSchedule(s store.Schedule) scheduleJSON {
	shown := scheduleJSON{ID: store.FormatID(store.SchedulePrefix, s.ID), Name: s.Name, Status: "active", Cron: s.Cron, Timezone: s.Timezone, MissedRuns: s.MissedRuns,
		Overlap: s.Overlap, StartsAt: s.StartsAt, EndsAt: s.EndsAt, NextAt: s.NextAt, LastAt: s.LastAt, LastTask: taskOrNil(s.LastTaskID), Agent: s.Agent,
		Model: s.Model, CreatedAt: s.CreatedAt.UTC()}
	switch {
	case s.Paused:
		shown.Status = "paused"
	case s.NextAt == nil:
		shown.Status = "ended"
	}
	return shown
}

func taskOrNil(id uuid.NullUUID) *string {
	if !id.Valid {
		return nil
	}
	return ptr(store.FormatID(store.TaskPrefix, id.UUID))
}

func schedulesList(ctx context.Context, c *cli, args []string) error {
	var limit int
	d, err := c.open(ctx, "schedules list WS", args, func(set *flag.FlagSet) {
		set.IntVar(&limit, "limit", 50, "how many, newest first, 1 to 1000")
	}, func(*desk) error { return limited(limit, 1000) })
	if err != nil {
		return err
	}
	defer d.done()
	if err := d.note(ctx, "schedules.read", ""); err != nil {
		return err
	}
	list, err := d.ledger.Schedules(ctx, d.ws, uuid.Nil, limit)
	if err != nil {
		return err
	}
	shown := make([]scheduleJSON, len(list))
	for i, s := range list {
		shown[i] = showSchedule(s)
	}
	if d.json {
		return printJSON(d.stdout, shown)
	}
	tw := tabwriter.NewWriter(d.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "SCHEDULE\tNAME\tSTATUS\tCRON\tTIME ZONE\tNEXT\tLAST")
	for _, s := range shown {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", s.ID, printable(s.Name), s.Status, printable(s.Cron), printable(s.Timezone), clock(s.NextAt), clock(s.LastAt))
	}
	return tw.Flush()
}

// openSchedule opens a command on one schedule.
func (c *cli) openSchedule(ctx context.Context, name string, args []string, define func(*flag.FlagSet)) (d *desk, schedule uuid.UUID, err error) {
	d, err = c.open(ctx, "schedules "+name+" WS SCHEDULE", args, define, func(d *desk) (err error) {
		schedule, err = d.id(0, store.SchedulePrefix, "schedule")
		return err
	})
	return d, schedule, err
}

func schedulesShow(ctx context.Context, c *cli, args []string) error {
	d, id, err := c.openSchedule(ctx, "show", args, nil)
	if err != nil {
		return err
	}
	defer d.done()
	if err := d.note(ctx, "schedule.read", d.args[0]); err != nil {
		return err
	}
	return d.printSchedule(ctx, id)
}

func (d *desk) printSchedule(ctx context.Context, id uuid.UUID) error {
	found, err := d.ledger.Schedule(ctx, d.ws, id)
	if err != nil {
		return err
	}
	runs, err := d.ledger.ScheduleRuns(ctx, d.ws, id, nil, shownRuns)
	if err != nil {
		return err
	}
	shown := showSchedule(found)
	for _, r := range runs {
		shown.Runs = append(shown.Runs, scheduleRunJSON{Occurrence: r.Occurrence.UTC(), Occurrences: r.Occurrences, Outcome: r.Outcome, Reason: r.Reason, Task: taskOrNil(r.TaskID), At: r.At.UTC()})
	}
	if d.json {
		return printJSON(d.stdout, shown)
	}
	fmt.Fprintf(d.stdout, "%s  %s  %s  %s in %s  agent %s\nmissed runs %s, overlap %s, from %s to %s, next %s\n", shown.ID, printable(shown.Name), shown.Status,
		printable(shown.Cron), printable(shown.Timezone), printable(shown.Agent), shown.MissedRuns, shown.Overlap, clock(shown.StartsAt), clock(shown.EndsAt), clock(shown.NextAt))
	tw := tabwriter.NewWriter(d.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "OCCURRENCE\tTIMES\tOUTCOME\tTASK")
	for _, r := range shown.Runs {
		task := "-"
		if r.Task != nil {
			task = *r.Task
		}
		outcome := r.Outcome
		if r.Reason != "" {
			outcome += " (" + r.Reason + ")"
		}
		fmt.Fprintf(tw, "%s\t%d\t%s\t%s\n", r.Occurrence.Format(time.RFC3339), r.Occurrences, outcome, task)
	}
	return tw.Flush()
}

func schedulesPause(ctx context.Context, c *cli, args []string) error {
	return c.switchSchedule(ctx, "pause", args, true)
}

func schedulesResume(ctx context.Context, c *cli, args []string) error {
	return c.switchSchedule(ctx, "resume", args, false)
}

func (c *cli) switchSchedule(ctx context.Context, name string, args []string, paused bool) error {
	d, id, err := c.openSchedule(ctx, name, args, nil)
	if err != nil {
		return err
	}
	defer d.done()
	err = d.workOn(ctx, "schedule.update", store.FormatID(store.SchedulePrefix, id), func(w *store.Work) (map[string]any, error) {
		_, err := w.SwitchSchedule(ctx, id, paused)
		return map[string]any{"paused": paused}, err
	})
	if err != nil {
		return err
	}
	return d.printSchedule(ctx, id)
}

func schedulesDelete(ctx context.Context, c *cli, args []string) error {
	var yes bool
	d, id, err := c.openSchedule(ctx, "delete", args, func(set *flag.FlagSet) {
		set.BoolVar(&yes, "yes", false, "do it; without, only show the schedule")
	})
	if err != nil {
		return err
	}
	defer d.done()
	if !yes { // a look; a deletion is noted with what it does
		if err := d.note(ctx, "schedule.read", d.args[0]); err != nil {
			return err
		}
	}
	if err := d.printSchedule(ctx, id); err != nil || !yes {
		return err
	}
	return d.workOn(ctx, "schedule.delete", store.FormatID(store.SchedulePrefix, id), func(w *store.Work) (map[string]any, error) {
		return nil, w.DeleteSchedule(ctx, id)
	})
}
