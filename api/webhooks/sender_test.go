package webhooks_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/generic-corp/muster/api/webhooks"
	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

func TestTheReferenceLibraryVerifiesWhatIsSent(t *testing.T) {
	t.Parallel()
	p := newPost(t)
	ws := storetest.NewWorkspace(t, p.env, "pro")
	e := p.endpoint(ws, nil)
	p.start()
	e.tell(1)
	d := e.await(store.DeliverySucceeded, 1)[0]
	r := e.got()[0]
	if err := verify(t, e.secret, r); err != nil {
		t.Error(err)
	}
	if verify(t, webhooks.NewSecret(), r) == nil {
		t.Error("another secret verifies")
	}
	forged := r
	forged.body = append([]byte(" "), r.body...)
	if verify(t, e.secret, forged) == nil {
		t.Error("another body verifies")
	}
	if got := r.header.Get("webhook-id"); got != store.FormatID(store.EventPrefix, d.ID) {
		t.Errorf("webhook-id %s", got)
	}
	if ua := r.header.Get("User-Agent"); ua != "Muster-Webhooks/test" || r.header.Get("Content-Type") != "application/json" || r.header.Get("Accept-Encoding") != "" {
		t.Errorf("headers %v", r.header)
	}
	if *d.LastStatus != 200 || d.LastMS == nil || d.Attempts != 1 {
		t.Errorf("%+v", d)
	}

	second := webhooks.NewSecret()
	p.work(ws, func(w *store.Work) error {
		_, err := w.RotateWebhook(t.Context(), e.id, p.keys.Seal(second, ws, e.id), time.Hour)
		return err
	})
	e.tell(1)
	e.await(store.DeliverySucceeded, 2)
	r = e.got()[1]
	if n := len(strings.Fields(r.header.Get("webhook-signature"))); n != 2 {
		t.Errorf("%d signatures during the overlap", n)
	}
	for _, secret := range []string{e.secret, second} {
		if err := verify(t, secret, r); err != nil {
			t.Error(err)
		}
	}
	if _, err := p.env.Admin(t).Exec(`UPDATE webhook_secrets SET expires_at = now() WHERE expires_at IS NOT NULL`); err != nil {
		t.Fatal(err)
	}
	e.tell(1)
	e.await(store.DeliverySucceeded, 3)
	r = e.got()[2]
	if verify(t, second, r) != nil || verify(t, e.secret, r) == nil {
		t.Error("after the overlap the old secret signs, or the new one does not")
	}
	if strings.Contains(p.log.String(), "whsec_") {
		t.Error("a secret stands in the log")
	}
}

func TestADayOfRetries(t *testing.T) {
	t.Parallel()
	p := newPost(t)
	down := true
	var mu sync.Mutex
	e := p.endpoint(storetest.NewWorkspace(t, p.env, "pro"), func(_ int, w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if down {
			w.WriteHeader(http.StatusInternalServerError)
			fmt.Fprint(w, "secret internals")
		}
	})
	e.tell(1)
	p.start()
	planned := []time.Duration{5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour, 10 * time.Hour, 10 * time.Hour}
	var day time.Duration
	var d store.Delivery
	for n := 1; n <= webhooks.Tries; n++ {
		for deadline := time.Now().Add(30 * time.Second); d.Attempts != n; time.Sleep(5 * time.Millisecond) {
			if d = e.deliveries()[0]; time.Now().After(deadline) {
				t.Fatalf("attempt %d does not come: %+v", n, d)
			}
		}
		if n < webhooks.Tries {
			wait := d.NextAt.Sub(*d.LastAt)
			if wait < planned[n-1] || wait > planned[n-1]*12/10+time.Millisecond || d.Status != store.DeliveryWaiting {
				t.Errorf("after attempt %d it waits %s: %+v", n, wait, d)
			}
			day += planned[n-1]
			p.later()
		}
	}
	if d.Status != store.DeliveryDead || *d.LastError != store.DeliveryStatus || *d.LastStatus != 500 || day < 24*time.Hour {
		t.Errorf("after the last attempt, %s after the first: %+v", day, d)
	}
	if raw, _ := json.Marshal(d); strings.Contains(string(raw), "internals") {
		t.Error("what the endpoint answered is kept")
	}
	mu.Lock()
	down = false
	mu.Unlock()
	p.work(e.ws, func(w *store.Work) error {
		n, err := w.ReplayDeliveries(t.Context(), e.id, store.DeliveryDead, time.Now().Add(-time.Hour), nil)
		if n != 1 {
			err = errors.Join(err, fmt.Errorf("%d replayed", n))
		}
		return err
	})
	p.later()
	e.await(store.DeliverySucceeded, 1)
	ids := map[string]bool{}
	for _, r := range e.got() {
		ids[r.header.Get("webhook-id")] = true
		if err := verify(t, e.secret, r); err != nil {
			t.Error(err)
		}
	}
	if n := len(e.got()); len(ids) != 1 || n != webhooks.Tries+1 {
		t.Errorf("%d requests under %d ids", n, len(ids))
	}
}

