package autoscale

import (
	"maps"
	"math"
	"slices"
	"time"
)

// The hour's budget as a purse. What the minimum needs is paid first. Of the rest three quarters flow into the purse as the
// hour passes, evenly, and the purse holds a quarter at most. All workers beyond the minimum are paid from it for as long
// as the platform has them, those that drain too.
//
// What an hour costs is what was in the purse at its beginning, less what is in it at its end, and what flowed in: an hour
// that does not end in debt costs no more than the budget. A worker cannot be ended at once, its drain may cost as much
// again, so there is no debt only if the purse always holds the drains of all that would have to go. That is what afford
// sees to. Debts can come all the same: while autoscaling is paused, or the platform neither answers nor obeys. They stay
// until they are paid, those of the last hour; older ones are in no hour that could still be kept.

const (
	purseShare = 0.25 // of what the minimum leaves

	// A worker beyond the income is started when the purse is half full and could let it run for startFor and drain, and is
	// kept as long as it could for keepFor: apart, so that it does not flap.
	startFor = 10 * time.Minute
	keepFor  = 2 * time.Minute

	// A new leader does not know the purse, but it finds what the last one could afford. So it takes the purse for what that
	// needs at least, if somebody led until leadGap ago, and what drains already for paid.
	leadGap = time.Minute
)

type purse struct {
	minutes  float64              // of workers; negative: debt
	at       time.Time            // up to when they are paid for
	live     int                  // workers since then
	draining map[string]time.Time // and those that drain, since when; zero: since before we led
}

// income is how many workers beyond the minimum the budget pays for all the time.
func (p Policy) income() float64 { return p.rest() * (1 - purseShare) / 60 }

// rest is what the minimum leaves of the hour's budget.
func (p Policy) rest() float64 { return float64(max(0, p.Budget-60*p.Min)) }

// LeastBudget is the smallest budget that lets a worker beyond the minimum start.
func (p Policy) LeastBudget() int {
	takes := (p.Drain + startFor).Minutes()
	return 60*p.Min + int(math.Ceil(takes/(purseShare+takes*(1-purseShare)/60)))
}

// pay takes what the workers cost since the last look out of the purse, and puts in what has come meanwhile.
func (d *Decider) pay(now time.Time, f Fleet) {
	p, b := d.Policy, &d.purse
	if p.Budget == 0 || f.Have < 0 && b.at.IsZero() {
		return
	}
	full, debt := p.rest()*purseShare, -p.rest()*(1-purseShare)
	begins := now
	if b.at.IsZero() {
		b.draining, begins = map[string]time.Time{}, time.Time{}
		b.minutes = max(0, min(full, (float64(f.Have-p.Min)-p.income())*(p.Drain+keepFor-leadGap).Minutes()))
	} else {
		b.minutes += (p.income() - float64(b.live+len(b.drains())-p.Min)) * now.Sub(b.at).Minutes()
		b.minutes = max(debt, min(b.minutes, full))
	}
	b.at = now
	if f.Have < 0 { // as many as there were, less those whose time to drain is over
		maps.DeleteFunc(b.draining, func(_ string, since time.Time) bool { return now.Sub(since) > p.Drain })
		return
	}
	b.live = f.Have
	maps.DeleteFunc(b.draining, func(id string, _ time.Time) bool { return !slices.Contains(f.Draining, id) })
	for _, id := range f.Draining {
		if _, seen := b.draining[id]; !seen {
			b.draining[id] = begins
		}
	}
}

// drains is since when each of those drains that are not paid for.
func (b *purse) drains() (since []time.Time) {
	for _, at := range b.draining {
		if !at.IsZero() {
			since = append(since, at)
		}
	}
	return since
}

// afford is how many workers, without those that drain, the budget allows where have are there.
func (d *Decider) afford(now time.Time, have int) int {
	p, b := d.Policy, &d.purse
	if p.Budget == 0 {
		return math.MaxInt
	}
	var left []float64 // minutes that each may still drain, until the next look at least
	for _, since := range b.drains() {
		left = append(left, max(p.Drain-now.Sub(since), Interval).Minutes())
	}
	// most is how many beyond the minimum leave at least so much in the purse after so many minutes.
	most := func(minutes, atLeast float64) int {
		drains := 0.0
		for _, l := range left {
			drains += min(l, minutes)
		}
		return int(math.Floor(p.income() + (b.minutes-drains-atLeast)/minutes + 1e-9))
	}
	keep, start := most((p.Drain+keepFor).Minutes(), 0), most((p.Drain+startFor).Minutes(), 0)
	if b.minutes < p.rest()*purseShare/2 {
		start = min(start, int(p.income()))
	}
	for _, l := range left { // what drains now costs most at first: a new worker must not come on top of it
		start = min(start, most(l, min(b.minutes, 0)))
	}
	return max(0, min(max(have-p.Min, start), keep)) + p.Min
}
