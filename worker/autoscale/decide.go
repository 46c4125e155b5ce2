// Package autoscale decides how many workers the fleet should have, and has a driver start and stop them.
//
// The decision (decide.go, and purse.go for the budget) is a pure function of time, figures and a little memory; the scaler
// (scaler.go) reads the figures, asks the driver what is there, decides, logs and acts. A driver (local.go, fly.go) knows one
// platform. The scaler runs in the scheduler that leads; two at once for a moment do no harm, because each step looks at what
// is there.
//
// It promises: a backlog that no worker could run adds no worker; figures that are missing or old scale nothing down; no
// hour costs more than the budget; a worker that is stopped gets SIGTERM and the time to drain.
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
)

// Policy is what operators set.
type Policy struct {
	Min int // workers that there always are, whatever the budget; 0 and up
	Max int // workers at most; at least Min

	Target  int           // each worker should have fewer runnable tasks than this waiting for it; at least 1
	MaxWait time.Duration // with all slots in use, a quarter more workers come for each of these that the oldest turn has waited
	MaxStep int           // workers added in one step, 10 s between two; at least 1

	// Cooldown is for how long fewer workers must have been enough before the first goes. Then a quarter goes, at least
	// one, five times per cool-down.
	Cooldown time.Duration

	Warm    int           // workers that are kept, not started, while anything ran or could run within WarmFor
	WarmFor time.Duration // 0 to any

	Budget int           // worker-minutes in any hour, draining included; less than what Min needs cut nothing; 0 is no limit
	Drain  time.Duration // what a worker that is stopped takes until it is gone, at most

	Paused bool // nothing is started or stopped
	DryRun bool // decisions are made and told, not carried out
}

// Figures is the load of the fleet.
type Figures struct {
	At         time.Time     // when they were read; zero: they could not be read
	Runnable   int           // sum over workspaces of min(waiting, cap - running), 0 without quota or budget
	Running    int           // tasks, that is slots in use
	OldestWait time.Duration // of the turn that has been in line longest, in tiers where something is runnable
	Slots      int           // of one worker; at least 1
}

// Fleet is what the platform has.
type Fleet struct {
	Have     int      // workers that there are or that start; -1: unknown
	Draining []string // ids of those that were told to stop and are still there
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
	Waiting        Reason = "waiting"         // up: all slots are in use and the oldest turn has waited for MaxWait
	Full           Reason = "full"            // up: all slots are in use and for MaxWait the line has not been empty
	Step           Reason = "step"            // more are needed; the last step was a moment ago
	Maximum        Reason = "maximum"         // more are needed and not allowed; or there are more than allowed
	Budget         Reason = "budget"          // the same, by the hour's budget
	Enough         Reason = "enough"
	Cooldown       Reason = "cooldown" // fewer would do, not for long enough yet
	Warm           Reason = "warm"     // fewer would do, kept warm
	Surplus        Reason = "surplus"  // down
)

// Reasons lists all reasons.
var Reasons = []Reason{Paused, WorkersUnknown, FiguresMissing, Minimum, Backlog, Running, Waiting, Full, Step, Maximum, Budget, Enough, Cooldown, Warm, Surplus}

// Held says that nothing is decided because something cannot be known.
func (r Reason) Held() bool { return r == WorkersUnknown || r == FiguresMissing }

// Decision is what to do now, with what it was made of.
type Decision struct {
	Have     int // workers that there are or that start; -1: unknown
	Draining int
	Want     int // workers that there should be after this step; -1: unknown
	Need     int // what the work alone asks for
	Limit    int // workers at most, by the maximum and the budget
	Floor    int // the most that was needed at any moment of the cool-down; -1: nothing is known of it
	Purse    int // worker-minutes that the budget has in hand, rounded; negative: debt
	Reason   Reason
	Figures  Figures
	Age      time.Duration // of the figures
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
	purse  purse
}

type sample struct {
	at   time.Time
	need int
}

// Decide says how many workers there should be.
func (d *Decider) Decide(now time.Time, f Figures, fleet Fleet) Decision {
	d.pay(now, fleet)
	out := d.decide(now, f, fleet.Have)
	out.Have, out.Draining, out.Figures = fleet.Have, len(fleet.Draining), f
	out.Purse, out.Floor = int(math.Round(d.purse.minutes)), -1
	if !f.At.IsZero() {
		out.Age = now.Sub(f.At)
	}
	if len(d.needs) > 0 {
		out.Floor = d.needs[0].need
	}
	if out.Want > out.Have { // they cost from now on, whether the next look finds them already or not
		d.purse.live += out.Want - out.Have
	}
	return out
}

// decide fills in what is decided: Want, Need, Limit and Reason.
func (d *Decider) decide(now time.Time, f Figures, have int) Decision {
	p := d.Policy
	limit, limited := p.Max, Maximum
	affords := d.afford(now, have)
	if affords < limit {
		limit, limited = affords, Budget
	}
	out := Decision{Want: have, Limit: max(limit, p.Min)}
	switch {
	case p.Paused:
		out.Reason = Paused
		return out
	case have < 0:
		out.Reason = WorkersUnknown
		return out
	case f.At.IsZero() || now.Sub(f.At) > StaleAfter:
		out.Reason = FiguresMissing
		if affords < have { // a limit on money needs no figures, and a ledger may be away for hours
			out.Want, out.Reason = affords, Budget
		}
		return out
	}
	d.look(now, f)
	need, why := d.need(now, f, have)
	d.remember(now, need)
	limit, out.Need = out.Limit, need
	target := max(p.Min, min(need, limit))
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
		d.queued = now
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
	// slots free, what waits waits for something else than workers. Those that came last get MaxWait to show their effect.
	usable := max(1, f.Slots*4/5)
	if have == 0 || f.Running < usable*have || now.Sub(d.upAt) < p.MaxWait {
		return need, why
	}
	// A turn's wait is its workspace's: where many stand in line it tells how long. A single workspace with much to do has
	// its next turn soon, however long its tasks wait; so a line that is never empty counts as well.
	quarters, full := int(f.OldestWait/p.MaxWait), Waiting
	if quarters == 0 && now.Sub(d.queued) >= p.MaxWait {
		quarters, full = 1, Full
	}
	if n := min(ceil(f.Running+f.Runnable, usable), have+max(quarters, have*quarters/4)); quarters > 0 && n > need {
		need, why = n, full
	}
	return need, why
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
