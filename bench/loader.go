package main

import (
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/jobs"
	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// A million tasks over the API take minutes, and what a case measures is not how they came. The loader writes the same
// rows as the API does, as the cluster's superuser, whom row-level security does not bind: workspaces are copies of one
// that was registered and set to its plan; tasks stand interleaved, the first of every workspace, then the second, as
// they would after a day of many customers; load rows count what waits, and each workspace that may run something gets
// its turn. The tables are vacuumed afterwards, as autovacuum would have done on the way, and a checkpoint keeps the
// loading's own writes out of the measurement. At the end all turns stand in Redis: a worker that starts meanwhile would
// take them for newcomers, for whose sake nobody goes on with a second task, for as long as the loader takes and a second.

// clones makes n workspaces of a plan.
func (f *fleet) clones(n int, plan string) []*tenant {
	model := storetest.NewWorkspace(f.h, f.env, plan)
	ids := make([]uuid.UUID, n-1)
	for i := range ids {
		ids[i] = store.NewID()
	}
	db := f.env.Admin(f.h)
	for _, statement := range []string{
		`INSERT INTO workspaces SELECT r.* FROM workspaces w, unnest($2::uuid[]) v (id),
			LATERAL jsonb_populate_record(w, jsonb_build_object('id', v.id)) r WHERE w.id = $1`,
		`INSERT INTO workspace_load SELECT r.* FROM workspace_load w, unnest($2::uuid[]) v (id),
			LATERAL jsonb_populate_record(w, jsonb_build_object('workspace_id', v.id)) r WHERE w.workspace_id = $1`,
	} {
		_, err := db.Exec(statement, model, pq.Array(ids))
		f.h.must(err)
	}
	all := make([]*tenant, n)
	for i, id := range append([]uuid.UUID{model}, ids...) {
		all[i] = f.tenant(id, plan)
	}
	return all
}

// load puts n tasks into the workspaces' lines, evenly. A prompt is the workspace's label and the rest, in which # stands
// for the task's number.
func (f *fleet) load(into []*tenant, n int, prompt string) {
	ids, labels := make([]uuid.UUID, len(into)), make([]string, len(into))
	for i, t := range into {
		ids[i], labels[i] = t.id, t.label+prompt
	}
	db := f.env.Admin(f.h)
	tx, err := db.Beginx()
	f.h.must(err)
	defer func() { _ = tx.Rollback() }()
	// The ids are of version 7 and in order: milliseconds that pass one for each task, behind those loaded before.
	_, err = tx.Exec(`INSERT INTO tasks (workspace_id, id, status, agent, model, prompt, timeout_ms, max_attempts, first_max_attempts)
		SELECT w.id, (lpad(to_hex($4::bigint + i), 12, '0') || '7000' || '8000' || lpad(to_hex(i), 12, '0'))::uuid, 'queued', 'yuki', 'auto', replace(w.label, '#', i::text), $5, 1, 1
		FROM generate_series(0, $3::int - 1) i JOIN unnest($1::uuid[], $2::text[]) WITH ORDINALITY w (id, label, n) ON w.n = i % $6 + 1`,
		pq.Array(ids), pq.Array(labels), n, time.Now().UnixMilli()-10_000_000+f.sent.Load(), taskTimeoutMS, len(into))
	f.h.must(err)
	turns := issueTurns(f.h, tx, ids, n)
	f.h.must(tx.Commit())
	f.sent.Add(int64(n))
	for _, statement := range []string{`VACUUM ANALYZE tasks`, `VACUUM ANALYZE workspace_load`, `CHECKPOINT`} {
		_, err := db.Exec(statement)
		f.h.must(err)
	}
	line := jobs.NewEnqueuer(f.rdb, zerolog.Nop())
	line.Enqueue(turns...)
	line.Close()
}

// issueTurns counts n tasks that came to the workspaces evenly, the first ones first, and issues a turn for each that has
// none and may run something; the load rows are locked by the first statement.
func issueTurns(h *host, tx *sqlx.Tx, ids []uuid.UUID, n int) []jobs.Turn {
	_, err := tx.Exec(`UPDATE workspace_load w SET waiting = waiting + $2::int / $3::int + CASE WHEN v.n <= $2::int % $3::int THEN 1 ELSE 0 END
		FROM unnest($1::uuid[]) WITH ORDINALITY v (id, n) WHERE w.workspace_id = v.id`, pq.Array(ids), n, len(ids))
	h.must(err)
	var rows []struct {
		Workspace uuid.UUID `db:"workspace_id"`
		ID        uuid.UUID `db:"turn"`
		Queue     string    `db:"queue"`
		IssuedAt  time.Time `db:"turn_at"`
	}
	h.must(tx.Select(&rows, `UPDATE workspace_load w SET turn = gen_random_uuid(), turn_at = now()
		WHERE w.workspace_id = ANY($1) AND turn IS NULL AND waiting > 0
			AND cap > (SELECT count(*) FROM leases l WHERE l.workspace_id = w.workspace_id)
		RETURNING workspace_id, turn, queue, turn_at`, pq.Array(ids)))
	turns := make([]jobs.Turn, len(rows))
	for i, r := range rows {
		turns[i] = jobs.Turn(r)
	}
	return turns
}
