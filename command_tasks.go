package main

import (
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

// Operators' commands on the tasks of one workspace: the API's own code, with the system's role.

func runTasks(ctx context.Context, c *cli, args []string) error {
	return c.subcommand(ctx, "tasks", args, map[string]func(context.Context, *cli, []string) error{
		"list": tasksList, "show": tasksShow, "retry": tasksRetry, "cancel": tasksCancel,
		"retry-all": tasksRetryAll, "cancel-all": tasksCancelAll, "dead-letters": runDeadLetters,
	})
}

// taskJSON is a task as --json prints it; content (prompt, result) is the customer's and is not shown.
type taskJSON struct {
	ID         string          `json:"id"`
	Status     string          `json:"status"`
	Agent      string          `json:"agent"`
	Model      string          `json:"model"`
	Priority   int             `json:"priority"`
	Attempt    int             `json:"attempt"`
	Max        int             `json:"max_attempts"`
	Crashes    int             `json:"crashes"`
	CreatedAt  time.Time       `json:"created_at"`
	RunAt      *time.Time      `json:"run_at"`
	StartedAt  *time.Time      `json:"started_at"`
	FinishedAt *time.Time      `json:"finished_at"`
	Error      json.RawMessage `json:"error"`
	AgentMS    int64           `json:"agent_ms"`
	Cost       int64           `json:"cost_microusd"`
	Waiting    *waitingJSON    `json:"waiting,omitempty"` // of one that waits
	Attempts   []attemptJSON   `json:"attempts,omitempty"`
}

// waitingJSON is why a task does not run, as the customer is told.
type waitingJSON struct {
	Reason   string `json:"reason"`
	Position *int   `json:"position"` // tasks of the workspace that run before it; null: it is not in line
	AtLeast  bool   `json:"at_least"` // or more
}

type attemptJSON struct {
	ID       string          `json:"id"`
	Attempt  int             `json:"attempt"`
	Worker   string          `json:"worker"`
	Outcome  string          `json:"outcome"`
	Billable bool            `json:"billable"`
	Started  time.Time       `json:"started_at"`
	AgentMS  int64           `json:"agent_ms"`
	Calls    int             `json:"provider_calls"`
	Error    json.RawMessage `json:"error"`
}

func showTask(t store.Task) taskJSON {
	return taskJSON{ID: store.FormatID(store.TaskPrefix, t.ID), Status: t.Status, Agent: t.Agent, Model: t.Model, Priority: t.Priority,
		Attempt: t.Attempt, Max: t.MaxAttempts, Crashes: t.Crashes, CreatedAt: t.CreatedAt, RunAt: t.RunAt, StartedAt: t.StartedAt,
		FinishedAt: t.FinishedAt, Error: t.Error, AgentMS: t.AgentMS, Cost: t.CostMicroUSD}
}

func tasksList(ctx context.Context, c *cli, args []string) error {
	var f store.TaskFilter
	var limit int
	d, err := c.open(ctx, "tasks list WS", args, func(set *flag.FlagSet) {
		set.StringVar(&f.Status, "status", "", "only these: scheduled, queued, running, succeeded, failed, canceled")
		set.StringVar(&f.Agent, "agent", "", "only this agent's")
		set.IntVar(&limit, "limit", 50, "how many, newest first, 1 to 1000")
	}, func(*desk) error {
		return cmp.Or(limited(limit, 1000), among("--status", f.Status, store.StatusScheduled, store.StatusQueued, store.StatusRunning,
			store.StatusSucceeded, store.StatusFailed, store.StatusCanceled))
	})
	if err != nil {
		return err
	}
	defer d.done()
	if err := d.note(ctx, "tasks.read", ""); err != nil {
		return err
	}
	var list []store.TaskView
	for before, more := uuid.Nil, true; more && len(list) < limit; more = before != uuid.Nil {
		var page []store.TaskView
		if page, before, err = d.ledger.Tasks(ctx, d.ws, f, before, limit-len(list)); err != nil {
			return err
		}
		list = append(list, page...)
	}
	shown := make([]taskJSON, len(list))
	for i, t := range list {
		shown[i] = showTask(t.Task)
	}
	if d.json {
		return printJSON(c.stdout, shown)
	}
	tw := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "TASK\tSTATUS\tAGENT\tATTEMPT\tCRASHES\tAGENT MS\tCREATED")
	for _, t := range shown {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%d/%d\t%d\t%d\t%s\n", t.ID, t.Status, printable(t.Agent), t.Attempt, t.Max, t.Crashes, t.AgentMS,
			t.CreatedAt.UTC().Format(time.RFC3339))
	}
	return tw.Flush()
}

