package store_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// The proof that one workspace cannot reach another's rows. From walls_tables_test.go and the catalog follow probes:
// single statements of one role under one setting, each with the only answers that are right. Refusals and the
// statements that are rightly served come from the same rows. The probes run here over the processes' own connections,
// direct and through PgBouncer, and in mutation_test.go against databases in which a wall has been taken down.

// probe is one statement and its right answers, as verdicts: "ok N" (N rows, or what a SELECT answered), "denied" (no
// privilege), "policy" (row-level security refuses the new row), or a SQLSTATE with the constraint that refused.
type probe struct {
	table, kind, name string
	role              string // "none" is the superuser
	scope             scope
	before            string // as superuser, undone with the probe
	do                string
	want              []string
}

// The kinds of probes.
const (
	rowsKind       = "rows"       // table x operation x setting: what each role reaches with its grants
	grantsKind     = "grants"     // table x column x operation: what is not granted is denied
	policiesKind   = "policies"   // the same as rows with every privilege granted: the policies alone hold
	constraintKind = "constraint" // CHECKs, foreign keys, unique constraints
)

// scope is the settings of a transaction of the API.
type scope struct{ name, workspace, user, email, credential, company string }

// roleOwner and roleStranger are tried beside the login roles: the first must see nothing, the second may do nothing.
const (
	roleOwner    = storetest.RoleOwner
	roleStranger = "muster_stranger"
)

var loginRoles = []string{store.RoleAPI, store.RoleWorker, store.RoleSystem}

// grants of a role on the table, as written in tables.
func (w walls) grants(role string) string {
	switch role {
	case store.RoleAPI:
		return w.api
	case store.RoleWorker:
		return w.worker
	case store.RoleSystem:
		return w.system
	}
	return ""
}

var grantPattern = regexp.MustCompile(`([siud])(?:\(([^)]*)\))?`)

// granted returns whether the operation is, and on which columns (nil: all).
func granted(grants, op string) (columns []string, ok bool) {
	for _, m := range grantPattern.FindAllStringSubmatch(grants, -1) {
		if m[1] == op {
			if m[2] == "" {
				return nil, true
			}
			return strings.Split(m[2], ","), true
		}
	}
	return nil, false
}

// opensTo are the operations on A's row to which a setting of the API's role opens.
func (w walls) opensTo(setting string) string {
	opens := w.opens
	switch {
	case opens != "" || w.api == "":
	case w.api == "s":
		opens = "workspace:s"
	default:
		opens = "workspace:siud"
	}
	for part := range strings.FieldsSeq(opens) {
		if ops, ok := strings.CutPrefix(part, setting+":"); ok {
			return ops
		}
	}
	return ""
}

// sees are the operations on everybody's rows that the policies leave to a role.
func (w walls) sees(role string) string {
	sees := map[string]string{store.RoleWorker: w.workerSees, store.RoleSystem: w.systemSees}[role]
	switch {
	case sees == "-":
		return ""
	case sees == "" && w.grants(role) != "":
		return "siud"
	}
	return sees
}

// keyColumn says whose a row is, and by which tenant's id.
func (w walls) keyColumn() string {
	if w.key == "" {
		return "workspace_id"
	}
	return w.key
}

// tenant is one of the two workspaces of a tenants database.
type tenant struct{ workspace, user uuid.UUID }

func (w walls) owner(who tenant) uuid.UUID {
	if w.ofUser {
		return who.user
	}
	return who.workspace
}

// tenants is a database with one row of each of two workspaces in every table.
type tenants struct {
	env  *storetest.Env
	a, b tenant
	cat  *catalog
}

