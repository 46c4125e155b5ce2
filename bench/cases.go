package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/semaphore"

	"github.com/generic-corp/muster/store/storetest"
	"github.com/generic-corp/muster/worker/agent"
)

type pgxTx = pgx.Tx

const musterSystem = "muster"

// bouts are all cases with all who take part, in the table's order.
var bouts = []bout{
	{"drain", musterSystem, drainMuster}, {"drain", asynqSystem, drainAsynq}, {"drain", riverSystem, drainRiver},
	{"through", musterSystem, throughMuster}, {"through", asynqSystem, throughAsynq},
	{"submit", musterSystem, submitMuster},
	{"pick-up", musterSystem, pickupMuster}, {"pick-up", asynqSystem, pickupAsynq}, {"pick-up", riverSystem, pickupRiver},
	{"ramp", musterSystem, rampMuster},
	{"flood", musterSystem, floodMuster}, {"flood", asynqSystem, floodAsynq}, {"flood", riverSystem, floodRiver},
	{"many", musterSystem, manyMuster},
	{"caps", musterSystem, capsMuster}, {"caps", asynqSystem, capsAsynq},
	{"tiers", musterSystem, tiersMuster},
}

func perSecond(n int, since time.Time) []figure {
	return []figure{{"tasks per second", float64(n) / time.Since(since).Seconds(), "/s"}}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// percentiles of waits, in milliseconds.
func percentiles(waits []time.Duration) []figure {
	slices.Sort(waits)
	return []figure{{"p50", ms(waits[len(waits)/2]), "ms"}, {"p99", ms(waits[len(waits)*99/100]), "ms"}}
}

// drain: no-op tasks of 200 Pro workspaces wait, then one worker with 100 slots starts.

const drainTasks, drainWorkspaces = 50_000, 200

func drainMuster(h *host, scale int) []figure {
	f, n := newFleet(h), drainTasks/scale
	for _, ws := range f.workspaces(drainWorkspaces, "pro") {
		f.submit(ws, n/drainWorkspaces, "no-op")
	}
	c := newCountdown(n)
	began := time.Now()
	f.work(100, func(context.Context, agent.Task) { c.tick() })
	f.settled(c, n)
	figures := perSecond(n, began)
	storetest.CheckLedger(h, f.env)
	return figures
}

func drainAsynq(h *host, scale int) []figure {
	client, serve := newAsynq(h)
	n := drainTasks / scale
	for range n {
		_, err := client.Enqueue(asynq.NewTask("job", []byte("no-op")))
		h.must(err)
	}
	c := newCountdown(n)
	began := time.Now()
	serve(100, 10*time.Millisecond, nil, func(context.Context, *asynq.Task) error { c.tick(); return nil })
	<-c.done
	return perSecond(n, began)
}

func drainRiver(h *host, scale int) []figure {
	n := drainTasks / scale
	c := newCountdown(n)
	client, start := newRiver(h, 100, true, func(context.Context, string) { c.tick() })
	insertJobs(h, client, n, "no-op")
	began := time.Now()
	start()
	<-c.done
	return perSecond(n, began)
}

// through: batches of 100 over HTTP while a worker runs.

const throughTasks = 20_000

func throughMuster(h *host, scale int) []figure {
	f, n := newFleet(h), throughTasks/scale
	tenant := f.serve(16)
	tokens := make([]string, 20)
	for i := range tokens {
		_, tokens[i] = tenant("pro")
	}
	c := newCountdown(n)
	f.work(100, func(context.Context, agent.Task) { c.tick() })
	body := []byte(`{"tasks": [` + strings.TrimSuffix(strings.Repeat(`{"prompt": "no-op"},`, 100), ",") + `]}`)
	var next atomic.Int64
	var senders sync.WaitGroup
	began := time.Now()
	for range 8 {
		senders.Go(func() {
			for i := next.Add(1); i <= int64(n/100); i = next.Add(1) {
				h.must(f.send("/v1/tasks/batch", tokens[int(i)%len(tokens)], body, nil))
			}
		})
	}
	senders.Wait()
	f.settled(c, n)
	return perSecond(n, began)
}

func throughAsynq(h *host, scale int) []figure {
	client, serve := newAsynq(h)
	n := throughTasks / scale
	c := newCountdown(n)
	serve(100, 10*time.Millisecond, nil, func(context.Context, *asynq.Task) error { c.tick(); return nil })
	began := time.Now()
	for range 8 {
		go func() {
			for range n / 8 {
				_, err := client.Enqueue(asynq.NewTask("job", []byte("no-op")))
				h.must(err)
			}
		}()
	}
	<-c.done
	return perSecond(n, began)
}

// submit: single requests over 64 connections and 200 workspaces, durable when answered.

func submitMuster(h *host, scale int) []figure {
	f, n := newFleet(h), 20_000/scale
	tenant := f.serve(64)
	tokens := make([]string, 200/scale)
	for i := range tokens {
		_, tokens[i] = tenant("pro")
	}
	var next atomic.Int64
	var mu sync.Mutex
	var waits []time.Duration
	var senders sync.WaitGroup
	began := time.Now()
	for range 64 {
		senders.Go(func() {
			var mine []time.Duration
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				at := time.Now()
				h.must(f.send("/v1/tasks", tokens[int(i)%len(tokens)], []byte(`{"prompt": "no-op"}`), nil))
				mine = append(mine, time.Since(at))
			}
			mu.Lock()
			waits = append(waits, mine...)
			mu.Unlock()
		})
	}
	senders.Wait()
	return append(perSecond(n, began), percentiles(waits)...)
}

