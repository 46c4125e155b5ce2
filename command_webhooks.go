package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

// Operators' commands on the webhooks of one workspace and what is sent to them. Of a URL only the host is shown: paths hold
// customers' tokens. Neither secrets nor what events tell is shown.

func runWebhooks(ctx context.Context, c *cli, args []string) error {
	return c.subcommand(ctx, "webhooks", args, map[string]func(context.Context, *cli, []string) error{
		"list": webhooksList, "enable": webhooksEnable, "disable": webhooksDisable, "test": webhooksTest,
		"deliveries": webhooksDeliveries, "replay": webhooksReplay, "replay-all": webhooksReplayAll,
	})
}

// endpointJSON is a webhook as --json prints it.
type endpointJSON struct {
	ID           string     `json:"id"`
	Host         string     `json:"host"`
	Events       []string   `json:"events"`
	Enabled      bool       `json:"enabled"`
	DisabledWhy  *string    `json:"disabled_why"`
	DisabledAt   *time.Time `json:"disabled_at"`
	FailingSince *time.Time `json:"failing_since"`
	CreatedBy    string     `json:"created_by"`
	CreatedAt    time.Time  `json:"created_at"`
}

func showEndpoint(h store.Webhook) endpointJSON {
	shown := endpointJSON{ID: store.FormatID(store.WebhookPrefix, h.ID), Events: h.Events, Enabled: h.Enabled, DisabledWhy: h.DisabledWhy, DisabledAt: h.DisabledAt,
		FailingSince: h.FailingSince, CreatedBy: h.CreatedBy, CreatedAt: h.CreatedAt.UTC()}
	if u, err := url.Parse(h.URL); err == nil {
		shown.Host = u.Host
	}
	return shown
}

