//go:build unix

// A private PostgreSQL: made by initdb once, started with every setting on its command line, kept in one directory.

package privateservers

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lib/pq"

	"github.com/generic-corp/muster/worker/childprocess"
)

// startLimit bounds one start, crash recovery included, when the caller's context has no earlier deadline.
const startLimit = 60 * time.Second

// PostgresConfig describes the server; the zero value is right for tests: fast, and nothing lost by a kill, only by a
// power cut.
type PostgresConfig struct {
	Fsync    bool              // true: commits survive a power cut; needed where speed is measured or data is kept
	Port     int               // 0: the one used last time if it is free, else any free one
	Settings map[string]string // more settings, or others than our own, such as "synchronous_commit": "off"
	Env      []string          // more environment of the server, such as "LD_PRELOAD=…"
}

// Postgres is a private server. Its methods may be called by one goroutine at a time.
type Postgres struct {
	cfg      PostgresConfig
	dir      string // the caller's
	place    *place
	bin      string
	port     int
	password string
	proc     *childprocess.Process
	lock     *os.File
}

// StartPostgres starts the server whose data lies under dir, making it on the first call. It returns when the server
// answers. The context bounds the start only.
func StartPostgres(ctx context.Context, dir string, cfg PostgresConfig) (_ *Postgres, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("PostgreSQL did not answer within %s", startLimit))
	defer cancel()
	if dir, err = makeDir(dir); err != nil {
		return nil, err
	}
	p := &Postgres{cfg: cfg, dir: dir}
	if p.lock, err = lockDir(dir, "postgres"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			unlock(p.lock)
		}
	}()
	if p.bin, err = FindPostgres(0); err != nil {
		return nil, err
	}
	if p.place, err = findPlace(dir, p.bin); err != nil {
		return nil, err
	}
	lastPort, err := p.prepare(ctx)
	if err != nil {
		return nil, err
	}
	if p.port, err = launchOnPort(cfg.Port, lastPort, func(port int) error { p.port = port; return p.launch(ctx) }); err != nil {
		return nil, err
	}
	if err = p.writePgpass(); err != nil {
		return nil, errors.Join(err, p.Stop(ctx))
	}
	return p, nil
}

// Addr is host:port.
func (p *Postgres) Addr() string { return loopback(p.port) }

// Port is the port on 127.0.0.1; it stays the same over Restart.
func (p *Postgres) Port() int { return p.port }

// DataDir is where the data really lies: under the configured directory, or in /var/lib when the server's user cannot
// reach that one.
func (p *Postgres) DataDir() string { return filepath.Join(p.place.dir, "data") }

// LogFile is the server's log.
func (p *Postgres) LogFile() string { return filepath.Join(p.dir, "postgres.log") }

// Pgpass is a password file for psql: PGPASSFILE=… psql -h 127.0.0.1 -p PORT -U postgres.
func (p *Postgres) Pgpass() string { return filepath.Join(p.dir, "pgpass") }

// URL is the superuser's connection string for a database; every cluster has one named postgres.
func (p *Postgres) URL(database string) string { return p.URLAs("postgres", p.password, database) }

// URLAs is the connection string of another role.
func (p *Postgres) URLAs(user, password, database string) string {
	u := url.URL{Scheme: "postgres", User: url.UserPassword(user, password), Host: p.Addr(), Path: "/" + database, RawQuery: "sslmode=disable"}
	return u.String()
}

// Stop shuts the server down: open transactions are aborted, everything committed is written. The data stays.
func (p *Postgres) Stop(ctx context.Context) error {
	err := p.proc.End(ctx, 10*time.Second, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGKILL)
	p.unlock()
	return err
}

// Kill is kill -9 of the server and of the backends that it has forked, as if the machine had lost power; it returns when
// all of them are gone. (Of the first process alone the backends would serve on until they notice.)
func (p *Postgres) Kill() error {
	if !p.proc.Alive() {
		return nil
	}
	backends := children(p.proc.PID())
	if err := p.proc.End(context.Background(), 0, syscall.SIGKILL); err != nil {
		return err
	}
	for _, pid := range backends {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have left already
	}
	for _, pid := range backends {
		for syscall.Kill(pid, 0) == nil && strings.Contains(commandLine(pid), "postgres") {
			time.Sleep(time.Millisecond)
		}
	}
	return nil
}

