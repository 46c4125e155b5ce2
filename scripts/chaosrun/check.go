//go:build unix

package main

import (
	"fmt"
	"slices"
)

// The checker holds a history against what Muster promises. It knows nothing but the history's events, so that it can
// be tried on histories that break each rule.

// violation is a promise that was broken.
type violation struct{ Rule, Detail string }

// The rules.
const (
	ruleLost      = "lost: an acknowledged task reaches its one final state"
	ruleDouble    = "double: one request makes one task, and a task succeeds once"
	ruleCap       = "cap: never more leases of a workspace than its cap"
	ruleCalls     = "calls: agents run under a lease, and beyond the cap only where a lost lease's call was already on its way"
	ruleSurvive   = "survival: an attempt is cut short only where something was done to its worker, or its customer canceled it"
	ruleCancel    = "cancel: what was canceled ends so, unless its end came first, and is never started again"
	ruleRetry     = "retry: an outage costs one attempt and a wait; a customer's retry brings a task back once"
	ruleTimes     = "times: nothing starts before its run_at or after its expires_at, and what starts is the best of its workspace"
	ruleSchedules = "schedules: each occurrence is decided once, and sends one task or says why not"
	ruleWebhooks  = "webhooks: each end of a task is told, signed, under one id, and nothing else is"
	ruleMetering  = "metering: each ended lease is one attempt with one row, billed as it ended, and the sums agree"
	ruleProcess   = "processes: none ends by itself"
)

var rules = []string{ruleLost, ruleDouble, ruleCap, ruleCalls, ruleSurvive, ruleCancel, ruleRetry, ruleTimes, ruleSchedules, ruleWebhooks, ruleMetering, ruleProcess}

// tally is what a checked history amounts to.
type tally struct {
	Submitted, Acknowledged int
	Refused                 int // because they would have expired by then
	Replays                 int // tasks of acknowledged requests whose first answer had been lost
	Succeeded, Failed       int // as they should have
	Suspects                int // failed because too many workers died under them
	Canceled                int
	Stopped                 int // of those: while they ran
	Beaten                  int // had a cancel acknowledged, and ended otherwise first
	Expired                 int
	OutOfReach              int // failed because the model server was out for all their attempts
	Retried                 int // by their customer
	Later, Ranked           int // had a run_at; a priority
	Attempts, Crashed       int
	Outages                 int // attempts that ended because the model server was out
	Calls                   int
	Overlaps                int // calls that were on their way when their lease was taken away, and met the next attempt's
	Late                    int // calls of a stopped or cut worker that went out after its lease had been taken away
	MostAtOnce              int // calls, over all workspaces
	Sent, Missed            int // occurrences of schedules
	Told, ToldAgain         int // ends of tasks; more than once, under their id
	Violations              []violation
}

func (t *tally) broken(rule, format string, args ...any) {
	t.Violations = append(t.Violations, violation{rule, fmt.Sprintf(format, args...)})
}

// check reads a whole history.
func check(events []event) *tally {
	c := &checker{tally: &tally{}, caps: map[string]int{}, names: map[string]string{}, want: map[int]event{}, keys: map[string]map[string]bool{}, refused: map[int]bool{},
		ackedTasks: map[string]int{}, finals: map[string][]event{}, stored: map[int][]event{}, lives: map[string]*life{}, procs: map[int]string{}, workers: map[string]string{},
		leases: map[string]*leaseLife{}, attempts: map[string]event{}, rows: map[string][]event{}, hits: map[string][]event{}, troubles: map[int]*trouble{},
		demands: map[string]*demand{}, hooked: map[string]bool{}, told: map[string]map[string]string{}, schedules: map[string]*schedule{}, byCall: map[int64]*call{}}
	for _, e := range events {
		c.read(e)
	}
	slices.SortFunc(c.log, func(a, b event) int { return int(a.Seq - b.Seq) })
	c.leaseLog()
	c.live()
	c.tasks()
	c.asked()
	c.metering()
	c.callsAndLeases()
	c.outages()
	c.occurrences()
	c.webhooks()
	return c.tally
}

