package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"
	"github.com/jmoiron/sqlx"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/api"
	"github.com/generic-corp/muster/api/mail"
	"github.com/generic-corp/muster/api/ratelimit"
	"github.com/generic-corp/muster/jobs"
	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/worker"
	"github.com/generic-corp/muster/worker/agent"
	"github.com/generic-corp/muster/worker/provider"
)

// The long-running processes: each reads its settings, opens what it needs, and serves until a signal.

// Connections per process, at most.
const (
	apiConns       = 40
	workerConns    = 16 // two lanes commit; the rest records provider calls
	schedulerConns = 8
	webhookConns   = 6 // of the scheduler besides, so that what is sent never keeps a sweep waiting
)

// openLedger opens the database and waits a little for it, so that processes may start in any order. A schema that is
// older than this version is an error.
func openLedger(ctx context.Context, url Secret, variable string, conns int, log zerolog.Logger) (*sqlx.DB, error) {
	db, err := store.Open(ctx, string(url), conns)
	if err != nil {
		return nil, err
	}
	deadline := time.Now().Add(startPatience)
	for {
		ping, cancel := context.WithTimeout(ctx, 5*time.Second)
		err = db.PingContext(ping)
		cancel()
		if err == nil {
			if err := store.CheckSchema(ctx, db); err != nil {
				db.Close()
				return nil, err
			}
			return db, nil
		}
		if ctx.Err() != nil || time.Now().After(deadline) || !store.Unavailable(err) {
			db.Close()
			return nil, dialHint("the database", variable, err)
		}
		log.Warn().Err(err).Msg("waiting for the database")
		time.Sleep(time.Second)
	}
}

// startPatience is how long a starting process waits for the database.
const startPatience = 10 * time.Second

// openRedis connects without asking: Redis may be away, and every process must do what it can without it.
func openRedis(ctx context.Context, cfg Config, log zerolog.Logger) (redis.UniversalClient, error) {
	rdb, err := jobs.NewRedis(cfg.Redis)
	if err != nil {
		return nil, err
	}
	ping, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if err := rdb.Ping(ping).Err(); err != nil {
		log.Warn().Err(err).Msg("redis cannot be reached (is it running, and is REDIS_URL right?); going on without it")
	}
	return rdb, nil
}

func runAPI(ctx context.Context, c *cli, args []string) error {
	cfg, err := c.process("api", args, "DATABASE_URL", "REDIS_URL", "JWT_SIGNING_KEYS")
	if err != nil {
		return err
	}
	log := c.logger(cfg, "api")
	if err := cfg.allowModels(); err != nil {
		return err
	}
	db, err := openLedger(ctx, cfg.DatabaseURL, "DATABASE_URL", apiConns, log)
	if err != nil {
		return err
	}
	defer db.Close()
	rdb, err := openRedis(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer rdb.Close()
	turns := jobs.NewEnqueuer(rdb, log)
	defer turns.Close()
	proxies := make([]string, len(cfg.TrustedProxies))
	for i, p := range cfg.TrustedProxies {
		proxies[i] = p.String()
	}
	reg := newRegistry()
	limits, err := ratelimit.New(ratelimit.Config{Redis: rdb, Log: log, Metrics: reg})
	if err != nil {
		return err
	}
	defer limits.Close()
	mailer, closeMailer, err := newMailer(cfg, log)
	if err != nil {
		return err
	}
	defer closeMailer()
	ledger := store.NewAPI(db)
	events, err := newWebhook(cfg, ledger, log)
	if err != nil {
		return err
	}
	keys, err := cfg.Webhooks.keys()
	if err != nil {
		return err
	}
	if !keys.Ready() {
		log.Warn().Msg("WEBHOOK_KEYS is not set: customers cannot make webhooks")
	}
	server, err := api.New(api.Config{Webhooks: api.Webhooks{Keys: keys, Rules: cfg.Webhooks.rules()}, Mailer: mailer, VerifiedEmail: cfg.requiresVerifiedEmail(), StripeEvents: events, Store: ledger, Enqueuer: enqueuer{turns}, Canceler: canceler{rdb, log}, Redis: pinger{rdb},
		RateLimits: limits, AddressFactor: addressFactor(cfg), SigningKeys: cfg.SigningKeys,
		TrustedProxies: proxies, CORSOrigins: cfg.CORSOrigins, AppDomain: cfg.AppDomain, Production: cfg.Env == "production", Version: version(), Log: log})
	if err != nil {
		return err
	}
	if err := serveOps(ctx, cfg.OpsAddr, reg, log, nil); err != nil {
		return err
	}
	return serveHTTP(ctx, server, ":"+strconv.Itoa(cfg.Port), log)
}

// addressFactor: in development everybody comes from one address, tests that register customers by the dozen too.
func addressFactor(cfg Config) int {
	if cfg.Env == "production" {
		return 1
	}
	return 50
}

// newMailer starts the mailer, if a mail server is configured; the function lets its last letters go.
func newMailer(cfg Config, log zerolog.Logger) (api.Mailer, func(), error) {
	if cfg.SMTPURL == "" {
		log.Warn().Msg("SMTP_URL is not set: no letters are sent, and passwords cannot be reset")
		return nil, func() {}, nil
	}
	m, err := mail.New(mail.Config{URL: string(cfg.SMTPURL), From: cfg.MailFrom, Log: log})
	if err != nil {
		return nil, nil, err
	}
	return m, func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := m.Close(ctx); err != nil {
			log.Warn().Err(err).Msg("some letters were lost")
		}
	}, nil
}

