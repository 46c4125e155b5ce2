package store_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// makeDue turns every task of the workspaces into a scheduled one whose time has come.
func (l *line) makeDue(workspaces ...uuid.UUID) {
	l.t.Helper()
	for _, ws := range workspaces {
		l.env.Admin(l.t).MustExec(`UPDATE tasks SET status = 'scheduled', run_at = now() - interval '1 second' WHERE workspace_id = $1`, ws)
		l.env.Admin(l.t).MustExec(`UPDATE workspace_load SET turn = NULL, turn_at = NULL WHERE workspace_id = $1`, ws)
	}
}

func TestPromoteDue(t *testing.T) {
	t.Parallel()
	ctx := context.Background()

	t.Run("AHeldWorkspaceDelaysNobodyHoweverMuchIsDueThere", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		held, other := storetest.NewWorkspace(t, l.env, "pro"), storetest.NewWorkspace(t, l.env, "pro")
		crowd := make([]store.NewTask, 1000) // a whole batch, and more
		for i := range crowd {
			crowd[i] = task("x")
		}
		l.submit(held, crowd...)
		l.submit(held, crowd...)
		ids, _ := l.submit(other, task("y"))
		l.makeDue(held)
		l.makeDue(other) // younger: it comes last
		release := l.hold(store.ClaimedTask{Workspace: held})
		defer release()
		n, more, turns, err := l.system.PromoteDue(ctx)
		if err != nil || n != 1 || more || len(turns) != 1 || l.status(other, ids[0]) != store.StatusQueued {
			t.Fatalf("promoted %d, more %v, turns %v, %v", n, more, turns, err)
		}
		release()
		total := 0
		for more := true; more; total += n {
			if n, more, _, err = l.system.PromoteDue(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if total != 2000 {
			t.Errorf("promoted %d of 2000 once the row was let go", total)
		}
	})

	t.Run("AWorkspaceThatFailsDelaysNobody", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		broken, other := storetest.NewWorkspace(t, l.env, "pro"), storetest.NewWorkspace(t, l.env, "pro")
		l.submit(broken, task("x"))
		ids, _ := l.submit(other, task("y"))
		l.makeDue(broken, other)
		l.env.Admin(t).MustExec(fmt.Sprintf(`CREATE FUNCTION break() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
				IF NEW.workspace_id = '%s' THEN RAISE EXCEPTION 'broken'; END IF; RETURN NEW; END $$;
			CREATE TRIGGER break BEFORE UPDATE ON tasks FOR EACH ROW EXECUTE FUNCTION break()`, broken))
		began := time.Now()
		n, _, turns, err := l.system.PromoteDue(ctx)
		if err == nil || n != 1 || len(turns) != 1 || l.status(other, ids[0]) != store.StatusQueued {
			t.Fatalf("promoted %d, turns %v, %v after %s", n, turns, err, time.Since(began))
		}
	})
}

func TestAWorkspaceThatFailsKeepsNoOthersTurnsLost(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	var workspaces []uuid.UUID
	for range 5 {
		ws := storetest.NewWorkspace(t, l.env, "pro")
		l.submit(ws, task("x"))
		workspaces = append(workspaces, ws)
	}
	l.env.Admin(t).MustExec(fmt.Sprintf(`CREATE FUNCTION break() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			IF NEW.workspace_id = '%s' THEN RAISE EXCEPTION 'broken'; END IF; RETURN NEW; END $$;
		CREATE TRIGGER break BEFORE UPDATE ON workspace_load FOR EACH ROW EXECUTE FUNCTION break()`, workspaces[2]))
	turns, err := l.system.ReissueLost(context.Background(), store.QueuePro, time.Now().Add(time.Hour))
	if err == nil || len(turns) != 4 {
		t.Fatalf("%d turns, %v; want those of the 4 others, and the error", len(turns), err)
	}
	for i, ws := range []uuid.UUID{workspaces[0], workspaces[1], workspaces[3], workspaces[4]} {
		if turns[i].Workspace != ws {
			t.Errorf("turn %d is not in the order of the lost ones", i)
		}
	}
}

func TestATurnOfTheFutureIsReplacedAfterTheClockWasSetBack(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	set, other := storetest.NewWorkspace(t, l.env, "pro"), storetest.NewWorkspace(t, l.env, "pro")
	l.submit(set, task("x"))
	l.submit(other, task("y"))
	l.env.Admin(t).MustExec(`UPDATE workspace_load SET turn_at = now() + interval '20 seconds' WHERE workspace_id = $1`, set)
	turns, err := l.system.ReissueLost(context.Background(), store.QueuePro, time.Now().Add(-time.Hour))
	if err != nil || len(turns) != 1 || turns[0].Workspace != set {
		t.Fatalf("%v, %v", turns, err)
	}
	l.won(&turns[0])
}

