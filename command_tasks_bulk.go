package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/generic-corp/muster/store"
)

// Operators' commands on many tasks of one workspace: dead letters, and retries and cancels in bulk. What changes many is dry
// until it is told --yes: it then says how many it would take.

func runDeadLetters(ctx context.Context, c *cli, args []string) error {
	return c.subcommand(ctx, "tasks dead-letters", args, map[string]func(context.Context, *cli, []string) error{
		"list": deadLettersList, "replay": deadLettersReplay, "drop": deadLettersDrop,
	})
}

// choice is what chooses ended tasks on the command line.
type choice struct {
	filter store.EndedFilter
	tasks  []string
	since  time.Duration
}

// add defines the flags.
func (ch *choice) add(set *flag.FlagSet) {
	set.StringVar(&ch.filter.Agent, "agent", "", "only this agent's")
	set.StringVar(&ch.filter.ErrorCode, "error-code", "", "only those that ended with this error code")
	set.DurationVar(&ch.since, "since", 0, "only those that ended within this time, such as 24h")
	set.Func("task", "only this task; may stand several times", func(id string) error {
		ch.tasks = append(ch.tasks, id)
		return nil
	})
}

// complete fills in the filter, once the flags are read.
func (ch *choice) complete() error {
	if ch.since < 0 {
		return misuse("--since is %s; want a positive time", ch.since)
	}
	if ch.since > 0 {
		after := time.Now().Add(-ch.since)
		ch.filter.FinishedAfter = &after
	}
	for _, text := range ch.tasks {
		id, ok := store.ParseID(store.TaskPrefix, text)
		if !ok {
			return misuse("%q is no task; want an id such as task_0190…", text)
		}
		ch.filter.IDs = append(ch.filter.IDs, id)
	}
	return nil
}

func deadLettersList(ctx context.Context, c *cli, args []string) error {
	var ch choice
	var limit int
	d, err := c.open(ctx, "tasks dead-letters list WS", args, func(set *flag.FlagSet) {
		set.IntVar(&limit, "limit", 50, "how many, what failed last first, 1 to 1000")
		ch.add(set)
	}, func(*desk) error { return cmp.Or(limited(limit, 1000), ch.complete()) })
	if err != nil {
		return err
	}
	defer d.done()
	if err := d.note(ctx, "dead_letters.read", ""); err != nil {
		return err
	}
	list, err := d.ledger.DeadLetters(ctx, d.ws, ch.filter, nil, limit)
	if err != nil {
		return err
	}
	shown := make([]taskJSON, len(list))
	for i, t := range list {
		shown[i] = showTask(t.Task)
	}
	if d.json {
		return printJSON(c.stdout, shown)
	}
	tw := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "TASK\tAGENT\tATTEMPT\tCRASHES\tFAILED\tERROR")
	for _, t := range shown {
		fmt.Fprintf(tw, "%s\t%s\t%d/%d\t%d\t%s\t%s\n", t.ID, printable(t.Agent), t.Attempt, t.Max, t.Crashes, t.FinishedAt.UTC().Format(time.RFC3339), printable(string(t.Error)))
	}
	return tw.Flush()
}

func deadLettersReplay(ctx context.Context, c *cli, args []string) error {
	return c.changeEnded(ctx, "dead-letters replay", "dead_letters.replay", args, store.StatusFailed, (*store.Work).RetryEnded)
}

func deadLettersDrop(ctx context.Context, c *cli, args []string) error {
	return c.changeEnded(ctx, "dead-letters drop", "dead_letters.drop", args, store.StatusFailed, (*store.Work).DropDeadLetters)
}

func tasksRetryAll(ctx context.Context, c *cli, args []string) error {
	return c.changeEnded(ctx, "retry-all", "tasks.retry", args, "", (*store.Work).RetryEnded)
}

// bulkJSON is what a change of many tasks prints with --json.
type bulkJSON struct {
	Matching int  `json:"matching"` // before
	Changed  int  `json:"changed"`
	Dry      bool `json:"dry"`
}

