package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/api/webhooks"
	"github.com/generic-corp/muster/jobs"
	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/worker/autoscale"
)

// The scheduler keeps the line moving: each second its leader promotes what is due, recovers dead workers' tasks and
// re-issues lost turns; each night it pushes usage. Any number of schedulers may run. All of them serve the queue
// "system"; one, the leader, sweeps. Two leaders for a moment would do no harm: every sweep decides under row locks.

const (
	leaderName = "scheduler"
	tick       = time.Second

	// leaderRenew is how often the leader writes its beat; a rival takes over a beat that stood still for leaderDead.
	leaderRenew = 2 * time.Second
	leaderDead  = 8 * time.Second

	// turnGrace is how much older than its queue's oldest pending turn an unclaimed turn may be: the way from commit to
	// Redis, and from Redis to the claim.
	turnGrace = 5 * time.Second

	callGrace   = 2 * time.Minute // a provider call open for so long, with no lease behind it, is closed as orphaned
	keepKeys    = 48 * time.Hour  // idempotency keys; the contract promises 24
	nightlyHour = 2               // the push runs at 02:10 UTC
	nightlyMin  = 10
)

// scheduler is one scheduler process. All fields are set by runScheduler.
type scheduler struct {
	id      uuid.UUID
	system  *store.System
	line    *jobs.Line
	turns   *jobs.Enqueuer
	client  *asynq.Client                                  // for system jobs
	nights  string                                         // the directory of the audit chains' heads; empty: none
	push    func(ctx context.Context, day time.Time) error // nil: no Stripe account is configured
	leaving seeingOut
	tidy    tidying
	mail    postman           // nil: no mail server is configured
	hooks   *webhooks.Sender  // nil: nothing is sent to customers' webhooks (tests)
	scaler  *autoscale.Scaler // nil: somebody else sees to the number of workers
	log     zerolog.Logger
	metrics *schedulerMetrics

	watch watch                // of watchOnce
	died  chan struct{}        // a worker has been declared dead; room for one
	last  map[string]time.Time // of keepHouse: when its parts last began
}

type schedulerMetrics struct {
	leading   prometheus.Gauge
	recovered prometheus.Counter
	repaired  *prometheus.CounterVec // cause: lost, missed
	promoted  prometheus.Counter
	dead      prometheus.Counter
	failures  *prometheus.CounterVec // sweep

	leavingBlocked prometheus.Gauge
	erased         prometheus.Counter
	mails          *prometheus.CounterVec // of notices; outcome: sent, failed, given_up
	lives          *lifeMetrics
	retention      retentionMetrics
}

func newSchedulerMetrics(reg prometheus.Registerer) *schedulerMetrics {
	m := &schedulerMetrics{
		leading:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "muster_scheduler_leading", Help: "1 while this scheduler is the leader."}),
		recovered: prometheus.NewCounter(prometheus.CounterOpts{Name: "muster_crash_recoveries_total", Help: "Running tasks taken back from dead workers."}),
		repaired: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "muster_repaired_turns_total",
			Help: "Turns issued anew because they were lost, or issued because a path missed it; 0 in a run without faults."}, []string{"cause"}),
		promoted: prometheus.NewCounter(prometheus.CounterOpts{Name: "muster_promoted_tasks_total", Help: "Retries and scheduled tasks that came due."}),
		dead:     prometheus.NewCounter(prometheus.CounterOpts{Name: "muster_dead_workers_total", Help: "Workers declared dead."}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "muster_sweep_failures_total", Help: "Sweeps that failed."}, []string{"sweep"}),
	}
	m.leavingBlocked = prometheus.NewGauge(prometheus.GaugeOpts{Name: "muster_leaving_blocked", Help: "Deleted workspaces that cannot be erased until an operator mends something."})
	m.erased = prometheus.NewCounter(prometheus.CounterOpts{Name: "muster_erased_workspaces_total", Help: "Deleted workspaces that were erased."})
	m.mails = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "muster_notice_mails_total", Help: "Letters about used-up quotas, by how the try ended."}, []string{"outcome"})
	m.lives = newLifeMetrics(reg)
	m.retention = newRetentionMetrics(reg)
	reg.MustRegister(m.leavingBlocked, m.erased, m.mails, m.leading, m.recovered, m.repaired, m.promoted, m.dead, m.failures)
	m.repaired.WithLabelValues("lost")
	m.repaired.WithLabelValues("missed")
	return m
}

// lead shows whether we lead: not by what was last heard, which a ledger that is away leaves standing.
func (m *schedulerMetrics) lead(leads bool) {
	v := 0.0
	if leads {
		v = 1
	}
	m.leading.Set(v)
}

