package main

import (
	"context"
	"flag"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

// Operators' commands on workspaces. Each change is one transaction with its audit entry; the turns it issues go to
// Redis, and when Redis is away the scheduler issues them anew.

func runWorkspace(ctx context.Context, c *cli, args []string) error {
	return c.subcommand(ctx, "workspace", args, map[string]func(context.Context, *cli, []string) error{
		"list": workspaceList, "show": workspaceShow, "set-plan": workspaceSetPlan, "set-limit": workspaceSetLimit,
		"pause": workspacePause, "resume": workspaceResume, "restore": workspaceRestore,
	})
}

// workspaceJSON is a workspace as --json prints it.
type workspaceJSON struct {
	ID                     string    `json:"id"`
	Name                   string    `json:"name"`
	Plan                   string    `json:"plan"`
	Status                 string    `json:"status"`
	Queue                  string    `json:"queue"`
	Paused                 *string   `json:"paused"`
	Concurrency            int       `json:"concurrency"`
	Running                int       `json:"running"`
	Waiting                int       `json:"waiting"`
	MaxWaiting             int       `json:"max_waiting"`
	Period                 string    `json:"period"`
	QuotaMS                int64     `json:"agent_ms"`
	UsedMS                 int64     `json:"used_ms"`
	ReservedMS             int64     `json:"reserved_ms"`
	RequestsPerHour        int       `json:"requests_per_hour"`
	MaxUsers               int       `json:"max_users"`
	MaxWebhooks            int       `json:"max_webhooks"`
	RetentionDays          int       `json:"retention_days"`
	MaxSchedules           int       `json:"max_schedules"`
	MinScheduleSeconds     int       `json:"min_schedule_seconds"`
	MaxTaskCostMicroUSD    int64     `json:"max_task_cost_microusd"`
	ProviderBudgetMicroUSD int64     `json:"provider_budget_microusd"`
	Models                 []string  `json:"models"` // empty: all
	NeedsVerifiedEmail     bool      `json:"needs_verified_email"`
	ProviderUsed           int64     `json:"provider_used_microusd"`
	ProviderReserved       int64     `json:"provider_reserved_microusd"`
	OverageEnabled         bool      `json:"overage_enabled"`
	SpendCapCents          int64     `json:"spend_cap_cents"`
	OverageMS              int64     `json:"overage_ms"`
	StripeCustomer         *string   `json:"stripe_customer"`
	StripeSubscription     *string   `json:"stripe_subscription"`
	CreatedAt              time.Time `json:"created_at"`

	// Of this month; where one workspace is shown.
	Price        *int64 `json:"price_microusd,omitempty"`
	ProviderCost *int64 `json:"provider_cost_microusd,omitempty"`
	Margin       *int64 `json:"margin_microusd,omitempty"`
	ExpectedCost *int64 `json:"expected_cost_microusd,omitempty"`
}

func showWorkspace(w store.Workspace) workspaceJSON {
	return workspaceJSON{ID: store.FormatID(store.WorkspacePrefix, w.ID), Name: w.Name, Plan: w.Plan, Status: w.Status, Queue: w.Queue,
		Paused: pausedBy(w), Concurrency: w.Concurrency, Running: w.Running, Waiting: w.Waiting, MaxWaiting: w.MaxWaiting,
		Period: w.Period.Format("2006-01"), QuotaMS: w.QuotaMS, UsedMS: w.UsedMS, ReservedMS: w.ReservedMS,
		RequestsPerHour: w.RequestsPerHour, MaxUsers: w.MaxUsers, MaxWebhooks: w.MaxWebhooks, RetentionDays: w.RetentionDays, MaxSchedules: w.MaxSchedules, MinScheduleSeconds: w.MinScheduleSeconds, MaxTaskCostMicroUSD: w.MaxTaskCostMicroUSD,
		ProviderBudgetMicroUSD: w.ProviderBudgetMicroUSD, ProviderUsed: w.ProviderUsedMicroUSD, ProviderReserved: w.ProviderReservedMicroUSD,
		OverageEnabled: w.OverageEnabled, SpendCapCents: w.SpendCapCents, OverageMS: w.OverageMS, Models: append([]string{}, w.Models...),
		NeedsVerifiedEmail: w.NeedsVerifiedEmail,
		StripeCustomer:     w.StripeCustomerID, StripeSubscription: w.StripeSubscriptionID, CreatedAt: w.CreatedAt.UTC()}
}

// pausedBy names who paused a workspace; nil for nobody.
func pausedBy(w store.Workspace) *string {
	if len(w.Paused) == 0 {
		return nil
	}
	names := strings.Join(w.Paused, ", ")
	return &names
}

func workspaceList(ctx context.Context, c *cli, args []string) error {
	var limit int
	var byMargin bool
	d, err := c.open(ctx, "workspace list", args, func(set *flag.FlagSet) {
		set.IntVar(&limit, "limit", 100, "how many, newest first, 1 to 10000")
		set.BoolVar(&byMargin, "by-margin", false, "those that bring least this month, of those that have cost anything")
	}, func(*desk) error { return limited(limit, 10_000) })
	if err != nil {
		return err
	}
	defer d.done()
	if err := d.system.Note(ctx, store.SystemChain, operator(), "workspaces.read", "", map[string]any{"limit": limit}); err != nil {
		return err
	}
	if byMargin {
		return c.listByMargin(ctx, d.system, limit, d.json)
	}
	list, err := d.system.Workspaces(ctx, uuid.Nil, limit)
	if err != nil {
		return err
	}
	if d.json {
		shown := make([]workspaceJSON, len(list))
		for i, w := range list {
			shown[i] = showWorkspace(w)
		}
		return printJSON(c.stdout, shown)
	}
	tw := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "WORKSPACE\tNAME\tPLAN\tRUNNING\tWAITING\tUSED MIN\tOF\tPAUSED")
	for _, w := range list {
		paused := "-"
		if by := pausedBy(w); by != nil {
			paused = *by
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%d/%d\t%d\t%d\t%d\t%s\n", store.FormatID(store.WorkspacePrefix, w.ID), printable(w.Name), w.Plan,
			w.Running, w.Concurrency, w.Waiting, w.UsedMS/60_000, w.QuotaMS/60_000, paused)
	}
	return tw.Flush()
}

