//go:build unix

package main

import (
	"fmt"
	"maps"
	"slices"
)

// The checker holds a history against what Muster promises. It knows nothing but the history's events, so that it can
// be tried on histories that break each rule.

// violation is a promise that was broken.
type violation struct{ Rule, Detail string }

// The rules.
const (
	ruleLost     = "lost: an acknowledged task reaches its one final state"
	ruleDouble   = "double: one request makes one task, and a task succeeds once"
	ruleCap      = "cap: never more leases of a workspace than its cap"
	ruleCalls    = "calls: agents run under a lease, and beyond the cap only where a lost lease's call was already on its way"
	ruleSurvive  = "survival: an attempt is cut short only where something was done to its worker"
	ruleMetering = "metering: each ended lease is one attempt with one row, and the sums agree"
	ruleProcess  = "processes: none ends by itself"
)

// tally is what a checked history amounts to.
type tally struct {
	Submitted, Acknowledged int
	Replays                 int // acknowledged requests whose first answer had been lost
	Succeeded, Failed       int // as they should have
	Suspects                int // failed because too many workers died under them
	Attempts, Crashed       int
	Calls                   int
	Overlaps                int // calls that were on their way when their lease was taken away, and met the next attempt's
	Late                    int // calls of a stopped or cut worker that went out after its lease had been taken away
	MostAtOnce              int // calls, over all workspaces
	Violations              []violation
}

func (t *tally) broken(rule, format string, args ...any) {
	t.Violations = append(t.Violations, violation{rule, fmt.Sprintf(format, args...)})
}

// check reads a whole history.
func check(events []event) *tally {
	c := &checker{tally: &tally{}, caps: map[string]int{}, names: map[string]string{}, want: map[int]string{}, wsOf: map[int]string{}, keys: map[string]map[string]bool{},
		ackedTasks: map[string]int{}, finals: map[string][]event{}, stored: map[int][]event{}, procs: map[int]string{}, workers: map[string]string{},
		leases: map[string]*leaseLife{}, attempts: map[string]event{}, rows: map[string][]event{}, hits: map[string][]event{}}
	for _, e := range events {
		c.read(e)
	}
	c.tasks()
	c.leaseLog()
	c.metering()
	c.callsAndLeases()
	return c.tally
}

type checker struct {
	*tally
	caps       map[string]int             // workspace's id → cap
	names      map[string]string          // workspace's id → name
	want       map[int]string             // task's number → the final state that it asks for
	wsOf       map[int]string             // task's number → workspace's name
	keys       map[string]map[string]bool // idempotency key and number → tasks named in acknowledgements
	ackedTasks map[string]int             // task → number
	finals     map[string][]event         // by task
	stored     map[int][]event            // by number
	procs      map[int]string             // pid → process
	workers    map[string]string          // the ledger's worker → process
	log        []event                    // of leases
	leases     map[string]*leaseLife
	attempts   map[string]event   // by lease
	rows       map[string][]event // by lease
	quotas     []event
	hits       map[string][]event // by process
	calls      []*call
	byCall     map[int64]*call
}

// leaseLife is a lease as the ledger's trigger saw it.
type leaseLife struct {
	granted, ended event // ended.Seq is 0 while it lasts
	proc           string
}

// call is an agent's call at the model server.
type call struct {
	start, end event
	lease      *leaseLife
}

func (c *checker) read(e event) {
	switch e.What {
	case workspace:
		c.caps[e.Workspace], c.names[e.Workspace] = e.Cap, e.WS
	case process:
		c.procs[e.PID] = e.Proc
	case exited:
		c.broken(ruleProcess, "%s: %s", e.Proc, e.Note)
	case submitted:
		c.Submitted++
		c.want[e.N], c.wsOf[e.N] = e.Want, e.WS
	case acked:
		c.Acknowledged++
		if e.Replayed {
			c.Replays++
		}
		key := fmt.Sprintf("%s/%d", e.Key, e.N)
		if c.keys[key] == nil {
			c.keys[key] = map[string]bool{}
		}
		c.keys[key][e.Task] = true
		c.ackedTasks[e.Task] = e.N
	case final:
		c.finals[e.Task] = append(c.finals[e.Task], e)
	case stored:
		c.stored[e.N] = append(c.stored[e.N], e)
	case worker:
		c.workers[e.Worker] = c.procs[e.PID]
	case leased, released:
		c.log = append(c.log, e)
	case attempted:
		c.Attempts++
		if e.Status == "crashed" {
			c.Crashed++
		}
		if _, ok := c.attempts[e.Lease]; ok {
			c.broken(ruleMetering, "lease %s is booked twice", e.Lease)
		}
		c.attempts[e.Lease] = e
	case metered:
		c.rows[e.Lease] = append(c.rows[e.Lease], e)
	case quota:
		c.quotas = append(c.quotas, e)
	case faultHit:
		c.hits[e.Proc] = append(c.hits[e.Proc], e)
	case started:
		c.Calls++
		if c.byCall == nil {
			c.byCall = map[int64]*call{}
		}
		c.byCall[e.Call] = &call{start: e}
		c.calls = append(c.calls, c.byCall[e.Call])
	case ended:
		if one := c.byCall[e.Call]; one != nil {
			one.end = e
		}
	}
}

