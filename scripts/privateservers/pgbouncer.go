//go:build unix

// A private PgBouncer in front of a private PostgreSQL: one configuration file, transaction mode, no state.

package privateservers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/generic-corp/muster/worker/childprocess"
)

// PgBouncerConfig says who may pass and how few connections they share.
type PgBouncerConfig struct {
	Users    map[string]string // the roles' passwords; others are refused
	PoolSize int               // connections to PostgreSQL per role and database; 0 means 4
}

// PgBouncer is a private server. It pools by transaction.
type PgBouncer struct {
	postgres *Postgres
	cfg      PgBouncerConfig
	dir      string
	bin      string
	port     int
	proc     *childprocess.Process
}

// StartPgBouncer starts a PgBouncer in front of p, which must run, and returns when it answers. It forwards any database
// name. Each call makes another one; it lives until Remove, or until our process ends. The context bounds the start only.
func (p *Postgres) StartPgBouncer(ctx context.Context, cfg PgBouncerConfig) (_ *PgBouncer, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("PgBouncer did not answer within %s", startLimit))
	defer cancel()
	if cfg.PoolSize == 0 {
		cfg.PoolSize = 4
	}
	b := &PgBouncer{postgres: p, cfg: cfg}
	if b.bin, err = FindPgBouncer(); err != nil {
		return nil, err
	}
	// PgBouncer refuses to run as root like PostgreSQL: it runs as the same user, in a place that this user can reach.
	if b.dir, err = os.MkdirTemp(p.place.dir, "pgbouncer-"); err != nil {
		return nil, fmt.Errorf("make PgBouncer's directory: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(b.dir)
		}
	}()
	if b.port, err = launchOnPort(0, 0, func(port int) error { b.port = port; return b.launch(ctx) }); err != nil {
		return nil, err
	}
	return b, nil
}

// Addr is host:port.
func (b *PgBouncer) Addr() string { return loopback(b.port) }

// URLAs is the connection string of a role through the pool.
func (b *PgBouncer) URLAs(user, password, database string) string {
	u := url.URL{Scheme: "postgres", User: url.UserPassword(user, password), Host: b.Addr(), Path: "/" + database, RawQuery: "sslmode=disable"}
	return u.String()
}

// Remove ends the server at once and deletes its files.
func (b *PgBouncer) Remove() error {
	err := b.proc.End(context.Background(), 5*time.Second, syscall.SIGTERM, syscall.SIGKILL)
	return errors.Join(err, os.RemoveAll(b.dir))
}

func (b *PgBouncer) logFile() string { return filepath.Join(b.dir, "pgbouncer.log") }

func (b *PgBouncer) launch(ctx context.Context) (err error) {
	if err := b.writeConfig(); err != nil {
		return err
	}
	if b.proc, err = startServer([]string{b.bin, filepath.Join(b.dir, "pgbouncer.ini")}, b.dir, b.logFile(), b.postgres.place.cred, syscall.SIGTERM); err != nil {
		return fmt.Errorf("start PgBouncer: %w", err)
	}
	user := slices.Sorted(maps.Keys(b.cfg.Users))[0] // at PgBouncer's own console, which needs no database
	if err = poll(ctx, b.proc, answers(b.URLAs(user, b.cfg.Users[user], "pgbouncer"), "SHOW VERSION")); err == nil {
		return nil
	}
	_ = b.proc.End(context.Background(), 0, syscall.SIGKILL)
	if log, _ := os.ReadFile(b.logFile()); bytes.Contains(log, []byte("in use")) {
		return fmt.Errorf("start PgBouncer on %s: %w", b.Addr(), errPortTaken)
	}
	return fmt.Errorf("start PgBouncer: %w; end of %s:%s", err, b.logFile(), logTail(b.logFile()))
}

// writeConfig writes what docs/operations.md promises to work with, on a port of its own.
func (b *PgBouncer) writeConfig() error {
	users := slices.Sorted(maps.Keys(b.cfg.Users))
	var list strings.Builder
	for _, user := range users {
		fmt.Fprintf(&list, "%q %q\n", user, b.cfg.Users[user])
	}
	ini := strings.Join([]string{
		"[databases]",
		"* = host=127.0.0.1 port=" + strconv.Itoa(b.postgres.port),
		"[pgbouncer]",
		"listen_addr = 127.0.0.1",
		"listen_port = " + strconv.Itoa(b.port),
		"unix_socket_dir =",
		"auth_type = scram-sha-256",
		"auth_file = " + filepath.Join(b.dir, "userlist.txt"),
		"stats_users = " + strings.Join(users, ", "),
		"pool_mode = transaction",
		"default_pool_size = " + strconv.Itoa(b.cfg.PoolSize),
		"max_client_conn = 2000",
		"",
	}, "\n")
	files := map[string]string{"pgbouncer.ini": ini, "userlist.txt": list.String()}
	for name, content := range files {
		file := filepath.Join(b.dir, name)
		if err := writeSecret(file, content); err != nil {
			return err
		}
		if err := b.own(file); err != nil {
			return err
		}
	}
	return b.own(b.dir)
}

// own gives a file to the user whom PgBouncer runs as.
func (b *PgBouncer) own(file string) error {
	c := b.postgres.place.cred
	if c == nil {
		return nil
	}
	if err := os.Chown(file, int(c.Uid), int(c.Gid)); err != nil {
		return fmt.Errorf("hand %s to PgBouncer's user: %w", filepath.Base(file), err)
	}
	return nil
}
