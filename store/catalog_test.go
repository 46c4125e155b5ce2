package store_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// catalog is what the database says of its tables, so that what a migration adds is tried without being named here.
type catalog struct {
	columns map[string]map[string]string // their types, by table
	ordered map[string][]string          // columns in their order
	secured []string                     // tables with row-level security
	checks  []constraint
	foreign []constraint
	unique  []constraint // unique indexes, primary keys too
}

// constraint of a table. columns are its own, in its order; references is the other table of a foreign key.
type constraint struct {
	Table      string         `db:"tab"`
	Name       string         `db:"name"`
	Columns    pq.StringArray `db:"cols"`
	References string         `db:"refs"`
	Primary    bool           `db:"prim"`
	Constraint bool           `db:"con"` // a unique constraint, not merely an index
}

const everyConstraint = `SELECT c.conrelid::regclass::text AS tab, c.conname AS name, coalesce(nullif(c.confrelid, 0)::regclass::text, '') AS refs,
	(SELECT array_agg(a.attname ORDER BY k.n) FROM unnest(c.conkey) WITH ORDINALITY k (num, n) JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.num) AS cols,
	false AS prim, true AS con
	FROM pg_constraint c WHERE c.connamespace = 'public'::regnamespace AND c.contype = $1 ORDER BY 1, 2`

func readCatalog(t testing.TB, db *sqlx.DB) *catalog {
	t.Helper()
	c := &catalog{columns: map[string]map[string]string{}, ordered: map[string][]string{}}
	var columns []struct {
		Table  string `db:"tab"`
		Column string `db:"col"`
		Type   string `db:"typ"`
	}
	for _, q := range []struct {
		into  any
		query string
		args  []any
	}{
		{&columns, `SELECT c.relname AS tab, a.attname AS col, format_type(a.atttypid, NULL) AS typ FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
			WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') ORDER BY 1, a.attnum`, nil},
		{&c.secured, `SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relrowsecurity ORDER BY 1`, nil},
		{&c.checks, everyConstraint, []any{"c"}},
		{&c.foreign, everyConstraint, []any{"f"}},
		{&c.unique, `SELECT i.indrelid::regclass::text AS tab, x.relname AS name, i.indisprimary AS prim, '' AS refs,
			(SELECT array_agg(a.attname ORDER BY k.n) FROM unnest(i.indkey) WITH ORDINALITY k (num, n) JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.num) AS cols,
			EXISTS (SELECT 1 FROM pg_constraint c WHERE c.conindid = i.indexrelid AND c.contype IN ('p', 'u')) AS con
			FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid WHERE i.indisunique AND x.relnamespace = 'public'::regnamespace ORDER BY 1, 2`, nil},
	} {
		if err := db.Select(q.into, q.query, q.args...); err != nil {
			t.Fatal(err)
		}
	}
	for _, column := range columns {
		if c.columns[column.Table] == nil {
			c.columns[column.Table] = map[string]string{}
		}
		c.columns[column.Table][column.Column] = column.Type
		c.ordered[column.Table] = append(c.ordered[column.Table], column.Column)
	}
	for table := range c.columns {
		wall, known := tables[table]
		if !known {
			t.Fatalf("table %s has no walls: add it to tables in store/walls_tables_test.go, with a seed and the roles' grants, or as shared when it belongs to no workspace", table)
		}
		if wall.shared && (c.columns[table]["workspace_id"] != "" || c.columns[table]["user_id"] != "") {
			t.Errorf("table %s is shared in store/walls_tables_test.go and has rows of workspaces or users", table)
		}
	}
	for table := range tables {
		if c.columns[table] == nil {
			t.Fatalf("store/walls_tables_test.go tells of a table %s, which does not exist", table)
		}
	}
	return c
}

// plainColumn is one of the given columns (nil: any) that names neither tenant nor other row: it may be set to any row's value.
func (c *catalog) plainColumn(table string, among []string) string {
	for _, column := range c.ordered[table] {
		names := func(o constraint) bool { return o.Table == table && slices.Contains(o.Columns, column) }
		if (among == nil || slices.Contains(among, column)) && !slices.ContainsFunc(c.unique, names) && !slices.ContainsFunc(c.foreign, names) {
			return column
		}
	}
	return c.ordered[table][0]
}

func (c *catalog) primaryKey(table string) []string {
	for _, u := range c.unique {
		if u.Table == table && u.Primary {
			return u.Columns
		}
	}
	return nil
}

// fresh is what makes a copied row pass the unique index o: a new value for one of its columns that is none of those.
func (c *catalog) fresh(o constraint, except []string) []string {
	for _, kind := range []struct{ typ, value string }{{"uuid", "gen_random_uuid()"}, {"bigint", "(random() * 1e15)::bigint"}, {"text", "gen_random_uuid()"}} {
		for _, column := range o.Columns {
			checked := slices.ContainsFunc(c.checks, func(check constraint) bool { return check.Table == o.Table && slices.Contains(check.Columns, column) })
			if c.columns[o.Table][column] == kind.typ && !checked && column != "workspace_id" && !slices.Contains(except, column) {
				return []string{fmt.Sprintf(`'%s', %s`, column, kind.value)}
			}
		}
	}
	return nil
}

// referencedBy are the verdicts of a delete that other tables' rows stop, duplicates those of an insert of a row that is there.
func (c *catalog) referencedBy(table string) (verdicts []string) {
	for _, f := range c.foreign {
		if f.References == table {
			verdicts = append(verdicts, "23503 "+f.Name)
		}
	}
	return verdicts
}

