package autoscale

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// flyApp stands in for Fly's Machines API: its paths, bodies and states, and the faults that a test asks for.
type flyApp struct {
	t   *testing.T
	now time.Time

	mu       sync.Mutex
	machines []map[string]any
	made     int
	faults   map[string][]int // status codes to answer next, by "METHOD action"; 0 is none, -1 acts and then cuts the connection
	bodies   map[string][]map[string]any
	calls    map[string]int
	held     map[string]*held
}

// held has the next call of an action wait before it is served.
type held struct{ arrived, release chan struct{} }

const flyToken = "fm2_secret-of-the-app"

func newFlyApp(t *testing.T) (*flyApp, *Fly) {
	t.Helper()
	app := &flyApp{t: t, now: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC), faults: map[string][]int{}, bodies: map[string][]map[string]any{}, calls: map[string]int{}, held: map[string]*held{}}
	server := httptest.NewServer(app)
	t.Cleanup(server.Close)
	return app, NewFly(FlyConfig{BaseURL: server.URL, App: "muster", Token: flyToken, Group: "worker", Drain: 300 * time.Second, Now: func() time.Time { return app.now }})
}

// add puts a machine there as fly deploy would.
func (a *flyApp) add(group, state string, age time.Duration) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.insert(state, age, map[string]any{"image": fmt.Sprintf("registry.fly.io/muster:%s", age), "metadata": map[string]any{"fly_process_group": group, "fly_platform_version": "v2"}})
}

func (a *flyApp) insert(state string, age time.Duration, config any) string {
	a.made++
	id := fmt.Sprintf("e28650%08x", a.made)
	at := a.now.Add(-age).Format(time.RFC3339)
	a.machines = append(a.machines, map[string]any{"id": id, "name": "quiet-" + id, "state": state, "region": "fra", "config": config, "created_at": at, "updated_at": at})
	return id
}

func (a *flyApp) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	sent, err := io.ReadAll(r.Body) // before it waits: whoever sent it may be gone then
	if err != nil {
		a.t.Error(err)
	}
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/v1/apps/muster/machines"), "/")
	action := r.Method
	if len(parts) == 3 {
		action += " " + parts[2]
	}
	a.wait(action)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.calls[action]++
	if r.Header.Get("Authorization") != "Bearer "+flyToken {
		a.answer(w, http.StatusUnauthorized, map[string]any{"error": "unauthenticated"})
		return
	}
	fault := 0
	if next := a.faults[action]; len(next) > 0 {
		fault, a.faults[action] = next[0], next[1:]
	}
	if fault > 0 {
		a.answer(w, fault, map[string]any{"error": http.StatusText(fault)})
		return
	}
	body := map[string]any{}
	if r.Method == "POST" && len(sent) > 0 {
		if err := json.Unmarshal(sent, &body); err != nil {
			a.answer(w, http.StatusBadRequest, map[string]any{"error": "invalid JSON"})
			return
		}
	}
	a.bodies[action] = append(a.bodies[action], body)
	status, answer := a.act(r, parts, body)
	if fault < 0 {
		panic(http.ErrAbortHandler)
	}
	a.answer(w, status, answer)
}

func (a *flyApp) answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		a.t.Error(err)
	}
}

func (a *flyApp) act(r *http.Request, parts []string, body map[string]any) (int, any) {
	switch {
	case r.Method == "GET" && len(parts) == 1:
		found := []map[string]any{}
		for _, m := range a.machines {
			metadata := m["config"].(map[string]any)["metadata"].(map[string]any)
			if metadata["fly_process_group"] == r.URL.Query().Get("metadata.fly_process_group") {
				found = append(found, m)
			}
		}
		return http.StatusOK, found
	case r.Method == "POST" && len(parts) == 1:
		config, ok := body["config"].(map[string]any)
		if !ok || config["image"] == nil {
			return http.StatusBadRequest, map[string]any{"error": "config.image is required"}
		}
		a.insert("created", 0, config)
		return http.StatusOK, a.machines[len(a.machines)-1]
	case r.Method == "POST" && len(parts) == 3:
		for _, m := range a.machines {
			if m["id"] == parts[1] {
				m["state"], m["updated_at"] = map[string]string{"start": "starting", "stop": "stopping"}[parts[2]], a.now.Format(time.RFC3339)
				return http.StatusOK, map[string]any{"ok": true, "previous_state": "stopped"}
			}
		}
		return http.StatusNotFound, map[string]any{"error": "machine not found"}
	}
	return http.StatusNotFound, map[string]any{"error": "no such path"}
}

