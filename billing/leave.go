package billing

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/stripe/stripe-go/v76"
)

// EndSubscription ends a subscription at once, for a customer who leaves: what was used is invoiced now, and what was
// paid for the time ahead is credited. Ending one that has ended changes nothing; one that Stripe does not know is an
// error, since then another account bills the customer.
func (p *Pusher) EndSubscription(ctx context.Context, subscription string) error {
	end := &stripe.SubscriptionCancelParams{InvoiceNow: stripe.Bool(true), Prorate: stripe.Bool(true)}
	end.Context = ctx
	_, err := p.account.api.Subscriptions.Cancel(subscription, end)
	var refused *stripe.Error
	if errors.As(err, &refused) && refused.HTTPStatusCode == http.StatusNotFound { // what has ended is not found for ending
		look := &stripe.SubscriptionParams{}
		look.Context = ctx
		found, lookErr := p.account.api.Subscriptions.Get(subscription, look)
		if lookErr == nil && found.Status == stripe.SubscriptionStatusCanceled {
			return nil
		}
		err = errors.Join(err, lookErr)
	}
	if err != nil {
		return fmt.Errorf("end subscription %s: %w", subscription, err)
	}
	return nil
}
