package billing_test

import (
	"context"
	"strconv"
	"testing"
	"time"

	"github.com/stripe/stripe-go/v76"
	"github.com/stripe/stripe-go/v76/client"

	"github.com/generic-corp/muster/billing"
	"github.com/generic-corp/muster/store/storetest"
)

// api is finance's own client of the stand-in.
func (r *rig) api() *client.API {
	b := stripe.GetBackendWithConfig(stripe.APIBackend, &stripe.BackendConfig{URL: stripe.String(r.base), MaxNetworkRetries: stripe.Int64(0),
		LeveledLogger: &stripe.LeveledLogger{Level: stripe.LevelNull}})
	return client.New("sk_test_123", &stripe.Backends{API: b, Connect: b, Uploads: b})
}

func (r *rig) customer() string {
	r.t.Helper()
	c, err := r.api().Customers.New(&stripe.CustomerParams{})
	if err != nil {
		r.t.Fatal(err)
	}
	return c.ID
}

// foreign sends an event that is not Muster's.
func (r *rig) foreign(identifier, customer string, value int64, at time.Time) {
	r.t.Helper()
	_, err := r.api().BillingMeterEvents.New(&stripe.BillingMeterEventParams{EventName: stripe.String(billing.EventAgentMS),
		Identifier: stripe.String(identifier), Timestamp: stripe.Int64(at.Unix()),
		Payload: map[string]string{"stripe_customer_id": customer, "value": strconv.FormatInt(value, 10)}})
	if err != nil {
		r.t.Fatal(err)
	}
}

func TestWorkspacesWithoutACustomerAreLeftAlone(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	free := storetest.NewWorkspace(t, r.env, "free")
	r.meter(free, "2026-03-09", 10)
	if report := r.push(); report.Workspaces != 0 {
		t.Errorf("report %+v", report)
	}
	r.wantLedger(free)
	if found := r.reconcile(); found.Found() != 0 || found.Reasons[billing.ReasonNotBillable] != 1 {
		t.Errorf("reconcile %+v", found)
	}
}

func TestANewCustomerGetsTheDaysThatAreStillOpen(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ws, first := r.workspace()
	r.meter(ws, "2026-03-08", 10)
	r.push()
	second := r.customer()
	r.attach(ws, second, "")
	r.meter(ws, "2026-03-09", 5)
	r.push()
	r.wantStripe(first, map[string]int64{"2026-03-08": 10})
	r.wantStripe(second, map[string]int64{"2026-03-08": 10, "2026-03-09": 5})
	r.wantEqual(2)
}

func TestAPendingTotalOfALostCustomerIsClosed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ws, _ := r.workspace()
	r.meter(ws, "2026-03-09", 10)
	if err := r.stripe.SetSummaryLag(time.Hour); err != nil {
		t.Fatal(err)
	}
	r.tryPush(billing.Request{})
	r.exec(`UPDATE workspaces SET stripe_customer_id = NULL WHERE id = $1`, ws)
	r.push()
	r.wantLedger(ws, "03-09 10 not_billable accepted 1")
}

func TestADayThatStripeTakesNoMoreIsCarried(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ws, customer := r.workspace()
	before := storetest.NewWorkspace(t, r.env, "pro")
	r.attach(before, r.customer(), "")
	r.exec(`UPDATE workspaces SET stripe_customer_since = '2026-03-05' WHERE id = $1`, before)
	r.meter(ws, "2026-02-01", 10) // 37 days old
	r.meter(before, "2026-02-01", 99)
	r.meter(ws, "2026-02-04", 20) // 34 days old
	r.push()
	r.push()
	r.wantStripe(customer, map[string]int64{"2026-02-04": 20})
	r.wantLedger(ws, "02-01 10 carried  0", "02-04 20 confirmed accepted 1")
	r.wantLedger(before) // used before there was a customer to pay
	found := r.reconcile()
	if found.Found() != 0 || found.Reasons[billing.ReasonCarried] != 1 || found.Reasons[billing.ReasonNotBillable] != 1 {
		t.Errorf("reconcile %+v", found)
	}
}

func TestADryRunWritesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ws, customer := r.workspace()
	r.meter(ws, "2026-03-08", 10)
	r.push()
	r.meter(ws, "2026-03-08", 1)
	r.meter(ws, "2026-03-09", 5)
	sum := func() (s string) {
		t.Helper()
		err := r.admin.Get(&s, `SELECT (SELECT coalesce(sum(billable), 0) FROM daily_usage)::text || ' ' || (SELECT count(*) FROM push_ledger) || ' ' ||
			(SELECT count(*) FROM push_runs) || ' ' || (SELECT string_agg(p::text, ',') FROM push_progress p)`)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	before, posts := sum(), r.events()
	report := r.tryPush(billing.Request{DryRun: true})
	if len(report.Days) != 2 || report.Days[0].Value != 11 || report.Days[0].Before != 10 || report.Days[0].State != billing.Planned || report.Days[1].Value != 5 {
		t.Errorf("report %+v", report)
	}
	if after := sum(); after != before || r.events() != posts {
		t.Errorf("the dry run wrote: %s, before %s; %d events, before %d", after, before, r.events(), posts)
	}
	r.wantStripe(customer, map[string]int64{"2026-03-08": 10})
}

func TestANightIsBookedAndOnlyWhatIsLeftIsVisitedAgain(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	r := newRig(t)
	a, customerA := r.workspace()
	b, customerB := r.workspace()
	r.meter(a, "2026-03-09", 1)
	r.meter(b, "2026-03-09", 2)
	r.exec(`UPDATE workspaces SET stripe_customer_id = 'cus_unknown' WHERE id = $1`, b)
	if err := r.pusher.PushNight(ctx, tuesday); err == nil {
		t.Error("a night with something left is no error")
	}
	if done, err := r.system.PushRunFinished(ctx, tuesday); done || err != nil {
		t.Errorf("finished %v, %v", done, err)
	}
	r.wantStripe(customerA, map[string]int64{"2026-03-09": 1})
	r.exec(`UPDATE workspaces SET stripe_customer_id = $2 WHERE id = $1`, b, customerB)
	reads := r.stripe.Requests()["GET /v1/billing/meters/{id}/event_summaries"]
	if err := r.pusher.PushNight(ctx, tuesday); err != nil {
		t.Error(err)
	}
	if n := r.stripe.Requests()["GET /v1/billing/meters/{id}/event_summaries"] - reads; n != 4 {
		t.Errorf("%d reads of totals, want two per meter of the workspace that was left", n)
	}
	if done, err := r.system.PushRunFinished(ctx, tuesday); !done || err != nil {
		t.Errorf("finished %v, %v", done, err)
	}
	r.clock.set(tuesday.AddDate(0, 0, 1))
	if done, err := r.system.PushRunFinished(ctx, r.clock.get()); done || err != nil {
		t.Errorf("the next night is finished %v, %v", done, err)
	}
	r.wantEqual(2)
}

func TestAWrongKeyStopsTheRun(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ws, _ := r.workspace()
	r.meter(ws, "2026-03-09", 1)
	r.pusher = r.newPusher(func(c *billing.Config) { c.SecretKey = "rk_wrong"; c.Wait = time.Hour })
	if _, err := r.pusher.Push(context.Background(), billing.Request{}); err == nil {
		t.Error("pushed with a wrong key")
	}
	r.wantLedger(ws)
}