// Restart starts the server again on the same data and port, ending it first where it still runs.
func (p *Postgres) Restart(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("PostgreSQL did not answer within %s", startLimit))
	defer cancel()
	if err := p.proc.End(ctx, 10*time.Second, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGKILL); err != nil {
		return err
	}
	if p.lock == nil {
		if p.lock, err = lockDir(p.dir, "postgres"); err != nil {
			return err
		}
	}
	return p.launch(ctx)
}

// Remove ends the server at once and deletes its data.
func (p *Postgres) Remove() error {
	err := p.proc.End(context.Background(), 5*time.Second, syscall.SIGQUIT, syscall.SIGKILL)
	p.unlock()
	return errors.Join(err, p.place.remove())
}

func (p *Postgres) unlock() {
	if p.lock != nil {
		unlock(p.lock)
		p.lock = nil
	}
}

// prepare makes the cluster, or readies an existing one, and returns the port used last (0: none).
func (p *Postgres) prepare(ctx context.Context) (lastPort int, err error) {
	lastPort, p.password, err = p.readPgpass()
	if err != nil {
		return 0, err
	}
	version, err := os.ReadFile(filepath.Join(p.DataDir(), "PG_VERSION"))
	if errors.Is(err, fs.ErrNotExist) {
		return lastPort, p.initdb(ctx)
	}
	if err != nil {
		return 0, fmt.Errorf("read data directory: %w", err)
	}
	if p.password == "" && p.place.link != "" { // Dir was removed to begin anew; what it had moved out was not
		if err := errors.Join(p.endOrphan(ctx), os.RemoveAll(p.DataDir())); err != nil {
			return 0, fmt.Errorf("clear away old data: %w", err)
		}
		return 0, p.initdb(ctx)
	}
	if p.password == "" {
		return 0, fmt.Errorf("%s holds data but %s is missing: put it back, or remove both to begin anew", p.DataDir(), p.Pgpass())
	}
	major, err := strconv.Atoi(strings.TrimSpace(string(version)))
	if err != nil {
		return 0, fmt.Errorf("read data directory: %w", err)
	}
	if p.bin, err = FindPostgres(major); err != nil {
		return 0, err
	}
	return lastPort, p.endOrphan(ctx)
}

// initdb makes the cluster beside its final name, so that an interrupted run leaves nothing that looks whole.
func (p *Postgres) initdb(ctx context.Context) error {
	if p.password == "" {
		p.password = newPassword()
		if err := p.writePgpass(); err != nil {
			return err
		}
	}
	unfinished := filepath.Join(p.place.dir, "data.unfinished")
	pwfile := filepath.Join(p.place.dir, "pwfile")
	if err := errors.Join(os.RemoveAll(unfinished), os.RemoveAll(pwfile), os.WriteFile(pwfile, []byte(p.password+"\n"), 0o600)); err != nil {
		return fmt.Errorf("make data directory: %w", err)
	}
	defer os.Remove(pwfile)
	if c := p.place.cred; c != nil {
		if err := os.Chown(pwfile, int(c.Uid), int(c.Gid)); err != nil {
			return fmt.Errorf("make data directory: %w", err)
		}
	}
	ctype := "C.UTF-8"
	if runtime.GOOS == "darwin" {
		ctype = "en_US.UTF-8"
	}
	args := []string{"--pgdata=" + unfinished, "--username=postgres", "--pwfile=" + pwfile, "--auth=scram-sha-256",
		"--encoding=UTF8", "--locale=C", "--lc-ctype=" + ctype}
	if !p.cfg.Fsync {
		args = append(args, "--no-sync")
	}
	cmd := exec.CommandContext(ctx, filepath.Join(p.bin, "initdb"), args...)
	cmd.Dir, cmd.Env = p.place.dir, serverEnv()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: p.place.cred}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	if err := os.Rename(unfinished, p.DataDir()); err != nil {
		return fmt.Errorf("make data directory: %w", err)
	}
	return nil
}

var errPortTaken = errors.New("the port is taken by another program")

