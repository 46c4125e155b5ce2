package store_test

import (
	"context"
	"database/sql"
	"errors"
	"flag"
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

const forbidden = "42501" // no privilege, or a policy's check

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
		tasks, _, err := api.Tasks(t.Context(), ws, store.TaskFilter{}, uuid.Nil, 10)
		if err != nil || len(tasks) != 1 {
			t.Errorf("%d tasks, %v", len(tasks), err)
		}
	}
	for range 3 {
		seesOne(w.a.workspace)
		clean("a read")
		seesOne(w.b.workspace)
		if _, err := api.Do(t.Context(), store.Scope{Workspace: w.a.workspace}, nil, func(*store.Work) (store.Answer, error) { return store.Answer{}, errors.New("refused") }); err == nil {
			t.Error("the error is lost")
		}
		clean("an error")
		func() {
			defer func() { _ = recover() }()
			_, _ = api.Do(t.Context(), store.Scope{Workspace: w.a.workspace}, nil, func(*store.Work) (store.Answer, error) { panic("in the work") })
		}()
		clean("a panic")
		ctx, cancel := context.WithCancel(t.Context())
		if _, err := api.Do(ctx, store.Scope{Workspace: w.a.workspace}, nil, func(work *store.Work) (store.Answer, error) {
			cancel()
			_, err := work.Task(ctx, uuid.New())
			return store.Answer{}, err
		}); err == nil {
			t.Error("the cancellation is lost")
		}
		clean("a cancelled context")
		seesOne(w.b.workspace)
	}
}

var update = flag.Bool("update", false, "write privileges.golden anew")

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

	t.Run("RowLevelSecurityIsForcedOnEveryTenantTable", func(t *testing.T) {
		readCatalog(t, db) // every table is known, and shared ones hold nothing of a workspace
		forced := list(t, `SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relrowsecurity AND relforcerowsecurity`)
		for name, wall := range tables {
			if !wall.shared && !slices.Contains(forced, name) {
				t.Errorf("%s", name)
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
		const golden = "privileges.golden"
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
}

func roleHandles(t *testing.T, env *storetest.Env) map[string]*sqlx.DB {
	t.Helper()
	return map[string]*sqlx.DB{store.RoleAPI: env.API(t), store.RoleWorker: env.Worker(t), store.RoleSystem: env.System(t)}
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
