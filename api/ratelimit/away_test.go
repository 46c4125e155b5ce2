package ratelimit

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/api/logtest"
	"github.com/generic-corp/muster/store/storetest"
)

// generous is what a decision may take on a machine that is busy with other tests; a calm one stays below 50 ms, see the
// figures that are logged.
const generous = time.Second

// outage is a Limiter as it runs in production, on a Redis that the test may break.
type outage struct {
	*Limiter
	t   *testing.T
	own *storetest.Servers
	rdb *redis.Client
	log *logtest.Log
}

func newOutage(t *testing.T) *outage {
	t.Helper()
	own := storetest.OwnServers(t)
	o := &outage{t: t, own: own, rdb: own.Redis(t), log: &logtest.Log{}}
	o.Limiter = newLimiter(t, o.rdb, func(cfg *Config) {
		cfg.Timeout, cfg.Log, cfg.Metrics = DefaultTimeout, zerolog.New(o.log), prometheus.NewRegistry()
	})
	return o
}

// timed takes n times and returns the slowest of the first and of all others.
func (o *outage) timed(n int, take func(i int)) (first, rest time.Duration) {
	for i := range n {
		began := time.Now()
		take(i)
		if took := time.Since(began); i == 0 {
			first = took
		} else {
			rest = max(rest, took)
		}
	}
	return first, rest
}

func (o *outage) awaitBack() {
	o.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); o.away.is.Load(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			o.t.Fatal("Redis is back and not asked")
		}
	}
}

func TestWhileRedisIsAway(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]struct {
		breakIt, mendIt func(o *outage) error
	}{
		"Killed": {
			func(o *outage) error { return o.own.RedisServer.Kill() },
			func(o *outage) error { return o.own.RedisServer.Restart(context.Background()) },
		},
		"Frozen": { // takes connections and answers nothing
			func(o *outage) error { return o.own.RedisServer.Signal(syscall.SIGSTOP) },
			func(o *outage) error { return o.own.RedisServer.Signal(syscall.SIGCONT) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOutage(t)
			ctx := t.Context()
			if d := o.Take(ctx, Open, hourly("ws", 100)); !d.Allowed || d.Away {
				// A stall at the start of a busy machine; not what is tested.
				o.awaitBack()
			}
			if err := fault.breakIt(o); err != nil {
				t.Fatal(err)
			}
			reads := 0
			first, rest := o.timed(200, func(i int) {
				if d := o.Take(ctx, Open, hourly("reader", 150)); d.Allowed && d.Away {
					reads++
				}
			})
			t.Logf("first decision after %s, the slowest of 199 others after %s", first, rest)
			if first > generous || rest > generous/2 {
				t.Errorf("decided after %s, then %s; promised are 50 ms", first, rest)
			}
			if open := testutil.ToFloat64(o.metrics.open.WithLabelValues("workspace")); reads != 200 || open != 50 {
				t.Errorf("%d of 200 reads served, %v counted as beyond the limit of 150", reads, open)
			}
			signIns := 0
			var last Decision
			for range 30 {
				if last = o.Take(ctx, Closed, hourly("address", 10)); last.Allowed {
					signIns++
				}
			}
			if signIns != 10 || !last.Unavailable() || last.RetryAfter <= 0 {
				t.Errorf("%d sign-ins let on of this process's own 10, then %v", signIns, last)
			}
			if d := o.Take(ctx, Open, hourly("reader", 150).weighing(151)); d.Allowed || d.RetryAfter != Never || d.Unavailable() {
				t.Errorf("a weight above its limit: %v", d)
			}
			if away := testutil.ToFloat64(o.metrics.away); away != 1 {
				t.Errorf("the alarm gauge is %v", away)
			}

			if err := fault.mendIt(o); err != nil {
				t.Fatal(err)
			}
			o.awaitBack()
			if away := testutil.ToFloat64(o.metrics.away); away != 0 {
				t.Errorf("the alarm gauge is still %v", away)
			}
			if d := o.Take(ctx, Open, hourly("reader", 150)); !d.Away && d.Allowed {
				t.Error("what was served meanwhile does not count")
			}
			if d := o.Take(ctx, Closed, hourly("address", 11)); !d.Away && (!d.Allowed || d.Standings[0].Remaining != 0) {
				t.Errorf("ten of eleven were used meanwhile: %v", d)
			}
			outages := int(testutil.ToFloat64(o.metrics.outages))
			if lost, back := strings.Count(o.log.String(), "does not keep"), strings.Count(o.log.String(), "again"); lost != outages || back > outages || lost > 5 {
				t.Errorf("logged %d times lost and %d times back in %d outages", lost, back, outages)
			}
		})
	}
}

func TestARedisThatWasNeverThere(t *testing.T) {
	t.Parallel()
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	defer rdb.Close()
	l := newLimiter(t, rdb, func(cfg *Config) { cfg.Timeout = DefaultTimeout })
	began := time.Now()
	d := l.Take(t.Context(), Open, hourly("ws", 1))
	if took := time.Since(began); !d.Allowed || !d.Away || took > generous {
		t.Errorf("%v after %s", d, took)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if d := l.Take(t.Context(), Closed, hourly("ws", 1)); !d.Unavailable() {
		t.Errorf("after Close: %v", d)
	}
}

func TestAnErrorOfRedisIsAnOutageToo(t *testing.T) {
	t.Parallel()
	rdb := newRedis(t)
	l := newLimiter(t, rdb, nil)
	if err := rdb.Set(t.Context(), l.store.key(hourly("ws", 1)), "no hash", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if d := l.Take(t.Context(), Open, hourly("ws", 1)); !d.Allowed || !d.Away {
		t.Errorf("%v", d)
	}
}

func TestAClientThatLeavesIsNoOutage(t *testing.T) {
	t.Parallel()
	l := newLimiter(t, newRedis(t), nil)
	ctx, leave := context.WithCancel(t.Context())
	leave()
	if d := l.Take(ctx, Open, hourly("ws", 1)); !d.Allowed || d.Away {
		t.Errorf("%v", d)
	}
	if d := l.Take(t.Context(), Open, hourly("ws", 1)); d.Allowed || d.Away {
		t.Errorf("the request of a client that left did not count: %v", d)
	}
}

func TestMemoryStaysBoundedWithoutRedis(t *testing.T) {
	t.Parallel()
	l := newLocal(newClock().now)
	for i := range 3 * localKeys {
		l.take([]Charge{hourly(string(rune(i))+"x", 5)})
	}
	if n := l.windows.Len(); n != localKeys {
		t.Errorf("%d windows kept", n)
	}
}
