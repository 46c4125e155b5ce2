package main

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/jobs"
	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// startScheduler runs a scheduler's loops in this process until the test ends.
func startScheduler(t *testing.T, env *storetest.Env) *scheduler {
	t.Helper()
	rdb := env.Redis(t)
	turns := jobs.NewEnqueuer(rdb, zerolog.Nop())
	t.Cleanup(turns.Close)
	s := &scheduler{id: uuid.New(), died: make(chan struct{}, 1), system: store.NewSystem(env.System(t)), line: jobs.NewLine(rdb), turns: turns,
		client: asynq.NewClientFromRedisClient(rdb), log: zerolog.Nop(), metrics: newSchedulerMetrics(prometheus.NewRegistry()), last: map[string]time.Time{}}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); s.run(ctx) }()
	t.Cleanup(func() { stop(); <-ended })
	return s
}

// until waits for a condition that the scheduler brings about.
func until(t *testing.T, limit time.Duration, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

func TestFleetDeadWorkersAreSeenHoweverLongSweepsTake(t *testing.T) {
	t.Parallel()
	env := storetest.New(t)
	fleet := store.NewFleet(env.Worker(t))
	t.Cleanup(fleet.Close)
	if err := fleet.Register(context.Background(), store.Worker{ID: store.NewID(), Name: "silent", Slots: 1}); err != nil {
		t.Fatal(err)
	}
	locked := env.Admin(t).MustBegin()
	t.Cleanup(func() { _ = locked.Rollback() })
	locked.MustExec(`LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE`) // each sweep that reads tasks waits 5 s and fails
	s := startScheduler(t, env)
	until(t, 40*time.Second, "the silent worker is declared dead", func() bool { return testutil.ToFloat64(s.metrics.dead) == 1 })
	if failed := testutil.ToFloat64(s.metrics.failures.WithLabelValues("due")); failed == 0 {
		t.Error("no sweep was held up: the test tests nothing")
	}
}

func TestFleetTheLeaderIsShownOnlyWhileItLeads(t *testing.T) {
	t.Parallel()
	own := storetest.OwnServers(t)
	s := startScheduler(t, own.Env)
	until(t, 20*time.Second, "it leads", func() bool { return testutil.ToFloat64(s.metrics.leading) == 1 })
	if err := own.Postgres.Kill(); err != nil {
		t.Fatal(err)
	}
	until(t, 20*time.Second, "it leads no more", func() bool { return testutil.ToFloat64(s.metrics.leading) == 0 })
}

// Who asked for a cancel of many tasks is gone; the scheduler brings it to its end.
func TestFleetACancelOfManyTasksGoesOnByItself(t *testing.T) {
	t.Parallel()
	env := storetest.New(t)
	ws := storetest.NewWorkspace(t, env, "pro")
	env.Admin(t).MustExec(`INSERT INTO tasks (workspace_id, id, status, agent, model, prompt, timeout_ms, max_attempts, first_max_attempts)
		SELECT $1, gen_random_uuid(), 'queued', 'yuki', 'auto', 'x', 1000, 1, 1 FROM generate_series(1, 2500)`, ws)
	env.Admin(t).MustExec(`UPDATE workspace_load SET waiting = 2500 WHERE workspace_id = $1`, ws)
	_, err := store.NewAPI(env.API(t)).Do(t.Context(), store.Scope{Workspace: ws}, nil, func(w *store.Work) (store.Answer, error) {
		_, err := w.CancelMatching(t.Context(), store.CancelFilter{})
		return store.Answer{}, err
	})
	if err != nil {
		t.Fatal(err)
	}
	left := func() (n int) {
		if err := env.Admin(t).Get(&n, `SELECT count(*) FROM tasks WHERE finished_at IS NULL`); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := left(); n != 1500 {
		t.Fatalf("%d tasks are left by the request, want 1500", n)
	}
	startScheduler(t, env)
	until(t, 30*time.Second, "all are canceled", func() bool { return left() == 0 })
	storetest.CheckLedger(t, env)
}

// The scheduler removes what a workspace keeps no longer by itself, goes on for what was left, and shows it.
func TestFleetEndedTasksAreKeptAsLongAsThePlanSays(t *testing.T) {
	t.Parallel()
	env := storetest.New(t)
	admin := env.Admin(t)
	free, pro := storetest.NewWorkspace(t, env, "free"), storetest.NewWorkspace(t, env, "pro")
	for _, ws := range []uuid.UUID{free, pro} {
		admin.MustExec(`INSERT INTO tasks (workspace_id, id, status, agent, model, prompt, timeout_ms, max_attempts, first_max_attempts, created_at, finished_at)
			SELECT $1, (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '70008000' || lpad(to_hex(i), 12, '0'))::uuid, 'failed', 'yuki', 'auto', 'x', 1000, 1, 1, at, at
			FROM (SELECT i, now() - i * interval '1 day' AS at FROM generate_series(1, 60) i) past`, ws)
	}
	s := startScheduler(t, env)
	left := func(ws uuid.UUID) (n int) {
		if err := admin.Get(&n, `SELECT count(*) FROM tasks WHERE workspace_id = $1`, ws); err != nil {
			t.Fatal(err)
		}
		return n
	}
	until(t, 30*time.Second, "tasks older than 30 days are gone", func() bool { return left(free) == 29 })
	until(t, 30*time.Second, "the round ends", func() bool { return testutil.ToFloat64(s.metrics.retention.oldest) > 59*24*3600 })
	if n := left(pro); n != 60 {
		t.Errorf("%d of 60 tasks are left to a workspace that keeps them for a year", n)
	}
	m := s.metrics.retention
	if n := testutil.ToFloat64(m.removed.WithLabelValues("tasks")); n != 31 || testutil.ToFloat64(m.behind) != 0 {
		t.Errorf("%v tasks were counted, left over %v", n, testutil.ToFloat64(m.behind))
	}
}
