package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store/storetest"
)

// tier describes the workspaces of one plan in the fleet tests. Tasks last longer where the cap is higher, and long
// beside a hand-out on a busy machine, so that each workspace comes to its cap before its backlog ends.
type tier struct {
	plan       string
	cap        int64
	workspaces int
	tasks      int // per workspace
	sleep      time.Duration
}

// fleetTiers: 30 workspaces, 1,502 tasks.
var fleetTiers = []tier{
	{"free", 1, 10, 40, 300 * time.Millisecond},
	{"starter", 3, 8, 50, 1000 * time.Millisecond},
	{"growth", 5, 6, 50, 2000 * time.Millisecond},
	{"pro", 10, 6, 67, 4000 * time.Millisecond},
}

// crowd is all tenants and what they sent.
type crowd struct {
	tenants []*tenant
	tasks   map[string][]string // ids by tenant's name
	total   int
}

// gather makes the tenants and lets each submit its tasks in batches, with idempotency keys, trying again until the
// API has acknowledged them.
func (s *stack) gather(tiers []tier) *crowd {
	s.t.Helper()
	c := &crowd{tasks: map[string][]string{}}
	for _, tr := range tiers {
		for i := range tr.workspaces {
			c.tenants = append(c.tenants, s.tenant(fmt.Sprintf("%s-%d", tr.plan, i), tr.plan, tr.cap))
		}
	}
	return c
}

func (s *stack) submitAll(c *crowd, tiers []tier) {
	s.t.Helper()
	agents := []string{"sable", "devonte", "yuki", "graham", "marcus"}
	var mu sync.Mutex
	var senders sync.WaitGroup
	next := 0
	for _, tr := range tiers {
		for range tr.workspaces {
			tn := c.tenants[next]
			next++
			c.total += tr.tasks
			senders.Go(func() {
				const batch = 10
				for sent := 0; sent < tr.tasks; {
					n := min(batch, tr.tasks-sent)
					var tasks []map[string]any
					for i := range n {
						tasks = append(tasks, map[string]any{"agent": agents[(sent+i)%len(agents)], "timeout_seconds": 60,
							"prompt": fmt.Sprintf("task %d ws=%s sleep=%s tokens=10/20", sent+i, tn.name, tr.sleep)})
					}
					var answer struct{ Data []struct{ ID string } }
					key := uuid.NewString()
					for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(100 * time.Millisecond) {
						status, err := s.request("POST", "/v1/tasks/batch", tn.token, key, map[string]any{"tasks": tasks}, &answer)
						if err == nil {
							break
						}
						if (status != 0 && status != 409 && status != 503) || time.Now().After(deadline) {
							s.t.Errorf("submit: %v", err)
							return
						}
					}
					mu.Lock()
					for _, task := range answer.Data {
						c.tasks[tn.name] = append(c.tasks[tn.name], task.ID)
					}
					mu.Unlock()
					sent += n
				}
			})
		}
	}
	senders.Wait()
}

// awaitAll waits until nothing waits or runs.
func (s *stack) awaitAll(limit time.Duration) {
	s.t.Helper()
	s.await(limit, "every task to end", func() bool { return s.count(`SELECT count(*) FROM tasks WHERE finished_at IS NULL`) == 0 })
}

// check holds what is left against what was sent: every acknowledged task ended once and well, no cap was exceeded at
// the model server, the ledger agrees with itself.
func (s *stack) check(c *crowd, reachCap bool) {
	s.t.Helper()
	db := s.env.Admin(s.t)
	var ended []struct {
		ID     uuid.UUID `db:"id"`
		Status string    `db:"status"`
	}
	if err := db.Select(&ended, `SELECT id, status FROM tasks`); err != nil {
		s.t.Fatal(err)
	}
	status := make(map[string]string, len(ended))
	for _, e := range ended {
		status[fmt.Sprintf("task_%x", e.ID[:])] = e.Status
	}
	acknowledged := 0
	for name, ids := range c.tasks {
		for _, id := range ids {
			acknowledged++
			if status[id] != "succeeded" {
				s.t.Errorf("%s of %s is %q", id, name, status[id])
			}
		}
	}
	if acknowledged != c.total || len(ended) != c.total {
		s.t.Errorf("%d acknowledged and %d in the ledger, %d were sent", acknowledged, len(ended), c.total)
	}
	stats := s.models.Stats()
	for _, tn := range c.tenants {
		seen := stats.Labels[tn.name]
		if seen.MaxConcurrent < 1 || seen.MaxConcurrent > tn.cap || (reachCap && seen.MaxConcurrent != tn.cap) {
			s.t.Errorf("%s: at most %d calls at once, its cap is %d", tn.name, seen.MaxConcurrent, tn.cap)
		}
	}
	storetest.CheckLedger(s.t, s.env.Env)
	var attempts, metered, tasksMetered int
	if err := db.QueryRow(`SELECT (SELECT count(*) FROM attempts), (SELECT count(*) FROM metering_rows WHERE meter = 'agent_ms'),
		(SELECT coalesce(sum(quantity), 0) FROM metering_rows WHERE meter = 'tasks')`).Scan(&attempts, &metered, &tasksMetered); err != nil {
		s.t.Fatal(err)
	}
	if attempts != metered || tasksMetered != c.total {
		s.t.Errorf("%d attempts, %d agent_ms rows, %d tasks metered of %d", attempts, metered, tasksMetered, c.total)
	}
}