// pick-up: an idle fleet, one task at a time; Muster from the HTTP request, the peers from their call.

const pickups = 300

func pickupWaits(scale int, started chan time.Time, send func()) []figure {
	var waits []time.Duration
	for range pickups / scale {
		at := time.Now()
		send()
		waits = append(waits, (<-started).Sub(at))
		time.Sleep(15 * time.Millisecond) // let the fleet be idle again
	}
	return percentiles(waits)
}

func pickupMuster(h *host, scale int) []figure {
	f := newFleet(h)
	_, token := f.serve(4)("pro")
	started := make(chan time.Time, 1)
	f.work(20, func(context.Context, agent.Task) { started <- time.Now() })
	return pickupWaits(scale, started, func() { h.must(f.send("/v1/tasks", token, []byte(`{"prompt": "no-op"}`), nil)) })
}

func pickupAsynq(h *host, scale int) []figure {
	client, serve := newAsynq(h)
	started := make(chan time.Time, 1)
	serve(20, 10*time.Millisecond, nil, func(context.Context, *asynq.Task) error { started <- time.Now(); return nil })
	return pickupWaits(scale, started, func() {
		_, err := client.Enqueue(asynq.NewTask("job", nil))
		h.must(err)
	})
}

func pickupRiver(h *host, scale int) []figure {
	started := make(chan time.Time, 1)
	client, start := newRiver(h, 20, true, func(context.Context, string) { started <- time.Now() })
	start()
	return pickupWaits(scale, started, func() {
		_, err := client.Insert(context.Background(), job{}, nil)
		h.must(err)
	})
}

// ramp: ten tasks of a second in one batch to an idle fleet.

func rampMuster(h *host, _ int) []figure {
	f := newFleet(h)
	_, token := f.serve(4)("pro")
	started := make(chan time.Time, 10)
	f.work(20, func(context.Context, agent.Task) { started <- time.Now(); time.Sleep(time.Second) })
	time.Sleep(500 * time.Millisecond) // idle
	at := time.Now()
	h.must(f.send("/v1/tasks/batch", token, []byte(`{"tasks": [`+strings.TrimSuffix(strings.Repeat(`{"prompt": "x"},`, 10), ",")+`]}`), nil))
	var last time.Time
	for range 10 {
		last = <-started
	}
	return []figure{{"all ten run after", ms(last.Sub(at)), "ms"}}
}

// flood: A sends 5,000 tasks of 10 ms, then B its first ten, same tier, 10 slots: how long B's first waits.

const floodTasks = 5_000

