//go:build unix

package main

import (
	"bytes"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/generic-corp/muster/worker/provider/providertest"
)

// models is the model server of the run: the stand-in, behind a handler that records each call's start and end. Each
// worker process is given an address of its own (/w/PROCESS/v1), so that the history tells who called.
type models struct {
	hist   *history
	inner  http.Handler
	server *httptest.Server

	mu      sync.Mutex
	serial  int64
	open    map[int64]event      // calls under way, by their number
	last    map[string]time.Time // when a call of a workspace started last
	numbers *regexp.Regexp
}

func newModels(h *history) *models {
	m := &models{hist: h, inner: providertest.New(), open: map[int64]event{}, last: map[string]time.Time{},
		numbers: regexp.MustCompile(`\bn=(\d+) ws=(\S+) sleep=(\S+)`)}
	m.server = httptest.NewServer(m)
	return m
}

// addr is host:port.
func (m *models) addr() string { return m.server.Listener.Addr().String() }

// ServeHTTP answers one call.
func (m *models) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rest, ok := strings.CutPrefix(r.URL.Path, "/w/")
	proc, path, found := strings.Cut(rest, "/")
	body, err := io.ReadAll(r.Body)
	if !ok || !found || err != nil {
		http.Error(w, "want /w/PROCESS/v1/… and a body", http.StatusBadRequest)
		return
	}
	r.URL.Path, r.Body = "/"+path, io.NopCloser(bytes.NewReader(body))
	said := m.numbers.FindSubmatch(body)
	if said == nil {
		m.inner.ServeHTTP(w, r)
		return
	}
	n, _ := strconv.Atoi(string(said[1])) // digits
	e := event{What: started, N: n, WS: string(said[2]), Sleep: string(said[3]), Proc: proc}
	m.mu.Lock()
	m.serial++
	e.Call = m.serial
	m.open[e.Call] = e
	m.last[e.WS] = time.Now()
	m.mu.Unlock()
	m.hist.add(e)
	reply := &reply{ResponseWriter: w}
	defer func() { // the stand-in cuts connections by a panic
		m.mu.Lock()
		delete(m.open, e.Call)
		m.mu.Unlock()
		m.hist.add(event{What: ended, Call: e.Call, Status: strconv.Itoa(reply.status), Gone: r.Context().Err() != nil})
	}()
	m.inner.ServeHTTP(reply, r)
}

// reply notes the status that is answered; 0: none was.
type reply struct {
	http.ResponseWriter
	status int
}

func (r *reply) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

func (r *reply) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (r *reply) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// running returns the calls under way.
func (m *models) running() (calls []event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.open))
}

// startedSince says whether an agent of the workspace has called since then.
func (m *models) startedSince(ws string, since time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.last[ws].After(since)
}
