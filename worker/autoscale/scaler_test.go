package autoscale

import (
	"context"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
)

func TestScaler(t *testing.T) {
	t.Parallel()

	t.Run("TheLeastBusyGoFirst", func(t *testing.T) {
		t.Parallel()
		p := usual
		p.Drain = 3 * time.Hour
		w := newWorld(p)
		busy := &tenant{cap: unlimited, takes: time.Hour}
		for i, tasks := range []int{3, 0, 5, 0} {
			if err := w.Start(context.Background(), 1); err != nil {
				t.Fatal(err)
			}
			w.workers[i].ends[busy] = make([]time.Time, tasks)
			for j := range tasks {
				w.workers[i].ends[busy][j] = w.now.Add(2 * time.Hour)
			}
			busy.running += tasks
		}
		w.run(30*time.Minute, nil)
		var left []string
		for _, m := range w.workers {
			if !m.draining {
				left = append(left, m.id)
			}
		}
		if !slices.Equal(left, []string{"w3"}) || len(w.workers) != 2 { // w1 drains
			t.Errorf("%v stayed of %d", left, len(w.workers))
		}
	})

	t.Run("ADryRunTellsOnceAndDoesNothing", func(t *testing.T) {
		t.Parallel()
		p := usual
		p.DryRun = true
		w := newWorld(p, &tenant{cap: unlimited, takes: time.Minute, waiting: 120})
		heard := w.listen(t)
		w.run(5*time.Minute, nil)
		if len(w.workers) != 0 {
			t.Error("it started workers")
		}
		lines := heard()
		w.logged(t, lines, "backlog 0 3")
		if len(lines) > 0 && (lines[0].Runnable != 120 || !*lines[0].DryRun) {
			t.Errorf("%+v", lines[0])
		}
	})

	t.Run("APauseByOperatorsActsAtTheNextStepAndEndsWhenLifted", func(t *testing.T) {
		t.Parallel()
		w := newWorld(usual, &tenant{cap: unlimited, takes: time.Minute, waiting: 120})
		w.paused = true
		w.run(5*time.Minute, nil)
		if len(w.workers) != 0 {
			t.Errorf("%d workers were started", len(w.workers))
		}
		w.paused = false
		w.run(2*Interval, nil)
		if len(w.workers) != 3 {
			t.Errorf("%d workers after it was lifted, want 3", len(w.workers))
		}
		w.paused = true
		w.tenants[0].waiting = 0
		w.run(time.Hour, nil)
		if len(w.workers) != 3 {
			t.Errorf("%d workers are left, want all 3", len(w.workers))
		}
	})

	t.Run("TheGaugesShowWhatIsThereWhileItLeads", func(t *testing.T) {
		t.Parallel()
		w := newWorld(usual, &tenant{cap: unlimited, takes: 10 * time.Second, waiting: 10})
		w.run(time.Minute, nil)
		if testutil.ToFloat64(w.scaler.cfg.Metrics.actual) != 1 || testutil.ToFloat64(w.scaler.cfg.Metrics.held) != 0 {
			t.Error("the gauges do not show one worker and no hold")
		}
		w.blind = true
		w.run(time.Minute, nil)
		if testutil.ToFloat64(w.scaler.cfg.Metrics.held) != 1 {
			t.Error("the gauges do not show the hold")
		}
		w.scaler.Forget()
		if testutil.ToFloat64(w.scaler.cfg.Metrics.actual) != 0 || testutil.ToFloat64(w.scaler.cfg.Metrics.held) != 0 {
			t.Error("a scaler that does not lead shows workers, or a hold")
		}
	})

	t.Run("AFailedStartIsCountedAndTriedAgain", func(t *testing.T) {
		t.Parallel()
		app, fly := newFlyApp(t)
		app.add("worker", "stopped", time.Hour)
		app.fault("POST start", http.StatusTooManyRequests)
		load := func(context.Context) (Load, error) {
			return Load{Figures: Figures{At: app.now, Runnable: 5, Slots: 20}}, nil
		}
		s := New(Config{Policy: usual, Driver: fly, Load: load, Now: func() time.Time { return app.now }, Metrics: NewMetrics(prometheus.NewRegistry()), Log: zerolog.Nop()})
		s.Step(context.Background())
		if testutil.ToFloat64(s.cfg.Metrics.failures) != 1 || alive(t, fly) != 0 {
			t.Fatal("the refused start is not counted")
		}
		app.pass(stepEvery)
		s.Step(context.Background())
		app.pass(stepEvery)
		if d := s.Step(context.Background()); d.Have != 1 || d.Reason != Enough || app.called("POST start") != 2 {
			t.Errorf("%+v after %d starts", d, app.called("POST start"))
		}
	})
}

// crew is a muster up in miniature.
type crew struct {
	mu      sync.Mutex
	members []Member
	full    bool
}

func (c *crew) List() []Member {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.members)
}

func (c *crew) Add() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.full {
		return errors.New("no more")
	}
	c.members = append(c.members, Member{ID: string(rune('a' + len(c.members))), PID: 100 + len(c.members)})
	return nil
}

func (c *crew) Drain(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.members {
		if c.members[i].ID == id {
			c.members[i].Draining = true
		}
	}
}

func TestLocal(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	socket := filepath.Join(t.TempDir(), "crew.sock")
	local := NewLocal(socket)
	if _, err := local.Workers(ctx); err == nil {
		t.Error("nobody listens, and it knows the workers")
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	c := &crew{}
	server := &http.Server{Handler: ServeCrew(c)}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	if err := local.Start(ctx, 2); err != nil {
		t.Fatal(err)
	}
	for range 2 { // twice does no harm
		if err := local.Stop(ctx, "a"); err != nil {
			t.Fatal(err)
		}
	}
	workers, err := local.Workers(ctx)
	if err != nil || len(workers) != 2 || !workers[0].Stopping || workers[1].Stopping || !strings.HasSuffix(workers[1].Name, "/101") {
		t.Errorf("%v %v", workers, err)
	}
	c.full = true
	if err := local.Start(ctx, 1); err == nil {
		t.Error("a refused start is no error")
	}
}
