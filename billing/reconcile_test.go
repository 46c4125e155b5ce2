package billing_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stripe/stripe-go/v76"

	"github.com/generic-corp/muster/billing"
	"github.com/generic-corp/muster/store/storetest"
)

// reconciled is a rig with a pushed day, at noon of the next.
func reconciled(t *testing.T) (*rig, uuid.UUID, string) {
	r := newRig(t)
	ws, customer := r.workspace()
	r.meter(ws, "2026-03-09", 57)
	r.push()
	r.clock.set(tuesday.Add(10 * time.Hour))
	r.wantEqual(1)
	return r, ws, customer
}

func TestReconcileFindsEachBookThatIsApart(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 3, 9, 23, 59, 59, 0, time.UTC)
	for _, c := range []struct {
		name, note string
		spoil      func(r *rig, ws uuid.UUID, customer string)
	}{
		{"Rows", "daily usage is not the sum", func(r *rig, ws uuid.UUID, _ string) { r.meter(ws, "2026-03-09", 1) }},
		{"RowsThatAreNotBillable", "daily usage is not the sum", func(r *rig, ws uuid.UUID, _ string) { r.meterAs(ws, "2026-03-09", 1, false) }},
		{"DailyUsage", "daily usage is not the sum", func(r *rig, ws uuid.UUID, _ string) { r.exec(`UPDATE daily_usage SET billable = billable + 1`) }},
		{"DailyUsageOfAnotherMeter", "daily usage is not the sum", func(r *rig, ws uuid.UUID, _ string) {
			r.exec(`INSERT INTO daily_usage (workspace_id, day, meter, quantity, billable) VALUES ($1, '2026-03-09', 'tasks', 1, 1)`, ws)
		}},
		{"LedgerAndStripe", "the ledger has not pushed", func(r *rig, ws uuid.UUID, customer string) {
			r.exec(`UPDATE push_ledger SET value = 56`)
			r.foreign("x", customer, 56, at)
		}},
		{"LedgerRowGone", "Stripe does not show", func(r *rig, ws uuid.UUID, _ string) { r.exec(`DELETE FROM push_ledger`) }},
		{"Stripe", "Stripe does not show", func(r *rig, ws uuid.UUID, customer string) { r.foreign("x", customer, 56, at) }},
		{"StripeAlone", "only Stripe knows", func(r *rig, ws uuid.UUID, customer string) { r.foreign("x", customer, 1, at.AddDate(0, 0, -1)) }},
		{"PendingForDays", "on its way since", func(r *rig, ws uuid.UUID, _ string) {
			r.exec(`UPDATE push_ledger SET status = 'pending', value = 58, created_at = '2026-03-07'`)
		}},
		{"NeverPushed", "the ledger has not pushed", func(r *rig, ws uuid.UUID, _ string) {
			r.meter(ws, "2026-03-07", 1)
			r.exec(`INSERT INTO daily_usage (workspace_id, day, meter, quantity, billable) VALUES ($1, '2026-03-07', 'agent_ms', 1, 1)`, ws)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r, ws, customer := reconciled(t)
			c.spoil(r, ws, customer)
			found := r.reconcile()
			if found.Found() != 1 || len(found.Differences) != 1 || !strings.Contains(found.Differences[0].Note, c.note) {
				t.Errorf("found %+v, want one difference: %s", found.Differences, c.note)
			}
		})
	}
}

func TestReconcileTellsTodayApart(t *testing.T) {
	t.Parallel()
	r, ws, _ := reconciled(t)
	r.meter(ws, "2026-03-10", 5)
	open := func(want int) {
		t.Helper()
		if found := r.reconcile(); found.Found() != 0 || found.Reasons[billing.ReasonOpen] != want {
			t.Errorf("reconcile %+v, want %d open", found, want)
		}
	}
	open(1)
	if err := r.tryPush(billing.Request{Day: r.clock.get()}).Err(); err != nil {
		t.Fatal(err)
	}
	open(0)
	// A task that ends now is booked by the database's clock, behind the roll-up.
	r.exec(`UPDATE daily_usage SET updated_at = '2026-03-10 12:00:00.5+00' WHERE day = '2026-03-10'`)
	r.meter(ws, "2026-03-10", 2)
	open(1)
	// The roll-up long after the last row must have it.
	r.exec(`UPDATE daily_usage SET updated_at = '2026-03-10 13:00:00+00' WHERE day = '2026-03-10'`)
	if found := r.reconcile(); found.Found() != 1 {
		t.Errorf("a roll-up that left a row out was not found: %+v", found)
	}
}

