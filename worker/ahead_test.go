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

// While agents return quickly the next tasks are claimed ahead. When the pace then breaks, because the next tasks are long,
// what was claimed ahead goes back to its place, for whoever has a slot; no attempt is spent.
func TestATaskClaimedAheadInVainGoesBack(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	r, _ := startLooking(t, 40, func(_ context.Context, a agent.Task, _ agent.Recorder) (agent.Result, error) {
		if a.Prompt == "long" {
			<-release
			return agent.Result{Output: "ok"}, nil
		}
		time.Sleep(12 * time.Millisecond)
		return agent.Result{Output: "ok"}, nil
	})
	ids := map[uuid.UUID][]uuid.UUID{}
	for range 8 {
		ws := storetest.NewWorkspace(t, r.env, "pro")
		tasks := make([]store.NewTask, 40)
		for i := range tasks {
			tasks[i] = task("short")
		}
		ids[ws] = r.submit(ws, append(tasks, make10("long")...)...)
	}
	admin := r.env.Admin(t)
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		var back, leases int
		if err := admin.Get(&back, `SELECT count(*) FROM attempts WHERE outcome = 'handed_back'`); err != nil {
			t.Fatal(err)
		}
		if err := admin.Get(&leases, `SELECT count(*) FROM leases`); err != nil {
			t.Fatal(err)
		}
		if back > 0 && leases == 40 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d handed back, %d leases for 40 slots", back, leases)
		}
	}
	close(release)
	for ws, list := range ids {
		for _, id := range list {
			if view := r.await(ws, id, store.StatusSucceeded); view.Attempt != 1 {
				t.Errorf("attempt %d: a hand-back spends none", view.Attempt)
			}
		}
	}
}
