package billing_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stripe/stripe-go/v76"

	"github.com/generic-corp/muster/billing"
	"github.com/generic-corp/muster/store"
)

// meterOverage books overage on a day, as a finished attempt would have, with the agent time that it is a part of.
func (r *rig) meterOverage(ws uuid.UUID, day string, ms int64) {
	r.t.Helper()
	attempt := uuid.New()
	for _, meter := range []string{store.MeterAgentMS, store.MeterOverageMS} {
		r.exec(`INSERT INTO metering_rows (workspace_id, attempt_id, meter, quantity, billable, day, at, task_id, agent, model)
			VALUES ($1, $2, $3, $4, true, $5::date, ($5 || ' 12:00:00+00')::timestamptz, $6, 'yuki', 'auto')`, ws, attempt, meter, ms, day, uuid.New())
	}
}

func TestOverageIsPushedBesideAgentTimeAndBilledByItsTiers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		minutes int64
	}{{"InTheFirstTier", 90_000}, {"InTheSecond", 300_000}, {"InTheThird", 700_000}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			ws, customer := r.workspace()
			subscription := r.subscribe(ws, customer)
			r.exec(`UPDATE workspaces SET stripe_customer_since = '2020-01-01' WHERE id = $1`, ws)
			ms := c.minutes * 60_000
			r.meter(ws, "2026-03-07", 1_000) // included
			r.meterOverage(ws, "2026-03-08", ms/3)
			r.meterOverage(ws, "2026-03-09", ms-ms/3)
			report := r.push()
			if report.Sent != 5 || len(report.Days) != 5 {
				t.Errorf("report %+v", report)
			}
			r.wantStripe(customer, map[string]int64{"2026-03-07": 1_000, "2026-03-08": ms / 3, "2026-03-09": ms - ms/3})
			want := map[string]int64{"2026-03-08": ms / 3, "2026-03-09": ms - ms/3}
			if got := r.stripe.DayTotals(customer, billing.EventOverageMS); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("Stripe has %v of overage, want %v", got, want)
			}
			if again := r.push(); again.Sent != 0 {
				t.Errorf("sent again: %+v", again)
			}
			r.wantEqual(3)
			// The invoice charges the tiers' price of it, to the cent, and the cap that bought it covers it.
			quantity, cents := r.upcoming(subscription, r.setup().Prices["overage_ms"])
			priced := store.OverageMicroUSD(ms)
			if quantity != ms || abs(cents*10_000-priced) > 10_000 {
				t.Errorf("the invoice has %d ms for %d cents, the ledger %d ms for %d micro-dollars", quantity, cents, ms, priced)
			}
			if bought := store.OverageMS((priced + 9_999) / 10_000); bought < ms {
				t.Errorf("%d micro-dollars buy only %d ms", priced, bought)
			}
		})
	}
}

// upcoming sums a price's lines on the next invoice.
func (r *rig) upcoming(subscription, price string) (quantity, cents int64) {
	r.t.Helper()
	lines := r.api().Invoices.UpcomingLines(&stripe.InvoiceUpcomingLinesParams{Subscription: stripe.String(subscription)})
	for lines.Next() {
		if l := lines.InvoiceLineItem(); l.Price != nil && l.Price.ID == price {
			quantity, cents = quantity+l.Quantity, cents+l.Amount
		}
	}
	if err := lines.Err(); err != nil {
		r.t.Fatal(err)
	}
	return quantity, cents
}

func abs(n int64) int64 { return max(n, -n) }

func TestReconcileFindsOverageThatNoBookHasOrNoInvoiceBills(t *testing.T) {
	t.Parallel()
	t.Run("PushedTooLittle", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		ws, _ := r.workspace()
		r.meterOverage(ws, "2026-03-09", 5_000)
		r.push()
		r.exec(`UPDATE push_ledger SET value = 4999 WHERE meter = 'overage_ms'`)
		r.clock.set(tuesday.Add(24 * time.Hour))
		found := r.reconcile()
		if found.Found() != 1 || found.Differences[0].Meter != store.MeterOverageMS {
			t.Errorf("%+v", found)
		}
	})
	t.Run("NoLineOnTheInvoice", func(t *testing.T) {
		t.Parallel()
		r := newRig(t)
		ws, customer := r.workspace()
		r.subscribeTo(ws, customer, "pro", "agent_ms")
		r.exec(`UPDATE workspaces SET stripe_customer_since = '2020-01-01' WHERE id = $1`, ws)
		r.meter(ws, "2026-03-08", 1_000)
		r.push()
		r.wantEqual(1)
		r.meterOverage(ws, "2026-03-09", 5_000)
		r.push()
		found := r.reconcile()
		if len(found.Invoiced) != 1 || found.Invoiced[0].Meter != store.MeterOverageMS || found.Invoiced[0].Ledger != 5_000 || found.Invoiced[0].Quantity != 0 {
			t.Errorf("%+v", found)
		}
	})
}