func (c *catalog) duplicates(table string) (verdicts []string) {
	for _, u := range c.unique {
		if u.Table == table {
			verdicts = append(verdicts, "23505 "+u.Name)
		}
	}
	return verdicts
}

// constraintProbes try each CHECK, foreign key and unique index with a row that it must refuse and one that it must take.
func (w *tenants) constraintProbes(t testing.TB) (all []probe) {
	t.Helper()
	add := func(table, name, before, do string, want ...string) {
		all = append(all, probe{table: table, kind: constraintKind, name: name, role: "none", before: before, do: do, want: want})
	}
	where := func(table string, who tenant) string {
		if tables[table].shared {
			return fmt.Sprintf(`WHERE ctid = (SELECT min(ctid) FROM %s)`, table)
		}
		return fmt.Sprintf(`WHERE %s = '%s'`, tables[table].keyColumn(), tables[table].owner(who))
	}
	tried := map[string]bool{}
	for _, c := range w.cat.checks {
		values, known := tables[c.Table].checks[c.Name]
		tried[c.Table+"."+c.Name] = true
		if !known {
			t.Errorf("CHECK %[2]s of %[1]s has no bad value: add one and its good twin to tables[%[1]q].checks in store/walls_tables_test.go", c.Table, c.Name)
			continue
		}
		add(c.Table, c.Name+" with a bad value", "", fmt.Sprintf(`UPDATE %s SET %s %s`, c.Table, values.bad, where(c.Table, w.a)), "23514 "+c.Name)
		add(c.Table, c.Name+" with a good value", "", fmt.Sprintf(`UPDATE %s SET %s %s`, c.Table, values.good, where(c.Table, w.a)), "ok 1")
	}
	for table, wall := range tables {
		for name := range wall.checks {
			if !tried[table+"."+name] {
				t.Errorf("store/walls_tables_test.go tells of a CHECK %s of %s, which does not exist", name, table)
			}
		}
	}
	for _, f := range w.cat.foreign {
		if tables[f.Table].shared {
			continue
		}
		alone := w.without(func(o constraint) bool { return o.References == f.Table })
		var unknown, foreign, own []string
		for _, column := range f.Columns {
			unknown = append(unknown, column+" = gen_random_uuid()")
			if len(f.Columns) > 1 && column != "workspace_id" {
				foreign = append(foreign, fmt.Sprintf(`%s = (SELECT %[1]s FROM %s %s)`, column, f.Table, where(f.Table, w.b)))
			}
			own = append(own, column+" = "+column)
		}
		refuse := func(what string, set []string) {
			add(f.Table, f.Name+" with "+what, alone, fmt.Sprintf(`UPDATE %s SET %s %s`, f.Table, strings.Join(set, ", "), where(f.Table, w.a)), "23503 "+f.Name)
		}
		refuse("an unknown row", unknown)
		if foreign != nil {
			refuse("another workspace's row", foreign)
		}
		add(f.Table, f.Name+" with its own row", alone, fmt.Sprintf(`UPDATE %s SET %s %s`, f.Table, strings.Join(own, ", "), where(f.Table, w.a)), "ok 1")
	}
	for _, u := range w.cat.unique {
		if tables[u.Table].shared {
			continue
		}
		key := tables[u.Table].keyColumn()
		if !slices.Contains(globallyUnique, u.Name) && u.Columns[0] != key {
			t.Errorf("unique index %s of %s tells that another workspace's value exists: let it begin with %s, or say in globallyUnique why it may", u.Name, u.Table, key)
		}
		var fresh []string // so that this index alone has a reason to refuse
		for _, o := range w.cat.unique {
			if o.Table == u.Table && o.Name != u.Name {
				fresh = append(fresh, w.cat.fresh(o, u.Columns)...)
			}
		}
		alone := w.without(func(o constraint) bool { return o.References == u.Table || o.Table == u.Table }) + `; ALTER TABLE ` + u.Table + ` DISABLE TRIGGER USER`
		copied := func(change ...string) string {
			return fmt.Sprintf(`INSERT INTO %[1]s SELECT r.* FROM (SELECT * FROM %[1]s %[2]s) o, LATERAL jsonb_populate_record(o::%[1]s, jsonb_build_object(%[3]s)) r`,
				u.Table, where(u.Table, w.a), strings.Join(append(change, fresh...), ", "))
		}
		add(u.Table, u.Name+" with a row twice", alone, copied(), "23505 "+u.Name)
		if len(u.Columns) > 1 && u.Columns[0] == key {
			add(u.Table, u.Name+" with the same value in another workspace", alone+fmt.Sprintf(`; DELETE FROM %s %s`, u.Table, where(u.Table, w.b)),
				copied(fmt.Sprintf(`'%s', '%s'`, key, tables[u.Table].owner(w.b))), "ok 1")
		}
	}
	return all
}

// without is the SQL that drops the foreign keys that which says.
func (w *tenants) without(which func(constraint) bool) string {
	drops := []string{"SELECT 1"}
	for _, f := range w.cat.foreign {
		if which(f) {
			drops = append(drops, fmt.Sprintf(`ALTER TABLE %s DROP CONSTRAINT IF EXISTS %s`, f.Table, f.Name))
		}
	}
	return strings.Join(drops, "; ")
}
