package api

import (
	"context"
	"database/sql/driver"
	"strings"
	"testing"
)

// events takes what is signed "good", and hears of everything.
type events struct {
	heard []string
	err   error
}

func (e *events) Receive(_ context.Context, body []byte, signature string) (string, error) {
	e.heard = append(e.heard, string(body))
	if signature != "good" {
		return "the signature is wrong", nil
	}
	return "", e.err
}

func TestStripesWebhook(t *testing.T) {
	t.Parallel()
	const path = "/v1/billing/webhook"
	box := &events{}
	w := newWorld(t, func(cfg *Config) { strict(cfg); cfg.StripeEvents = box })
	stripe := w.anonymous()
	t.Run("TheRawBodyIsHandedOnAndAnswered200", func(t *testing.T) {
		const raw = "{\"id\": \"evt_1\",\r\n \"id\": 2, \"n\": 1e999, \"s\": \"\\ud800\"} "
		stripe.post(path, raw, headers{"Stripe-Signature": "good", "Content-Type": "application/json; charset=utf-8"}).want(200)
		if box.heard[len(box.heard)-1] != raw {
			t.Errorf("%q", box.heard[len(box.heard)-1])
		}
	})
	t.Run("ARefusalIsA400", func(t *testing.T) {
		stripe.post(path, "{}").problem(probBadRequest)
		stripe.post(path, "{}", headers{"Stripe-Signature": "bad"}).problem(probBadRequest)
	})
	t.Run("WhatIsTooLargeOrNoJSONIsNotLookedAt", func(t *testing.T) {
		before := len(box.heard)
		stripe.post(path, strings.Repeat(" ", 1<<20+1), headers{"Stripe-Signature": "good"}).problem(probTooLarge)
		stripe.post(path, "{}", headers{"Stripe-Signature": "good", "Content-Type": "text/plain"}).problem(probMediaType)
		stripe.post(path, "{}", headers{"Stripe-Signature": "good", "Content-Encoding": "gzip"}).problem(probMediaType)
		if len(box.heard) != before {
			t.Error("it was looked at")
		}
	})
	t.Run("BurstsOfStripePassAndFloodsOfOthersDoNot", func(t *testing.T) {
		for range 1100 { // more than any address may send otherwise
			stripe.post(path, "{}", headers{"Stripe-Signature": "good"}).want(200)
		}
		flood := newWorldOn(t, w.env, func(cfg *Config) { strict(cfg); cfg.StripeEvents = &events{} }).anonymous()
		limited := false
		for range 1001 {
			limited = flood.post(path, "{}").status == 429 || limited
		}
		if !limited {
			t.Error("no end of bad signatures")
		}
		flood.post(path, "{}", headers{"Stripe-Signature": "good"}).want(200) // though Stripe came from there
	})
	t.Run("WithoutALedgerStripeComesAgain", func(t *testing.T) {
		down := newWorldOn(t, w.env, func(cfg *Config) { cfg.StripeEvents = &events{err: driver.ErrBadConn} })
		down.anonymous().post(path, "{}", headers{"Stripe-Signature": "good"}).problem(probUnavailable)
	})
	t.Run("WithoutASecretItIsClosed", func(t *testing.T) {
		newWorldOn(t, w.env, nil).anonymous().post(path, "{}", headers{"Stripe-Signature": "good"}).problem(probUnavailable)
	})
}
