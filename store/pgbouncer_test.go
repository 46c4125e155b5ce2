package store_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

// Behind PgBouncer in transaction mode transactions of all workspaces and processes share a few connections. What
// one transaction sets, prepares or breaks must never meet the next.

func TestThroughPgBouncer(t *testing.T) {
	t.Parallel()

	t.Run("NoWorkspaceReachesAnothersRows", func(t *testing.T) {
		t.Parallel()
		w := newTenants(t)
		t.Logf("%d cells over one connection per role", w.checkRows(t, w.env.ThroughPgBouncer(t, 1), rowsKind))
	})

	t.Run("TenantsOnTwoConnectionsLeakNothingThroughErrorsPanicsAndCancels", func(t *testing.T) {
		t.Parallel()
		w := newTenants(t)
		db, err := store.Open(t.Context(), w.env.ThroughPgBouncer(t, 2).APIURL, 8)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		api := store.NewAPI(db)
		own := map[tenant]uuid.UUID{} // their tasks
		for _, who := range []tenant{w.a, w.b} {
			var id uuid.UUID
			if err := w.env.Admin(t).Get(&id, `SELECT id FROM tasks WHERE workspace_id = $1`, who.workspace); err != nil {
				t.Fatal(err)
			}
			own[who] = id
		}
		var mu sync.Mutex
		backends, done := map[int]bool{}, map[string]int{}
		seed := uint64(time.Now().UnixNano())
		t.Logf("seed %d", seed)
		var clients sync.WaitGroup
		for n := range 8 {
			random := rand.New(rand.NewPCG(seed, uint64(n)))
			clients.Go(func() {
				for range 60 {
					who, kind := []tenant{w.a, w.b}[random.IntN(2)], random.IntN(5)
					scope := store.Scope{Workspace: who.workspace, User: who.user}
					what := []string{"read", "error", "panic", "cancel", "look without a scope"}[kind]
					switch what {
					case "read":
						if tasks, _, err := api.Tasks(t.Context(), who.workspace, store.TaskFilter{}, uuid.Nil, 10); err != nil || len(tasks) != 1 || tasks[0].ID != own[who] {
							t.Errorf("%d tasks of its own, %v", len(tasks), err)
						}
					case "error":
						if _, err := api.Do(t.Context(), scope, nil, func(*store.Work) (store.Answer, error) { return store.Answer{}, errors.New("refused") }); err == nil {
							t.Error("the error is lost")
						}
					case "panic":
						func() {
							defer func() { _ = recover() }()
							_, _ = api.Do(t.Context(), scope, nil, func(*store.Work) (store.Answer, error) { panic("in the work") })
						}()
					case "cancel":
						ctx, cancel := context.WithCancel(t.Context())
						if _, err := api.Do(ctx, scope, nil, func(work *store.Work) (store.Answer, error) {
							cancel()
							_, err := work.Task(ctx, uuid.New())
							return store.Answer{}, err
						}); err == nil {
							t.Error("the cancellation is lost")
						}
						cancel()
					default:
						var seen, backend int
						var settings sql.NullString
						if err := db.QueryRow(`SELECT (SELECT count(*) FROM tasks) + (SELECT count(*) FROM users) + (SELECT count(*) FROM members), pg_backend_pid(),
							concat(current_setting('app.workspace_id', true), current_setting('app.workspace_ids', true), current_setting('app.user_id', true), current_setting('app.email', true), current_setting('app.credential', true))`).
							Scan(&seen, &backend, &settings); err != nil || seen != 0 || settings.String != "" {
							t.Errorf("without a scope it sees %d rows under %q, %v", seen, settings.String, err)
						}
						mu.Lock()
						backends[backend] = true
						mu.Unlock()
					}
					mu.Lock()
					done[what]++
					mu.Unlock()
				}
			})
		}
		clients.Wait()
		t.Logf("8 clients on %d connections: %v", len(backends), done)
		for _, what := range []string{"read", "error", "panic", "cancel", "look without a scope"} {
			if done[what] == 0 {
				t.Errorf("no %s happened", what)
			}
		}
	})

	t.Run("TheRolesSettingsHold", func(t *testing.T) {
		t.Parallel()
		w := newTenants(t)
		for role, db := range roleHandles(t, w.env.ThroughPgBouncer(t, 1)) {
			var settings, other []string
			if err := db.Select(&settings, `SELECT unnest(rolconfig) FROM pg_roles WHERE rolname = current_user`); err != nil || len(settings) < 5 {
				t.Errorf("%s has %q, %v", role, settings, err)
			}
			if err := db.Select(&other, `SELECT s || ' is ' || current_setting(split_part(s, '=', 1)) FROM pg_roles, unnest(rolconfig) s
				WHERE rolname = current_user AND lower(current_setting(split_part(s, '=', 1))) <> lower(split_part(s, '=', 2))`); err != nil || len(other) > 0 {
				t.Errorf("%s: %q, %v", role, other, err)
			}
		}
	})

	t.Run("StatementsAreNotBoundToAConnection", func(t *testing.T) {
		t.Parallel()
		w := newTenants(t)
		env := w.env.ThroughPgBouncer(t, 2)
		db := env.System(t)
		// While one connection is held by a transaction, the same texts with arguments run on the other, and the reverse.
		for range 3 {
			tx := db.MustBegin()
			for n := range 5 {
				var inside, outside string
				err := errors.Join(tx.Get(&inside, `SELECT $1::text || jsonb_build_object('n', $2::int)`, "a", n), db.Get(&outside, `SELECT $1::text || jsonb_build_object('n', $2::int)`, "a", n))
				if want := fmt.Sprintf(`a{"n": %d}`, n); err != nil || inside != want || outside != want {
					t.Errorf("%q and %q, %v", inside, outside, err)
				}
			}
			if err := tx.Rollback(); err != nil {
				t.Error(err)
			}
		}
		var prepared int
		if err := db.Get(&prepared, `SELECT count(*) FROM pg_prepared_statements`); err != nil || prepared != 0 {
			t.Errorf("%d prepared statements are left on the connection, %v", prepared, err)
		}
	})
}
