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
//   - Nobody stands in the lane's queues: the claim takes a task for each slot that is free anyway, and a slot goes on
//     with the workspace's next task in the transaction that finishes the last one.
//   - Others stand in line: behind a task shorter than shortTask a slot goes on for sliceTime at most, so that very short
//     tasks don't each cost a round through Redis; not when a newcomer has come to the queue a moment ago, so that nobody
//     starts more than two tasks before a newcomer's first.
const (
	shortTask  = 10 * time.Millisecond
	sliceTime  = 50 * time.Millisecond
	visitLimit = time.Minute // then the slot is given back in any case: Asynq shows for how long a message has been active
)

// visit is one slot on its way through a workspace's tasks.
type visit struct {
	lane  *lane
	queue string
	began time.Time
}

// serve handles one delivery of a turn: claim, run, finish. An error means that the ledger could not be reached, and
// Asynq delivers the turn again.
func (w *Worker) serve(ctx context.Context, l *lane, t *asynq.Task) error {
	l.gate.hand()
	defer l.slots.release(1)
	turn, err := jobs.ParseTurn(t.Payload())
	if err != nil {
		return fmt.Errorf("%w: %w", err, asynq.SkipRetry)
	}
	queue, _ := asynq.GetQueueName(ctx)
	v := visit{lane: l, queue: queue, began: time.Now()}

	c := &store.Claim{Workspace: turn.Workspace, Turn: turn.ID, Lease: uuid.New(), Worker: *w.id.Load()}
	more := 0
	if l.gate.idle() {
		more = l.slots.take(l.slots.size)
	}
	for range more {
		c.More = append(c.More, uuid.New())
	}
	attempts := w.expect(append(c.More, c.Lease)...)
	if w.leaving() {
		w.forget(attempts)
		l.slots.release(more)
		return errDraining
	}
	claimed, err := w.claim(c)
	l.slots.release(more - len(claimed.More))
	if err != nil {
		w.forget(attempts)
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
		go func() {
			defer l.slots.release(1)
			w.work(v, a, task)
		}()
	}
	a := attempts[c.Lease]
	if claimed.Outcome == store.ClaimWon {
		delete(attempts, c.Lease)
	}
	w.forget(attempts)
	if claimed.Outcome == store.ClaimWon {
		w.work(v, a, claimed.Task)
	}
	return nil
}

// work runs the task, and the workspace's next ones while the slot may go on. It gives a its leave.
func (w *Worker) work(v visit, a *attempt, task store.ClaimedTask) {
	w.cfg.Metrics.running.Inc()
	defer w.cfg.Metrics.running.Dec()
	for {
		w.mu.Lock()
		a.task, a.won = task.ID, true
		w.mu.Unlock()
		f := w.run(a.ctx, v.lane, task)
		if f == nil {
			w.forget(map[uuid.UUID]*attempt{task.Lease: a})
			return
		}
		var coming map[uuid.UUID]*attempt
		if w.goesOn(v, time.Duration(f.Usage.AgentMS)*time.Millisecond) {
			c := &store.Claim{Workspace: task.Workspace, Lease: uuid.New(), Worker: *w.id.Load()}
			coming = w.expect(c.Lease)
			if !w.leaving() {
				f.Next = c
			}
		}
		next := w.finish(f, task)
		w.forget(map[uuid.UUID]*attempt{task.Lease: a})
		if next == nil || next.Outcome != store.ClaimWon {
			w.forget(coming)
			return
		}
		a, task = coming[next.Task.Lease], next.Task
	}
}

// goesOn says whether a slot may go on with its workspace's next task, behind one that took this long, instead of taking
// the next turn.
func (w *Worker) goesOn(v visit, last time.Duration) bool {
	served := time.Since(v.began)
	return last < shortTask && served < sliceTime && !v.lane.gate.newcomer(v.queue) || served < visitLimit && v.lane.gate.idle()
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
