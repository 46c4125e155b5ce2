package main

import (
	"strings"
	"testing"
	"time"

	"github.com/generic-corp/muster/store/storetest"
)

// TestFleetAWorkerKilledBehindItsAgentLosesNoTask kills a worker whose agent has returned and whose finish has not
// committed: the slot was free already, the lease was not. The task is run again, ends once and is billed once.
func TestFleetAWorkerKilledBehindItsAgentLosesNoTask(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	s.start("scheduler", "scheduler")
	s.start("api", "api")
	s.start("worker-1", "worker")
	tn := s.tenant("behind", "pro", 10)
	blocked := s.env.Admin(t).MustBegin()
	defer blocked.Rollback()
	blocked.MustExec(`LOCK TABLE attempts IN SHARE MODE`) // no finish commits
	var task struct{ ID, Status string }
	if _, err := s.request("POST", "/v1/tasks", tn.token, "", map[string]any{"prompt": "ws=behind out=kept"}, &task); err != nil {
		t.Fatal(err)
	}
	s.await(60*time.Second, "the agent to have returned", func() bool {
		return strings.Contains(s.log("worker-1"), "the ledger does not take the result yet; it is kept")
	})
	s.kill("worker-1")
	if err := blocked.Rollback(); err != nil {
		t.Fatal(err)
	}
	if n := s.count(`SELECT count(*) FROM leases`); n != 1 {
		t.Fatalf("%d leases behind the killed worker", n)
	}
	s.start("worker-2", "worker")
	s.await(60*time.Second, "the task to succeed", func() bool {
		if _, err := s.request("GET", "/v1/tasks/"+task.ID, tn.token, "", nil, &task); err != nil {
			t.Fatal(err)
		}
		return task.Status == "succeeded"
	})
	for query, want := range map[string]int{
		`SELECT count(*) FROM attempts WHERE outcome = 'crashed' AND NOT billable`: 1,
		`SELECT count(*) FROM attempts WHERE outcome = 'succeeded' AND billable`:   1,
		`SELECT count(*) FROM attempts`:                                            2,
		`SELECT count(*) FROM metering_rows WHERE meter = 'tasks' AND billable`:    1,
		`SELECT count(*) FROM metering_rows WHERE meter = 'agent_ms' AND billable`: 1,
		`SELECT count(*) FROM tasks WHERE attempt = 1 AND status = 'succeeded'`:    1,
		`SELECT count(*) FROM workspace_load WHERE waiting <> 0`:                   0,
	} {
		if n := s.count(query); n != want {
			t.Errorf("%s: %d, want %d", query, n, want)
		}
	}
	storetest.CheckLedger(t, s.env.Env)
}
