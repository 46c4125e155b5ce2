//go:build unix

// Package storetest gives a test a migrated database and a Redis of its own in one line.
//
// A package that uses it says in one of its test files
//
//	func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }
//
// and in each test
//
//	env := storetest.New(t)
//	api := store.NewAPI(env.API(t))
//
// The first New of a test binary starts one private PostgreSQL and one private Redis for that binary (scripts/
// privateservers) and migrates a template; each further New copies the template, which takes some 30 ms, so tests may
// run in parallel and never see each other. Missing servers fail a test, they never skip it. A test that kills, stops
// or flushes servers asks for OwnServers instead.
//
// Tests inside package store itself import store through this package: they belong in package store_test.
package storetest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
	"github.com/redis/go-redis/v9"

	"github.com/generic-corp/muster/scripts/privateservers"
	"github.com/generic-corp/muster/store"
)

// PoolSize is the most connections of one handle that an Env opens. The server takes 300 in all.
const PoolSize = 20

// RoleOwner owns every test database. It is no superuser, so row-level security binds it as it does in production.
const RoleOwner = "muster_owner"

const (
	password = "for-tests-only" // of the four roles: the server itself is private
	template = "muster_template"
)

// Env is one test's own database and Redis.
type Env struct {
	Database string // its name

	OwnerURL  string // the owner: migrations only
	APIURL    string // muster_api
	WorkerURL string // muster_worker
	SystemURL string // muster_system
	AdminURL  string // the cluster's superuser, whom nothing binds: to look at what is hidden, or to break something
	RedisURL  string // a numbered database of its own; channels of PUBLISH are shared by all databases of a server

	postgres *privateservers.Postgres

	mu      sync.Mutex
	handles map[string]*sqlx.DB // by URL
}

// API is the handle with the API's role, the same at each call, closed when the Env's test ends. So are Worker, System,
// Owner and Admin.
func (e *Env) API(t testing.TB) *sqlx.DB { t.Helper(); return e.open(t, e.APIURL) }

// Worker is the handle with the workers' role.
func (e *Env) Worker(t testing.TB) *sqlx.DB { t.Helper(); return e.open(t, e.WorkerURL) }

// System is the handle with the system's role.
func (e *Env) System(t testing.TB) *sqlx.DB { t.Helper(); return e.open(t, e.SystemURL) }

// Owner is the handle with the owner's role.
func (e *Env) Owner(t testing.TB) *sqlx.DB { t.Helper(); return e.open(t, e.OwnerURL) }

// Admin is the handle as superuser.
func (e *Env) Admin(t testing.TB) *sqlx.DB { t.Helper(); return e.open(t, e.AdminURL) }

// PostgresLog is the server's log file; all databases of a test binary share it.
func (e *Env) PostgresLog() string { return e.postgres.LogFile() }

// Redis opens a client of the test's own Redis database, closed when the test ends.
func (e *Env) Redis(t testing.TB) *redis.Client {
	t.Helper()
	opt, err := redis.ParseURL(e.RedisURL)
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(opt)
	t.Cleanup(func() { client.Close() })
	return client
}

func (e *Env) open(t testing.TB, url string) *sqlx.DB {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	db := e.handles[url]
	if db == nil {
		var err error
		if db, err = store.Open(context.Background(), url, PoolSize); err != nil {
			t.Fatal(err)
		}
		e.handles[url] = db
	}
	return db
}

func (e *Env) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, db := range e.handles {
		db.Close()
	}
}

// Servers is an Env whose servers belong to one test alone.
type Servers struct {
	*Env
	Postgres    *privateservers.Postgres
	RedisServer *privateservers.Redis
}

// OwnServers starts a PostgreSQL and a Redis for one test, which may kill, stop, restart and flush them; both are
// migrated, empty, and on ports that stay the same. It takes about a second.
func OwnServers(t testing.TB) *Servers {
	t.Helper()
	return OwnServersWith(t, nil)
}

