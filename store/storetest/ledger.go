package storetest

import (
	"context"
	"crypto/sha256"
	"fmt"
	"testing"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

// NewWorkspace registers a user with a workspace of the given plan and returns the workspace's id.
func NewWorkspace(t testing.TB, e *Env, plan string) uuid.UUID {
	t.Helper()
	ctx := context.Background()
	name := uuid.NewString()
	hash := sha256.Sum256([]byte(name))
	in, err := store.NewAPI(e.API(t)).Register(ctx, store.NewAccount{Email: name + "@example.com", PasswordHash: "none", WorkspaceName: name}, store.NewSession{RefreshHash: hash[:]})
	if err != nil {
		t.Fatal(err)
	}
	p, ok := store.PlanByID(plan)
	if !ok {
		t.Fatalf("no plan %q", plan)
	}
	if _, err := store.NewSystem(e.System(t)).SetPlan(ctx, in.Workspace.ID, p, "", "", store.Operator{Name: "test"}); err != nil {
		t.Fatal(err)
	}
	return in.Workspace.ID
}

// ledgerRules are what holds in every committed state. Each query returns what breaks its rule.
var ledgerRules = []struct{ rule, query string }{
	{"waiting is the number of tasks in line or scheduled, without a lease",
		`SELECT w.workspace_id::text || ': ' || w.waiting || ' counted, ' || c.n || ' there' FROM workspace_load w
		CROSS JOIN LATERAL (SELECT count(*) AS n FROM tasks t WHERE t.workspace_id = w.workspace_id AND t.status IN ('queued', 'scheduled')
			AND NOT EXISTS (SELECT 1 FROM leases l WHERE l.workspace_id = t.workspace_id AND l.task_id = t.id)) c
		WHERE w.waiting <> c.n`},
	{"a lease stands on a queued task",
		`SELECT l.task_id::text FROM leases l LEFT JOIN tasks t ON t.workspace_id = l.workspace_id AND t.id = l.task_id WHERE t.status IS DISTINCT FROM 'queued'`},
	{"used_ms is the billable agent time metered this period",
		`SELECT w.workspace_id::text || ': ' || w.used_ms || ' used, ' || m.ms || ' metered' FROM workspace_load w
		CROSS JOIN LATERAL (SELECT coalesce(sum(quantity), 0) AS ms FROM metering_rows m WHERE m.workspace_id = w.workspace_id
			AND m.meter = 'agent_ms' AND m.billable AND m.day >= w.period) m
		WHERE w.used_ms <> m.ms`},
	{"used and reserved never pass the quota and the overage that were in force",
		`SELECT w.workspace_id::text FROM workspace_load w
		CROSS JOIN LATERAL (SELECT coalesce(sum(reserved_ms), 0) AS ms FROM leases l WHERE l.workspace_id = w.workspace_id) r
		WHERE w.used_ms + r.ms > w.quota_ms + w.overage_allowance_ms AND NOT EXISTS (SELECT 1 FROM audit_log a WHERE a.workspace_id = w.workspace_id
			AND a.action IN ('workspace.set_limit', 'workspace.set_plan', 'workspace.update') AND a.at > w.period AND a.details->>'plan' IS DISTINCT FROM 'pro')`},
	{"overage_used_ms is the overage metered this period",
		`SELECT w.workspace_id::text || ': ' || w.overage_used_ms || ' used, ' || m.ms || ' metered' FROM workspace_load w
		CROSS JOIN LATERAL (SELECT coalesce(sum(quantity), 0) AS ms FROM metering_rows m WHERE m.workspace_id = w.workspace_id
			AND m.meter = 'overage_ms' AND m.billable AND m.day >= w.period) m
		WHERE w.overage_used_ms <> m.ms`},
	{"overage is a part of an attempt's billable time",
		`SELECT o.attempt_id::text FROM metering_rows o LEFT JOIN metering_rows m ON m.workspace_id = o.workspace_id AND m.attempt_id = o.attempt_id
			AND m.meter = 'agent_ms' AND m.billable WHERE o.meter = 'overage_ms' AND (m.quantity IS NULL OR o.quantity > m.quantity)`},
	{"provider_used_microusd is the cost of the calls that ended this period",
		`SELECT w.workspace_id::text || ': ' || w.provider_used_microusd || ' used, ' || c.cost || ' ended' FROM workspace_load w
		CROSS JOIN LATERAL (SELECT coalesce(sum(cost_microusd), 0) AS cost FROM provider_calls c WHERE c.workspace_id = w.workspace_id
			AND c.outcome <> 'started' AND c.finished_at >= w.period::timestamp AT TIME ZONE 'UTC') c
		WHERE w.provider_used_microusd <> c.cost`},
	{"calls that ended and open ones never pass the provider budget that was in force",
		`SELECT w.workspace_id::text FROM workspace_load w
		CROSS JOIN LATERAL (SELECT coalesce(sum(cost_microusd), 0) AS cost FROM provider_calls c WHERE c.workspace_id = w.workspace_id AND c.outcome = 'started') c
		WHERE w.provider_used_microusd + c.cost > w.provider_budget_microusd AND NOT EXISTS (SELECT 1 FROM audit_log a WHERE a.workspace_id = w.workspace_id
			AND a.action IN ('workspace.set_limit', 'workspace.set_plan') AND a.at > w.period AND a.details->>'plan' IS DISTINCT FROM 'pro')`},
	{"each attempt has exactly one agent_ms row, of its own milliseconds",
		`SELECT coalesce(a.id, m.attempt_id)::text FROM attempts a
		FULL JOIN (SELECT * FROM metering_rows WHERE meter = 'agent_ms') m ON m.workspace_id = a.workspace_id AND m.attempt_id = a.id
		WHERE a.agent_ms IS DISTINCT FROM m.quantity OR a.billable IS DISTINCT FROM m.billable`},
	{"a task's usage is the sum of its attempts",
		`SELECT t.id::text FROM tasks t
		CROSS JOIN LATERAL (SELECT coalesce(sum(agent_ms), 0) AS ms, coalesce(sum(cost_microusd), 0) AS cost, count(*) AS n FROM attempts a
			WHERE a.workspace_id = t.workspace_id AND a.task_id = t.id) s
		WHERE t.agent_ms <> s.ms OR t.cost_microusd <> s.cost OR t.attempt > s.n`},
	{"an endpoint is told once of each task that has ended since it last changed",
		`SELECT t.id::text || ': ' || count(d.id) || ' events' FROM tasks t
		JOIN webhook_endpoints e ON e.workspace_id = t.workspace_id AND e.enabled AND e.updated_at < t.finished_at AND 'task.' || t.status = ANY(e.events)
		JOIN workspace_load w ON w.workspace_id = t.workspace_id AND NOT w.leaving
		LEFT JOIN webhook_deliveries d ON d.workspace_id = t.workspace_id AND d.endpoint_id = e.id AND d.task_id = t.id AND d.created_at = t.finished_at
		GROUP BY t.id, e.id HAVING count(d.id) <> 1`},
	{"the load row says whether an endpoint is enabled",
		`SELECT w.workspace_id::text FROM workspace_load w
		WHERE NOT w.leaving AND w.webhooks <> EXISTS (SELECT 1 FROM webhook_endpoints e WHERE e.workspace_id = w.workspace_id AND e.enabled)`},
	{"runnable work with room has a turn",
		`SELECT w.workspace_id::text FROM workspace_load w
		WHERE w.turn IS NULL AND w.paused IS NULL
			AND w.cap > (SELECT count(*) FROM leases l WHERE l.workspace_id = w.workspace_id)
			AND w.quota_ms - w.used_ms - (SELECT coalesce(sum(reserved_ms), 0) FROM leases l WHERE l.workspace_id = w.workspace_id) >= 300000
			AND w.provider_used_microusd <= w.provider_budget_microusd
			AND (SELECT CASE WHEN w.provider_budget_microusd > 0 AND t.needs_microusd > least(w.provider_budget_microusd, w.max_task_cost_microusd) THEN 0 ELSE t.needs_microusd END FROM tasks t WHERE t.workspace_id = w.workspace_id AND t.status = 'queued' AND (t.expires_at IS NULL OR t.expires_at > now())
				AND NOT EXISTS (SELECT 1 FROM leases l WHERE l.workspace_id = t.workspace_id AND l.task_id = t.id)
				ORDER BY t.priority DESC, t.id LIMIT 1) = 0`},
	{"daily usage never exceeds the metering rows",
		`SELECT d.workspace_id::text || ' ' || d.day || ' ' || d.meter FROM daily_usage d
		WHERE d.quantity > (SELECT coalesce(sum(quantity), 0) FROM metering_rows m WHERE m.workspace_id = d.workspace_id AND m.day = d.day AND m.meter = d.meter)`},
}

// CheckLedger fails the test for each rule of the ledger that does not hold.
func CheckLedger(t testing.TB, e *Env) {
	t.Helper()
	db := e.Admin(t)
	for _, r := range ledgerRules {
		var broken []string
		if err := db.Select(&broken, r.query); err != nil {
			t.Fatalf("check %q: %v", r.rule, err)
		}
		if len(broken) > 0 {
			t.Errorf("broken: %s: %d times, first %s", r.rule, len(broken), fmt.Sprint(broken[:min(3, len(broken))]))
		}
	}
}

// Traces names the tables in which the text (letters and digits) stands, in any column of any row, bytes included.
func Traces(t testing.TB, e *Env, text string) []string {
	t.Helper()
	db := e.Admin(t)
	var tables, found []string
	if err := db.Select(&tables, `SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') ORDER BY 1`); err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		var there bool
		err := db.Get(&there, `SELECT EXISTS (SELECT 1 FROM `+table+` r WHERE strpos(r::text, $1) > 0 OR strpos(r::text, encode($1::text::bytea, 'hex')) > 0)`, text)
		if err != nil {
			t.Fatalf("search %s: %v", table, err)
		}
		if there {
			found = append(found, table)
		}
	}
	return found
}
