package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/generic-corp/muster/store"
)

// runPlans prints the table of plans, or what one costs us at worst.
func runPlans(_ context.Context, c *cli, args []string) error {
	set := flag.NewFlagSet("muster plans", flag.ContinueOnError)
	cost := set.String("cost", "", "what a workspace of this plan can cost at worst in a month, term by term")
	asJSON := set.Bool("json", false, "print JSON")
	if _, err := c.flags(set, args, 0, 0); err != nil {
		return err
	}
	if *cost != "" {
		plan, ok := store.PlanByID(*cost)
		if !ok {
			return misuse("no plan is called %q", *cost)
		}
		if *asJSON {
			return printJSON(c.stdout, store.WorstMonth(plan))
		}
		return printWorstMonth(c.stdout, plan)
	}
	if *asJSON {
		return printJSON(c.stdout, store.Plans)
	}
	tw := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "PLAN\tPRICE\tAGENT MIN\tAT ONCE\tWAITING\tREQUESTS/H\tUSERS\tSCHEDULES\tWEBHOOKS\tKEPT DAYS\tMODEL BUDGET\tEXPECTED COST")
	for _, p := range store.Plans {
		users := fmt.Sprint(p.MaxUsers)
		if p.MaxUsers == 0 {
			users = "any"
		}
		fmt.Fprintf(tw, "%s\t%s\t%d\t%d\t%d\t%d\t%s\t%d\t%d\t%d\t%s\t%s\n", p.ID, dollars(p.PriceCents*10_000), p.AgentMS/60_000, p.Concurrency, p.MaxWaiting,
			p.RequestsPerHour, users, p.MaxSchedules, p.MaxWebhooks, p.RetentionDays, dollars(p.ProviderBudgetMicroUSD), dollars(p.ExpectedCostMicroUSD))
	}
	return tw.Flush()
}

func printWorstMonth(w io.Writer, p store.Plan) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "TERM\tBOUND\tQUANTITY\tAT WORST")
	var sum int64
	for _, t := range store.WorstMonth(p) {
		sum += t.MicroUSD
		fmt.Fprintf(tw, "%s\t%s\t%d %s\t%s\n", t.What, t.Bound, t.Quantity, t.Unit, dollars(t.MicroUSD))
	}
	fmt.Fprintf(tw, "a workspace\t\t\t%s\n", dollars(sum))
	if p.PriceCents == 0 {
		fmt.Fprintf(tw, "a user\tat most %d such workspaces\t\t%s\n", store.MaxFreeWorkspaces, dollars(sum*store.MaxFreeWorkspaces))
	}
	return tw.Flush()
}