// OwnServersWith is OwnServers with settings of PostgreSQL.
func OwnServersWith(t testing.TB, settings map[string]string) *Servers {
	t.Helper()
	binary.mu.Lock()
	dir, err := binary.tempDir(t)
	binary.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if dir, err = os.MkdirTemp(dir, "own-"); err == nil {
		err = os.Chmod(dir, 0o711)
	}
	if err != nil {
		t.Fatal(err)
	}
	pair, err := privateservers.Start(context.Background(), privateservers.Config{Dir: dir, Postgres: privateservers.PostgresConfig{Settings: settings}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pair.Remove(); _ = os.RemoveAll(dir) })
	return &Servers{Env: On(t, pair), Postgres: pair.Postgres, RedisServer: pair.Redis}
}

// On migrates an empty database on servers that the test has started itself.
func On(t testing.TB, pair *privateservers.Servers) *Env {
	t.Helper()
	const database = "muster"
	if err := makeDatabase(context.Background(), pair.Postgres, database); err != nil {
		t.Fatal(err)
	}
	return newEnv(t, pair.Postgres, database, pair.Redis.URL(0))
}

// New gives the test a fresh database and a fresh Redis, gone again when the test ends.
func New(t testing.TB) *Env {
	t.Helper()
	ctx := context.Background()
	s, err := binary.start(t)
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.databases++
	database := fmt.Sprintf("muster_test_%d", s.databases)
	var number int
	if n := len(s.free); n > 0 {
		number, s.free = s.free[n-1], s.free[:n-1]
	} else {
		s.numbers++
		number = s.numbers
	}
	s.mu.Unlock()
	if number >= privateservers.RedisDatabases {
		t.Fatalf("more than %d tests want a Redis at once", privateservers.RedisDatabases-1)
	}
	if _, err := s.admin.ExecContext(ctx, "CREATE DATABASE "+database+" TEMPLATE "+template+" OWNER "+RoleOwner); err != nil {
		t.Fatalf("create test database: %v", err)
	}
	t.Cleanup(func() {
		if _, err := s.admin.ExecContext(ctx, "DROP DATABASE "+database+" WITH (FORCE)"); err != nil {
			t.Errorf("drop test database: %v", err)
		}
		s.mu.Lock()
		s.free = append(s.free, number)
		s.mu.Unlock()
	})
	env := newEnv(t, s.pair.Postgres, database, s.pair.Redis.URL(number))
	if s.bouncer != nil {
		env.through(s.bouncer)
	}
	if err := env.Redis(t).FlushDB(ctx).Err(); err != nil {
		t.Fatalf("flush test Redis: %v", err)
	}
	return env
}

// Main runs the tests of a binary and then removes the servers that they have used. It returns the exit code.
func Main(m *testing.M) int {
	binary.usesMain = true
	code := m.Run()
	if err := binary.remove(); err != nil {
		fmt.Fprintln(os.Stderr, "storetest: remove servers:", err)
		if code == 0 {
			code = 1
		}
	}
	return code
}

// servers are those of one test binary.
type servers struct {
	mu        sync.Mutex
	usesMain  bool
	dir       string   // everything lies under it
	dirLock   *os.File // held while the binary runs; see sweep
	once      sync.Once
	err       error // of the start; every further test fails with it too
	pair      *privateservers.Servers
	bouncer   *privateservers.PgBouncer // nil unless PoolVariable is set
	admin     *sql.DB
	databases int   // made so far
	numbers   int   // highest Redis database taken so far; 0 is nobody's
	free      []int // Redis databases given back
}

var binary servers

// start starts the binary's servers once.
func (s *servers) start(t testing.TB) (*servers, error) {
	s.once.Do(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		ctx := context.Background()
		var dir string
		if dir, s.err = s.tempDir(t); s.err != nil {
			return
		}
		if s.pair, s.err = privateservers.Start(ctx, privateservers.Config{Dir: dir}); s.err != nil {
			return
		}
		if s.err = makeDatabase(ctx, s.pair.Postgres, template); s.err != nil {
			return
		}
		if s.admin, s.err = sql.Open("postgres", s.pair.Postgres.URL("postgres")); s.err != nil {
			return
		}
		if _, s.err = s.admin.ExecContext(ctx, "ALTER DATABASE "+template+" ALLOW_CONNECTIONS false"); s.err != nil {
			return
		}
		if size := os.Getenv(PoolVariable); size != "" {
			s.bouncer, s.err = startBouncer(ctx, s.pair.Postgres, size)
		}
	})
	return s, s.err
}