// keeps says for how long.
func keeps(days int) string {
	if days == 0 {
		return "for ever"
	}
	return fmt.Sprintf("%d days", days)
}

func workspaceShow(ctx context.Context, c *cli, args []string) error {
	d, err := c.open(ctx, "workspace show WS", args, nil, nil)
	if err != nil {
		return err
	}
	defer d.done()
	if err := d.note(ctx, "workspace.read", store.FormatID(store.WorkspacePrefix, d.ws)); err != nil {
		return err
	}
	return d.showOne(ctx)
}

// showOne prints the workspace as it is now.
func (d *desk) showOne(ctx context.Context) error {
	w, err := d.system.Workspace(ctx, d.ws)
	if err != nil {
		return err
	}
	m, err := d.system.Margin(ctx, d.ws)
	if err != nil {
		return err
	}
	if d.json {
		shown := showWorkspace(w)
		shown.Price, shown.ProviderCost, shown.Margin, shown.ExpectedCost = &m.PriceMicroUSD, &m.CostMicroUSD, ptr(m.MicroUSD()), &m.ExpectedMicroUSD
		return printJSON(d.stdout, shown)
	}
	paused := "no"
	if by := pausedBy(w); by != nil {
		paused = "by " + *by
	}
	orNone := func(s *string) string {
		if s == nil {
			return "none"
		}
		return *s
	}
	tw := tabwriter.NewWriter(d.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "workspace\t%s\nname\t%s\nstatus\t%s\nplan\t%s (queue %s)\npaused\t%s\nrunning\t%d of %d\nwaiting\t%d of %d\n",
		store.FormatID(store.WorkspacePrefix, w.ID), printable(w.Name), w.Status, w.Plan, w.Queue, paused, w.Running, w.Concurrency, w.Waiting, w.MaxWaiting)
	fmt.Fprintf(tw, "agent time %s\t%d ms used, %d reserved, of %d\nrequests per hour\t%d\nStripe customer\t%s\nStripe subscription\t%s\n",
		w.Period.Format("2006-01"), w.UsedMS, w.ReservedMS, w.QuotaMS, w.RequestsPerHour, orNone(w.StripeCustomerID), orNone(w.StripeSubscriptionID))
	models := "all"
	if len(w.Models) > 0 {
		models = strings.Join(w.Models, ", ")
	}
	fmt.Fprintf(tw, "margin %s\t%s: price %s less model cost %s (expected %s)\n", w.Period.Format("2006-01"), dollars(m.MicroUSD()),
		dollars(m.PriceMicroUSD), dollars(m.CostMicroUSD), dollars(m.ExpectedMicroUSD))
	fmt.Fprintf(tw, "models\t%s\nneeds a proved address\t%t\nkeeps ended tasks\t%s\n", models, w.NeedsVerifiedEmail, keeps(w.RetentionDays))
	overage := "off"
	if w.OverageEnabled {
		overage = fmt.Sprintf("%d ms used of %d (%s of $%d.%02d)", w.OverageMS, w.OverageAllowanceMS, dollars(store.OverageMicroUSD(w.OverageMS)), w.SpendCapCents/100, w.SpendCapCents%100)
	}
	fmt.Fprintf(tw, "overage\t%s\nprovider budget\t%s used, %s reserved, of %s; %s a task\n", overage, dollars(w.ProviderUsedMicroUSD),
		dollars(w.ProviderReservedMicroUSD), dollars(w.ProviderBudgetMicroUSD), dollars(w.MaxTaskCostMicroUSD))
	return tw.Flush()
}

