//go:build unix

package main

import "strings"

// A task's life, as the ledger's notes tell it: each step is held against what its customer had asked for by then, and
// against the attempts that are booked.

// life is what is known of a task.
type life struct {
	stored event
	want   event // as it was submitted; of a schedule's task only what it ends as

	lease    string // under which it runs; "" for none
	last     event  // the last attempt of this time, until it has ended; Clock is when, by which its wait was counted
	spent    int    // attempts, all times
	requeues int
	stop     event   // it was asked to stop, this time
	end      event   // it ended; What is "" while it has not
	ends     []event // all times
	stops    []event // all times: stopping, or over as canceled
}

const (
	codeOutage = "provider_error"

	// An agent is told to stop over Redis, or within two seconds by its worker's beat. What stops none within this, while
	// nothing is wrong, was not told.
	stopLimit = 20_000 // milliseconds

	firstBackoff    = 1_000 // milliseconds, doubled with each attempt
	defaultAttempts = 3
)

// spends says which outcomes use up an attempt.
var spends = map[string]bool{"succeeded": true, "failed": true, "timeout": true, "canceled": true, "retry": true}

func (c *checker) lifeOf(task string) *life {
	if c.lives[task] == nil {
		c.lives[task] = &life{}
	}
	return c.lives[task]
}

// noted says whether what the note tells may have happened by then: it is read a little later, and later still while a fault
// keeps the ledger away.
func (c *checker) noted(note event, by int64) bool {
	return note.What != "" && (note.At <= by+observed || c.troubled(by, note.At))
}

// live goes through the notes of all tasks.
func (c *checker) live() {
	for _, l := range c.lives {
		if l.want = c.want[l.stored.N]; l.stored.Schedule != "" {
			l.want = event{Want: "succeeded"}
		}
		if l.want.Attempts == 0 {
			l.want.Attempts = defaultAttempts
		}
	}
	for _, e := range c.log {
		l := c.lifeOf(e.Task)
		switch e.What {
		case leased:
			c.begins(l, e)
		case released:
			l.lease, l.last = "", c.attempts[e.Lease]
			l.last.Clock = e.Begun
			if spends[l.last.Status] {
				l.spent++
			}
		case stopping:
			l.stop, l.stops = e, append(l.stops, e)
			if !c.askedFor(kindCancel, e, true) || l.lease == "" || l.end.What != "" {
				c.broken(ruleCancel, "%s was asked to stop although it did not run, or nobody had asked for it", e.Task)
			}
		case over:
			c.ends(l, e)
		case requeued:
			if !c.askedFor(kindRetry, e, true) || l.end.What == "" || l.end.Status == "succeeded" {
				c.broken(ruleRetry, "%s is in line again although it had not ended badly, or nobody had asked for it", e.Task)
			}
			l.requeues++
			c.Retried++
			l.end, l.stop, l.last = event{}, event{}, event{}
		}
	}
	for task, l := range c.lives {
		if l.end.What == "" {
			c.broken(ruleLost, "%s has not ended", task)
		}
		if l.stored.What != "" && l.stored.Attempt != l.spent {
			c.broken(ruleRetry, "%s has spent %d attempts by its row, %d by what is booked", task, l.stored.Attempt, l.spent)
		}
	}
}

// begins: a lease is given.
func (c *checker) begins(l *life, e event) {
	w := l.want
	first := l.requeues == 0 // a retry waives the times
	steady := !c.stepped(w.At, e.At)
	switch {
	case l.end.Status == "canceled" || l.stop.What != "":
		c.broken(ruleCancel, "%s was started after its cancel", e.Task)
	case l.end.What != "":
		c.broken(ruleDouble, "%s was started although it had ended as %s", e.Task, l.end.Status)
	case l.spent >= w.Attempts*(1+l.requeues):
		c.broken(ruleRetry, "%s was started although its %d attempts were spent", e.Task, l.spent)
	case first && e.Clock < w.RunAt && steady:
		c.broken(ruleTimes, "%s was started %d ms before its run_at", e.Task, w.RunAt-e.Clock)
	case first && w.ExpiresAt != 0 && e.Begun >= w.ExpiresAt:
		c.broken(ruleTimes, "%s was started %d ms after it had expired", e.Task, e.Begun-w.ExpiresAt)
	case e.PassedOver > 0:
		c.broken(ruleTimes, "%s was started although %d tasks of a higher priority could have been", e.Task, e.PassedOver)
	}
	if wait := int64(firstBackoff) << max(l.spent-1, 0); l.last.Status == "retry" && e.Clock-l.last.Clock < wait && steady {
		c.broken(ruleRetry, "%s was tried again %d ms after an outage, want %d", e.Task, e.Clock-l.last.Clock, wait)
	}
	l.lease = e.Lease
}

