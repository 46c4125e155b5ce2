package main

import (
	"context"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/hibiken/asynq"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/worker"
)

// The peers, each tuned for the case as its documentation allows, and where tuning matters as it comes. What they do not
// do beside the same work is told in docs/benchmarks.md.

const (
	musterSystem = "muster"
	asynqSystem  = "asynq"
	riverSystem  = "river"

	asynqDefault = "asynq, default"
	riverDefault = "river, default"
)

// bouts are all cases with all who take part, in the table's order.
func bouts() []bout {
	return []bout{
		{Case: "drain", System: musterSystem, run: drainMuster},
		{Case: "drain", System: asynqSystem, run: drainAsynq},
		{Case: "drain", System: riverSystem, run: drainRiver(drainTasks, true)},
		{Case: "drain", System: riverDefault, run: drainRiver(drainTasks/5, false), once: true},
		{Case: "through", System: musterSystem, run: throughMuster},
		{Case: "through", System: asynqSystem, run: throughAsynq},
		{Case: "submit", System: musterSystem, run: submitMuster},
		{Case: "pick-up", System: musterSystem, run: pickupMuster},
		{Case: "pick-up", System: asynqSystem, run: pickupAsynq(pickups, asynqTuned)},
		{Case: "pick-up", System: asynqDefault, run: pickupAsynq(pickups/5, asynq.Config{}), once: true},
		{Case: "pick-up", System: riverSystem, run: pickupRiver(true)},
		{Case: "pick-up", System: riverDefault, run: pickupRiver(false), once: true},
		{Case: "ramp", System: musterSystem, run: rampMuster},
		{Case: "flood", System: musterSystem, run: floodMuster},
		{Case: "flood", System: asynqSystem, run: floodAsynq},
		{Case: "flood", System: riverSystem, run: floodRiver},
		{Case: "many", System: musterSystem, run: manyMuster},
		{Case: "caps", System: musterSystem, run: capsMuster},
		{Case: "caps", System: asynqSystem, run: capsAsynq(true)},
		{Case: "caps", System: asynqDefault, run: capsAsynq(false), once: true},
		{Case: "tiers", System: musterSystem, run: tiersMuster},
		{Case: "tiers", System: musterSystem, run: longFreeMuster(0), once: true},
		{Case: "tiers", System: musterSystem, run: longFreeMuster(longFreeSpread), once: true},
		{Case: "growth", System: musterSystem, run: growthMuster},
		{Case: "growth", System: asynqSystem, run: growthAsynq},
		{Case: "growth", System: riverSystem, run: growthRiver},
		{Case: "memory", System: musterSystem, run: memoryMuster, once: true},
		{Case: "memory", System: asynqSystem, run: memoryAsynq, once: true},
		{Case: "recovery", System: musterSystem, run: recoveryMuster, once: true},
		{Case: "recovery", System: asynqSystem, run: recoveryAsynq, once: true, full: true, beside: true},
	}
}

// asynqTuned looks at empty queues every 10 ms instead of every second.
var asynqTuned = asynq.Config{TaskCheckInterval: 10 * time.Millisecond}

// newAsynq starts an Asynq on a private Redis: the client, and a function that starts one server.
func newAsynq(h *host) (client *asynq.Client, serve func(slots int, cfg asynq.Config, handle func(ctx context.Context, t *asynq.Task) error)) {
	pair := h.servers()
	opt, err := asynq.ParseRedisURI(pair.Redis.URL(0))
	h.must(err)
	client = asynq.NewClient(opt)
	h.Cleanup(func() { client.Close() })
	return client, func(slots int, cfg asynq.Config, handle func(ctx context.Context, t *asynq.Task) error) {
		cfg.Concurrency, cfg.ShutdownTimeout = slots, time.Second
		cfg.Logger, cfg.LogLevel = worker.AsynqLogger(zerolog.Nop()), asynq.FatalLevel
		server := asynq.NewServer(opt, cfg)
		h.must(server.Start(asynq.HandlerFunc(handle)))
		h.Cleanup(server.Shutdown)
	}
}

// fill enqueues n tasks over eight connections.
func fill(h *host, client *asynq.Client, n int, payload string) {
	var left atomic.Int64
	left.Store(int64(n))
	crowd(h, 8, func() {
		for left.Add(-1) >= 0 {
			_, err := client.Enqueue(asynq.NewTask("job", []byte(payload)))
			h.must(err)
		}
	})
}

// crowd runs fn n times at once and waits; when one of them fails the bout has ended.
func crowd(h *host, n int, fn func()) {
	done := make(chan struct{}, n)
	for range n {
		go func() {
			fn()
			done <- struct{}{}
		}()
	}
	for range n {
		select {
		case <-done:
		case <-h.failed:
			h.must(h.err)
		}
	}
}

// job is River's task.
type job struct {
	Payload string `json:"payload"`
}

func (job) Kind() string { return "job" }

type jobWorker struct {
	river.WorkerDefaults[job]
	handle func(ctx context.Context, payload string)
}

func (w *jobWorker) Work(ctx context.Context, j *river.Job[job]) error {
	w.handle(ctx, j.Args.Payload)
	return nil
}

// newRiver prepares a River on a private PostgreSQL. Tuned means what its documentation offers for throughput and
// latency: the shortest fetch cooldown and poll.
func newRiver(h *host, slots int, tuned bool, handle func(ctx context.Context, payload string)) (client *river.Client[pgx.Tx], start func()) {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, h.servers().Postgres.URL("postgres"))
	h.must(err)
	h.Cleanup(pool.Close)
	driver := riverpgxv5.New(pool)
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	migrator, err := rivermigrate.New(driver, &rivermigrate.Config{Logger: quiet})
	h.must(err)
	_, err = migrator.Migrate(ctx, rivermigrate.DirectionUp, nil)
	h.must(err)
	workers := river.NewWorkers()
	river.AddWorker(workers, &jobWorker{handle: handle})
	cfg := &river.Config{Queues: map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: slots}}, Workers: workers, Logger: quiet}
	if tuned {
		cfg.FetchCooldown, cfg.FetchPollInterval = river.FetchCooldownMin, 10*time.Millisecond
	}
	client, err = river.NewClient(driver, cfg)
	h.must(err)
	return client, func() {
		h.must(client.Start(ctx))
		h.Cleanup(func() { _ = client.StopAndCancel(ctx) })
	}
}

// insertJobs puts n jobs in River's table.
func insertJobs(h *host, client *river.Client[pgx.Tx], n int, payload string) {
	for n > 0 {
		params := make([]river.InsertManyParams, min(n, 1000))
		n -= len(params)
		for i := range params {
			params[i] = river.InsertManyParams{Args: job{payload}}
		}
		_, err := client.InsertManyFast(context.Background(), params)
		h.must(err)
	}
}

// countdown closes when it was counted n times.
type countdown struct {
	left atomic.Int64
	done chan struct{}
}

func newCountdown(n int) *countdown {
	c := &countdown{done: make(chan struct{})}
	c.left.Store(int64(n))
	return c
}

func (c *countdown) tick() {
	if c.left.Add(-1) == 0 {
		close(c.done)
	}
}
