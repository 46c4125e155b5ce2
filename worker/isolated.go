package worker

import (
	"context"
	"fmt"
	"time"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/worker/agent"
	"github.com/generic-corp/muster/worker/isolate"
)

// Suspects run in a process of their own (package isolate): tasks that were running in more than one crash of a worker. A
// suspect holds a slot like any other; beside it, it needs one of the worker's places for children.

// Isolator starts a process for one attempt; *isolate.Starter is one.
type Isolator interface {
	Start(ctx context.Context) (*isolate.Child, error)
}

// How often a process that does not start is tried again, and how long after. Then the task goes back, to wait: it may be
// this machine that has no memory left.
const (
	startTries = 3
	startPause = time.Second
)

// childPlaces is how many children a worker has at once unless it is told.
const childPlaces = 4

// place gives the attempt the process that it must run in, and what ends it; for most tasks that is our own. Waiting for
// a place and for the start is nobody's agent time.
func (w *Worker) place(ctx context.Context, t store.ClaimedTask) (run Runner, leave func(), err error) {
	if !t.Suspect() {
		return w.cfg.Runner, func() {}, nil
	}
	select {
	case w.children <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, context.Cause(ctx)
	}
	var child *isolate.Child
	for try := 1; ; try++ {
		if child, err = w.cfg.Isolator.Start(ctx); err == nil {
			w.cfg.Metrics.children.Inc()
			return child, func() {
				child.Close()
				w.cfg.Metrics.children.Dec()
				<-w.children
			}, nil
		}
		if ctx.Err() != nil || try == startTries {
			<-w.children
			return nil, nil, err
		}
		select {
		case <-time.After(startPause):
		case <-ctx.Done():
		}
	}
}

// unplaced ends an attempt that did not begin: it was stopped before, or no process could be started for it. That is no
// crash of its own; it waits as after the loss of a worker, and when it goes on and on the task ends.
func (w *Worker) unplaced(ctx context.Context, t store.ClaimedTask, err error) *store.Finish {
	f := w.finished(t, agent.Usage{}, 0)
	if ctx.Err() != nil {
		w.explain(ctx, t, &agent.Error{Code: agent.CodeCanceled, Message: "the attempt was canceled", Billable: true, Err: context.Cause(ctx)}, f)
		return f
	}
	w.taskLog(t).Error().Err(err).Msg("no process for a suspect; its task waits")
	f.Outcome = store.Crashed
	f.Error = &store.TaskError{Code: store.CodeNotStarted, Message: "this attempt could not be started in a process of its own", Retryable: true}
	return f
}

// strand ends an attempt whose agent has ignored its deadline: as the timeout that it is, metered up to the deadline, so
// that nobody runs it again. Its slot is not free before the agent returns, and the worker is unfit: it drains, and ends
// without waiting for this one.
func (w *Worker) strand(ctx context.Context, t store.ClaimedTask, calls *recorder) {
	w.cfg.Metrics.stuck.Inc()
	w.taskLog(t).Error().Dur("past", ignoreLimit).Msg("an agent ignores its deadline: its attempt is ended without it, and this worker drains")
	select {
	case w.unfit <- fmt.Sprintf("task %s runs %s past its deadline", t.ID, ignoreLimit):
	default:
	}
	f := w.finished(t, calls.abandon(), time.Duration(t.ReservedMS)*time.Millisecond)
	w.explain(ctx, t, &agent.Error{Code: agent.CodeTimeout, Message: "the agent ignored the end of its time", Billable: true, Err: context.Cause(ctx)}, f)
	w.finish(f, t)
	w.slots.strand()
}
