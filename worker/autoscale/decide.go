// Package autoscale decides how many workers the fleet should have, and has a driver start and stop them.
//
// The decision (decide.go) is a pure function of time, figures and a little memory; the scaler (scaler.go) reads the
// figures, asks the driver what is there, decides, logs and acts. A driver (local.go, fly.go) knows one platform. The
// scaler runs in the scheduler that leads; two at once for a moment do no harm, because each step looks at what is there.
//
// It promises: a backlog that no worker could run adds no worker; nothing is scaled down on figures that are missing or
// old; a worker that is stopped gets SIGTERM and the time to drain.
package autoscale

import (
	"math"
	"time"
)

const (
	// StaleAfter is the age from which figures are no base for a decision. After a gap of that length the cool-down
	// begins anew.
	StaleAfter = 15 * time.Second

	stepEvery = 10 * time.Second // between two steps up
	downParts = 5                // steps down within one cool-down, at most

	// A quarter of the hour's budget may be spent at once, from a purse that the other three quarters fill as the hour
	// passes: together never more than the budget in any hour. A worker beyond what flows in must find purseMinutes in it.
	purseShare   = 0.25
	purseMinutes = 5.0
)

// MinBudget is the smallest budget that pays for anything.
const MinBudget = int(purseMinutes / purseShare)

// Policy is what operators set.
type Policy struct {
	Min int // workers that there always are, whatever the budget; 0 and up
	Max int // workers at most; at least Min

	Target  int           // each worker should have fewer runnable tasks than this waiting for it; at least 1
	MaxWait time.Duration // when work has waited for so long with all slots in use, a quarter more workers come, again and again
	MaxStep int           // workers added in one step, 10 s between two; at least 1

	// Cooldown is for how long fewer workers must have been enough before the first goes. Then a quarter goes, at least
	// one, five times per cool-down.
	Cooldown time.Duration

	Warm    int           // workers that are kept, not started, while anything ran or could run within WarmFor
	WarmFor time.Duration // 0 to any

	Budget int // worker-minutes in any hour, less than what Min needs cut nothing; 0 is no limit, else at least MinBudget

	Paused bool // nothing is started or stopped
	DryRun bool // decisions are made and told, not carried out
}

// Figures is the load of the fleet.
type Figures struct {
	At         time.Time     // when they were read; zero: they could not be read
	Runnable   int           // sum over workspaces of min(waiting, cap - running), 0 without quota or budget
	Running    int           // tasks, that is slots in use
	OldestWait time.Duration // of the turn that is out longest
	Slots      int           // of one worker; at least 1
}

// Reason says why a decision is what it is.
type Reason string

// The reasons, in the order in which Decide looks for them.
const (
	Paused         Reason = "paused"
	WorkersUnknown Reason = "workers_unknown" // the driver could not tell what is there: hold
	FiguresMissing Reason = "figures_missing" // or stale: hold
	Minimum        Reason = "minimum"         // up to Min
	Backlog        Reason = "backlog"         // up: too much runnable work per worker
	Running        Reason = "running"         // up: fewer workers than what runs needs, one has gone
	Waiting        Reason = "waiting"         // up: all slots are in use and work has waited too long
	Step           Reason = "step"            // more are needed; the last step was a moment ago
	Maximum        Reason = "maximum"         // more are needed and not allowed; or there are more than allowed
	Budget         Reason = "budget"          // the same, by the hour's budget
	Enough         Reason = "enough"
	Cooldown       Reason = "cooldown" // fewer would do, not for long enough yet
	Warm           Reason = "warm"     // fewer would do, kept warm
	Surplus        Reason = "surplus"  // down
)

// Reasons lists all reasons.
var Reasons = []Reason{Paused, WorkersUnknown, FiguresMissing, Minimum, Backlog, Running, Waiting, Step, Maximum, Budget, Enough, Cooldown, Warm, Surplus}

// Held says that nothing is decided because something cannot be known.
func (r Reason) Held() bool { return r == WorkersUnknown || r == FiguresMissing }

// Decision is what to do now, with what it was made of.
type Decision struct {
	Have    int // workers that there are or that start; -1: unknown
	Want    int // workers that there should be after this step; -1: unknown
	Need    int // what the work alone asks for
	Reason  Reason
	Figures Figures
}

// Decider remembers what decisions need of the past. Its zero value with a Policy is ready: it has seen nothing.
type Decider struct {
	Policy Policy

	since  time.Time // figures have been coming without a gap since
	fresh  time.Time // the last ones
	needs  []sample  // of the last Cooldown, oldest first, falling: those that a later, higher one outlasts are dropped
	active time.Time // when anything last ran or could run; begins with the first look
	queued time.Time // since when something has been runnable at each look; zero: nothing is
	upAt   time.Time // of the last step up
	downAt time.Time // of the last step down

	purse  float64   // worker-minutes of the budget that may be spent at once; whoever begins to lead finds it empty
	paid   time.Time // up to when workers are paid for
	paying int       // how many there were then
}

type sample struct {
	at   time.Time
	need int
}

