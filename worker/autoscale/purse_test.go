package autoscale

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// TestNoHourCostsMoreThanTheBudget walks through many fleets at random: tasks that outlast their worker's drain, leaders that
// come and go, figures that are lost. What there was in each hour is counted beside the scaler.
func TestNoHourCostsMoreThanTheBudget(t *testing.T) {
	t.Parallel()
	highest := 0.0
	for seed := range uint64(16) {
		r := rand.New(rand.NewPCG(seed, 1))
		p := randomPolicy(r)
		w := newWorld(p, randomTenants(r)...)
		for range 30 {
			switch r.IntN(4) {
			case 0:
				w.scaler.Forget() // another leads
			case 1:
				w.blind = !w.blind
			}
			w.run(time.Duration(1+r.IntN(20))*time.Minute, nil)
		}
		budget := float64(max(p.Budget, 60*p.Min))
		if spent := minutes(w.dearest); spent > budget {
			t.Errorf("seed %d: the dearest hour cost %.2f worker-minutes, the budget is %.0f\n%+v", seed, spent, budget, p)
		} else {
			highest = max(highest, spent/budget)
		}
	}
	if highest < 0.9 {
		t.Errorf("no fleet used more than %.0f %% of its budget: nothing was tried", 100*highest)
	}
}

// TestDebtsAreNotForgotten: while operators pause it or the platform is away an hour may cost more. It is a debt, and until it
// is paid, no hour that ends without debt has cost more than the budget.
func TestDebtsAreNotForgotten(t *testing.T) {
	t.Parallel()
	indebted := 0
	for seed := range uint64(8) {
		r := rand.New(rand.NewPCG(seed, 2))
		p := randomPolicy(r)
		w := newWorld(p, randomTenants(r)...)
		check := func(time.Duration) {
			if purse := w.scaler.decider.purse.minutes; purse < 0 {
				indebted++
			} else if spent, budget := minutes(w.hour), float64(max(p.Budget, 60*p.Min)); spent > budget {
				t.Fatalf("seed %d: %.2f worker-minutes of %.0f, and %.2f in the purse\n%+v", seed, spent, budget, purse, p)
			}
		}
		for range 20 {
			w.run(time.Duration(1+r.IntN(30))*time.Minute, check)
			w.paused, w.lost = r.IntN(4) == 0, r.IntN(4) == 0
		}
		w.paused, w.lost = false, false
		w.run(2*time.Hour, check)
		if purse := w.scaler.decider.purse.minutes; purse < 0 {
			t.Errorf("seed %d: there is still a debt of %.1f after two hours", seed, -purse)
		}
	}
	if indebted < 500 {
		t.Errorf("a debt was seen at %d looks: nothing was tried", indebted)
	}
}

// TestAPauseIsPaidFor: ten workers that are paused for 20 minutes cost 140 more than flows in. Then only the minimum is left
// until that has come in again.
func TestAPauseIsPaidFor(t *testing.T) {
	t.Parallel()
	p := usual
	p.Min, p.Budget = 0, 240
	now := time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)
	d := Decider{Policy: p}
	look := func(have int) Decision {
		return d.Decide(now, Figures{At: now, Runnable: 900, Slots: 20}, Fleet{Have: have})
	}
	look(10)
	d.Policy.Paused = true
	now = now.Add(20 * time.Minute)
	if got := look(10); got.Reason != Paused || got.Purse != 42-140 {
		t.Errorf("after the pause: %+v", got)
	}
	d.Policy.Paused = false
	if got := look(10); got.Want != 0 || got.Reason != Budget {
		t.Errorf("when it was lifted: %+v", got)
	}
	look(0)
	now = now.Add(30 * time.Minute)
	if got := look(0); got.Want == 0 || got.Purse >= 0 {
		t.Errorf("with most of it paid none may work again: %+v", got)
	}
	now = now.Add(24 * time.Hour)
	d.Policy.Paused = true
	look(10)
	now = now.Add(24 * time.Hour)
	if got := look(10); got.Purse != -180 { // what flows in within an hour
		t.Errorf("a day's debt: %+v", got)
	}
}

