package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/store"
)

// What workspaces bring and cost: metrics of the scheduler, and muster workspace list --by-margin.
//
// The metrics have as many series as there are plans, and one for each of the worstMargins workspaces that bring least,
// by id. No other metric names a workspace.

const (
	worstMargins = 100
	marginAge    = 5 * time.Minute // how long what was read is shown: it looks at every workspace
)

type marginCollector struct {
	system *store.System
	log    zerolog.Logger

	mu    sync.Mutex
	read  time.Time
	plans []store.PlanMargin
	worst []store.Margin
}

var (
	descPlanWorkspaces = prometheus.NewDesc("muster_plan_workspaces", "Workspaces, by plan.", []string{"plan"}, nil)
	descPlanPrice      = prometheus.NewDesc("muster_plan_price_microusd", "List prices of this month, summed over the workspaces of a plan.", []string{"plan"}, nil)
	descPlanCost       = prometheus.NewDesc("muster_plan_provider_cost_microusd", "Paid to model providers this month, summed over the workspaces of a plan.", []string{"plan"}, nil)
	descOverExpected   = prometheus.NewDesc("muster_workspaces_over_expected_cost", "Workspaces past twice what their plan expects them to cost at model providers this month.", []string{"plan"}, nil)
	descMargin         = prometheus.NewDesc("muster_workspace_margin_microusd", "Plan's price less provider cost this month, of the 100 workspaces with the lowest.", []string{"workspace", "plan"}, nil)
)

func (c *marginCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descPlanWorkspaces, descPlanPrice, descPlanCost, descOverExpected, descMargin} {
		ch <- d
	}
}

// Collect leaves out what cannot be read.
func (c *marginCollector) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.read) > marginAge {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		plans, err1 := c.system.PlanMargins(ctx)
		worst, err2 := c.system.WorstMargins(ctx, worstMargins)
		if err := errors.Join(err1, err2); err != nil {
			c.log.Warn().Err(err).Msg("margins could not be read")
			return
		}
		c.plans, c.worst, c.read = plans, worst, time.Now()
	}
	gauge := func(d *prometheus.Desc, v int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	for _, p := range c.plans {
		gauge(descPlanWorkspaces, p.Workspaces, p.Plan)
		gauge(descPlanPrice, p.PriceMicroUSD, p.Plan)
		gauge(descPlanCost, p.CostMicroUSD, p.Plan)
		gauge(descOverExpected, p.Over, p.Plan)
	}
	for _, m := range c.worst {
		gauge(descMargin, m.MicroUSD(), store.FormatID(store.WorkspacePrefix, m.Workspace), m.Plan)
	}
}

// marginJSON is a margin as --json prints it.
type marginJSON struct {
	Workspace    string `json:"workspace"`
	Name         string `json:"name"`
	Plan         string `json:"plan"`
	Price        int64  `json:"price_microusd"`
	ProviderCost int64  `json:"provider_cost_microusd"`
	Margin       int64  `json:"margin_microusd"`
	Expected     int64  `json:"expected_cost_microusd"`
}

func showMargin(m store.Margin) marginJSON {
	return marginJSON{Workspace: store.FormatID(store.WorkspacePrefix, m.Workspace), Name: m.Name, Plan: m.Plan, Price: m.PriceMicroUSD,
		ProviderCost: m.CostMicroUSD, Margin: m.MicroUSD(), Expected: m.ExpectedMicroUSD}
}

// listByMargin prints the workspaces that bring least.
func (c *cli) listByMargin(ctx context.Context, system *store.System, limit int, asJSON bool) error {
	list, err := system.WorstMargins(ctx, limit)
	if err != nil {
		return err
	}
	if asJSON {
		shown := make([]marginJSON, len(list))
		for i, m := range list {
			shown[i] = showMargin(m)
		}
		return printJSON(c.stdout, shown)
	}
	tw := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "WORKSPACE\tNAME\tPLAN\tPRICE\tCOST\tMARGIN\tEXPECTED COST")
	for _, m := range list {
		over := ""
		if m.CostMicroUSD > 2*m.ExpectedMicroUSD {
			over = " (past twice)"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s%s\n", store.FormatID(store.WorkspacePrefix, m.Workspace), printable(m.Name), m.Plan,
			dollars(m.PriceMicroUSD), dollars(m.CostMicroUSD), dollars(m.MicroUSD()), dollars(m.ExpectedMicroUSD), over)
	}
	return tw.Flush()
}