// serveHTTP serves until ctx ends, then lets requests end.
func serveHTTP(ctx context.Context, server *api.Server, addr string, log zerolog.Logger) error {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("listen for customers (PORT): %w", err)
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	log.Info().Str("addr", listener.Addr().String()).Msg("the API listens")
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
	defer cancel()
	if err := server.Shutdown(end); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// enqueuer, canceler and pinger introduce the API to Redis.
type enqueuer struct{ *jobs.Enqueuer }

func (e enqueuer) Enqueue(turns ...store.Turn) {
	for _, t := range turns {
		e.Enqueuer.Enqueue(jobs.Turn(t))
	}
}

type canceler struct {
	rdb redis.UniversalClient
	log zerolog.Logger
}

// Cancel tells the workers in the background; when Redis is away their beats bring the news within two seconds.
func (c canceler) Cancel(tasks ...uuid.UUID) {
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := jobs.PublishCancels(ctx, c.rdb, tasks...); err != nil {
			c.log.Warn().Err(err).Msg("cancel goes by the workers' beat")
		}
	}()
}

type pinger struct{ rdb redis.UniversalClient }

func (p pinger) Ping(ctx context.Context) error { return p.rdb.Ping(ctx).Err() }

// providers builds the configured model providers; none is an error.
func providers(cfg Config) (*provider.Router, error) {
	return provider.New(provider.Config{
		Anthropic: provider.Options{APIKey: string(cfg.AnthropicAPIKey), BaseURL: cfg.AnthropicBaseURL, Model: cfg.AnthropicModel},
		OpenAI:    provider.Options{APIKey: string(cfg.OpenAIAPIKey), BaseURL: cfg.OpenAIBaseURL, Model: cfg.OpenAIModel},
	})
}

