package store

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/lib/pq"
)

// Margin is what a workspace brings and what it costs in this UTC month: the list price of its plan for the whole month
// against what was paid to model providers for its attempts. Overage is not in it, nor what machines cost.
type Margin struct {
	Workspace        uuid.UUID `db:"id"`
	Name             string    `db:"name"`
	Plan             string    `db:"plan"`
	PriceMicroUSD    int64     `db:"price"`
	CostMicroUSD     int64     `db:"cost"`
	ExpectedMicroUSD int64     `db:"expected"` // of the cost, by the plan; see Plan.ExpectedCostMicroUSD
}

// MicroUSD is the margin; below zero the workspace costs more than it brings.
func (m Margin) MicroUSD() int64 { return m.PriceMicroUSD - m.CostMicroUSD }

// marginRows are Margins; $1 to $3 are planFigures. The cost reads index metering_rows_day, this month's part of it.
const marginRows = `SELECT w.id, w.name, w.plan, coalesce(p.price, 0) AS price, coalesce(p.expected, 0) AS expected, c.cost
	FROM workspaces w LEFT JOIN unnest($1::text[], $2::bigint[], $3::bigint[]) AS p (id, price, expected) ON p.id = w.plan
	CROSS JOIN LATERAL (SELECT coalesce(sum(m.quantity), 0)::bigint AS cost FROM metering_rows m
		WHERE m.workspace_id = w.id AND m.meter = '` + MeterProviderCost + `' AND m.day >= ` + currentPeriod + `) c`

func planFigures() []any {
	var ids []string
	var prices, expected []int64
	for _, p := range Plans {
		ids, prices, expected = append(ids, p.ID), append(prices, p.PriceCents*10_000), append(expected, p.ExpectedCostMicroUSD)
	}
	return []any{pq.Array(ids), pq.Array(prices), pq.Array(expected)}
}

// Margin reads one workspace's.
func (s *System) Margin(ctx context.Context, ws uuid.UUID) (Margin, error) {
	var m Margin
	if err := s.db.GetContext(ctx, &m, marginRows+` WHERE w.id = $4`, append(planFigures(), ws)...); err != nil {
		return m, noRows(fmt.Errorf("read margin: %w", err), "workspace")
	}
	return m, nil
}

// WorstMargins lists the workspaces with the lowest margins, lowest first, among those that have cost anything this month.
func (s *System) WorstMargins(ctx context.Context, limit int) ([]Margin, error) {
	list := []Margin{}
	err := s.db.SelectContext(ctx, &list, marginRows+` WHERE c.cost > 0 ORDER BY coalesce(p.price, 0) - c.cost, w.id LIMIT $4`, append(planFigures(), limit)...)
	if err != nil {
		return nil, fmt.Errorf("list margins: %w", err)
	}
	return list, nil
}

// PlanMargin sums the workspaces of one plan.
type PlanMargin struct {
	Plan          string `db:"plan"`
	Workspaces    int64  `db:"workspaces"`
	PriceMicroUSD int64  `db:"price"`
	CostMicroUSD  int64  `db:"cost"`
	Over          int64  `db:"over"` // workspaces past twice their expected cost
}

// PlanMargins sums the margins by plan, for the plans that have workspaces.
func (s *System) PlanMargins(ctx context.Context) ([]PlanMargin, error) {
	list := []PlanMargin{}
	err := s.db.SelectContext(ctx, &list, `SELECT plan, count(*) AS workspaces, sum(price)::bigint AS price, sum(cost)::bigint AS cost,
			count(*) FILTER (WHERE cost > 2 * expected) AS over FROM (`+marginRows+`) rows GROUP BY plan ORDER BY plan`, planFigures()...)
	if err != nil {
		return nil, fmt.Errorf("sum margins: %w", err)
	}
	return list, nil
}
