//go:build unix

// Package privateservers starts a PostgreSQL and a Redis server of the project's own, a PgBouncer in front of the one where
// it is asked for, and stops them again.
//
// Tests, scripts/dev and the measuring programs use it, so that nobody's system servers on 5432 and 6379 are ever
// touched. It promises: the servers listen on 127.0.0.1 only, on ports that were free, each with a random password that
// only the starting user can read; they end with the process that started them, even when it is killed (on Linux at
// once, elsewhere at the next start in the same directory); data, ports and passwords stay in one directory, so that
// the next start finds them again; and two processes never run servers on one directory.
//
// Of ours it imports childprocess alone.
package privateservers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/generic-corp/muster/worker/childprocess"
)

// Config says where the servers keep their data and what kind of servers they are.
type Config struct {
	Dir      string // holds data, logs, ports and passwords; made when missing; kept when the servers stop
	Postgres PostgresConfig
	Redis    RedisConfig
}

// Servers is a running pair.
type Servers struct {
	Postgres *Postgres
	Redis    *Redis
}

// Start starts both servers at once and returns when both answer. The context bounds the start only.
func Start(ctx context.Context, cfg Config) (*Servers, error) {
	var s Servers
	redisErr := make(chan error, 1)
	go func() {
		var err error
		s.Redis, err = StartRedis(ctx, cfg.Dir, cfg.Redis)
		redisErr <- err
	}()
	var err error
	s.Postgres, err = StartPostgres(ctx, cfg.Dir, cfg.Postgres)
	if err = errors.Join(err, <-redisErr); err != nil {
		return nil, errors.Join(err, s.Stop(context.WithoutCancel(ctx)))
	}
	return &s, nil
}

// Stop stops what runs, letting both servers write down their state. A stopped pair may be stopped again.
func (s *Servers) Stop(ctx context.Context) error {
	var errs []error
	if s.Redis != nil {
		errs = append(errs, s.Redis.Stop(ctx))
	}
	if s.Postgres != nil {
		errs = append(errs, s.Postgres.Stop(ctx))
	}
	return errors.Join(errs...)
}

// Remove ends both servers without ceremony and deletes their data, for servers that lived for one test.
func (s *Servers) Remove() error {
	var errs []error
	if s.Redis != nil {
		errs = append(errs, s.Redis.Remove())
	}
	if s.Postgres != nil {
		errs = append(errs, s.Postgres.Remove())
	}
	return errors.Join(errs...)
}

// unlock gives a lock of lockDir up. Closing the file alone would not: a child that is just being forked somewhere else
// in this process holds a copy of it until it has become another program.
func unlock(f *os.File) {
	_ = syscall.Flock(int(f.Fd()), syscall.LOCK_UN)
	f.Close()
}

// lockDir makes sure that no other process runs the named server on dir. The lock ends with unlock, or with the process.
func lockDir(dir, server string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, server+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		owner := make([]byte, 20)
		n, _ := f.ReadAt(owner, 0) // a hint for the message only
		f.Close()
		return nil, fmt.Errorf("%s in %s is already run by another process (pid %s): stop that one first", server, dir, owner[:n])
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	_ = f.Truncate(0)
	_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())), 0)
	return f, nil
}

// pickPort returns want when it is free on 127.0.0.1, else any free port. Another program may still be faster.
func pickPort(want int) (int, error) {
	if want > 0 {
		if l, err := net.Listen("tcp4", loopback(want)); err == nil {
			return want, l.Close()
		}
	}
	return FreePort()
}

// launchOnPort launches on the port fixed by the caller, or else on the last one or a free one; when another program
// takes a chosen port before the server does, it chooses again.
func launchOnPort(fixed, last int, launch func(port int) error) (port int, err error) {
	if fixed > 0 {
		return fixed, launch(fixed)
	}
	for range 5 {
		if port, err = pickPort(last); err != nil {
			return 0, err
		}
		if err = launch(port); !errors.Is(err, errPortTaken) {
			break
		}
		last = 0
	}
	return port, err
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// poll calls try until it succeeds, ctx ends or the process exits.
func poll(ctx context.Context, p *childprocess.Process, try func(context.Context) error) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		result := make(chan error, 1)
		go func() { result <- try(ctx) }() // it may hang for a while on another program that holds the port
		var err error
		select {
		case err = <-result:
		case <-p.Exited():
			return errExited
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (last: %w)", context.Cause(ctx), err)
		case <-p.Exited():
			return errExited
		case <-tick.C:
		}
	}
}
