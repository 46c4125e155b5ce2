//go:build unix

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"time"

	"github.com/generic-corp/muster/store"
)

// Faults of the servers.
var serverFaults = []fault{
	{"kill-redis-keep", "kill -9 of Redis; started again with its data", 10 * time.Second, killRedis(true)},
	{"kill-redis-lose", "kill -9 of Redis; started again without its data", 14 * time.Second, killRedis(false)},
	{"flush-redis", "FLUSHALL", 12 * time.Second, flushRedis},
	{"restart-postgres", "Postgres is restarted (fast)", 6 * time.Second, restartPostgres(false)},
	{"kill-postgres", "kill -9 of Postgres; started again", 8 * time.Second, restartPostgres(true)},
	{"disk-full", "Postgres' disk is full for 10 s", 20 * time.Second, fillDisk},
}

// turnsInLine waits until turns stand in Redis, for what is lost to be something.
func turnsInLine(ctx context.Context, s *stage) (n int64, err error) {
	for _, m := range s.of("worker") {
		n += int64(m.metric("muster_worker_slots"))
	}
	s.load.burst(6 * int(n))
	err = until(ctx, 30*time.Second, "turns to stand in line", func() bool {
		n = 0
		for _, q := range store.Queues {
			waiting, _ := s.redis.LLen(ctx, "asynq:{"+q+"}:pending").Result()
			n += waiting
		}
		return n >= 3
	})
	return n, err
}

// repaired counts turns that were lost and issued anew, over all schedulers.
func repaired(s *stage) (n float64) {
	for _, m := range s.of("scheduler") {
		n += m.metric("muster_repaired_turns_total")
	}
	return n
}

func flushRedis(ctx context.Context, s *stage, f *firing) error {
	before := repaired(s)
	turns, err := turnsInLine(ctx, s)
	if err != nil {
		return err
	}
	if err := s.redis.FlushAll(ctx).Err(); err != nil {
		return err
	}
	f.lift()
	f.say("%d turns stood in line", turns)
	return f.repairs(ctx, before)
}

// repairs waits until lost turns were issued anew.
func (f *firing) repairs(ctx context.Context, before float64) error {
	if err := until(ctx, 60*time.Second, "lost turns to be issued anew", func() bool { return repaired(f.s) > before }); err != nil {
		return err
	}
	f.say("the first were issued anew %.1f s later", time.Since(f.lifted).Seconds())
	return nil
}

func killRedis(keep bool) func(context.Context, *stage, *firing) error {
	return func(ctx context.Context, s *stage, f *firing) error {
		before := repaired(s)
		turns, err := turnsInLine(ctx, s)
		if err != nil {
			return err
		}
		if err := s.servers.Redis.Kill(); err != nil {
			return err
		}
		if answers(s.servers.Redis.Addr()) {
			return fmt.Errorf("%w: Redis still answers", errNotFired)
		}
		pause(ctx, s.between(200*time.Millisecond, 3*time.Second))
		if !keep {
			if err := s.servers.Redis.Forget(); err != nil {
				return err
			}
		}
		if err := s.servers.Redis.Restart(ctx); err != nil {
			return err
		}
		f.lift()
		f.say("%d turns stood in line", turns)
		if keep {
			return nil
		}
		return f.repairs(ctx, before)
	}
}

func restartPostgres(kill bool) func(context.Context, *stage, *firing) error {
	return func(ctx context.Context, s *stage, f *firing) error {
		var before, after time.Time
		if err := s.db.GetContext(ctx, &before, `SELECT pg_postmaster_start_time()`); err != nil {
			return err
		}
		running := len(s.models.running())
		if kill {
			if err := s.servers.Postgres.Kill(); err != nil {
				return err
			}
			pause(ctx, s.between(200*time.Millisecond, 3*time.Second))
		}
		if err := s.servers.Postgres.Restart(ctx); err != nil {
			return err
		}
		f.lift()
		if err := until(ctx, 30*time.Second, "Postgres to answer", func() bool {
			return s.db.GetContext(ctx, &after, `SELECT pg_postmaster_start_time()`) == nil
		}); err != nil {
			return err
		}
		if !after.After(before) {
			return fmt.Errorf("%w: it is the same server as before", errNotFired)
		}
		f.say("%d agents ran on meanwhile", running)
		return nil
	}
}

// smallDisk is a file system in memory that holds Postgres' data, small enough to be filled.
type smallDisk struct{ dir string }

const diskSize = "size=1200m"

// newSmallDisk mounts it where privateservers will put Postgres' data.
func newSmallDisk(servers string) (*smallDisk, error) {
	dir := filepath.Join(servers, "postgres")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if err := mountTmpfs(dir, diskSize); err != nil {
		return nil, fmt.Errorf("mounting a tmpfs is refused (root is needed, and the right to mount): %w", err)
	}
	return &smallDisk{dir: dir}, nil
}

func (d *smallDisk) remove() error { return unmount(d.dir) }

// fill writes until nothing fits any more; the function makes room again.
func (d *smallDisk) fill() (empty func() error, err error) {
	ballast := filepath.Join(d.dir, "ballast")
	file, err := os.OpenFile(ballast, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	for block := make([]byte, 1<<20); len(block) >= 4096; {
		if _, err := file.Write(block); err != nil {
			block = block[:len(block)/2]
		}
	}
	return func() error { return os.Remove(ballast) }, nil
}

func fillDisk(ctx context.Context, s *stage, f *firing) error {
	if s.disk == nil {
		return errNotRun
	}
	log := func() int {
		raw, _ := os.ReadFile(s.servers.Postgres.LogFile())
		return strings.Count(string(raw), "No space left on device")
	}
	before := log()
	empty, err := s.disk.fill()
	if err != nil {
		return err
	}
	firedErr := until(ctx, 20*time.Second, "Postgres to meet the full disk", func() bool {
		_, _ = s.db.ExecContext(ctx, `SELECT pg_switch_wal()`) // an idle log would need no room for long
		return log() > before
	})
	pause(ctx, 10*time.Second)
	if err := empty(); err != nil {
		return err
	}
	if firedErr != nil {
		return firedErr
	}
	f.say("Postgres met the full disk %d times", log()-before)
	if !answersSQL(ctx, s) { // it gives up when its log does not fit
		f.say("it had ended and was started again")
		if err := s.servers.Postgres.Restart(ctx); err != nil {
			return err
		}
	}
	f.lift()
	return nil
}

// answersSQL says whether Postgres serves within a few seconds.
func answersSQL(ctx context.Context, s *stage) bool {
	return until(ctx, 5*time.Second, "Postgres to serve", func() bool {
		ping, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		return s.db.PingContext(ping) == nil
	}) == nil
}

// errNotRun: the machine does not allow the fault; newStage has said why.
var errNotRun = fmt.Errorf("not run")
