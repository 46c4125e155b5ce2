//go:build unix

package main

import (
	"maps"
	"slices"
)

// hit says whether something was done to the process before the given time that may take its agents away.
func (c *checker) hit(proc string, before int64) bool {
	return slices.ContainsFunc(c.hits[proc], func(e event) bool { return e.At <= before })
}

// observed is how late the log of leases may have been read, milliseconds.
const observed = 2_000

// calledOff says whether the call's attempt ended by its customer's cancel; live sees to it that there was one.
func (c *checker) calledOff(one *call) bool {
	return one.lease != nil && c.attempts[one.lease.granted.Lease].Status == "canceled"
}

// callsAndLeases holds what the model server saw against the leases.
func (c *checker) callsAndLeases() {
	c.assignLeases()
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
		if one.end.Gone && !c.hit(one.start.Proc, one.end.At) && !c.calledOff(one) {
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
		c.atOnce(m.call, slices.Collect(maps.Values(open)))
	}
}

// outages: a call that the model server was out for ends its attempt as a retry, and nothing else does.
func (c *checker) outages() {
	failed := map[string]bool{} // leases of which a call met an outage
	for _, one := range c.calls {
		if one.lease == nil || one.end.Status != "429" && one.end.Status != "503" {
			continue
		}
		lease := one.lease.granted.Lease
		failed[lease] = true
		if a := c.attempts[lease]; a.Status != "retry" && a.Status != "canceled" && !c.hit(one.start.Proc, one.lease.ended.At) {
			c.broken(ruleRetry, "a call of request %d was answered %s, its attempt ended as %s", one.start.N, one.end.Status, a.Status)
		}
	}
	for id, a := range c.attempts {
		l := c.leases[id]
		if l == nil || c.hit(l.proc, l.ended.At) {
			continue
		}
		switch {
		case a.Status == "crashed":
			c.broken(ruleSurvive, "an attempt of %s counts as crashed in %s, to which nothing had been done", a.Task, l.proc)
		case a.Status == "retry" && !failed[id] && c.lifeOf(a.Task).stored.Schedule == "":
			c.broken(ruleRetry, "an attempt of %s counts as an outage of the model server, which had none", a.Task)
		}
	}
}

// assignLeases finds the lease under which each call was made. The calls of a task in a process are in the order of its leases
// there, each of which makes one or, when it was handed back, none. So a call belongs to the first lease that is left, unless
// a later one had been granted by then. What the ledger notes is read a little later than it happens.
func (c *checker) assignLeases() {
	byRun := map[string][]*leaseLife{} // task and process
	for _, l := range c.leases {
		run := l.granted.Task + " " + l.proc
		byRun[run] = append(byRun[run], l)
	}
	for _, runs := range byRun {
		slices.SortFunc(runs, func(a, b *leaseLife) int { return int(a.granted.Seq - b.granted.Seq) })
	}
	for _, one := range c.calls { // in the order of their starts
		rows := c.stored[one.start.N]
		if len(rows) == 0 {
			c.broken(ruleCalls, "an agent runs for request %d, of which the ledger has no task", one.start.N)
			continue
		}
		run := rows[0].Task + " " + one.start.Proc
		left := byRun[run]
		for len(left) > 1 && (left[1].granted.At <= one.start.At ||
			left[1].granted.At <= one.start.At+observed && (left[0].called || left[0].ended.Seq != 0 && left[0].ended.At < one.start.At)) {
			left = left[1:]
		}
		byRun[run] = left
		if len(left) == 0 {
			c.broken(ruleCalls, "an agent ran request %d in %s without a lease", one.start.N, one.start.Proc)
			continue
		}
		one.lease, left[0].called = left[0], true
	}
}

// atOnce looks at what runs at the start of a call.
func (c *checker) atOnce(one *call, open []*call) {
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
	fenced := func(o *call) bool { return o.lease.ended.Seq != 0 && o.lease.ended.Seq < latest }
	valid := 0
	for _, o := range mates {
		other := o != one && o.start.N == one.start.N
		if !fenced(o) {
			valid++
		}
		switch {
		case !other:
		case fenced(o) || fenced(one): // one that is late meets the next attempt's, and not only the other way round
			c.Overlaps++
		default:
			c.broken(ruleCalls, "two calls of request %d run at once under leases that both count", one.start.N)
		}
	}
	if most := c.caps[one.lease.granted.Workspace]; valid > most {
		c.broken(ruleCalls, "%d agents of %s run at once, its cap is %d", valid, c.names[one.lease.granted.Workspace], most)
	}
}
