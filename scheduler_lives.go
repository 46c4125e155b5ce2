package main

import (
	"context"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/generic-corp/muster/store"
)

// What the scheduler's leader does each second in the life of tasks beside promoting them: end those that expired, send those of
// schedules, and go on with cancels of very many.

type lifeMetrics struct {
	expired prometheus.Counter
	runs    *prometheus.CounterVec // outcome: sent, missed
}

func newLifeMetrics(reg prometheus.Registerer) *lifeMetrics {
	m := &lifeMetrics{
		expired: prometheus.NewCounter(prometheus.CounterOpts{Name: "muster_expired_tasks_total", Help: "Tasks that still waited at their expires_at and failed."}),
	}
	m.runs = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "muster_schedule_runs_total",
		Help: "Occurrences of cron schedules that were decided: a task was sent, or they were missed."}, []string{"outcome"})
	reg.MustRegister(m.expired, m.runs)
	m.runs.WithLabelValues(store.RunSent)
	m.runs.WithLabelValues(store.RunMissed)
	return m
}

func (s *scheduler) expireDue(ctx context.Context) error {
	for more := true; more; {
		var n int
		var turns []store.Turn
		var err error
		n, more, turns, err = s.system.ExpireDue(ctx)
		s.metrics.lives.expired.Add(float64(n))
		s.enqueue(turns)
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *scheduler) fireSchedules(ctx context.Context) error {
	fired, err := s.system.FireSchedules(ctx)
	s.metrics.lives.runs.WithLabelValues(store.RunSent).Add(float64(fired.Sent))
	s.metrics.lives.runs.WithLabelValues(store.RunMissed).Add(float64(fired.Missed))
	s.enqueue(fired.Turns)
	return err
}

// cancelOnce goes on with the cancels that are under way, a batch of each in turn, until they have come to their end.
func (s *scheduler) cancelOnce(ctx context.Context) {
	s.part(ctx, "cancels", func(ctx context.Context) error {
		for more := true; more; {
			g, err := s.system.GoOnCanceling(ctx, uuid.Nil)
			s.enqueue(g.Turns)
			if err != nil {
				return err
			}
			more = g.More
		}
		return nil
	})
}
