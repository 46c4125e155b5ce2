package billing_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stripe/stripe-go/v76/webhook"

	"github.com/generic-corp/muster/billing"
	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

const currentSecret, oldSecret = "whsec_the-current-secret-of-the-tests", "whsec_an-earlier-secret-of-the-tests"

// eventBody is an event as Stripe writes it.
func eventBody(id string, live bool) string {
	return fmt.Sprintf(`{"id": %q, "object": "event", "api_version": "2024-06-20", "created": 1767225600, "livemode": %v,
		"type": "customer.subscription.updated", "data": {"object": {"id": "sub_1", "object": "subscription", "note": "a\u0000b"}}}`, id, live)
}

func signed(body, secret string, at time.Time) string {
	return webhook.GenerateTestSignedPayload(&webhook.UnsignedPayload{Payload: []byte(body), Secret: secret, Timestamp: at}).Header
}

func TestStripeEventsAreKeptOnce(t *testing.T) {
	t.Parallel()
	env := storetest.New(t)
	hook, err := billing.NewWebhook([]string{currentSecret, oldSecret}, false, store.NewAPI(env.API(t)))
	if err != nil {
		t.Fatal(err)
	}
	kept := func(id string) (n int) {
		t.Helper()
		if err := env.Admin(t).Get(&n, `SELECT count(*) FROM stripe_events WHERE id = $1`, id); err != nil {
			t.Fatal(err)
		}
		return n
	}
	now := time.Now()
	for name, c := range map[string]struct {
		body, signature string
		good            bool
	}{
		"Signed":            {eventBody("evt_a", false), signed(eventBody("evt_a", false), currentSecret, now), true},
		"SignedByTheOldKey": {eventBody("evt_b", false), signed(eventBody("evt_b", false), oldSecret, now), true},
		"TwoSignatures": {eventBody("evt_c", false), signed(eventBody("evt_c", false), "whsec_x", now) + "," +
			strings.SplitAfter(signed(eventBody("evt_c", false), currentSecret, now), ",")[1], true},
		"FourMinutesOld":   {eventBody("evt_d", false), signed(eventBody("evt_d", false), currentSecret, now.Add(-4*time.Minute)), true},
		"SixMinutesOld":    {eventBody("evt_e", false), signed(eventBody("evt_e", false), currentSecret, now.Add(-6*time.Minute)), false},
		"Unsigned":         {eventBody("evt_f", false), "", false},
		"AnotherSecret":    {eventBody("evt_g", false), signed(eventBody("evt_g", false), "whsec_x", now), false},
		"NoSecret":         {eventBody("evt_h", false), signed(eventBody("evt_h", false), "", now), false},
		"AnotherBody":      {eventBody("evt_i", false), signed(eventBody("evt_j", false), currentSecret, now), false},
		"AnotherSpace":     {eventBody("evt_i", false) + " ", signed(eventBody("evt_i", false), currentSecret, now), false},
		"OlderScheme":      {eventBody("evt_k", false), strings.Replace(signed(eventBody("evt_k", false), currentSecret, now), "v1=", "v0=", 1), false},
		"NoTime":           {eventBody("evt_l", false), strings.SplitAfter(signed(eventBody("evt_l", false), currentSecret, now), ",")[1], false},
		"AnotherTime":      {eventBody("evt_m", false), "t=1," + strings.SplitAfter(signed(eventBody("evt_m", false), currentSecret, now), ",")[1], false},
		"Live":             {eventBody("evt_n", true), signed(eventBody("evt_n", true), currentSecret, now), false},
		"NoID":             {eventBody("", false), signed(eventBody("", false), currentSecret, now), false},
		"NULInTheID":       {eventBody("evt_\x00", false), signed(eventBody("evt_\x00", false), currentSecret, now), false},
		"EndlessID":        {eventBody(strings.Repeat("e", 300), false), signed(eventBody(strings.Repeat("e", 300), false), currentSecret, now), false},
		"SignedButNoEvent": {"[]", signed("[]", currentSecret, now), false},
		"SignedEmpty":      {"", signed("", currentSecret, now), false},
	} {
		t.Run(name, func(t *testing.T) {
			refusal, err := hook.Receive(t.Context(), []byte(c.body), c.signature)
			if err != nil || (refusal == "") != c.good {
				t.Fatalf("refusal %q, %v", refusal, err)
			}
			id := strings.SplitN(c.body, `"`, 5)
			if len(id) > 3 && !strings.ContainsAny(id[3], "\\\x00") {
				if want := map[bool]int{true: 1}[c.good]; kept(id[3]) != want {
					t.Errorf("kept %d, want %d", kept(id[3]), want)
				}
			}
			if strings.Contains(refusal, "whsec") {
				t.Errorf("the refusal shows a secret: %s", refusal)
			}
		})
	}
	t.Run("AHundredDeliveriesAtOnceAreOneRowAndAllAreAnswered", func(t *testing.T) {
		body := eventBody("evt_burst", false)
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if refusal, err := hook.Receive(context.Background(), []byte(body), signed(body, currentSecret, time.Now())); refusal != "" || err != nil {
					t.Errorf("%q %v", refusal, err)
				}
			})
		}
		wg.Wait()
		if n := kept("evt_burst"); n != 1 {
			t.Errorf("%d rows", n)
		}
	})
	t.Run("ARepetitionChangesNothing", func(t *testing.T) {
		env.Admin(t).MustExec(`UPDATE stripe_events SET handled_at = now() WHERE id = 'evt_burst'`)
		other := strings.Replace(eventBody("evt_burst", false), "updated", "deleted", 1) // signed all the same
		if refusal, err := hook.Receive(t.Context(), []byte(other), signed(other, currentSecret, now)); refusal != "" || err != nil {
			t.Errorf("%q %v", refusal, err)
		}
		var n int
		if err := env.Admin(t).Get(&n, `SELECT count(*) FROM stripe_events WHERE id = 'evt_burst' AND type LIKE '%updated' AND handled_at IS NOT NULL AND payload = $1`,
			[]byte(eventBody("evt_burst", false))); err != nil || n != 1 {
			t.Errorf("%d %v", n, err)
		}
	})
	t.Run("WhatCannotBeKeptIsNotAnswered", func(t *testing.T) {
		db, err := store.Open(t.Context(), "postgres://muster_api:x@127.0.0.1:1/none", 1)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		down, err := billing.NewWebhook([]string{currentSecret}, false, store.NewAPI(db))
		if err != nil {
			t.Fatal(err)
		}
		body := eventBody("evt_lost", false)
		if refusal, err := down.Receive(t.Context(), []byte(body), signed(body, currentSecret, now)); refusal != "" || !store.Unavailable(err) {
			t.Errorf("%q %v", refusal, err)
		}
	})
	t.Run("ALiveKeyTakesLiveEventsOnly", func(t *testing.T) {
		live, err := billing.NewWebhook([]string{currentSecret}, billing.LiveKey("sk_live_x"), store.NewAPI(env.API(t)))
		if err != nil {
			t.Fatal(err)
		}
		for id, mode := range map[string]bool{"evt_live": true, "evt_test": false} {
			refusal, err := live.Receive(t.Context(), []byte(eventBody(id, mode)), signed(eventBody(id, mode), currentSecret, now))
			if err != nil || (refusal == "") != mode {
				t.Errorf("%s: %q %v", id, refusal, err)
			}
		}
	})
	t.Run("NoSecretIsNoWebhook", func(t *testing.T) {
		for _, secrets := range [][]string{nil, {}, {""}, {" ", ""}} {
			if _, err := billing.NewWebhook(secrets, false, store.NewAPI(env.API(t))); err == nil {
				t.Errorf("%q are accepted", secrets)
			}
		}
	})
}