// settleMoney pushes the day and holds ledger, push ledger and Stripe against each other.
func (s *stack) settleMoney(c *crowd) {
	s.t.Helper()
	if code, out, stderr := s.muster("billing", "push", "--day", "today"); code != 0 {
		s.t.Fatalf("push: %d %s %s", code, out, stderr)
	}
	code, out, stderr := s.muster("billing", "reconcile")
	if code != 0 {
		s.t.Errorf("reconcile: %d %s %s", code, out, stderr)
	}
	s.t.Logf("reconcile: %s", out)
	db := s.env.Admin(s.t)
	var rows []struct {
		Customer string `db:"stripe_customer_id"`
		MS       int64  `db:"ms"`
	}
	if err := db.Select(&rows, `SELECT w.stripe_customer_id, sum(m.quantity) AS ms FROM metering_rows m JOIN workspaces w ON w.id = m.workspace_id
		WHERE m.meter = 'agent_ms' AND m.billable GROUP BY 1`); err != nil {
		s.t.Fatal(err)
	}
	if len(rows) != len(c.tenants) {
		s.t.Errorf("%d workspaces were metered, want %d", len(rows), len(c.tenants))
	}
	for _, r := range rows {
		var atStripe int64
		for _, v := range s.stripe.DayTotals(r.Customer, "muster_agent_ms") {
			atStripe += v
		}
		if atStripe != r.MS {
			s.t.Errorf("customer %s: the ledger has %d ms, Stripe %d", r.Customer, r.MS, atStripe)
		}
	}
}

// TestFleet: API, two workers and the scheduler as real processes, 30 workspaces of all plans, 1,500 tasks over HTTP. What
// holds under faults is tried by TestChaos, in scripts/chaosrun.
func TestFleet(t *testing.T) {
	s := newStack(t)
	s.vars["WORKER_CONCURRENCY"] = "80" // twice that is more than all caps together
	s.start("scheduler", "scheduler")
	s.start("api", "api")
	s.start("worker-1", "worker")
	s.start("worker-2", "worker")
	if code, out, stderr := s.muster("billing", "setup"); code != 0 {
		t.Fatalf("billing setup: %d %s %s", code, out, stderr)
	}
	c := s.gather(fleetTiers)
	began := time.Now()
	s.submitAll(c, fleetTiers)
	if c.total < 1500 {
		t.Fatalf("only %d tasks", c.total)
	}
	s.awaitAll(4 * time.Minute)
	t.Logf("%d tasks in %s", c.total, time.Since(began).Round(time.Millisecond))
	s.check(c, true)
	s.settleMoney(c)
	if n := s.metric("scheduler", "muster_repaired_turns_total"); n != 0 {
		t.Errorf("%v turns were repaired in a run without faults", n)
	}
	for _, w := range []string{"worker-1", "worker-2"} {
		if n := s.metric(w, "muster_refused_writes_total"); n != 0 {
			t.Errorf("%s: %v writes refused in a run without faults", w, n)
		}
		if n := s.metric(w, "muster_claims_total"); n == 0 {
			t.Errorf("%s took no turn: nothing was shared", w)
		}
	}
}

func (s *stack) count(query string, args ...any) (n int) {
	s.t.Helper()
	if err := s.env.Admin(s.t).Get(&n, query, args...); err != nil {
		s.t.Fatal(err)
	}
	return n
}

// TestStartWithoutRedis: Redis is down when the processes start. Each says so and starts; tasks are accepted, and run
// when Redis comes.
func TestStartWithoutRedis(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	if err := s.env.RedisServer.Kill(); err != nil {
		t.Fatal(err)
	}
	s.start("scheduler", "scheduler")
	s.start("api", "api")
	s.start("worker-1", "worker")
	tn := s.tenant("early", "pro", 10)
	var task struct {
		ID, Status string
	}
	began := time.Now()
	if _, err := s.request("POST", "/v1/tasks", tn.token, "", map[string]any{"prompt": "ws=early out=late"}, &task); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 200*time.Millisecond {
		t.Errorf("the submit took %s", took)
	}
	for _, name := range []string{"scheduler", "api", "worker-1"} {
		if log := s.log(name); !strings.Contains(log, "redis cannot be reached (is it running, and is REDIS_URL right?)") {
			t.Errorf("%s does not say that Redis is down:\n%s", name, log)
		}
	}
	if err := s.env.RedisServer.Restart(context.Background()); err != nil {
		t.Fatal(err)
	}
	s.await(30*time.Second, "the task to succeed", func() bool {
		if _, err := s.request("GET", "/v1/tasks/"+task.ID, tn.token, "", nil, &task); err != nil {
			t.Fatal(err)
		}
		return task.Status == "succeeded"
	})
	storetest.CheckLedger(t, s.env.Env)
}