// run sweeps while this process leads, until ctx ends. The workers are watched apart from the line: a sweep that takes
// long (a flushed Redis, a table that is locked) must not look like a gap in what we know of them.
func (s *scheduler) run(ctx context.Context) {
	var loops sync.WaitGroup
	defer loops.Wait()
	leading := newLeadership()
	loops.Go(func() { s.campaign(ctx, leading) })
	loops.Go(func() { eachTick(ctx, nil, func() { s.watchOnce(ctx, leading) }) }) // whoever leads
	loops.Go(func() { eachTick(ctx, s.died, func() { s.recoverOnce(ctx, leading) }) })
	loops.Go(func() { whileLeading(ctx, leading, s.keepHouse) })
	loops.Go(func() { whileLeading(ctx, leading, s.leaveOnce) }) // erasing may take long too
	loops.Go(func() { whileLeading(ctx, leading, s.tidyOnce) })
	loops.Go(func() { whileLeading(ctx, leading, s.cancelOnce) }) // nor may a cancel of very many tasks delay the line
	if s.hooks != nil {
		loops.Go(func() { s.hooks.Run(ctx) }) // whoever leads: lanes are leased one by one
	}
	if s.scaler != nil {
		loops.Go(func() { s.scale(ctx, leading) })
	}
	if s.mail != nil { // apart, because a mail server that hangs must delay nothing else
		loops.Go(func() { whileLeading(ctx, leading, s.mailOnce) })
	}
	whileLeading(ctx, leading, s.sweepOnce)
}

// whileLeading calls do each second while this process leads.
func whileLeading(ctx context.Context, leading *leadership, do func(context.Context)) {
	eachTick(ctx, nil, func() {
		if leading.now() {
			do(ctx)
		}
	})
}

// eachTick calls do each second, and at once when it is told to, until ctx ends.
func eachTick(ctx context.Context, now <-chan struct{}, do func()) {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-now:
			do()
		case <-ticker.C:
			do()
		}
	}
}

// leadership is whether we lead; a lead that could not be renewed lapses by itself.
type leadership struct {
	mu    sync.Mutex
	until time.Time
}

func newLeadership() *leadership { return &leadership{} }

func (l *leadership) now() bool {
	return l.left() > 0
}

// left is for how long we lead yet, if it is not renewed.
func (l *leadership) left() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Until(l.until)
}

// during returns a context that ends with our lead. It is for what no row lock keeps a second leader from doing.
func (l *leadership) during(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	var look func()
	look = func() {
		switch left := l.left(); {
		case left <= 0:
			cancel()
		case ctx.Err() == nil:
			time.AfterFunc(left, look)
		}
	}
	look()
	return ctx, cancel
}

func (l *leadership) set(until time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.until = until
}

// campaign becomes and stays the leader.
func (s *scheduler) campaign(ctx context.Context, leading *leadership) {
	var rival sighting
	ticker := time.NewTicker(leaderRenew)
	defer ticker.Stop()
	for {
		asked := time.Now()
		takeOver := int64(-1)
		if !rival.since.IsZero() && time.Since(rival.since) >= leaderDead {
			takeOver = rival.beat
		}
		ask, cancel := context.WithTimeout(ctx, leaderDead-leaderRenew)
		holder, beat, err := s.system.Lead(ask, leaderName, s.id, takeOver)
		cancel()
		switch {
		case err != nil:
			if ctx.Err() == nil {
				s.log.Warn().Err(err).Msg("leadership unknown")
			}
			rival = sighting{} // a gap in our reads: watch afresh
		case holder == s.id:
			if !leading.now() {
				s.log.Info().Msg("this scheduler leads")
			}
			rival = sighting{}
			leading.set(asked.Add(leaderDead - leaderRenew)) // we stop before a rival may start
		default:
			leading.set(time.Time{})
			if rival.since.IsZero() || rival.beat != beat {
				rival = sighting{beat: beat, since: time.Now()}
			}
		}
		s.metrics.lead(leading.now())
		select {
		case <-ctx.Done():
			leading.set(time.Time{})
			s.metrics.lead(false)
			resign, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			if err := s.system.Resign(resign, leaderName, s.id); err != nil {
				s.log.Warn().Err(err).Msg("resigning; a rival will wait")
			}
			return
		case <-ticker.C:
		}
	}
}

// sweepOnce does one round. Each part's failure is counted and delays no other part.
func (s *scheduler) sweepOnce(ctx context.Context) {
	s.part(ctx, "expired", s.expireDue)
	s.part(ctx, "schedules", s.fireSchedules)
	s.part(ctx, "due", s.promoteDue)
	s.part(ctx, "lost_turns", s.reissueLost)
	s.part(ctx, "missed_turns", s.issueMissed)
}

