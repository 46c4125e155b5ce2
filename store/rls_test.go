package store_test

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// The proof that one workspace cannot reach another's rows: every table of a workspace x every operation x {no
// workspace, its own, another}, each refusal beside the statement that is rightly served. The tables come from the
// catalog, so a new one fails the test until it stands here.

// tenantTable is how one table is tried. $1 is the workspace, $2 its user, in seed.
type tenantTable struct {
	key  string // the column that says whose a row is; empty is workspace_id
	seed string // inserts one row of the workspace $1
	api  string // what muster_api may do: some of s(elect) i(nsert) u(pdate) d(elete)
	set  string // a column that it may update; empty is the key
}

// hash32 makes 32 random bytes in SQL.
const hash32 = `sha256(gen_random_uuid()::text::bytea)`

var tenantTables = map[string]tenantTable{
	"users": {key: "user", api: "siu", set: "password_hash", seed: `INSERT INTO users (id, email, password_hash) SELECT $2::uuid, $2::uuid::text || '@' || coalesce($1::uuid::text, ''), 'none'`},
	"workspaces": {key: "id", api: "siu", set: "name", seed: `INSERT INTO workspaces (id, name, plan, requests_per_hour, max_users, provider_budget_microusd)
		SELECT $1::uuid, coalesce($2::uuid::text, 'x'), 'free', 100, 1, 0`},
	"workspace_load": {api: "siu", set: "waiting", seed: `INSERT INTO workspace_load (workspace_id, queue, cap, max_waiting, quota_ms, period)
		SELECT $1::uuid, 'free', 1, 10, 0, date_trunc('month', now())::date WHERE $2::uuid IS NOT NULL`},
	"members":  {api: "siud", set: "role", seed: `INSERT INTO members (workspace_id, user_id, role) VALUES ($1, $2, 'owner')`},
	"sessions": {api: "siu", set: "revoked_why", seed: `INSERT INTO sessions (workspace_id, id, user_id, expires_at) VALUES ($1, $1, $2, now() + interval '1 day')`},
	"refresh_tokens": {api: "siu", set: "used_at", seed: `INSERT INTO refresh_tokens (workspace_id, session_id, token_hash)
		SELECT $1::uuid, $1::uuid, ` + hash32 + ` WHERE $2::uuid IS NOT NULL`},
	"invitations": {api: "siu", set: "revoked_at", seed: `INSERT INTO invitations (workspace_id, id, email, role, token_hash, invited_by, expires_at)
		VALUES ($1, gen_random_uuid(), gen_random_uuid()::text, 'viewer', ` + hash32 + `, $2, now() + interval '1 day')`},
	"user_tokens": {key: "user_id", api: "siu", set: "used_at", seed: `INSERT INTO user_tokens (user_id, token_hash, purpose, expires_at)
		SELECT $2::uuid, ` + hash32 + `, 'reset', now() + interval '1 hour' WHERE $1::uuid IS NOT NULL`},
	"api_keys": {api: "siu", set: "last_used_at", seed: `INSERT INTO api_keys (workspace_id, id, name, prefix, key_hash, role, scopes, created_by)
		VALUES ($1, gen_random_uuid(), 'k', 'mst', ` + hash32 + `, 'viewer', '{}', $2)`},
	"agents": {api: "siud", seed: `INSERT INTO agents (workspace_id, id, name) SELECT $1::uuid, gen_random_uuid(), gen_random_uuid()::text WHERE $2::uuid IS NOT NULL`},
	"audit_log": {api: "si", seed: `INSERT INTO audit_log (workspace_id, id, actor_type, actor_id, action)
		VALUES ($1, gen_random_uuid(), 'user', $2::uuid::text, 'test')`},
	"audit_heads": {api: "siu", set: "seq", seed: `INSERT INTO audit_heads (workspace_id, seq, at, hash) SELECT $1::uuid, 0, 'epoch', ` + hash32 + ` WHERE $2::uuid IS NOT NULL`},
	"idempotency_keys": {api: "si", seed: `INSERT INTO idempotency_keys (workspace_id, route, key, body_hash, status)
		SELECT $1::uuid, 'r', gen_random_uuid()::text, ` + hash32 + `, 200 WHERE $2::uuid IS NOT NULL`},
	"tasks": {api: "siu", seed: `INSERT INTO tasks (workspace_id, id, status, agent, model, prompt, timeout_ms, max_attempts, first_max_attempts)
		SELECT $1::uuid, gen_random_uuid(), 'queued', 'a', 'auto', 'p', 1000, 1, 1 WHERE $2::uuid IS NOT NULL`},
	"leases": {api: "s", seed: `INSERT INTO leases (workspace_id, task_id, id, worker_id, attempt, reserved_ms)
		SELECT $1::uuid, gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 1, 1000 WHERE $2::uuid IS NOT NULL`},
	"attempts": {api: "s", seed: `INSERT INTO attempts (workspace_id, id, task_id, attempt, worker_id, outcome, billable, started_at, agent_ms)
		SELECT $1::uuid, gen_random_uuid(), gen_random_uuid(), 1, gen_random_uuid(), 'succeeded', true, now(), 1 WHERE $2::uuid IS NOT NULL`},
	"metering_rows": {api: "s", seed: `INSERT INTO metering_rows (workspace_id, attempt_id, meter, quantity, billable, day, task_id, agent, model)
		SELECT $1::uuid, gen_random_uuid(), 'agent_ms', 1, true, now()::date, gen_random_uuid(), 'a', 'm' WHERE $2::uuid IS NOT NULL`},
	"provider_calls": {api: "s", seed: `INSERT INTO provider_calls (workspace_id, id, task_id, attempt_id, step, try, provider, model)
		SELECT $1::uuid, gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 1, 1, 'p', 'm' WHERE $2::uuid IS NOT NULL`},
	"daily_usage": {api: "s", seed: `INSERT INTO daily_usage (workspace_id, day, meter, quantity, billable)
		SELECT $1::uuid, now()::date, gen_random_uuid()::text, 1, 1 WHERE $2::uuid IS NOT NULL`},
	"push_ledger": {api: "s", seed: `INSERT INTO push_ledger (workspace_id, id, meter, day, value, status, stripe_customer_id, event_at)
		SELECT $1::uuid, gen_random_uuid(), 'agent_ms', now()::date, 1, 'superseded', 'cus', now() WHERE $2::uuid IS NOT NULL`},
	"push_progress": {api: "", seed: `INSERT INTO push_progress (workspace_id, holder, held_until) SELECT $1::uuid, gen_random_uuid(), now() WHERE $2::uuid IS NOT NULL`},
	"quota_notices": {api: "s", seed: `INSERT INTO quota_notices (workspace_id, period, percent) SELECT $1::uuid, date_trunc('month', now())::date, 80 WHERE $2::uuid IS NOT NULL`},
	"notice_mails":  {api: "", seed: `INSERT INTO notice_mails (workspace_id, notice_id, user_id) SELECT $1::uuid, gen_random_uuid(), $2::uuid`},
	"workspace_events": {api: "s", seed: `INSERT INTO workspace_events (workspace_id, seq, kind, data)
		SELECT $1::uuid, (random() * 1e15)::bigint + 1, 'usage', '{}' WHERE $2::uuid IS NOT NULL`},
}