// tempDir makes the directory of everything that this binary starts. s.mu is held.
func (s *servers) tempDir(t testing.TB) (string, error) {
	if s.dir != "" {
		return s.dir, nil
	}
	if !s.usesMain {
		t.Fatal("this package needs: func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }")
	}
	sweep()
	dir, err := os.MkdirTemp("", dirPrefix)
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o711); err != nil { // PostgreSQL's system user has to pass
		return "", err
	}
	if s.dirLock, err = os.Create(filepath.Join(dir, "in-use")); err != nil {
		return "", err
	}
	if err := syscall.Flock(int(s.dirLock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return "", err
	}
	s.dir = dir
	return dir, nil
}

func (s *servers) remove() error {
	if s.dir == "" {
		return nil
	}
	if s.admin != nil {
		s.admin.Close()
	}
	var err error
	if s.bouncer != nil {
		err = s.bouncer.Remove()
	}
	if s.pair != nil {
		err = errors.Join(err, s.pair.Remove())
	}
	if rmErr := os.RemoveAll(s.dir); err == nil {
		err = rmErr
	}
	return err
}

const dirPrefix = "muster-test-"

// sweep removes what killed test binaries left behind: their servers died with them, their directories did not.
func sweep() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), dirPrefix+"*")) // the pattern is well formed
	for _, dir := range dirs {
		f, err := os.Open(filepath.Join(dir, "in-use"))
		if err != nil {
			continue // another user's, or made this instant
		}
		info, err := f.Stat()
		// A minute: between making the file and locking it its owner looks dead.
		if err == nil && time.Since(info.ModTime()) > time.Minute && syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			links, _ := filepath.Glob(filepath.Join(dir, "postgres"))
			more, _ := filepath.Glob(filepath.Join(dir, "*", "postgres"))
			for _, link := range append(links, more...) {
				if target, err := os.Readlink(link); err == nil && strings.HasPrefix(target, "/var/lib/muster-") {
					_ = os.RemoveAll(target)
				}
			}
			_ = os.RemoveAll(dir)
		}
		f.Close()
	}
}

// makeDatabase makes the owner where it is missing, a database of its, and migrates it.
func makeDatabase(ctx context.Context, p *privateservers.Postgres, database string) error {
	admin, err := sql.Open("postgres", p.URL("postgres"))
	if err != nil {
		return err
	}
	defer admin.Close()
	for _, statement := range []string{
		"CREATE ROLE " + RoleOwner + " LOGIN CREATEROLE NOSUPERUSER NOBYPASSRLS PASSWORD " + pq.QuoteLiteral(password),
		"CREATE DATABASE " + database + " OWNER " + RoleOwner,
	} {
		if _, err := admin.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("make test database: %w", err)
		}
	}
	passwords := store.RolePasswords{API: password, Worker: password, System: password}
	if _, err := store.Migrate(ctx, p.URLAs(RoleOwner, password, database), passwords); err != nil {
		return fmt.Errorf("migrate test database: %w", err)
	}
	return nil
}

func newEnv(t testing.TB, p *privateservers.Postgres, database, redisURL string) *Env {
	env := &Env{
		postgres:  p,
		handles:   map[string]*sqlx.DB{},
		Database:  database,
		OwnerURL:  p.URLAs(RoleOwner, password, database),
		APIURL:    p.URLAs(store.RoleAPI, password, database),
		WorkerURL: p.URLAs(store.RoleWorker, password, database),
		SystemURL: p.URLAs(store.RoleSystem, password, database),
		AdminURL:  p.URL(database),
		RedisURL:  redisURL,
	}
	t.Cleanup(env.close)
	return env
}
