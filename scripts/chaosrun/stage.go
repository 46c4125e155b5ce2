//go:build unix

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/redis/go-redis/v9"

	"github.com/generic-corp/muster/billing/stripetest"
	"github.com/generic-corp/muster/scripts/chaosrun/steppedclock"
	"github.com/generic-corp/muster/scripts/privateservers"
	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// config describes a run.
type config struct {
	seed    uint64
	tasks   int     // acknowledged at least
	rate    float64 // tasks sent per second
	plan    []round
	crowd   []tier
	hasty   bool // no rest between rounds
	workers int
	slots   int    // of each worker
	muster  string // the binary
	history string // file
	under   string // where everything else is kept while it runs; "" is the system's place
	say     func(format string, args ...any)
}

// stage is everything that runs: servers, stand-ins, proxies, muster's processes.
type stage struct {
	cfg      config
	rng      *rand.Rand // of whoever fires faults; not for the load
	dir      string
	hist     *history
	host     *host
	servers  *privateservers.Servers
	env      *storetest.Env
	db       *sqlx.DB // the superuser's, direct
	redis    *redis.Client
	watch    *watcher
	models   *models
	receiver *receiver
	wires    *wires
	members  []*member
	vars     map[string]string // of commands
	api      string            // base URL, through the wire client>api
	disk     *smallDisk        // nil: it cannot be filled
	load     *load

	postgresClock, redisClock *serverClock // nil: it is not stepped

	mu      sync.Mutex      // of rng while faults are fired, and of:
	taken   map[string]bool // workers that a fault has in hand
	firings []*firing
	booked  atomic.Bool
}

const signingKey = "abababababababababababababababababababababababababababababababab" // of access tokens, and for webhooks' secrets; hexadecimal

// newStage starts all of it. close ends it, also after an error.
func newStage(ctx context.Context, cfg config) (s *stage, err error) {
	s = &stage{cfg: cfg, rng: rand.New(rand.NewPCG(cfg.seed, 1)), host: &host{}}
	if s.hist, err = newHistory(cfg.history); err != nil {
		return s, err
	}
	if s.dir, err = os.MkdirTemp(cfg.under, "muster-chaos-"); err == nil {
		err = os.Chmod(s.dir, 0o711) // PostgreSQL's system user has to pass
	}
	if err != nil {
		return s, err
	}
	sc := privateservers.Config{Dir: filepath.Join(s.dir, "servers"), Redis: privateservers.RedisConfig{AppendOnly: true},
		Postgres: privateservers.PostgresConfig{Settings: map[string]string{"max_wal_size": "256MB", "log_min_messages": "warning"}}}
	if s.wants("disk-full") {
		if s.disk, err = newSmallDisk(sc.Dir); err != nil {
			cfg.say("disk-full is not run: %v", err)
		}
	}
	for _, c := range []struct {
		fault, server string
		clock         **serverClock
		env           *[]string
	}{{"clock-steps", "postgres", &s.postgresClock, &sc.Postgres.Env}, {"clock-steps-redis", "redis", &s.redisClock, &sc.Redis.Env}} {
		if !s.wants(c.fault) {
			continue
		}
		if *c.clock, err = newServerClock(s.dir, c.server); err != nil {
			cfg.say("%s is not run: %v", c.fault, err)
			continue
		}
		*c.env = (*c.clock).env()
	}
	if s.wants("clock-steps-muster") && !steppedclock.Supported {
		cfg.say("clock-steps-muster is not run: it needs Linux on amd64")
	}
	if s.servers, err = privateservers.Start(ctx, sc); err != nil {
		return s, err
	}
	err = s.host.within(func() {
		s.env = storetest.On(s.host, s.servers)
		s.db = s.env.Admin(s.host)
		s.redis = s.env.Redis(s.host)
	})
	if err != nil {
		return s, err
	}
	if s.watch, err = newWatcher(ctx, s.db, s.hist); err != nil {
		return s, err
	}
	s.models, s.receiver, s.wires = newModels(s.hist), newReceiver(s.hist), newWires()
	var stripeURL string
	if err = s.host.within(func() { _, stripeURL = stripetest.Start(s.host, stripetest.Options{}) }); err != nil {
		return s, err
	}
	s.vars = map[string]string{"JWT_SIGNING_KEYS": signingKey, "STRIPE_SECRET_KEY": "sk_test_muster", "STRIPE_API_BASE": stripeURL,
		"DATABASE_URL": s.env.APIURL, "WORKER_DATABASE_URL": s.env.WorkerURL, "SYSTEM_DATABASE_URL": s.env.SystemURL, "REDIS_URL": s.env.RedisURL,
		"OPENAI_API_KEY": "sk-test", "DRAIN_SECONDS": "20", "LOG_LEVEL": "info", "WEBHOOK_KEYS": signingKey, "WEBHOOK_ALLOW_LOOPBACK": "true"}
	if err = s.joinAll(ctx); err != nil {
		return s, err
	}
	if out, err := s.command(ctx, "billing", "setup"); err != nil {
		return s, fmt.Errorf("billing setup: %w\n%s", err, out)
	}
	return s, nil
}

