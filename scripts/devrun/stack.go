//go:build unix

// The processes: private servers, stand-ins, migration, muster itself. They start in this order and stop in the other.

package main

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/lib/pq"

	"github.com/generic-corp/muster/scripts/privateservers"
	"github.com/generic-corp/muster/worker/childprocess"
)

const (
	database     = "muster"
	roleOwner    = "muster_owner"
	drainSeconds = 5 // what a running task gets at Ctrl-C; a second start picks up the rest
)

// stack is what runs. The zero value runs nothing.
type stack struct {
	servers    *privateservers.Servers
	systemURL  string
	env        []string // of every muster process
	api        string   // base URL
	ops        string   // base URL of the operators' listener
	stripeBase string   // of the stand-in; "" with a real account
	modelBase  string   // likewise
	muster     *childprocess.Process
	stops      []func(context.Context) error
}

func (d *dev) startStack(ctx context.Context) error {
	s := &d.stack
	listen, err := chooseListeners(d.getenv)
	if err != nil {
		return err
	}
	for _, note := range listen.notes {
		d.say("dev: %s", note)
	}
	s.api, s.ops = "http://127.0.0.1:"+listen.port, "http://"+listen.ops

	s.servers, err = privateservers.Start(ctx, privateservers.Config{Dir: d.dir,
		Postgres: privateservers.PostgresConfig{Fsync: true}, Redis: privateservers.RedisConfig{AppendOnly: true}})
	if err != nil {
		return err
	}
	s.stops = append(s.stops, s.servers.Stop)
	if data := s.servers.Postgres.DataDir(); !strings.HasPrefix(data, d.dir) {
		d.say("dev: PostgreSQL does not run as root, and its user cannot reach %s: its data is in %s", d.dir, data)
	}
	if err := d.prepareDatabase(ctx); err != nil {
		return err
	}
	if err := d.startStandIns(ctx); err != nil {
		return err
	}
	s.env = d.musterEnv(listen)
	migrateEnv := append(slices.Clone(s.env), "MIGRATE_DATABASE_URL="+s.servers.Postgres.URLAs(roleOwner, d.state.OwnerPassword, database))
	if _, err := d.musterCommand(ctx, migrateEnv, "migrate"); err != nil {
		return err
	}
	log, err := d.openLog("muster")
	if err != nil {
		return err
	}
	defer log.Close()
	s.muster, err = childprocess.Start(childprocess.Config{Argv: []string{filepath.Join(d.bin, "muster"), "up"}, Env: s.env, Output: log})
	if err != nil {
		return fmt.Errorf("start muster: %w", err)
	}
	s.stops = append(s.stops, func(ctx context.Context) error {
		return s.muster.End(ctx, (drainSeconds+25)*time.Second, syscall.SIGTERM, syscall.SIGKILL)
	})
	if err := s.awaitReady(ctx); err != nil {
		return fmt.Errorf("start muster: %w; end of %s:\n%s", err, log.Name(), tail(log.Name()))
	}
	return nil
}

// stop ends everything that was started, the last first: muster drains while its servers still serve.
func (d *dev) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var errs []error
	for i := len(d.stack.stops) - 1; i >= 0; i-- {
		errs = append(errs, d.stack.stops[i](ctx))
	}
	d.stack.stops = nil
	return errors.Join(errs...)
}

// wait returns when ctx ends, or with an error when muster does.
func (s *stack) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-s.muster.Exited():
		return fmt.Errorf("muster has ended by itself with code %d; see its log", s.muster.ExitCode())
	}
}

