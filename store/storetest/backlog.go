//go:build unix

package storetest

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"

	"github.com/generic-corp/muster/store"
)

// A million tasks over the API take minutes. What is below writes the same rows as the API does, as the cluster's superuser,
// whom row-level security does not bind.

// CloneWorkspace makes n copies of a workspace that has no tasks: its plan and limits without its people, keys and customer
// at Stripe.
func CloneWorkspace(t testing.TB, e *Env, model uuid.UUID, n int) []uuid.UUID {
	t.Helper()
	ids := make([]uuid.UUID, n)
	for i := range ids {
		ids[i] = store.NewID()
	}
	db := e.Admin(t)
	for _, statement := range []string{
		`INSERT INTO workspaces SELECT r.* FROM workspaces w, unnest($2::uuid[]) v (id),
			LATERAL jsonb_populate_record(w, jsonb_build_object('id', v.id, 'stripe_customer_id', NULL, 'stripe_customer_since', NULL)) r WHERE w.id = $1`,
		`INSERT INTO workspace_load SELECT r.* FROM workspace_load w, unnest($2::uuid[]) v (id),
			LATERAL jsonb_populate_record(w, jsonb_build_object('workspace_id', v.id)) r WHERE w.workspace_id = $1`,
	} {
		if _, err := db.Exec(statement, model, pq.Array(ids)); err != nil {
			t.Fatalf("clone workspace: %v", err)
		}
	}
	return ids
}

// backlogTimeoutMS of each task of a backlog: no agent of a test takes longer.
const backlogTimeoutMS = 120_000

// AddBacklog puts n tasks into the workspaces' lines, evenly and interleaved: the first of every workspace, then the second,
// as they would stand after a day of many customers. prompts has one for each workspace, in which # stands for the task's
// number. It returns the turns that it has issued, one for each workspace that may run something and had none out.
//
// The tables are vacuumed afterwards, as autovacuum would have done on the way, and a checkpoint keeps the loading's own writes
// out of what is measured then.
func AddBacklog(t testing.TB, e *Env, into []uuid.UUID, prompts []string, n int) []store.Turn {
	t.Helper()
	db := e.Admin(t)
	tx, err := db.Beginx()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	exec := func(query string, args ...any) {
		t.Helper()
		if _, err := tx.Exec(query, args...); err != nil {
			t.Fatalf("add backlog: %v", err)
		}
	}
	// The ids are of version 7 and in order: milliseconds that pass one for each task, behind those of earlier backlogs.
	exec(`INSERT INTO tasks (workspace_id, id, status, agent, model, prompt, timeout_ms, max_attempts, first_max_attempts)
		SELECT w.id, (lpad(to_hex($4::bigint + c.n + i), 12, '0') || '7000' || '8000' || lpad(to_hex(i), 12, '0'))::uuid, 'queued', 'yuki', 'auto', replace(w.prompt, '#', i::text), $5, 1, 1
		FROM (SELECT count(*) AS n FROM tasks) c, generate_series(0, $3::int - 1) i
		JOIN unnest($1::uuid[], $2::text[]) WITH ORDINALITY w (id, prompt, n) ON w.n = i % $6 + 1`,
		pq.Array(into), pq.Array(prompts), n, time.Now().UnixMilli()-10_000_000, backlogTimeoutMS, len(into))
	// This locks the load rows; the first workspaces may get one task more than the last.
	exec(`UPDATE workspace_load w SET waiting = waiting + $2::int / $3::int + CASE WHEN v.n <= $2::int % $3::int THEN 1 ELSE 0 END
		FROM unnest($1::uuid[]) WITH ORDINALITY v (id, n) WHERE w.workspace_id = v.id`, pq.Array(into), n, len(into))
	var rows []struct {
		Workspace uuid.UUID `db:"workspace_id"`
		ID        uuid.UUID `db:"turn"`
		Queue     string    `db:"queue"`
		IssuedAt  time.Time `db:"turn_at"`
	}
	if err := tx.Select(&rows, `UPDATE workspace_load w SET turn = gen_random_uuid(), turn_at = now()
		WHERE w.workspace_id = ANY($1) AND turn IS NULL AND waiting > 0
			AND cap > (SELECT count(*) FROM leases l WHERE l.workspace_id = w.workspace_id)
		RETURNING workspace_id, turn, queue, turn_at`, pq.Array(into)); err != nil {
		t.Fatalf("add backlog: %v", err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{`VACUUM ANALYZE tasks`, `VACUUM ANALYZE workspace_load`, `CHECKPOINT`} {
		if _, err := db.Exec(statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	turns := make([]store.Turn, len(rows))
	for i, r := range rows {
		turns[i] = store.Turn(r)
	}
	return turns
}
