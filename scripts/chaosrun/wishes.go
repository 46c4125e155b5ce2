//go:build unix

package main

import (
	"fmt"
	"time"

	"github.com/generic-corp/muster/store"
)

// wish is a task as its customer wants it, and what they do with it later.
type wish struct {
	sleep    time.Duration // of its model, for each call
	want     string        // the state in which its model ends it, once it answers
	outage   int           // 429 or 503: how the model server answers its first calls; 0: as usual
	outages  int           // how many
	attempts int           // at most; 0: as many as the API gives it
	priority int
	runIn    time.Duration // from when it is first sent; 0: at once
	expireIn time.Duration // likewise; 0: never

	cancelIn time.Duration // its customer cancels it so long after it was acknowledged; 0: never
	twice    bool          // and once more
	retry    bool          // its customer retries it when it has failed or was canceled
	group    *group        // what its customer does with it and its like at once
}

// group is tasks of one request that are canceled, or as dead letters replayed, in bulk, by their metadata.
type group struct {
	kind string // kindCancel or kindRetry
	in   time.Duration
	name string
}

// What customers ask for.
const (
	kindCancel = "cancel"
	kindRetry  = "retry"
)

// named is the group of the request whose first task has this number.
func (g group) named(first int) *group {
	g.name = fmt.Sprintf("group-%d", first)
	return &g
}

// The wait that a failing model server asks for. It is longer than any deadline, so the agent does not wait: the attempt ends.
const outageWait = 400 * time.Second

// body is the task as it is sent; e gets the times that follow from now. Its prompt tells the stand-in what to do.
func (w wish) body(first int, e *event, now time.Time) map[string]any {
	text := fmt.Sprintf("n=%d ws=%s sleep=%s tokens=10/20", e.N, e.WS, w.sleep)
	if w.want == store.StatusFailed {
		text += " status=400"
	}
	if w.outages > 0 {
		text += fmt.Sprintf(" fail=%d:%d retry_after=%s", w.outage, w.outages, outageWait)
	}
	body := map[string]any{"prompt": text, "timeout_seconds": 300}
	if w.attempts > 0 {
		body["max_attempts"] = w.attempts
	}
	if w.priority != 0 {
		body["priority"] = w.priority
	}
	if w.runIn > 0 {
		e.RunAt = now.Add(w.runIn).UnixMilli()
		body["run_at"] = time.UnixMilli(e.RunAt)
	}
	if w.expireIn > 0 {
		e.ExpiresAt = now.Add(w.expireIn).UnixMilli()
		body["expires_at"] = time.UnixMilli(e.ExpiresAt)
	}
	if w.group != nil {
		e.Group = w.group.named(first).name
		body["metadata"] = map[string]string{"group": e.Group}
	}
	return body
}

// between is a random time of so many milliseconds. mu is held.
func (l *load) between(low, high int) time.Duration {
	return time.Duration(low+l.rng.IntN(high-low)) * time.Millisecond
}

// wishes makes up the tasks of a request: one, or of twenty requests one with five. mu is held.
func (l *load) wishes() []wish {
	if l.rng.IntN(20) > 0 {
		return []wish{l.one()}
	}
	all := make([]wish, 5)
	for i := range all {
		all[i] = l.plain()
	}
	switch l.rng.IntN(5) {
	case 0:
		g := &group{kind: kindCancel, in: l.between(10, 3000)}
		for i := range all {
			all[i].group, all[i].sleep = g, l.between(500, 6000)
		}
	case 1: // the first succeeds, the last fails again
		g := &group{kind: kindRetry}
		for i := range all {
			all[i] = wish{sleep: l.between(20, 400), want: store.StatusSucceeded, group: g}
			if i > 0 {
				l.out(&all[i])
				all[i].attempts = all[i].outages
			}
		}
		all[4] = wish{sleep: all[4].sleep, want: store.StatusFailed, group: g}
	}
	return all
}

// plain is a task without anything particular: seven of ten are short, one of fifty is refused by the model. mu is held.
func (l *load) plain() wish {
	w := wish{want: store.StatusSucceeded}
	switch n := l.rng.IntN(100); {
	case n < 70:
		w.sleep = l.between(20, 400)
	case n < 96:
		w.sleep = l.between(400, 3000)
	default:
		w.sleep = l.between(5000, 12000)
	}
	if l.rng.IntN(50) == 0 {
		w.want, w.retry = store.StatusFailed, l.rng.IntN(2) == 0
	}
	return w
}

// out lets the model server be out for the first call or two. mu is held.
func (l *load) out(w *wish) {
	w.want, w.outage, w.outages = store.StatusSucceeded, []int{429, 503}[l.rng.IntN(2)], 1+l.rng.IntN(2)
}

// one is a task by itself, which may be particular. mu is held.
func (l *load) one() wish {
	w := l.plain()
	if l.rng.IntN(5) == 0 {
		w.priority = l.rng.IntN(2*store.MaxPriority+1) - store.MaxPriority
	}
	switch n := l.rng.IntN(100); {
	case n < 4:
		w.sleep, w.cancelIn = l.between(200, 8000), l.between(10, 4000)
		if l.rng.IntN(3) == 0 {
			w.runIn = l.between(1000, 6000)
		}
		w.twice, w.retry = l.rng.IntN(4) == 0, l.rng.IntN(4) == 0
	case n < 7:
		l.out(&w)
		w.sleep = min(w.sleep, time.Second)
		if l.rng.IntN(3) == 0 {
			w.attempts, w.retry = w.outages, l.rng.IntN(2) == 0
		}
	case n < 11:
		w.runIn = l.between(1000, 6000)
		if l.rng.IntN(2) == 0 { // the ledger looks each second for what has come due, so some expire before that
			w.expireIn = w.runIn + l.between(50, 2500)
		}
	case n < 13:
		w.expireIn = l.between(1000, 5000)
	}
	return w
}
