package worker_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
	"github.com/generic-corp/muster/worker/agent"
)

// holdLoad locks a workspace's load row, so that no claim or finish of it commits, until the returned function is called.
func holdLoad(t *testing.T, env *storetest.Env, ws uuid.UUID) (release func()) {
	t.Helper()
	tx, err := env.Admin(t).Beginx()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback() })
	if _, err := tx.Exec(`SELECT 1 FROM workspace_load WHERE workspace_id = $1 FOR UPDATE`, ws); err != nil {
		t.Fatal(err)
	}
	return func() { _ = tx.Rollback() }
}

// A finish commits behind an agent that has returned: its slot serves others meanwhile, and a drain waits for it.
func TestFinishesBehindTheirSlots(t *testing.T) {
	t.Parallel()

	t.Run("AnotherTaskStartsInTheSlot", func(t *testing.T) {
		t.Parallel()
		started, leave := make(chan string, 2), make(chan struct{})
		r, _ := startLooking(t, 1, func(_ context.Context, a agent.Task, _ agent.Recorder) (agent.Result, error) {
			started <- a.Prompt
			if a.Prompt == "first" {
				<-leave
			}
			return agent.Result{Output: a.Prompt}, nil
		})
		a, b := storetest.NewWorkspace(t, r.env, "pro"), storetest.NewWorkspace(t, r.env, "pro")
		first := r.submit(a, task("first"))
		<-started
		second := r.submit(b, task("second"))
		rdb := r.env.Redis(t)
		for rdb.LLen(context.Background(), "asynq:{pro}:pending").Val() == 0 { // the line is not empty: the slot will not go on
			time.Sleep(time.Millisecond)
		}
		release := holdLoad(t, r.env, a)
		close(leave)
		select {
		case <-started:
		case <-time.After(20 * time.Second):
			t.Error("the slot waits for a finish that cannot commit")
		}
		r.await(b, second[0], store.StatusSucceeded)
		r.await(a, first[0], store.StatusRunning)
		release()
		r.await(a, first[0], store.StatusSucceeded)
	})

	t.Run("ADrainWaitsForThem", func(t *testing.T) {
		t.Parallel()
		started, leave := make(chan struct{}), make(chan struct{})
		r := start(t, 0, func(context.Context, agent.Task, agent.Recorder) (agent.Result, error) {
			close(started)
			<-leave
			return agent.Result{Output: "kept"}, nil
		})
		ws := storetest.NewWorkspace(t, r.env, "pro")
		ids := r.submit(ws, task("x"))
		<-started
		release := holdLoad(t, r.env, ws)
		close(leave)
		r.stop()
		select {
		case err := <-r.ended:
			t.Fatalf("the worker has ended (%v) and left a result behind", err)
		case <-time.After(300 * time.Millisecond):
		}
		release()
		if err := <-r.ended; err != nil {
			t.Fatal(err)
		}
		r.ended <- nil
		view := r.await(ws, ids[0], store.StatusSucceeded)
		if view.Attempt != 1 || string(view.Result) == "" {
			t.Errorf("attempt %d, result %s", view.Attempt, view.Result)
		}
	})
}
