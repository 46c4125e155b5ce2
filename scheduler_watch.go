package main

import (
	"context"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

// Every scheduler watches the workers' beats, and the leader acts on what it has seen. Whoever takes over therefore knows
// already since when a beat has stood still: leader and worker killed at once cost the longer of the two waits, not their sum.

const (
	// workerDead: a worker is dead when its beat (every 2 s) has not moved for this long by our monotonic clock, while
	// we could read the ledger.
	workerDead = 12 * time.Second
	// watchGap: after a gap of this length in our own reads we know nothing and wait afresh.
	watchGap = 4 * time.Second
)

// watch is what one scheduler has seen of the workers. It belongs to one goroutine.
type watch struct {
	workers map[uuid.UUID]sighting
	read    time.Time // when they were last read
}

// sighting is a beat and since when, by our clock, it has stood there.
type sighting struct {
	beat  int64
	since time.Time
}

// see takes in the beats as they were read at now, and returns those workers that have been silent for too long.
func (w *watch) see(workers []store.Worker, now time.Time) (silent []store.Worker) {
	known := w.workers
	if now.Sub(w.read) > watchGap {
		known = nil // we were blind: everyone gets the whole time again
	}
	w.read = now
	w.workers = make(map[uuid.UUID]sighting, len(workers))
	for _, worker := range workers {
		s, ok := known[worker.ID]
		if !ok || s.beat != worker.Beat {
			s = sighting{beat: worker.Beat, since: now}
		}
		w.workers[worker.ID] = s
		if now.Sub(s.since) >= workerDead {
			silent = append(silent, worker)
		}
	}
	return silent
}

// watchOnce looks at the workers and, while this process leads, declares those dead that have been silent for too long.
func (s *scheduler) watchOnce(ctx context.Context, leading *leadership) {
	s.part(ctx, "dead_workers", func(ctx context.Context) error {
		workers, err := s.system.LiveWorkers(ctx)
		if err != nil {
			return err
		}
		silent := s.watch.see(workers, time.Now())
		if !leading.now() {
			return nil
		}
		for _, w := range silent {
			dead, err := s.system.DeclareDead(ctx, w.ID, w.Beat)
			if err != nil {
				return err
			}
			if !dead {
				continue
			}
			s.metrics.dead.Inc()
			s.log.Error().Stringer("worker", w.ID).Str("name", w.Name).Msg("worker declared dead")
			select {
			case s.died <- struct{}{}:
			default:
			}
		}
		return nil
	})
}

// recoverOnce gives tasks of dead workers back to their place in line, while this process leads. Not where the workers are
// watched: many tasks, or rows that somebody holds, take longer than watchGap, and the next worker to die would be
// watched afresh.
func (s *scheduler) recoverOnce(ctx context.Context, leading *leadership) {
	if !leading.now() {
		return
	}
	s.part(ctx, "recoveries", func(ctx context.Context) error {
		n, turns, err := s.system.RecoverDeadWorkers(ctx)
		s.metrics.recovered.Add(float64(n))
		if n > 0 {
			s.log.Warn().Int("tasks", n).Msg("took tasks back from dead workers")
		}
		s.enqueue(turns)
		return err
	})
}