func TestADayIsNotDueBeforeTheNightHasHadItsTime(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ws, _ := r.workspace()
	r.meter(ws, "2026-03-09", 57)
	fresh := storetest.NewWorkspace(t, r.env, "pro")
	r.attach(fresh, r.customer(), "")
	r.exec(`UPDATE workspaces SET stripe_customer_since = '2026-03-10 09:00Z' WHERE id = $1`, fresh)
	r.meter(fresh, "2026-03-08", 57)
	if _, err := r.system.RollUp(t.Context(), tuesday.AddDate(0, 0, -3), tuesday); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		at          string
		found, open int
	}{{"2026-03-10T02:00:00Z", 0, 2}, {"2026-03-10T04:00:00Z", 1, 1}, {"2026-03-11T04:00:00Z", 2, 0}} {
		now, err := time.Parse(time.RFC3339, c.at)
		if err != nil {
			t.Fatal(err)
		}
		r.clock.set(now)
		if found := r.reconcile(); found.Found() != c.found || found.Reasons[billing.ReasonOpen] != c.open {
			t.Errorf("at %s: %d found, %d open, want %d and %d", c.at, found.Found(), found.Reasons[billing.ReasonOpen], c.found, c.open)
		}
	}
}

// subscribe gives the workspace a subscription over the calendar month, to the plan and both meters.
func (r *rig) subscribe(ws uuid.UUID, customer string) string {
	r.t.Helper()
	return r.subscribeTo(ws, customer, "pro", "agent_ms", "overage_ms")
}

func (r *rig) subscribeTo(ws uuid.UUID, customer string, items ...string) string {
	r.t.Helper()
	prices := r.setup().Prices
	now := r.clock.get()
	month := time.Date(now.Year(), now.Month(), 1, 0, 0, 0, 0, time.UTC)
	p := &stripe.SubscriptionParams{Customer: stripe.String(customer), BackdateStartDate: stripe.Int64(month.Unix()),
		BillingCycleAnchor: stripe.Int64(month.AddDate(0, 1, 0).Unix()), ProrationBehavior: stripe.String("none")}
	for _, name := range items {
		p.Items = append(p.Items, &stripe.SubscriptionItemsParams{Price: stripe.String(prices[name])})
	}
	sub, err := r.api().Subscriptions.New(p)
	if err != nil {
		r.t.Fatal(err)
	}
	r.attach(ws, customer, sub.ID)
	return sub.ID
}

func TestReconcileComparesInvoiceLines(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ws, customer := r.workspace()
	r.subscribe(ws, customer)
	r.meter(ws, "2026-02-27", 1000) // the period before
	r.meter(ws, "2026-03-01", 20)
	r.meter(ws, "2026-03-09", 57)
	r.push()
	if found := r.reconcile(); found.Found() != 0 || found.Invoices != 1 {
		t.Errorf("reconcile %+v, want one invoice and no difference", found)
	}
	r.clock.set(time.Date(2026, 4, 1, 2, 10, 0, 0, time.UTC)) // the draft of March was final at 1:00
	r.push()
	if found := r.reconcile(); found.Found() != 0 || found.Invoices != 2 {
		t.Errorf("reconcile %+v, want two invoices and no difference", found)
	}
	r.meter(ws, "2026-03-09", 3) // too late for the invoice
	r.push()
	found := r.reconcile()
	if found.Found() != 1 || len(found.Invoiced) != 1 || found.Invoiced[0].Quantity != 77 || found.Invoiced[0].Ledger != 80 {
		t.Errorf("reconcile %+v, want 77 on the invoice and 80 in the ledger", found)
	}
}
