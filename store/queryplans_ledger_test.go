package store_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// planLedger is a ledger that has been in use for two months: half of its tasks have ended, with attempts, metering rows and
// model calls; the others wait, one in ten for its time.
type planLedger struct {
	t          *testing.T
	env        *storetest.Env
	admin      *sqlx.DB
	workspaces []uuid.UUID
	endpoint   uuid.UUID // of the first workspace
	api        *store.API
	system     *store.System
	fleet      *store.Fleet

	worker  uuid.UUID
	claimed []store.ClaimedTask
	ended   uuid.UUID // a task of the first workspace that has an attempt
	waiting uuid.UUID // one that stands in the middle of its line
}

// newPlanLedger fills a ledger by SQL, as the superuser, with the rows that the product would have written, evenly over the
// workspaces.
func newPlanLedger(t *testing.T, workspaces, tasks int) *planLedger {
	t.Helper()
	l := &planLedger{t: t, env: storetest.New(t)}
	l.admin = l.env.Admin(t)
	db := l.admin
	exec := func(query string, args ...any) {
		t.Helper()
		if _, err := db.Exec(query, args...); err != nil {
			t.Fatalf("%v\n%s", err, query)
		}
	}
	l.workspaces = []uuid.UUID{storetest.NewWorkspace(t, l.env, "pro")}
	for range workspaces - 1 {
		l.workspaces = append(l.workspaces, store.NewID())
	}
	exec(`UPDATE workspace_load SET max_waiting = 10000000`)
	exec(`INSERT INTO workspaces SELECT r.* FROM workspaces w, unnest($1::uuid[]) v (id), LATERAL jsonb_populate_record(w, jsonb_build_object('id', v.id)) r
		WHERE w.id = $2`, pq.Array(l.workspaces[1:]), l.workspaces[0])
	exec(`INSERT INTO workspace_load SELECT r.* FROM workspace_load w, unnest($1::uuid[]) v (id),
		LATERAL jsonb_populate_record(w, jsonb_build_object('workspace_id', v.id)) r WHERE w.workspace_id = $2`, pq.Array(l.workspaces[1:]), l.workspaces[0])
	all := pq.Array(l.workspaces)

	const age = 60 * 24 * time.Hour
	exec(`INSERT INTO tasks (workspace_id, id, status, agent, model, prompt, metadata, timeout_ms, max_attempts, first_max_attempts, created_at, run_at, expires_at,
			started_at, finished_at, attempt, error, agent_ms)
		SELECT w.id, (lpad(to_hex((extract(epoch FROM v.at) * 1000)::bigint), 12, '0') || '7000' || '8000' || lpad(to_hex(i), 12, '0'))::uuid, v.status, 'yuki', 'auto',
			repeat('word ', 20), jsonb_build_object('n', (i % 10)::text), 60000, 1, 1, v.at,
			CASE WHEN v.status = 'scheduled' THEN now() + CASE WHEN v.turn % 50 = 0 THEN -interval '1 second' ELSE interval '1 day' END END,
			CASE WHEN v.status = 'queued' AND v.turn % 50 = 1 THEN now() + CASE WHEN i / 7 % 20 = 0 THEN -interval '1 second' ELSE interval '1 day' END END,
			CASE WHEN i < $2 / 2 THEN v.at END, CASE WHEN i < $2 / 2 THEN v.at END, CASE WHEN i < $2 / 2 THEN 1 ELSE 0 END,
			CASE WHEN v.status = 'failed' THEN '{"code": "timeout", "message": "", "retryable": false}'::jsonb END, 100
		FROM generate_series(0, $2::int - 1) i JOIN unnest($1::uuid[]) WITH ORDINALITY w (id, n) ON w.n = i % $3 + 1
		CROSS JOIN LATERAL (SELECT i / $3 + i % $3 AS turn) p
		CROSS JOIN LATERAL (SELECT p.turn, now() - (1 - i::float8 / $2) * $4 * interval '1 millisecond' AS at,
			CASE WHEN i >= $2 / 2 THEN CASE WHEN p.turn % 10 = 0 THEN 'scheduled' ELSE 'queued' END
				WHEN p.turn % 100 < 97 THEN 'succeeded' WHEN p.turn % 100 < 99 THEN 'failed' ELSE 'canceled' END AS status) v`,
		all, tasks, workspaces, age.Milliseconds())
	exec(`INSERT INTO attempts (workspace_id, id, task_id, attempt, worker_id, outcome, billable, started_at, finished_at, agent_ms)
		SELECT workspace_id, id, id, 1, id, CASE WHEN status = 'succeeded' THEN 'succeeded' ELSE 'failed' END, true, created_at, created_at, 100 FROM tasks WHERE finished_at IS NOT NULL`)
	exec(`INSERT INTO metering_rows (workspace_id, attempt_id, task_id, meter, quantity, billable, agent, model, day, at)
		SELECT workspace_id, id, id, m, 100, true, agent, model, (created_at AT TIME ZONE 'UTC')::date, created_at
		FROM tasks, unnest(ARRAY['agent_ms', 'tasks']) m WHERE finished_at IS NOT NULL ORDER BY created_at`)
	exec(`INSERT INTO provider_calls (workspace_id, id, task_id, attempt_id, step, try, provider, model, outcome, cost_microusd, started_at, finished_at)
		SELECT workspace_id, id, id, id, 1, 1, 'openai', 'm', 'ok', 10, created_at, created_at FROM tasks WHERE finished_at IS NOT NULL`)
	exec(`INSERT INTO push_runs (day, finished_at) VALUES ((now() AT TIME ZONE 'UTC')::date - 1, now())`)
	exec(`UPDATE workspaces SET stripe_customer_id = 'cus_' || id`)

	served := l.workspaces[:min(len(l.workspaces), 200)]
	exec(`INSERT INTO webhook_endpoints (workspace_id, id, url, events, created_by) SELECT w, gen_random_uuid(), 'https://example.com/', '{task.failed}', 'key' FROM unnest($1::uuid[]) w`, pq.Array(served))
	exec(`UPDATE workspace_load SET webhooks = true WHERE workspace_id = ANY($1)`, pq.Array(served))
	exec(`INSERT INTO webhook_deliveries (workspace_id, endpoint_id, id, type, task_id, data, status, delivered_at, created_at)
		SELECT e.workspace_id, e.id, (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint - $1 + i), 12, '0') || '70008000' || lpad(to_hex(i), 12, '0'))::uuid, 'task.failed',
			gen_random_uuid(), '{}', CASE WHEN i % 20 < 19 THEN 'succeeded' ELSE 'waiting' END, CASE WHEN i % 20 < 19 THEN now() END, now() - (1 - i::float8 / $1) * interval '20 days'
		FROM generate_series(0, $1::int - 1) i JOIN (SELECT *, row_number() OVER () AS n, count(*) OVER () AS of FROM webhook_endpoints) e ON e.n = (i / 20) % e.of + 1`, tasks/10)
	exec(`INSERT INTO schedules (workspace_id, id, name, cron, timezone, missed_runs, overlap, next_at, agent, model, prompt, priority, timeout_ms, max_attempts)
		SELECT ($1::uuid[])[i % cardinality($1::uuid[]) + 1], gen_random_uuid(), 's', '0 * * * *', 'UTC', 'skip', 'allow', now() + CASE WHEN i < 20 THEN -interval '1 second' ELSE interval '1 hour' END,
			'yuki', 'auto', 'p', 0, 60000, 1 FROM generate_series(0, 999) i`, all)
	exec(`INSERT INTO workspace_events (workspace_id, seq, kind, data) SELECT w, i, 'usage', '{}' FROM unnest($1::uuid[]) w, generate_series(1, 5) i`, all)
	exec(`UPDATE workspace_load w SET waiting = c.n, turn = gen_random_uuid(), turn_at = now()
		FROM (SELECT workspace_id, count(*) AS n FROM tasks WHERE finished_at IS NULL GROUP BY 1) c WHERE c.workspace_id = w.workspace_id`)
	exec(`VACUUM ANALYZE`)

	ws := l.workspaces[0]
	for query, into := range map[string]*uuid.UUID{
		`SELECT id FROM webhook_endpoints WHERE workspace_id = $1 LIMIT 1`:                                                   &l.endpoint,
		`SELECT id FROM tasks WHERE workspace_id = $1 AND status = 'succeeded' LIMIT 1`:                                      &l.ended,
		`SELECT id FROM tasks WHERE workspace_id = $1 AND status = 'queued' AND expires_at IS NULL ORDER BY id DESC LIMIT 1`: &l.waiting,
	} {
		if err := db.Get(into, query, ws); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// submitTogether submits n tasks, each to a workspace of its own if there are so many, as one flush of each lane.
func (l *planLedger) submitTogether(n int) (err error) {
	all := make([]*sent, n)
	for i := range all {
		all[i] = &sent{ws: l.workspaces[i%len(l.workspaces)], tasks: []store.NewTask{task("p")}}
	}
	together(l.t, l.api, all)()
	for _, s := range all {
		err = errors.Join(err, s.err)
	}
	return err
}
