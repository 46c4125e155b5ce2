package worker

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/generic-corp/muster/worker/agent"
)

// Metrics are what one worker process counts. Labels never name a workspace.
type Metrics struct {
	attempts     *prometheus.CounterVec // outcome
	duration     *prometheus.HistogramVec
	claims       *prometheus.CounterVec // outcome: won, stale, empty, dead
	pickup       prometheus.Histogram
	refused      prometheus.Counter
	running      prometheus.Gauge
	slots        prometheus.Gauge
	beatFailures prometheus.Counter
	calls        *prometheus.CounterVec // provider, outcome
	callDuration *prometheus.HistogramVec
	callCost     *prometheus.CounterVec // provider
	tokens       *prometheus.CounterVec // kind: input, output, cache_read, cache_write

	budgetRefusals *prometheus.CounterVec // why: task, used, held
	overrun        *prometheus.CounterVec // provider

	children prometheus.Gauge
	stuck    prometheus.Counter
}

func (m *Metrics) observeTokens(u agent.Usage) {
	m.tokens.WithLabelValues("input").Add(float64(u.InputTokens))
	m.tokens.WithLabelValues("output").Add(float64(u.OutputTokens))
	m.tokens.WithLabelValues("cache_read").Add(float64(u.CacheReadTokens))
	m.tokens.WithLabelValues("cache_write").Add(float64(u.CacheWriteTokens))
}

// NewMetrics registers a worker's metrics.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "muster_attempts_total", Help: "Attempts ended, by outcome."}, []string{"outcome"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "muster_attempt_duration_seconds",
			Help: "Agent wall clock per attempt.", Buckets: []float64{.01, .03, .1, .3, 1, 3, 10, 30, 60, 120, 300}}, []string{"outcome"}),
		claims: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "muster_claims_total", Help: "Turns delivered, by what their claim found."}, []string{"outcome"}),
		pickup: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "muster_turn_wait_seconds",
			Help: "From a turn's issue to its claim.", Buckets: []float64{.003, .01, .03, .1, .3, 1, 3, 10, 30, 100, 300}}),
		refused:      prometheus.NewCounter(prometheus.CounterOpts{Name: "muster_refused_writes_total", Help: "Finishes and calls refused because the lease had been taken away (fenced)."}),
		running:      prometheus.NewGauge(prometheus.GaugeOpts{Name: "muster_worker_running", Help: "Agents that run in this process."}),
		slots:        prometheus.NewGauge(prometheus.GaugeOpts{Name: "muster_worker_slots", Help: "Agents that this process can run at once."}),
		beatFailures: prometheus.NewCounter(prometheus.CounterOpts{Name: "muster_beat_failures_total", Help: "Beats that did not reach the ledger."}),
		calls:        prometheus.NewCounterVec(prometheus.CounterOpts{Name: "muster_provider_calls_total", Help: "Provider calls, by outcome."}, []string{"provider", "outcome"}),
		callDuration: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "muster_provider_call_duration_seconds",
			Help: "Provider latency per call.", Buckets: []float64{.03, .1, .3, 1, 3, 10, 30, 60, 120, 300}}, []string{"provider"}),
		callCost: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "muster_provider_cost_microusd_total", Help: "Provider cost in micro-dollars."}, []string{"provider"}),
		tokens:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "muster_tokens_total", Help: "Tokens used, by kind."}, []string{"kind"}),
		budgetRefusals: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "muster_budget_refusals_total",
			Help: "Provider calls refused for their cost: by the task's limit, by a used-up budget, by a budget that other calls held."}, []string{"why"}),
		overrun: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "muster_provider_overrun_microusd_total",
			Help: "What provider calls cost beyond their ceilings, micro-dollars."}, []string{"provider"}),
	}
	m.children = prometheus.NewGauge(prometheus.GaugeOpts{Name: "muster_worker_isolated", Help: "Suspects that run here, each in a process of its own."})
	m.stuck = prometheus.NewCounter(prometheus.CounterOpts{Name: "muster_stuck_agents_total", Help: "Agents that ignored their deadline, for which this worker ends."})
	reg.MustRegister(m.budgetRefusals, m.overrun, m.children, m.stuck)
	reg.MustRegister(m.attempts, m.duration, m.claims, m.pickup, m.refused, m.running, m.slots, m.beatFailures, m.calls, m.callDuration, m.callCost, m.tokens)
	return m
}
