package autoscale

import (
	"context"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
)

// TestLeadersThatOverlap has two schedulers' scalers at one platform at once. The lead of one lapses while a step of it is
// under way, or it does not even notice: what that costs is at most the step, and the next look puts it right.
func TestLeadersThatOverlap(t *testing.T) {
	t.Parallel()
	const most = 4
	leader := func(app *flyApp, fly *Fly, runnable int) *Scaler {
		p := usual
		p.Max = most
		load := func(context.Context) (Load, error) {
			return Load{Figures: Figures{At: app.now, Runnable: runnable, Slots: 20}}, nil
		}
		return New(Config{Policy: p, Driver: fly, Load: load, Now: func() time.Time { return app.now }, Metrics: NewMetrics(prometheus.NewRegistry()), Log: zerolog.Nop()})
	}
	// meanwhile begins a step, and does something else when its first call of an action has reached the platform.
	meanwhile := func(app *flyApp, ctx context.Context, s *Scaler, action string, do func(returned <-chan struct{})) {
		held, returned := app.hold(action), make(chan struct{})
		go func() {
			defer close(returned)
			s.Step(ctx)
		}()
		<-held.arrived
		do(returned)
		close(held.release)
		<-returned
	}

	t.Run("ALeadThatLapsesWhileWorkersAreStarted", func(t *testing.T) {
		t.Parallel()
		app, fly := newFlyApp(t)
		app.add("worker", "started", time.Hour)
		old, next := leader(app, fly, 1000), leader(app, fly, 1000)
		lead, lapse := context.WithCancel(context.Background())
		meanwhile(app, lead, old, "POST", func(returned <-chan struct{}) {
			lapse()
			<-returned
			next.Step(context.Background())
			if n := alive(t, fly); n != most {
				t.Errorf("the next leader brought the fleet to %d, want %d", n, most)
			}
		})
		await(t, "what was on its way to arrive", func() bool { return app.called("POST") == 4 })
		if n := alive(t, fly); n != most+1 {
			t.Errorf("%d workers; want the one too many that was on its way", n)
		}
		if n := testutil.ToFloat64(old.cfg.Metrics.failures); n != 0 {
			t.Errorf("%v failures of the platform are counted for a step that we broke off", n)
		}
		next.Step(context.Background())
		if n := alive(t, fly); n != most {
			t.Errorf("%d workers after the next look, want %d", n, most)
		}
	})

	t.Run("ALeadThatLapsesWhileWorkersAreStopped", func(t *testing.T) {
		t.Parallel()
		app, fly := newFlyApp(t)
		for range most + 3 {
			app.add("worker", "started", time.Hour)
		}
		old, next := leader(app, fly, 0), leader(app, fly, 0)
		next.cfg.Policy.Max, next.decider.Policy.Max = 20, 20 // it has other settings, so that what the old one stops shows
		lead, lapse := context.WithCancel(context.Background())
		meanwhile(app, lead, old, "POST stop", func(returned <-chan struct{}) {
			lapse()
			<-returned
			next.Step(context.Background())
		})
		await(t, "what was on its way to arrive", func() bool { return app.called("POST stop") == 1 })
		if n := alive(t, fly); n != most+2 {
			t.Errorf("%d workers, want all but the one whose stop was on its way", n)
		}
	})

	t.Run("ALeadThatLapsesBeforeAnythingIsDone", func(t *testing.T) {
		t.Parallel()
		app, fly := newFlyApp(t)
		app.add("worker", "started", time.Hour)
		lead, lapse := context.WithCancel(context.Background())
		meanwhile(app, lead, leader(app, fly, 1000), "GET", func(<-chan struct{}) { lapse() })
		if app.called("POST") != 0 {
			t.Errorf("%d workers were made by one that no longer led", app.called("POST"))
		}
	})

	t.Run("TwoThatBothThinkTheyLead", func(t *testing.T) {
		t.Parallel()
		app, fly := newFlyApp(t)
		app.add("worker", "started", time.Hour)
		a, b := leader(app, fly, 1000), leader(app, fly, 1000)
		step := most - 1
		meanwhile(app, context.Background(), a, "POST", func(<-chan struct{}) { b.Step(context.Background()) })
		if n := alive(t, fly); n != most+step {
			t.Errorf("%d workers, want %d: one step too many", n, most+step)
		}
		meanwhile(app, context.Background(), a, "POST stop", func(<-chan struct{}) { b.Step(context.Background()) })
		if n := alive(t, fly); n != most {
			t.Errorf("%d workers after both had looked again, want %d: they stop the same ones", n, most)
		}
		for range 20 {
			app.pass(stepEvery)
			a.Step(context.Background())
			b.Step(context.Background())
			if n := alive(t, fly); n != most {
				t.Fatalf("%d workers while both go on, want %d", n, most)
			}
		}
	})
}

// await waits for what another goroutine does soon.
func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited for %s in vain", what)
		}
	}
}