// wants says whether the plan has the fault.
func (s *stage) wants(name string) bool {
	for _, r := range s.cfg.plan {
		for _, f := range r {
			if f.name == name {
				return true
			}
		}
	}
	return false
}

// joinAll starts muster's processes, each with wires of its own.
func (s *stage) joinAll(ctx context.Context) error {
	port, err := privateservers.FreePort()
	if err != nil {
		return err
	}
	addr, err := s.wires.lay("client", "api", fmt.Sprint("127.0.0.1:", port))
	if err != nil {
		return err
	}
	s.api = "http://" + addr
	names := []string{"scheduler-1", "scheduler-2", "api"}
	for i := range s.cfg.workers {
		names = append(names, fmt.Sprintf("worker-%d", i+1))
	}
	for _, name := range names {
		role, _, _ := strings.Cut(name, "-")
		vars := map[string]string{}
		for _, k := range []string{"JWT_SIGNING_KEYS", "STRIPE_SECRET_KEY", "STRIPE_API_BASE", "OPENAI_API_KEY", "DRAIN_SECONDS", "LOG_LEVEL", "WEBHOOK_KEYS",
			"WEBHOOK_ALLOW_LOOPBACK"} {
			vars[k] = s.vars[k]
		}
		variable, ledger := map[string]string{"api": "DATABASE_URL", "worker": "WORKER_DATABASE_URL", "scheduler": "SYSTEM_DATABASE_URL"}[role], ""
		if ledger, err = s.wires.lay(name, "postgres", s.servers.Postgres.Addr()); err != nil {
			return err
		}
		vars[variable] = via(s.vars[variable], ledger)
		delivery, err := s.wires.lay(name, "redis", s.servers.Redis.Addr())
		if err != nil {
			return err
		}
		vars["REDIS_URL"] = via(s.vars["REDIS_URL"], delivery)
		var more func(string) map[string]string
		switch role {
		case "api":
			vars["PORT"] = strconv.Itoa(port)
		case "worker":
			models, err := s.wires.lay(name, "models", s.models.addr())
			if err != nil {
				return err
			}
			vars["WORKER_CONCURRENCY"] = fmt.Sprint(s.cfg.slots)
			more = func(proc string) map[string]string {
				return map[string]string{"OPENAI_BASE_URL": "http://" + models + "/w/" + proc + "/v1"}
			}
		}
		if err := s.join(ctx, name, []string{role}, vars, more); err != nil {
			return err
		}
	}
	return nil
}

// via is the URL with another host and port.
func via(raw, addr string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return raw // ours: it can be read
	}
	u.Host = addr
	return u.String()
}

// command runs a muster command on the servers themselves.
func (s *stage) command(ctx context.Context, args ...string) (output string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.cfg.muster, args...)
	for k, v := range s.vars {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	return out.String(), err
}

// run is the whole run: the crowd submits while the plan's faults are fired, until all has been fired, enough was
// acknowledged and everything has ended.
func (s *stage) run(ctx context.Context) error {
	background, stop := context.WithCancel(ctx)
	defer stop()
	var loops sync.WaitGroup
	defer loops.Wait()
	defer stop()
	loops.Go(func() { s.watch.run(background) })
	var err error
	if s.load, err = newLoad(ctx, s); err != nil {
		return err
	}
	s.hist.add(event{What: began, Note: fmt.Sprintf("seed %d, %d tasks, %.1f per second", s.cfg.seed, s.cfg.tasks, s.cfg.rate)})
	sending, enough := context.WithCancel(ctx)
	defer enough()
	loops.Go(func() { s.load.run(sending) })
	pause(ctx, 2*time.Second)
	for i, r := range s.cfg.plan {
		s.fireRound(ctx, fmt.Sprintf("%d/%d", i+1, len(s.cfg.plan)), r)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !s.cfg.hasty {
			pause(ctx, s.between(time.Second, 3*time.Second))
		}
	}
	for s.load.acked() < s.cfg.tasks && ctx.Err() == nil {
		pause(ctx, 100*time.Millisecond)
	}
	enough()
	s.cfg.say("all faults are fired, %d tasks are acknowledged; waiting for their ends", s.load.acked())
	if err := s.settle(ctx); err != nil {
		return err
	}
	stop()
	loops.Wait()
	return s.book(ctx)
}

