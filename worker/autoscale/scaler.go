package autoscale

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// Worker is a worker as its platform knows it.
type Worker struct {
	ID       string // the driver's own
	Name     string // what the worker calls itself in the ledger, or its part before the slash
	Stopping bool   // it was told to stop, and drains
}

// Driver starts and stops workers on one platform. A worker that starts counts as there. Every method may be repeated;
// an error leaves the rest to the next step.
type Driver interface {
	Workers(ctx context.Context) ([]Worker, error)
	Start(ctx context.Context, n int) error
	Stop(ctx context.Context, id string) error // SIGTERM, and the time to drain
}

// Load is what the ledger says of the fleet.
type Load struct {
	Figures
	Busy   map[string]int // tasks that run, by worker's name
	Paused bool           // by operators, while it runs; Policy.Paused is a setting
}

// Config makes a Scaler; all fields are required.
type Config struct {
	Policy  Policy
	Driver  Driver
	Load    func(ctx context.Context) (Load, error)
	Now     func() time.Time
	Metrics *Metrics
	Log     zerolog.Logger
}

// Interval is how often Step should be called.
const Interval = 2 * time.Second

const (
	patience = 20 * time.Second // for all that one step asks and does

	// A decision that changes nothing is logged each logEvery. Where two of them alternate from look to look, as "enough" and
	// "cooldown" do when the need moves about what is there, each is logged once in sayAgain.
	logEvery = 10 * time.Minute
	sayAgain = time.Minute
)

// Scaler decides and acts. It is not safe for concurrent use.
type Scaler struct {
	cfg     Config
	decider Decider
	told    Decision
	toldAt  time.Time
	saidAt  map[Reason]time.Time // when each reason was last logged
}

// New makes a Scaler.
func New(cfg Config) *Scaler {
	s := &Scaler{cfg: cfg}
	s.begin()
	return s
}

func (s *Scaler) begin() {
	s.decider, s.told, s.toldAt, s.saidAt = Decider{Policy: s.cfg.Policy}, Decision{}, time.Time{}, map[Reason]time.Time{}
}

// Forget is for when somebody else leads: what was seen until now is no base for later decisions.
func (s *Scaler) Forget() {
	s.begin()
	s.cfg.Metrics.desired.Set(0)
	s.cfg.Metrics.actual.Set(0)
	s.cfg.Metrics.held.Set(0)
}

// Step looks, decides and acts once. If it dies half way, the next one finds what is there. ctx ends with the lead: then
// nothing further is started or stopped.
func (s *Scaler) Step(ctx context.Context) Decision {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	load, loadErr := s.cfg.Load(ctx)
	if loadErr != nil {
		load = Load{}
	}
	all, workersErr := s.cfg.Driver.Workers(ctx)
	var workers []Worker
	var fleet Fleet
	for _, w := range all {
		if w.Stopping {
			fleet.Draining = append(fleet.Draining, w.ID)
		} else {
			workers = append(workers, w)
		}
	}
	fleet.Have = len(workers)
	if workersErr != nil {
		fleet = Fleet{Have: -1}
	}
	s.decider.Policy.Paused = s.cfg.Policy.Paused || load.Paused
	d := s.decider.Decide(s.cfg.Now(), load.Figures, fleet)
	var stops []string
	if d.Want < d.Have {
		for _, w := range leastBusy(workers, load.Busy)[:d.Have-d.Want] {
			stops = append(stops, w.ID)
		}
	}
	s.tell(d, stops, cmp.Or(workersErr, loadErr))
	if !s.cfg.Policy.DryRun {
		s.act(ctx, d.Want-d.Have, stops)
	}
	return d
}

// act starts workers and stops those named, as long as ctx lasts.
func (s *Scaler) act(ctx context.Context, starts int, stops []string) {
	if starts > 0 && ctx.Err() == nil {
		if err := s.cfg.Driver.Start(ctx, starts); err != nil {
			s.failed(ctx, err, "starting workers; the next step tries again")
		}
	}
	for _, id := range stops {
		if ctx.Err() != nil {
			return
		}
		if err := s.cfg.Driver.Stop(ctx, id); err != nil {
			s.failed(ctx, err, "stopping worker "+id+"; a later step tries again")
		}
	}
}