func runWorker(ctx context.Context, c *cli, args []string) error {
	cfg, err := c.process("worker", args, "WORKER_DATABASE_URL", "REDIS_URL")
	if err != nil {
		return err
	}
	log := c.logger(cfg, "worker")
	router, err := providers(cfg)
	if err != nil {
		return err
	}
	prices, err := provider.LoadPrices(cfg.PricesFile)
	if err != nil {
		return err
	}
	db, err := openLedger(ctx, cfg.WorkerDatabaseURL, "WORKER_DATABASE_URL", workerConns, log)
	if err != nil {
		return err
	}
	defer db.Close()
	rdb, err := openRedis(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer rdb.Close()
	turns := jobs.NewEnqueuer(rdb, log)
	defer turns.Close()
	fleet := store.NewFleet(db)
	defer fleet.Close()
	reg := newRegistry()
	agents := agent.Config{Router: router, Prices: prices}
	runner := worker.RunnerFunc(func(ctx context.Context, t agent.Task, calls agent.Recorder) (agent.Result, error) {
		return agent.Run(ctx, agents, t, calls)
	})
	children, err := isolator(cfg, agents)
	if err != nil {
		return err
	}
	host := c.getenv("FLY_MACHINE_ID") // by which the autoscaler knows it there
	if host == "" {
		host, _ = os.Hostname() // a name for people: any will do
	}
	w := worker.New(worker.Config{Fleet: fleet, Redis: rdb, Enqueuer: turns, Runner: runner, Isolator: children, Children: cfg.IsolatedChildren, Metrics: worker.NewMetrics(reg),
		Log: log, Name: fmt.Sprintf("%s/%d", host, os.Getpid()), Version: version(), Slots: cfg.WorkerConcurrency,
		Strict: cfg.StrictTiers, CheckInterval: cfg.CheckInterval, DrainTimeout: cfg.Drain})
	if err := serveOps(ctx, cfg.OpsAddr, reg, log, nil); err != nil {
		return err
	}
	return w.Run(ctx)
}

func runScheduler(ctx context.Context, c *cli, args []string) error {
	cfg, err := c.process("scheduler", args, "SYSTEM_DATABASE_URL", "REDIS_URL")
	if err != nil {
		return err
	}
	log := c.logger(cfg, "scheduler")
	db, err := openLedger(ctx, cfg.SystemDatabaseURL, "SYSTEM_DATABASE_URL", schedulerConns, log)
	if err != nil {
		return err
	}
	defer db.Close()
	rdb, err := openRedis(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer rdb.Close()
	turns := jobs.NewEnqueuer(rdb, log)
	defer turns.Close()
	system, line, reg := store.NewSystem(db), jobs.NewLine(rdb), newRegistry()
	if err := checkHeadsDir(cfg.AuditHeadsDir); err != nil {
		return err
	}
	s := &scheduler{id: uuid.New(), died: make(chan struct{}, 1), nights: cfg.AuditHeadsDir, system: system, line: line, turns: turns, client: asynq.NewClientFromRedisClient(rdb), log: log,
		metrics: newSchedulerMetrics(reg), last: map[string]time.Time{}, leaving: seeingOut{grace: cfg.DeletionGrace}}
	if cfg.SMTPURL != "" {
		m, err := mail.New(mail.Config{URL: string(cfg.SMTPURL), From: cfg.MailFrom, Log: log})
		if err != nil {
			return err
		}
		defer m.Close(context.WithoutCancel(ctx)) // nothing is queued
		s.mail = m
	} else {
		log.Warn().Msg("SMTP_URL is not set: nobody is mailed that a quota is used up")
	}
	loads := &tierLoads{system: system}
	if s.scaler, err = newScaler(cfg, loads, reg, log); err != nil {
		return err
	}
	hooks, closeHooks, err := newWebhookSender(ctx, cfg, reg, log)
	if err != nil {
		return err
	}
	defer closeHooks()
	s.hooks = hooks
	mux := asynq.NewServeMux()
	if cfg.StripeSecretKey != "" {
		pusher, err := newPusher(cfg, system, log)
		if err != nil {
			return err
		}
		s.push, s.leaving.endSubscription = pusher.PushNight, pusher.EndSubscription
		mux.HandleFunc(jobs.TypePush, s.servePush)
	} else {
		log.Warn().Msg("STRIPE_SECRET_KEY is not set: usage is recorded, not pushed")
	}
	reg.MustRegister(&fleetCollector{system: system, tiers: loads, line: line, log: log}, &marginCollector{system: system, log: log})
	if err := serveOps(ctx, cfg.OpsAddr, reg, log, map[string]http.Handler{asynqmonPath + "/": asynqmonHandler(cfg.Redis.RedisConnOpt)}); err != nil {
		return err
	}
	systemServer := asynq.NewServerFromRedisClient(rdb, asynq.Config{Concurrency: 4, Queues: map[string]int{jobs.QueueSystem: 1},
		LogLevel: asynq.WarnLevel, Logger: worker.AsynqLogger(log), ShutdownTimeout: 20 * time.Second})
	if err := systemServer.Start(mux); err != nil {
		return fmt.Errorf("serve the system queue: %w", err)
	}
	s.run(ctx)
	systemServer.Shutdown()
	return nil
}