// prepareDatabase makes the owner and the database on the first run, and gives the roles the passwords that we know.
func (d *dev) prepareDatabase(ctx context.Context) error {
	admin, err := sql.Open("postgres", d.stack.servers.Postgres.URL("postgres"))
	if err != nil {
		return fmt.Errorf("prepare database: %w", err)
	}
	defer admin.Close()
	exists := func(query, name string) (found bool, err error) {
		err = admin.QueryRowContext(ctx, query, name).Scan(&found)
		return found, err
	}
	const role = `SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)`
	statements := []string{}
	if found, err := exists(role, roleOwner); err != nil {
		return fmt.Errorf("prepare database: %w", err)
	} else if !found {
		statements = append(statements, "CREATE ROLE "+roleOwner+" LOGIN CREATEROLE NOSUPERUSER NOBYPASSRLS PASSWORD "+pq.QuoteLiteral(d.state.OwnerPassword))
	}
	for name, password := range map[string]string{roleOwner: d.state.OwnerPassword, "muster_api": d.state.APIPassword,
		"muster_worker": d.state.WorkerPassword, "muster_system": d.state.SystemPassword} {
		if found, err := exists(role, name); err != nil {
			return fmt.Errorf("prepare database: %w", err)
		} else if found {
			statements = append(statements, "ALTER ROLE "+name+" PASSWORD "+pq.QuoteLiteral(password))
		}
	}
	if found, err := exists(`SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)`, database); err != nil {
		return fmt.Errorf("prepare database: %w", err)
	} else if !found {
		statements = append(statements, "CREATE DATABASE "+database+" OWNER "+roleOwner)
	}
	for _, statement := range statements {
		if _, err := admin.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("prepare database: %w", err)
		}
	}
	d.stack.systemURL = d.stack.servers.Postgres.URLAs("muster_system", d.state.SystemPassword, database)
	return nil
}

// startStandIns starts servers in place of the services for which no account is configured.
func (d *dev) startStandIns(ctx context.Context) error {
	key, err := d.secret("STRIPE_SECRET_KEY")
	switch {
	case err != nil:
	case key == "":
		d.stack.stripeBase, err = d.startStandIn(ctx, "stripeserver", "-state", filepath.Join(d.dir, "stripe.json"))
	case strings.HasPrefix(key, "sk_live_") || strings.HasPrefix(key, "rk_live_"):
		err = errors.New("STRIPE_SECRET_KEY is a live key: the demo makes a customer and a subscription, give it a test key (sk_test_…)")
	}
	if err != nil {
		return err
	}
	for _, name := range []string{"ANTHROPIC_API_KEY", "ANTHROPIC_API_KEY_FILE", "OPENAI_API_KEY", "OPENAI_API_KEY_FILE", "OPENAI_BASE_URL"} {
		if d.getenv(name) != "" {
			return nil
		}
	}
	d.stack.modelBase, err = d.startStandIn(ctx, "modelserver")
	return err
}

// secret is a variable's value, or what the file named by its _FILE twin holds.
func (d *dev) secret(name string) (string, error) {
	file := d.getenv(name + "_FILE")
	if file == "" {
		return d.getenv(name), nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("%s_FILE: %w", name, err)
	}
	return strings.TrimSpace(string(b)), nil
}