func TestAnswersAreUnderstood(t *testing.T) {
	t.Parallel()
	p := newPost(t)
	var inside sync.Map
	internal := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { inside.Store(r.URL.Path, true) }))
	t.Cleanup(internal.Close)
	status := func(code int, header ...string) func(int, http.ResponseWriter, *http.Request) {
		return func(_ int, w http.ResponseWriter, _ *http.Request) {
			for i := 0; i+1 < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(code)
		}
	}
	cut := func(_ int, w http.ResponseWriter, _ *http.Request) {
		conn, _, _ := w.(http.Hijacker).Hijack()
		conn.Close()
	}
	garbage := func(_ int, w http.ResponseWriter, _ *http.Request) {
		conn, _, _ := w.(http.Hijacker).Hijack()
		fmt.Fprint(conn, "SSH-2.0-OpenSSH_9.2\r\n")
		conn.Close()
	}
	flood := func(_ int, w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < 1<<16; i++ {
			if _, err := w.Write(make([]byte, 1<<10)); err != nil {
				return
			}
		}
	}
	rows := []struct {
		name   string
		answer func(int, http.ResponseWriter, *http.Request)
		status string
		code   int
		wrong  string
		wait   [2]time.Duration // until the next attempt
		pauses bool             // the endpoint is left alone
	}{
		{"200", status(200), store.DeliverySucceeded, 200, "", [2]time.Duration{}, false},
		{"204", status(204), store.DeliverySucceeded, 204, "", [2]time.Duration{}, false},
		{"a long answer", flood, store.DeliverySucceeded, 200, "", [2]time.Duration{}, false},
		{"404", status(404), store.DeliveryWaiting, 404, store.DeliveryStatus, [2]time.Duration{5 * time.Second, 7 * time.Second}, false},
		{"410", status(410), store.DeliveryDead, 410, store.DeliveryStatus, [2]time.Duration{}, false},
		{"301", status(301, "Location", internal.URL+"/moved"), store.DeliveryWaiting, 301, store.DeliveryRedirect, [2]time.Duration{5 * time.Second, 7 * time.Second}, false},
		{"307", status(307, "Location", internal.URL+"/moved"), store.DeliveryWaiting, 307, store.DeliveryRedirect, [2]time.Duration{5 * time.Second, 7 * time.Second}, false},
		{"429 with Retry-After", status(429, "Retry-After", "120"), store.DeliveryWaiting, 429, store.DeliveryStatus, [2]time.Duration{119 * time.Second, 121 * time.Second}, true},
		{"503 with a date", status(503, "Retry-After", time.Now().Add(10*time.Minute).UTC().Format(http.TimeFormat)), store.DeliveryWaiting, 503, store.DeliveryStatus, [2]time.Duration{9 * time.Minute, 11 * time.Minute}, true},
		{"503 that asks for a year", status(503, "Retry-After", "31536000"), store.DeliveryWaiting, 503, store.DeliveryStatus, [2]time.Duration{time.Hour, time.Hour + time.Minute}, true},
		{"429 with nonsense", status(429, "Retry-After", "-5"), store.DeliveryWaiting, 429, store.DeliveryStatus, [2]time.Duration{5 * time.Second, 7 * time.Second}, false},
		{"500 with Retry-After", status(500, "Retry-After", "120"), store.DeliveryWaiting, 500, store.DeliveryStatus, [2]time.Duration{5 * time.Second, 7 * time.Second}, false},
		{"a cut", cut, store.DeliveryWaiting, 0, store.DeliveryBroken, [2]time.Duration{5 * time.Second, 7 * time.Second}, false},
		{"no HTTP", garbage, store.DeliveryWaiting, 0, store.DeliveryBroken, [2]time.Duration{5 * time.Second, 7 * time.Second}, false},
		{"no listener", nil, store.DeliveryWaiting, 0, store.DeliveryUnreachable, [2]time.Duration{5 * time.Second, 7 * time.Second}, false},
		{"a private address", nil, store.DeliveryWaiting, 0, store.DeliveryUnreachable, [2]time.Duration{5 * time.Second, 7 * time.Second}, false},
		{"another protocol", nil, store.DeliveryWaiting, 0, store.DeliveryTLS, [2]time.Duration{5 * time.Second, 7 * time.Second}, false},
	}
	var endpoints []*endpoint
	for _, row := range rows {
		e := p.endpoint(storetest.NewWorkspace(t, p.env, "pro"), row.answer)
		if to := map[string]string{"no listener": "http://127.0.0.1:1/", "a private address": "https://10.0.0.1/", "another protocol": "https" + strings.TrimPrefix(e.url, "http")}[row.name]; to != "" {
			p.work(e.ws, func(w *store.Work) error {
				_, err := w.ChangeWebhook(t.Context(), e.id, store.WebhookPatch{URL: &to})
				return err
			})
		}
		e.tell(1)
		endpoints = append(endpoints, e)
	}
	p.start()
	for i, row := range rows {
		e := endpoints[i]
		d := e.await(row.status, 1)[0]
		code, wrong := 0, ""
		if d.LastStatus != nil {
			code = *d.LastStatus
		}
		if d.LastError != nil {
			wrong = *d.LastError
		}
		wait := d.NextAt.Sub(*d.LastAt)
		if d.Attempts != 1 || code != row.code || wrong != row.wrong || d.Status == store.DeliveryWaiting && (wait < row.wait[0] || wait > row.wait[1]) {
			t.Errorf("%s: %d %q, next in %s: %+v", row.name, code, wrong, wait, d)
		}
		var pauses bool
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) { // the lane is left after the booking
			var leased bool
			if err := p.env.Admin(t).QueryRow(`SELECT lease IS NOT NULL, coalesce(not_before > now() + interval '10 seconds', false) FROM webhook_endpoints WHERE id = $1`, e.id).Scan(&leased, &pauses); err != nil {
				t.Fatal(err)
			}
			if !leased {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: the lane is not left", row.name)
			}
		}
		if pauses != row.pauses {
			t.Errorf("%s: pauses %v", row.name, pauses)
		}
		var gone bool
		if err := p.env.Admin(t).Get(&gone, `SELECT NOT enabled AND disabled_why = 'gone' FROM webhook_endpoints WHERE id = $1`, e.id); (gone != (row.code == 410)) || err != nil {
			t.Errorf("%s: gone %v %v", row.name, gone, err)
		}
	}
	inside.Range(func(path, _ any) bool { t.Errorf("a redirect was followed to %v", path); return true })
}

