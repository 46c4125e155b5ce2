package api

import (
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

type usageParams struct {
	From        string `query:"from" maxLength:"40" description:"RFC 3339 time or UTC day, inclusive; the start of this UTC month when absent."`
	To          string `query:"to" maxLength:"40" description:"RFC 3339 time or UTC day, exclusive; now when absent."`
	Granularity string `query:"granularity" enum:"day,hour" default:"day" description:"At most 400 days, or 31 days by the hour."`
	GroupBy     string `query:"group_by" enum:"meter,agent,model,key" default:"meter"`
	pageParams
}

type usageRowJSON struct {
	Start    time.Time `json:"start" description:"Of the UTC day or hour."`
	Meter    string    `json:"meter"`
	Unit     string    `json:"unit" enum:"ms,tokens,microusd,tasks"`
	Quantity int64     `json:"quantity"`
	Billable int64     `json:"billable" description:"The part of quantity that counts against the plan."`
	Agent    *string   `json:"agent,omitempty" nullable:"false" description:"With group_by=agent."`
	Model    *string   `json:"model,omitempty" nullable:"false" description:"With group_by=model."`
	Key      *string   `json:"key,omitempty" nullable:"false" description:"With group_by=key; absent for tasks sent with an access token."`
}

// usageRange is the longest span of a query, by granularity.
var usageRange = map[string]time.Duration{"day": 400 * 24 * time.Hour, "hour": 31 * 24 * time.Hour}

func (s *Server) getUsage(q *request) (answer, error) {
	now := s.Now().UTC()
	from, to := time.Date(now.Year(), now.Month(), 1, 0, 0, 0, 0, time.UTC), now
	p, err := params(q, func(p *usageParams, f *faults) {
		if p.From != "" {
			from = f.moment("from", p.From)
		}
		if p.To != "" {
			to = f.moment("to", p.To)
		}
		if limit := usageRange[p.Granularity]; len(f.fields) == 0 && (!from.Before(to) || to.Sub(from) > limit) {
			f.wrong("to", "must be after from, by at most %d days with this granularity", int(limit.Hours()/24))
		}
	})
	if err != nil {
		return answer{}, err
	}
	// Without to the pages end now, and now moves: it is not among what the cursor is bound to.
	list := strings.Join([]string{"usage", p.From, p.To, p.Granularity, p.GroupBy}, "\x00")
	return listPage(s, q, list, p.pageParams, func(after *store.UsageKey, n int) ([]store.UsageRow, error) {
		return s.Store.Usage(q.ctx, q.id.Workspace, store.UsageQuery{From: from, To: to, Hourly: p.Granularity == "hour", GroupBy: p.GroupBy, After: after, Limit: n})
	}, func(r store.UsageRow) *store.UsageKey { return &r.UsageKey }, func(r store.UsageRow) usageRowJSON { return usageRowOf(r, p.GroupBy) })
}

// moment reads an RFC 3339 time or a UTC day.
func (f *faults) moment(field, text string) time.Time {
	if day, err := time.Parse(time.DateOnly, text); err == nil && day.Year() >= 1970 {
		return day
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil || at.Year() < 1970 {
		f.wrong(field, "must be an RFC 3339 time or a day such as 2026-01-31")
	}
	return at.UTC()
}

func usageRowOf(r store.UsageRow, groupBy string) usageRowJSON {
	j := usageRowJSON{Start: r.Start.UTC(), Meter: r.Meter, Unit: unitOf(r.Meter), Quantity: r.Quantity, Billable: r.Billable}
	switch groupBy {
	case "agent":
		j.Agent = &r.Group
	case "model":
		j.Model = &r.Group
	case "key":
		if id, err := uuid.Parse(r.Group); err == nil {
			key := store.FormatID(store.KeyPrefix, id)
			j.Key = &key
		}
	}
	return j
}

// unitOf names what a meter counts.
func unitOf(meter string) string {
	switch {
	case strings.HasSuffix(meter, "_ms"):
		return "ms"
	case strings.HasSuffix(meter, "_tokens"):
		return "tokens"
	case strings.HasSuffix(meter, "_microusd"):
		return "microusd"
	}
	return "tasks"
}

type quotaJSON struct {
	PeriodStart time.Time   `json:"period_start"`
	PeriodEnd   time.Time   `json:"period_end" description:"Exclusive."`
	IncludedMS  int64       `json:"included_ms"`
	UsedMS      int64       `json:"used_ms"`
	ReservedMS  int64       `json:"reserved_ms" description:"Held by what runs now."`
	RemainingMS int64       `json:"remaining_ms" description:"What may still be used, overage included."`
	State       string      `json:"state" enum:"ok,warned,exhausted" description:"warned from 80 % of the included time on; exhausted: tasks wait for the next period."`
	Overage     overageJSON `json:"overage" description:"Paid time past the plan. Owners turn it on with PATCH /v1/workspace."`

	ProviderBudget providerBudgetJSON `json:"provider_budget" description:"What model calls may cost. A call reserves the most that it can cost; tasks whose next call does not fit wait for provider_budget, unless it costs more than the whole budget: then they fail with task_cost_limit."`
}

type overageJSON struct {
	Enabled       bool  `json:"enabled"`
	SpendCapCents int64 `json:"spend_cap_cents" description:"Per UTC month."`
	AllowanceMS   int64 `json:"allowance_ms" description:"The time that the cap buys in a month; 0 while overage is off."`
	UsedMS        int64 `json:"used_ms" description:"The part of used_ms that is charged."`
	CostMicroUSD  int64 `json:"cost_microusd" description:"Of it, before taxes; rounded up."`
}

type providerBudgetJSON struct {
	IncludedMicroUSD  int64 `json:"included_microusd"`
	UsedMicroUSD      int64 `json:"used_microusd"`
	ReservedMicroUSD  int64 `json:"reserved_microusd" description:"Held by calls under way."`
	RemainingMicroUSD int64 `json:"remaining_microusd"`
	MaxTaskMicroUSD   int64 `json:"max_task_microusd" description:"What one task may cost, all its attempts together; past it it fails with task_cost_limit."`
}

func (s *Server) getQuota(q *request) (answer, error) {
	quota, err := s.Store.Quota(q.ctx, q.id.Workspace)
	o, p := quota.Overage, quota.Provider
	return answer{status: http.StatusOK, body: quotaJSON{PeriodStart: quota.PeriodStart, PeriodEnd: quota.PeriodEnd, IncludedMS: quota.IncludedMS,
		UsedMS: quota.UsedMS, ReservedMS: quota.ReservedMS, RemainingMS: quota.RemainingMS, State: quota.State,
		Overage: overageJSON{Enabled: o.Enabled, SpendCapCents: o.SpendCapCents, AllowanceMS: o.AllowanceMS, UsedMS: o.UsedMS, CostMicroUSD: o.CostMicroUSD},
		ProviderBudget: providerBudgetJSON{IncludedMicroUSD: p.Included, UsedMicroUSD: p.Used, ReservedMicroUSD: p.Reserved,
			RemainingMicroUSD: p.Remaining, MaxTaskMicroUSD: p.MaxTask}}}, err
}