func workspaceSetPlan(ctx context.Context, c *cli, args []string) error {
	var plan store.Plan
	var customer, subscription string
	d, err := c.open(ctx, "workspace set-plan WS PLAN", args, func(set *flag.FlagSet) {
		set.StringVar(&customer, "stripe-customer", "", "attach this Stripe customer (cus_…)")
		set.StringVar(&subscription, "stripe-subscription", "", "attach this Stripe subscription (sub_…)")
	}, func(d *desk) error {
		var ok bool
		if plan, ok = store.PlanByID(d.args[0]); ok {
			return nil
		}
		ids := make([]string, len(store.Plans))
		for i, p := range store.Plans {
			ids[i] = p.ID
		}
		return misuse("no plan is called %q; there are %s", d.args[0], strings.Join(ids, ", "))
	})
	if err != nil {
		return err
	}
	defer d.done()
	return d.changeWorkspace(ctx, func(s *store.System) ([]store.Turn, error) {
		return s.SetPlan(ctx, d.ws, plan, customer, subscription, operator())
	})
}

func workspaceSetLimit(ctx context.Context, c *cli, args []string) error {
	values := map[string]int64{}
	var models *[]string
	d, err := c.open(ctx, "workspace set-limit WS NAME=VALUE… ("+strings.Join(store.LimitNames(), ", ")+", models=…,…)", args, nil, func(d *desk) error {
		for _, pair := range d.args {
			name, text, given := strings.Cut(pair, "=")
			if name == "models" && given {
				list, err := modelList(text)
				if err != nil {
					return misuse("%v", err)
				}
				models = &list
				continue
			}
			v, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				return misuse("%q; want NAME=VALUE with a whole number", pair)
			}
			values[name] = v
		}
		return nil
	})
	if err != nil {
		return err
	}
	defer d.done()
	return d.changeWorkspace(ctx, func(s *store.System) ([]store.Turn, error) {
		return s.Override(ctx, d.ws, values, models, operator())
	})
}

func workspacePause(ctx context.Context, c *cli, args []string) error {
	return c.pauseOrResume(ctx, "pause", args, func(s *store.System, ws uuid.UUID) ([]store.Turn, error) {
		return nil, s.Pause(ctx, ws, operator())
	})
}

func workspaceResume(ctx context.Context, c *cli, args []string) error {
	return c.pauseOrResume(ctx, "resume", args, func(s *store.System, ws uuid.UUID) ([]store.Turn, error) {
		return s.Resume(ctx, ws, operator())
	})
}

func workspaceRestore(ctx context.Context, c *cli, args []string) error {
	return c.pauseOrResume(ctx, "restore", args, func(s *store.System, ws uuid.UUID) ([]store.Turn, error) {
		return nil, s.Restore(ctx, ws, operator())
	})
}

func (c *cli) pauseOrResume(ctx context.Context, name string, args []string, change func(*store.System, uuid.UUID) ([]store.Turn, error)) error {
	d, err := c.open(ctx, "workspace "+name+" WS", args, nil, nil)
	if err != nil {
		return err
	}
	defer d.done()
	return d.changeWorkspace(ctx, func(s *store.System) ([]store.Turn, error) { return change(s, d.ws) })
}

// changeWorkspace makes a change, brings its turns to Redis and prints the workspace as it is afterwards.
func (d *desk) changeWorkspace(ctx context.Context, change func(*store.System) ([]store.Turn, error)) error {
	turns, err := change(d.system)
	if store.KindOf(err) == store.Invalid {
		return misuse("%v", err)
	}
	if err != nil {
		return err
	}
	if err := d.enqueue(d.cfg, turns); err != nil {
		return err
	}
	return d.showOne(ctx)
}