type checker struct {
	*tally
	caps       map[string]int             // workspace's id → cap
	names      map[string]string          // workspace's id → name
	want       map[int]event              // task's number → as it was submitted
	keys       map[string]map[string]bool // idempotency key and number → tasks named in acknowledgements
	refused    map[int]bool               // by number
	ackedTasks map[string]int             // task → number
	finals     map[string][]event         // by task
	stored     map[int][]event            // by number
	procs      map[int]string             // pid → process
	workers    map[string]string          // the ledger's worker → process
	log        []event                    // what the ledger's triggers noted
	lives      map[string]*life           // by task
	leases     map[string]*leaseLife
	attempts   map[string]event   // by lease
	rows       map[string][]event // by lease
	quotas     []event
	hits       map[string][]event // by process
	troubles   map[int]*trouble   // by firing
	calls      []*call
	byCall     map[int64]*call
	demands    map[string]*demand           // by key
	hooked     map[string]bool              // by workspace's name
	told       map[string]map[string]string // task → webhook-id → status
	schedules  map[string]*schedule         // by id
}

// leaseLife is a lease as the ledger's trigger saw it.
type leaseLife struct {
	granted, ended event // ended.Seq is 0 while it lasts
	proc           string
	called         bool // the model server saw a call under it
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
		c.want[e.N] = e
	case refused:
		c.Refused++
		c.refused[e.N] = true
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
		if e.Schedule == "" { // which sends the same each time
			c.stored[e.N] = append(c.stored[e.N], e)
		}
		c.lifeOf(e.Task).stored = e
	case worker:
		c.workers[e.Worker] = c.procs[e.PID]
	case leased, released, stopping, over, requeued:
		c.log = append(c.log, e)
	case attempted:
		c.Attempts++
		switch e.Status {
		case "crashed":
			c.Crashed++
		case "retry":
			c.Outages++
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
		c.byCall[e.Call] = &call{start: e}
		c.calls = append(c.calls, c.byCall[e.Call])
	case ended:
		if one := c.byCall[e.Call]; one != nil {
			one.end = e
		}
	case faultOn, faultOff, recovered:
		c.readTrouble(e)
	case asks, settled:
		c.readDemand(e)
	case hooked, told:
		c.readTold(e)
	case planned, ceased, occurred:
		c.readSchedule(e)
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
		if c.want[n].What == "" || c.refused[n] {
			c.broken(ruleDouble, "the ledger holds a task that nobody sent, or that was refused: %d", n)
		}
	}
	succeeded := map[string]int{}
	for _, a := range c.attempts {
		if a.Status == "succeeded" {
			succeeded[a.Task]++
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
		f, l := finals[0], c.lifeOf(task)
		if f.Status != l.end.Status || f.Code != l.end.Code {
			c.broken(ruleLost, "%s of request %d is %s %s at the end, by the ledger's notes %q %s", task, n, f.Status, f.Code, l.end.Status, l.end.Code)
			continue
		}
		if c.want[n].RunAt != 0 {
			c.Later++
		}
		if c.want[n].Priority != 0 {
			c.Ranked++
		}
		switch {
		case f.Status == "canceled":
			c.Canceled++
		case f.Code == "expired":
			c.Expired++
		case f.Code == "worker_crashed":
			c.Suspects++
		case f.Code == codeOutage:
			c.OutOfReach++
		case f.Status != c.want[n].Want:
			c.broken(ruleLost, "%s of request %d is %s %s at the end, want %s", task, n, f.Status, f.Code, c.want[n].Want)
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

// leaseLog replays the grants and ends of leases as the ledger ordered them, under each workspace's lock.
func (c *checker) leaseLog() {
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
		}
		if e.What != leased {
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

// billed says which outcomes a customer pays for; a failed attempt only when the fault was the customer's own.
var billed = map[string]bool{"succeeded": true, "timeout": true, "canceled": true, "retry": false, "crashed": false, "handed_back": false}

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
		if bill, known := billed[a.Status]; known && a.Billable != bill {
			c.broken(ruleMetering, "the attempt %s, which is %s, is billable: %t", id, a.Status, a.Billable)
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