// fault has the next calls of an action answered so.
func (a *flyApp) fault(action string, statuses ...int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.faults[action] = statuses
}

// hold has the next call of an action wait until it is released.
func (a *flyApp) hold(action string) *held {
	a.mu.Lock()
	defer a.mu.Unlock()
	h := &held{make(chan struct{}), make(chan struct{})}
	a.held[action] = h
	return h
}

func (a *flyApp) wait(action string) {
	a.mu.Lock()
	h := a.held[action]
	delete(a.held, action)
	a.mu.Unlock()
	if h != nil {
		close(h.arrived)
		<-h.release
	}
}

func (a *flyApp) called(action string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.calls[action]
}

func (a *flyApp) sent(action string) []map[string]any {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.bodies[action]
}

// pass lets time pass and machines come to where they were going.
func (a *flyApp) pass(d time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.now = a.now.Add(d)
	for _, m := range a.machines {
		if to := map[string]string{"created": "started", "starting": "started", "stopping": "stopped"}[m["state"].(string)]; to != "" {
			m["state"] = to
		}
	}
}

func (a *flyApp) vanish(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, m := range a.machines {
		if m["id"] == id {
			a.machines = append(a.machines[:i:i], a.machines[i+1:]...)
			return
		}
	}
}

// alive counts the workers that do not stop.
func alive(t *testing.T, d Driver) int {
	t.Helper()
	workers, err := d.Workers(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, w := range workers {
		if !w.Stopping {
			n++
		}
	}
	return n
}

func TestFly(t *testing.T) {
	t.Parallel()
	ctx := context.Background()

	t.Run("StoppedMachinesAreStartedBeforeNewOnesAreMade", func(t *testing.T) {
		t.Parallel()
		app, fly := newFlyApp(t)
		app.add("web", "started", time.Hour)
		app.add("worker", "started", 2*time.Hour)
		app.add("worker", "stopped", time.Hour)
		if n := alive(t, fly); n != 1 {
			t.Fatalf("%d are there, want 1: neither the stopped one nor the web machine counts", n)
		}
		if err := fly.Start(ctx, 3); err != nil {
			t.Fatal(err)
		}
		if app.called("POST start") != 1 || app.called("POST") != 2 {
			t.Errorf("%d started, %d made; want 1 and 2", app.called("POST start"), app.called("POST"))
		}
		if n := alive(t, fly); n != 4 {
			t.Errorf("%d are there while they start, want 4", n)
		}
		config := app.sent("POST")[0]["config"].(map[string]any)
		if config["image"] != "registry.fly.io/muster:1h0m0s" || app.sent("POST")[0]["region"] != "fra" {
			t.Errorf("the copy is not of the newest machine: %v", app.sent("POST")[0])
		}
	})

	t.Run("AStopDrains", func(t *testing.T) {
		t.Parallel()
		app, fly := newFlyApp(t)
		id := app.add("worker", "started", time.Hour)
		for range 2 { // twice does no harm
			if err := fly.Stop(ctx, id); err != nil {
				t.Fatal(err)
			}
		}
		if body := app.sent("POST stop")[0]; body["signal"] != "SIGTERM" || body["timeout"] != "300s" {
			t.Errorf("told to stop by %v", body)
		}
		if n := alive(t, fly); n != 0 {
			t.Errorf("%d count as there while they drain", n)
		}
		if err := fly.Start(ctx, 1); err != nil || app.called("POST start") != 0 || app.called("POST") != 1 {
			t.Errorf("a draining machine was started: %v", err)
		}
		app.pass(time.Minute)
		if err := fly.Start(ctx, 1); err != nil || app.called("POST start") != 1 {
			t.Errorf("the stopped machine was not started: %v", err)
		}
	})

	t.Run("AMachineThatVanishes", func(t *testing.T) {
		t.Parallel()
		app, fly := newFlyApp(t)
		app.add("worker", "started", time.Hour)
		app.add("worker", "stopped", time.Hour)
		other := app.add("worker", "stopped", time.Hour)
		app.fault("POST start", http.StatusNotFound) // of the first, between list and start
		if err := fly.Start(ctx, 1); err != nil {
			t.Fatal(err)
		}
		if app.called("POST start") != 2 || app.called("POST") != 0 {
			t.Errorf("the other stopped machine was not tried: %d starts", app.called("POST start"))
		}
		app.vanish(other)
		if err := fly.Stop(ctx, other); err != nil {
			t.Errorf("stopping what is gone: %v", err)
		}
	})

	t.Run("FaultsAreErrorsAndTheNextStepFindsWhatIsThere", func(t *testing.T) {
		t.Parallel()
		for _, status := range []int{http.StatusTooManyRequests, http.StatusInternalServerError, -1} {
			app, fly := newFlyApp(t)
			app.add("worker", "started", time.Hour)
			app.fault("GET", status)
			if _, err := fly.Workers(ctx); err == nil || strings.Contains(err.Error(), flyToken) {
				t.Errorf("list with fault %d: %v", status, err)
			}
			app.fault("POST", 0, status)
			if err := fly.Start(ctx, 3); err == nil || strings.Contains(err.Error(), flyToken) {
				t.Errorf("start with fault %d: %v", status, err)
			}
			want := 2
			if status < 0 {
				want = 3 // made, although the answer was lost: counted, not made again
			}
			if n := alive(t, fly); n != want {
				t.Errorf("fault %d: %d are there, want %d", status, n, want)
			}
		}
	})

	t.Run("SlowAndStuckStarts", func(t *testing.T) {
		t.Parallel()
		app, fly := newFlyApp(t)
		app.add("worker", "starting", 4*time.Minute)
		if n := alive(t, fly); n != 1 {
			t.Errorf("a slow start does not count: %d", n)
		}
		app.now = app.now.Add(2 * time.Minute)
		if n := alive(t, fly); n != 0 {
			t.Errorf("a start that is stuck counts: %d", n)
		}
		app.add("worker", "created", 3*time.Minute) // was never launched
		if err := fly.Start(ctx, 1); err != nil || app.called("POST start") != 1 {
			t.Errorf("it was not started: %v, %d starts", err, app.called("POST start"))
		}
	})

	t.Run("NoMoreAreMadeInOneGoThanABurstAllows", func(t *testing.T) {
		t.Parallel()
		app, fly := newFlyApp(t)
		app.add("worker", "started", time.Hour)
		if err := fly.Start(ctx, 5); err != nil || app.called("POST") != flyBurst {
			t.Errorf("%d made, %v", app.called("POST"), err)
		}
	})

	t.Run("AGroupWithoutAMachineSaysWhatToDo", func(t *testing.T) {
		t.Parallel()
		_, fly := newFlyApp(t)
		if err := fly.Start(ctx, 1); err == nil || !strings.Contains(err.Error(), "fly scale count") {
			t.Errorf("%v", err)
		}
	})

	t.Run("AWrongTokenIsToldWithoutIt", func(t *testing.T) {
		t.Parallel()
		_, fly := newFlyApp(t)
		fly.cfg.Token = "fm2_another"
		if _, err := fly.Workers(ctx); err == nil || !strings.Contains(err.Error(), "401") || strings.Contains(err.Error(), "fm2_another") {
			t.Errorf("%v", err)
		}
	})
}