// changeEnded changes the chosen ended tasks of a workspace, each batch in a transaction of its own with its audit entry. A
// status that is given cannot be chosen.
func (c *cli) changeEnded(ctx context.Context, name, action string, args []string, status string,
	change func(*store.Work, context.Context, store.EndedFilter, int) (store.Bulk, error)) error {
	var yes bool
	ch := choice{filter: store.EndedFilter{Status: status}}
	d, err := c.open(ctx, "tasks "+name+" WS", args, func(set *flag.FlagSet) {
		set.BoolVar(&yes, "yes", false, "do it; without, only say how many match")
		ch.add(set)
		if status == "" {
			set.StringVar(&ch.filter.Status, "status", "", "only these: failed, canceled")
		}
	}, func(*desk) error {
		return cmp.Or(ch.complete(), among("--status", ch.filter.Status, store.StatusFailed, store.StatusCanceled))
	})
	if err != nil {
		return err
	}
	defer d.done()
	filter, report := ch.filter, bulkJSON{Dry: !yes}
	if report.Matching, err = d.ledger.CountEnded(ctx, d.ws, filter); err != nil {
		return err
	}
	for more := yes; more; {
		var bulk store.Bulk
		err := d.workOn(ctx, action, "", func(w *store.Work) (details map[string]any, err error) {
			bulk, err = change(w, ctx, filter, store.MaxBulk)
			return map[string]any{"status": filter.Status, "agent": filter.Agent, "error_code": filter.ErrorCode, "ids": len(filter.IDs), "count": bulk.Count}, err
		})
		if err != nil {
			if report.Changed > 0 {
				err = fmt.Errorf("after %d tasks: %w", report.Changed, err)
			}
			return err
		}
		report.Changed += bulk.Count
		more = bulk.More && report.Changed < report.Matching // what fails again meanwhile is left alone
	}
	return d.printBulk(report)
}

// tasksCancelAll goes on until all have ended, whether or not a scheduler runs, which would go on too.
func tasksCancelAll(ctx context.Context, c *cli, args []string) error {
	var yes bool
	var filter store.CancelFilter
	d, err := c.open(ctx, "tasks cancel-all WS", args, func(set *flag.FlagSet) {
		set.BoolVar(&yes, "yes", false, "do it; without, only say how many match")
		set.StringVar(&filter.Status, "status", "", "only these: scheduled, queued, running")
		set.StringVar(&filter.Agent, "agent", "", "only this agent's")
	}, func(*desk) error {
		return among("--status", filter.Status, store.StatusScheduled, store.StatusQueued, store.StatusRunning)
	})
	if err != nil {
		return err
	}
	defer d.done()
	report := bulkJSON{Dry: !yes}
	if report.Matching, err = d.ledger.CountCancelable(ctx, d.ws, filter); err != nil {
		return err
	}
	if yes {
		err := d.workOn(ctx, "tasks.cancel", "", func(w *store.Work) (details map[string]any, err error) {
			report.Changed, err = w.CancelMatching(ctx, filter)
			return map[string]any{"status": filter.Status, "agent": filter.Agent, "count": report.Changed}, err
		})
		if err != nil {
			return err
		}
		for more := true; more; {
			g, err := d.system.GoOnCanceling(ctx, d.ws)
			if err := errors.Join(err, d.enqueue(d.cfg, g.Turns)); err != nil {
				return fmt.Errorf("the scheduler will cancel the rest: %w", err)
			}
			more = g.More
		}
	}
	return d.printBulk(report)
}

func (d *desk) printBulk(r bulkJSON) error {
	if d.json {
		return printJSON(d.stdout, r)
	}
	if r.Dry {
		fmt.Fprintf(d.stdout, "%d tasks match; nothing was changed (--yes does it)\n", r.Matching)
		return nil
	}
	fmt.Fprintf(d.stdout, "%d tasks changed of %d that matched\n", r.Changed, r.Matching)
	return nil
}
