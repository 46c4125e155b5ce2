package store_test

import (
	"context"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// suspects is a line with one task that is crashed again and again.
type suspects struct {
	*line
	ws, task uuid.UUID
	turn     *store.Turn
}

func newSuspects(t *testing.T) *suspects {
	l := newLine(t)
	s := &suspects{line: l, ws: storetest.NewWorkspace(t, l.env, "pro")}
	ids, turn := l.submit(s.ws, task("killer"))
	s.task, s.turn = ids[0], turn
	return s
}

// workerDies lets the task's worker die with it.
func (s *suspects) workerDies() store.ClaimedTask {
	s.t.Helper()
	claimed := s.won(s.turn).Task
	if _, err := s.system.DeclareDead(context.Background(), s.worker, 0); err != nil {
		s.t.Fatal(err)
	}
	_, turns, err := s.system.RecoverDeadWorkers(context.Background())
	if err != nil {
		s.t.Fatal(err)
	}
	s.worker, s.turn = s.register(), one(s.t, turns)
	return claimed
}

// processDies lets the process die that the task had of its own.
func (s *suspects) processDies() (claimed store.ClaimedTask, f *store.Finish) {
	s.t.Helper()
	claimed = s.won(s.turn).Task
	f = finishOf(claimed, store.Crashed, 5)
	f.Apart, f.Error = true, &store.TaskError{Code: store.CodeAgentCrashed, Message: "died", Retryable: true}
	r, err := s.fleet.Finish(context.Background(), f, false)
	if err != nil || !r.Accepted {
		s.t.Fatalf("%+v, %v", r, err)
	}
	s.turn = r.Turn
	return claimed, f
}

// comesDue ends the task's wait and says how long it was, in seconds.
func (s *suspects) comesDue() (waited int64) {
	s.t.Helper()
	waited = s.count(`WITH u AS (UPDATE tasks SET run_at = now() WHERE id = $1 AND status = 'scheduled'
		RETURNING (SELECT extract(epoch FROM t.run_at - a.finished_at) FROM tasks t JOIN attempts a ON a.task_id = t.id WHERE t.id = $1
			ORDER BY a.finished_at DESC LIMIT 1) AS seconds) SELECT round(seconds)::bigint FROM u`, s.task)
	_, _, turns, err := s.system.PromoteDue(context.Background())
	if err != nil {
		s.t.Fatal(err)
	}
	s.turn = one(s.t, turns)
	return waited
}

func (s *suspects) now() store.TaskView {
	s.t.Helper()
	view, err := s.api.Task(context.Background(), s.ws, s.task)
	if err != nil {
		s.t.Fatal(err)
	}
	return view
}

func TestSuspects(t *testing.T) {
	t.Parallel()
	ctx := context.Background()

	t.Run("AfterTwoCrashesATaskIsASuspectAndThreeOfItsOwnFailIt", func(t *testing.T) {
		t.Parallel()
		s := newSuspects(t)
		if c := s.workerDies(); c.Suspect() || c.Attempt != 1 {
			t.Errorf("%+v", c)
		}
		if s.now().Status != store.StatusQueued || s.turn == nil {
			t.Error("after its first crash a task goes on at once")
		}
		if c := s.workerDies(); c.Suspect() {
			t.Error("one crash makes no suspect")
		}
		for crash, least := range []int64{5, 10, 20} {
			if v := s.now(); v.Status != store.StatusScheduled || v.Waiting == nil || v.Waiting.Reason != store.WaitIsolated {
				t.Fatalf("it does not wait as a suspect: %+v %+v", v.Task, v.Waiting)
			}
			if waited := s.comesDue(); waited < least || waited > least*12/10+1 {
				t.Errorf("waited %d s, want %d and up to a fifth more", waited, least)
			}
			c, f := s.processDies()
			if !c.Suspect() || c.Attempt != 1 || c.Crashes != 2+crash {
				t.Errorf("%+v", c)
			}
			again, err := s.fleet.Finish(ctx, f, true) // its answer got lost
			if err != nil || !again.Accepted {
				t.Errorf("a repeated report is not recognised: %+v, %v", again, err)
			}
		}
		v := s.now()
		if v.Status != store.StatusFailed || !strings.Contains(string(v.Error), "worker_crashed") || v.Crashes != 5 || v.Attempt != 0 {
			t.Errorf("%+v, error %s", v.Task, v.Error)
		}
		if n := s.count(`SELECT count(*) FROM attempts WHERE task_id = $1 AND outcome = 'crashed' AND NOT billable`, s.task); n != 5 {
			t.Errorf("%d crashed attempts, want 5, none billable", n)
		}
	})

	t.Run("ASuspectIsNotConvictedOfItsWorkersDeath", func(t *testing.T) {
		t.Parallel()
		s := newSuspects(t)
		s.workerDies()
		s.workerDies()
		for _, least := range []int64{5, 10, 20, 40, 80, 160} {
			if waited := s.comesDue(); waited < least {
				t.Errorf("waited %d s, want %d: each loss of a worker doubles it", waited, least)
			}
			s.workerDies()
			if v := s.now(); v.Crashes != 2 || v.Status != store.StatusScheduled {
				t.Fatalf("%+v", v.Task)
			}
		}
		s.comesDue()
		if r := s.finish(s.won(s.turn).Task, store.Succeeded, 5); r.Status != store.StatusSucceeded {
			t.Errorf("%+v", r)
		}
	})

	t.Run("ATaskThatOutlivesNoWorkerEndsInTheEnd", func(t *testing.T) {
		t.Parallel()
		s := newSuspects(t)
		deaths := 0
		for v := s.now(); v.Status != store.StatusFailed; v = s.now() {
			if v.Status == store.StatusScheduled {
				s.comesDue()
			}
			s.workerDies()
			if deaths++; deaths > 20 {
				t.Fatal("it kills workers for ever")
			}
		}
		if v := s.now(); deaths != 12 || !strings.Contains(string(v.Error), "worker_crashed") {
			t.Errorf("failed after %d deaths, want 12: %s", deaths, v.Error)
		}
	})

	t.Run("ASuspectThatNoWorkerCanStartWaitsLongerEachTimeAndEndsInTheEnd", func(t *testing.T) {
		t.Parallel()
		s := newSuspects(t)
		s.workerDies()
		s.workerDies()
		for try, least := range []int64{5, 10, 20, 40, 80, 160, 300, 300, 300, 300} {
			if waited := s.comesDue(); waited < least || waited > least*12/10+1 {
				t.Errorf("waited %d s, want %d and up to a fifth more", waited, least)
			}
			f := finishOf(s.won(s.turn).Task, store.Crashed, 0)
			f.Error = &store.TaskError{Code: store.CodeNotStarted, Message: "no process", Retryable: true}
			for _, again := range []bool{false, true} { // its answer got lost
				r, err := s.fleet.Finish(ctx, f, again)
				if err != nil || !r.Accepted {
					t.Fatalf("%+v, %v", r, err)
				}
			}
			if n := s.count(`SELECT losses FROM tasks WHERE id = $1`, s.task); n != int64(try)+1 {
				t.Fatalf("%d losses are counted after %d", n, try+1)
			}
		}
		v := s.now()
		if v.Status != store.StatusFailed || v.Crashes != 2 || !strings.Contains(string(v.Error), store.CodeWorkerCrashed) {
			t.Errorf("%+v, error %s", v.Task, v.Error)
		}
	})

	t.Run("ARetryByTheCustomerBeginsAnew", func(t *testing.T) {
		t.Parallel()
		s := newSuspects(t)
		s.workerDies()
		s.workerDies()
		s.comesDue()
		s.workerDies()
		s.comesDue()
		s.finish(s.won(s.turn).Task, store.Failed, 5)
		done, err := s.api.Do(ctx, store.Scope{Workspace: s.ws}, nil, func(w *store.Work) (store.Answer, error) { return store.Answer{}, w.Retry(ctx, s.task) })
		if err != nil {
			t.Fatal(err)
		}
		if c := s.won(one(t, done.Turns)).Task; c.Suspect() || s.count(`SELECT losses FROM tasks WHERE id = $1`, s.task) != 0 {
			t.Errorf("%+v", c)
		}
	})

	t.Run("ACanceledSuspectEndsCanceled", func(t *testing.T) {
		t.Parallel()
		s := newSuspects(t)
		s.workerDies()
		s.workerDies()
		s.comesDue()
		c := s.won(s.turn).Task
		if _, err := s.api.Do(ctx, store.Scope{Workspace: s.ws}, nil, func(w *store.Work) (store.Answer, error) {
			_, err := w.Cancel(ctx, s.task)
			return store.Answer{}, err
		}); err != nil {
			t.Fatal(err)
		}
		f := finishOf(c, store.Crashed, 5)
		f.Apart = true
		if r, err := s.fleet.Finish(ctx, f, false); err != nil || r.Status != store.StatusCanceled {
			t.Errorf("%+v, %v", r, err)
		}
	})
}
