package main

import (
	"context"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/hibiken/asynq"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/worker"
)

// What the peers do not do, beside the same work: Asynq keeps tasks in Redis, whose last second a crash may lose, and
// knows no caps, no fairness between tenants and no metering. River keeps them durably in Postgres; caps per tenant and
// fairness are part of its paid edition, metering is not part of it.

const (
	asynqSystem = "asynq"
	riverSystem = "river"
)

// newAsynq starts an Asynq on a private Redis: the client, and a function that starts one server.
func newAsynq(h *host) (client *asynq.Client, serve func(slots int, check time.Duration, queues map[string]int, handle func(ctx context.Context, t *asynq.Task) error)) {
	pair := h.servers()
	opt, err := asynq.ParseRedisURI(pair.Redis.URL(0))
	h.must(err)
	client = asynq.NewClient(opt)
	h.Cleanup(func() { client.Close() })
	return client, func(slots int, check time.Duration, queues map[string]int, handle func(ctx context.Context, t *asynq.Task) error) {
		server := asynq.NewServer(opt, asynq.Config{Concurrency: slots, TaskCheckInterval: check, Queues: queues, ShutdownTimeout: time.Second,
			RetryDelayFunc: func(int, error, *asynq.Task) time.Duration { return time.Second },
			IsFailure:      func(err error) bool { return err != errBusy },
			Logger:         worker.AsynqLogger(zerolog.Nop()), LogLevel: asynq.FatalLevel})
		h.must(server.Start(asynq.HandlerFunc(handle)))
		h.Cleanup(server.Shutdown)
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

// newRiver starts a River on a private PostgreSQL. Tuned means what its documentation offers for throughput and
// latency: the shortest fetch cooldown and poll.
func newRiver(h *host, slots int, tuned bool, handle func(ctx context.Context, payload string)) (client *river.Client[pgxTx], start func()) {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, h.servers().Postgres.URL("postgres"))
	h.must(err)
	h.Cleanup(pool.Close)
	driver := riverpgxv5.New(pool)
	migrator, err := rivermigrate.New(driver, &rivermigrate.Config{Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	h.must(err)
	_, err = migrator.Migrate(ctx, rivermigrate.DirectionUp, nil)
	h.must(err)
	workers := river.NewWorkers()
	river.AddWorker(workers, &jobWorker{handle: handle})
	cfg := &river.Config{Queues: map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: slots}}, Workers: workers,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}
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
func insertJobs(h *host, client *river.Client[pgxTx], n int, payload string) {
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
