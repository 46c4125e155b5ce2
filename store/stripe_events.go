package store

import (
	"context"
	"fmt"
	"time"
)

// The inbox of Stripe's events: each is committed once, as it was signed, before Stripe is told that it arrived. Nothing
// handles them yet: handled_at stays NULL.

// StripeEvent is an event whose signature was right.
type StripeEvent struct {
	ID         string // Stripe's, 1..255 characters
	Type       string // such as customer.subscription.updated
	Livemode   bool
	APIVersion string
	CreatedAt  time.Time // by Stripe's clock
	Payload    []byte    // at most 1 MiB
}

// KeepStripeEvent commits the event; fresh is false when it was there already, and nothing changes then.
func (a *API) KeepStripeEvent(ctx context.Context, e StripeEvent) (fresh bool, err error) {
	// No conflict target: naming one would ask for the right to read the table.
	done, err := a.db.ExecContext(ctx, `INSERT INTO stripe_events (id, type, livemode, api_version, created_at, payload)
		VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING`, e.ID, e.Type, e.Livemode, e.APIVersion, e.CreatedAt, e.Payload)
	if err != nil {
		return false, fmt.Errorf("keep stripe event: %w", err)
	}
	n, err := done.RowsAffected()
	return n == 1, err
}