// One customer's endpoints that hang delay nobody else, and get a bounded number of requests at once.
func TestAHangingEndpointDelaysNobodyElse(t *testing.T) {
	t.Parallel()
	p := newPost(t)
	release := make(chan struct{})
	var hanging []*endpoint
	for range 12 {
		ws := storetest.NewWorkspace(t, p.env, "pro")
		for range 4 { // more lanes than there are places
			e := p.endpoint(ws, func(_ int, _ http.ResponseWriter, r *http.Request) {
				select {
				case <-release:
				case <-r.Context().Done():
				}
			})
			e.tell(6)
			hanging = append(hanging, e)
		}
	}
	good := p.endpoint(storetest.NewWorkspace(t, p.env, "pro"), nil)
	p.start()
	t.Cleanup(func() { close(release) })
	start := time.Now()
	good.tell(1)
	good.await(store.DeliverySucceeded, 1)
	first := time.Since(start) // at worst until those that have never been seen time out
	if first > 20*time.Second {
		t.Errorf("the first came after %s", first)
	}
	for deadline := time.Now().Add(40 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		var slow int
		if err := p.env.Admin(t).Get(&slow, `SELECT count(*) FROM webhook_endpoints WHERE slow`); err != nil {
			t.Fatal(err)
		}
		if slow == len(hanging) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d hanging endpoints are known as slow", slow, len(hanging))
		}
	}
	p.later() // all of them are due again, and serve among themselves
	for range 5 {
		start := time.Now()
		n := len(good.await(store.DeliverySucceeded, 1))
		good.tell(1)
		good.await(store.DeliverySucceeded, n+1)
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("beside known hanging endpoints one came after %s", took)
		}
	}
	for _, e := range hanging {
		e.mu.Lock()
		if e.max > 4 {
			t.Errorf("%d requests at once to one endpoint", e.max)
		}
		e.mu.Unlock()
	}
}