// startStandIn starts one and returns the base URL that it prints.
func (d *dev) startStandIn(ctx context.Context, name string, args ...string) (string, error) {
	log, err := d.openLog(name)
	if err != nil {
		return "", err
	}
	defer log.Close()
	first := &firstLine{line: make(chan string, 1)}
	p, err := childprocess.Start(childprocess.Config{Argv: append([]string{filepath.Join(d.bin, name)}, args...), Output: log, Stdout: first})
	if err != nil {
		return "", fmt.Errorf("start %s: %w", name, err)
	}
	d.stack.stops = append(d.stack.stops, func(ctx context.Context) error {
		return p.End(ctx, 5*time.Second, syscall.SIGTERM, syscall.SIGKILL)
	})
	select {
	case line := <-first.line:
		url, ok := strings.CutPrefix(line, "listening ")
		if !ok {
			return "", fmt.Errorf("start %s: it said %q instead of its address", name, line)
		}
		return url, nil
	case <-p.Exited():
		return "", fmt.Errorf("start %s: it ended with code %d:\n%s", name, p.ExitCode(), tail(log.Name()))
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// musterEnv is the environment of every muster process but the migration: no owner's URL.
func (d *dev) musterEnv(listen listeners) []string {
	pg := d.stack.servers.Postgres
	ours := []string{
		"MUSTER_ENV=development", "PORT=" + listen.port, "OPS_ADDR=" + listen.ops,
		"DATABASE_URL=" + pg.URLAs("muster_api", d.state.APIPassword, database),
		"WORKER_DATABASE_URL=" + pg.URLAs("muster_worker", d.state.WorkerPassword, database),
		"SYSTEM_DATABASE_URL=" + d.stack.systemURL,
		"REDIS_URL=" + d.stack.servers.Redis.URL(0),
		"JWT_SIGNING_KEYS=" + d.state.JWTSigningKey,
		"WEBHOOK_KEYS=" + d.state.WebhookKey, "WEBHOOK_ALLOW_LOOPBACK=true",
		fmt.Sprintf("DRAIN_SECONDS=%d", drainSeconds),
	}
	if d.stack.stripeBase != "" {
		ours = append(ours, "STRIPE_SECRET_KEY="+standInKey, "STRIPE_API_BASE="+d.stack.stripeBase)
	}
	if d.stack.modelBase != "" {
		ours = append(ours, "OPENAI_API_KEY=stand-in", "OPENAI_BASE_URL="+d.stack.modelBase+"/v1")
	}
	set := map[string]bool{"MIGRATE_DATABASE_URL": true, "MIGRATE_DATABASE_URL_FILE": true}
	for _, entry := range ours {
		name, _, _ := strings.Cut(entry, "=")
		set[name], set[name+"_FILE"] = true, true // both at once would be a mistake to muster
	}
	theirs := slices.DeleteFunc(os.Environ(), func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		return set[name]
	})
	return append(theirs, ours...)
}

// musterCommand runs a muster command to its end and returns its standard output.
func (d *dev) musterCommand(ctx context.Context, env []string, args ...string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	p, err := childprocess.Start(childprocess.Config{Argv: append([]string{filepath.Join(d.bin, "muster")}, args...),
		Env: env, Stdout: &stdout, Output: &stderr})
	if err != nil {
		return nil, fmt.Errorf("muster %s: %w", strings.Join(args, " "), err)
	}
	select {
	case <-p.Exited():
	case <-ctx.Done():
		_ = p.End(context.WithoutCancel(ctx), 5*time.Second, syscall.SIGTERM, syscall.SIGKILL)
		return nil, ctx.Err()
	}
	if code := p.ExitCode(); code != 0 {
		return stdout.Bytes(), fmt.Errorf("muster %s: exit code %d: %s", strings.Join(args, " "), code,
			strings.TrimSpace(stderr.String()+stdout.String()))
	}
	return stdout.Bytes(), nil
}

// awaitReady returns when the API says that it can serve.
func (s *stack) awaitReady(ctx context.Context) error {
	const limit = 30 * time.Second
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it was not ready within %s", limit))
	defer cancel()
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.api+"/ready", nil)
		if err != nil {
			return err
		}
		if res, err := http.DefaultClient.Do(req); err == nil {
			_, _ = io.Copy(io.Discard, res.Body)
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-s.muster.Exited():
			return fmt.Errorf("it ended with code %d", s.muster.ExitCode())
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// openLog starts a fresh log file for one process; the last run's stays beside it.
func (d *dev) openLog(name string) (*os.File, error) {
	file := filepath.Join(d.dir, "log", name+".log")
	_ = os.Rename(file, file+".old") // there is none the first time
	log, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return log, nil
}

// firstLine hands on the first line written to it and swallows the rest.
type firstLine struct {
	mu   sync.Mutex
	line chan string
	buf  []byte
	done bool
}

func (w *firstLine) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.done {
		w.buf = append(w.buf, b...)
		if line, _, ok := strings.Cut(string(w.buf), "\n"); ok {
			w.line <- line
			w.done, w.buf = true, nil
		}
	}
	return len(b), nil
}

func tail(file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return "  " + strings.Join(lines[max(0, len(lines)-10):], "\n  ")
}
