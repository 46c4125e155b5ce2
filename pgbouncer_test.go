package main

import (
	"testing"
	"time"

	"github.com/generic-corp/muster/store"
)

// TestFleetThroughPgBouncer is the fleet, smaller, with every process but muster migrate behind PgBouncer in transaction
// mode, so that transactions of all workspaces and processes share four connections per role.
func TestFleetThroughPgBouncer(t *testing.T) {
	t.Parallel()
	const size = 4
	s := newStack(t)
	pooled := s.env.ThroughPgBouncer(t, size)
	t.Cleanup(s.stopAll) // before PgBouncer goes
	s.vars["DATABASE_URL"], s.vars["WORKER_DATABASE_URL"], s.vars["SYSTEM_DATABASE_URL"] = pooled.APIURL, pooled.WorkerURL, pooled.SystemURL
	if code, _, stderr := s.muster("migrate"); code != 0 {
		t.Fatalf("migrate: %d %s", code, stderr)
	}
	s.start("scheduler", "scheduler")
	s.start("api", "api")
	s.start("worker-1", "worker")
	s.start("worker-2", "worker")
	if code, out, stderr := s.muster("billing", "setup"); code != 0 {
		t.Fatalf("billing setup: %d %s %s", code, out, stderr)
	}
	tiers := []tier{
		{"free", 1, 3, 10, 50 * time.Millisecond},
		{"starter", 3, 3, 20, 100 * time.Millisecond},
		{"pro", 10, 3, 40, 100 * time.Millisecond},
	}
	c := s.gather(tiers)
	s.submitAll(c, tiers)
	s.awaitAll(2 * time.Minute)
	s.check(c, false)
	s.settleMoney(c)
	for _, role := range []string{store.RoleAPI, store.RoleWorker, store.RoleSystem} {
		if n := s.count(`SELECT count(*) FROM pg_stat_activity WHERE usename = $1`, role); n == 0 || n > size {
			t.Errorf("%s has %d connections, want 1 to %d: not everything went through the pool", role, n, size)
		}
	}
	if n := s.count(`SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'`); n != 0 {
		t.Errorf("%d transactions were left open", n)
	}
}