// Two senders share the work and send nothing twice.
func TestTwoSendersSendEachEventOnce(t *testing.T) {
	t.Parallel()
	p := newPost(t)
	ws := storetest.NewWorkspace(t, p.env, "pro")
	var endpoints []*endpoint
	for range 3 {
		e := p.endpoint(ws, func(int, http.ResponseWriter, *http.Request) { time.Sleep(5 * time.Millisecond) })
		e.tell(100)
		endpoints = append(endpoints, e)
	}
	stop := p.start()
	p.start()
	endpoints[0].await(store.DeliverySucceeded, 20)
	stop() // a shutdown: what is under way is booked, the other goes on
	for _, e := range endpoints {
		e.await(store.DeliverySucceeded, 100)
		ids := map[string]int{}
		for _, r := range e.got() {
			ids[r.header.Get("webhook-id")]++
		}
		if len(ids) != 100 || len(e.got()) != 100 || e.max > 4 {
			t.Errorf("%d requests of %d events, %d at once", len(e.got()), len(ids), e.max)
		}
	}
}

// An endpoint that fails again and again is tried with one event at a time, and ever less often.
func TestAFailingEndpointIsProbed(t *testing.T) {
	t.Parallel()
	p := newPost(t)
	e := p.endpoint(storetest.NewWorkspace(t, p.env, "pro"), func(_ int, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) })
	e.tell(60)
	p.start()
	for deadline, visits := time.Now().Add(40*time.Second), 0; visits < 3; time.Sleep(10 * time.Millisecond) {
		if err := p.env.Admin(t).Get(&visits, `SELECT failures FROM webhook_endpoints`); err != nil || time.Now().After(deadline) {
			t.Fatalf("%d requests, %d visits, %v", len(e.got()), visits, err)
		}
	}
	// A few at once until it is known to fail, then one after 2 s, then one after 4 s.
	requests := e.got()
	n := len(requests)
	if n > 12 || requests[n-2].at.Sub(requests[n-3].at) < 2*time.Second || requests[n-1].at.Sub(requests[n-2].at) < 4*time.Second {
		var at []time.Duration
		for _, r := range requests {
			at = append(at, r.at.Sub(requests[0].at))
		}
		t.Errorf("%d requests: %v", n, at)
	}
}

func TestSecretsAreSealedForOneEndpoint(t *testing.T) {
	t.Parallel()
	old, err := webhooks.NewKeys([][]byte{[]byte(strings.Repeat("o", 32))})
	if err != nil {
		t.Fatal(err)
	}
	both, err := webhooks.NewKeys([][]byte{[]byte(strings.Repeat("n", 32)), []byte(strings.Repeat("o", 32))})
	if err != nil {
		t.Fatal(err)
	}
	ws, id, secret := store.NewID(), store.NewID(), webhooks.NewSecret()
	sealed := old.Seal(secret, ws, id)
	if got, err := both.Open(sealed, ws, id); got != secret || err != nil {
		t.Error("a key that was replaced does not open any more", err)
	}
	if string(old.Seal(secret, ws, id)) == string(sealed) {
		t.Error("sealed alike twice")
	}
	if _, err := old.Open(both.Seal(secret, ws, id), ws, id); err == nil {
		t.Error("a key opens what another has sealed")
	}
	for name, open := range map[string]func() (string, error){
		"another endpoint":  func() (string, error) { return both.Open(sealed, ws, store.NewID()) },
		"another workspace": func() (string, error) { return both.Open(sealed, store.NewID(), id) },
		"a changed byte":    func() (string, error) { b := append([]byte{}, sealed...); b[len(b)-1]++; return both.Open(b, ws, id) },
		"nothing":           func() (string, error) { return both.Open(nil, ws, id) },
		"no keys":           func() (string, error) { return webhooks.Keys{}.Open(sealed, ws, id) },
	} {
		if got, err := open(); err == nil || got != "" {
			t.Errorf("%s opens it", name)
		}
	}
}
