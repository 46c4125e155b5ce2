package store_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// TestCancelFinishClaimExpiryAndReplayRace lets hundreds of goroutines end, cancel, expire, retry and replay the same tasks, and
// reads the history that a trigger has written: a task enters a final state only from a waiting or running one, and leaves it only
// by a retry. That metering and load rows are exact is for CheckLedger, at the test's end.
func TestCancelFinishClaimExpiryAndReplayRace(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	ctx := context.Background()
	db := l.env.Admin(t)
	for _, statement := range []string{
		`CREATE TABLE history (n bigint GENERATED ALWAYS AS IDENTITY, task uuid, was text, became text)`,
		`CREATE FUNCTION note_history() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
			'BEGIN INSERT INTO history (task, was, became) VALUES (NEW.id, OLD.status, NEW.status); RETURN NULL; END'`,
		`CREATE TRIGGER note_history AFTER UPDATE OF status ON tasks FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION note_history()`,
	} {
		db.MustExec(statement)
	}
	t.Cleanup(func() {
		db.MustExec(`DROP TRIGGER note_history ON tasks; DROP FUNCTION note_history; DROP TABLE history`)
	})
	ws := storetest.NewWorkspace(t, l.env, "pro")
	db.MustExec(`UPDATE workspace_load SET cap = 40 WHERE workspace_id = $1`, ws)
	tasks := make([]store.NewTask, 300)
	for i := range tasks {
		tasks[i] = task("x")
		if i%3 == 0 {
			at := time.Now().Add(time.Duration(rand.IntN(3000)) * time.Millisecond)
			tasks[i].ExpiresAt = &at
		}
		if i%7 == 0 {
			at := time.Now().Add(time.Duration(rand.IntN(1500)) * time.Millisecond)
			if tasks[i].RunAt = &at; tasks[i].ExpiresAt != nil {
				*tasks[i].ExpiresAt = at.Add(time.Second)
			}
		}
	}
	ids, first := l.submit(ws, tasks...)

	turns := make(chan store.Turn, 100_000)
	deliver := func(issued ...store.Turn) {
		for _, turn := range issued {
			turns <- turn
		}
	}
	deliver(*first)
	var ended, canceled, retried atomic.Int64
	do := func(fn func(w *store.Work) error) error {
		done, err := l.api.Do(ctx, store.Scope{Workspace: ws}, nil, func(w *store.Work) (store.Answer, error) { return store.Answer{}, fn(w) })
		deliver(done.Turns...)
		if kind := store.KindOf(err); err != nil && kind != store.Conflict && kind != store.BacklogFull {
			return err
		}
		return nil
	}
	run := func(turn store.Turn) error {
		claim := &store.Claim{Workspace: ws, Turn: turn.ID, Lease: uuid.New(), Worker: l.worker}
		var c store.Claimed
		if err := persist(ctx, func(again bool) (err error) { c, err = l.fleet.Claim(ctx, claim, again); return err }); err != nil {
			return err
		}
		if c.Turn != nil {
			deliver(*c.Turn)
		}
		if c.Outcome != store.ClaimWon {
			return nil
		}
		outcomes := []store.Outcome{store.Succeeded, store.Failed, store.Timeout, store.Canceled, store.HandedBack, store.Retry}
		finish := finishOf(c.Task, outcomes[rand.IntN(len(outcomes))], int64(rand.IntN(50)))
		var f store.Finished
		if err := persist(ctx, func(again bool) (err error) { f, err = l.fleet.Finish(ctx, finish, again); return err }); err != nil {
			return err
		}
		if !f.Accepted {
			return errors.New("a finish under a valid lease was refused")
		}
		if f.Turn != nil {
			deliver(*f.Turn)
		}
		ended.Add(1)
		return nil
	}
	actors := []func() error{
		func() error {
			select {
			case turn := <-turns:
				return run(turn)
			default:
				return nil
			}
		},
		func() error {
			canceled.Add(1)
			return do(func(w *store.Work) error { _, err := w.Cancel(ctx, ids[rand.IntN(len(ids))]); return err })
		},
		func() error {
			if rand.IntN(20) > 0 {
				return nil
			}
			return do(func(w *store.Work) error {
				_, err := w.CancelMatching(ctx, store.CancelFilter{Status: []string{"running", "scheduled", "queued"}[rand.IntN(3)]})
				return err
			})
		},
		func() error {
			retried.Add(1)
			return do(func(w *store.Work) error { return w.Retry(ctx, ids[rand.IntN(len(ids))]) })
		},
		func() error {
			return do(func(w *store.Work) error { _, err := w.RetryEnded(ctx, store.EndedFilter{}, 5); return err })
		},
		func() error {
			_, _, issued, err := l.system.ExpireDue(ctx)
			deliver(issued...)
			return err
		},
		func() error {
			_, _, issued, err := l.system.PromoteDue(ctx)
			deliver(issued...)
			return err
		},
	}
	var all sync.WaitGroup
	for i := range 210 {
		all.Go(func() {
			for range 12 {
				if err := actors[i%len(actors)](); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	// What is left runs to its end: nothing is stuck, and no turn was lost on the way.
	db.MustExec(`UPDATE tasks SET run_at = now(), expires_at = NULL WHERE workspace_id = $1 AND status = 'scheduled'`, ws)
	for open := int64(1); open > 0; {
		for _, sweep := range []func() error{actors[5], actors[6]} {
			if err := sweep(); err != nil {
				t.Fatal(err)
			}
		}
		select {
		case turn := <-turns:
			if err := run(turn); err != nil {
				t.Fatal(err)
			}
		default:
			db.MustExec(`UPDATE tasks SET run_at = now() WHERE workspace_id = $1 AND status = 'scheduled'`, ws)
			if open = l.count(`SELECT count(*) FROM tasks WHERE workspace_id = $1 AND finished_at IS NULL`, ws); open > 0 && len(turns) == 0 {
				if missed, _, err := l.system.IssueMissed(ctx); err != nil || len(missed) > 0 {
					t.Fatalf("a path left work without a turn: %v, %v", missed, err)
				}
			}
		}
	}
	const final = `('succeeded', 'failed', 'canceled')`
	if n := l.count(`SELECT count(*) FROM history WHERE was IN ` + final + ` AND became <> 'queued'`); n != 0 {
		t.Errorf("%d times a task left a final state but by a retry", n)
	}
	if n := l.count(`SELECT count(*) FROM history WHERE was = 'succeeded'`); n != 0 {
		t.Errorf("%d tasks were run again that had succeeded", n)
	}
	if n := l.count(`SELECT count(*) FROM (SELECT task FROM history GROUP BY task
			HAVING count(*) FILTER (WHERE became IN ` + final + `) - count(*) FILTER (WHERE was IN ` + final + `) <> 1) x`); n != 0 {
		t.Errorf("%d tasks reached their final state not exactly once per run", n)
	}
	if n := l.count(`SELECT count(DISTINCT task) FROM history WHERE became IN ` + final); int(n) != len(ids) {
		t.Errorf("%d of %d tasks ended", n, len(ids))
	}
	t.Logf("%d attempts ended, %d cancels, %d retries, %d transitions", ended.Load(), canceled.Load(), retried.Load(), l.count(`SELECT count(*) FROM history`))
}
