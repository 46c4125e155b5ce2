package store_test

import (
	"os"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// TestEntriesOfTheVersionBeforeAreChained takes the log back to what the version before wrote, and migrates it as its owner.
func TestEntriesOfTheVersionBeforeAreChained(t *testing.T) {
	t.Parallel()
	env := storetest.New(t)
	a, b := storetest.NewWorkspace(t, env, "pro"), storetest.NewWorkspace(t, env, "pro")
	raw, err := os.ReadFile("migrations/00005_audit.sql")
	if err != nil {
		t.Fatal(err)
	}
	up, down, _ := strings.Cut(string(raw), "-- +goose Down")
	owner := env.Owner(t)
	owner.MustExec(down)
	const before = `INSERT INTO audit_log (workspace_id, id, actor_type, actor_id, action, details) VALUES ($1, $2, 'user', 'usr_x', 'test.before', '{"b": 1, "a": [1.50]}')`
	for range 100 {
		for _, ws := range []uuid.UUID{a, b} {
			env.Admin(t).MustExec(before, ws, uuid.New())
		}
	}
	owner.MustExec(up)
	tx := env.API(t).MustBegin() // a process of the version before goes on
	tx.MustExec(`SELECT set_config('app.workspace_id', $1, true)`, a.String())
	tx.MustExec(before, a, uuid.New())
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	system := store.NewSystem(env.System(t))
	for ws, want := range map[uuid.UUID]int64{a: 103, b: 102} {
		if check, err := system.VerifyChain(t.Context(), ws); err != nil || check.Entries != want || len(check.Faults) != 0 {
			t.Errorf("%+v %v, want %d entries", check, err, want)
		}
	}
}
