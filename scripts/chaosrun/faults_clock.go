//go:build unix

package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/generic-corp/muster/scripts/chaosrun/steppedclock"
)

// Faults of wall clocks. Monotonic ones never step, in life either.
var clockFaults = []fault{
	{"clock-steps", "Postgres' clock is set 60 s ahead, right, 60 s behind, and right again", 50 * time.Second, stepPostgres},
	{"clock-steps-redis", "Redis' clock is set 60 s ahead, right, 60 s behind, and right again", 50 * time.Second, stepRedis},
	{"clock-steps-muster", "the clocks of Muster's processes are set 60 s ahead, some ahead and some behind, 60 s behind, and right again",
		30 * time.Second, stepOurs},
}

// serverClock steps what a server takes for the time: it runs under libfaketime, which reads the offset from a file.
type serverClock struct{ library, file string }

// newServerClock finds libfaketime. The offset's file is named for the server.
func newServerClock(dir, server string) (*serverClock, error) {
	for _, pattern := range []string{"/usr/lib/*/faketime/libfaketime.so.1", "/usr/lib/faketime/libfaketime.so.1", "/usr/local/lib/faketime/libfaketime.so.1"} {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			c := &serverClock{library: found[0], file: filepath.Join(dir, server+"-clock")}
			return c, c.set(0)
		}
	}
	return nil, fmt.Errorf("libfaketime is not installed (apt-get install libfaketime)")
}

// env is the server's environment. Only the wall clock is stepped: the monotonic one never is, in life either. Behind libfaketime
// stands the C library, for its allocator: Debian's Redis has jemalloc, which asks for the time while libfaketime, to tell it, asks for memory.
func (c *serverClock) env() []string {
	return []string{"LD_PRELOAD=" + c.library + ":libc.so.6", "FAKETIME_TIMESTAMP_FILE=" + c.file, "FAKETIME_CACHE_DURATION=1",
		"FAKETIME_DONT_FAKE_MONOTONIC=1", "DONT_FAKE_MONOTONIC=1"}
}

func (c *serverClock) set(offset time.Duration) error {
	return os.WriteFile(c.file, fmt.Appendf(nil, "%+d\n", int(offset.Seconds())), 0o644)
}

func stepPostgres(ctx context.Context, s *stage, f *firing) error {
	return stepServer(ctx, s, f, s.postgresClock, func() (now time.Time, err error) {
		err = s.db.GetContext(ctx, &now, `SELECT clock_timestamp()`)
		return now, err
	})
}

// stepRedis: what has an end by Redis' clock is what is counted for rate limits, and who Asynq says is alive.
func stepRedis(ctx context.Context, s *stage, f *firing) error {
	return stepServer(ctx, s, f, s.redisClock, func() (time.Time, error) { return s.redis.Time(ctx).Result() })
}

// stepServer steps the clock of a server that says what time it is.
func stepServer(ctx context.Context, s *stage, f *firing, clock *serverClock, ask func() (time.Time, error)) error {
	if clock == nil {
		return errNotRun
	}
	off := func() (beyondOurs time.Duration) {
		if now, err := ask(); err == nil {
			beyondOurs = time.Until(now)
		}
		return beyondOurs.Round(time.Second)
	}
	for _, step := range []time.Duration{60 * time.Second, 0, -60 * time.Second, 0} {
		if err := clock.set(step); err != nil {
			return err
		}
		if err := until(ctx, 10*time.Second, fmt.Sprintf("the clock to step to %s", step), func() bool { return (off() - step).Abs() <= 2*time.Second }); err != nil {
			return err
		}
		f.say("it said %+.0f s", off().Seconds())
		if step != 0 {
			f.lift() // everything goes on under a wrong clock
			if err := f.recover(ctx); err != nil {
				return fmt.Errorf("with the clock at %s: %w", step, err)
			}
		}
		pause(ctx, s.between(3*time.Second, 8*time.Second))
	}
	f.lift()
	return nil
}

// stepOurs steps the clocks of our own processes (package steppedclock), each for itself. What leaves a process with a time of
// its wall clock, be it to Redis, to Postgres or to another process, is off by up to two minutes then.
func stepOurs(ctx context.Context, s *stage, f *firing) error {
	if !steppedclock.Supported {
		return errNotRun
	}
	const minute = 60
	for _, step := range []struct {
		what     string
		of, next int // seconds ahead of one process and of the one after it
	}{{"60 s ahead", minute, minute}, {"60 s ahead and behind by turns", minute, -minute}, {"60 s behind", -minute, -minute}, {"right", 0, 0}} {
		at := map[*member]time.Duration{}
		for i, m := range s.members {
			seconds := step.of
			if i%2 == 1 {
				seconds = step.next
			}
			at[m] = time.Duration(seconds) * time.Second
			if err := m.setClock(seconds); err != nil {
				return err
			}
		}
		for m, ahead := range at {
			if err := until(ctx, 60*time.Second, fmt.Sprintf("the clock of %s to be %s ahead", m.name, ahead), func() bool {
				off, ok := m.clockAhead()
				return ok && (off-ahead).Abs() <= 2*time.Second
			}); err != nil {
				return err
			}
		}
		f.say("%d processes were %s", len(at), step.what)
		if step.of == 0 {
			break
		}
		f.lift() // everything goes on under wrong clocks
		if err := f.recover(ctx); err != nil {
			return fmt.Errorf("with clocks %s: %w", step.what, err)
		}
		pause(ctx, s.between(3*time.Second, 8*time.Second))
	}
	f.lift()
	return nil
}

// setClock sets the clock of the member's processes, present and future.
func (m *member) setClock(secondsAhead int) error {
	return os.WriteFile(m.clock, fmt.Appendln(nil, secondsAhead), 0o600)
}

// clockAhead is how far the clock of the member's process is ahead of ours, to about a second; false when it does not answer.
func (m *member) clockAhead() (time.Duration, bool) {
	client := http.Client{Timeout: 2 * time.Second}
	res, err := client.Get("http://" + m.ops + "/health")
	if err != nil {
		return 0, false
	}
	res.Body.Close()
	said, err := http.ParseTime(res.Header.Get("Date"))
	return time.Until(said), err == nil
}
