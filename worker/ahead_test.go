package worker_test

import (
	"context"
	"sync/atomic"
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
	const slots, workspaces = 40, 60
	burst, release, started := make(chan struct{}), make(chan struct{}), make(chan struct{}, 2*workspaces)
	var starts atomic.Int64
	r, _ := startLooking(t, slots, func(context.Context, agent.Task, agent.Recorder) (agent.Result, error) {
		started <- struct{}{}
		if starts.Add(1) <= slots {
			<-burst // all of these return at once
			return agent.Result{Output: "ok"}, nil
		}
		<-release
		return agent.Result{Output: "ok"}, nil
	})
	ids := map[uuid.UUID][]uuid.UUID{}
	for range workspaces {
		ws := storetest.NewWorkspace(t, r.env, "pro")
		ids[ws] = r.submit(ws, task("one"), task("two"))
	}
	for range slots {
		<-started
	}
	rdb := r.env.Redis(t)
	for rdb.LLen(context.Background(), "asynq:{pro}:pending").Val() < workspaces-slots/2 { // no workspace has had more than two
		time.Sleep(time.Millisecond)
	}
	time.Sleep(20 * time.Millisecond) // no task that has begun is shorter than shortTask: no slot goes on
	close(burst)
	admin := r.env.Admin(t)
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		var back, leases int
		if err := admin.Get(&back, `SELECT count(*) FROM attempts WHERE outcome = 'handed_back'`); err != nil {
			t.Fatal(err)
		}
		if err := admin.Get(&leases, `SELECT count(*) FROM leases`); err != nil {
			t.Fatal(err)
		}
		if back > 0 && leases == slots {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d handed back, %d leases for %d slots", back, leases, slots)
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
