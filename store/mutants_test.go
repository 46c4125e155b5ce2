package store_test

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// mutants are all walls that the catalog knows, each taken down in its own way.
func (w *tenants) mutants(t *testing.T) (all []mutant) {
	t.Helper()
	all = append(all, w.policyMutants(t)...)
	all = append(all, w.tableMutants()...)
	all = append(all, w.constraintMutants()...)
	all = append(all, w.grantMutants()...)
	return append(all, roleMutants()...)
}

// policyMutants: each policy dropped, opened, opened for whoever sets nothing, given to everybody, and relieved of each of
// its alternatives; and for each role a policy that it must not have.
func (w *tenants) policyMutants(t *testing.T) (all []mutant) {
	t.Helper()
	var policies []struct {
		Table string `db:"tablename"`
		Name  string `db:"policyname"`
		Cmd   string `db:"cmd"`
		Using string `db:"using"`
		Check string `db:"check"`
	}
	if err := w.env.Admin(t).Select(&policies, `SELECT tablename, policyname, cmd, coalesce(qual, '') AS "using", coalesce(with_check, '') AS "check" FROM pg_policies
		WHERE schemaname = 'public' ORDER BY 1, 2`); err != nil {
		t.Fatal(err)
	}
	for _, p := range policies {
		on := p.Name + " ON " + p.Table
		add := func(what, sql string) {
			all = append(all, mutant{name: "policy " + on + " " + what, sql: sql, tables: []string{p.Table}, first: rowsKind})
		}
		alter := func(what, clause string) { add(what, "ALTER POLICY "+on+" "+clause) }
		add("dropped", "DROP POLICY "+on)
		alter("given to everybody", "TO PUBLIC")
		for clause, text := range map[string]string{"USING": p.Using, "WITH CHECK": p.Check} {
			if text == "" || text == "true" {
				continue
			}
			alter(clause+" true", clause+" (true)")
			unset := settingComparison.ReplaceAllString(text, "$1 = coalesce($2, $1)")
			if unset != text && (clause == "USING" || p.Cmd != "UPDATE") { // whoever sets nothing finds no row to update
				alter(clause+" open to whoever sets nothing", clause+" ("+unset+")")
			}
			if alternatives := splitOr(text); len(alternatives) > 1 {
				for i := range alternatives {
					alter(fmt.Sprintf("%s without its alternative %d", clause, i+1),
						clause+" ("+strings.Join(slices.Delete(slices.Clone(alternatives), i, i+1), " OR ")+")")
				}
			}
		}
	}
	for _, table := range w.cat.secured {
		wall := tables[table]
		for _, role := range loginRoles {
			if role != store.RoleAPI && wall.sees(role) == "siud" {
				continue // it has that policy
			}
			all = append(all, mutant{name: "a policy for " + role + " on " + table, sql: fmt.Sprintf("CREATE POLICY mutant ON %s TO %s USING (true)", table, role),
				tables: []string{table}, first: policiesKind})
		}
	}
	for _, function := range []struct{ name, returns string }{{"app_workspace", "uuid"}, {"app_user", "uuid"}, {"app_email", "text"}, {"app_credential", "bytea"}} {
		all = append(all, mutant{name: function.name + " forgets its setting",
			sql: fmt.Sprintf("CREATE OR REPLACE FUNCTION %s() RETURNS %s LANGUAGE sql STABLE AS 'SELECT NULL::%[2]s'", function.name, function.returns), first: rowsKind})
	}
	for does, body := range map[string]string{"forgets its setting": "NULL::boolean", "takes any setting": "current_setting('app.workspace_ids', true) <> ''"} {
		all = append(all, mutant{name: "app_together " + does, first: rowsKind,
			sql: "CREATE OR REPLACE FUNCTION app_together(ws uuid) RETURNS boolean LANGUAGE sql STABLE AS $$ SELECT " + body + " $$"})
	}
	return all
}

// settingComparison is how a policy asks for a setting.
var settingComparison = regexp.MustCompile(`([a-z_.]+) = (app_[a-z]+\(\))`)

