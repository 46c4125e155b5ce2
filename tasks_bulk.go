package main

import (
	"context"
	"flag"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/jobs"
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

// chosen is the filter, once the flags are read.
func (ch *choice) chosen() (store.EndedFilter, error) {
	f := ch.filter
	if ch.since < 0 {
		return f, misuse("--since is %s; want a positive time", ch.since)
	}
	if ch.since > 0 {
		after := time.Now().Add(-ch.since)
		f.FinishedAfter = &after
	}
	for _, text := range ch.tasks {
		id, ok := store.ParseID(store.TaskPrefix, text)
		if !ok {
			return f, misuse("%q is no task; want an id such as task_0190…", text)
		}
		f.IDs = append(f.IDs, id)
	}
	return f, nil
}

func deadLettersList(ctx context.Context, c *cli, args []string) error {
	set := flag.NewFlagSet("muster tasks dead-letters list WS", flag.ContinueOnError)
	asJSON := set.Bool("json", false, "print JSON")
	limit := set.Int("limit", 50, "how many, what failed last first, 1 to 1000")
	var ch choice
	ch.add(set)
	positional, err := c.flags(set, args, 1, 1)
	if err != nil {
		return err
	}
	if *limit < 1 || *limit > 1000 {
		return misuse("--limit is %d; want 1 to 1000", *limit)
	}
	filter, err := ch.chosen()
	if err != nil {
		return err
	}
	tasks, ws, _, done, err := c.openTasks(ctx, positional[0], "dead_letters.read", "")
	if err != nil {
		return err
	}
	defer done()
	list, err := tasks.DeadLetters(ctx, ws, filter, nil, *limit)
	if err != nil {
		return err
	}
	shown := make([]taskJSON, len(list))
	for i, t := range list {
		shown[i] = showTask(t.Task)
	}
	if *asJSON {
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
	set := flag.NewFlagSet("muster tasks "+name+" WS", flag.ContinueOnError)
	asJSON := set.Bool("json", false, "print JSON")
	yes := set.Bool("yes", false, "do it; without, only say how many match")
	ch := choice{filter: store.EndedFilter{Status: status}}
	ch.add(set)
	if status == "" {
		set.StringVar(&ch.filter.Status, "status", "", "only these: failed, canceled")
	}
	positional, err := c.flags(set, args, 1, 1)
	if err != nil {
		return err
	}
	filter, err := ch.chosen()
	if err != nil {
		return err
	}
	switch filter.Status {
	case "", store.StatusFailed, store.StatusCanceled:
	default:
		return misuse("--status is %q; want failed or canceled", filter.Status)
	}
	tasks, ws, cfg, done, err := c.openTasks(ctx, positional[0], "", "")
	if err != nil {
		return err
	}
	defer done()
	report := bulkJSON{Dry: !*yes}
	if report.Matching, err = tasks.CountEnded(ctx, ws, filter); err != nil {
		return err
	}
	for more := *yes; more; {
		var bulk store.Bulk
		err := c.workOn(ctx, tasks, ws, cfg, action, "", func(w *store.Work) (details map[string]any, err error) {
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
	return c.printBulk(report, *asJSON)
}

func tasksCancelAll(ctx context.Context, c *cli, args []string) error {
	set := flag.NewFlagSet("muster tasks cancel-all WS", flag.ContinueOnError)
	asJSON := set.Bool("json", false, "print JSON")
	yes := set.Bool("yes", false, "do it; without, only say how many match")
	status := set.String("status", "", "only these: scheduled, queued, running")
	agent := set.String("agent", "", "only this agent's")
	positional, err := c.flags(set, args, 1, 1)
	if err != nil {
		return err
	}
	switch *status {
	case "", store.StatusScheduled, store.StatusQueued, store.StatusRunning:
	default:
		return misuse("--status is %q; want scheduled, queued or running", *status)
	}
	tasks, ws, cfg, done, err := c.openTasks(ctx, positional[0], "", "")
	if err != nil {
		return err
	}
	defer done()
	filter := store.CancelFilter{Status: *status, Agent: *agent}
	report := bulkJSON{Dry: !*yes}
	if report.Matching, err = tasks.CountCancelable(ctx, ws, filter); err != nil {
		return err
	}
	if *yes {
		err := c.workOn(ctx, tasks, ws, cfg, "tasks.cancel", "", func(w *store.Work) (details map[string]any, err error) {
			report.Changed, err = w.CancelMatching(ctx, filter)
			return map[string]any{"status": *status, "agent": *agent, "count": report.Changed}, err
		})
		if err != nil {
			return err
		}
	}
	return c.printBulk(report, *asJSON)
}

func (c *cli) printBulk(r bulkJSON, asJSON bool) error {
	if asJSON {
		return printJSON(c.stdout, r)
	}
	if r.Dry {
		fmt.Fprintf(c.stdout, "%d tasks match; nothing was changed (--yes does it)\n", r.Matching)
		return nil
	}
	fmt.Fprintf(c.stdout, "%d tasks changed of %d that matched\n", r.Changed, r.Matching)
	return nil
}

// workOn changes tasks of a workspace with one audit entry about target, and tells Redis.
func (c *cli) workOn(ctx context.Context, tasks *store.API, ws uuid.UUID, cfg Config, action, target string, change func(*store.Work) (map[string]any, error)) error {
	result, err := tasks.Do(ctx, store.Scope{Workspace: ws}, nil, func(w *store.Work) (store.Answer, error) {
		details, err := change(w)
		if err != nil {
			return store.Answer{}, err
		}
		return store.Answer{}, w.Audit(store.AuditEntry{ActorType: store.ActorOperator, ActorID: operator().Name, Action: action, Target: target, Details: details})
	})
	if err != nil {
		return err
	}
	if err := c.enqueue(cfg, result.Turns); err != nil {
		return err
	}
	if len(result.Cancels) > 0 && cfg.Redis.RedisConnOpt != nil {
		if rdb, err := jobs.NewRedis(cfg.Redis); err == nil { // the fast path; the worker's beat is the sure one
			defer rdb.Close()
			_ = jobs.PublishCancels(ctx, rdb, result.Cancels...)
		}
	}
	return nil
}