// Decide says how many workers there should be, where have is how many there are or start (negative: unknown).
func (d *Decider) Decide(now time.Time, f Figures, have int) Decision {
	p := d.Policy
	d.pay(now, have)
	hold := func(r Reason) Decision { return Decision{Have: have, Want: have, Reason: r, Figures: f} }
	switch {
	case p.Paused:
		return hold(Paused)
	case have < 0:
		return hold(WorkersUnknown)
	case f.At.IsZero() || now.Sub(f.At) > StaleAfter:
		return hold(FiguresMissing)
	}
	d.look(now, f)
	need, why := d.need(now, f, have)
	d.remember(now, need)
	limit, limited := d.limit(have)
	target := max(p.Min, min(need, limit))
	out := Decision{Have: have, Want: have, Need: need, Figures: f}
	switch {
	case target > have && now.Sub(d.upAt) < stepEvery:
		out.Reason = Step
	case target > have:
		out.Want, out.Reason, d.upAt = min(target, have+p.MaxStep), why, now
		if need < p.Min {
			out.Reason = Minimum
		}
	case limit < have: // a limit was lowered, or the budget is used up: what is too much drains
		out.Want, out.Reason = limit, limited
	case need > limit:
		out.Reason = limited
	case target == have:
		out.Reason = Enough
	default:
		out.Want, out.Reason = d.down(now, target, limit, have)
	}
	return out
}

// look notes what the figures say of the past.
func (d *Decider) look(now time.Time, f Figures) {
	if now.Sub(d.fresh) > StaleAfter { // we were blind: everything we knew may have changed
		d.since, d.needs, d.queued = now, nil, time.Time{}
	}
	d.fresh = f.At
	if f.Runnable+f.Running > 0 || d.active.IsZero() {
		d.active = now
	}
	switch {
	case f.Runnable == 0:
		d.queued = time.Time{}
	case d.queued.IsZero():
		d.queued = now.Add(-f.OldestWait)
	}
}

// need is how many workers the work asks for.
func (d *Decider) need(now time.Time, f Figures, have int) (int, Reason) {
	p := d.Policy
	need, why := ceil(f.Running, f.Slots), Running
	if f.Runnable == 0 {
		return need, why
	}
	if n := f.Runnable/p.Target + 1; n > need {
		need, why = n, Backlog
	}
	// A fifth of the slots serves one tier alone: with four fifths in use there may be none for those who wait. With
	// slots free, what waits waits for something else than workers.
	usable := max(1, f.Slots*4/5)
	if f.Running >= usable*have && now.Sub(d.queued) >= p.MaxWait && now.Sub(d.upAt) >= p.MaxWait {
		if n := min(ceil(f.Running+f.Runnable, usable), have+max(1, have/4)); n > need {
			need, why = n, Waiting
		}
	}
	return need, why
}

// pay takes what the workers cost since the last look out of the purse, and puts in what has come meanwhile.
func (d *Decider) pay(now time.Time, have int) {
	if d.Policy.Budget == 0 {
		return
	}
	if !d.paid.IsZero() {
		d.purse += (d.income() - float64(d.paying)) * now.Sub(d.paid).Minutes()
		d.purse = max(0, min(d.purse, float64(d.Policy.Budget)*purseShare))
	}
	d.paid = now
	if have >= 0 {
		d.paying = have
	}
}

// income is how many workers the budget pays for all the time.
func (d *Decider) income() float64 { return float64(d.Policy.Budget) * (1 - purseShare) / 60 }

// limit is how many workers there may be. The minimum is never cut.
func (d *Decider) limit(have int) (int, Reason) {
	limit, limited := d.Policy.Max, Maximum
	if d.Policy.Budget > 0 {
		more := d.purse / purseMinutes
		lower, upper := int(d.income()+math.Floor(more)), int(d.income()+math.Ceil(more)) // apart, so that it does not flap
		if n := min(max(have, lower), upper); n < limit {
			limit, limited = n, Budget
		}
	}
	return max(limit, d.Policy.Min), limited
}

// remember notes what was needed now.
func (d *Decider) remember(now time.Time, need int) {
	for len(d.needs) > 0 && d.needs[len(d.needs)-1].need <= need {
		d.needs = d.needs[:len(d.needs)-1]
	}
	d.needs = append(d.needs, sample{now, need})
	for now.Sub(d.needs[0].at) > d.Policy.Cooldown {
		d.needs = d.needs[1:]
	}
}

// down decides on fewer workers: no fewer than were needed at any moment of the cool-down, and slowly.
func (d *Decider) down(now time.Time, target, limit, have int) (int, Reason) {
	p := d.Policy
	if now.Sub(d.since) < p.Cooldown {
		return have, Cooldown
	}
	floor := max(target, min(d.needs[0].need, limit))
	if floor >= have {
		return have, Cooldown
	}
	if now.Sub(d.active) < p.WarmFor {
		floor = max(floor, min(p.Warm, have))
	}
	switch {
	case floor >= have:
		return have, Warm
	case now.Sub(d.downAt) < p.Cooldown/downParts:
		return have, Cooldown
	}
	d.downAt = now
	return max(floor, have-max(1, have/4)), Surplus
}

func ceil(n, by int) int {
	by = max(by, 1)
	return (n + by - 1) / by
}