func newTenants(t testing.TB) *tenants {
	t.Helper()
	w := &tenants{env: storetest.New(t), a: tenant{store.NewID(), store.NewID()}, b: tenant{store.NewID(), store.NewID()}}
	admin := w.env.Admin(t)
	w.cat = readCatalog(t, admin)
	tx := admin.MustBegin()
	defer func() { _ = tx.Rollback() }()
	tx.MustExec(`SET LOCAL session_replication_role = replica`) // no trigger changes a seed, no foreign key asks for an order
	for name, wall := range tables {
		for _, who := range []tenant{w.a, w.b} {
			if wall.seed == "" {
				continue
			}
			if done, err := tx.Exec(wall.seed, who.workspace, who.user); err != nil {
				t.Fatalf("seed %s: %v", name, err)
			} else if n, _ := done.RowsAffected(); n != 1 {
				t.Fatalf("seed %s: %d rows, want one", name, n)
			}
		}
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	return w
}

// scopes are each setting of A and of B alone, and none. The secret is the one of the table's own row where it has one.
func (w *tenants) scopes(t testing.TB, table string) (none scope, a, b []scope) {
	t.Helper()
	hash := ""
	for _, column := range []string{"token_hash", "key_hash"} {
		if w.cat.columns[table][column] != "" {
			hash = column
		}
	}
	of := func(name string, who tenant) []scope {
		email, credential := who.user.String()+"@"+who.workspace.String(), fmt.Sprintf("%064x", 1)
		if hash != "" {
			query := fmt.Sprintf(`SELECT encode(%s, 'hex') FROM %s WHERE %s = $1`, hash, table, tables[table].keyColumn())
			if err := w.env.Admin(t).Get(&credential, query, tables[table].owner(who)); err != nil {
				t.Fatal(err)
			}
		}
		return []scope{{name: name + " workspace", workspace: who.workspace.String()}, {name: name + " user", user: who.user.String()},
			{name: name + " email", email: email}, {name: name + " credential", credential: credential},
			{name: name + " company", company: uuid.NewString() + "," + who.workspace.String()}}
	}
	return scope{name: "no setting"}, of("its own", w.a), of("another's", w.b)
}

// setting is which of the five a scope sets.
func (s scope) setting() string {
	switch {
	case s.workspace != "":
		return "workspace"
	case s.user != "":
		return "user"
	case s.email != "":
		return "email"
	case s.credential != "":
		return "credential"
	case s.company != "":
		return "company"
	}
	return ""
}

// probes are all of a table's that need no catalog but its columns: rows, policies and grants.
func (w *tenants) probes(t testing.TB, table string) []probe {
	t.Helper()
	all := w.grantProbes(table)
	for _, p := range tables[table].more {
		if p.scope.name != "" {
			_, ofA, _ := w.scopes(t, table)
			p.scope = ofA[slices.IndexFunc(ofA, func(s scope) bool { return s.setting() == p.scope.name })]
		}
		p.table, p.kind, p.name = table, rowsKind, fmt.Sprintf("%s under %q: %s; %s", p.role, p.scope.name, p.before, p.do)
		all = append(all, p)
	}
	if tables[table].shared {
		return all
	}
	none, ofA, ofB := w.scopes(t, table)
	for _, s := range append(append([]scope{none}, ofA...), ofB...) {
		own := slices.Contains(ofA, s)
		all = append(all, w.rowProbes(t, table, store.RoleAPI, s, own, tables[table].opensTo(s.setting()))...)
	}
	for _, s := range append([]scope{none}, ofA...) {
		if s.setting() == "" || s.setting() == "workspace" {
			for _, role := range []string{store.RoleWorker, store.RoleSystem} {
				all = append(all, w.rowProbes(t, table, role, s, false, tables[table].sees(role))...)
			}
		}
		all = append(all, w.rowProbes(t, table, roleOwner, s, false, "")...)
	}
	return append(all, w.handOvers(table, ofA)...)
}

// rowProbes tries select, insert, update and delete of one role under one setting, with its grants and with every
// privilege. opens are the operations that the policies leave it; own says that the setting is A's.
func (w *tenants) rowProbes(t testing.TB, table, role string, s scope, own bool, opens string) (all []probe) {
	t.Helper()
	wall := tables[table]
	key, everybody := wall.keyColumn(), role != store.RoleAPI
	add := func(op, before, do string, want ...string) {
		all = append(all, probe{table: table, kind: rowsKind, name: fmt.Sprintf("%s %s %s under %s", role, op, table, s.name), role: role, scope: s, do: do, want: want})
		if before != "" {
			p := &all[len(all)-1]
			p.kind, p.before, p.name = policiesKind, before, p.name+" with every privilege"
		}
	}
	column := w.cat.plainColumn(table, nil)
	for _, every := range []string{"", everything(table, role)} {
		if role == roleOwner && every != "" {
			continue // it has them
		}
		// may says whether privileges get a statement as far as the policies.
		may := func(op string) bool {
			_, ok := granted(wall.grants(role), op)
			return ok || every != "" || role == roleOwner
		}
		visible := func(op string) int { // rows that the policies show to the operation
			switch {
			case !strings.Contains(opens, op) || s.setting() == "" && !everybody:
				return 0
			case everybody:
				return 2
			}
			return 1
		}
		answer := func(op, ok string, more ...string) []string {
			if !may(op) {
				return []string{"denied"}
			}
			return append(more, ok)
		}
		seen := "0/0"
		switch n := visible("s"); {
		case n == 2:
			seen = "1/1"
		case n == 1 && own:
			seen = "1/0"
		case n == 1:
			seen = "0/1"
		}
		add("selects", every, fmt.Sprintf(`SELECT count(*) FILTER (WHERE %[1]s = '%[2]s') || '/' || count(*) FILTER (WHERE %[1]s = '%[3]s') FROM %[4]s`,
			key, wall.owner(w.a), wall.owner(w.b), table), answer("s", "ok "+seen)...)
		// Without WHERE: nothing but the policies picks the rows.
		set := column
		if columns, ok := granted(wall.grants(role), "u"); ok && every == "" {
			set = w.cat.plainColumn(table, columns)
		}
		updated := fmt.Sprint("ok ", visible("u"))
		if role == store.RoleSystem && strings.Contains(wall.systemRefuses, "u") {
			updated = "policy"
		}
		add("updates", every, fmt.Sprintf(`UPDATE %s SET %s = %s`, table, set, w.literal(t, table, set)), answer("u", updated)...)
		var blocked []string // past the policies, stopped by another table's reference
		if visible("d") > 0 {
			blocked = w.cat.referencedBy(table)
		}
		add("deletes from", every, `DELETE FROM `+table, answer("d", fmt.Sprint("ok ", visible("d")), blocked...)...)
		insert := []string{"policy"}
		if strings.Contains(opens, "i") && (own || everybody) {
			insert = append([]string{"ok 1"}, w.cat.duplicates(table)...) // A's row may be there already
		}
		if !may("i") {
			insert = []string{"denied"}
		}
		seed := strings.NewReplacer("$1", "'"+w.a.workspace.String()+"'", "$2", "'"+w.a.user.String()+"'").Replace(wall.seed)
		add("inserts A's row into", every, seed, insert...)
	}
	return all
}

// everything gives a role every privilege and leaves the table's policies alone to refuse.
func everything(table, role string) string {
	return fmt.Sprintf("GRANT SELECT, INSERT, UPDATE, DELETE ON %[1]s TO %[2]s; ALTER TABLE %[1]s DISABLE TRIGGER USER", table, role)
}

// handOvers: under its own setting and with every privilege the API's role cannot give its row away.
func (w *tenants) handOvers(table string, ofA []scope) (all []probe) {
	wall := tables[table]
	for _, s := range []scope{ofA[0], ofA[1], ofA[4]} { // workspace, user, company
		if !strings.Contains(wall.opensTo(s.setting()), "u") {
			continue
		}
		column, to := "workspace_id", w.b.workspace
		switch {
		case s.user != "" && table == "users":
			column, to = "id", w.b.user
		case s.user != "":
			column, to = "user_id", w.b.user
		case table == "workspaces":
			column = "id"
		}
		all = append(all, probe{table: table, kind: policiesKind, name: fmt.Sprintf("%s gives a row of %s away under %s with every privilege", store.RoleAPI, table, s.name),
			role: store.RoleAPI, scope: s, before: everything(table, store.RoleAPI),
			do: fmt.Sprintf(`UPDATE %s SET %s = '%s'`, table, column, to), want: []string{"policy"}})
	}
	return all
}

// grantProbes tries each operation of each role on each column, touching no row: what is not granted is denied.
func (w *tenants) grantProbes(table string) (all []probe) {
	for _, role := range append(slices.Clone(loginRoles), roleStranger) {
		add := func(may bool, before, do string) {
			want := "denied"
			if may {
				want = "ok 0"
			}
			all = append(all, probe{table: table, kind: grantsKind, name: role + ": " + do, role: role, before: before, do: do, want: []string{want}})
		}
		grants := tables[table].grants(role)
		for _, column := range slices.Sorted(maps.Keys(w.cat.columns[table])) {
			for op, do := range map[string]string{"s": `SELECT count(%[2]s) FROM %[1]s WHERE false`, "u": `UPDATE %[1]s SET %[2]s = NULL WHERE false`,
				"i": `INSERT INTO %[1]s (%[2]s) SELECT NULL WHERE false`} {
				columns, ok := granted(grants, op)
				add(ok && (columns == nil || slices.Contains(columns, column)), "", fmt.Sprintf(do, table, column))
			}
		}
		_, mayDelete := granted(grants, "d")
		add(mayDelete, "", fmt.Sprintf(`DELETE FROM %s WHERE false`, table))
		add(false, "", `TRUNCATE `+table)
		add(false, "", fmt.Sprintf(`CREATE TRIGGER wall AFTER INSERT ON %s EXECUTE FUNCTION suppress_redundant_updates_trigger()`, table))
		pk := strings.Join(w.cat.primaryKey(table), ", ")
		add(false, fmt.Sprintf(`CREATE TABLE wall_probe AS SELECT %s FROM %s WHERE false; ALTER TABLE wall_probe OWNER TO %s`, pk, table, role),
			fmt.Sprintf(`ALTER TABLE wall_probe ADD FOREIGN KEY (%[2]s) REFERENCES %[1]s (%[2]s)`, table, pk))
	}
	return all
}

// literal is the value of a column in A's row, as SQL.
func (w *tenants) literal(t testing.TB, table, column string) string {
	t.Helper()
	var value string
	query := fmt.Sprintf(`SELECT quote_nullable(%s::text) FROM %s WHERE %s = $1`, column, table, tables[table].keyColumn())
	if err := w.env.Admin(t).Get(&value, query, tables[table].owner(w.a)); err != nil {
		t.Fatal(err)
	}
	return value
}

// verdict reads an answer as probe.want has it.
func verdict(answer string, err error) string {
	var pe *pq.Error
	switch {
	case err == nil:
		return "ok " + answer
	case !errors.As(err, &pe):
		return err.Error()
	case pe.Code == forbidden && strings.Contains(pe.Message, "row-level security"):
		return "policy"
	case pe.Code == forbidden:
		return "denied"
	case pe.Constraint != "":
		return string(pe.Code) + " " + pe.Constraint
	}
	return string(pe.Code) + " " + pe.Message
}

// run makes the probe in a transaction of its own over a connection of its role, and undoes it.
func (p probe) run(ctx context.Context, db *sqlx.DB) (string, error) {
	tx, err := db.BeginTxx(ctx, nil)
	if err != nil {
		return "", err
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.ExecContext(ctx, `SELECT set_config('app.workspace_id', $1, true), set_config('app.user_id', $2, true), set_config('app.email', $3, true),
		set_config('app.credential', $4, true), set_config('app.workspace_ids', $5, true)`,
		p.scope.workspace, p.scope.user, p.scope.email, p.scope.credential, p.scope.company); err != nil {
		return "", err
	}
	if strings.HasPrefix(p.do, "SELECT") {
		var answer string
		err := tx.GetContext(ctx, &answer, p.do)
		return verdict(answer, err), nil
	}
	done, err := tx.ExecContext(ctx, p.do)
	var n int64
	if err == nil {
		n, err = done.RowsAffected()
	}
	return verdict(fmt.Sprint(n), err), nil
}

// checkRows runs the probes of rows and grants over the connections of the roles, and returns how many there were.
func (w *tenants) checkRows(t *testing.T, env *storetest.Env, kinds ...string) (cells int) {
	t.Helper()
	handles := roleHandles(t, env)
	handles[roleOwner] = env.Owner(t)
	for _, table := range slices.Sorted(maps.Keys(tables)) {
		for _, p := range w.probes(t, table) {
			if p.before != "" || !slices.Contains(kinds, p.kind) || handles[p.role] == nil {
				continue
			}
			cells++
			got, err := p.run(t.Context(), handles[p.role])
			if err != nil {
				t.Fatalf("%s: %v", p.name, err)
			}
			if !slices.Contains(p.want, got) {
				t.Errorf("%s is answered %q, want %q", p.name, got, p.want)
			}
		}
	}
	return cells
}

func TestNoWorkspaceReachesAnothersRows(t *testing.T) {
	t.Parallel()
	w := newTenants(t)
	rows := w.checkRows(t, w.env, rowsKind)
	grants := w.checkRows(t, w.env, grantsKind)
	t.Logf("%d tables: %d cells of table x operation x role x setting, %d of table x column x operation x role", len(tables), rows, grants)
}
