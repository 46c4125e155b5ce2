package webhooks_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/generic-corp/muster/api/logtest"
	"github.com/generic-corp/muster/api/outbound"
	"github.com/generic-corp/muster/api/webhooks"
	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }

// post is a ledger with endpoints and, once started, senders.
type post struct {
	t      *testing.T
	env    *storetest.Env
	api    *store.API
	system *store.System
	keys   webhooks.Keys
	log    *logtest.Log
}

func newPost(t *testing.T) *post {
	t.Helper()
	keys, err := webhooks.NewKeys([][]byte{[]byte(strings.Repeat("k", 32))})
	if err != nil {
		t.Fatal(err)
	}
	env := storetest.New(t)
	return &post{t: t, env: env, api: store.NewAPI(env.API(t)), system: store.NewSystem(env.System(t)), keys: keys, log: &logtest.Log{}}
}

// start runs a sender until the returned function or the test ends it.
func (p *post) start() (stop func()) {
	p.t.Helper()
	s := webhooks.New(webhooks.Config{Ledger: p.system, Client: outbound.Rules{Loopback: true}.Client(), Keys: p.keys,
		Render: func(e store.DeliveryEvent) ([]byte, error) {
			return json.Marshal(map[string]any{"type": e.Type, "data": e.Data})
		},
		Metrics: webhooks.NewMetrics(prometheus.NewRegistry()), Log: zerolog.New(p.log), Version: "test"})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); s.Run(ctx) }()
	stop = sync.OnceFunc(func() { cancel(); <-ended })
	p.t.Cleanup(stop)
	return stop
}

func (p *post) work(ws uuid.UUID, fn func(w *store.Work) error) {
	p.t.Helper()
	if _, err := p.api.Do(context.Background(), store.Scope{Workspace: ws}, nil, func(w *store.Work) (store.Answer, error) { return store.Answer{}, fn(w) }); err != nil {
		p.t.Fatal(err)
	}
}

// endpoint is a customer's server and what came to it.
type endpoint struct {
	p      *post
	ws, id uuid.UUID
	secret string
	url    string
	answer func(n int, w http.ResponseWriter, r *http.Request) // the nth request, from 1; nil: 200

	mu       sync.Mutex
	requests []received
	now, max int // at once
}

type received struct {
	header http.Header
	body   []byte
	at     time.Time
}

func (p *post) endpoint(ws uuid.UUID, answer func(n int, w http.ResponseWriter, r *http.Request)) *endpoint {
	p.t.Helper()
	e := &endpoint{p: p, ws: ws, id: store.NewID(), secret: webhooks.NewSecret(), answer: answer}
	server := httptest.NewServer(e)
	p.t.Cleanup(server.Close)
	p.t.Cleanup(server.CloseClientConnections)
	e.url = server.URL + "/hook"
	p.work(ws, func(w *store.Work) error {
		_, err := w.CreateWebhook(context.Background(), store.NewWebhook{ID: e.id, URL: e.url, Events: store.WebhookEvents, Sealed: p.keys.Seal(e.secret, ws, e.id), CreatedBy: "usr_test"})
		return err
	})
	return e
}

func (e *endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	raw, _ := io.ReadAll(r.Body)
	e.mu.Lock()
	e.requests = append(e.requests, received{r.Header.Clone(), raw, time.Now()})
	n := len(e.requests)
	e.now++
	e.max = max(e.max, e.now)
	e.mu.Unlock()
	if e.answer != nil {
		e.answer(n, w, r)
	}
	e.mu.Lock()
	e.now--
	e.mu.Unlock()
}

func (e *endpoint) got() []received {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]received{}, e.requests...)
}

// tell writes n test events.
func (e *endpoint) tell(n int) {
	e.p.t.Helper()
	for range n {
		e.p.work(e.ws, func(w *store.Work) error { _, err := w.TestWebhook(context.Background(), e.id); return err })
	}
}

func (e *endpoint) deliveries() []store.Delivery {
	e.p.t.Helper()
	list, err := e.p.api.Deliveries(context.Background(), e.ws, e.id, store.DeliveryFilter{}, uuid.Nil, 1000)
	if err != nil {
		e.p.t.Fatal(err)
	}
	return list
}

// await waits until so many of the deliveries stand in a status.
func (e *endpoint) await(status string, n int) []store.Delivery {
	e.p.t.Helper()
	for deadline := time.Now().Add(40 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		var found []store.Delivery
		for _, d := range e.deliveries() {
			if d.Status == status && (status != store.DeliveryWaiting || d.Attempts > 0) {
				found = append(found, d)
			}
		}
		if len(found) >= n {
			return found
		}
		if time.Now().After(deadline) {
			e.p.t.Fatalf("%d of %d are %s:\n%+v\n%s", len(found), n, status, e.deliveries(), e.p.log.String())
		}
	}
}

// later lets all pauses pass.
func (p *post) later() {
	p.t.Helper()
	for _, q := range []string{`UPDATE webhook_endpoints SET not_before = NULL`, `UPDATE webhook_deliveries SET next_at = now() WHERE status = 'waiting'`} {
		if _, err := p.env.Admin(p.t).Exec(q); err != nil {
			p.t.Fatal(err)
		}
	}
}

func verify(t *testing.T, secret string, r received) error {
	t.Helper()
	reference, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	return reference.Verify(r.body, r.header)
}
