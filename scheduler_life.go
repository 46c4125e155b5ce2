package main

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/generic-corp/muster/store"
)

// What the scheduler's leader does each second in the life of tasks beside promoting them: end those that expired, and send those of
// schedules.

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
