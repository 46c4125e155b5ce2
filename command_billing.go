package main

import (
	"context"
	"flag"
	"fmt"
	"sort"
	"text/tabwriter"
	"time"

	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/api"
	"github.com/generic-corp/muster/billing"
	"github.com/generic-corp/muster/store"
)

// Operators' commands on money: what Stripe must know, what it is told, and whether it agrees.

// nightWait is how long the nightly run reads back what Stripe does not show yet before it is tried again as a whole.
const nightWait = 10 * time.Minute

func runBilling(ctx context.Context, c *cli, args []string) error {
	return c.subcommand(ctx, "billing", args, map[string]func(context.Context, *cli, []string) error{
		"setup": billingSetup, "push": billingPush, "reconcile": billingReconcile,
	})
}

// newPusher makes the scheduler's pusher.
func newPusher(cfg Config, system *store.System, log zerolog.Logger) (*billing.Pusher, error) {
	return billing.New(billing.Config{System: system, SecretKey: string(cfg.StripeSecretKey), APIBase: cfg.StripeAPIBase, Log: log, Wait: nightWait})
}

// newWebhook makes what the API hands Stripe's events to; nil without a secret. Without a key of Stripe's only production
// takes live events.
func newWebhook(cfg Config, inbox billing.Inbox, log zerolog.Logger) (api.StripeEvents, error) {
	if len(cfg.StripeWebhookSecrets) == 0 {
		log.Warn().Msg("STRIPE_WEBHOOK_SECRET is not set: Stripe's events are answered 503")
		return nil, nil
	}
	secrets := make([]string, len(cfg.StripeWebhookSecrets))
	for i, secret := range cfg.StripeWebhookSecrets {
		secrets[i] = string(secret)
	}
	live := billing.LiveKey(string(cfg.StripeSecretKey)) || (cfg.StripeSecretKey == "" && cfg.Env == "production")
	return billing.NewWebhook(secrets, live, inbox)
}

