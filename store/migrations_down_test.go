package store_test

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/pressly/goose/v3"

	"github.com/generic-corp/muster/store/storetest"
)

// TestEveryMigrationGoesBackToWhereItCameFrom takes each migration up and down and compares the catalog: columns,
// constraints, indexes, policies, triggers, functions and privileges.
func TestEveryMigrationGoesBackToWhereItCameFrom(t *testing.T) {
	t.Parallel()
	ctx, env := context.Background(), storetest.New(t)
	provider, err := goose.NewProvider(goose.DialectPostgres, env.Owner(t).DB, os.DirFS("migrations"))
	if err != nil {
		t.Fatal(err)
	}
	catalog := func() []string {
		t.Helper()
		var lines []string
		err := env.Admin(t).SelectContext(ctx, &lines, `
			SELECT 'column ' || c.relname || '.' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod) || ' ' || a.attnotnull || ' '
				|| coalesce(pg_get_expr(d.adbin, d.adrelid), '') || ' ' || coalesce((SELECT string_agg(x::text, ',' ORDER BY x::text) FROM unnest(a.attacl) x), '')
			FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
			WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped
			UNION ALL SELECT 'table ' || relname || ' ' || relrowsecurity || ' ' || relforcerowsecurity || ' ' || coalesce(array_to_string(reloptions, ','), '') || ' '
				|| coalesce((SELECT string_agg(x::text, ',' ORDER BY x::text) FROM unnest(relacl) x), '')
			FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v')
			UNION ALL SELECT 'constraint ' || conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'public'::regnamespace
			UNION ALL SELECT 'index ' || indexdef FROM pg_indexes WHERE schemaname = 'public'
			UNION ALL SELECT 'policy ' || concat_ws(' ', tablename, policyname, permissive, roles, cmd, qual, with_check) FROM pg_policies
			UNION ALL SELECT 'trigger ' || pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
			UNION ALL SELECT 'function ' || pg_get_functiondef(p.oid) FROM pg_proc p WHERE p.pronamespace = 'public'::regnamespace
			ORDER BY 1`)
		if err != nil {
			t.Fatal(err)
		}
		return lines
	}
	if _, err := provider.DownTo(ctx, 0); err != nil {
		t.Fatal(err)
	}
	states := [][]string{catalog()}
	for range provider.ListSources() {
		if _, err := provider.UpByOne(ctx); err != nil {
			t.Fatal(err)
		}
		states = append(states, catalog())
	}
	sources := provider.ListSources()
	for i := len(sources) - 1; i >= 0; i-- {
		if _, err := provider.Down(ctx); err != nil {
			t.Fatal(err)
		}
		now, before := catalog(), states[i]
		for _, line := range before {
			if !slices.Contains(now, line) {
				t.Errorf("the way back of %s loses %s", sources[i].Path, first(line))
			}
		}
		for _, line := range now {
			if !slices.Contains(before, line) {
				t.Errorf("the way back of %s leaves %s", sources[i].Path, first(line))
			}
		}
	}
	t.Logf("%d migrations, %d lines of catalog at the end", len(sources), len(states[len(states)-1]))
	if len(sources) < 9 || len(states[len(states)-1]) < 300 {
		t.Errorf("%d migrations, %d lines of catalog: too little was looked at", len(sources), len(states[len(states)-1]))
	}
}

func first(line string) string {
	line, _, _ = strings.Cut(line, "\n")
	return line
}