// openTask opens a command on one task.
func (c *cli) openTask(ctx context.Context, name string, args []string) (d *desk, task uuid.UUID, err error) {
	d, err = c.open(ctx, "tasks "+name+" WS TASK", args, nil, func(d *desk) (err error) {
		task, err = d.id(0, store.TaskPrefix, "task")
		return err
	})
	return d, task, err
}

func tasksShow(ctx context.Context, c *cli, args []string) error {
	d, task, err := c.openTask(ctx, "show", args)
	if err != nil {
		return err
	}
	defer d.done()
	if err := d.note(ctx, "task.read", d.args[0]); err != nil {
		return err
	}
	return d.printTask(ctx, task)
}

func (d *desk) printTask(ctx context.Context, task uuid.UUID) error {
	view, err := d.ledger.Task(ctx, d.ws, task)
	if err != nil {
		return err
	}
	attempts, err := d.ledger.Attempts(ctx, d.ws, task, nil, 100)
	if err != nil {
		return err
	}
	shown := showTask(view.Task)
	if w := view.Waiting; w != nil {
		shown.Waiting = &waitingJSON{Reason: w.Reason, AtLeast: w.More}
		if w.InLine {
			shown.Waiting.Position = &w.Position
		}
	}
	for _, a := range attempts {
		shown.Attempts = append(shown.Attempts, attemptJSON{ID: store.FormatID(store.AttemptPrefix, a.ID), Attempt: a.Attempt,
			Worker: store.FormatID(store.WorkerPrefix, a.Worker), Outcome: a.Outcome, Billable: a.Billable, Started: a.StartedAt,
			AgentMS: a.AgentMS, Calls: len(a.Calls), Error: a.Error})
	}
	if d.json {
		return printJSON(d.stdout, shown)
	}
	fmt.Fprintf(d.stdout, "%s  %s  agent %s  attempt %d of %d  %d ms\n", shown.ID, shown.Status, printable(shown.Agent), shown.Attempt, shown.Max, shown.AgentMS)
	if len(shown.Error) > 0 && string(shown.Error) != "null" {
		fmt.Fprintf(d.stdout, "error: %s\n", printable(string(shown.Error)))
	}
	if w := shown.Waiting; w != nil {
		fmt.Fprintf(d.stdout, "waiting: %s", w.Reason)
		if w.Position != nil {
			fmt.Fprintf(d.stdout, ", behind %d", *w.Position)
		}
		if w.AtLeast {
			fmt.Fprint(d.stdout, " or more")
		}
		fmt.Fprintln(d.stdout)
	}
	tw := tabwriter.NewWriter(d.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "ATTEMPT\tOUTCOME\tBILLABLE\tAGENT MS\tCALLS\tSTARTED\tWORKER")
	for _, a := range shown.Attempts {
		fmt.Fprintf(tw, "%d\t%s\t%v\t%d\t%d\t%s\t%s\n", a.Attempt, a.Outcome, a.Billable, a.AgentMS, a.Calls, a.Started.UTC().Format(time.RFC3339), a.Worker)
	}
	return tw.Flush()
}

func tasksRetry(ctx context.Context, c *cli, args []string) error {
	return c.changeTask(ctx, "retry", args, func(w *store.Work, task uuid.UUID) error { return w.Retry(ctx, task) })
}

func tasksCancel(ctx context.Context, c *cli, args []string) error {
	return c.changeTask(ctx, "cancel", args, func(w *store.Work, task uuid.UUID) error {
		_, err := w.Cancel(ctx, task)
		return err
	})
}

// changeTask changes a task with its audit entry, tells Redis, and prints the task as it is afterwards.
func (c *cli) changeTask(ctx context.Context, name string, args []string, change func(*store.Work, uuid.UUID) error) error {
	d, task, err := c.openTask(ctx, name, args)
	if err != nil {
		return err
	}
	defer d.done()
	err = d.workOn(ctx, "task."+name, store.FormatID(store.TaskPrefix, task), func(w *store.Work) (map[string]any, error) {
		return nil, change(w, task)
	})
	if err != nil {
		return err
	}
	return d.printTask(ctx, task)
}
