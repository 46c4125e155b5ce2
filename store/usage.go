package store

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// UsageQuery asks for sums of metering rows.
type UsageQuery struct {
	From, To time.Time // rows booked in [From, To)
	Hourly   bool      // one row per hour; else per UTC day
	GroupBy  string    // "" or meter: by meter alone; agent, model or key: by that too
	After    *UsageKey // the page begins behind this row
	Limit    int
}

// UsageKey is what a row of usage is sorted by: newest first, then meter, then group.
type UsageKey struct {
	Start time.Time `db:"start"` // of the hour or day, UTC
	Meter string    `db:"meter"`
	Group string    `db:"grp"` // agent, model, or key id as a UUID; empty when not grouped or sent with an access token
}

// UsageRow is one sum.
type UsageRow struct {
	UsageKey
	Quantity int64 `db:"quantity"`
	Billable int64 `db:"billable"` // the part of it that counts against the plan
}

// usageGroups are the columns a client may group by.
var usageGroups = map[string]string{"": "''", "meter": "''", "agent": "agent", "model": "model", "key": "coalesce(api_key_id::text, '')"}

// Usage sums metering rows: index metering_rows_day, whose range is the days that [From, To) touches.
func (a *API) Usage(ctx context.Context, ws uuid.UUID, q UsageQuery) ([]UsageRow, error) {
	group, ok := usageGroups[q.GroupBy]
	if !ok {
		return nil, &Error{Kind: Invalid, Field: "group_by", Message: "must be meter, agent, model or key"}
	}
	start := "day::timestamp AT TIME ZONE 'UTC'"
	if q.Hourly {
		start = "date_trunc('hour', at AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'"
	}
	args := []any{ws, q.From, q.To, q.From.UTC().Format(time.DateOnly), q.To.UTC().Format(time.DateOnly)}
	behind := ""
	if k := q.After; k != nil {
		args = append(args, k.Start, k.Meter, k.Group)
		behind = `WHERE start < $6 OR (start = $6 AND (meter, grp) > ($7, $8))`
	}
	args = append(args, q.Limit)
	rows := []UsageRow{}
	err := a.inWorkspace(ctx, ws, func(tx *sqlx.Tx) error {
		return tx.SelectContext(ctx, &rows, strings.NewReplacer("{start}", start, "{group}", group, "{behind}", behind, "{limit}", strconv.Itoa(len(args))).Replace(
			`SELECT start, meter, grp, quantity, billable FROM (
				SELECT {start} AS start, meter COLLATE "C" AS meter, {group} COLLATE "C" AS grp,
					sum(quantity)::bigint AS quantity, coalesce(sum(quantity) FILTER (WHERE billable), 0)::bigint AS billable
				FROM metering_rows WHERE workspace_id = $1 AND day BETWEEN $4::date AND $5::date AND at >= $2 AND at < $3
				GROUP BY 1, 2, 3) sums
			{behind} ORDER BY start DESC, meter, grp LIMIT ${limit}`), args...)
	})
	if err != nil {
		return nil, fmt.Errorf("sum usage: %w", err)
	}
	return rows, nil
}

// The states of a quota.
const (
	QuotaOK        = "ok"
	QuotaWarned    = "warned"    // 80 % and more are used
	QuotaExhausted = "exhausted" // too little is left to start a task of ten seconds or more
)

// Quota is a workspace's agent time, and what it may spend on it and on model calls, in this UTC month.
type Quota struct {
	PeriodStart, PeriodEnd                      time.Time // [start, end)
	IncludedMS, UsedMS, ReservedMS, RemainingMS int64     // remaining is what may still be reserved, overage included
	State                                       string
	Overage                                     Overage
	Provider                                    ProviderQuota
}

// Overage is the paid time past the plan.
type Overage struct {
	Enabled       bool
	SpendCapCents int64
	AllowanceMS   int64 // what the cap buys in a period; 0 while overage is off
	UsedMS        int64 // of Quota.UsedMS
	CostMicroUSD  int64 // of UsedMS, rounded up
}

// ProviderQuota is the provider budget, micro-dollars.
type ProviderQuota struct {
	Included, Used, Reserved, Remaining int64 // remaining is what is neither used nor reserved, at least 0
	MaxTask                             int64 // of one task, all its attempts together
}

// Quota reads what the workspace has left.
func (a *API) Quota(ctx context.Context, ws uuid.UUID) (Quota, error) {
	var l *load
	err := a.inWorkspace(ctx, ws, func(tx *sqlx.Tx) (err error) {
		l, err = (&Work{Workspace: ws, tx: tx}).readLoad(ctx)
		return err
	})
	if err != nil {
		return Quota{}, err
	}
	start := time.Date(l.Period.Year(), l.Period.Month(), 1, 0, 0, 0, 0, time.UTC)
	q := Quota{PeriodStart: start, PeriodEnd: start.AddDate(0, 1, 0), IncludedMS: l.QuotaMS, UsedMS: l.UsedMS, ReservedMS: l.reserved,
		RemainingMS: max(l.leftMS()-l.reserved, 0), State: QuotaOK,
		Overage: Overage{Enabled: l.Overage, SpendCapCents: l.SpendCapCents, AllowanceMS: l.AllowanceMS, UsedMS: l.OverageMS, CostMicroUSD: OverageMicroUSD(l.OverageMS)},
		Provider: ProviderQuota{Included: l.BudgetMicroUSD, Used: l.SpentMicroUSD, Reserved: l.open, MaxTask: l.MaxTaskCost,
			Remaining: max(l.BudgetMicroUSD-l.SpentMicroUSD-l.open, 0)}}
	switch {
	case l.leftMS() < minReservationMS:
		q.State = QuotaExhausted
	case l.UsedMS*100 >= l.QuotaMS*80:
		q.State = QuotaWarned
	}
	return q, nil
}