// settle waits until customers have done what they want, nothing waits or runs, and every end is told.
func (s *stage) settle(ctx context.Context) error {
	const limit = 4 * time.Minute
	deadline := time.Now().Add(limit)
	answered := make(chan struct{})
	go func() { s.load.wait(); close(answered) }()
	select {
	case <-answered:
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(limit):
		s.host.Errorf("requests are still not answered %s after the last fault", limit)
	}
	if err := s.load.cease(ctx); err != nil {
		return err
	}
	for _, left := range []struct{ query, what string }{
		{`SELECT count(*) FROM tasks WHERE finished_at IS NULL`, "tasks have not ended"},
		{`SELECT count(*) FROM webhook_deliveries WHERE status = 'waiting'`, "events have not been taken"},
	} {
		for ; ; pause(ctx, 200*time.Millisecond) {
			n, err := s.watch.count(ctx, left.query)
			if err == nil && n == 0 {
				break
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if time.Now().After(deadline) {
				s.host.Errorf("%d %s %s after the last fault (%v)", n, left.what, limit, err)
				break
			}
		}
	}
	return nil
}

// book writes the end into the history: what customers see, what the ledger holds, and what else is wrong.
func (s *stage) book(ctx context.Context) error {
	if err := s.load.readFinals(ctx); err != nil {
		return err
	}
	if err := s.watch.books(ctx); err != nil {
		return err
	}
	if err := s.host.within(func() { storetest.CheckLedger(s.host, s.env) }); err != nil {
		return err
	}
	if out, err := s.command(ctx, "billing", "push", "--day", "today"); err != nil {
		s.host.Errorf("billing push: %v\n%s", err, out)
	}
	if out, err := s.command(ctx, "billing", "reconcile"); err != nil {
		s.host.Errorf("billing reconcile: %v\n%s", err, out)
	}
	for _, m := range s.members {
		if what := m.raced(); what != "" {
			s.host.Errorf("%s: %s", m.name, what)
		}
	}
	s.hist.add(event{What: finished})
	s.booked.Store(true)
	return nil
}

// close ends everything and removes it; the history stays.
func (s *stage) close() error {
	var errs []error
	for _, m := range s.members {
		m.mu.Lock()
		p := m.proc
		m.meant = true
		m.mu.Unlock()
		if p.Alive() {
			_ = p.Signal(syscall.SIGCONT)
		}
		select {
		case <-m.done:
		default:
			errs = append(errs, p.End(context.Background(), 0, syscall.SIGKILL))
		}
	}
	s.host.close()
	if s.wires != nil {
		s.wires.close()
	}
	if s.models != nil {
		s.models.server.CloseClientConnections()
		s.models.server.Close()
		s.receiver.server.Close()
	}
	if s.disk != nil {
		if s.servers != nil && s.servers.Postgres != nil {
			errs = append(errs, s.servers.Postgres.Stop(context.Background()))
		}
		errs = append(errs, s.disk.remove())
	}
	if s.servers != nil {
		errs = append(errs, s.servers.Remove())
	}
	if s.dir != "" {
		errs = append(errs, os.RemoveAll(s.dir))
	}
	return errors.Join(errs...)
}

// copyLogs keeps the processes' and servers' logs of a run that went wrong.
func (s *stage) copyLogs(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	logs := []string{s.servers.Postgres.LogFile(), s.servers.Redis.LogFile()}
	for _, m := range s.members {
		logs = append(logs, m.log)
	}
	for _, path := range logs {
		from, err := os.Open(path)
		if err != nil {
			return err
		}
		to, err := os.Create(filepath.Join(dir, filepath.Base(path)))
		if err == nil {
			_, err = io.Copy(to, from)
			err = errors.Join(err, to.Close())
		}
		from.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// operator is who sets plans and limits.
var operator = store.Operator{Name: "chaos"}