// floodWait lets a's tasks run for a while and returns when b's first began after send was called.
func floodWait(begun <-chan struct{}, firstB <-chan time.Time, send func()) []figure {
	for range 100 {
		<-begun
	}
	at := time.Now()
	send()
	return []figure{{"B waits", ms((<-firstB).Sub(at)), "ms"}}
}

// floodAgent takes 10 ms and tells who has begun.
func floodAgent() (run func(who string), begun chan struct{}, firstB chan time.Time) {
	begun, firstB = make(chan struct{}, floodTasks+10), make(chan time.Time, 10)
	return func(who string) {
		if who == "b" {
			firstB <- time.Now()
		} else {
			begun <- struct{}{}
		}
		time.Sleep(10 * time.Millisecond)
	}, begun, firstB
}

func floodMuster(h *host, scale int) []figure {
	f := newFleet(h)
	ws := f.workspaces(2, "pro")
	run, begun, firstB := floodAgent()
	f.submit(ws[0], floodTasks/scale, "a")
	f.work(10, func(_ context.Context, t agent.Task) { run(t.Prompt) })
	return floodWait(begun, firstB, func() { f.submit(ws[1], 10, "b") })
}

func floodAsynq(h *host, scale int) []figure {
	client, serve := newAsynq(h)
	run, begun, firstB := floodAgent()
	send := func(n int, who string) {
		for range n {
			_, err := client.Enqueue(asynq.NewTask("job", []byte(who)))
			h.must(err)
		}
	}
	send(floodTasks/scale, "a")
	serve(10, 10*time.Millisecond, nil, func(_ context.Context, t *asynq.Task) error { run(string(t.Payload())); return nil })
	return floodWait(begun, firstB, func() { send(10, "b") })
}

func floodRiver(h *host, scale int) []figure {
	run, begun, firstB := floodAgent()
	client, start := newRiver(h, 10, true, func(_ context.Context, who string) { run(who) })
	insertJobs(h, client, floodTasks/scale, "a")
	start()
	return floodWait(begun, firstB, func() { insertJobs(h, client, 10, "b") })
}

// many: 1,000 Starter workspaces with a backlog each of 20 ms tasks, 50 slots; then a newcomer.

func manyMuster(h *host, scale int) []figure {
	const slots, each = 50, 200
	f, n := newFleet(h), 1000/scale
	var s starts
	for i, ws := range f.workspaces(n, "starter") {
		f.submit(ws, each, fmt.Sprint(i))
	}
	newcomer := f.workspaces(1, "starter")[0]
	came := make(chan struct{})
	f.work(slots, func(_ context.Context, t agent.Task) {
		s.add(t.Prompt)
		if t.Prompt == "new" {
			close(came)
		}
		time.Sleep(20 * time.Millisecond)
	})
	time.Sleep(60 * time.Second / time.Duration(scale))
	at := time.Now()
	from := s.len()
	f.submit(newcomer, 1, "new")
	<-came
	most, window := 0, s.since(from)
	for _, count := range window {
		most = max(most, count)
	}
	return []figure{{"newcomer waits", ms(time.Since(at)), "ms"}, {"most starts of another before it", float64(most), "tasks"},
		{"Jain's index, worst window of ten rounds", s.jain(n, 10), ""}}
}

// starts is the order in which tasks began.
type starts struct {
	mu    sync.Mutex
	order []string
}

func (s *starts) add(who string) {
	s.mu.Lock()
	s.order = append(s.order, who)
	s.mu.Unlock()
}

func (s *starts) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.order)
}

// since counts each one's starts from an index to the newcomer's.
func (s *starts) since(from int) map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	counts := map[string]int{}
	for _, who := range s.order[from:] {
		if who == "new" {
			break
		}
		counts[who]++
	}
	return counts
}

// jain is the lowest fairness index (sum squared by n times the sum of squares) over windows of so many rounds, a round
// being one start of each of n. R. Jain, D. Chiu, W. Hawe: A Quantitative Measure of Fairness (1984).
func (s *starts) jain(n, rounds int) float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	worst := 1.0
	for from := 0; from+n*rounds <= len(s.order); from += n {
		counts := map[string]float64{}
		for _, who := range s.order[from : from+n*rounds] {
			counts[who]++
		}
		var sum, squares float64
		for _, c := range counts {
			sum, squares = sum+c, squares+c*c
		}
		worst = min(worst, sum*sum/(float64(n)*squares))
	}
	return worst
}