// launch starts the server on p.port and waits until it answers. After a kill -9 the old server's backends may hold its
// shared memory for a moment; the start is then tried again.
func (p *Postgres) launch(ctx context.Context) error {
	for {
		var before int64
		if info, err := os.Stat(p.LogFile()); err == nil {
			before = info.Size()
		}
		var err error
		argv := append([]string{filepath.Join(p.bin, "postgres"), "-D", p.DataDir()}, p.settings()...)
		if p.proc, err = startServer(argv, p.place.dir, p.LogFile(), p.place.cred, syscall.SIGINT, p.cfg.Env...); err != nil {
			return fmt.Errorf("start PostgreSQL: %w", err)
		}
		err = poll(ctx, p.proc, answers(p.URL("postgres"), ";"))
		if err == nil {
			return nil
		}
		_ = p.proc.End(context.Background(), 5*time.Second, syscall.SIGQUIT, syscall.SIGKILL)
		log, _ := os.ReadFile(p.LogFile())
		log = log[min(before, int64(len(log))):]
		switch {
		case bytes.Contains(log, []byte("Address already in use")):
			return fmt.Errorf("start PostgreSQL on %s: %w", p.Addr(), errPortTaken)
		case bytes.Contains(log, []byte("pre-existing shared memory block")) && ctx.Err() == nil:
			time.Sleep(20 * time.Millisecond)
		default:
			return fmt.Errorf("start PostgreSQL: %w; end of %s:%s", err, p.LogFile(), logTail(p.LogFile()))
		}
	}
}

func (p *Postgres) settings() []string {
	s := map[string]string{
		"listen_addresses": "127.0.0.1", "port": strconv.Itoa(p.port), "unix_socket_directories": "",
		"password_encryption": "scram-sha-256", "timezone": "UTC", "log_timezone": "UTC", "log_line_prefix": "%m [%p] %u@%d ",
		"max_connections": "300", "shared_buffers": "128MB", "max_wal_size": "2GB",
	}
	if !p.cfg.Fsync {
		// With fsync off, commits are still handed to the kernel (synchronous_commit stays on): kill -9 loses nothing.
		maps.Copy(s, map[string]string{"fsync": "off", "full_page_writes": "off", "shared_buffers": "64MB",
			"wal_level": "minimal", "max_wal_senders": "0", "checkpoint_timeout": "30min"})
	}
	maps.Copy(s, p.cfg.Settings)
	var args []string
	for _, name := range slices.Sorted(maps.Keys(s)) {
		args = append(args, "-c", name+"="+s[name])
	}
	return args
}

// answers asks a server at a URL, as it is now: a question that hangs may outlive its start, and the next one has another port.
func answers(url, question string) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		connector, err := pq.NewConnector(url + "&connect_timeout=5")
		if err != nil {
			return err
		}
		db := sql.OpenDB(connector)
		defer db.Close()
		_, err = db.ExecContext(ctx, question)
		return err
	}
}

// readPgpass returns the port and password of the last start, or nothing when there was none.
func (p *Postgres) readPgpass() (port int, password string, err error) {
	b, err := os.ReadFile(p.Pgpass())
	if errors.Is(err, fs.ErrNotExist) {
		return 0, "", nil
	}
	if err != nil {
		return 0, "", fmt.Errorf("read password file: %w", err)
	}
	fields := strings.Split(strings.TrimSpace(string(b)), ":")
	if len(fields) != 5 {
		return 0, "", fmt.Errorf("%s is not as we wrote it", p.Pgpass())
	}
	port, _ = strconv.Atoi(fields[1]) // "*" before the first start
	return port, fields[4], nil
}

func (p *Postgres) writePgpass() error {
	port := "*"
	if p.port > 0 {
		port = strconv.Itoa(p.port)
	}
	return writeSecret(p.Pgpass(), fmt.Sprintf("127.0.0.1:%s:*:postgres:%s\n", port, p.password))
}

// writeSecret replaces a file whole, readable by its owner alone.
func writeSecret(file, content string) error {
	tmp := file + ".new"
	if err := os.WriteFile(tmp, []byte(content), 0o600); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(file), err)
	}
	return os.Rename(tmp, file)
}

// makeDir makes the caller's directory and returns its absolute path. Others may pass through it: what is secret in it
// has modes of its own.
func makeDir(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("find directory: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make directory: %w", err)
	}
	return dir, nil
}

func newPassword() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
