package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hibiken/asynq"
	"golang.org/x/sync/semaphore"
)

// How fair: flood, many and caps; tiers are in case_tiers.go.

// flood: A sends 5,000 tasks of 10 ms, then B its first ten, same tier, 10 slots: how long B's first waits.

const floodTasks, floodTask = 5_000, 10 * time.Millisecond

// floodAgent takes its time and tells who has begun.
type floodAgent struct {
	begun  chan struct{}  // one for each task of a's
	firstB chan time.Time // each task of b's
}

func newFloodAgent() *floodAgent {
	return &floodAgent{make(chan struct{}, floodTasks), make(chan time.Time, 10)}
}

// floodUnderWay is how many of a's tasks have begun when b's come.
func floodUnderWay(scale int) int { return min(100, floodTasks/scale/5) }

func (a *floodAgent) run(ctx context.Context, b bool) {
	if b {
		a.firstB <- time.Now()
	} else {
		a.begun <- struct{}{}
	}
	pause(ctx, floodTask)
}

// wait lets a's tasks run for a while and returns when b's first began after send was called.
func (a *floodAgent) wait(scale int, send func()) []figure {
	for range floodUnderWay(scale) {
		<-a.begun
	}
	at := time.Now()
	send()
	return []figure{{"B waits", ms((<-a.firstB).Sub(at)), "ms"}}
}

func floodMuster(h *host, scale int) []figure {
	f, agent := newFleet(h), newFloodAgent()
	ws := f.workspaces(2, "pro")
	f.submit(ws[0], floodTasks/scale)
	f.work(10, func(ctx context.Context, who *tenant) { agent.run(ctx, who == ws[1]) })
	figures := agent.wait(scale, func() { f.submit(ws[1], 10) })
	f.check()
	return figures
}

func floodAsynq(h *host, scale int) []figure {
	client, serve := newAsynq(h)
	agent := newFloodAgent()
	fill(h, client, floodTasks/scale, "a")
	serve(10, asynqTuned, func(ctx context.Context, t *asynq.Task) error { agent.run(ctx, string(t.Payload()) == "b"); return nil })
	return agent.wait(scale, func() { fill(h, client, 10, "b") })
}

func floodRiver(h *host, scale int) []figure {
	agent := newFloodAgent()
	client, start := newRiver(h, 10, true, func(ctx context.Context, who string) { agent.run(ctx, who == "b") })
	insertJobs(h, client, floodTasks/scale, "a")
	start()
	return agent.wait(scale, func() { insertJobs(h, client, 10, "b") })
}

// many: 1,000 Starter workspaces with a backlog each of 20 ms tasks, 50 slots, for a minute; then a newcomer.

func manyMuster(h *host, scale int) []figure {
	const slots, each = 50, 200
	f, n := newFleet(h), 1000/scale
	all := f.clones(n, "starter")
	newcomer := f.workspaces(1, "starter")[0]
	f.load(all, n*each, "")
	var s starts
	came := make(chan struct{})
	f.work(slots, func(ctx context.Context, who *tenant) {
		s.add(who)
		if who == newcomer {
			close(came)
		}
		pause(ctx, 20*time.Millisecond)
	})
	time.Sleep(max(60*time.Second/time.Duration(scale), time.Second)) // ten rounds and more
	at, from := time.Now(), s.len()
	f.submit(newcomer, 1)
	<-came
	waited, most := time.Since(at), s.mostBefore(newcomer, from)
	f.check() // nothing starts any more
	fairness, err := jain(slices.DeleteFunc(s.order, func(who *tenant) bool { return who == newcomer }), n, 10)
	h.must(err)
	return []figure{{"newcomer waits", ms(waited), "ms"}, {"most starts of another before the newcomer's", float64(most), ""},
		{"Jain's index, worst ten rounds", fairness, ""}}
}

// starts is the order in which tasks began.
type starts struct {
	mu    sync.Mutex
	order []*tenant
}

func (s *starts) add(who *tenant) {
	s.mu.Lock()
	s.order = append(s.order, who)
	s.mu.Unlock()
}

func (s *starts) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.order)
}

// mostBefore is how many tasks anybody started from an index to the newcomer's first.
func (s *starts) mostBefore(newcomer *tenant, from int) (most int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	counts := map[*tenant]int{}
	for _, who := range s.order[from:] {
		if who == newcomer {
			break
		}
		counts[who]++
		most = max(most, counts[who])
	}
	return most
}

