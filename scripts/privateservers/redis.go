//go:build unix

// A private Redis: configured by a file that holds its port and password, with or without an append-only file.

package privateservers

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/generic-corp/muster/worker/childprocess"
)

// RedisDatabases is how many numbered databases a private Redis has; each test takes one of its own.
const RedisDatabases = 4096

// RedisConfig describes the server; the zero value is right for tests and forgets everything when it stops.
type RedisConfig struct {
	AppendOnly bool // true: keep the data over a restart, losing at most about one second of writes
	Port       int  // 0: the one used last time if it is free, else any free one

	Env []string // more environment of the server, such as "LD_PRELOAD=…"

	password string   // "": one of its own
	sentinel bool     // it watches others (--sentinel)
	more     []string // further lines of its configuration
}

// Redis is a private server. Its methods may be called by one goroutine at a time.
type Redis struct {
	cfg      RedisConfig
	dir      string
	bin      string
	port     int
	password string
	proc     *childprocess.Process
	lock     *os.File
}

// StartRedis starts the server whose data lies under dir. It returns when the server answers. The context bounds the
// start only.
func StartRedis(ctx context.Context, dir string, cfg RedisConfig) (_ *Redis, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("redis did not answer within %s", startLimit))
	defer cancel()
	if dir, err = makeDir(dir); err != nil {
		return nil, err
	}
	r := &Redis{cfg: cfg, dir: dir}
	if r.lock, err = lockDir(dir, "redis"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			unlock(r.lock)
		}
	}()
	if r.bin, err = FindRedis(); err != nil {
		return nil, err
	}
	if err := os.Mkdir(r.dataDir(), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make data directory: %w", err)
	}
	lastPort, err := r.readConfig()
	if err != nil {
		return nil, err
	}
	if cfg.password != "" {
		r.password = cfg.password
	} else if r.password == "" {
		r.password = newPassword()
	} else if lastPort > 0 {
		r.endOrphan(ctx, lastPort)
	}
	if r.port, err = launchOnPort(cfg.Port, lastPort, func(port int) error { r.port = port; return r.launch(ctx) }); err != nil {
		return nil, err
	}
	return r, nil
}

// Addr is host:port.
func (r *Redis) Addr() string { return loopback(r.port) }

// Port is the port on 127.0.0.1; it stays the same over Restart.
func (r *Redis) Port() int { return r.port }

// LogFile is the server's log.
func (r *Redis) LogFile() string { return filepath.Join(r.dir, "redis.log") }

// URL is the connection string for one numbered database, 0 to RedisDatabases-1.
func (r *Redis) URL(database int) string {
	u := url.URL{Scheme: "redis", User: url.UserPassword("", r.password), Host: r.Addr(), Path: "/" + strconv.Itoa(database)}
	return u.String()
}

// Stop shuts the server down. With AppendOnly the data stays, without it is gone.
func (r *Redis) Stop(ctx context.Context) error {
	err := r.proc.End(ctx, 5*time.Second, syscall.SIGTERM, syscall.SIGKILL)
	r.unlock()
	return err
}

// Kill is kill -9 of the server; it returns when the process is gone.
func (r *Redis) Kill() error { return r.proc.End(context.Background(), 0, syscall.SIGKILL) }

// Signal sends sig and does not wait: SIGSTOP makes a server that accepts connections and answers nothing, until
// SIGCONT.
func (r *Redis) Signal(sig syscall.Signal) error { return r.proc.Signal(sig) }

// Restart starts the server again on the same port, ending it first where it still runs.
func (r *Redis) Restart(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("redis did not answer within %s", startLimit))
	defer cancel()
	if err := r.proc.End(ctx, 5*time.Second, syscall.SIGTERM, syscall.SIGKILL); err != nil {
		return err
	}
	if r.lock == nil {
		if r.lock, err = lockDir(r.dir, "redis"); err != nil {
			return err
		}
	}
	return r.launch(ctx)
}

// Forget deletes the data of a server that was killed, as if its disk were lost: Restart starts an empty one.
func (r *Redis) Forget() error {
	if err := os.RemoveAll(r.dataDir()); err != nil {
		return err
	}
	return os.Mkdir(r.dataDir(), 0o700)
}

// Remove ends the server at once and deletes its data.
func (r *Redis) Remove() error {
	err := r.Kill()
	r.unlock()
	return errors.Join(err, os.RemoveAll(r.dataDir()), os.RemoveAll(r.configFile()))
}