// keepHouse does what may take long, or need not be each second: apart, so that it delays nothing that keeps the line moving.
func (s *scheduler) keepHouse(ctx context.Context) {
	s.every(ctx, time.Minute, "orphaned_calls", func(ctx context.Context) error {
		_, turns, err := s.system.CloseOrphanedCalls(ctx, callGrace)
		s.enqueue(turns)
		return err
	})
	s.every(ctx, 10*time.Minute, "retention", func(ctx context.Context) error { return s.system.Sweep(ctx, keepKeys) })
	s.every(ctx, 30*time.Second, "webhooks", s.system.SweepWebhooks)
	s.every(ctx, time.Hour, "told", s.system.SweepTold)
	s.every(ctx, time.Minute, "audit_night", s.auditNight)
	if s.push != nil {
		s.every(ctx, time.Minute, "nightly", s.nightly)
	}
}

func (s *scheduler) part(ctx context.Context, name string, do func(context.Context) error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := do(ctx); err != nil && !errors.Is(err, context.Canceled) {
		s.metrics.failures.WithLabelValues(name).Inc()
		s.log.Warn().Err(err).Str("sweep", name).Msg("sweep failed; the next round tries again")
	}
}

func (s *scheduler) every(ctx context.Context, interval time.Duration, name string, do func(context.Context) error) {
	if time.Since(s.last[name]) < interval {
		return
	}
	s.last[name] = time.Now()
	s.part(ctx, name, do)
}

func (s *scheduler) promoteDue(ctx context.Context) error {
	for more := true; more; {
		var n int
		var turns []store.Turn
		var err error
		if n, more, turns, err = s.system.PromoteDue(ctx); err != nil {
			return err
		}
		s.metrics.promoted.Add(float64(n))
		s.enqueue(turns)
	}
	return nil
}

// reissueLost replaces turns that should stand in Redis and do not.
func (s *scheduler) reissueLost(ctx context.Context) error {
	if err := s.line.PublishQueues(ctx, append([]string{jobs.QueueSystem}, store.Queues...)...); err != nil {
		return err // Redis is away: nothing can be told about what it holds
	}
	for _, queue := range store.Queues {
		before, err := s.system.Now(ctx)
		if err != nil {
			return err
		}
		if oldest, ok, err := s.line.OldestPending(queue); err != nil {
			return err
		} else if ok && oldest.Before(before) {
			before = oldest
		}
		turns, err := s.system.ReissueLost(ctx, queue, before.Add(-turnGrace))
		s.repaired("lost", turns)
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *scheduler) issueMissed(ctx context.Context) error {
	missed, turned, err := s.system.IssueMissed(ctx)
	s.repaired("missed", missed)
	s.enqueue(turned)
	return err
}

func (s *scheduler) repaired(cause string, turns []store.Turn) {
	if len(turns) > 0 {
		s.metrics.repaired.WithLabelValues(cause).Add(float64(len(turns)))
		s.log.Warn().Str("cause", cause).Int("turns", len(turns)).Msg("repaired turns")
		s.enqueue(turns)
	}
}

func (s *scheduler) enqueue(turns []store.Turn) {
	for _, t := range turns {
		s.turns.Enqueue(jobs.Turn(t))
	}
}

// nightly queues the push once a day after 02:10 UTC, and again while it has not finished.
func (s *scheduler) nightly(ctx context.Context) error {
	now, err := s.system.Now(ctx)
	if err != nil {
		return err
	}
	now = now.UTC()
	day := now.Truncate(24 * time.Hour)
	if now.Before(day.Add(nightlyHour*time.Hour + nightlyMin*time.Minute)) {
		return nil
	}
	done, err := s.system.PushRunFinished(ctx, day)
	if err != nil || done {
		return err
	}
	task, err := jobs.NewPushTask(jobs.Push{Day: day.Format(time.DateOnly)})
	if err != nil {
		return err
	}
	if _, err := s.client.EnqueueContext(ctx, task); err != nil && !errors.Is(err, asynq.ErrDuplicateTask) {
		return fmt.Errorf("queue the nightly push: %w", err)
	}
	return nil
}

// servePush handles the nightly push's message.
func (s *scheduler) servePush(ctx context.Context, t *asynq.Task) error {
	p, err := jobs.ParsePush(t.Payload())
	if err != nil {
		return fmt.Errorf("%w: %w", err, asynq.SkipRetry)
	}
	day, err := time.Parse(time.DateOnly, p.Day)
	if err != nil {
		return fmt.Errorf("read day of push: %w: %w", err, asynq.SkipRetry)
	}
	if err := s.push(ctx, day); err != nil {
		s.log.Error().Err(err).Str("day", p.Day).Msg("nightly push failed; it will be tried again")
		return err
	}
	return nil
}
