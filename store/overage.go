package store

import (
	"context"
	"fmt"
)

// Overage: past the included time a paid workspace whose owners have asked for it goes on, at a price per millisecond
// and up to their own spend cap. The cap buys a number of milliseconds (OverageMS), and that number bounds claims as the
// quota does: at every commit, while nobody lowers a limit,
//
//	used + reserved <= quota + allowance
//
// A finish divides its time (load.charge): what the plan still includes is included, the rest is overage and charged,
// never past the allowance. What was once charged stays charged and does not count against the included time of a plan
// that grows later in the month; what was included stays included when the plan shrinks.

// OverageTier is a step of the overage price.
type OverageTier struct {
	UpToMS    int64 // of one UTC month's overage; 0 for no end
	PicoCents int64 // price of a millisecond in 10⁻¹² US cents, the smallest unit that Stripe takes
}

// OverageTiers is the price of agent time past the plan: 1 cent per minute, then 0.9 past 100,000 minutes, 0.8 past
// 500,000. A minute at these rates is exact to a millionth of a cent.
var OverageTiers = []OverageTier{
	{100_000 * minuteMS, 16_666_667},
	{500_000 * minuteMS, 15_000_000},
	{0, 13_333_333},
}

// MaxSpendCapCents is the highest spend cap: $50,000 a month.
const MaxSpendCapCents = 5_000_000

const (
	picoPerCent     = 1_000_000_000_000
	picoPerMicroUSD = picoPerCent / 10_000
)

// OverageMS is the most overage, in milliseconds of one month, that costs no more than so many cents (0 to
// MaxSpendCapCents). Nor does the invoice, which rounds each tier's line to a cent.
func OverageMS(cents int64) (ms int64) {
	left := cents * picoPerCent
	for _, t := range OverageTiers {
		if t.UpToMS == 0 || left < (t.UpToMS-ms)*t.PicoCents {
			return ms + left/t.PicoCents
		}
		left -= (t.UpToMS - ms) * t.PicoCents
		ms = t.UpToMS
	}
	return ms
}

// OverageMicroUSD is what so many milliseconds of one month's overage cost, rounded up.
func OverageMicroUSD(ms int64) int64 {
	var pico, below int64
	for _, t := range OverageTiers {
		upTo := t.UpToMS
		if upTo == 0 || ms < upTo {
			upTo = ms
		}
		pico += (upTo - below) * t.PicoCents
		if below = upTo; below == ms {
			break
		}
	}
	return (pico + picoPerMicroUSD - 1) / picoPerMicroUSD
}

// leftMS is the time that is neither used nor forbidden, reservations aside.
func (l *load) leftMS() int64 { return l.includedMS() + max(l.AllowanceMS-l.OverageMS, 0) }

// includedMS is what the plan still includes.
func (l *load) includedMS() int64 { return max(l.QuotaMS-(l.UsedMS-l.OverageMS), 0) }

// charge books an attempt's billable time and returns how much of it is overage. A reservation fits into what is left,
// so only work that ran while a limit was lowered can end past the allowance: that part is nobody's to pay.
func (l *load) charge(ms int64) (overage int64) {
	overage = min(max(ms-l.includedMS(), 0), max(l.AllowanceMS-l.OverageMS, 0))
	l.UsedMS += ms
	l.OverageMS += overage
	return overage
}

// setOverage decides what the cap buys. A plan without a price has no overage: it ends with a downgrade to one.
func (l *load) setOverage(enabled bool, capCents int64, p Plan) {
	l.Overage, l.SpendCapCents, l.AllowanceMS = enabled && p.PriceCents > 0, capCents, 0
	if l.Overage {
		l.AllowanceMS = OverageMS(capCents)
	}
}

// OverageSetting is what owners decide. It holds from the next claim on; running work is not cut.
type OverageSetting struct {
	Enabled       bool
	SpendCapCents *int64 // per UTC month, 1 to MaxSpendCapCents; nil keeps what is there
}

// setOverage turns paid time past the plan on or off. PlanLimit when the plan has no price, Invalid when it is turned on
// without a cap.
func (w *Work) setOverage(ctx context.Context, o OverageSetting) error {
	l, err := lockLoad(ctx, w.tx, w.Workspace)
	if err != nil {
		return err
	}
	var id string
	if err := w.tx.GetContext(ctx, &id, `SELECT plan FROM workspaces WHERE id = $1`, w.Workspace); err != nil {
		return noRows(fmt.Errorf("read plan: %w", err), "workspace")
	}
	plan, _ := PlanByID(id)
	if o.Enabled && plan.PriceCents == 0 {
		return refuse(PlanLimit, "the plan %s has no time past what it includes", id)
	}
	capCents := l.SpendCapCents
	if o.SpendCapCents != nil {
		capCents = *o.SpendCapCents
	}
	if o.Enabled && capCents == 0 || capCents < 0 || capCents > MaxSpendCapCents {
		return &Error{Kind: Invalid, Field: "overage.spend_cap_cents", Message: fmt.Sprintf("must be from 1 to %d", MaxSpendCapCents)}
	}
	l.setOverage(o.Enabled, capCents, plan)
	_, err = w.tx.ExecContext(ctx, `UPDATE workspace_load SET overage_enabled = $2, spend_cap_cents = $3, overage_allowance_ms = $4 WHERE workspace_id = $1`,
		w.Workspace, l.Overage, l.SpendCapCents, l.AllowanceMS)
	if err != nil {
		return fmt.Errorf("set overage: %w", err)
	}
	return w.settle(ctx, l)
}
