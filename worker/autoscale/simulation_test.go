package autoscale

import (
	"testing"
	"time"
)

// The policy of the simulations, unless they say otherwise.
var usual = Policy{Min: 1, Max: 20, Target: 50, MaxWait: 30 * time.Second, MaxStep: 4, Cooldown: 5 * time.Minute, Drain: 5 * time.Minute}

const unlimited = 1 << 30

// during is rate between two times, else 0.
func during(rate float64, from, to time.Duration) func(time.Duration) float64 {
	return func(t time.Duration) float64 {
		if t >= from && t < to {
			return rate
		}
		return 0
	}
}

func TestSimulation(t *testing.T) {
	t.Parallel()

	// 4 tasks a second of 30 s each, for an hour: 120 slots, six workers.
	t.Run("Step", func(t *testing.T) {
		t.Parallel()
		w := newWorld(usual, &tenant{cap: unlimited, takes: 30 * time.Second, rate: during(4, 30*time.Minute, 90*time.Minute)})
		w.run(30*time.Minute, nil)
		if w.live() != 1 || len(w.acts) != 1 {
			t.Fatalf("%d workers and %v before anything came", w.live(), w.acts)
		}
		crowded := time.Duration(0) // how long the target was missed by workers that are ready
		w.run(60*time.Minute, func(at time.Duration) {
			ready := 0
			for _, m := range w.workers {
				if !m.ready.After(w.now) {
					ready++
				}
			}
			if w.runnable(w.tenants[0]) >= 50*ready {
				crowded = at - 30*time.Minute
			}
		})
		if crowded > 2*time.Minute { // workers that still start do not count
			t.Errorf("the target was still missed %s after the step", crowded)
		}
		if reacted := w.acts[1].at - 30*time.Minute; reacted > 20*time.Second {
			t.Errorf("the first worker was added after %s", reacted)
		}
		if n := w.live(); n < 6 || n > 9 || w.peak > 12 || w.runnable(w.tenants[0]) > 50 {
			t.Errorf("%d workers, %d at most, and %d runnable at the end of the hour", n, w.peak, w.runnable(w.tenants[0]))
		}
		w.run(5*time.Minute, nil)
		if acts := w.between(90*time.Minute, 95*time.Minute); len(acts) != 0 {
			t.Errorf("workers went within the cool-down: %v", acts)
		}
		w.run(25*time.Minute, nil)
		if w.live() != 1 {
			t.Errorf("%d workers half an hour after the end", w.live())
		}
		w.golden(t)
	})

	// From 0 to 5 tasks a second within half an hour, then from 0 again, for four hours.
	t.Run("Sawtooth", func(t *testing.T) {
		t.Parallel()
		w := newWorld(usual, &tenant{cap: unlimited, takes: 30 * time.Second, rate: func(t time.Duration) float64 {
			return 5 * float64(t%(30*time.Minute)) / float64(30*time.Minute)
		}})
		w.run(4*time.Hour, nil)
		if n := w.turns(); n > 4 { // two teeth an hour, each up and down
			t.Errorf("the direction changed %d times within an hour", n)
		}
		w.golden(t)
	})

	// A tenant at its cap of 10 with 100,000 tasks waiting: not one more worker. Then another comes.
	t.Run("CappedFlood", func(t *testing.T) {
		t.Parallel()
		capped := &tenant{cap: 10, takes: time.Minute, waiting: 100_000}
		other := &tenant{cap: unlimited, takes: 10 * time.Second, rate: during(0.2, 0, 4*time.Hour)}
		w := newWorld(usual, capped, other)
		w.run(4*time.Hour, nil)
		if w.peak != 1 || capped.waiting < 90_000 {
			t.Errorf("up to %d workers for a tenant at its cap (%d still wait)", w.peak, capped.waiting)
		}
		w.golden(t)
	})

	// Figures and platform are lost for half an hour in which the load ends: nothing moves, and afterwards the whole
	// cool-down has to pass.
	t.Run("MetricLoss", func(t *testing.T) {
		t.Parallel()
		w := newWorld(usual, &tenant{cap: unlimited, takes: 30 * time.Second, rate: during(4, 0, 62*time.Minute)})
		w.run(time.Hour, nil)
		before := w.live()
		w.blind = true
		w.note("figures lost")
		w.run(30*time.Minute, nil)
		w.blind, w.lost = false, true
		w.note("figures back, platform lost")
		w.run(10*time.Minute, nil)
		if acts := w.between(time.Hour, 100*time.Minute); len(acts) != 0 || w.live() != before {
			t.Errorf("something moved without figures: %v", acts)
		}
		w.lost = false
		w.note("platform back")
		w.run(5*time.Minute, nil)
		if acts := w.between(100*time.Minute, 105*time.Minute); len(acts) != 0 {
			t.Errorf("workers went before the cool-down had passed anew: %v", acts)
		}
		w.run(25*time.Minute, nil)
		if w.live() != 1 {
			t.Errorf("%d workers at the end", w.live())
		}
		w.golden(t)
	})

	// One read that fails is not a gap: the cool-down goes on.
	t.Run("OneMissedRead", func(t *testing.T) {
		t.Parallel()
		w := newWorld(usual, &tenant{cap: unlimited, takes: 30 * time.Second, rate: during(4, 0, 30*time.Minute)})
		w.run(33*time.Minute, nil)
		w.blind = true
		w.run(3*Interval, nil)
		w.blind = false
		w.run(20*time.Minute, nil)
		if first := w.between(30*time.Minute, time.Hour)[0]; first.at > 37*time.Minute {
			t.Errorf("the first worker went at %s", first.at)
		}
	})

	// Another scheduler leads from minute 40 on, knowing nothing: nothing is started, and nothing goes for a cool-down.
	t.Run("LeaderChange", func(t *testing.T) {
		t.Parallel()
		w := newWorld(usual, &tenant{cap: unlimited, takes: 30 * time.Second, rate: during(4, 0, 36*time.Minute)})
		w.run(40*time.Minute, nil)
		before := w.live()
		w.scaler.Forget()
		w.note("another leads")
		w.run(5*time.Minute, nil)
		if acts := w.between(40*time.Minute, 45*time.Minute); len(acts) != 0 || w.live() != before {
			t.Errorf("the new leader moved before it had watched for a cool-down: %v", acts)
		}
		w.run(30*time.Minute, nil)
		if w.live() != 1 {
			t.Errorf("%d workers at the end", w.live())
		}
		w.golden(t)
	})

	// Nothing for an hour, then nine workers' worth of load for five, in tasks of five minutes, and a budget of four. What is
	// stopped drains for up to five minutes, and is paid for until it is gone.
	t.Run("Budget", func(t *testing.T) {
		t.Parallel()
		p := usual
		p.Budget = 240
		w := newWorld(p, &tenant{cap: unlimited, takes: 5 * time.Minute, rate: during(0.6, time.Hour, 6*time.Hour)})
		w.run(6*time.Hour, nil)
		w.note("the dearest hour cost %.1f worker-minutes", minutes(w.dearest))
		if spent := minutes(w.dearest); spent > 240 || spent < 210 {
			t.Errorf("%.1f worker-minutes in the dearest hour; want at most the budget of 240, and most of it", spent)
		}
		if n := w.turns(); n > 2 {
			t.Errorf("the direction changed %d times within an hour", n)
		}
		w.golden(t)
	})

	// Two minutes of much, two of nothing, for three hours: the fleet comes up once and stays.
	t.Run("Flapping", func(t *testing.T) {
		t.Parallel()
		w := newWorld(usual, &tenant{cap: unlimited, takes: 10 * time.Second, rate: func(t time.Duration) float64 {
			if t < 3*time.Hour && t%(4*time.Minute) < 2*time.Minute {
				return 10
			}
			return 0
		}})
		w.run(4*time.Hour, nil)
		if acts := w.between(10*time.Minute, 3*time.Hour); len(acts) != 0 {
			t.Errorf("the fleet moved with the flapping: %v", acts)
		}
		w.golden(t)
	})

	// Few long tasks of one workspace fill the slots; five more wait, far fewer than the target. After MaxWait a worker comes
	// for them, although the workspace's turn is younger than that.
	t.Run("LongTasks", func(t *testing.T) {
		t.Parallel()
		w := newWorld(usual, &tenant{cap: unlimited, takes: 5 * time.Minute, waiting: 25})
		w.run(20*time.Minute, nil)
		if len(w.acts) < 2 || w.acts[1].reason != Full || w.acts[1].at < 30*time.Second || w.acts[1].at > time.Minute {
			t.Errorf("%v", w.acts)
		}
		w.golden(t)
	})

	// Sixty workspaces with a long task each: twenty fill the slots, the turns of the others wait, and the longer they do
	// the more workers come.
	t.Run("ManyInLine", func(t *testing.T) {
		t.Parallel()
		var tenants []*tenant
		for range 60 {
			tenants = append(tenants, &tenant{cap: 1, takes: 5 * time.Minute, waiting: 1})
		}
		p := usual
		p.Target = 100
		w := newWorld(p, tenants...)
		w.run(20*time.Minute, nil)
		if len(w.acts) < 3 || w.acts[1].reason != Waiting || w.acts[1].at != 30*time.Second || w.acts[2].reason != Waiting || w.acts[2].want-w.acts[2].have < 2 {
			t.Errorf("%v", w.acts)
		}
		w.golden(t)
	})

	// With a minimum of 0 the fleet comes from nothing and goes to nothing; two are kept warm for 20 minutes.
	t.Run("FromZeroToZero", func(t *testing.T) {
		t.Parallel()
		p := usual
		p.Min, p.Warm, p.WarmFor = 0, 2, 20*time.Minute
		w := newWorld(p, &tenant{cap: unlimited, takes: 10 * time.Second, rate: during(8, 10*time.Minute, 15*time.Minute)})
		w.run(10*time.Minute, nil)
		if len(w.acts) != 0 {
			t.Errorf("workers for nothing: %v", w.acts)
		}
		w.run(24*time.Minute, nil)
		if w.acts[0].at > 10*time.Minute+Interval || w.live() != 2 {
			t.Errorf("began at %s, %d are warm", w.acts[0].at, w.live())
		}
		w.run(30*time.Minute, nil)
		if w.live() != 0 {
			t.Errorf("%d workers at the end", w.live())
		}
		w.golden(t)
	})
}
