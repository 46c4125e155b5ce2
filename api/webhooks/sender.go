// Package webhooks tells customers' servers what happened to their tasks: it signs events as Standard Webhooks and sends
// them, at least once each, for as long as the ledger says that they wait.
//
// The ledger (store/webhook_*.go) is the queue: events are written there by whoever ends a task, leased from there lane by
// lane, and booked there one by one. Nothing of it stands in Redis or only in memory, so any process may die at any
// moment. It runs in every scheduler process; how an event looks is the API's (Config.Render).
package webhooks

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

// How much is sent at once. A lane is one endpoint.
const (
	fastLanes = 32 // at once, of endpoints that answer
	slowLanes = 16 // of those that do not: they wait for each other only
	perLane   = 4  // requests at once to an endpoint

	laneBatch = 64 // deliveries that one visit to a lane begins at most
)

// Times. A visit starts nothing after visitTime, so that it has ended well before its lease (store.LaneLease) does:
// visitTime + visitSlack + sendTimeout + bookTimeout < LaneLease. A process that was stopped and goes on later starts
// nothing either.
const (
	poll        = 500 * time.Millisecond // how often an idle sender looks
	breath      = 20 * time.Millisecond  // between two looks at least
	visitTime   = 10 * time.Second
	visitSlack  = 2 * time.Second  // from the decision to send to the sending
	sendTimeout = 15 * time.Second // a whole attempt: look-up, connection, answer
	bookTimeout = 10 * time.Second
	slowAnswer  = 2 * time.Second // an endpoint that takes longer is served among the slow ones

	backlogEvery = 15 * time.Second // the gauges
)

// A visit ends after givenUpAfter failures in a row. The next ones try one delivery, and while that fails the endpoint is
// left alone for a pause that doubles from firstPause to longestPause.
const (
	givenUpAfter = 5
	firstPause   = 2 * time.Second
	longestPause = 5 * time.Minute
)

// maxPayload is how large an event may be; one that is larger goes without the task's result.
const maxPayload = 256 << 10

// Ledger is what the sender needs of store.System.
type Ledger interface {
	TakeLanes(ctx context.Context, slow bool, limit int) ([]store.Lane, error)
	LaneSecrets(ctx context.Context, l store.Lane) ([][]byte, error)
	Due(ctx context.Context, l store.Lane, limit int) ([]store.DueDelivery, error)
	DeliveryEvent(ctx context.Context, l store.Lane, id uuid.UUID, maxResult int) (store.DeliveryEvent, bool, error)
	BookDelivery(ctx context.Context, l store.Lane, a store.Attempted) (bool, error)
	LeaveLane(ctx context.Context, l store.Lane, v store.Visited) (disabled string, err error)
	WebhookBacklog(ctx context.Context) (store.WebhookBacklog, error)
}

// Config is what a sender is made of. All fields are required but Version.
type Config struct {
	Ledger  Ledger
	Client  *http.Client                              // bound by outbound.Rules
	Keys    Keys                                      // that open the secrets
	Render  func(store.DeliveryEvent) ([]byte, error) // an event as its body
	Metrics *Metrics
	Log     zerolog.Logger
	Version string // for User-Agent
}

// Metrics are a sender's.
type Metrics struct {
	attempts *prometheus.CounterVec // outcome: succeeded, or what was wrong
	dead     prometheus.Counter
	disabled *prometheus.CounterVec // why
	seconds  prometheus.Histogram
	lanes    prometheus.Gauge
	oldest   prometheus.Gauge
}

// NewMetrics registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "muster_webhook_attempts_total",
			Help: "Attempts to deliver an event to a customer's endpoint, by how they ended."}, []string{"outcome"}),
		dead: prometheus.NewCounter(prometheus.CounterOpts{Name: "muster_webhook_dead_total", Help: "Deliveries that were given up after their last attempt."}),
		disabled: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "muster_webhook_disabled_total",
			Help: "Endpoints that were disabled because they answered 410 (gone) or nothing arrived there for days (failing)."}, []string{"why"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "muster_webhook_attempt_seconds", Help: "How long attempts took.",
			Buckets: []float64{.025, .05, .1, .25, .5, 1, 2, 5, 10, 15}}),
		lanes:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "muster_webhook_due_endpoints", Help: "Endpoints with an event that is due."}),
		oldest: prometheus.NewGauge(prometheus.GaugeOpts{Name: "muster_webhook_oldest_due_seconds", Help: "How long the oldest event that is due has been so."}),
	}
	reg.MustRegister(m.attempts, m.dead, m.disabled, m.seconds, m.lanes, m.oldest)
	return m
}

// Sender sends what waits.
type Sender struct {
	Config
	fast, slow chan struct{} // a token per lane in service
	visits     sync.WaitGroup
	ended      chan struct{} // a visit has ended: there is room
	gauged     time.Time     // when the gauges were last set
}

// New makes a sender; Run lets it send.
func New(cfg Config) *Sender {
	return &Sender{Config: cfg, fast: make(chan struct{}, fastLanes), slow: make(chan struct{}, slowLanes), ended: make(chan struct{}, 1)}
}

// Run sends until ctx ends, and returns when what was under way is booked.
func (s *Sender) Run(ctx context.Context) {
	defer s.visits.Wait()
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for {
		more, err := s.runOnce(ctx)
		if err != nil && ctx.Err() == nil {
			s.Log.Warn().Err(err).Msg("looking for webhook deliveries failed; the next round tries again")
		}
		ended := s.ended
		if !more {
			ended = nil // nothing waits for room
		}
		select {
		case <-ctx.Done():
			return
		case <-ended:
			time.Sleep(breath)
		case <-ticker.C:
		}
	}
}

// runOnce serves lanes that are due as far as there is room; more is true when there was something to do.
func (s *Sender) runOnce(ctx context.Context) (more bool, err error) {
	if time.Since(s.gauged) >= backlogEvery {
		s.gauged = time.Now()
		b, err := s.Ledger.WebhookBacklog(ctx)
		if err != nil {
			return false, err
		}
		s.Metrics.lanes.Set(float64(b.Lanes))
		s.Metrics.oldest.Set(b.DueSeconds)
	}
	for _, pool := range []struct {
		slow   bool
		places chan struct{}
	}{{false, s.fast}, {true, s.slow}} {
		room := cap(pool.places) - len(pool.places)
		if room == 0 {
			more = true
			continue
		}
		taken := time.Now() // before the ledger dates the leases
		lanes, err := s.Ledger.TakeLanes(ctx, pool.slow, room)
		if err != nil {
			return more, err
		}
		more = more || len(lanes) > 0
		for _, lane := range lanes {
			pool.places <- struct{}{}
			s.visits.Go(func() {
				defer func() {
					<-pool.places
					select {
					case s.ended <- struct{}{}:
					default:
					}
				}()
				s.visit(ctx, lane, taken)
			})
		}
	}
	return more, nil
}