// failed counts what the platform did not do; what we broke off ourselves is not its fault.
func (s *Scaler) failed(ctx context.Context, err error, doing string) {
	if errors.Is(ctx.Err(), context.Canceled) {
		s.cfg.Log.Info().Err(err).Msg("broken off, this scheduler no longer leads: " + doing)
		return
	}
	s.cfg.Metrics.failures.Inc()
	s.cfg.Log.Warn().Err(err).Msg(doing)
}

// tell counts the decision, and logs it when it is another one than before or nothing was logged for long.
func (s *Scaler) tell(d Decision, stops []string, cause error) {
	m := s.cfg.Metrics
	m.decisions.WithLabelValues(string(d.Reason)).Inc()
	held := 0.0
	if d.Reason.Held() {
		held = 1
	}
	m.held.Set(held)
	if d.Have >= 0 {
		m.actual.Set(float64(d.Have))
		m.desired.Set(float64(d.Want))
	}
	if s.news(d) {
		s.log(d, stops, cause)
		s.told, s.toldAt = d, s.cfg.Now()
		s.saidAt[d.Reason] = s.toldAt
	}
}

// news reports whether a decision is to be logged: every step and each beginning and end of a hold at once, other changes
// unless the same was said a moment ago. That a step waits for the one before is none: it comes within 10 s.
func (s *Scaler) news(d Decision) bool {
	now := s.cfg.Now()
	switch acts, was := d.Want != d.Have, s.told; {
	case acts && !s.cfg.Policy.DryRun, d.Reason.Held() != was.Reason.Held():
		return true
	case d.Reason == Step:
		return false
	case d.Reason != was.Reason || d.Want != was.Want || d.Have != was.Have:
		return now.Sub(s.saidAt[d.Reason]) >= sayAgain
	}
	return now.Sub(s.toldAt) >= logEvery
}

// log writes a decision with everything it was made of.
func (s *Scaler) log(d Decision, stops []string, cause error) {
	level, f, p := zerolog.InfoLevel, d.Figures, s.cfg.Policy
	if d.Reason.Held() {
		level = zerolog.WarnLevel
	}
	e := s.cfg.Log.WithLevel(level).Err(cause).Str("reason", string(d.Reason)).Int("have", d.Have).Int("draining", d.Draining).Int("want", d.Want).
		Int("need", d.Need).Int("runnable", f.Runnable).Int("running", f.Running).Dur("oldest_wait_ms", f.OldestWait).Int("slots_per_worker", f.Slots).
		Int("limit", d.Limit).Int("floor", d.Floor)
	if !f.At.IsZero() {
		e = e.Dur("figures_age_ms", d.Age)
	}
	if p.Budget > 0 {
		e = e.Int("purse_minutes", d.Purse)
	}
	if len(stops) > 0 {
		e = e.Strs("stops", stops)
	}
	e.Bool("dry_run", p.DryRun).Msg("autoscale")
}

// leastBusy sorts workers by what runs on them; one that the ledger does not know yet runs nothing.
func leastBusy(workers []Worker, busy map[string]int) []Worker {
	running := func(w Worker) int {
		n := 0
		for name, tasks := range busy {
			if name == w.Name || strings.HasPrefix(name, w.Name+"/") {
				n += tasks
			}
		}
		return n
	}
	sorted := slices.Clone(workers)
	slices.SortStableFunc(sorted, func(a, b Worker) int { return cmp.Compare(running(a), running(b)) })
	return sorted
}

// Metrics are the scaler's.
type Metrics struct {
	desired, actual, held prometheus.Gauge
	decisions             *prometheus.CounterVec
	failures              prometheus.Counter
}

// NewMetrics registers them.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		desired:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "muster_autoscale_desired", Help: "Workers that the autoscaler wants after its last step; 0 where it does not lead."}),
		actual:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "muster_autoscale_actual", Help: "Workers that its platform runs or starts; 0 where it does not lead."}),
		held:      prometheus.NewGauge(prometheus.GaugeOpts{Name: "muster_autoscale_held", Help: "1 while it decides nothing because figures or workers are unknown."}),
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "muster_autoscale_decisions_total", Help: "Decisions, by reason."}, []string{"reason"}),
		failures:  prometheus.NewCounter(prometheus.CounterOpts{Name: "muster_autoscale_failures_total", Help: "Starts and stops that the platform refused or did not answer."}),
	}
	for _, r := range Reasons {
		m.decisions.WithLabelValues(string(r))
	}
	reg.MustRegister(m.desired, m.actual, m.held, m.decisions, m.failures)
	return m
}
