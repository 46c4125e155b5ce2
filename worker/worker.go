// Package worker is the fleet: a process that takes turns from Asynq, claims tasks from the ledger, runs their agents
// and finishes them.
//
// Asynq only delivers. Its handler runs the whole task, so that operators see it as active, but neither its context
// nor its lease decides anything: Asynq cancels a handler when Redis has been away for 30 s, and gives its worker token
// back while the handler still runs. The lease is the worker's beat in the ledger (beat.go), the deadline and the slots
// are our own (attempt.go), and a slot is free only when the agent function has really returned.
package worker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/jobs"
	"github.com/generic-corp/muster/store"
)

// Config makes a Worker. All fields without a default are required.
type Config struct {
	Fleet    *store.Fleet
	Redis    redis.UniversalClient
	Enqueuer *jobs.Enqueuer
	Runner   Runner
	Isolator Isolator // for suspects
	Metrics  *Metrics
	Log      zerolog.Logger

	Name    string // host and process, for people
	Version string

	// Slots is how many agents run at once; at least 1. A fifth of them serves the queue pro alone (at least one of two
	// or more), so that long tasks of lower tiers cannot hold every slot.
	Slots int

	// Weights by which the tiers' queues share a saturated worker's slots; nil is 6:3:1. With Strict a lower tier runs
	// only when the higher ones are empty.
	Weights map[string]int
	Strict  bool

	// CheckInterval is how long an idle worker sleeps between two looks at empty queues; 0 is 250 ms. Turns are announced,
	// so it only matters when an announcement got lost. The number of workers divided by it is the fleet's load on an
	// idle Redis.
	CheckInterval time.Duration

	// DrainTimeout is how long a stopping worker lets its agents run on before it hands them back; 0 hands back at once.
	DrainTimeout time.Duration

	// Children is how many suspects run at once, each in a process of its own and in one of the slots; 0 is 4.
	Children int

	// BudgetPatience is how long a model call waits for provider budget that other calls hold; 0 is 5 s.
	BudgetPatience time.Duration
}

// DefaultWeights share the slots of a saturated worker 6:3:1.
var DefaultWeights = map[string]int{store.QueuePro: 6, store.QueueStarter: 3, store.QueueFree: 1}

// Worker runs agents until it is stopped. Make one with New.
type Worker struct {
	cfg      Config
	id       atomic.Pointer[uuid.UUID] // of its row in workers; a new one after it was declared dead
	draining chan struct{}
	unfit    chan string   // why the worker must stop: an agent ignores its deadline
	children chan struct{} // places for the processes of suspects
	slots    *slots
	pipe     *jobs.Pipe
	gate     *gate
	server   *asynq.Server

	mu       sync.Mutex
	attempts map[uuid.UUID]*attempt // by lease: claims being asked for and agents that run
	strays   map[uuid.UUID]bool     // leases the ledger gave us that we did not know at the last beat
}

// New prepares a worker; Run starts it.
func New(cfg Config) *Worker {
	if cfg.Weights == nil {
		cfg.Weights = DefaultWeights
	}
	if cfg.CheckInterval <= 0 {
		cfg.CheckInterval = 250 * time.Millisecond
	}
	if cfg.BudgetPatience <= 0 {
		cfg.BudgetPatience = budgetPatience
	}
	if cfg.Children <= 0 {
		cfg.Children = childPlaces
	}
	w := &Worker{cfg: cfg, draining: make(chan struct{}), unfit: make(chan string, 1), children: make(chan struct{}, cfg.Children),
		attempts: map[uuid.UUID]*attempt{}, strays: map[uuid.UUID]bool{}}
	w.slots = newSlots(newShares(cfg.Slots, cfg.Weights, cfg.Strict))
	w.pipe = jobs.NewPipe(cfg.Redis)
	w.gate = newGate(w.pipe, w.slots, cfg.CheckInterval, w.draining)
	w.server = asynq.NewServerFromRedisClient(w.gate, asynq.Config{
		// The gate says how many run. The rest is for handlers whose agent has returned and whose finish is on its way.
		Concurrency:              2 * cfg.Slots,
		Queues:                   cfg.Weights,
		TaskCheckInterval:        asynqTick,
		DelayedTaskCheckInterval: time.Second,
		// A turn only fails when the ledger could not be reached: come back soon, and never give it up for that.
		RetryDelayFunc:  func(int, error, *asynq.Task) time.Duration { return time.Second },
		IsFailure:       func(error) bool { return false },
		ShutdownTimeout: time.Second, // by then we have drained ourselves
		Logger:          AsynqLogger(cfg.Log),
		LogLevel:        asynq.WarnLevel,
	})
	return w
}