// seedOrder: what foreign keys ask for comes first.
var seedOrder = []string{"users", "workspaces", "workspace_load", "members", "sessions", "audit_heads"}

// sharedTables belong to no workspace.
var sharedTables = []string{"audit_nights", "goose_db_version", "leaders", "push_runs", "stripe_events", "workers"}

// tenants is a database with one row of each of two workspaces in every table.
type tenants struct {
	env            *storetest.Env
	api            *sqlx.DB
	a, b           uuid.UUID // workspaces
	ownerA, ownerB uuid.UUID // their users
}

func newTenants(t *testing.T) *tenants {
	t.Helper()
	env := storetest.New(t)
	w := &tenants{env: env, api: env.API(t), a: store.NewID(), b: store.NewID(), ownerA: store.NewID(), ownerB: store.NewID()}
	order := slices.Clone(seedOrder)
	for name := range tenantTables {
		if !slices.Contains(order, name) {
			order = append(order, name)
		}
	}
	for _, name := range order {
		for _, owner := range [][2]uuid.UUID{{w.a, w.ownerA}, {w.b, w.ownerB}} {
			if _, err := env.Admin(t).Exec(tenantTables[name].seed, owner[0], owner[1]); err != nil {
				t.Fatalf("seed %s: %v", name, err)
			}
		}
	}
	return w
}