// tasks: none lost, none double.
func (c *checker) tasks() {
	for key, tasks := range c.keys {
		if len(tasks) > 1 {
			c.broken(ruleDouble, "the request %s was acknowledged as %d different tasks", key, len(tasks))
		}
	}
	for n, rows := range c.stored {
		if len(rows) > 1 {
			c.broken(ruleDouble, "the ledger holds %d tasks of request %d", len(rows), n)
		}
		if c.want[n] == "" {
			c.broken(ruleDouble, "the ledger holds a task that nobody sent: %d", n)
		}
	}
	succeeded, crashes := map[string]int{}, map[string]int{}
	for _, a := range c.attempts {
		switch a.Status {
		case "succeeded":
			succeeded[a.Task]++
		case "crashed":
			crashes[a.Task]++
		}
	}
	for task, n := range succeeded {
		if n > 1 {
			c.broken(ruleDouble, "%s succeeded %d times", task, n)
		}
	}
	for task, n := range c.ackedTasks {
		finals := c.finals[task]
		if len(finals) != 1 {
			c.broken(ruleLost, "%s of request %d is shown %d times at the end", task, n, len(finals))
			continue
		}
		f := finals[0]
		switch {
		case f.Status != c.want[n] && f.Code == "worker_crashed" && crashes[task] >= leastCrashes:
			c.Suspects++
		case f.Status != c.want[n]:
			c.broken(ruleLost, "%s of request %d is %s %s at the end, want %s", task, n, f.Status, f.Code, c.want[n])
		case f.Status == "succeeded":
			c.Succeeded++
			if succeeded[task] != 1 {
				c.broken(ruleDouble, "%s is succeeded, %d of its attempts did", task, succeeded[task])
			}
		default:
			c.Failed++
		}
	}
}

// leastCrashes: a task that was running in so many dead workers may be failed for it.
const leastCrashes = 3

// leaseLog replays the grants and ends of leases as the ledger ordered them, under each workspace's lock.
func (c *checker) leaseLog() {
	slices.SortFunc(c.log, func(a, b event) int { return int(a.Seq - b.Seq) })
	held := map[string]map[string]bool{} // workspace → tasks
	for _, e := range c.log {
		ws := held[e.Workspace]
		if ws == nil {
			ws = map[string]bool{}
			held[e.Workspace] = ws
		}
		if e.What == released {
			if l := c.leases[e.Lease]; l != nil {
				l.ended = e
			}
			delete(ws, e.Task)
			continue
		}
		if ws[e.Task] {
			c.broken(ruleCap, "%s was leased while it was leased", e.Task)
		}
		ws[e.Task] = true
		c.leases[e.Lease] = &leaseLife{granted: e, proc: c.workers[e.Worker]}
		if most := c.caps[e.Workspace]; len(ws) > most || e.Running > most {
			c.broken(ruleCap, "%s holds %d leases, %d by the log, its cap is %d", c.names[e.Workspace], e.Running, len(ws), most)
		}
	}
	for id, ws := range held {
		if len(ws) > 0 {
			c.broken(ruleLost, "%s holds %d leases at the end", c.names[id], len(ws))
		}
	}
}

// metering: one attempt and one row for each lease that ended, and the sums that customers see.
func (c *checker) metering() {
	for id, l := range c.leases {
		if _, ok := c.attempts[id]; !ok && l.ended.Seq != 0 {
			c.broken(ruleMetering, "lease %s of %s ended and no attempt is booked", id, l.granted.Task)
		}
	}
	used := map[string]int64{}
	for id, a := range c.attempts {
		if c.leases[id] == nil {
			c.broken(ruleMetering, "an attempt of %s is booked for lease %s, which was never granted", a.Task, id)
		}
		rows := c.rows[id]
		if len(rows) != 1 || rows[0].Used != a.Used || rows[0].Billable != a.Billable {
			c.broken(ruleMetering, "the attempt %s of %s with %d ms has rows %v", id, a.Task, a.Used, rows)
		}
		if a.Billable {
			used[c.names[a.Workspace]] += a.Used
		}
		if a.Billable && a.Status == "crashed" {
			c.broken(ruleMetering, "the crashed attempt %s is billable", id)
		}
	}
	for id := range c.rows {
		if _, ok := c.attempts[id]; !ok {
			c.broken(ruleMetering, "a row without an attempt: %s", id)
		}
	}
	for _, q := range c.quotas {
		if used[q.WS] != q.Used {
			c.broken(ruleMetering, "%s is shown %d ms, its billable attempts used %d", q.WS, q.Used, used[q.WS])
		}
	}
}