// ErrUnfit: the worker stopped by itself because an agent ignored its deadline. Whoever started it should start
// another.
var ErrUnfit = errors.New("an agent ignored its deadline")

// Run registers the worker and serves until ctx ends, then drains: it takes no more turns, lets agents end within
// DrainTimeout, hands the rest back to their place in line, and leaves. It fails when the ledger cannot be reached at
// the start, and with ErrUnfit.
func (w *Worker) Run(ctx context.Context) error {
	if err := w.register(ctx); err != nil {
		return err
	}
	w.cfg.Metrics.slots.Set(float64(w.cfg.Slots))
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var loops sync.WaitGroup
	loops.Go(func() { w.beatLoop(background) })
	loops.Go(func() { jobs.SubscribeCancels(background, w.cfg.Redis, w.stopTask) })
	loops.Go(func() {
		jobs.WatchTurns(background, w.cfg.Redis, w.gate.announce)
	})
	if err := w.server.Start(asynq.HandlerFunc(w.serve)); err != nil {
		return fmt.Errorf("start taking turns: %w", err)
	}
	w.cfg.Log.Info().Stringer("worker", w.id.Load()).Int("slots", w.cfg.Slots).Msg("worker takes turns")

	var unfit error
	select {
	case <-ctx.Done():
	case why := <-w.unfit:
		unfit = fmt.Errorf("%w: %s", ErrUnfit, why)
		w.cfg.Log.Error().Str("why", why).Msg("worker is unfit; draining")
	}
	empty := w.drain()
	w.server.Shutdown()
	_ = w.pipe.Close()
	stop()
	loops.Wait()
	if empty {
		leave, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := w.cfg.Fleet.Leave(leave, *w.id.Load()); err != nil {
			w.cfg.Log.Warn().Err(err).Msg("leaving the fleet; the scheduler will notice")
		}
	}
	w.cfg.Log.Info().Bool("empty", empty).Msg("worker stopped")
	return unfit
}

// handBackGrace is how long agents have to return once they are told to hand their task back.
const handBackGrace = 10 * time.Second

// drain stops taking turns and waits for the agents; true when none is left.
func (w *Worker) drain() bool {
	close(w.draining)
	w.gate.stop()
	w.server.Stop()
	w.cfg.Log.Info().Int("running", w.running()).Dur("drain", w.cfg.DrainTimeout).Msg("draining")
	if w.slots.waitEmpty(w.cfg.DrainTimeout) {
		return true
	}
	w.mu.Lock()
	for _, a := range w.attempts {
		a.stop(errHandBack)
	}
	w.mu.Unlock()
	return w.slots.waitEmpty(handBackGrace)
}

// running counts agents that run now.
func (w *Worker) running() (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range w.attempts {
		if a.won && !a.returned {
			n++
		}
	}
	return n
}

// AsynqLogger passes Asynq's own warnings and errors on to log.
func AsynqLogger(log zerolog.Logger) asynq.Logger { return asynqLogger{log} }

type asynqLogger struct{ log zerolog.Logger }

func (l asynqLogger) Debug(args ...any) { l.log.Debug().Str("from", "asynq").Msg(fmt.Sprint(args...)) }
func (l asynqLogger) Info(args ...any)  { l.log.Info().Str("from", "asynq").Msg(fmt.Sprint(args...)) }
func (l asynqLogger) Warn(args ...any)  { l.log.Warn().Str("from", "asynq").Msg(fmt.Sprint(args...)) }
func (l asynqLogger) Error(args ...any) { l.log.Error().Str("from", "asynq").Msg(fmt.Sprint(args...)) }
func (l asynqLogger) Fatal(args ...any) { l.log.Error().Str("from", "asynq").Msg(fmt.Sprint(args...)) }
