package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/hibiken/asynq"
	"github.com/hibiken/asynqmon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/jobs"
	"github.com/generic-corp/muster/store"
)

// The operators' listener is a door of its own, loopback unless told otherwise, never the customers': metrics, health,
// profiles, and on the scheduler the figures of the whole fleet and Asynqmon.

const asynqmonPath = "/ops/asynqmon"

func newRegistry() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return reg
}

// serveOps listens on addr until ctx ends and logs where. extra mounts more handlers.
func serveOps(ctx context.Context, addr string, reg *prometheus.Registry, log zerolog.Logger, extra map[string]http.Handler) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	for pattern, h := range extra {
		mux.Handle(pattern, h)
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("listen for operators (OPS_ADDR): %w", err)
	}
	// No write timeout: a CPU profile takes as long as it was asked to.
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	go func() {
		<-ctx.Done()
		srv.Close()
	}()
	go func() {
		if err := srv.Serve(listener); err != nil && !errors.Is(err, http.ErrServerClosed) {
			log.Error().Err(err).Msg("operators' listener stopped")
		}
	}()
	log.Info().Str("addr", listener.Addr().String()).Msg("operators' pages: /metrics, /health, /debug/pprof/")
	return nil
}

// asynqmonHandler shows the queues, read-only: retries, cancels and deletions belong to the ledger.
func asynqmonHandler(redis asynq.RedisConnOpt) http.Handler {
	return asynqmon.New(asynqmon.Options{RootPath: asynqmonPath, RedisConnOpt: redis, ReadOnly: true})
}

// fleetCollector exports what the ledger and Redis know of the whole fleet, read when Prometheus asks.
type fleetCollector struct {
	system *store.System
	tiers  *tierLoads
	line   *jobs.Line
	log    zerolog.Logger
}

var (
	descDepth    = prometheus.NewDesc("muster_queue_depth", "Turns pending in a queue of Redis.", []string{"queue"}, nil)
	descActive   = prometheus.NewDesc("muster_queue_active", "Turns being served, by queue.", []string{"queue"}, nil)
	descOldest   = prometheus.NewDesc("muster_oldest_wait_seconds", "How long the oldest turn of a tier has been out.", []string{"queue"}, nil)
	descWaiting  = prometheus.NewDesc("muster_waiting_tasks", "Tasks in line or scheduled, by tier.", []string{"queue"}, nil)
	descRunnable = prometheus.NewDesc("muster_runnable_tasks", "Tasks that more workers could run now, caps considered, by tier: the scaling signal.", []string{"queue"}, nil)
	descRunning  = prometheus.NewDesc("muster_running_tasks", "Tasks that run, by tier.", []string{"queue"}, nil)
	descWorkers  = prometheus.NewDesc("muster_workers", "Worker processes that live.", nil, nil)
	descSlots    = prometheus.NewDesc("muster_slots", "Slots of workers that take turns.", nil, nil)
	descPushAge  = prometheus.NewDesc("muster_push_age_seconds", "Since the last nightly push finished; absent before the first.", nil, nil)
)

func (c *fleetCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descDepth, descActive, descOldest, descWaiting, descRunnable, descRunning, descWorkers, descSlots, descPushAge} {
		ch <- d
	}
}

// Collect leaves out what cannot be read; an absent series is what an alert should see.
func (c *fleetCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	tiers, _, err := c.tiers.load(ctx)
	byQueue := map[string]store.TierFigures{}
	for _, t := range tiers {
		byQueue[t.Queue] = t
	}
	if err == nil {
		for _, queue := range store.Queues {
			t := byQueue[queue]
			gauge(descOldest, t.OldestTurn/1000, queue)
			gauge(descWaiting, float64(t.Waiting), queue)
			gauge(descRunnable, float64(t.Runnable), queue)
			gauge(descRunning, float64(t.Running), queue)
		}
	}
	fleet, fleetErr := c.system.FleetLoad(ctx)
	if fleetErr == nil {
		gauge(descWorkers, float64(fleet.Workers))
		gauge(descSlots, float64(fleet.Slots))
	}
	age, ok, ageErr := c.system.PushAge(ctx)
	if ageErr == nil && ok {
		gauge(descPushAge, age)
	}
	var depthErr error
	for _, queue := range append([]string{jobs.QueueSystem}, store.Queues...) {
		pending, active, err := c.line.Depth(queue)
		if depthErr = errors.Join(depthErr, err); err == nil {
			gauge(descDepth, float64(pending), queue)
			gauge(descActive, float64(active), queue)
		}
	}
	if err := errors.Join(err, fleetErr, ageErr, depthErr); err != nil {
		c.log.Warn().Err(err).Msg("some metrics could not be read")
	}
}