// jain is the lowest fairness index of n workspaces' starts, (sum of counts)² over n times the sum of counts², over every
// window of so many rounds; a round is n starts. The window slides by one start, and with it the sum of squares: (c+1)² - c²
// is 2c+1. R. Jain, D. Chiu, W. Hawe: A Quantitative Measure of Fairness (1984).
func jain(order []*tenant, n, rounds int) (worst float64, err error) {
	size := n * rounds
	if len(order) < size || size == 0 {
		return 0, fmt.Errorf("%d starts of %d workspaces are fewer than %d rounds: nobody can tell how fair they are", len(order), n, rounds)
	}
	counts, squares, most := make(map[*tenant]int, n), 0, 0 // most: the highest sum of squares of a whole window
	for i, who := range order {
		squares += 2*counts[who] + 1
		counts[who]++
		if i >= size {
			gone := order[i-size]
			squares -= 2*counts[gone] - 1
			counts[gone]--
		}
		if i >= size-1 {
			most = max(most, squares)
		}
	}
	return float64(size) * float64(size) / (float64(n) * float64(most)), nil
}

// caps: 50 workspaces at cap 3, 40 tasks of 50 ms each, 100 slots, submitted tenant after tenant.

const capsTenants, capsEach, capsCap, capsSlots, capsTask = 50, 40, 3, 100, 50 * time.Millisecond

// capsFigures: the ideal makespan is bounded by each tenant's cap and by the slots.
func capsFigures(took time.Duration, each int, wasted, violations float64) []figure {
	ideal := max(time.Duration((each+capsCap-1)/capsCap)*capsTask, time.Duration(capsTenants*each)*capsTask/capsSlots)
	return []figure{{"makespan over ideal", float64(took) / float64(ideal), "x"}, {"wasted dispatches", wasted, ""}, {"cap violations", violations, ""}}
}

// capsMuster: check fails at the first violation.
func capsMuster(h *host, scale int) []figure {
	f, each := newFleet(h), max(1, capsEach/scale)
	ws := f.capped(capsTenants, capsCap)
	c := newCountdown(capsTenants * each)
	f.work(capsSlots, func(ctx context.Context, _ *tenant) { pause(ctx, capsTask); c.tick() })
	time.Sleep(300 * time.Millisecond) // idle
	began := time.Now()
	for _, t := range ws {
		f.submit(t, each)
	}
	<-c.done
	took := time.Since(began)
	f.settled(c, capsTenants*each)
	wasted := f.emptyClaims()
	f.check()
	return capsFigures(took, each, wasted, 0)
}

var errBusy = errors.New("the tenant is at its cap")

// capsAsynq is the usual way, as in Asynq's own example of a rate limit: a semaphore per tenant in the handler, whoever
// finds it taken is tried again a second later and has not failed. Tuned, the wait is as short as Asynq can make it.
func capsAsynq(tuned bool) func(h *host, scale int) []figure {
	cfg := asynq.Config{IsFailure: func(err error) bool { return !errors.Is(err, errBusy) },
		RetryDelayFunc: func(int, error, *asynq.Task) time.Duration { return time.Second }}
	if tuned {
		cfg.TaskCheckInterval, cfg.DelayedTaskCheckInterval = 10*time.Millisecond, 100*time.Millisecond
	}
	return func(h *host, scale int) []figure {
		client, serve := newAsynq(h)
		each := max(1, capsEach/scale)
		var wasted, violations atomic.Int64
		c := newCountdown(capsTenants * each)
		var semaphores, running sync.Map // by tenant
		serve(capsSlots, cfg, func(ctx context.Context, task *asynq.Task) error {
			who := string(task.Payload())
			v, _ := semaphores.LoadOrStore(who, semaphore.NewWeighted(capsCap))
			s := v.(*semaphore.Weighted)
			if !s.TryAcquire(1) {
				wasted.Add(1)
				return errBusy
			}
			defer s.Release(1)
			v, _ = running.LoadOrStore(who, new(atomic.Int64))
			if n := v.(*atomic.Int64); n.Add(1) > capsCap {
				violations.Add(1)
			}
			pause(ctx, capsTask)
			v.(*atomic.Int64).Add(-1)
			c.tick()
			return nil
		})
		began := time.Now()
		for i := range capsTenants {
			for range each {
				_, err := client.Enqueue(asynq.NewTask("job", []byte(fmt.Sprint(i))), asynq.MaxRetry(1000))
				h.must(err)
			}
		}
		<-c.done
		return capsFigures(time.Since(began), each, float64(wasted.Load()), float64(violations.Load()))
	}
}