// as runs fn in a transaction of muster_api with the settings, and rolls it back.
func (w *tenants) as(t *testing.T, workspace, user uuid.UUID, fn func(tx *sqlx.Tx)) {
	t.Helper()
	tx, err := w.api.Beginx()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	text := func(id uuid.UUID) string {
		if id == uuid.Nil {
			return ""
		}
		return id.String()
	}
	if _, err := tx.Exec(`SELECT set_config('app.workspace_id', $1, true), set_config('app.user_id', $2, true)`, text(workspace), text(user)); err != nil {
		t.Fatal(err)
	}
	fn(tx)
}

// sqlState is the SQLSTATE of err, "" for nil.
func sqlState(err error) string {
	var pe *pq.Error
	if errors.As(err, &pe) {
		return string(pe.Code)
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

const (
	forbidden = "42501" // no privilege, or a policy's check
	duplicate = "23505" // past the policy, into a key that is taken: allowed
)

func TestNoWorkspaceReachesAnothersRows(t *testing.T) {
	t.Parallel()
	w := newTenants(t)
	for name, table := range tenantTables {
		column, whose := "workspace_id", w.a
		switch table.key {
		case "id":
			column = "id"
		case "user":
			column, whose = "id", w.ownerA
		case "user_id":
			column, whose = "user_id", w.ownerA
		}
		for scope, s := range map[string]struct {
			workspace, user uuid.UUID
			own             bool
		}{"no workspace": {}, "its own": {w.a, w.ownerA, true}, "another": {w.b, w.ownerB, false}} {
			may := func(op string) bool { return strings.Contains(table.api, op) }
			rows := func(op string) (state string, n int64) { // what a statement on A's row must bring
				switch {
				case !may(op):
					return forbidden, 0
				case s.own:
					return "", 1
				}
				return "", 0
			}
			check := func(t *testing.T, op string, state string, n int64) {
				t.Helper()
				if wantState, want := rows(op); state != wantState || n != want {
					t.Errorf("SQLSTATE %q and %d rows, want %q and %d", state, n, wantState, want)
				}
			}
			t.Run(name+"/select/"+scope, func(t *testing.T) {
				w.as(t, s.workspace, s.user, func(tx *sqlx.Tx) {
					var n int64
					err := tx.Get(&n, fmt.Sprintf(`SELECT count(*) FROM %s WHERE %s = $1`, name, column), whose)
					check(t, "s", sqlState(err), n)
				})
			})
			t.Run(name+"/update/"+scope, func(t *testing.T) {
				w.as(t, s.workspace, s.user, func(tx *sqlx.Tx) {
					set := cmp.Or(table.set, column)
					state, n := affect(tx, fmt.Sprintf(`UPDATE %s SET %s = %s WHERE %s = $1`, name, set, set, column), whose)
					check(t, "u", state, n)
				})
			})
			t.Run(name+"/delete/"+scope, func(t *testing.T) {
				w.as(t, s.workspace, s.user, func(tx *sqlx.Tx) {
					state, n := affect(tx, fmt.Sprintf(`DELETE FROM %s WHERE %s = $1`, name, column), whose)
					check(t, "d", state, n)
				})
			})
			t.Run(name+"/insert/"+scope, func(t *testing.T) {
				w.as(t, s.workspace, s.user, func(tx *sqlx.Tx) {
					state, n := affect(tx, table.seed, w.a, w.ownerA)
					switch {
					case may("i") && s.own && state != duplicate && (state != "" || n != 1):
						t.Errorf("its own row is refused: %q, %d rows", state, n)
					case !(may("i") && s.own) && state != forbidden:
						t.Errorf("SQLSTATE %q and %d rows, want a refusal", state, n)
					}
				})
			})
			if s.own && may("u") {
				t.Run(name+"/hand over/"+scope, func(t *testing.T) {
					other := w.b
					if table.key == "user" || table.key == "user_id" {
						other = w.ownerB
					}
					w.as(t, s.workspace, s.user, func(tx *sqlx.Tx) {
						if state, _ := affect(tx, fmt.Sprintf(`UPDATE %s SET %s = $2 WHERE %s = $1`, name, column, column), whose, other); state != forbidden {
							t.Errorf("a row was given to another workspace: SQLSTATE %q", state)
						}
					})
				})
			}
		}
	}
}

func affect(tx *sqlx.Tx, query string, args ...any) (state string, n int64) {
	done, err := tx.Exec(query, args...)
	if err == nil {
		n, err = done.RowsAffected()
	}
	return sqlState(err), n
}

func TestASecretOpensItsOwnRowOnly(t *testing.T) {
	t.Parallel()
	w := newTenants(t)
	for table, column := range map[string]string{"api_keys": "key_hash", "refresh_tokens": "token_hash", "invitations": "token_hash", "user_tokens": "token_hash"} {
		set := tenantTables[table].set
		owner, whose := "workspace_id", w.a
		if tenantTables[table].key == "user_id" {
			owner, whose = "user_id", w.ownerA
		}
		var hash []byte
		if err := w.env.Admin(t).Get(&hash, fmt.Sprintf(`SELECT %s FROM %s WHERE %s = $1`, column, table, owner), whose); err != nil {
			t.Fatal(err)
		}
		count := func(credential string) (n int) {
			t.Helper()
			w.as(t, uuid.Nil, uuid.Nil, func(tx *sqlx.Tx) {
				if _, err := tx.Exec(`SELECT set_config('app.credential', $1, true)`, credential); err != nil {
					t.Fatal(err)
				}
				if err := tx.Get(&n, `SELECT count(*) FROM `+table); err != nil {
					t.Fatal(err)
				}
				if state, changed := affect(tx, fmt.Sprintf(`UPDATE %s SET %s = %s`, table, set, set)); state != "" {
					t.Fatalf("update: %s", state)
				} else if changed != 0 {
					t.Errorf("%s: a presented secret changes %d rows", table, changed)
				}
			})
			return n
		}
		if n := count(fmt.Sprintf("%x", hash)); n != 1 {
			t.Errorf("%s: its secret shows %d rows", table, n)
		}
		if n := count(strings.Repeat("00", 32)); n != 0 {
			t.Errorf("%s: an unknown secret shows %d rows", table, n)
		}
		if n := count(""); n != 0 {
			t.Errorf("%s: no secret shows %d rows", table, n)
		}
	}
}

func TestAPoolOfOneConnectionLeaksNothing(t *testing.T) {
	t.Parallel()
	w := newTenants(t)
	db, err := store.Open(t.Context(), w.env.APIURL, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	api := store.NewAPI(db)
	clean := func(after string) {
		t.Helper()
		var seen int
		var setting sql.NullString
		if err := db.QueryRow(`SELECT (SELECT count(*) FROM tasks), current_setting('app.workspace_id', true)`).Scan(&seen, &setting); err != nil {
			t.Fatal(err)
		}
		if seen != 0 || setting.String != "" {
			t.Errorf("after %s the connection sees %d tasks under %q", after, seen, setting.String)
		}
	}
	seesOne := func(ws uuid.UUID) {
		t.Helper()
		tasks, err := api.Tasks(t.Context(), ws, store.TaskFilter{}, uuid.Nil, 10)
		if err != nil || len(tasks) != 1 {
			t.Errorf("%d tasks, %v", len(tasks), err)
		}
	}
	for range 3 {
		seesOne(w.a)
		clean("a read")
		seesOne(w.b)
		if _, err := api.Do(t.Context(), store.Scope{Workspace: w.a}, nil, func(*store.Work) (store.Answer, error) { return store.Answer{}, errors.New("refused") }); err == nil {
			t.Error("the error is lost")
		}
		clean("an error")
		func() {
			defer func() { _ = recover() }()
			_, _ = api.Do(t.Context(), store.Scope{Workspace: w.a}, nil, func(*store.Work) (store.Answer, error) { panic("in the work") })
		}()
		clean("a panic")
		ctx, cancel := context.WithCancel(t.Context())
		if _, err := api.Do(ctx, store.Scope{Workspace: w.a}, nil, func(work *store.Work) (store.Answer, error) {
			cancel()
			_, err := work.Task(ctx, uuid.New())
			return store.Answer{}, err
		}); err == nil {
			t.Error("the cancellation is lost")
		}
		clean("a cancelled context")
		seesOne(w.b)
	}
}

var update = flag.Bool("update", false, "write testdata/privileges.golden anew")

// TestCatalog reads what the database itself says. With -update a change of privileges is written down; review it.
func TestCatalog(t *testing.T) {
	t.Parallel()
	env := storetest.New(t)
	db := env.Admin(t)
	list := func(t *testing.T, query string, args ...any) []string {
		t.Helper()
		rows := []string{}
		if err := db.Select(&rows, query, args...); err != nil {
			t.Fatal(err)
		}
		return rows
	}
	none := func(t *testing.T, what, query string, args ...any) {
		t.Helper()
		for _, row := range list(t, query, args...) {
			t.Errorf("%s: %s", what, row)
		}
	}
	roles := pq.Array([]string{store.RoleAPI, store.RoleWorker, store.RoleSystem})
	tables := list(t, `SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') ORDER BY 1`)

	t.Run("EveryTableIsTriedOrShared", func(t *testing.T) {
		for _, name := range tables {
			if _, tenant := tenantTables[name]; !tenant && !slices.Contains(sharedTables, name) {
				t.Errorf("table %s stands neither in tenantTables nor in sharedTables", name)
			}
		}
		for name := range tenantTables {
			if !slices.Contains(tables, name) {
				t.Errorf("there is no table %s", name)
			}
		}
	})
	t.Run("SharedTablesHoldNothingOfAWorkspace", func(t *testing.T) {
		none(t, "has a workspace_id", `SELECT table_name FROM information_schema.columns WHERE table_schema = 'public' AND column_name IN ('workspace_id', 'user_id')
			AND table_name = ANY($1)`, pq.Array(sharedTables))
	})
	t.Run("RowLevelSecurityIsForcedOnEveryTenantTable", func(t *testing.T) {
		forced := list(t, `SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relrowsecurity AND relforcerowsecurity`)
		for name := range tenantTables {
			if !slices.Contains(forced, name) {
				t.Errorf("%s", name)
			}
		}
	})
	t.Run("TheOwnerSeesNothing", func(t *testing.T) {
		w := newTenants(t)
		for name := range tenantTables {
			var n int
			if err := w.env.Owner(t).Get(&n, `SELECT count(*) FROM `+name); err != nil || n != 0 {
				t.Errorf("%s: %d rows, %v", name, n, err)
			}
		}
	})
	t.Run("NoRoleMayBypass", func(t *testing.T) {
		if n := len(list(t, `SELECT rolname FROM pg_roles WHERE rolname = ANY($1)`, roles)); n != 3 {
			t.Fatalf("%d roles", n)
		}
		none(t, "too powerful", `SELECT rolname FROM pg_roles WHERE rolname = ANY($1)
			AND (rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication)`, roles)
		none(t, "is a member of another role", `SELECT m.member::regrole::text FROM pg_auth_members m WHERE m.member::regrole::text = ANY($1)`, roles)
		none(t, "owns something", `SELECT relname FROM pg_class WHERE relowner::regrole::text = ANY($1)`, roles)
		none(t, "may create in the schema", `SELECT r FROM unnest($1::text[]) r WHERE has_schema_privilege(r, 'public', 'CREATE')`, roles)
	})
	t.Run("NothingGoesAroundThePolicies", func(t *testing.T) {
		none(t, "a view", `SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('v', 'm', 'f')`)
		none(t, "a security definer", `SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND prosecdef`)
		none(t, "a trigger", `SELECT tgname FROM pg_trigger WHERE NOT tgisinternal AND tgname <> 'audit_chain'`)
		none(t, "a sequence that anybody may read", `SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'S' AND relname NOT LIKE 'goose%'`)
	})
	t.Run("UniqueConstraintsTellNothingOfOthers", func(t *testing.T) {
		none(t, "does not begin with workspace_id", `SELECT i.indexrelid::regclass::text FROM pg_index i
			JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
			WHERE i.indisunique AND i.indrelid::regclass::text = ANY($1) AND a.attname <> 'workspace_id' AND i.indrelid::regclass::text NOT IN ('users', 'workspaces', 'user_tokens')`,
			pq.Array(slices.Collect(maps.Keys(tenantTables))))
	})
	t.Run("ForeignKeysStayInTheWorkspace", func(t *testing.T) {
		none(t, "could name another workspace's row", `SELECT c.conname FROM pg_constraint c
			WHERE c.contype = 'f' AND c.confrelid::regclass::text NOT IN ('users', 'workspaces')
				AND NOT EXISTS (SELECT 1 FROM pg_attribute a WHERE a.attrelid = c.conrelid AND a.attnum = ANY(c.conkey) AND a.attname = 'workspace_id')`)
	})
	t.Run("PrivilegesAndPoliciesAreTheOnesWrittenDown", func(t *testing.T) {
		lines := list(t, `
			SELECT 'grant ' || grantee || ' ' || table_name || ': ' || string_agg(lower(privilege_type), ' ' ORDER BY privilege_type)
			FROM information_schema.role_table_grants WHERE table_schema = 'public' AND grantee NOT IN ($1, current_user) GROUP BY grantee, table_name
			UNION ALL
			SELECT 'grant ' || c.grantee || ' ' || c.table_name || ' columns: ' || lower(c.privilege_type) || ' ' || string_agg(c.column_name, ' ' ORDER BY c.column_name)
			FROM information_schema.column_privileges c WHERE c.table_schema = 'public' AND c.grantee NOT IN ($1, current_user)
				AND NOT EXISTS (SELECT 1 FROM information_schema.role_table_grants t WHERE t.table_schema = 'public' AND t.grantee = c.grantee
					AND t.table_name = c.table_name AND t.privilege_type = c.privilege_type)
			GROUP BY c.grantee, c.table_name, c.privilege_type
			UNION ALL
			SELECT 'policy ' || tablename || ' ' || policyname || ' for ' || lower(cmd) || ' to ' || array_to_string(roles, ' ') ||
				regexp_replace(coalesce(' using ' || qual, '') || coalesce(' check ' || with_check, ''), '\s+', ' ', 'g')
			FROM pg_policies WHERE schemaname = 'public'
			ORDER BY 1`, storetest.RoleOwner)
		got := strings.Join(lines, "\n") + "\n"
		const golden = "testdata/privileges.golden"
		if *update {
			if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(got) {
			if !strings.Contains("\n"+string(want), "\n"+line) {
				t.Errorf("new: %s", line)
			}
		}
		for line := range strings.Lines(string(want)) {
			if !strings.Contains("\n"+got, "\n"+line) {
				t.Errorf("gone: %s", line)
			}
		}
	})
	t.Run("NoRoleMayTruncate", func(t *testing.T) {
		for role, db := range roleHandles(t, env) {
			for _, name := range tables {
				if _, err := db.Exec(`TRUNCATE ` + name); sqlState(err) != forbidden {
					t.Errorf("%s truncates %s: %v", role, name, err)
				}
			}
		}
	})
	t.Run("WhatWasBookedStays", func(t *testing.T) {
		w := newTenants(t)
		for role, db := range roleHandles(t, w.env) {
			for _, name := range []string{"audit_log", "metering_rows"} {
				for _, statement := range []string{`UPDATE %s SET workspace_id = workspace_id`, `DELETE FROM %s`} {
					if _, err := db.Exec(fmt.Sprintf(statement, name)); sqlState(err) != forbidden {
						t.Errorf("%s: %s: %v", role, fmt.Sprintf(statement, name), err)
					}
				}
			}
		}
	})
}

func roleHandles(t *testing.T, env *storetest.Env) map[string]*sqlx.DB {
	t.Helper()
	return map[string]*sqlx.DB{store.RoleAPI: env.API(t), store.RoleWorker: env.Worker(t), store.RoleSystem: env.System(t)}
}