// ends: the task ended, for a reason that must be one.
func (c *checker) ends(l *life, e event) {
	if l.end.What != "" {
		c.broken(ruleDouble, "%s ended as %s, and as %s before", e.Task, e.Status, l.end.Status)
	}
	l.end, l.ends = e, append(l.ends, e)
	used := l.spent >= l.want.Attempts*(1+l.requeues)
	switch {
	case l.lease != "":
		c.broken(ruleLost, "%s ended as %s while it ran", e.Task, e.Status)
	case e.Status == "canceled":
		if l.stop.What != "" {
			c.Stopped++
		} else {
			l.stops = append(l.stops, e)
		}
		if !c.askedFor(kindCancel, e, l.stop.What == "") {
			c.broken(ruleCancel, "%s was canceled, and nobody had asked for it", e.Task)
		}
	case e.Code == "expired":
		if l.requeues > 0 || l.want.ExpiresAt == 0 || e.Begun < l.want.ExpiresAt {
			c.broken(ruleTimes, "%s expired %d ms too early, or never was to", e.Task, l.want.ExpiresAt-e.Begun)
		}
	case e.Code == codeOutage:
		if l.last.Status != "retry" || !used {
			c.broken(ruleRetry, "%s failed for an outage with %d attempts spent, the last one %s", e.Task, l.spent, l.last.Status)
		}
	case e.Code == "worker_crashed":
		if n := c.crashes(e.Task); n < leastCrashes {
			c.broken(ruleLost, "%s failed for its crashes, which are %d", e.Task, n)
		}
	case e.Status != l.last.Status:
		c.broken(ruleLost, "%s ended as %s %s, its last attempt as %q", e.Task, e.Status, e.Code, l.last.Status)
	}
	if l.stop.What != "" && e.Status != "canceled" {
		c.Beaten++
		if late := e.At - l.stop.At; late > stopLimit && !c.troubled(l.stop.At, e.At) {
			c.broken(ruleCancel, "%s ran on for %d ms after it had been asked to stop, and ended as %s", e.Task, late, e.Status)
		}
	}
}

// leastCrashes: a task that was running in so many dead workers may be failed for it.
const leastCrashes = 3

func (c *checker) crashes(task string) (n int) {
	for _, a := range c.attempts {
		if a.Task == task && a.Status == "crashed" {
			n++
		}
	}
	return n
}

// trouble is a fault, from its beginning until it was lifted for the last time, and until everything went on.
type trouble struct {
	fault                   string
	from, lifted, recovered int64 // 0: never
}

func (c *checker) readTrouble(e event) {
	t := c.troubles[e.Number]
	if t == nil {
		t = &trouble{}
		c.troubles[e.Number] = t
	}
	switch e.What {
	case faultOn:
		t.fault, t.from = e.Fault, e.At
	case faultOff:
		t.lifted = e.At
	case recovered:
		t.recovered = e.At
	}
}

// troubled says whether any fault was on at some time between.
func (c *checker) troubled(from, to int64) bool {
	for _, t := range c.troubles {
		if t.from <= to && (t.recovered == 0 || t.recovered >= from) {
			return true
		}
	}
	return false
}

// stepped says whether the ledger's clock was wrong at some time between: then its times cannot be compared.
func (c *checker) stepped(from, to int64) bool {
	for _, t := range c.troubles {
		if t.fault == "clock-steps" && t.from <= to && (t.lifted == 0 || t.lifted+observed >= from) {
			return true
		}
	}
	return false
}

// demand is what a customer asked for beside tasks.
type demand struct {
	event         // as it was asked
	answer  event // What is "" when there was none
	touched int   // tasks that the ledger canceled, asked to stop or brought back for it
}

func (c *checker) readDemand(e event) {
	if e.What == asks {
		c.demands[e.Key] = &demand{event: e}
	} else if d := c.demands[e.Key]; d != nil {
		d.answer = e
	}
}

// covers says whether the demand is about the task of the note.
func (d *demand) covers(c *checker, e event) bool {
	if d.Group != "" {
		return d.Group == c.lifeOf(e.Task).want.Group
	}
	return d.Task == e.Task
}

// askedFor says whether a customer had asked for what the note tells; count counts it as done for them.
func (c *checker) askedFor(kind string, e event, count bool) (found bool) {
	for _, d := range c.demands {
		if d.Kind == kind && d.covers(c, e) && d.At <= e.At {
			found = true
			if count {
				d.touched++
			}
		}
	}
	return found
}

// asked holds the answers to customers' requests against what the ledger did.
func (c *checker) asked() {
	for key, d := range c.demands {
		status := d.answer.Status
		if status == "" {
			continue // the run ended first
		}
		switch {
		case d.Group != "":
			if status != "202" || d.answer.Count != d.touched {
				c.broken(d.rule(), "%q was answered %s for %d tasks, the ledger did it to %d", key, status, d.answer.Count, d.touched)
			}
		case d.Kind == kindRetry:
			if status != "202" || c.lifeOf(d.Task).requeues != 1 {
				c.broken(ruleRetry, "%q was answered %s, the task was in line again %d times", key, status, c.lifeOf(d.Task).requeues)
			}
		default:
			c.canceled(key, d)
		}
	}
}

func (d *demand) rule() string {
	if d.Kind == kindCancel {
		return ruleCancel
	}
	return ruleRetry
}

// canceled: 202 says that the task has been canceled or asked to stop, 200 that it had been canceled before, 409 that it had ended
// otherwise. A customer cancels a task before they retry it, so this is about its first end.
func (c *checker) canceled(key string, d *demand) {
	l := c.lifeOf(d.Task)
	var end, stop event
	if len(l.ends) > 0 {
		end = l.ends[0]
	}
	if len(l.stops) > 0 {
		stop = l.stops[0]
	}
	ended := c.noted(end, d.answer.At)
	var right bool
	switch d.answer.Status {
	case "202":
		right = c.noted(stop, d.answer.At) && (d.answer.Becomes != "canceled" || ended && end.Status == "canceled")
	case "200":
		right = ended && end.Status == "canceled"
	case "409":
		right = ended && end.Status != "canceled"
	}
	if !right {
		c.broken(ruleCancel, "%q was answered %s %s, the task %s", key, d.answer.Status, d.answer.Becomes, strings.TrimSpace("ended as "+end.Status))
	}
}