// memory keeps events without a ledger.
type memory struct{ kept int }

func (m *memory) KeepStripeEvent(context.Context, store.StripeEvent) (bool, error) {
	m.kept++
	return true, nil
}

// FuzzStripeSignature: nothing is kept but the very body under a signature of ours.
func FuzzStripeSignature(f *testing.F) {
	body := eventBody("evt_fuzz", false)
	header := signed(body, currentSecret, time.Now())
	f.Add(body, header)
	f.Add(body+" ", header)
	f.Add(body, strings.Replace(header, "v1", "v0", 1))
	f.Add(body, header+","+header)
	f.Add("", signed("", "", time.Now()))
	f.Add(body, "t=9999999999999999999,v1=00")
	f.Add(body, "t=-1,v1=,v1==,=")
	f.Add(strings.Repeat("[", 20_000), header)
	f.Fuzz(func(t *testing.T, body, header string) {
		box := &memory{}
		hook, err := billing.NewWebhook([]string{currentSecret, oldSecret}, false, box)
		if err != nil {
			t.Fatal(err)
		}
		refusal, err := hook.Receive(context.Background(), []byte(body), header)
		if err != nil || (refusal == "") != (box.kept == 1) {
			t.Fatalf("%q, %v, kept %d", refusal, err, box.kept)
		}
		ours := errors.Join(webhook.ValidatePayload([]byte(body), header, currentSecret), webhook.ValidatePayload([]byte(body), header, oldSecret))
		if refusal == "" && ours != nil && strings.Count(ours.Error(), "\n") == 1 {
			t.Errorf("kept under %q", header)
		}
		if now := time.Now(); box.kept == 1 { // the twin: any change of what was kept is refused
			header := signed(body, currentSecret, now)
			for i := range body {
				changed := body[:i] + string(body[i]^1) + body[i+1:]
				if refusal, _ := hook.Receive(context.Background(), []byte(changed), header); refusal == "" {
					t.Fatalf("accepted with byte %d changed", i)
				}
			}
		}
	})
}
