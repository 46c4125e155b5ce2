package store_test

import (
	"context"
	"testing"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// A turn may bring more than one task (Claim.More) and a slot may go on without one (Finish.Next): cap, order, fencing
// and repeats hold there as they do for a single claim.
func TestGoingOn(t *testing.T) {
	t.Parallel()
	ctx := context.Background()

	claimMore := func(l *line, turn *store.Turn, more int, again bool, c *store.Claim) (store.Claimed, *store.Claim) {
		l.t.Helper()
		if c == nil {
			c = &store.Claim{Workspace: turn.Workspace, Turn: turn.ID, Lease: uuid.New(), Worker: l.worker}
			for range more {
				c.More = append(c.More, uuid.New())
			}
		}
		claimed, err := l.fleet.Claim(ctx, c, again)
		if err != nil {
			l.t.Fatal(err)
		}
		return claimed, c
	}
	finishNext := func(l *line, task store.ClaimedTask, again bool, next *store.Claim) store.Finished {
		l.t.Helper()
		f := finishOf(task, store.Succeeded, 5)
		f.Next = next
		r, err := l.fleet.Finish(ctx, f, again)
		if err != nil {
			l.t.Fatal(err)
		}
		return r
	}
	next := func(l *line, ws uuid.UUID) *store.Claim {
		return &store.Claim{Workspace: ws, Lease: uuid.New(), Worker: l.worker}
	}

	t.Run("AClaimForSeveralSlotsStopsAtTheCap", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "starter") // cap 3
		ids, turn := l.submit(ws, task("a"), task("b"), task("c"), task("d"))
		got, c := claimMore(l, turn, 8, false, nil)
		if got.Outcome != store.ClaimWon || got.Task.ID != ids[0] || len(got.More) != 2 || got.Turn != nil {
			t.Fatalf("%s, %d more, turn %v: want three tasks and no turn while the cap is reached", got.Outcome, len(got.More), got.Turn)
		}
		again, _ := claimMore(l, turn, 8, true, c)
		if again.Outcome != store.ClaimWon || again.Task.ID != ids[0] || len(again.More) != 2 {
			t.Errorf("the repeat of a claim whose answer got lost: %s, %d more", again.Outcome, len(again.More))
		}
		for _, held := range append(again.More, again.Task) {
			l.finish(held, store.HandedBack, 0)
		}
	})

	t.Run("AClaimForSeveralSlotsStandsInLineAgainForTheRest", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "pro") // cap 10
		_, turn := l.submit(ws, task("a"), task("b"), task("c"))
		got, _ := claimMore(l, turn, 1, false, nil)
		if len(got.More) != 1 || got.Turn == nil {
			t.Fatalf("%d more, turn %v", len(got.More), got.Turn)
		}
		rest, _ := claimMore(l, got.Turn, 5, false, nil)
		if rest.Outcome != store.ClaimWon || len(rest.More) != 0 || rest.Turn != nil {
			t.Errorf("%s, %d more, turn %v", rest.Outcome, len(rest.More), rest.Turn)
		}
		for _, held := range append(got.More, got.Task, rest.Task) {
			l.finish(held, store.Succeeded, 5)
		}
	})

	t.Run("ASlotGoesOnInOrderAndARepeatIsRecognised", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "free") // cap 1: no turn is out while it runs
		ids, turn := l.submit(ws, task("a"), task("b"), task("c"))
		first := l.won(turn)
		c := next(l, ws)
		r := finishNext(l, first.Task, false, c)
		if !r.Accepted || r.Next == nil || r.Next.Outcome != store.ClaimWon || r.Next.Task.ID != ids[1] || r.Turn != nil {
			t.Fatalf("%+v", r)
		}
		repeat := finishNext(l, first.Task, true, c)
		if !repeat.Accepted || repeat.Next == nil || repeat.Next.Outcome != store.ClaimWon || repeat.Next.Task.Lease != c.Lease {
			t.Fatalf("the repeat is not recognised: %+v", repeat)
		}
		last := finishNext(l, r.Next.Task, false, next(l, ws))
		end := finishNext(l, last.Next.Task, false, next(l, ws))
		if end.Next == nil || end.Next.Outcome != store.ClaimEmpty || end.Turn != nil {
			t.Errorf("with nothing left: %+v", end)
		}
	})

	t.Run("TheLastTaskIsLeftToATurnThatIsOut", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "starter")
		_, turn := l.submit(ws, task("a"), task("b"))
		first := l.won(turn)
		if first.Turn == nil {
			t.Fatal("no turn for the second task")
		}
		r := finishNext(l, first.Task, false, next(l, ws))
		if r.Next.Outcome != store.ClaimEmpty {
			t.Errorf("going on was %s: the turn that is out would find nothing", r.Next.Outcome)
		}
		l.finish(l.won(first.Turn).Task, store.Succeeded, 5)
	})

	t.Run("ARefusedFinishBringsNothing", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "starter")
		_, turn := l.submit(ws, task("a"), task("b"), task("c"))
		first := l.won(turn)
		l.finish(first.Task, store.HandedBack, 0)
		stolen := first.Task
		stolen.Lease = uuid.New()
		if r := finishNext(l, stolen, false, next(l, ws)); r.Accepted || r.Next != nil {
			t.Errorf("%+v", r)
		}
		var leases int
		if err := l.env.Admin(t).Get(&leases, `SELECT count(*) FROM leases`); err != nil || leases != 0 {
			t.Errorf("%d leases (%v)", leases, err)
		}
	})

	t.Run("APausedWorkspaceDoesNotGoOn", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "starter")
		_, turn := l.submit(ws, task("a"), task("b"), task("c"))
		first := l.won(turn)
		if err := l.system.Pause(ctx, ws, store.Operator{Name: "op"}); err != nil {
			t.Fatal(err)
		}
		if r := finishNext(l, first.Task, false, next(l, ws)); !r.Accepted || r.Next.Outcome != store.ClaimEmpty {
			t.Errorf("%+v", r)
		}
	})

	t.Run("ADeadWorkerDoesNotGoOn", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "free")
		_, turn := l.submit(ws, task("a"), task("b"))
		first := l.won(turn)
		c := next(l, ws)
		c.Worker = uuid.New() // never registered, like one that was swept away
		r := finishNext(l, first.Task, false, c)
		if !r.Accepted || r.Next.Outcome != store.ClaimDead || r.Turn == nil {
			t.Errorf("%+v: want no lease and the turn for those who live", r)
		}
	})
}
