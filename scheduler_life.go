package main

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/generic-corp/muster/store"
)

// What the scheduler's leader does each second in the life of tasks beside promoting them: end those that expired.

type lifeMetrics struct {
	expired prometheus.Counter
}

func newLifeMetrics(reg prometheus.Registerer) *lifeMetrics {
	m := &lifeMetrics{
		expired: prometheus.NewCounter(prometheus.CounterOpts{Name: "muster_expired_tasks_total", Help: "Tasks that still waited at their expires_at and failed."}),
	}
	reg.MustRegister(m.expired)
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
