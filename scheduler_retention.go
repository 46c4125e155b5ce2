package main

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/generic-corp/muster/store"
)

// The scheduler's leader removes what customers keep no longer: ended tasks with their attempts and provider calls, past
// their workspace's retention. It works in rounds over all workspaces, a batch at a time, and rests three times as long as
// each batch took, so that it takes a quarter of one connection at most, whatever has piled up. A workspace's trouble, or its
// load row being held, delays no other; the next round comes to it again.

const (
	roundPause  = 10 * time.Minute // between two rounds, once nothing is left over
	leftPause   = 10 * time.Second // likewise, after one that left something over
	roundBudget = 20 * time.Second // of a look; the next goes on
	visitBudget = 5 * time.Second  // for one workspace in a round

	keepingPage = 500 // workspaces that are looked at together

	// A batch should hold the load row for about this long: its size follows.
	batchAim    = 25 * time.Millisecond
	leastBatch  = 10
	largestOnes = 1000
)

// tidying is how far the retention has come.
type tidying struct {
	began  time.Time // of the round
	at     uuid.UUID // the last workspace of the round that was looked at
	under  bool      // a round is under way
	left   bool      // something was left over in it
	oldest time.Time // task met in it
	batch  int       // tasks in the next batch
}

type retentionMetrics struct {
	removed *prometheus.CounterVec // what: tasks, attempts, provider_calls
	oldest  prometheus.Gauge
	behind  prometheus.Gauge
}

func newRetentionMetrics(reg prometheus.Registerer) retentionMetrics {
	m := retentionMetrics{
		removed: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "muster_retention_removed_total", Help: "Rows removed because their workspace keeps them no longer."}, []string{"what"}),
		oldest:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "muster_oldest_task_seconds", Help: "Age of the oldest task that is kept, as of the last round of the retention; on the leader."}),
		behind:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "muster_retention_left_over", Help: "1 when the last round of the retention left something that should have gone; on the leader."}),
	}
	for _, what := range []string{"tasks", "attempts", "provider_calls"} {
		m.removed.WithLabelValues(what)
	}
	reg.MustRegister(m.removed, m.oldest, m.behind)
	return m
}

// tidyOnce goes on with the round, or begins the next one when its time has come.
func (s *scheduler) tidyOnce(ctx context.Context) {
	t := &s.tidy
	if !t.under {
		pause := roundPause
		if t.left {
			pause = leftPause
		}
		if time.Since(t.began) < pause {
			return
		}
		*t = tidying{began: time.Now(), under: true, batch: max(t.batch, leastBatch)}
	}
	s.part(ctx, "ended_tasks", s.tidyUp)
}

func (s *scheduler) tidyUp(ctx context.Context) error {
	t := &s.tidy
	until := time.Now().Add(roundBudget)
	var failures []error
	for {
		list, next, err := s.system.Keepings(ctx, t.at, keepingPage)
		if err != nil {
			return errors.Join(append(failures, err)...)
		}
		for _, k := range list {
			if oldest := k.Oldest(); t.oldest.IsZero() || oldest.Before(t.oldest) {
				t.oldest = oldest
			}
			if k.Due() {
				done, err := s.tidyWorkspace(ctx, k, until)
				if err != nil {
					failures = append(failures, err)
				}
				t.left = t.left || !done
			}
			t.at = k.Workspace
			if time.Now().After(until) {
				return errors.Join(failures...) // the next look goes on behind this workspace
			}
		}
		if next == uuid.Nil {
			break
		}
		t.at = next
	}
	t.under = false
	age := 0.0
	if !t.oldest.IsZero() {
		age = time.Since(t.oldest).Seconds()
	}
	s.metrics.retention.oldest.Set(age)
	left := 0.0
	if t.left {
		left = 1
	}
	s.metrics.retention.behind.Set(left)
	return errors.Join(failures...)
}

// tidyWorkspace removes a workspace's ended tasks; done is false when the time was up, or its load row held, before the end.
func (s *scheduler) tidyWorkspace(ctx context.Context, k store.Keeping, until time.Time) (done bool, err error) {
	if visit := time.Now().Add(visitBudget); visit.Before(until) {
		until = visit
	}
	m := s.metrics.retention.removed
	for after := uuid.Nil; ; {
		began := time.Now()
		r, next, held, err := s.system.RemoveEnded(ctx, k, after, s.tidy.batch)
		took := time.Since(began)
		if held {
			s.tidy.batch = max(leastBatch, s.tidy.batch/2)
		}
		if err != nil || held {
			return false, err
		}
		m.WithLabelValues("tasks").Add(float64(r.Tasks))
		m.WithLabelValues("attempts").Add(float64(r.Attempts))
		m.WithLabelValues("provider_calls").Add(float64(r.Calls))
		if next == uuid.Nil {
			return true, nil
		}
		after = next
		switch {
		case took > batchAim:
			s.tidy.batch = max(leastBatch, s.tidy.batch/2)
		case took < batchAim/2:
			s.tidy.batch = min(largestOnes, s.tidy.batch*2)
		}
		if time.Now().After(until) {
			return false, nil
		}
		select {
		case <-time.After(3 * took):
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}
