package store_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/generic-corp/muster/store/storetest"
)

// The line's functions run with their caller's rights: what row-level security and grants hold outside, they hold inside.
func TestLineFunctionsKeepTheWalls(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	own, foreign := storetest.NewWorkspace(t, l.env, "pro"), storetest.NewWorkspace(t, l.env, "pro")
	l.submit(own, task("a"), task("b"))
	l.submit(foreign, task("c"))
	both := pq.Array([]uuid.UUID{own, foreign})
	api := l.env.API(t)

	// inOwn runs fn as the API does for own, and undoes it.
	inOwn := func(t *testing.T, fn func(tx *sqlx.Tx)) {
		t.Helper()
		tx, err := api.Beginx()
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback()
		if _, err := tx.Exec(`SELECT set_config('app.workspace_id', $1, true)`, own); err != nil {
			t.Fatal(err)
		}
		fn(tx)
	}

	t.Run("TheAPILocksAndLooksAtItsWorkspaceAlone", func(t *testing.T) {
		inOwn(t, func(tx *sqlx.Tx) {
			var locked []uuid.UUID
			if err := tx.Select(&locked, `SELECT workspace_id FROM line_lock($1)`, both); err != nil || len(locked) != 1 || locked[0] != own {
				t.Errorf("locked %v, %v", locked, err)
			}
			var seen []struct {
				Workspace uuid.UUID     `db:"workspace_id"`
				Task      uuid.NullUUID `db:"id"`
			}
			if err := tx.Select(&seen, `SELECT workspace_id, id FROM line_look($1, '{10,10}')`, both); err != nil {
				t.Fatal(err)
			}
			tasks := map[uuid.UUID]int{}
			for _, s := range seen {
				if s.Task.Valid {
					tasks[s.Workspace]++
				}
			}
			if tasks[own] != 2 || tasks[foreign] != 0 {
				t.Errorf("looked at %v", tasks)
			}
		})
	})

	t.Run("TheAPISavesItsWorkspaceAlone", func(t *testing.T) {
		var turn uuid.UUID // of own: it is put back in the end
		if err := l.env.Admin(t).Get(&turn, `SELECT turn FROM workspace_load WHERE workspace_id = $1`, own); err != nil {
			t.Fatal(err)
		}
		inOwn(t, func(tx *sqlx.Tx) {
			_, err := tx.Exec(`SELECT line_save($1, '{7,7}', '{NULL,NULL}', '{NULL,NULL}', $2, '{0,0}', '{0,0}', '{0,0}')`,
				both, pq.Array([]string{"2026-01-01", "2026-01-01"}))
			if err != nil {
				t.Fatal(err)
			}
			var waiting int
			if err := tx.Get(&waiting, `SELECT waiting FROM workspace_load WHERE workspace_id = $1`, own); err != nil || waiting != 7 {
				t.Errorf("own waiting is %d, %v", waiting, err)
			}
			if err := tx.Commit(); err != nil {
				t.Fatal(err)
			}
		})
		var waiting []int
		if err := l.env.Admin(t).Select(&waiting, `SELECT waiting FROM workspace_load WHERE workspace_id = $1`, foreign); err != nil || waiting[0] != 1 {
			t.Errorf("foreign waiting is %v, %v", waiting, err)
		}
		if _, err := l.env.Admin(t).Exec(`UPDATE workspace_load SET waiting = 2, turn = $2, turn_at = now(), period = date_trunc('month', now() AT TIME ZONE 'UTC')
			WHERE workspace_id = $1`, own, turn); err != nil {
			t.Fatal(err)
		}
	})

	t.Run("TheAPIMayNeitherEndNorLeaseNorBook", func(t *testing.T) {
		for _, call := range []string{
			`SELECT * FROM line_end('{}', '{}', '{}')`,
			`SELECT * FROM line_lease('{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}')`,
			`SELECT line_book('{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}',
				'{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}')`,
		} {
			if _, err := api.Exec(call); err == nil || err.(*pq.Error).Code != "42501" {
				t.Errorf("%s: %v", call, err)
			}
			if _, err := l.env.Worker(t).Exec(call); err != nil {
				t.Errorf("%s: a worker may: %v", call, err)
			}
		}
	})

	// The wake-up that is not lost: a look within the transaction that has waited for the lock sees what was committed
	// meanwhile, which a function that is not VOLATILE would not.
	t.Run("ALookBehindTheLockSeesWhatWasCommittedWhileItWaited", func(t *testing.T) {
		ctx := context.Background()
		worker := l.env.Worker(t)
		holder, err := l.env.Admin(t).Beginx()
		if err != nil {
			t.Fatal(err)
		}
		defer holder.Rollback()
		if _, err := holder.Exec(`SELECT 1 FROM workspace_load WHERE workspace_id = $1 FOR UPDATE`, foreign); err != nil {
			t.Fatal(err)
		}
		if _, err := holder.Exec(`UPDATE tasks SET priority = 50 WHERE workspace_id = $1`, foreign); err != nil {
			t.Fatal(err)
		}
		seen := make(chan []int, 1)
		go func() {
			tx, err := worker.BeginTxx(ctx, nil)
			if err != nil {
				t.Error(err)
				seen <- nil
				return
			}
			defer tx.Rollback()
			var priorities []int
			if _, err = tx.Exec(`SET LOCAL lock_timeout = '20s'`); err == nil {
				if _, err = tx.Exec(`SELECT * FROM line_lock($1)`, pq.Array([]uuid.UUID{foreign})); err == nil {
					err = tx.Select(&priorities, `SELECT t.priority FROM line_look($1, '{1}') l JOIN tasks t ON t.workspace_id = l.workspace_id AND t.id = l.id`,
						pq.Array([]uuid.UUID{foreign}))
				}
			}
			if err != nil {
				t.Error(err)
			}
			seen <- priorities
		}()
		var waits int
		for deadline := time.Now().Add(20 * time.Second); waits == 0 && time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
			if err := l.env.Admin(t).Get(&waits, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`); err != nil {
				t.Fatal(err)
			}
		}
		if err := holder.Commit(); err != nil {
			t.Fatal(err)
		}
		if got := <-seen; len(got) != 1 || got[0] != 50 {
			t.Errorf("the look saw priorities %v", got)
		}
	})
}
