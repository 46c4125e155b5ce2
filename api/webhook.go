package api

import (
	"context"
	"net/http"
)

// Stripe's webhook: the door only. What is signed and what is kept is billing's (billing/webhook.go).

// StripeEvents takes what Stripe sends. refusal says why an event is none of ours.
type StripeEvents interface {
	Receive(ctx context.Context, body []byte, signature string) (refusal string, err error)
}

type stripeWebhookParams struct {
	Signature string `header:"Stripe-Signature" description:"Stripe's, over the raw body."`
}

// receiveStripeEvent answers 200 once the event is committed, and to each repetition.
func (s *Server) receiveStripeEvent(q *request) (answer, error) {
	if s.StripeEvents == nil {
		return answer{}, refuse(probUnavailable, "no secret of the webhook is configured (STRIPE_WEBHOOK_SECRET)")
	}
	refusal, err := s.StripeEvents.Receive(q.ctx, q.body, q.gin.GetHeader("Stripe-Signature"))
	if err != nil {
		return answer{}, err
	}
	if refusal != "" {
		return answer{}, s.limitSender(q.gin, refuse(probBadRequest, refusal))
	}
	return answer{status: http.StatusOK}, nil
}
