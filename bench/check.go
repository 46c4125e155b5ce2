package main

import (
	"github.com/generic-corp/muster/store/storetest"
)

// history is what the ledger says of a run without faults.
type history struct {
	Accepted  int64 `db:"accepted"`
	Waiting   int64 `db:"waiting"`
	Leases    int64 `db:"leases"`
	Final     int64 `db:"final"`
	Good      int64 `db:"good"`      // succeeded at the first attempt
	Attempts  int64 `db:"attempts"`  // all of them
	Succeeded int64 `db:"succeeded"` // attempts
	Tasks     int64 `db:"tasks"`     // that these attempts belong to
	Back      int64 `db:"back"`      // attempts handed back when the worker was halted
	Crashed   int64 `db:"crashed"`   // attempts whose worker was killed
	AgentMS   int64 `db:"agent_ms"`  // metering rows of the attempts
	Metered   int64 `db:"metered"`   // metering rows of final tasks
}

const historyQuery = `SELECT
	(SELECT count(*) FROM tasks) AS accepted,
	(SELECT coalesce(sum(waiting), 0) FROM workspace_load) AS waiting,
	(SELECT count(*) FROM leases) AS leases,
	(SELECT count(*) FROM tasks WHERE finished_at IS NOT NULL) AS final,
	(SELECT count(*) FROM tasks WHERE status = 'succeeded' AND attempt = 1) AS good,
	(SELECT count(*) FROM attempts) AS attempts,
	(SELECT count(*) FROM attempts WHERE outcome = 'succeeded') AS succeeded,
	(SELECT count(DISTINCT (workspace_id, task_id)) FROM attempts WHERE outcome = 'succeeded') AS tasks,
	(SELECT count(*) FROM attempts WHERE outcome = 'handed_back') AS back,
	(SELECT count(*) FROM attempts WHERE outcome = 'crashed' AND NOT billable) AS crashed,
	(SELECT count(*) FROM metering_rows WHERE meter = 'agent_ms') AS agent_ms,
	(SELECT count(*) FROM metering_rows WHERE meter = 'tasks' AND billable) AS metered`

// wholeLedger is up to how many tasks all rules of the ledger are checked, row by row; beyond it would take minutes.
const wholeLedger = 250_000

// check halts the workers and compares the ledger with what was sent and what ran: every accepted task is final exactly
// once or still waits, every attempt that ran is booked and metered once, no workspace ever ran more than its cap, and the
// ledger's own rules hold.
func (f *fleet) check() {
	f.halt()
	if wrong := f.wrong.Load(); wrong != nil {
		f.h.Fatal(wrong)
	}
	var s history
	f.h.must(f.env.Admin(f.h).Get(&s, historyQuery))
	for _, rule := range []struct {
		name      string
		got, want int64
	}{
		{"tasks in the ledger, and accepted", s.Accepted, f.sent.Load()},
		{"leases behind the end", s.Leases, 0},
		{"tasks waiting, and accepted ones that are not final", s.Waiting, s.Accepted - s.Final},
		{"tasks succeeded at their first attempt, and final ones", s.Good, s.Final},
		{"successful attempts, and final tasks", s.Succeeded, s.Final},
		{"tasks with a successful attempt, and such attempts", s.Tasks, s.Succeeded},
		{"attempts that crashed and cost nothing, and what killed workers held", s.Crashed, f.crashed},
		{"attempts succeeded, handed back or crashed, and all", s.Succeeded + s.Back + s.Crashed, s.Attempts},
		{"metered attempts, and attempts", s.AgentMS, s.Attempts},
		{"metered tasks, and final ones", s.Metered, s.Final},
	} {
		if rule.got != rule.want {
			f.h.Fatalf("the history is not exact: %s: %d and %d", rule.name, rule.got, rule.want)
		}
	}
	if n := f.began.Load(); n > 0 && n != s.Attempts {
		f.h.Fatalf("the history is not exact: %d attempts in the ledger, %d agents ran", s.Attempts, n)
	}
	if s.Accepted <= wholeLedger {
		storetest.CheckLedger(f.h, f.env)
	}
}