func TestTierLoad(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	l := newLine(t)
	ws, exhausted := storetest.NewWorkspace(t, l.env, "starter"), storetest.NewWorkspace(t, l.env, "starter") // cap 3
	if _, err := l.system.SetLimits(ctx, exhausted, map[string]int64{"agent_ms": 5_000}, store.Operator{Name: "test"}); err != nil {
		t.Fatal(err)
	}
	_, turn := l.submit(ws, task("a"), task("b"), task("c"), task("d"), task("e"))
	l.submit(exhausted, task("f"), task("g"))
	for i, want := range []int64{3, 2, 1, 0} {
		tiers, err := l.system.TierLoad(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, tier := range tiers {
			if tier.Queue == store.QueueStarter && (tier.Runnable != want || tier.Running != int64(i) || tier.Waiting != int64(7-i)) {
				t.Errorf("with %d running: %+v; want %d runnable: no worker helps a workspace without quota", i, tier, want)
			}
		}
		if turn != nil {
			turn = l.won(turn).Turn
		}
	}
}

func TestSweepsPassHeldRowsBy(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	l := newLine(t)
	workspaces := make([]uuid.UUID, 12)
	var held []store.ClaimedTask
	for i := range workspaces {
		workspaces[i] = storetest.NewWorkspace(t, l.env, "pro")
		_, turn := l.submit(workspaces[i], task("x"), task("y"))
		if c := l.won(turn); i < 10 {
			held = append(held, c.Task)
		}
	}
	release := l.hold(held...)
	defer release()
	began := time.Now()
	turns, err := l.system.ReissueLost(ctx, store.QueuePro, time.Now().Add(time.Hour))
	if err != nil || len(turns) != 2 {
		t.Errorf("reissued %d of the 2 whose rows are free, %v", len(turns), err)
	}
	if _, err := l.system.DeclareDead(ctx, l.worker, 0); err != nil {
		t.Fatal(err)
	}
	if n, _, err := l.system.RecoverDeadWorkers(ctx); n != 2 || !store.Unavailable(err) {
		t.Errorf("recovered %d of the 2 whose rows are free, %v", n, err)
	}
	if took := time.Since(began); took > 50*time.Second { // with the role's own patience 100 s
		t.Errorf("ten held rows held up the sweeps for %s", took)
	}
	release()
	if n, _, err := l.system.RecoverDeadWorkers(ctx); n != 10 || err != nil {
		t.Errorf("recovered %d of 10 afterwards, %v", n, err)
	}
}

func TestSweepRemovesWhatHasServedBatchByBatch(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	l := newLine(t)
	ws := storetest.NewWorkspace(t, l.env, "free") // with a session and its token
	admin := l.env.Admin(t)
	const old = 12_000 // more than two batches
	admin.MustExec(`INSERT INTO idempotency_keys (workspace_id, route, key, body_hash, status, created_at)
		SELECT $1, 'r', i::text, sha256('x'), 200, now() - CASE WHEN i <= $2 THEN interval '3 days' ELSE interval '1 hour' END FROM generate_series(1, $2 + 7) i`, ws, old)
	admin.MustExec(`INSERT INTO sessions (workspace_id, id, user_id, expires_at, revoked_at)
		SELECT s.workspace_id, gen_random_uuid(), s.user_id, CASE WHEN i % 2 = 0 THEN now() - interval '31 days' ELSE now() + interval '1 day' END,
			CASE WHEN i % 2 = 1 THEN now() - interval '31 days' END FROM sessions s, generate_series(1, $1) i`, old)
	admin.MustExec(`INSERT INTO refresh_tokens (workspace_id, session_id, token_hash) SELECT workspace_id, id, sha256(id::text::bytea) FROM sessions WHERE id NOT IN (SELECT session_id FROM refresh_tokens)`)
	admin.MustExec(`INSERT INTO workers (id, name, version, slots, dead_at) VALUES (gen_random_uuid(), 'gone', '', 1, now() - interval '2 days'), (gen_random_uuid(), 'just left', '', 1, now())`)
	if err := l.system.Sweep(ctx, 48*time.Hour); err != nil {
		t.Fatal(err)
	}
	for table, want := range map[string]int64{"idempotency_keys": 7, "sessions": 1, "refresh_tokens": 1, "workers": 2} {
		if n := l.count(`SELECT count(*) FROM ` + table); n != want {
			t.Errorf("%d %s are left, want %d", n, table, want)
		}
	}
}
