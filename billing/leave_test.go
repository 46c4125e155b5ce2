package billing_test

import (
	"context"
	"net/http"
	"testing"

	"github.com/stripe/stripe-go/v76"

	"github.com/generic-corp/muster/billing/stripetest"
)

func TestASubscriptionIsEndedOnceAndItsUsageInvoiced(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := context.Background()
	ws, customer := r.workspace()
	sub := r.subscribe(ws, customer)
	r.meter(ws, "2026-03-09", 57)
	r.push()
	r.arm(stripetest.Fault{Method: http.MethodDelete, Path: "/v1/subscriptions/" + sub, DropReply: true})
	if err := r.pusher.EndSubscription(ctx, sub); err == nil {
		t.Error("a lost answer is no end")
	}
	for range 2 { // again after a crash
		if err := r.pusher.EndSubscription(ctx, sub); err != nil {
			t.Fatal(err)
		}
	}
	ended, err := r.api().Subscriptions.Get(sub, nil)
	if err != nil || ended.Status != stripe.SubscriptionStatusCanceled {
		t.Errorf("status %v, %v", ended.Status, err)
	}
	if found := r.reconcile(); found.Found() != 0 || found.Invoices != 1 {
		t.Errorf("reconcile %+v, want the last invoice and no difference", found)
	}
	r.exec(`UPDATE workspaces SET status = 'deleted', name = 'deleted', deleting_at = now(), erasing_at = now(), deleted_at = now() WHERE id = $1`, ws)
	r.meter(ws, "2026-03-09", 3) // what a late correction would be: the books of a deleted workspace go on
	r.push()
	r.wantStripe(customer, map[string]int64{"2026-03-09": 60})
	if err := r.pusher.EndSubscription(ctx, "sub_of_another_account"); err == nil {
		t.Error("a subscription that Stripe does not know has ended")
	}
}
