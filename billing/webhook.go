package billing

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/stripe/stripe-go/v76/webhook"

	"github.com/generic-corp/muster/store"
)

// Stripe tells what happens by calling us. An event counts when its signature over the raw body is right and fresh and it
// is of the same mode (live or test) as our key; it is then committed to the inbox, once per id, before Stripe hears that it
// arrived. Stripe repeats what it did not hear that of for three days, in no order. Nothing acts on the events yet.

// Inbox keeps events; *store.API is one.
type Inbox interface {
	// KeepStripeEvent commits the event; fresh is false when it was there.
	KeepStripeEvent(ctx context.Context, e store.StripeEvent) (fresh bool, err error)
}

// tolerance is how old a signature may be: whoever records a delivery cannot repeat it later.
const tolerance = webhook.DefaultTolerance // 300 s

// Webhook receives events.
type Webhook struct {
	secrets []string
	live    bool
	inbox   Inbox
}

// NewWebhook takes the endpoint's signing secrets, at least one: all are accepted, so that one can be rolled. live is the mode
// of our key.
func NewWebhook(secrets []string, live bool, inbox Inbox) (*Webhook, error) {
	if len(secrets) == 0 || strings.TrimSpace(strings.Join(secrets, "")) == "" {
		return nil, errors.New("no signing secret of Stripe's webhook") // HMAC takes an empty key, and everybody has that
	}
	return &Webhook{secrets: secrets, live: live, inbox: inbox}, nil
}

// LiveKey reports whether a key of Stripe's (sk_live_…, rk_live_…) moves real money.
func LiveKey(key string) bool {
	return strings.HasPrefix(key, "sk_live_") || strings.HasPrefix(key, "rk_live_")
}

// Receive keeps the event whose raw body and Stripe-Signature these are. refusal says, in words for Stripe's log, why it is
// none of ours; err is ours, and Stripe should come again.
func (w *Webhook) Receive(ctx context.Context, body []byte, signature string) (refusal string, err error) {
	e, refusal := w.verify(body, signature)
	if refusal != "" {
		return refusal, nil
	}
	_, err = w.inbox.KeepStripeEvent(ctx, e)
	return "", err
}

// verify reads an event whose signature is right.
func (w *Webhook) verify(body []byte, signature string) (store.StripeEvent, string) {
	refusal := "the signature is missing or malformed, or of another secret or body"
	for _, secret := range w.secrets {
		e, err := webhook.ConstructEventWithOptions(body, signature, secret, webhook.ConstructEventOptions{Tolerance: tolerance, IgnoreAPIVersionMismatch: true})
		switch {
		case errors.Is(err, webhook.ErrTooOld): // told before the signature is looked at: true of any secret
			return store.StripeEvent{}, "the signature is more than five minutes old"
		case errors.Is(err, webhook.ErrNotSigned), errors.Is(err, webhook.ErrInvalidHeader), errors.Is(err, webhook.ErrNoValidSignature):
			continue
		case err != nil:
			return store.StripeEvent{}, "the body is no event"
		case !sound(e.ID) || !sound(string(e.Type)):
			return store.StripeEvent{}, "the event has no id or no type"
		case e.Livemode != w.live:
			return store.StripeEvent{}, "the event is of the other mode: live events and test events have endpoints of their own"
		}
		return store.StripeEvent{ID: e.ID, Type: string(e.Type), Livemode: e.Livemode, APIVersion: strings.ToValidUTF8(strings.ReplaceAll(e.APIVersion, "\x00", ""), ""),
			CreatedAt: time.Unix(e.Created, 0), Payload: body}, ""
	}
	return store.StripeEvent{}, refusal
}

// sound: 1 to 255 characters that the ledger can hold.
func sound(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return len(s) >= 1 && len(s) <= 255
}
