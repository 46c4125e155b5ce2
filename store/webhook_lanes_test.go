package store_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

func TestWebhookLanes(t *testing.T) {
	t.Parallel()
	ctx := context.Background()

	t.Run("ALaneIsServedByOneAtATime", func(t *testing.T) {
		t.Parallel()
		h := hooks{newLine(t)}
		var endpoints []uuid.UUID
		for range 3 {
			ws := storetest.NewWorkspace(t, h.env, "pro")
			for range 6 {
				endpoints = append(endpoints, h.endpoint(ws))
			}
			ids, _ := h.submit(ws, task("x"), task("y"))
			for _, id := range ids {
				h.must(ws, func(w *store.Work) error { _, err := w.Cancel(ctx, id); return err })
			}
		}
		b, err := h.system.WebhookBacklog(ctx)
		if err != nil || b.Lanes != len(endpoints) || b.DueSeconds <= 0 {
			t.Fatalf("%+v %v", b, err)
		}
		var mu sync.Mutex
		held := map[uuid.UUID]store.Lane{}
		perWorkspace := map[uuid.UUID]int{}
		for range 5 { // one after the other: two at the same moment may pass the bound of a workspace by their difference
			lanes, err := h.system.TakeLanes(ctx, false, 5)
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range lanes {
				if _, twice := held[l.Endpoint]; twice {
					t.Errorf("lane %s was taken twice", l.Endpoint)
				}
				held[l.Endpoint] = l
				perWorkspace[l.Workspace]++
			}
		}
		for ws, n := range perWorkspace {
			if n != store.LanesPerWorkspace {
				t.Errorf("%d lanes of workspace %s are served", n, ws)
			}
		}
		for _, l := range held {
			if _, err := h.system.LeaveLane(ctx, l, store.Visited{Slow: true}); err != nil {
				t.Fatal(err)
			}
		}
		clear(held)
		var takers sync.WaitGroup
		for range 8 {
			takers.Go(func() {
				lanes, err := h.system.TakeLanes(ctx, true, 4)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				for _, l := range lanes {
					if _, twice := held[l.Endpoint]; twice || !l.Slow {
						t.Errorf("lane %+v was taken twice at once, or is not slow", l)
					}
					held[l.Endpoint] = l
				}
			})
		}
		takers.Wait()
		if len(held) == 0 {
			t.Fatal("nobody got a lane")
		}
		// A process that dies lets its leases lapse; what it books or leaves afterwards changes nothing.
		var l store.Lane
		for _, l = range held {
		}
		h.exec(`UPDATE webhook_endpoints SET leased_until = now() - interval '1 second' WHERE lease IS NOT NULL`)
		again, err := h.system.TakeLanes(ctx, true, 50)
		if err != nil || !slices.ContainsFunc(again, func(a store.Lane) bool { return a.Endpoint == l.Endpoint && a.Lease != l.Lease }) {
			t.Fatalf("a lapsed lane is not taken again: %v %v", again, err)
		}
		if _, err := h.system.LeaveLane(ctx, l, store.Visited{Gone: false, Pause: time.Hour}); err != nil {
			t.Fatal(err)
		}
		var n int
		if err := h.env.Admin(t).Get(&n, `SELECT count(*) FROM webhook_endpoints WHERE id = $1 AND lease IS NOT NULL AND not_before IS NULL`, l.Endpoint); err != nil || n != 1 {
			t.Errorf("whoever lost a lane ended another's lease: %v", err)
		}
	})

	t.Run("AnAttemptIsBookedOnce", func(t *testing.T) {
		t.Parallel()
		h := hooks{newLine(t)}
		ws := storetest.NewWorkspace(t, h.env, "pro")
		endpoint := h.endpoint(ws)
		h.must(ws, func(w *store.Work) error { _, err := w.TestWebhook(ctx, endpoint); return err })
		lane := h.lane()
		due, err := h.system.Due(ctx, lane, 10)
		if err != nil || len(due) != 1 {
			t.Fatal(due, err)
		}
		book := func(a store.Attempted, want bool) {
			t.Helper()
			if ok, err := h.system.BookDelivery(ctx, lane, a); ok != want || err != nil {
				t.Fatalf("booked %v %v", ok, err)
			}
		}
		book(store.Attempted{Delivery: due[0], Status: 500, Error: store.DeliveryStatus, Again: time.Hour}, true)
		book(store.Attempted{Delivery: due[0], Status: 200}, false) // its twin, late
		d := h.delivery(ws, endpoint)
		if d.Status != store.DeliveryWaiting || d.Attempts != 1 || *d.LastStatus != 500 || *d.LastError != store.DeliveryStatus || time.Until(d.NextAt) < 50*time.Minute {
			t.Errorf("%+v", d)
		}
		if due, err := h.system.Due(ctx, lane, 10); err != nil || len(due) != 0 {
			t.Fatal("due before its time", due, err)
		}
		h.must(ws, func(w *store.Work) error { _, err := w.ReplayDelivery(ctx, endpoint, d.ID); return err })
		if due, err = h.system.Due(ctx, lane, 10); err != nil || len(due) != 1 || due[0].Attempts != 0 {
			t.Fatal("a replay", due, err)
		}
		book(store.Attempted{Delivery: due[0], Error: store.DeliveryTimeout}, true)
		if d := h.delivery(ws, endpoint); d.Status != store.DeliveryDead || d.LastStatus != nil {
			t.Errorf("after the last attempt: %+v", d)
		}
		if _, ok, err := h.system.DeliveryEvent(ctx, lane, d.ID, 100); ok || err != nil {
			t.Error("a dead delivery is sent", err)
		}
		var n int
		h.must(ws, func(w *store.Work) (err error) {
			n, err = w.ReplayDeliveries(ctx, endpoint, store.DeliveryDead, time.Now().Add(-time.Hour), nil)
			return err
		})
		due, err = h.system.Due(ctx, lane, 10)
		if n != 1 || err != nil || len(due) != 1 {
			t.Fatal("replays in bulk", n, due, err)
		}
		book(store.Attempted{Delivery: due[0], Status: 204, Took: 12 * time.Millisecond}, true)
		if d := h.delivery(ws, endpoint); d.Status != store.DeliverySucceeded || d.DeliveredAt == nil || d.LastError != nil || *d.LastMS != 12 {
			t.Errorf("%+v", d)
		}
	})

	// A delivery dies 27 to 33 hours after its event, or unsent.
	t.Run("AReplayTakesWhatDiedSinceThen", func(t *testing.T) {
		t.Parallel()
		h := hooks{newLine(t)}
		ws := storetest.NewWorkspace(t, h.env, "pro")
		endpoint := h.endpoint(ws)
		replay := func(status string, since time.Duration, until *time.Time) (n int) {
			t.Helper()
			h.must(ws, func(w *store.Work) (err error) {
				n, err = w.ReplayDeliveries(ctx, endpoint, status, time.Now().Add(-since), until)
				return err
			})
			return n
		}
		attempt := func(a store.Attempted) { // the last, of an event of 33 hours ago
			t.Helper()
			h.must(ws, func(w *store.Work) error { _, err := w.TestWebhook(ctx, endpoint); return err })
			h.exec(`UPDATE webhook_deliveries SET created_at = now() - interval '33 hours', attempts = 7 WHERE status = 'waiting'`)
			h.exec(`UPDATE webhook_endpoints SET lease = NULL, leased_until = NULL`)
			lane := h.lane()
			due, err := h.system.Due(ctx, lane, 10)
			if err != nil || len(due) != 1 {
				t.Fatal(due, err)
			}
			a.Delivery = due[0]
			if ok, err := h.system.BookDelivery(ctx, lane, a); !ok || err != nil {
				t.Fatal(ok, err)
			}
		}
		attempt(store.Attempted{Status: 500, Error: store.DeliveryStatus})
		hourAgo := time.Now().Add(-time.Hour)
		if n := replay(store.DeliveryDead, 24*time.Hour, &hourAgo); n != 0 {
			t.Errorf("%d replayed of what died until an hour ago, where nothing did", n)
		}
		if n := replay(store.DeliveryDead, time.Hour, nil); n != 1 {
			t.Errorf("%d replayed of what died within the hour, where one did", n)
		}
		h.exec(`UPDATE webhook_deliveries SET status = 'dead', last_at = now() - interval '2 hours'`)
		if n := replay(store.DeliveryDead, time.Hour, nil); n != 0 {
			t.Errorf("%d replayed of what died within the hour, where nothing did", n)
		}
		if n := replay(store.DeliveryDead, 24*time.Hour, &hourAgo); n != 1 {
			t.Errorf("%d replayed of what died until an hour ago, where one did", n)
		}
		h.exec(`DELETE FROM webhook_deliveries`)
		attempt(store.Attempted{Status: 200})
		if n := replay(store.DeliverySucceeded, time.Hour, nil); n != 1 {
			t.Errorf("%d replayed of what arrived within the hour, where one did", n)
		}
		h.exec(`UPDATE webhook_deliveries SET created_at = now() - interval '33 hours', last_at = NULL, last_status = NULL`)
		for _, enabled := range []bool{false, true} { // given up unsent
			h.must(ws, func(w *store.Work) error {
				_, err := w.ChangeWebhook(ctx, endpoint, store.WebhookPatch{Enabled: &enabled})
				return err
			})
			h.sweep()
		}
		if d := h.delivery(ws, endpoint); d.Status != store.DeliveryDead || d.LastAt == nil || *d.LastError != store.DeliveryDisabled || d.LastStatus != nil {
			t.Errorf("given up unsent: %+v", d)
		}
		if n := replay(store.DeliveryDead, time.Hour, nil); n != 1 {
			t.Errorf("%d replayed of what was given up unsent within the hour, where one was", n)
		}
	})

	t.Run("AnEndpointThatIsGoneOrFailsForDaysIsDisabled", func(t *testing.T) {
		t.Parallel()
		h := hooks{newLine(t)}
		ws := storetest.NewWorkspace(t, h.env, "pro")
		endpoint := h.endpoint(ws)
		visit := func(v store.Visited) string {
			t.Helper()
			h.must(ws, func(w *store.Work) error { _, err := w.TestWebhook(ctx, endpoint); return err })
			h.exec(`UPDATE webhook_endpoints SET not_before = NULL`)
			why, err := h.system.LeaveLane(ctx, h.lane(), v)
			if err != nil {
				t.Fatal(err)
			}
			return why
		}
		days := func(n int) {
			h.exec(`UPDATE webhook_endpoints SET failing_since = failing_since - $1 * interval '1 day'`, n)
		}
		if why := visit(store.Visited{Failed: 2}); why != "" {
			t.Error("disabled at the first failure", why)
		}
		days(2)
		if why := visit(store.Visited{Failed: 1}); why != "" {
			t.Error("disabled after two days", why)
		}
		days(2)
		if why := visit(store.Visited{Succeeded: true, Failed: 1}); why != "" {
			t.Error("disabled although something came through", why)
		}
		days(4)
		if why := visit(store.Visited{Failed: 1}); why != store.DisabledFailing {
			t.Error("not disabled after four days", why)
		}
		if got := h.told(endpoint); len(got) != 4 {
			t.Fatal(got)
		}
		h.sweep()
		if d := h.delivery(ws, endpoint); d.Status != store.DeliveryDead || *d.LastError != store.DeliveryDisabled {
			t.Errorf("what waited for a disabled endpoint: %+v", d)
		}
		if err := h.work(ws, func(w *store.Work) error { _, err := w.TestWebhook(ctx, endpoint); return err }); store.KindOf(err) != store.Conflict {
			t.Errorf("a test of a disabled endpoint: %v", err)
		}
		letter, err := h.system.TakeWebhookLetter(ctx)
		if err != nil || letter == nil || letter.Why != store.DisabledFailing || len(letter.Emails) != 1 {
			t.Fatalf("letter %+v %v", letter, err)
		}
		if again, err := h.system.TakeWebhookLetter(ctx); again != nil || err != nil {
			t.Error("a letter is taken twice at once", err)
		}
		if err := h.system.BookWebhookLetter(ctx, letter); err != nil {
			t.Fatal(err)
		}
		yes := true
		h.must(ws, func(w *store.Work) error {
			_, err := w.ChangeWebhook(ctx, endpoint, store.WebhookPatch{Enabled: &yes})
			return err
		})
		if why := visit(store.Visited{Failed: 1}); why != "" {
			t.Error("what was held against it before counts", why)
		}
		if why := visit(store.Visited{Failed: 1, Gone: true}); why != store.DisabledGone {
			t.Error("a 410 does not disable", why)
		}
		var audited []string
		if err := h.env.Admin(t).Select(&audited, `SELECT details->>'why' FROM audit_log WHERE action = 'webhook.disable' ORDER BY seq`); err != nil || !slices.Equal(audited, []string{"failing", "gone"}) {
			t.Errorf("audited %v %v", audited, err)
		}
	})

	t.Run("AVisitSaysNothingOfAnEndpointThatWasChangedMeanwhile", func(t *testing.T) {
		t.Parallel()
		h := hooks{newLine(t)}
		ws := storetest.NewWorkspace(t, h.env, "pro")
		endpoint := h.endpoint(ws)
		change := func(p store.WebhookPatch) {
			t.Helper()
			h.must(ws, func(w *store.Work) error { _, err := w.ChangeWebhook(ctx, endpoint, p); return err })
		}
		url, no, yes := "https://other.example.com", false, true
		for name, meanwhile := range map[string]func(){
			"another URL":   func() { change(store.WebhookPatch{URL: &url}) },
			"enabled again": func() { change(store.WebhookPatch{Enabled: &no}); change(store.WebhookPatch{Enabled: &yes}) },
		} {
			for _, found := range []store.Visited{{Failed: 5, Slow: true, Pause: time.Hour}, {Failed: 1, Gone: true}} {
				h.must(ws, func(w *store.Work) error { _, err := w.TestWebhook(ctx, endpoint); return err })
				lane := h.lane()
				meanwhile()
				why, err := h.system.LeaveLane(ctx, lane, found)
				if err != nil || why != "" {
					t.Errorf("%s: %+v disables it (%s, %v)", name, found, why, err)
				}
				if n := h.count(`SELECT count(*) FROM webhook_endpoints WHERE id = $1 AND enabled AND lease IS NULL AND failures = 0 AND failing_since IS NULL
					AND not_before IS NULL AND NOT slow`, endpoint); n != 1 {
					t.Errorf("%s: %+v is held against it, or its lane is not free", name, found)
				}
			}
		}
	})

	t.Run("WhatHasServedIsSwept", func(t *testing.T) {
		t.Parallel()
		h := hooks{newLine(t)}
		ws := storetest.NewWorkspace(t, h.env, "pro")
		kept, gone := h.endpoint(ws), h.endpoint(ws)
		for _, e := range []uuid.UUID{kept, kept, gone} {
			h.must(ws, func(w *store.Work) error { _, err := w.TestWebhook(ctx, e); return err })
		}
		h.exec(`UPDATE webhook_deliveries SET created_at = created_at - interval '31 days' WHERE id = (SELECT id FROM webhook_deliveries WHERE endpoint_id = $1 LIMIT 1)`, kept)
		h.must(ws, func(w *store.Work) error { _, err := w.RotateWebhook(ctx, kept, sealed, time.Hour); return err })
		if err := h.work(ws, func(w *store.Work) error { _, err := w.RotateWebhook(ctx, kept, sealed, time.Hour); return err }); store.KindOf(err) != store.Conflict {
			t.Errorf("a third secret: %v", err)
		}
		if sealed, err := h.system.LaneSecrets(ctx, store.Lane{Workspace: ws, Endpoint: kept}); len(sealed) != 2 || err != nil {
			t.Errorf("%d secrets during the overlap, %v", len(sealed), err)
		}
		h.exec(`UPDATE webhook_secrets SET expires_at = now() - interval '1 second' WHERE expires_at IS NOT NULL`)
		h.must(ws, func(w *store.Work) error { return w.DeleteWebhook(ctx, gone) })
		h.sweep()
		var deliveries, secrets int
		if err := h.env.Admin(t).QueryRow(`SELECT (SELECT count(*) FROM webhook_deliveries), (SELECT count(*) FROM webhook_secrets)`).Scan(&deliveries, &secrets); err != nil || deliveries != 1 || secrets != 1 {
			t.Errorf("%d deliveries and %d secrets are left, %v", deliveries, secrets, err)
		}
	})

	t.Run("ThePlanBoundsThem", func(t *testing.T) {
		t.Parallel()
		h := hooks{newLine(t)}
		ws := storetest.NewWorkspace(t, h.env, "starter")
		for range 3 {
			h.endpoint(ws)
		}
		create := func(w *store.Work) error {
			_, err := w.CreateWebhook(ctx, store.NewWebhook{ID: store.NewID(), URL: "x", Events: store.WebhookEvents, Sealed: sealed})
			return err
		}
		if err := h.work(ws, create); store.KindOf(err) != store.PlanLimit {
			t.Errorf("a fourth: %v", err)
		}
		if _, err := h.system.SetLimits(ctx, ws, map[string]int64{"max_webhooks": 4}, store.Operator{Name: "test"}); err != nil {
			t.Fatal(err)
		}
		h.must(ws, create)
	})
}

func (h hooks) sweep() {
	h.t.Helper()
	if err := h.system.SweepWebhooks(context.Background()); err != nil {
		h.t.Fatal(err)
	}
}

// lane takes the one lane that is due.
func (h hooks) lane() store.Lane {
	h.t.Helper()
	lanes, err := h.system.TakeLanes(context.Background(), false, 10)
	if err != nil || len(lanes) != 1 {
		h.t.Fatalf("lanes %v %v", lanes, err)
	}
	return lanes[0]
}

// delivery is the endpoint's latest.
func (h hooks) delivery(ws, endpoint uuid.UUID) store.Delivery {
	h.t.Helper()
	list, err := h.api.Deliveries(context.Background(), ws, endpoint, store.DeliveryFilter{}, uuid.Nil, 1)
	if err != nil || len(list) != 1 {
		h.t.Fatalf("deliveries %v %v", list, err)
	}
	return list[0]
}