func TestLeastBudget(t *testing.T) {
	t.Parallel()
	for _, drain := range []time.Duration{0, 50 * time.Second, 5 * time.Minute, time.Hour} {
		for _, least := range []int{0, 2} {
			p := usual
			p.Min, p.Drain = least, drain
			for budget, more := range map[int]int{p.LeastBudget(): 1, p.LeastBudget() - 1: 0} {
				p.Budget = budget
				w := newWorld(p, &tenant{cap: unlimited, takes: time.Minute, waiting: 1 << 20})
				w.paused = true // for as long as the purse takes to fill
				w.run(2*time.Hour, nil)
				w.paused = false
				w.run(time.Minute, nil)
				if w.peak != least+more {
					t.Errorf("a budget of %d brings %d workers with a minimum of %d and a drain of %s", budget, w.peak, least, drain)
				}
			}
		}
	}
}

func randomPolicy(r *rand.Rand) Policy {
	p := usual
	p.Min, p.MaxStep, p.Cooldown, p.Drain = r.IntN(4), 1+r.IntN(6), time.Duration(1+r.IntN(600))*time.Second, time.Duration(10+r.IntN(600))*time.Second
	p.Budget = p.LeastBudget() + r.IntN(400)
	return p
}

// randomTenants have work that comes and goes, too much of it every now and then.
func randomTenants(r *rand.Rand) (tenants []*tenant) {
	for range 1 + r.IntN(4) {
		takes, period, most := time.Duration(2+r.IntN(900))*time.Second, float64(10+r.IntN(120)), 400*r.Float64()
		phase := 2 * math.Pi * r.Float64()
		tenants = append(tenants, &tenant{cap: 10 + r.IntN(300), takes: takes, rate: func(t time.Duration) float64 {
			return max(0, math.Sin(2*math.Pi*t.Minutes()/period+phase)) * most / takes.Seconds()
		}})
	}
	return tenants
}

// TestNobodyIsStartedForWhatStillDrains: three that drain take all that flows in, and nothing is in the purse. New workers
// come when they have gone, not beside them.
func TestNobodyIsStartedForWhatStillDrains(t *testing.T) {
	t.Parallel()
	p := usual
	p.Min, p.Budget = 0, 240
	began := time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)
	d := Decider{Policy: p}
	look := func(at time.Duration, fleet Fleet) Decision {
		return d.Decide(began.Add(at), Figures{At: began.Add(at), Runnable: 900, Slots: 20}, fleet)
	}
	look(0, Fleet{Have: 3})
	for at := Interval; at < 4*time.Minute; at += Interval {
		if got := look(at, Fleet{Draining: []string{"a", "b", "c"}}); got.Want != 0 || got.Purse != 0 {
			t.Fatalf("after %s: %+v", at, got)
		}
	}
	if got := look(4*time.Minute, Fleet{}); got.Want != 3 {
		t.Errorf("when they had gone: %+v", got)
	}
}

func TestWhatIsStartedCostsAtOnce(t *testing.T) {
	t.Parallel()
	p := usual
	p.Min, p.Budget = 0, 240
	now := time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)
	d := Decider{Policy: p}
	look := func(after time.Duration, have int) Decision {
		now = now.Add(after)
		return d.Decide(now, Figures{At: now, Runnable: 900, Slots: 20}, Fleet{Have: have})
	}
	d.Decide(now, Figures{At: now}, Fleet{})
	if got := look(time.Hour, 0); got.Purse != 60 || got.Want != 4 {
		t.Errorf("with a full purse: %+v", got)
	}
	if got := look(time.Minute, 4); got.Purse != 59 { // three flowed in
		t.Errorf("a minute later: %+v", got)
	}
}