// hit says whether something was done to the process before the given time that may take its agents away.
func (c *checker) hit(proc string, before int64) bool {
	return slices.ContainsFunc(c.hits[proc], func(e event) bool { return e.At <= before })
}

// observed is how late the log of leases may have been read, milliseconds.
const observed = 2_000

// callsAndLeases holds what the model server saw against the leases.
func (c *checker) callsAndLeases() {
	c.assignLeases()
	taskOf := map[int]string{}
	for n, rows := range c.stored {
		taskOf[n] = rows[0].Task
	}
	open := map[int64]*call{}
	type moment struct {
		at    int64
		start bool
		call  *call
	}
	var moments []moment
	for _, one := range c.calls {
		moments = append(moments, moment{one.start.At, true, one})
		if one.end.What == "" {
			c.broken(ruleCalls, "a call of request %d never ended", one.start.N)
			continue
		}
		moments = append(moments, moment{one.end.At, false, one})
		if one.end.Gone && !c.hit(one.start.Proc, one.end.At) {
			c.broken(ruleSurvive, "a running agent of request %d was canceled in %s, to which nothing had been done", one.start.N, one.start.Proc)
		}
	}
	slices.SortStableFunc(moments, func(a, b moment) int {
		if a.at != b.at {
			return int(a.at - b.at)
		}
		if a.start != b.start && !a.start { // within a millisecond ends come first
			return -1
		}
		return 0
	})
	for _, m := range moments {
		if !m.start {
			delete(open, m.call.start.Call)
			continue
		}
		open[m.call.start.Call] = m.call
		c.MostAtOnce = max(c.MostAtOnce, len(open))
		c.atOnce(m.call, slices.Collect(maps.Values(open)), taskOf)
	}
	for id, a := range c.attempts {
		l := c.leases[id]
		if l != nil && a.Status == "crashed" && !c.hit(l.proc, l.ended.At) {
			c.broken(ruleSurvive, "an attempt of %s counts as crashed in %s, to which nothing had been done", a.Task, l.proc)
		}
	}
}

// assignLeases finds the lease under which each call was made: the last one of its task in its process that had been
// granted by then.
func (c *checker) assignLeases() {
	byRun := map[string][]*leaseLife{} // task and process
	for _, l := range c.leases {
		run := l.granted.Task + " " + l.proc
		byRun[run] = append(byRun[run], l)
	}
	for _, runs := range byRun {
		slices.SortFunc(runs, func(a, b *leaseLife) int { return int(a.granted.Seq - b.granted.Seq) })
	}
	for _, one := range c.calls {
		rows := c.stored[one.start.N]
		if len(rows) == 0 {
			c.broken(ruleCalls, "an agent runs for request %d, of which the ledger has no task", one.start.N)
			continue
		}
		for i, l := range byRun[rows[0].Task+" "+one.start.Proc] {
			if i == 0 || l.granted.At <= one.start.At+observed {
				one.lease = l
			}
		}
		if one.lease == nil {
			c.broken(ruleCalls, "an agent ran request %d in %s without a lease", one.start.N, one.start.Proc)
		}
	}
}

// atOnce looks at what runs at the start of a call.
func (c *checker) atOnce(one *call, open []*call, taskOf map[int]string) {
	if one.lease == nil {
		return
	}
	if gone := one.lease.ended; gone.Seq != 0 && gone.At < one.start.At {
		if c.hit(one.start.Proc, one.start.At) {
			c.Late++
		} else {
			c.broken(ruleCalls, "request %d was run in %s %d ms after its lease had ended", one.start.N, one.start.Proc, one.start.At-gone.At)
		}
	}
	latest := int64(0)
	var mates []*call // of the same workspace
	for _, o := range open {
		if o.lease != nil && o.lease.granted.Workspace == one.lease.granted.Workspace {
			mates = append(mates, o)
			latest = max(latest, o.lease.granted.Seq)
		}
	}
	valid := 0
	for _, o := range mates {
		if fenced := o.lease.ended.Seq; fenced != 0 && fenced < latest {
			if o != one && o.start.N == one.start.N {
				c.Overlaps++
			}
			continue
		}
		valid++
		if o != one && o.start.N == one.start.N {
			c.broken(ruleCalls, "two calls of request %d run at once under leases that both count", one.start.N)
		}
	}
	if most := c.caps[one.lease.granted.Workspace]; valid > most {
		c.broken(ruleCalls, "%d agents of %s run at once, its cap is %d", valid, c.names[one.lease.granted.Workspace], most)
	}
}
