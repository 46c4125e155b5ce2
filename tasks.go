package main

import (
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
	Attempts   []attemptJSON   `json:"attempts,omitempty"`
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

// openTasks connects with the system's role, through the API's side of the store. read names what is about to be looked at,
// of a task or (empty) of all, and is noted; empty: nothing is.
func (c *cli) openTasks(ctx context.Context, workspace, read, task string) (*store.API, uuid.UUID, Config, func(), error) {
	ws, err := parseWorkspace(workspace)
	if err != nil {
		return nil, ws, Config{}, nil, err
	}
	system, cfg, done, err := c.openSystem(ctx)
	if err != nil {
		return nil, ws, cfg, nil, err
	}
	if read != "" {
		if err := system.Note(ctx, ws, operator(), read, task, nil); err != nil {
			done()
			return nil, ws, cfg, nil, err
		}
	}
	return store.NewAPI(system.DB()), ws, cfg, done, nil
}

func tasksList(ctx context.Context, c *cli, args []string) error {
	set := flag.NewFlagSet("muster tasks list WS", flag.ContinueOnError)
	asJSON := set.Bool("json", false, "print JSON")
	status := set.String("status", "", "only these: scheduled, queued, running, succeeded, failed, canceled")
	agent := set.String("agent", "", "only this agent's")
	limit := set.Int("limit", 50, "how many, newest first, 1 to 1000")
	positional, err := c.flags(set, args, 1, 1)
	if err != nil {
		return err
	}
	if *limit < 1 || *limit > 1000 {
		return misuse("--limit is %d; want 1 to 1000", *limit)
	}
	switch *status {
	case "", store.StatusScheduled, store.StatusQueued, store.StatusRunning, store.StatusSucceeded, store.StatusFailed, store.StatusCanceled:
	default:
		return misuse("--status is %q; want scheduled, queued, running, succeeded, failed or canceled", *status)
	}
	tasks, ws, _, done, err := c.openTasks(ctx, positional[0], "tasks.read", "")
	if err != nil {
		return err
	}
	defer done()
	list, err := tasks.Tasks(ctx, ws, store.TaskFilter{Status: *status, Agent: *agent}, uuid.Nil, *limit)
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
	fmt.Fprintln(tw, "TASK\tSTATUS\tAGENT\tATTEMPT\tCRASHES\tAGENT MS\tCREATED")
	for _, t := range shown {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%d/%d\t%d\t%d\t%s\n", t.ID, t.Status, printable(t.Agent), t.Attempt, t.Max, t.Crashes, t.AgentMS,
			t.CreatedAt.UTC().Format(time.RFC3339))
	}
	return tw.Flush()
}

// oneTask parses WS TASK and connects.
func (c *cli) oneTask(ctx context.Context, name string, args []string) (tasks *store.API, ws, task uuid.UUID, cfg Config, asJSON bool, done func(), err error) {
	set := flag.NewFlagSet("muster tasks "+name+" WS TASK", flag.ContinueOnError)
	json := set.Bool("json", false, "print JSON")
	positional, err := c.flags(set, args, 2, 2)
	if err != nil {
		return
	}
	var ok bool
	if task, ok = store.ParseID(store.TaskPrefix, positional[1]); !ok {
		err = misuse("%q is no task; want an id such as task_0190…", positional[1])
		return
	}
	read := ""
	if name == "show" {
		read = "task.read"
	}
	tasks, ws, cfg, done, err = c.openTasks(ctx, positional[0], read, positional[1])
	return tasks, ws, task, cfg, *json, done, err
}

func tasksShow(ctx context.Context, c *cli, args []string) error {
	tasks, ws, task, _, asJSON, done, err := c.oneTask(ctx, "show", args)
	if err != nil {
		return err
	}
	defer done()
	return c.printTask(ctx, tasks, ws, task, asJSON)
}

func (c *cli) printTask(ctx context.Context, tasks *store.API, ws, task uuid.UUID, asJSON bool) error {
	view, err := tasks.Task(ctx, ws, task)
	if err != nil {
		return err
	}
	attempts, err := tasks.Attempts(ctx, ws, task, nil, 100)
	if err != nil {
		return err
	}
	shown := showTask(view.Task)
	for _, a := range attempts {
		shown.Attempts = append(shown.Attempts, attemptJSON{ID: store.FormatID(store.AttemptPrefix, a.ID), Attempt: a.Attempt,
			Worker: store.FormatID(store.WorkerPrefix, a.Worker), Outcome: a.Outcome, Billable: a.Billable, Started: a.StartedAt,
			AgentMS: a.AgentMS, Calls: len(a.Calls), Error: a.Error})
	}
	if asJSON {
		return printJSON(c.stdout, shown)
	}
	fmt.Fprintf(c.stdout, "%s  %s  agent %s  attempt %d of %d  %d ms\n", shown.ID, shown.Status, printable(shown.Agent), shown.Attempt, shown.Max, shown.AgentMS)
	if len(shown.Error) > 0 && string(shown.Error) != "null" {
		fmt.Fprintf(c.stdout, "error: %s\n", printable(string(shown.Error)))
	}
	tw := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
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
	tasks, ws, task, cfg, asJSON, done, err := c.oneTask(ctx, name, args)
	if err != nil {
		return err
	}
	defer done()
	err = c.workOn(ctx, tasks, ws, cfg, "task."+name, store.FormatID(store.TaskPrefix, task), func(w *store.Work) (map[string]any, error) {
		return nil, change(w, task)
	})
	if err != nil {
		return err
	}
	return c.printTask(ctx, tasks, ws, task, asJSON)
}
