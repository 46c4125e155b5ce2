package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hibiken/asynq"
)

// How fast: drain, through, submit, pick-up and ramp.

// rate is the figures of n tasks that were done in this time; the CPU is of all processes of the bout, servers included.
func rate(n int, since time.Time, before cpu) []figure {
	return []figure{{ratePerSecond, float64(n) / time.Since(since).Seconds(), "/s"}, cpuPerTask(n, before)}
}

// cpuPerTask depends less than a rate on what else the machine does.
func cpuPerTask(n int, before cpu) figure {
	const tick = 10_000 // µs; Linux counts in hundredths of a second for its users everywhere
	return figure{"CPU per task", (readCPU().ours - before.ours) * tick / float64(n), "µs"}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// percentile of sorted waits.
func percentile(sorted []time.Duration, p int) time.Duration {
	return sorted[min(len(sorted)-1, len(sorted)*p/100)]
}

// percentiles of waits, in milliseconds.
func percentiles(waits []time.Duration) []figure {
	slices.Sort(waits)
	return []figure{{"p50", ms(percentile(waits, 50)), "ms"}, {"p99", ms(percentile(waits, 99)), "ms"}}
}

// drain: no-op tasks of 200 Pro workspaces wait, then one worker with 100 slots starts.

const drainTasks, drainWorkspaces = 50_000, 200

func drainMuster(h *host, scale int) []figure {
	f, each := newFleet(h), drainTasks/drainWorkspaces/scale
	n := each * drainWorkspaces
	for _, t := range f.clones(drainWorkspaces, "pro") {
		f.submit(t, each)
	}
	c, before, began := newCountdown(n), readCPU(), time.Now()
	f.work(100, func(context.Context, *tenant) { c.tick() })
	f.settled(c, n)
	figures := rate(n, began, before)
	f.check()
	return figures
}

func drainAsynq(h *host, scale int) []figure {
	client, serve := newAsynq(h)
	n := drainTasks / scale
	fill(h, client, n, "no-op")
	c, before, began := newCountdown(n), readCPU(), time.Now()
	serve(100, asynqTuned, func(context.Context, *asynq.Task) error { c.tick(); return nil })
	<-c.done
	return rate(n, began, before)
}

func drainRiver(tasks int, tuned bool) func(h *host, scale int) []figure {
	return func(h *host, scale int) []figure {
		n := tasks / scale
		c := newCountdown(n)
		client, start := newRiver(h, 100, tuned, func(context.Context, string) { c.tick() })
		insertJobs(h, client, n, "no-op")
		before, began := readCPU(), time.Now()
		start()
		<-c.done
		return rate(n, began, before)
	}
}

// through: batches of 100 over HTTP while a worker runs.

const throughTasks = 20_000

func throughMuster(h *host, scale int) []figure {
	f, n := newFleet(h), throughTasks/scale
	customers := f.serve(16, 20, "pro")
	bodies := make([][]byte, len(customers))
	for i, c := range customers {
		bodies[i] = c.batch(100)
	}
	c := newCountdown(n)
	f.work(100, func(context.Context, *tenant) { c.tick() })
	var next atomic.Int64
	before, began := readCPU(), time.Now()
	crowd(h, 8, func() {
		for i := next.Add(1); i <= int64(n/100); i = next.Add(1) {
			who := int(i) % len(customers)
			h.must(f.send("/v1/tasks/batch", customers[who].token, bodies[who], nil))
			f.sent.Add(100)
		}
	})
	f.settled(c, n)
	figures := rate(n, began, before)
	f.check()
	return figures
}

func throughAsynq(h *host, scale int) []figure {
	client, serve := newAsynq(h)
	n := throughTasks / scale
	c := newCountdown(n)
	serve(100, asynqTuned, func(context.Context, *asynq.Task) error { c.tick(); return nil })
	before, began := readCPU(), time.Now()
	fill(h, client, n, "no-op")
	<-c.done
	return rate(n, began, before)
}

// submit: single requests over 64 connections and 200 workspaces, durable when answered.

func submitMuster(h *host, scale int) []figure {
	const connections = 64
	f, n := newFleet(h), 20_000/scale
	customers := f.serve(connections, 200/scale, "pro")
	bodies := make([][]byte, len(customers))
	for i, c := range customers {
		bodies[i] = []byte(c.task())
	}
	var next atomic.Int64
	var mu sync.Mutex
	var waits []time.Duration
	before, began := readCPU(), time.Now()
	crowd(h, connections, func() {
		var mine []time.Duration
		for i := next.Add(1); i <= int64(n); i = next.Add(1) {
			at, who := time.Now(), int(i)%len(customers)
			h.must(f.send("/v1/tasks", customers[who].token, bodies[who], nil))
			mine = append(mine, time.Since(at))
		}
		mu.Lock()
		waits = append(waits, mine...)
		mu.Unlock()
	})
	figures := append(rate(n, began, before), percentiles(waits)...)
	f.sent.Add(int64(n))
	f.check()
	return figures
}

// pick-up: an idle fleet, one task at a time; Muster from the HTTP request, the peers from their call.

const pickups = 300

func pickupWaits(n int, started chan time.Time, send func()) []figure {
	var waits []time.Duration
	for range n {
		at := time.Now()
		send()
		waits = append(waits, (<-started).Sub(at))
		time.Sleep(15 * time.Millisecond) // let the fleet be idle again
	}
	return percentiles(waits)
}

func pickupMuster(h *host, scale int) []figure {
	f := newFleet(h)
	who, n := f.serve(4, 1, "pro")[0], pickups/scale
	started, c := make(chan time.Time, 1), newCountdown(n)
	f.work(20, func(context.Context, *tenant) { started <- time.Now(); c.tick() })
	figures := pickupWaits(n, started, func() { h.must(f.send("/v1/tasks", who.token, []byte(who.task()), nil)) })
	f.sent.Add(int64(n))
	f.settled(c, n)
	f.check()
	return figures
}

func pickupAsynq(n int, cfg asynq.Config) func(h *host, scale int) []figure {
	return func(h *host, scale int) []figure {
		client, serve := newAsynq(h)
		started := make(chan time.Time, 1)
		serve(20, cfg, func(context.Context, *asynq.Task) error { started <- time.Now(); return nil })
		return pickupWaits(n/scale, started, func() {
			_, err := client.Enqueue(asynq.NewTask("job", nil))
			h.must(err)
		})
	}
}

func pickupRiver(tuned bool) func(h *host, scale int) []figure {
	return func(h *host, scale int) []figure {
		started := make(chan time.Time, 1)
		client, start := newRiver(h, 20, tuned, func(context.Context, string) { started <- time.Now() })
		start()
		return pickupWaits(pickups/scale, started, func() {
			_, err := client.Insert(context.Background(), job{}, nil)
			h.must(err)
		})
	}
}

// ramp: ten tasks of a second in one batch to an idle fleet.

func rampMuster(h *host, _ int) []figure {
	f := newFleet(h)
	who := f.serve(4, 1, "pro")[0]
	started, c := make(chan time.Time, 10), newCountdown(10)
	f.work(20, func(ctx context.Context, _ *tenant) {
		started <- time.Now()
		pause(ctx, time.Second)
		c.tick()
	})
	time.Sleep(500 * time.Millisecond) // idle
	at := time.Now()
	h.must(f.send("/v1/tasks/batch", who.token, who.batch(10), nil))
	f.sent.Add(10)
	var last time.Time
	for range 10 {
		last = <-started
	}
	f.settled(c, 10)
	f.check()
	return []figure{{"all ten run after", ms(last.Sub(at)), "ms"}}
}

// backlogName is how a figure of a backlog is called.
func backlogName(n int) string {
	digits := fmt.Sprint(n)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}
