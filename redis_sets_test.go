package main

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/generic-corp/muster/scripts/privateservers"
)

// overRedis runs a fleet on a set of Redis servers: tasks come over HTTP for some seconds, and meanwhile fault happens.
// Then every task must have succeeded at its first attempt, once, metered once and under its workspace's cap; the log says for how
// long a workspace started nothing.
func overRedis(t *testing.T, make func(ctx context.Context, dir string) (*privateservers.RedisSet, error), fault func(t *testing.T, set *privateservers.RedisSet)) {
	t.Helper()
	set, err := make(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = set.Remove() })
	s := newStack(t)
	s.vars["REDIS_URL"] = set.URL()
	s.start("scheduler", "scheduler")
	s.start("api", "api")
	s.start("worker-1", "worker")
	s.start("worker-2", "worker")
	c := &crowd{tenants: []*tenant{s.tenant("sen", "pro", 10), s.tenant("tin", "starter", 3), s.tenant("nel", "free", 1)}, tasks: map[string][]string{}}

	const each, seconds = 60, 12
	c.total = each * len(c.tenants)
	var sending sync.WaitGroup
	var mu sync.Mutex
	for _, w := range c.tenants {
		sending.Go(func() {
			for i := range each {
				var task struct{ ID string }
				_, err := s.request("POST", "/v1/tasks", w.token, fmt.Sprint(i), map[string]any{"prompt": "sleep=50ms out=done ws=" + w.name, "model": "openai"}, &task)
				mu.Lock()
				if err != nil {
					t.Errorf("a submit was refused: %v", err)
				} else {
					c.tasks[w.name] = append(c.tasks[w.name], task.ID)
				}
				mu.Unlock()
				time.Sleep(seconds * time.Second / each)
			}
		})
	}
	s.await(60*time.Second, "work to be done", func() bool { return s.count(`SELECT count(*) FROM tasks WHERE finished_at IS NOT NULL`) >= 15 })
	if n := s.metric("worker-1", "muster_claims_total") + s.metric("worker-2", "muster_claims_total"); n == 0 {
		t.Fatal("no turn came through Redis: the test tests nothing")
	}
	at := s.moment()
	fault(t, set)
	sending.Wait()
	s.await(90*time.Second, "all tasks to end", func() bool { return s.count(`SELECT count(*) FROM tasks WHERE finished_at IS NULL`) == 0 })
	s.check(c, false)
	if n := s.count(`SELECT count(*) FROM tasks WHERE status = 'succeeded' AND attempt = 1`); n != c.total {
		t.Errorf("%d of %d tasks succeeded at their first attempt", n, c.total)
	}
	if n := s.count(`SELECT count(*) FROM attempts`); n != c.total {
		t.Errorf("%d attempts of %d tasks: something ran twice", n, c.total)
	}
	var still float64 // the longest time in which nothing of some workspace started, from the fault on
	err = s.env.Admin(t).Get(&still, `SELECT coalesce(max(extract(epoch FROM next - started_at)), 0)::float8 FROM (
		SELECT started_at, lead(started_at) OVER (PARTITION BY workspace_id ORDER BY started_at) AS next
		FROM (SELECT workspace_id, started_at FROM attempts UNION ALL SELECT id, $1 FROM workspaces) a) gaps WHERE next > $1`, at)
	if err != nil {
		t.Fatal(err)
	}
	recovery := time.Duration(still * float64(time.Second))
	t.Logf("%d tasks acknowledged, each run and metered once, under their caps; a workspace started nothing for %s", c.total, recovery.Round(10*time.Millisecond))
	if recovery > 45*time.Second {
		t.Errorf("a workspace started nothing for %s", recovery)
	}
}

// moment is the database's time.
func (s *stack) moment() (now time.Time) {
	s.t.Helper()
	if err := s.env.Admin(s.t).Get(&now, `SELECT clock_timestamp()`); err != nil {
		s.t.Fatal(err)
	}
	return now
}

// The master is killed while tasks come and run; Sentinel makes a replica the master.
func TestSentinelFailsOverUnderLoad(t *testing.T) {
	t.Parallel()
	overRedis(t, privateservers.StartSentinel, func(t *testing.T, set *privateservers.RedisSet) {
		master, err := set.Holder(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		killed := time.Now()
		if err := master.Kill(); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			if now, err := set.Holder(t.Context(), ""); err == nil && now != master {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("no replica became the master")
			}
		}
		t.Logf("another master after %s", time.Since(killed).Round(10*time.Millisecond))
	})
}

// The node of a cluster that holds a tier's queue is killed, and restarted three seconds later, empty.
func TestAClusterNodeDiesUnderLoad(t *testing.T) {
	t.Parallel()
	overRedis(t, privateservers.StartCluster, func(t *testing.T, set *privateservers.RedisSet) {
		node, err := set.Holder(t.Context(), "asynq:{pro}:pending")
		if err != nil {
			t.Fatal(err)
		}
		if err := node.Kill(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second) // as long as a supervisor takes
		if err := node.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}