// splitOr takes an expression as the catalog prints it apart at the ORs of its outermost level.
func splitOr(text string) (parts []string) {
	text = strings.TrimSuffix(strings.TrimPrefix(text, "("), ")")
	depth, from := 0, 0
	for i := range len(text) {
		switch {
		case text[i] == '(':
			depth++
		case text[i] == ')':
			depth--
		case depth == 0 && strings.HasPrefix(text[i:], " OR "):
			parts = append(parts, text[from:i])
			from = i + len(" OR ")
		}
	}
	return append(parts, text[from:])
}

// tableMutants: row-level security off, not forced; a table given to a login role.
func (w *tenants) tableMutants() (all []mutant) {
	for table := range tables {
		add := func(what, first, sql string) {
			all = append(all, mutant{name: table + " " + what, sql: fmt.Sprintf("ALTER TABLE %s %s", table, sql), tables: []string{table}, first: first})
		}
		if slices.Contains(w.cat.secured, table) {
			add("without row-level security", rowsKind, "DISABLE ROW LEVEL SECURITY")
			add("without FORCE", rowsKind, "NO FORCE ROW LEVEL SECURITY")
		}
		for _, role := range loginRoles {
			add("owned by "+role, grantsKind, "OWNER TO "+role)
		}
	}
	return all
}

// constraintMutants: each CHECK, foreign key and unique index dropped, and each unique index without the workspace.
func (w *tenants) constraintMutants() (all []mutant) {
	add := func(c constraint, what, sql string) {
		if tables[c.Table].seed != "" {
			all = append(all, mutant{name: c.Name + " of " + c.Table + " " + what, sql: sql, tables: []string{c.Table}, first: constraintKind})
		}
	}
	for _, c := range append(slices.Clone(w.cat.checks), w.cat.foreign...) {
		add(c, "dropped", fmt.Sprintf("ALTER TABLE %s DROP CONSTRAINT %s", c.Table, c.Name))
	}
	for _, u := range w.cat.unique {
		if tables[u.Table].shared {
			continue
		}
		drop := "DROP INDEX " + u.Name
		if u.Constraint {
			drop = fmt.Sprintf("ALTER TABLE %s DROP CONSTRAINT %s CASCADE", u.Table, u.Name)
		}
		add(u, "dropped", drop)
		if len(u.Columns) > 1 && u.Columns[0] == tables[u.Table].keyColumn() {
			add(u, "over all workspaces", fmt.Sprintf("CREATE UNIQUE INDEX mutant ON %s (%s)", u.Table, strings.Join(u.Columns[1:], ", ")))
		}
	}
	return all
}

// grantMutants: each privilege that a role or everybody lacks granted, on the table or on one column; each that it has
// revoked.
func (w *tenants) grantMutants() (all []mutant) {
	letters := map[string]string{"SELECT": "s", "INSERT": "i", "UPDATE": "u", "DELETE": "d", "TRUNCATE": "", "REFERENCES": "", "TRIGGER": ""}
	for table, wall := range tables {
		for _, role := range append(slices.Clone(loginRoles), "PUBLIC") {
			for privilege, letter := range letters {
				add := func(verb, what, to string) {
					all = append(all, mutant{name: fmt.Sprintf("%s %s ON %s %s", verb, what, table, role), sql: fmt.Sprintf("%s %s ON %s %s %s", verb, what, table, to, role),
						tables: []string{table}, first: grantsKind})
				}
				columns, ok := granted(wall.grants(role), letter)
				if ok = ok && letter != ""; ok {
					what := privilege
					if columns != nil {
						what += " (" + strings.Join(columns, ", ") + ")"
					}
					add("REVOKE", what, "FROM")
				}
				if !ok || columns != nil {
					add("GRANT", privilege, "TO")
				}
				for _, column := range w.cat.ordered[table] {
					if columns != nil && !slices.Contains(columns, column) {
						add("GRANT", privilege+" ("+column+")", "TO")
					}
				}
			}
		}
	}
	return all
}

// roleMutants: roles that may more than their grants.
func roleMutants() (all []mutant) {
	add := func(sql string) { all = append(all, mutant{name: sql, sql: sql, first: policiesKind}) }
	for _, role := range loginRoles {
		add("ALTER ROLE " + role + " BYPASSRLS")
		add("ALTER ROLE " + role + " SUPERUSER")
		for _, other := range append(slices.Clone(loginRoles), storetest.RoleOwner, "pg_read_all_data", "pg_write_all_data") {
			if other != role {
				add("GRANT " + other + " TO " + role)
			}
		}
	}
	return all
}
