package main

import (
	"context"
	"fmt"
	"net/url"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/api"
	"github.com/generic-corp/muster/api/mail"
	"github.com/generic-corp/muster/api/webhooks"
	"github.com/generic-corp/muster/store"
)

// Customers' webhooks: what a scheduler sends them with, and the letter to the owners of one that was disabled.

// newWebhookSender makes a sender with connections of its own; the function gives them back.
func newWebhookSender(ctx context.Context, cfg Config, reg prometheus.Registerer, log zerolog.Logger) (*webhooks.Sender, func(), error) {
	keys, err := cfg.Webhooks.keys()
	if err != nil {
		return nil, nil, err
	}
	if !keys.Ready() {
		log.Warn().Msg("WEBHOOK_KEYS is not set: nothing is sent to customers' webhooks")
		return nil, func() {}, nil
	}
	db, err := openLedger(ctx, cfg.SystemDatabaseURL, "SYSTEM_DATABASE_URL", webhookConns, log)
	if err != nil {
		return nil, nil, err
	}
	return webhooks.New(webhooks.Config{Ledger: store.NewSystem(db), Client: cfg.Webhooks.rules().Client(), Keys: keys, Render: api.WebhookBody,
		Metrics: webhooks.NewMetrics(reg), Log: log, Version: version()}), func() { db.Close() }, nil
}

// mailWebhookLetters tells owners of endpoints that were disabled. A letter that may pass later is tried again whole:
// an owner who had got it gets it twice.
func (s *scheduler) mailWebhookLetters(ctx context.Context) error {
	for {
		l, err := s.system.TakeWebhookLetter(ctx)
		if err != nil || l == nil {
			return err
		}
		subject, text := webhookLetter(l)
		for _, address := range l.Emails {
			failure := s.mail.Deliver(ctx, address, subject, text)
			if failure == nil {
				s.metrics.mails.WithLabelValues("sent").Inc()
				continue
			}
			if !mail.Permanent(failure) && l.Tries < store.MailTries {
				s.metrics.mails.WithLabelValues("failed").Inc()
				s.log.Warn().Str("reason", mail.Reason(failure)).Int("try", l.Tries).Msg("a webhook's letter could not be sent; it will be tried again")
				return nil
			}
			s.metrics.mails.WithLabelValues("given_up").Inc()
			s.log.Error().Str("reason", mail.Reason(failure)).Int("tries", l.Tries).Msg("a webhook's letter is given up")
		}
		book, cancel := context.WithTimeout(context.WithoutCancel(ctx), bookingTime)
		err = s.system.BookWebhookLetter(book, l)
		cancel()
		if err != nil {
			return err
		}
	}
}

func webhookLetter(l *store.WebhookLetter) (subject, text string) {
	host := "its address"
	if u, err := url.Parse(l.URL); err == nil {
		host = u.Host
	}
	why := fmt.Sprintf("nothing that was sent there has arrived for %d days", int(store.WebhookPatience.Hours()/24))
	if l.Why == store.DisabledGone {
		why = "it answered that it is gone (HTTP status 410)"
	}
	return "A webhook was disabled on Muster", fmt.Sprintf("The webhook %s of the workspace %q, at %s, was disabled because %s.\n\n"+
		"Nothing more is sent to it. Once it works again, enable it with PATCH /v1/webhooks/%[1]s and send again what it has missed with "+
		"POST /v1/webhooks/%[1]s/deliveries/replay. You get this letter because you own the workspace.\n",
		store.FormatID(store.WebhookPrefix, l.Endpoint), printable(l.Name), host, why)
}
