package store_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// A call that begins while its worker's tasks are taken back is either summed with the attempt or refused.
func TestACallRacingTheRecoveryIsMeteredOrRefused(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	l := newLine(t)
	ws, _ := l.budget(1_000_000, 0)
	allowed, refused := 0, 0
	for round := range 40 {
		_, turn := l.submit(ws, task("x"))
		c := l.won(turn).Task
		if dead, err := l.system.DeclareDead(ctx, l.worker, 0); err != nil || !dead {
			t.Fatalf("%v %v", dead, err)
		}
		var both sync.WaitGroup
		both.Go(func() {
			time.Sleep(time.Duration(round%8) * 500 * time.Microsecond) // so that each is first now and then
			err := l.fleet.BeginCall(ctx, callOf(c, uuid.New(), 7))
			switch {
			case err == nil:
				allowed++
			case errors.Is(err, store.ErrLeaseLost):
				refused++
			default:
				t.Error(err)
			}
		})
		both.Go(func() {
			for { // a row that is held for long is left to the next round
				n, _, err := l.system.RecoverDeadWorkers(ctx)
				if n == 1 {
					return
				}
				if err == nil {
					t.Errorf("recovered %d", n)
					return
				}
			}
		})
		both.Wait()
		l.worker = l.register()
		l.do(ws, func(w *store.Work) error { _, err := w.Cancel(ctx, c.ID); return err })
	}
	if open := l.count(`SELECT count(*) FROM provider_calls WHERE outcome = 'started'`); open != 0 {
		t.Errorf("%d calls are open with nobody to close them", open)
	}
	metered, called := l.count(`SELECT coalesce(sum(quantity), 0) FROM metering_rows WHERE meter = 'provider_cost_microusd'`), l.count(`SELECT coalesce(sum(cost_microusd), 0) FROM provider_calls`)
	if metered != called || called != int64(7*allowed) || l.used(ws) != called {
		t.Errorf("metered %d, called %d, used %d, allowed %d", metered, called, l.used(ws), allowed)
	}
	if allowed == 0 || refused == 0 {
		t.Errorf("%d allowed and %d refused: the race proved little", allowed, refused)
	}
}

func TestAPauseIsLiftedOnlyByWhoGaveIt(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	l := newLine(t)
	ws := storetest.NewWorkspace(t, l.env, "pro")
	_, turn := l.submit(ws, task("x"))
	l.env.Admin(t).MustExec(`UPDATE workspace_load SET paused = '{billing}', turn = NULL, turn_at = NULL WHERE workspace_id = $1`, ws)
	operator := store.Operator{Name: "test"}
	for range 2 {
		if err := l.system.Pause(ctx, ws, operator); err != nil {
			t.Fatal(err)
		}
	}
	w, err := l.system.Workspace(ctx, ws)
	if err != nil || len(w.Paused) != 2 {
		t.Fatalf("paused by %v, %v", w.Paused, err)
	}
	if turns, err := l.system.Resume(ctx, ws, operator); err != nil || len(turns) != 0 {
		t.Fatalf("an operator lifted billing's pause: %v, %v", turns, err)
	}
	if w, _ = l.system.Workspace(ctx, ws); len(w.Paused) != 1 || w.Paused[0] != "billing" {
		t.Fatalf("paused by %v", w.Paused)
	}
	if c := l.claim(turn); c.Outcome != store.ClaimStale {
		t.Fatal(c.Outcome)
	}
	l.env.Admin(t).MustExec(`UPDATE workspace_load SET paused = NULL WHERE workspace_id = $1`, ws)
	turns, err := l.system.Resume(ctx, ws, operator)
	if err != nil {
		t.Fatal(err)
	}
	l.won(one(t, turns))
}
