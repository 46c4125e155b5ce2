package store_test

import (
	"context"
	"encoding/json"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// running submits and claims one task in each of n workspaces.
func (l *line) running(n int) []store.ClaimedTask {
	l.t.Helper()
	var tasks []store.ClaimedTask
	for range n {
		_, turn := l.submit(storetest.NewWorkspace(l.t, l.env, "pro"), task("x"))
		tasks = append(tasks, l.won(turn).Task)
	}
	return tasks
}

// hold locks the load rows of tasks' workspaces until the returned function is called.
func (l *line) hold(tasks ...store.ClaimedTask) (release func()) {
	l.t.Helper()
	var ids []uuid.UUID
	for _, c := range tasks {
		ids = append(ids, c.Workspace)
	}
	tx := l.env.Admin(l.t).MustBegin()
	tx.MustExec(`SELECT 1 FROM workspace_load WHERE workspace_id = ANY($1) FOR UPDATE`, pq.Array(ids))
	return func() { _ = tx.Rollback() }
}

// What members of a shared transaction may do to each other: nothing.
func TestBatch(t *testing.T) {
	t.Parallel()
	ctx := context.Background()

	for _, c := range []struct {
		name, result string
		badData      bool
	}{
		{"AMemberWithARefusedValueFailsAlone", `{"output": "\u0000"}`, true}, // valid JSON that jsonb refuses
		{"AMemberThatMeetsAnyOtherErrorFailsAlone", `{"output": "broken function"}`, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			l.env.Admin(t).MustExec(`CREATE FUNCTION break() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
					IF NEW.result->>'output' = 'broken function' THEN RAISE EXCEPTION 'broken'; END IF; RETURN NEW; END $$;
				CREATE TRIGGER break BEFORE UPDATE ON tasks FOR EACH ROW EXECUTE FUNCTION break()`)
			const n = 40
			tasks, errs := l.running(n), make([]error, n)
			var wg sync.WaitGroup
			for i, task := range tasks {
				wg.Go(func() {
					f := finishOf(task, store.Succeeded, 1)
					if i%10 == 3 {
						f.Result = json.RawMessage(c.result)
					}
					_, errs[i] = l.fleet.Finish(ctx, f, false)
				})
			}
			wg.Wait()
			for i, err := range errs {
				if (err != nil) != (i%10 == 3) || err != nil && store.BadData(err) != c.badData {
					t.Errorf("finish %d: %v", i, err)
				}
			}
			if got := l.count(`SELECT count(*) FROM tasks WHERE status = 'succeeded'`); got != n-4 {
				t.Errorf("%d succeeded, want %d", got, n-4)
			}
		})
	}

	t.Run("HeldRowsDelayOnlyTheirOwnWorkspaces", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		const n = 100
		tasks := l.running(n)
		release := l.hold(tasks[3], tasks[50], tasks[77])
		defer release()
		var others, held sync.WaitGroup
		var refused atomic.Int64
		for i, c := range tasks {
			if i == 3 || i == 50 || i == 77 {
				for range 3 { // more of the same join it
					held.Go(func() {
						if _, err := l.fleet.Finish(ctx, finishOf(c, store.Succeeded, 1), true); store.Unavailable(err) {
							refused.Add(1)
						}
					})
				}
				continue
			}
			others.Go(func() {
				if _, err := l.fleet.Finish(ctx, finishOf(c, store.Succeeded, 1), false); err != nil {
					t.Error(err)
				}
			})
		}
		others.Wait()
		if n := refused.Load(); n != 0 {
			t.Errorf("%d finishes of held workspaces gave up before their neighbours were through", n)
		}
		held.Wait()
		if n := refused.Load(); n != 9 {
			t.Errorf("%d finishes of held workspaces were told to ask again, want 9", n)
		}
		release()
		for _, i := range []int{3, 50, 77} {
			if r := l.finish(tasks[i], store.Succeeded, 1); !r.Accepted {
				t.Errorf("after the row was let go: %+v", r)
			}
		}
	})

	t.Run("FourThatAreHeldForGoodDoNotKeepAFifthWaiting", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		tasks := l.running(5)
		release := l.hold(tasks[:4]...)
		defer release()
		ctx, stop := context.WithCancel(ctx)
		var busy sync.WaitGroup
		defer busy.Wait()
		defer stop()
		for range 4 { // what keeps coming finds others of its workspace waiting
			for _, c := range tasks[:4] {
				busy.Go(func() {
					for ctx.Err() == nil {
						_, _ = l.fleet.Finish(ctx, finishOf(c, store.Succeeded, 1), true)
					}
				})
			}
			time.Sleep(250 * time.Millisecond)
		}
		last := l.hold(tasks[4])
		defer last()
		time.AfterFunc(250*time.Millisecond, last)
		ended := make(chan store.Finished, 1)
		go func() {
			r, err := l.fleet.Finish(ctx, finishOf(tasks[4], store.Succeeded, 1), false)
			if err != nil {
				t.Error(err)
			}
			ended <- r
		}()
		select {
		case r := <-ended:
			if !r.Accepted {
				t.Errorf("%+v", r)
			}
		case <-time.After(20 * time.Second):
			t.Error("it still waits for a seat")
		}
	})

	t.Run("ARowThatIsHeldForAMomentCostsNoError", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		tasks := l.running(20)
		release := l.hold(tasks...)
		var wg sync.WaitGroup
		for _, c := range tasks {
			wg.Go(func() {
				if r, err := l.fleet.Finish(ctx, finishOf(c, store.Succeeded, 1), false); err != nil || !r.Accepted {
					t.Errorf("%+v, %v", r, err)
				}
			})
		}
		time.AfterFunc(250*time.Millisecond, release) // longer than the role's lock_timeout
		wg.Wait()
	})
}