// openBilling connects to the ledger and makes a pusher for one command.
func (c *cli) openBilling(ctx context.Context, wait time.Duration) (*billing.Pusher, *store.System, func(), error) {
	cfg, err := loadConfig(c.getenv, nil, "SYSTEM_DATABASE_URL", "STRIPE_SECRET_KEY")
	if err != nil {
		return nil, nil, nil, err
	}
	system, _, done, err := c.openSystem(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	pusher, err := billing.New(billing.Config{System: system, SecretKey: string(cfg.StripeSecretKey), APIBase: cfg.StripeAPIBase, Log: zerolog.Nop(), Wait: wait})
	if err != nil {
		done()
		return nil, nil, nil, err
	}
	return pusher, system, done, nil
}

func billingSetup(ctx context.Context, c *cli, args []string) error {
	set := flag.NewFlagSet("muster billing setup", flag.ContinueOnError)
	asJSON := set.Bool("json", false, "print JSON")
	if _, err := c.flags(set, args, 0, 0); err != nil {
		return err
	}
	cfg, err := loadConfig(c.getenv, nil, "STRIPE_SECRET_KEY")
	if err != nil {
		return err
	}
	pusher, err := billing.New(billing.Config{SecretKey: string(cfg.StripeSecretKey), APIBase: cfg.StripeAPIBase, Log: zerolog.Nop()})
	if err != nil {
		return err
	}
	catalog, err := pusher.Setup(ctx)
	if err != nil {
		return err
	}
	if *asJSON {
		return printJSON(c.stdout, catalog)
	}
	tw := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	for _, part := range []struct {
		name string
		ids  map[string]string
	}{{"meter", catalog.Meters}, {"price", catalog.Prices}} {
		keys := make([]string, 0, len(part.ids))
		for key := range part.ids {
			keys = append(keys, key)
		}
		sort.Strings(keys)
		for _, key := range keys {
			fmt.Fprintf(tw, "%s\t%s\t%s\n", part.name, key, part.ids[key])
		}
	}
	return tw.Flush()
}

// parseDay reads a UTC day; today and yesterday are by this machine's clock.
func parseDay(text string, now time.Time) (time.Time, error) {
	today := now.UTC().Truncate(24 * time.Hour)
	switch text {
	case "today":
		return today, nil
	case "yesterday":
		return today.AddDate(0, 0, -1), nil
	}
	day, err := time.Parse(time.DateOnly, text)
	if err != nil {
		return day, misuse("%q is no day; want YYYY-MM-DD, today or yesterday", text)
	}
	if day.After(today) {
		return day, misuse("%s has not begun (days are UTC)", text)
	}
	return day, nil
}

// pushedJSON is a pushed day as --json prints it.
type pushedJSON struct {
	Workspace string `json:"workspace"`
	Day       string `json:"day"`
	Meter     string `json:"meter"`
	Value     int64  `json:"value"`
	Before    int64  `json:"confirmed_before"`
	State     string `json:"state"`
}

type problemJSON struct {
	Workspace string `json:"workspace"`
	Error     string `json:"error"`
}

func billingPush(ctx context.Context, c *cli, args []string) error {
	set := flag.NewFlagSet("muster billing push", flag.ContinueOnError)
	asJSON := set.Bool("json", false, "print JSON")
	dayText := set.String("day", "", "push this UTC day alone: YYYY-MM-DD, today or yesterday (default: every day up to yesterday that Stripe lacks)")
	dry := set.Bool("dry-run", false, "print what would be pushed; write nothing, here or there")
	wait := set.Duration("wait", 30*time.Second, "how long to read back what Stripe does not show yet")
	if _, err := c.flags(set, args, 0, 0); err != nil {
		return err
	}
	request := billing.Request{DryRun: *dry}
	if *dayText != "" {
		var err error
		if request.Day, err = parseDay(*dayText, time.Now()); err != nil {
			return err
		}
	}
	if *wait <= 0 {
		*wait = -1
	}
	pusher, system, done, err := c.openBilling(ctx, *wait)
	if err != nil {
		return err
	}
	defer done()
	details := map[string]any{"day": *dayText, "dry_run": *dry}
	if err := system.Note(ctx, store.SystemChain, operator(), "billing.push", "", details); err != nil {
		return err
	}
	report, err := pusher.Push(ctx, request)
	if err != nil {
		return err
	}
	if *asJSON {
		err = printJSON(c.stdout, showReport(report, *dry))
	} else {
		err = c.printReport(report, *dry)
	}
	if err == nil && report.Left > 0 {
		return errFound
	}
	return err
}

func showReport(report billing.Report, dry bool) any {
	days, problems := make([]pushedJSON, len(report.Days)), make([]problemJSON, len(report.Problems))
	for i, d := range report.Days {
		days[i] = pushedJSON{Workspace: store.FormatID(store.WorkspacePrefix, d.Workspace), Day: d.Day.Format(time.DateOnly), Meter: d.Meter,
			Value: d.Value, Before: d.Before, State: string(d.State)}
	}
	for i, p := range report.Problems {
		problems[i] = problemJSON{Workspace: store.FormatID(store.WorkspacePrefix, p.Workspace), Error: p.Err.Error()}
	}
	return struct {
		DryRun     bool          `json:"dry_run"`
		Workspaces int           `json:"workspaces"`
		Sent       int           `json:"sent"`
		Left       int           `json:"left"`
		Days       []pushedJSON  `json:"days"`
		Problems   []problemJSON `json:"problems"`
	}{dry, report.Workspaces, report.Sent, report.Left, days, problems}
}

func (c *cli) printReport(report billing.Report, dry bool) error {
	tw := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	for _, d := range report.Days {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%d ms\twas %d\t%s\n", store.FormatID(store.WorkspacePrefix, d.Workspace), d.Day.Format(time.DateOnly), d.Meter, d.Value, d.Before, d.State)
	}
	for _, p := range report.Problems {
		fmt.Fprintf(tw, "%s\tleft\t%v\n", store.FormatID(store.WorkspacePrefix, p.Workspace), p.Err)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	if dry {
		fmt.Fprintf(c.stdout, "dry run: %d totals of %d workspaces would change\n", len(report.Days), report.Workspaces)
		return nil
	}
	fmt.Fprintf(c.stdout, "%d workspaces, %d events sent, %d left to the next run\n", report.Workspaces, report.Sent, report.Left)
	return nil
}

// reconcileDays is how far back a reconciliation looks unless told: as far as Stripe takes corrections.
const reconcileDays = 35

func billingReconcile(ctx context.Context, c *cli, args []string) error {
	set := flag.NewFlagSet("muster billing reconcile", flag.ContinueOnError)
	asJSON := set.Bool("json", false, "print JSON")
	now := time.Now()
	fromText := set.String("from", now.UTC().AddDate(0, 0, -reconcileDays).Format(time.DateOnly), "first UTC day: YYYY-MM-DD, today or yesterday")
	toText := set.String("to", "today", "last UTC day, likewise")
	if _, err := c.flags(set, args, 0, 0); err != nil {
		return err
	}
	from, err := parseDay(*fromText, now)
	if err != nil {
		return err
	}
	to, err := parseDay(*toText, now)
	if err != nil {
		return err
	}
	if to.Before(from) {
		return misuse("--to %s is before --from %s", *toText, *fromText)
	}
	pusher, _, done, err := c.openBilling(ctx, 0)
	if err != nil {
		return err
	}
	defer done()
	r, err := pusher.Reconcile(ctx, from, to)
	if err != nil {
		return err
	}
	if *asJSON {
		err = printJSON(c.stdout, showReconciliation(r))
	} else {
		c.printReconciliation(r)
	}
	if err == nil && r.Found() > 0 {
		return errFound
	}
	return err
}

// lineJSON is a compared day as --json prints it; null is a book that has nothing to say.
type lineJSON struct {
	Workspace string `json:"workspace"`
	Day       string `json:"day"`
	Meter     string `json:"meter"`
	Metered   int64  `json:"metered"`
	Daily     int64  `json:"daily"`
	Ledger    *int64 `json:"ledger"`
	Stripe    *int64 `json:"stripe"`
	Reason    string `json:"reason,omitempty"`
	Note      string `json:"note"`
}

type invoiceLineJSON struct {
	Workspace string    `json:"workspace"`
	Invoice   string    `json:"invoice"`
	Meter     string    `json:"meter"`
	From      time.Time `json:"from"`
	To        time.Time `json:"to"`
	Quantity  int64     `json:"quantity"`
	Ledger    int64     `json:"ledger"`
}

func showReconciliation(r billing.Reconciliation) any {
	lines := func(list []billing.Line) []lineJSON {
		out := make([]lineJSON, len(list))
		for i, l := range list {
			out[i] = lineJSON{Workspace: store.FormatID(store.WorkspacePrefix, l.Workspace), Day: l.Day.Format(time.DateOnly), Meter: l.Meter,
				Metered: l.Metered, Daily: l.Daily, Ledger: l.Ledger, Stripe: l.Stripe, Reason: string(l.Reason), Note: l.Note}
		}
		return out
	}
	invoiced := make([]invoiceLineJSON, len(r.Invoiced))
	for i, l := range r.Invoiced {
		invoiced[i] = invoiceLineJSON{Workspace: store.FormatID(store.WorkspacePrefix, l.Workspace), Invoice: l.Invoice, Meter: l.Meter, From: l.From, To: l.To, Quantity: l.Quantity, Ledger: l.Ledger}
	}
	return struct {
		Found       int                    `json:"found"`
		Days        int                    `json:"workspace_days"`
		Invoices    int                    `json:"invoices"`
		Differences []lineJSON             `json:"differences"`
		Invoiced    []invoiceLineJSON      `json:"invoice_differences"`
		Apart       []lineJSON             `json:"apart"`
		Reasons     map[billing.Reason]int `json:"reasons"`
	}{r.Found(), r.Days, r.Invoices, lines(r.Differences), invoiced, lines(r.Apart), r.Reasons}
}

// printReconciliation prints what is apart, then what is wrong, then the count.
func (c *cli) printReconciliation(r billing.Reconciliation) {
	amount := func(v *int64) string {
		if v == nil {
			return "-"
		}
		return fmt.Sprint(*v)
	}
	line := func(word string, l billing.Line) {
		fmt.Fprintf(c.stdout, "%s: %s %s %s metered=%d daily=%d ledger=%s stripe=%s: %s\n", word, store.FormatID(store.WorkspacePrefix, l.Workspace),
			l.Day.Format(time.DateOnly), l.Meter, l.Metered, l.Daily, amount(l.Ledger), amount(l.Stripe), l.Note)
	}
	for _, l := range r.Apart {
		line(string(l.Reason), l)
	}
	for _, l := range r.Differences {
		line("DIFFERENCE", l)
	}
	for _, l := range r.Invoiced {
		fmt.Fprintf(c.stdout, "DIFFERENCE: %s invoice %s %s from %s to %s: line=%d ledger=%d\n", store.FormatID(store.WorkspacePrefix, l.Workspace), l.Invoice,
			l.Meter, l.From.Format(time.RFC3339), l.To.Format(time.RFC3339), l.Quantity, l.Ledger)
	}
	for _, reason := range []billing.Reason{billing.ReasonOpen, billing.ReasonPending, billing.ReasonCarried, billing.ReasonNotBillable} {
		if n := r.Reasons[reason]; n > 0 {
			fmt.Fprintf(c.stdout, "%d workspace-days %s\n", n, map[billing.Reason]string{billing.ReasonOpen: "are open: not due yet", billing.ReasonPending: "are on their way",
				billing.ReasonCarried: "are carried forward", billing.ReasonNotBillable: "have nobody to bill"}[reason])
		}
	}
	fmt.Fprintf(c.stdout, "%d differences over %d workspace-days and %d invoice periods\n", r.Found(), r.Days, r.Invoices)
}