// caps: 50 workspaces at cap 3, 40 tasks of 50 ms each, 100 slots, submitted tenant after tenant.

const capsTenants, capsEach, capsCap, capsTask = 50, 40, 3, 50 * time.Millisecond

// tenants counts what runs of each tenant and the violations of the cap.
type tenants struct {
	running    sync.Map // string → *atomic.Int64
	violations atomic.Int64
}

func (t *tenants) run(who string) {
	v, _ := t.running.LoadOrStore(who, new(atomic.Int64))
	n := v.(*atomic.Int64)
	if n.Add(1) > capsCap {
		t.violations.Add(1)
	}
	time.Sleep(capsTask)
	n.Add(-1)
}

// capsFigures: the ideal makespan is bounded by each tenant's cap and by the slots.
func capsFigures(took time.Duration, each int, wasted float64, t *tenants) []figure {
	ideal := max(time.Duration((each+capsCap-1)/capsCap)*capsTask, time.Duration(capsTenants*each)*capsTask/100)
	return []figure{{"makespan over ideal", float64(took) / float64(ideal), "x"}, {"wasted dispatches", wasted, ""}, {"cap violations", float64(t.violations.Load()), ""}}
}

func capsMuster(h *host, scale int) []figure {
	f, each := newFleet(h), capsEach/scale
	ws := f.workspaces(capsTenants, "starter")
	var t tenants
	c := newCountdown(capsTenants * each)
	f.work(100, func(_ context.Context, a agent.Task) { t.run(a.Prompt); c.tick() })
	time.Sleep(300 * time.Millisecond)
	began := time.Now()
	for i, id := range ws {
		f.submit(id, each, fmt.Sprint(i))
	}
	<-c.done
	took := time.Since(began)
	return capsFigures(took, each, f.emptyClaims(), &t)
}

var errBusy = errors.New("the tenant is at its cap")

// capsAsynq is the usual way: a semaphore per tenant in the handler, and another try a second later.
func capsAsynq(h *host, scale int) []figure {
	client, serve := newAsynq(h)
	each := capsEach / scale
	var t tenants
	var wasted atomic.Int64
	c := newCountdown(capsTenants * each)
	var semaphores sync.Map
	serve(100, 10*time.Millisecond, nil, func(_ context.Context, task *asynq.Task) error {
		who := string(task.Payload())
		v, _ := semaphores.LoadOrStore(who, semaphore.NewWeighted(capsCap))
		s := v.(*semaphore.Weighted)
		if !s.TryAcquire(1) {
			wasted.Add(1)
			return errBusy
		}
		defer s.Release(1)
		t.run(who)
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
	return capsFigures(time.Since(began), each, float64(wasted.Load()), &t)
}

// tiers: 50 workspaces of each tier saturated, 50 slots, equal tasks of 100 ms: the share of starts.

func tiersMuster(h *host, scale int) []figure {
	const slots, each = 50, 50
	f := newFleet(h)
	var counts [3]atomic.Int64
	plans := []string{"pro", "starter", "free"}
	all := make([][]uuid.UUID, len(plans))
	for i, plan := range plans {
		all[i] = f.workspaces(50, plan)
		for _, ws := range all[i] {
			f.submit(ws, each, fmt.Sprint(i))
		}
	}
	f.work(slots, func(_ context.Context, t agent.Task) {
		counts[int(t.Prompt[0]-'0')].Add(1)
		time.Sleep(100 * time.Millisecond)
	})
	time.Sleep(6 * time.Second / time.Duration(min(scale, 3)))
	var total float64
	for i := range counts {
		total += float64(counts[i].Load())
	}
	var figures []figure
	for i, plan := range plans {
		figures = append(figures, figure{"share of starts: " + plan, 100 * float64(counts[i].Load()) / total, "%"})
	}
	return figures
}