func (r *Redis) dataDir() string    { return filepath.Join(r.dir, "redis") }
func (r *Redis) configFile() string { return filepath.Join(r.dir, "redis.conf") }

func (r *Redis) unlock() {
	if r.lock != nil {
		unlock(r.lock)
		r.lock = nil
	}
}

func (r *Redis) launch(ctx context.Context) (err error) {
	if err := r.writeConfig(); err != nil {
		return err
	}
	var before int64
	if info, err := os.Stat(r.LogFile()); err == nil {
		before = info.Size()
	}
	argv := []string{r.bin, r.configFile()}
	if r.cfg.sentinel {
		argv = append(argv, "--sentinel")
	}
	if r.proc, err = startServer(argv, r.dir, r.LogFile(), nil, syscall.SIGTERM, r.cfg.Env...); err != nil {
		return fmt.Errorf("start Redis: %w", err)
	}
	port := r.port // as it is now, see answers
	err = poll(ctx, r.proc, func(ctx context.Context) error { return r.command(ctx, port, "PING", "+PONG") })
	if err == nil {
		return nil
	}
	_ = r.proc.End(context.Background(), 0, syscall.SIGKILL)
	log, _ := os.ReadFile(r.LogFile())
	if bytes.Contains(log[min(before, int64(len(log))):], []byte("Address already in use")) {
		return fmt.Errorf("start Redis on %s: %w", r.Addr(), errPortTaken)
	}
	return fmt.Errorf("start Redis: %w; end of %s:%s", err, r.LogFile(), logTail(r.LogFile()))
}

// command sends one inline command after the password and reports whether the server answered want. A client library
// would hide a refused connection behind retries and a log of its own.
func (r *Redis) command(ctx context.Context, port int, command, want string) error {
	answer, err := r.ask(ctx, port, command)
	if err == nil && answer != want {
		err = fmt.Errorf("the server answered %q", answer)
	}
	return err
}

// ask is command for any answer; it returns the answer's first line.
func (r *Redis) ask(ctx context.Context, port int, command string) (answer string, err error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp4", loopback(port))
	if err != nil {
		return "", err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if _, err := fmt.Fprintf(conn, "AUTH %s\r\n%s\r\n", r.password, command); err != nil {
		return "", err
	}
	answers := bufio.NewReader(conn)
	for _, want := range []string{"+OK", ""} {
		if answer, err = answers.ReadString('\n'); err != nil {
			return "", err
		}
		if answer = strings.TrimSpace(answer); want != "" && answer != want {
			return "", fmt.Errorf("the server answered %q", answer)
		}
	}
	return answer, nil
}

func (r *Redis) writeConfig() error {
	appendOnly := "no"
	if r.cfg.AppendOnly {
		appendOnly = "yes"
	}
	lines := []string{"bind 127.0.0.1", "protected-mode yes", "port " + strconv.Itoa(r.port), "requirepass " + r.password,
		"dir " + strconv.Quote(r.dataDir()), "daemonize no"}
	if !r.cfg.sentinel {
		lines = append(lines, "databases "+strconv.Itoa(RedisDatabases), `save ""`, "appendonly "+appendOnly, "appendfsync everysec", "maxmemory-policy noeviction")
	}
	return writeSecret(r.configFile(), strings.Join(append(lines, r.cfg.more...), "\n")+"\n")
}

// readConfig takes the password and returns the port of the last start, if there was one.
func (r *Redis) readConfig() (port int, err error) {
	b, err := os.ReadFile(r.configFile())
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read redis.conf: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		switch name, value, _ := strings.Cut(strings.TrimSpace(line), " "); name {
		case "port":
			port, _ = strconv.Atoi(value)
		case "requirepass":
			r.password = value
		}
	}
	return port, nil
}

// endOrphan ends a server that outlived the process that started it. Only ours knows the password.
func (r *Redis) endOrphan(ctx context.Context, port int) {
	first, cancel := context.WithTimeout(ctx, 500*time.Millisecond) // another program may hold the port and say nothing
	defer cancel()
	if r.command(first, port, "PING", "+PONG") != nil {
		return
	}
	ctx, cancel = context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_ = r.command(ctx, port, "SHUTDOWN", "") // answers with a closed connection
	for r.command(ctx, port, "PING", "+PONG") == nil && ctx.Err() == nil {
		time.Sleep(10 * time.Millisecond)
	}
}
