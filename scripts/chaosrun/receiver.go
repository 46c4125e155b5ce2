//go:build unix

package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// receiver is the customers' servers: it verifies what webhooks bring and takes it. One in so many events it turns away the first
// time, and one it takes without saying so: either must come again, under the same id.
type receiver struct {
	hist   *history
	server *httptest.Server

	mu      sync.Mutex
	secrets map[string]string // by workspace
	came    map[string]int    // by webhook-id
}

const troubleEvery = 50

func newReceiver(h *history) *receiver {
	r := &receiver{hist: h, secrets: map[string]string{}, came: map[string]int{}}
	r.server = httptest.NewServer(r)
	return r
}

// url is where the workspace's events are sent to.
func (r *receiver) url(workspace string) string { return r.server.URL + "/" + workspace }

// knows keeps the secret of the workspace's endpoint.
func (r *receiver) knows(workspace, secret string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.secrets[workspace] = secret
}

// ServeHTTP takes one event.
func (r *receiver) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	body, err := io.ReadAll(q.Body)
	if err != nil {
		return // its sender has gone, and sends it again
	}
	e := event{What: told, WS: strings.TrimPrefix(q.URL.Path, "/"), Hook: q.Header.Get("Webhook-Id")}
	r.mu.Lock()
	r.came[e.Hook]++
	nth := 0 // new event; 0: it has come before
	if r.came[e.Hook] == 1 {
		nth = len(r.came)
	}
	secret := r.secrets[e.WS]
	r.mu.Unlock()
	switch nth % troubleEvery {
	case 10:
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	case 20:
		w.WriteHeader(http.StatusInternalServerError)
	}
	var in struct {
		Type string
		Data struct{ ID string }
	}
	known, err := standardwebhooks.NewWebhook(secret)
	if err == nil {
		err = known.Verify(body, q.Header)
	}
	if err == nil {
		err = json.Unmarshal(body, &in)
	}
	if err != nil {
		e.Note = err.Error()
	}
	e.Task, e.Status = in.Data.ID, strings.TrimPrefix(in.Type, "task.")
	r.hist.add(e)
}
