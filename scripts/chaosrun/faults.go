//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// fault is one kind of trouble. fire makes it happen, holds it and ends it; it fails when it cannot show that it happened.
type fault struct {
	name  string
	about string        // for the summary and --help
	takes time.Duration // about how long, recovery included
	fire  func(ctx context.Context, s *stage, f *firing) error
}

// faults are all of them, in the order of the summary.
var faults = slices.Concat(processFaults, serverFaults, clockFaults, networkFaults)

// round is faults that are fired together.
type round []fault

// served says that Postgres and Redis serve all the while: the round's faults are of our own processes, of their clocks, and
// of what customers hear.
func (r round) served() bool {
	return !slices.ContainsFunc(r, func(f fault) bool {
		own := slices.ContainsFunc(processFaults, func(p fault) bool { return p.name == f.name })
		return !own && f.name != "clock-steps-muster" && f.name != "lose-answers"
	})
}

// firing is one occurrence of a fault.
type firing struct {
	fault
	number   int
	alone    bool // in its round
	served   bool // see round
	s        *stage
	beganAt  int64 // by the history
	evidence []string
	lifted   time.Time
	took     time.Duration // until everything went on; see recover
	err      error
}

// say adds to the evidence.
func (f *firing) say(format string, args ...any) {
	f.evidence = append(f.evidence, fmt.Sprintf(format, args...))
}

// hits records that agents in the process may be taken away from now on.
func (f *firing) hits(proc string) {
	f.s.hist.add(event{What: faultHit, Fault: f.name, Number: f.number, Proc: proc})
}

// lift records that the fault is over: from now on everything has to go on.
func (f *firing) lift() {
	f.lifted = time.Now()
	f.s.hist.add(event{What: faultOff, Fault: f.name, Number: f.number})
}

var errNotFired = errors.New("the fault did not fire")

// fireRound fires faults together, each after a moment of its own, and waits until everything goes on.
func (s *stage) fireRound(ctx context.Context, place string, r round) {
	var names []string
	for _, f := range r {
		names = append(names, f.name)
	}
	s.cfg.say("%6.1f s  %s  %s", float64(s.hist.now())/1000, place, strings.Join(names, " + "))
	var all sync.WaitGroup
	for _, one := range r {
		delay := time.Duration(s.rng.Int64N(int64(500 * time.Millisecond)))
		s.mu.Lock()
		f := &firing{fault: one, number: len(s.firings) + 1, alone: len(r) == 1, served: r.served(), s: s}
		s.firings = append(s.firings, f)
		s.mu.Unlock()
		all.Go(func() {
			pause(ctx, delay)
			f.beganAt = s.hist.add(event{What: faultOn, Fault: f.name, Number: f.number})
			if f.err = one.fire(ctx, s, f); f.err == nil {
				if f.lifted.IsZero() {
					f.lift()
				}
				f.err = f.recover(ctx)
			}
			if f.err != nil && ctx.Err() == nil {
				s.cfg.say("          %s: %v", f.name, f.err)
			}
		})
	}
	all.Wait()
	for _, m := range s.members { // so that the next fault meets a whole fleet
		for deadline := time.Now().Add(recoveryLimit); !m.isUp() && time.Now().Before(deadline) && ctx.Err() == nil; {
			pause(ctx, 50*time.Millisecond)
		}
	}
}

// recoveryLimit is how long a recovery may take at most before it counts as none.
const recoveryLimit = 90 * time.Second

// recover waits until everything goes on after the fault: a task that is sent now has succeeded, and every workspace that had
// work in line, and room for it, has started an agent since or has no such work any more.
func (f *firing) recover(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, recoveryLimit)
	defer cancel()
	waiting, err := f.s.watch.waiting(ctx)
	for err != nil && ctx.Err() == nil {
		pause(ctx, 20*time.Millisecond)
		waiting, err = f.s.watch.waiting(ctx)
	}
	probed := make(chan error, 1)
	go func() { probed <- f.s.load.probe(ctx) }()
	for len(waiting) > 0 && ctx.Err() == nil {
		now, err := f.s.watch.waiting(ctx)
		if err == nil {
			waiting = slices.DeleteFunc(waiting, func(ws string) bool { return f.s.models.startedSince(ws, f.lifted) || !slices.Contains(now, ws) })
		}
		if len(waiting) > 0 {
			pause(ctx, 50*time.Millisecond)
		}
	}
	err = <-probed
	f.took = max(f.took, time.Since(f.lifted))
	f.s.hist.add(event{What: recovered, Fault: f.name, Number: f.number, Took: f.took.Milliseconds()})
	if err != nil || len(waiting) > 0 {
		return fmt.Errorf("not everything went on within %s: workspaces %v, probe %v", recoveryLimit, waiting, err)
	}
	return nil
}

// until polls a condition; an error names what did not come.
func until(ctx context.Context, limit time.Duration, what string, done func() bool) error {
	for deadline := time.Now().Add(limit); !done(); pause(ctx, 20*time.Millisecond) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%w: waited %s for %s", errNotFired, limit, what)
		}
	}
	return nil
}

// between is a random time; faults that run together share the generator.
func (s *stage) between(low, high time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return low + time.Duration(s.rng.Int64N(int64(high-low)))
}

// pick chooses one.
func (s *stage) pick(n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rng.IntN(n)
}

// claimWorker gives a firing a worker that no other firing of its round uses: the preferred one ("" for none) or any.
func (f *firing) claimWorker(preferred string) *member {
	workers := f.s.of("worker")
	start := f.s.pick(len(workers))
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	if f.s.taken == nil {
		f.s.taken = map[string]bool{}
	}
	chosen := workers[start]
	for i := range workers {
		m := workers[(start+i)%len(workers)]
		if f.s.taken[m.name] {
			continue
		}
		if chosen = m; preferred == "" || m.name == preferred {
			break
		}
	}
	f.s.taken[chosen.name] = true
	return chosen
}

// release gives it back.
func (f *firing) release(m *member) {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	delete(f.s.taken, m.name)
}