func (d *desk) printEndpoints(list ...store.Webhook) error {
	shown := make([]endpointJSON, len(list))
	for i, h := range list {
		shown[i] = showEndpoint(h)
	}
	if d.json {
		return printJSON(d.stdout, shown)
	}
	tw := tabwriter.NewWriter(d.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "WEBHOOK\tHOST\tENABLED\tSINCE\tFAILING SINCE\tCREATED\tBY")
	for _, h := range shown {
		enabled, since := "yes", "-"
		if h.DisabledWhy != nil {
			enabled, since = "no: "+*h.DisabledWhy, clock(h.DisabledAt)
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", h.ID, printable(h.Host), enabled, since, clock(h.FailingSince), h.CreatedAt.Format(time.RFC3339), h.CreatedBy)
	}
	return tw.Flush()
}

func webhooksList(ctx context.Context, c *cli, args []string) error {
	var limit int
	d, err := c.open(ctx, "webhooks list WS", args, func(set *flag.FlagSet) {
		set.IntVar(&limit, "limit", 50, "how many, newest first, 1 to 1000")
	}, func(*desk) error { return limited(limit, 1000) })
	if err != nil {
		return err
	}
	defer d.done()
	if err := d.note(ctx, "webhooks.read", ""); err != nil {
		return err
	}
	list, err := d.ledger.Webhooks(ctx, d.ws, uuid.Nil, limit)
	if err != nil {
		return err
	}
	return d.printEndpoints(list...)
}

// openWebhook opens a command on one webhook, whose id is the first argument behind the workspace.
func (c *cli) openWebhook(ctx context.Context, usage string, args []string, define func(*flag.FlagSet), check func(*desk) error) (d *desk, webhook uuid.UUID, err error) {
	d, err = c.open(ctx, "webhooks "+usage, args, define, func(d *desk) (err error) {
		if webhook, err = d.id(0, store.WebhookPrefix, "webhook"); err != nil || check == nil {
			return err
		}
		return check(d)
	})
	return d, webhook, err
}

func webhooksEnable(ctx context.Context, c *cli, args []string) error {
	return c.switchWebhook(ctx, "enable", args, true)
}

func webhooksDisable(ctx context.Context, c *cli, args []string) error {
	return c.switchWebhook(ctx, "disable", args, false)
}

func (c *cli) switchWebhook(ctx context.Context, name string, args []string, enabled bool) error {
	d, id, err := c.openWebhook(ctx, name+" WS WEBHOOK", args, nil, nil)
	if err != nil {
		return err
	}
	defer d.done()
	var hook store.Webhook
	err = d.workOn(ctx, "webhook.update", store.FormatID(store.WebhookPrefix, id), func(w *store.Work) (details map[string]any, err error) {
		hook, err = w.SwitchWebhook(ctx, id, enabled)
		return map[string]any{"enabled": enabled}, err
	})
	if err != nil {
		return err
	}
	return d.printEndpoints(hook)
}

// deliveredJSON is a delivery as --json prints it.
type deliveredJSON struct {
	ID         string     `json:"id"`
	Type       string     `json:"type"`
	Task       *string    `json:"task_id"`
	Status     string     `json:"status"`
	Attempts   int        `json:"attempts"`
	NextAt     *time.Time `json:"next_attempt_at"`
	CreatedAt  time.Time  `json:"created_at"`
	LastAt     *time.Time `json:"last_at"`
	LastStatus *int       `json:"last_http_status"`
	LastError  *string    `json:"last_error"`
	LastMS     *int64     `json:"last_ms"`
}

func (d *desk) printDeliveries(list ...store.Delivery) error {
	shown := make([]deliveredJSON, len(list))
	for i, v := range list {
		shown[i] = deliveredJSON{ID: store.FormatID(store.EventPrefix, v.ID), Type: v.Type, Task: taskOrNil(v.Task), Status: v.Status, Attempts: v.Attempts,
			CreatedAt: v.CreatedAt.UTC(), LastAt: v.LastAt, LastStatus: v.LastStatus, LastError: v.LastError, LastMS: v.LastMS}
		if v.Status == store.DeliveryWaiting {
			shown[i].NextAt = &v.NextAt
		}
	}
	if d.json {
		return printJSON(d.stdout, shown)
	}
	tw := tabwriter.NewWriter(d.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "EVENT\tTYPE\tSTATUS\tATTEMPTS\tNEXT\tLAST\tANSWER\tCREATED")
	for _, v := range shown {
		answer := "-"
		switch {
		case v.LastStatus != nil:
			answer = fmt.Sprint(*v.LastStatus)
		case v.LastError != nil:
			answer = printable(*v.LastError)
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\n", v.ID, v.Type, v.Status, v.Attempts, clock(v.NextAt), clock(v.LastAt), answer, v.CreatedAt.Format(time.RFC3339))
	}
	return tw.Flush()
}

func webhooksDeliveries(ctx context.Context, c *cli, args []string) error {
	var f store.DeliveryFilter
	var limit int
	var task string
	d, id, err := c.openWebhook(ctx, "deliveries WS WEBHOOK", args, func(set *flag.FlagSet) {
		set.StringVar(&f.Status, "status", "", "only these: waiting, succeeded, dead")
		set.StringVar(&task, "task", "", "only those that tell of this task")
		set.IntVar(&limit, "limit", 50, "how many, newest event first, 1 to 1000")
	}, func(*desk) error {
		if task != "" {
			var ok bool
			if f.Task, ok = store.ParseID(store.TaskPrefix, task); !ok {
				return misuse("--task is %q; want an id such as task_0190…", task)
			}
		}
		return cmp.Or(limited(limit, 1000), among("--status", f.Status, store.DeliveryWaiting, store.DeliverySucceeded, store.DeliveryDead))
	})
	if err != nil {
		return err
	}
	defer d.done()
	if err := d.note(ctx, "webhook.deliveries_read", d.args[0]); err != nil {
		return err
	}
	list, err := d.ledger.Deliveries(ctx, d.ws, id, f, uuid.Nil, limit)
	if err != nil {
		return err
	}
	return d.printDeliveries(list...)
}

func webhooksTest(ctx context.Context, c *cli, args []string) error {
	d, id, err := c.openWebhook(ctx, "test WS WEBHOOK", args, nil, nil)
	if err != nil {
		return err
	}
	defer d.done()
	return d.sendAgain(ctx, "webhook.test", id, func(w *store.Work) (store.Delivery, error) { return w.TestWebhook(ctx, id) })
}

func webhooksReplay(ctx context.Context, c *cli, args []string) error {
	var event uuid.UUID
	d, id, err := c.openWebhook(ctx, "replay WS WEBHOOK EVENT", args, nil, func(d *desk) (err error) {
		event, err = d.id(1, store.EventPrefix, "event")
		return err
	})
	if err != nil {
		return err
	}
	defer d.done()
	return d.sendAgain(ctx, "webhook.replay", id, func(w *store.Work) (store.Delivery, error) { return w.ReplayDelivery(ctx, id, event) })
}

// sendAgain writes one delivery anew, with its audit entry, and prints it.
func (d *desk) sendAgain(ctx context.Context, action string, webhook uuid.UUID, write func(*store.Work) (store.Delivery, error)) error {
	var sent store.Delivery
	err := d.workOn(ctx, action, store.FormatID(store.WebhookPrefix, webhook), func(w *store.Work) (details map[string]any, err error) {
		sent, err = write(w)
		return map[string]any{"event": store.FormatID(store.EventPrefix, sent.ID)}, err
	})
	if err != nil {
		return err
	}
	return d.printDeliveries(sent)
}

// webhooksReplayAll takes MaxReplays at a time, as the customer's own call does.
func webhooksReplayAll(ctx context.Context, c *cli, args []string) error {
	var since time.Duration
	var status string
	d, id, err := c.openWebhook(ctx, "replay-all WS WEBHOOK", args, func(set *flag.FlagSet) {
		set.DurationVar(&since, "since", 0, "what was given up (or arrived, with --status succeeded) within this time until now, such as 24h; needed")
		set.StringVar(&status, "status", store.DeliveryDead, "only these: dead, succeeded")
	}, func(*desk) error {
		if since <= 0 || since > store.DeliveryLife {
			return misuse("--since is %s; want a time of up to %s, for which deliveries are kept", since, store.DeliveryLife)
		}
		if status == "" {
			return misuse("--status is empty; want dead or succeeded")
		}
		return among("--status", status, store.DeliveryDead, store.DeliverySucceeded)
	})
	if err != nil {
		return err
	}
	defer d.done()
	now, err := d.system.Now(ctx)
	if err != nil {
		return err
	}
	replayed := 0
	err = d.workOn(ctx, "webhook.replay", store.FormatID(store.WebhookPrefix, id), func(w *store.Work) (details map[string]any, err error) {
		replayed, err = w.ReplayDeliveries(ctx, id, status, now.Add(-since), nil)
		return map[string]any{"count": replayed, "status": status}, err
	})
	if err != nil {
		return err
	}
	if d.json {
		return printJSON(d.stdout, map[string]any{"replayed": replayed, "more": replayed == store.MaxReplays})
	}
	fmt.Fprintf(d.stdout, "%d deliveries will be sent again\n", replayed)
	if replayed == store.MaxReplays {
		fmt.Fprintln(d.stdout, "there may be more: call again")
	}
	return nil
}
