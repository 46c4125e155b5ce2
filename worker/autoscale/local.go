package autoscale

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"
)

// Local processes. The workers of a server are children of muster up, which outlives any scheduler. So the scheduler
// asks it, over a Unix socket in a directory that only their user may enter:
//
//	GET    /workers       200 and the list
//	POST   /workers       201 when one more was started, 503 when it may not
//	DELETE /workers/{id}  204 when it was told to drain, or is gone already

// Crew is what muster up does for its scheduler.
type Crew interface {
	List() []Member
	Add() error
	Drain(id string) // no harm when it drains already or is gone
}

// Member is a worker process of a crew.
type Member struct {
	ID       string `json:"id"`
	PID      int    `json:"pid"` // 0 while it is being started
	Draining bool   `json:"draining"`
}

// ServeCrew answers the local driver.
func ServeCrew(crew Crew) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /workers", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(crew.List()) // a caller that is gone asks again
	})
	mux.HandleFunc("POST /workers", func(w http.ResponseWriter, _ *http.Request) {
		if err := crew.Add(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.WriteHeader(http.StatusCreated)
	})
	mux.HandleFunc("DELETE /workers/{id}", func(w http.ResponseWriter, r *http.Request) {
		crew.Drain(r.PathValue("id"))
		w.WriteHeader(http.StatusNoContent)
	})
	return mux
}

// Local is the driver of worker processes on one server.
type Local struct {
	client *http.Client
	host   string
}

// NewLocal makes a driver that asks the muster up behind a Unix socket.
func NewLocal(socket string) *Local {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	host, _ := os.Hostname() // as the workers name themselves
	return &Local{client: &http.Client{Transport: &http.Transport{DialContext: dial}, Timeout: 5 * time.Second}, host: host}
}

// Workers lists the server's workers.
func (l *Local) Workers(ctx context.Context) ([]Worker, error) {
	var members []Member
	if err := l.ask(ctx, "GET", "/workers", &members); err != nil {
		return nil, err
	}
	workers := make([]Worker, len(members))
	for i, m := range members {
		workers[i] = Worker{ID: m.ID, Name: fmt.Sprintf("%s/%d", l.host, m.PID), Stopping: m.Draining}
	}
	return workers, nil
}

// Start starts n workers.
func (l *Local) Start(ctx context.Context, n int) error {
	var failures []error
	for range n {
		failures = append(failures, l.ask(ctx, "POST", "/workers", nil))
	}
	return errors.Join(failures...)
}

// Stop lets a worker drain and end.
func (l *Local) Stop(ctx context.Context, id string) error {
	return l.ask(ctx, "DELETE", "/workers/"+id, nil)
}

func (l *Local) ask(ctx context.Context, method, path string, answer any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://supervisor"+path, nil)
	if err != nil {
		return err
	}
	res, err := l.client.Do(req)
	if err != nil {
		return fmt.Errorf("ask the supervisor: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode >= 300 {
		return fmt.Errorf("ask the supervisor: %s %s: %s", method, path, res.Status)
	}
	if answer == nil {
		return nil
	}
	if err := json.NewDecoder(res.Body).Decode(answer); err != nil {
		return fmt.Errorf("read the supervisor's answer: %w", err)
	}
	return nil
}
