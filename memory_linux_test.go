package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"
	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/jobs"
	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// Sixty thousand waiting tasks cost Redis and the processes no more memory than a thousand do: the same workspaces stand in
// line, and API, worker and scheduler do the same work over either backlog, each from a fresh start.
func TestABacklogCostsNoMemory(t *testing.T) {
	t.Parallel()
	const workspaces, few, many = 20, 1_000, 60_000
	const listed = 300 // of them the customer's who asks the API: its lists are as long over either backlog
	s := newStack(t)
	s.vars["GOGC"] = "25" // garbage is a smaller part of what a process holds
	s.vars["WORKER_CONCURRENCY"] = "10"
	s.start("api", "api")
	asking := s.tenant("asking", "pro", 10)
	s.stopAll()
	model, ok := store.ParseID(store.WorkspacePrefix, asking.id)
	if !ok {
		t.Fatalf("no workspace %q", asking.id)
	}
	others := storetest.CloneWorkspace(t, s.env.Env, model, workspaces-1)

	s.stand([]uuid.UUID{model}, listed)
	s.stand(others, few-listed)
	before := s.residentAtWork(asking)
	s.stand(nil, 0)
	redisBefore := s.redisMemory()
	s.stand(append(others, model), many-few)
	perTask := (s.redisMemory() - redisBefore) / (many - few)
	after := s.residentAtWork(asking)

	if perTask > 8 { // a task's id alone has 16 bytes; the server's own buffers come and go
		t.Errorf("Redis holds %.1f bytes for each waiting task", perTask)
	}
	for _, name := range slices.Sorted(maps.Keys(before)) {
		t.Logf("%s: %.1f MiB with %d tasks waiting, %.1f MiB with %d", name, before[name], few, after[name], many)
		if after[name] > 1.2*before[name] {
			t.Errorf("%s holds %.2f times the memory", name, after[name]/before[name])
		}
	}
	storetest.CheckLedger(t, s.env.Env)
}

// stand adds n tasks to workspaces' backlogs and returns when every workspace with work has its turn in Redis: in line, or, from
// a worker that ended, where Asynq keeps what is to be tried again.
func (s *stack) stand(into []uuid.UUID, n int) {
	s.t.Helper()
	rdb := s.env.Redis(s.t)
	if n > 0 {
		enqueuer := jobs.NewEnqueuer(rdb, zerolog.Nop())
		prompts := slices.Repeat([]string{"sleep=300ms out=done"}, len(into))
		for _, turn := range storetest.AddBacklog(s.t, s.env.Env, into, prompts, n) {
			enqueuer.Enqueue(jobs.Turn(turn))
		}
		enqueuer.Close()
	}
	turns := s.count(`SELECT count(*) FROM workspace_load WHERE waiting > 0`)
	inspector := asynq.NewInspectorFromRedisClient(rdb)
	s.await(30*time.Second, "all turns to be in Redis", func() bool {
		info, err := inspector.GetQueueInfo(store.QueuePro)
		return err == nil && info.Size == turns
	})
}

// redisMemory is what Redis uses while nobody works with it, bytes.
func (s *stack) redisMemory() float64 {
	s.t.Helper()
	info, err := s.env.Redis(s.t).InfoMap(context.Background(), "memory").Result()
	if err != nil {
		s.t.Fatal(err)
	}
	used, err := strconv.ParseFloat(info["Memory"]["used_memory"], 64)
	if err != nil {
		s.t.Fatal(err)
	}
	return used
}

// residentAtWork lets the three processes work for some seconds, the worker through tasks, the API through a customer's
// requests, and the scheduler by itself, and returns the least that each held towards the end, MiB: what it needs, and not
// what its collector was about to free.
func (s *stack) residentAtWork(asking *tenant) map[string]float64 {
	s.t.Helper()
	const rounds, pause = 60, 50 * time.Millisecond
	names := []string{"api", "scheduler", "worker"}
	for _, name := range names {
		s.start(name, name)
	}
	least, calls := map[string]float64{}, s.models.Stats().Calls
	for i := range rounds {
		for _, path := range []string{"/v1/tasks?limit=200", "/v1/quota"} {
			if _, err := s.request("GET", path, asking.token, "", nil, nil); err != nil {
				s.t.Fatal(err)
			}
		}
		time.Sleep(pause)
		if i < rounds/2 {
			continue // not settled yet
		}
		for _, name := range names {
			if mib := s.resident(s.procs[name]); least[name] == 0 || mib < least[name] {
				least[name] = mib
			}
		}
	}
	s.stopAll()
	if s.models.Stats().Calls == calls {
		s.t.Error("the worker ran nothing")
	}
	return least
}

// resident is the memory of a process, MiB.
func (s *stack) resident(p *process) float64 {
	s.t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil {
		s.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(raw), "VmRSS:")
	kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
	if err != nil {
		s.t.Fatal(err)
	}
	return kib / 1024
}
