package store_test

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// Are the walls' tests any good? Each policy, FORCE, ENABLE, CHECK, foreign key, unique index, withheld privilege and
// limit of a role is taken away in turn, in a transaction that is rolled back; one of the probes of walls_test.go must
// notice, else the mutant survives and the test names it. What may be taken away is read from the catalog.

// mutant is one wall taken down.
type mutant struct {
	name, sql string
	tables    []string // where to look; nil: everywhere
	first     string   // the kind of probe that is likeliest to notice
}

// prober is the SQL that makes probes: it must run inside the transaction of the mutation, so it is a function there. Its
// verdicts are those of verdict in walls_test.go.
const prober = `
CREATE TEMP TABLE probes (id serial, tab text, kind text, name text, role text, ws text, usr text, email text, cred text, company text, before text, stmt text, want text[]);

CREATE FUNCTION pg_temp.try(p probes) RETURNS text LANGUAGE plpgsql AS $$
DECLARE n bigint; answer text; state text; con text; msg text;
BEGIN
	IF p.before <> '' THEN EXECUTE p.before; END IF;
	PERFORM set_config('app.workspace_id', p.ws, true), set_config('app.user_id', p.usr, true), set_config('app.email', p.email, true), set_config('app.credential', p.cred, true), set_config('app.workspace_ids', p.company, true);
	PERFORM set_config('role', p.role, true);
	IF p.stmt LIKE 'SELECT%' THEN
		EXECUTE p.stmt INTO answer;
	ELSE
		EXECUTE p.stmt;
		GET DIAGNOSTICS n = ROW_COUNT;
		answer := n;
	END IF;
	RAISE EXCEPTION 'undo' USING ERRCODE = 'MU001'; -- all of it, the role and the settings too
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, con = CONSTRAINT_NAME, msg = MESSAGE_TEXT;
	RETURN CASE WHEN state = 'MU001' THEN 'ok ' || answer
		WHEN state = '42501' AND msg LIKE '%row-level security%' THEN 'policy'
		WHEN state = '42501' THEN 'denied'
		WHEN con <> '' THEN state || ' ' || con
		ELSE state || ' ' || msg END;
END $$;

-- The probes of the tables (null: all) that are answered wrongly: up to limit_to of them, kind first_kind first.
CREATE FUNCTION pg_temp.red(tabs text[], first_kind text, limit_to int) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE p probes; got text; found_red int := 0;
BEGIN
	FOR p IN SELECT * FROM probes WHERE tabs IS NULL OR tab = ANY (tabs) ORDER BY (kind = first_kind) DESC, id LOOP
		got := pg_temp.try(p);
		IF NOT (got = ANY (p.want)) THEN
			RETURN NEXT p.kind || ': ' || p.name || ' is answered "' || got || '", want ' || p.want::text;
			found_red := found_red + 1;
			IF found_red >= limit_to THEN RETURN; END IF;
		END IF;
	END LOOP;
END $$;`

// laboratory is a connection on which mutants are made and probed, in one transaction that is never committed: roles
// belong to the whole server.
type laboratory struct{ tx *sqlx.Tx }

func (w *tenants) newLaboratory(t *testing.T, probes []probe) *laboratory {
	t.Helper()
	tx, err := w.env.Admin(t).BeginTxx(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback() })
	l := &laboratory{tx: tx}
	l.exec(t, prober)
	insert, err := tx.Prepare(`COPY probes (tab, kind, name, role, ws, usr, email, cred, company, before, stmt, want) FROM STDIN`)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range probes {
		if _, err := insert.Exec(p.table, p.kind, p.name, p.role, p.scope.workspace, p.scope.user, p.scope.email, p.scope.credential, p.scope.company, p.before, p.do, pq.Array(p.want)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := insert.Exec(); err != nil {
		t.Fatal(err)
	}
	if err := insert.Close(); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *laboratory) exec(t *testing.T, sql string) {
	t.Helper()
	if _, err := l.tx.Exec(sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// red are the probes that are answered wrongly, at most limit of them.
func (l *laboratory) red(t *testing.T, tables []string, first string, limit int) (names []string) {
	t.Helper()
	if err := l.tx.Select(&names, `SELECT * FROM pg_temp.red($1, $2, $3)`, pq.Array(tables), first, limit); err != nil {
		t.Fatal(err)
	}
	return names
}

func TestEachWallThatFallsIsNoticed(t *testing.T) {
	t.Parallel()
	const laboratories = 2
	began := time.Now()
	mutants := make(chan mutant)
	caught, kinds := map[string]int{}, map[string]int{}
	var total, asked, audited int
	var mu sync.Mutex
	var work sync.WaitGroup
	for n := range laboratories {
		w := newTenants(t)
		if n == 0 {
			w.env.Admin(t).MustExec(`CREATE ROLE ` + roleStranger)
			t.Cleanup(func() { storetest.New(t).Admin(t).MustExec(`DROP ROLE ` + roleStranger) })
		}
		probes := w.constraintProbes(t)
		for _, table := range slices.Sorted(maps.Keys(tables)) {
			probes = append(probes, w.probes(t, table)...)
		}
		l := w.newLaboratory(t, probes)
		if red := l.red(t, nil, "", 20); len(red) > 0 {
			t.Fatalf("before any mutation:\n  %s", strings.Join(red, "\n  "))
		}
		if n == 0 {
			all := w.mutants(t)
			total = len(all)
			for _, p := range probes {
				kinds[p.kind]++
			}
			go func() {
				defer close(mutants)
				for _, m := range all {
					mutants <- m
				}
			}()
		}
		work.Go(func() {
			for m := range mutants {
				by, listed, err := l.examine(m)
				if err != nil {
					t.Errorf("%s: %v", m.name, err)
				} else if by == "" {
					t.Errorf("nothing notices: %s (%s)\n  Either it is no wall and belongs in no migration, or a probe in store/walls_test.go has to notice.", m.name, m.sql)
				}
				mu.Lock()
				caught[by]++
				if m.first != grantsKind {
					asked++
				}
				if listed {
					audited++
				}
				mu.Unlock()
			}
		})
	}
	work.Wait()
	t.Logf("%d probes %v; mutations: %d caught of %d by behaviour in %s, by %v; the audit of the catalog sees %d of %d that are not grants", kinds[rowsKind]+kinds[grantsKind]+kinds[policiesKind]+kinds[constraintKind], kinds,
		total-caught[""], total, time.Since(began).Round(time.Millisecond), caught, audited, asked)
}

// examine makes the mutant, returns the kind of the first probe that is answered wrongly, "" for none, and whether the
// audit of the catalog sees it too, and undoes it.
func (l *laboratory) examine(m mutant) (kind string, audited bool, err error) {
	if _, err := l.tx.Exec(`SAVEPOINT mutant`); err != nil {
		return "", false, err
	}
	if _, err = l.tx.Exec(m.sql); err == nil {
		err = l.tx.Get(&kind, `SELECT coalesce(min(split_part(r, ':', 1)), '') FROM pg_temp.red($1, $2, 1) r`, pq.Array(m.tables), m.first)
	}
	var findings []store.Finding
	if err == nil && m.first != grantsKind { // of these it holds a list: TestTheAuditFindsEachBrokenRule
		findings, err = store.AuditOn(context.Background(), l.tx)
	}
	_, undone := l.tx.Exec(`ROLLBACK TO SAVEPOINT mutant; RELEASE SAVEPOINT mutant`)
	return kind, len(findings) > 0, errors.Join(err, undone)
}
