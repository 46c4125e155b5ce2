package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"

	"github.com/generic-corp/muster/jobs"
	"github.com/generic-corp/muster/store"
)

// How far one turn goes. One task per turn is the rule: it makes the line a round robin between workspaces. Where
// nobody is kept waiting by it, a turn brings more:
//
//   - Nobody stands in line: the claim takes a task for each slot that is free anyway, and a slot goes on
//     with the workspace's next task in the transaction that finishes the last one.
//   - Others stand in line: behind a task shorter than shortTask a slot goes on for sliceTime or sliceTasks, so that very
//     short tasks don't each cost a round through Redis, and none the more so while the ledger is slow; not while a newcomer
//     waits in the queue, so that nobody starts more than two tasks before a newcomer's first.
const (
	shortTask  = 10 * time.Millisecond
	sliceTime  = 50 * time.Millisecond
	sliceTasks = 8
	enterLimit = time.Second // how long a task that was claimed ahead waits for its slot, before it goes back to its place
	visitLimit = time.Minute // then the slot is given back in any case: Asynq shows for how long a message has been active
)

// visit is one slot on its way through a workspace's tasks.
type visit struct {
	queue string
	began time.Time
	ran   int // tasks
}

// serve handles one delivery of a turn: claim, run, finish. An error means that the ledger could not be reached, and
// Asynq delivers the turn again.
func (w *Worker) serve(ctx context.Context, t *asynq.Task) error {
	queue, _ := asynq.GetQueueName(ctx)
	w.gate.hand(queue)
	v := visit{queue: queue, began: time.Now()}
	turn, err := jobs.ParseTurn(t.Payload())
	if err != nil {
		w.slots.release(queue, 1)
		return fmt.Errorf("%w: %w", err, asynq.SkipRetry)
	}
	w.gate.served(queue, turn.IssuedAt)
	c := &store.Claim{Workspace: turn.Workspace, Turn: turn.ID, Lease: store.NewID(), Worker: *w.id.Load()}
	more := 0
	if w.gate.idle() {
		more = w.slots.take(queue, w.slots.size)
	}
	for range more {
		c.More = append(c.More, store.NewID())
	}
	attempts := w.expect(append(c.More, c.Lease)...)
	if w.leaving() {
		w.forget(attempts)
		w.slots.release(queue, 1+more)
		return errDraining
	}
	claimed, err := w.claim(c)
	w.slots.release(queue, more-len(claimed.More))
	if err != nil {
		w.forget(attempts)
		w.slots.release(queue, 1)
		w.cfg.Log.Warn().Err(err).Stringer("workspace", turn.Workspace).Msg("claim failed; the turn will be delivered again")
		return err
	}
	w.cfg.Metrics.claims.WithLabelValues(string(claimed.Outcome)).Inc()
	w.enqueue(claimed.Turn)
	if claimed.Outcome == store.ClaimWon {
		w.cfg.Metrics.pickup.Observe(max(0, time.Since(turn.IssuedAt).Seconds())) // two clocks
	}
	for _, task := range claimed.More {
		a := attempts[task.Lease]
		delete(attempts, task.Lease)
		go w.work(v, a, task)
	}
	a := attempts[c.Lease]
	if claimed.Outcome == store.ClaimWon {
		delete(attempts, c.Lease)
	}
	w.forget(attempts)
	if claimed.Outcome != store.ClaimWon {
		w.slots.release(queue, 1)
		return nil
	}
	w.work(v, a, claimed.Task)
	return nil
}

// work runs the task in the visit's slot, and the workspace's next ones while the slot may go on. It gives a its leave.
//
// The slot is free when the agent has returned, and the finish commits right behind it: the lease is held until then, so
// the cap counts it, a drain waits for it, and a process that dies in between is recovered like one that dies before.
func (w *Worker) work(v visit, a *attempt, task store.ClaimedTask) {
	w.mu.Lock()
	a.task, a.won = task.ID, true
	w.mu.Unlock()
	if !w.slots.enter(v.queue, enterLimit) {
		w.finish(&store.Finish{Workspace: task.Workspace, Task: task.ID, Lease: task.Lease, Outcome: store.HandedBack}, task)
		w.forget(map[uuid.UUID]*attempt{task.Lease: a})
		w.slots.release(v.queue, 1)
		return
	}
	for {
		w.cfg.Metrics.running.Inc()
		f := w.run(a.ctx, task)
		v.ran++
		w.cfg.Metrics.running.Dec()
		if f == nil { // given up long ago, and its finish is booked
			w.forget(map[uuid.UUID]*attempt{task.Lease: a})
			w.slots.leave(v.queue, false)
			return
		}
		w.mu.Lock()
		a.returned = true
		w.mu.Unlock()
		coming := w.goOn(v, f)
		if coming == nil {
			w.slots.leave(v.queue, true)
		}
		next := w.finish(f, task)
		w.forget(map[uuid.UUID]*attempt{task.Lease: a})
		if coming == nil {
			w.slots.paid()
			return
		}
		if next == nil || next.Outcome != store.ClaimWon {
			w.forget(coming)
			w.slots.leave(v.queue, false)
			return
		}
		a, task = coming[next.Task.Lease], next.Task
		w.mu.Lock()
		a.task, a.won = task.ID, true
		w.mu.Unlock()
	}
}

// goOn lets the finish ask for the workspace's next task if the slot may go on with it, instead of taking the next turn;
// it returns what is expected then, or nil.
func (w *Worker) goOn(v visit, f *store.Finish) map[uuid.UUID]*attempt {
	last, served := time.Duration(f.Usage.AgentMS)*time.Millisecond, time.Since(v.began)
	slice := last < shortTask && (served < sliceTime || v.ran < sliceTasks) && !w.gate.awaits(v.queue)
	if !slice && (served >= visitLimit || w.slots.wanted() || !w.gate.idle()) {
		return nil
	}
	c := &store.Claim{Workspace: f.Workspace, Lease: store.NewID(), Worker: *w.id.Load()}
	coming := w.expect(c.Lease)
	if w.leaving() {
		w.forget(coming)
		return nil
	}
	f.Next = c
	return coming
}

// leaving says whether the worker drains. It is asked after expect: what was expected before the drain began is known
// to it, and nothing begins after.
func (w *Worker) leaving() bool {
	select {
	case <-w.draining:
		return true
	default:
		return false
	}
}

var errDraining = errors.New("the worker is draining")

// expect notes leases that the ledger is about to be asked for, so that a beat doesn't take them for strays.
func (w *Worker) expect(leases ...uuid.UUID) map[uuid.UUID]*attempt {
	attempts := make(map[uuid.UUID]*attempt, len(leases))
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, lease := range leases {
		// Not Asynq's context: it ends when Redis is away for 30 s, and the agent must not.
		ctx, stop := context.WithCancelCause(context.Background())
		attempts[lease] = &attempt{ctx: ctx, stop: stop}
		w.attempts[lease] = attempts[lease]
	}
	return attempts
}

// forget ends attempts that have finished or were never given.
func (w *Worker) forget(attempts map[uuid.UUID]*attempt) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for lease, a := range attempts {
		a.stop(nil)
		delete(w.attempts, lease)
	}
}
