package store_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// minutely is a schedule of every minute.
func minutely() store.ScheduleSpec {
	return store.ScheduleSpec{Name: "s", Cron: "* * * * *", Timezone: "UTC", MissedRuns: store.MissedRunOnce, Overlap: store.OverlapAllow,
		Agent: "yuki", Model: "auto", Prompt: "p", TimeoutMS: 60_000, MaxAttempts: 2, Priority: 3}
}

func (l *line) schedule(ws uuid.UUID, spec store.ScheduleSpec) (s store.Schedule) {
	l.t.Helper()
	l.do(ws, func(w *store.Work) (err error) {
		s, err = w.CreateSchedule(context.Background(), spec)
		return err
	})
	return s
}

// due lets the last n occurrences of every minutely schedule of the workspace be undecided, the newest of them seconds old.
func (l *line) due(ws uuid.UUID, n int) {
	l.t.Helper()
	l.env.Admin(l.t).MustExec(`UPDATE schedules SET next_at = date_trunc('minute', now()) - ($2 - 1) * interval '1 minute' WHERE workspace_id = $1`, ws, n)
}

func (l *line) fire() store.Fired {
	l.t.Helper()
	f, err := l.system.FireSchedules(context.Background())
	if err != nil {
		l.t.Fatal(err)
	}
	return f
}

// runs writes what became of a schedule's occurrences, newest first.
func (l *line) runs(ws, id uuid.UUID) string {
	l.t.Helper()
	list, err := l.api.ScheduleRuns(context.Background(), ws, id, nil, 1000)
	if err != nil {
		l.t.Fatal(err)
	}
	var texts []string
	for _, r := range list {
		texts = append(texts, strings.TrimSpace(fmt.Sprintf("%s %s %d", r.Outcome, r.Reason, r.Occurrences)))
	}
	return strings.Join(texts, ", ")
}

func (l *line) wantFired(f store.Fired, sent, missed int) {
	l.t.Helper()
	if f.Sent != sent || f.Missed != missed {
		l.t.Errorf("sent %d and missed %d, want %d and %d", f.Sent, f.Missed, sent, missed)
	}
}

func TestSchedulesFire(t *testing.T) {
	t.Parallel()
	ctx := context.Background()

	t.Run("ATaskIsSentAtItsOccurrenceAndRuns", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "pro")
		hours := int64(3_600_000)
		spec := minutely()
		spec.ExpiresAfterMS, spec.Input, spec.Metadata = &hours, []byte(`{"a": 1}`), []byte(`{"k": "v"}`)
		s := l.schedule(ws, spec)
		l.fire() // whatever is due by now is not before the next minute
		l.due(ws, 1)
		f := l.fire()
		l.wantFired(f, 1, 0)
		c := l.won(one(t, f.Turns))
		v := l.view(ws, c.Task.ID)
		if v.ScheduleID.UUID != s.ID || v.Prompt != "p" || string(v.Input) != `{"a": 1}` || v.Priority != 3 || v.MaxAttempts != 2 || v.RunAt != nil {
			t.Errorf("the task is %+v", v.Task)
		}
		after, err := l.api.Schedule(ctx, ws, s.ID)
		if err != nil || after.LastTaskID.UUID != c.Task.ID || after.NextAt == nil || !after.NextAt.Equal(after.LastAt.Add(time.Minute)) || !v.ExpiresAt.Equal(after.LastAt.Add(time.Hour)) {
			t.Errorf("the schedule is %+v, %v; the task expires at %v", after, err, v.ExpiresAt)
		}
		l.wantFired(l.fire(), 0, 0)
	})

	for name, c := range map[string]struct {
		missed        string
		due           int
		sent, missed_ int
		runs          string
	}{
		"SkipSendsOnlyWhatIsInTime":            {store.MissedSkip, 10, 1, 9, "sent  1, missed late 9"},
		"RunOnceSendsTheLast":                  {store.MissedRunOnce, 10, 1, 9, "sent  1, missed late 9"},
		"RunAllSendsEach":                      {store.MissedRunAll, 3, 3, 0, "sent  1, sent  1, sent  1"},
		"RunAllSendsTheNewestHundred":          {store.MissedRunAll, 105, 100, 5, strings.Repeat("sent  1, ", 100) + "missed late 5"},
		"AMonthAwayIsOneSpan":                  {store.MissedRunOnce, 43_200, 1, 43_199, "sent  1, missed late 43199"},
		"OneInTimeIsSentWhateverThePolicySays": {store.MissedSkip, 1, 1, 0, "sent  1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			ws := storetest.NewWorkspace(t, l.env, "pro")
			spec := minutely()
			spec.MissedRuns = c.missed
			s := l.schedule(ws, spec)
			l.due(ws, c.due)
			l.wantFired(l.fire(), c.sent, c.missed_)
			if got := l.runs(ws, s.ID); got != c.runs {
				t.Errorf("runs are %s, want %s", got, c.runs)
			}
			if n := l.count(`SELECT count(*) FROM tasks WHERE schedule_id = $1 AND status = 'queued'`, s.ID); n != int64(c.sent) {
				t.Errorf("%d tasks, want %d", n, c.sent)
			}
		})
	}

	t.Run("AnOccurrenceThatCannotBeSentIsMissedWithItsReason", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		db := l.env.Admin(t)
		for reason, prepare := range map[string]func(ws uuid.UUID, spec *store.ScheduleSpec){
			"backlog_full": func(ws uuid.UUID, _ *store.ScheduleSpec) {
				db.MustExec(`UPDATE workspace_load SET max_waiting = 0 WHERE workspace_id = $1`, ws)
			},
			"model_not_allowed": func(ws uuid.UUID, spec *store.ScheduleSpec) {
				spec.Model = "openai/gpt-large"
				db.MustExec(`UPDATE workspace_load SET models = '{openai/gpt-small}' WHERE workspace_id = $1`, ws)
			},
			"unknown_agent": func(_ uuid.UUID, spec *store.ScheduleSpec) { spec.Agent = "gone" },
			"late":          func(_ uuid.UUID, spec *store.ScheduleSpec) { ms := int64(1); spec.ExpiresAfterMS = &ms },
		} {
			ws := storetest.NewWorkspace(t, l.env, "pro")
			spec := minutely()
			prepare(ws, &spec)
			s := l.schedule(ws, spec)
			l.due(ws, 1)
			l.wantFired(l.fire(), 0, 1)
			if got := l.runs(ws, s.ID); got != "missed "+reason+" 1" {
				t.Errorf("%s: %s", reason, got)
			}
		}
	})

	t.Run("OverlapSkipWaitsForTheLastTasksEnd", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "pro")
		spec := minutely()
		spec.Overlap, spec.MissedRuns = store.OverlapSkip, store.MissedRunAll
		s := l.schedule(ws, spec)
		l.due(ws, 3)
		f := l.fire()
		l.wantFired(f, 1, 2)
		c := l.won(one(t, f.Turns)) // it runs
		forget := func() { l.env.Admin(t).MustExec(`DELETE FROM schedule_runs WHERE schedule_id = $1`, s.ID) }
		forget()
		l.due(ws, 1)
		l.wantFired(l.fire(), 0, 1)
		l.finish(c.Task, store.Succeeded, 1)
		forget()
		l.due(ws, 1)
		l.wantFired(l.fire(), 1, 0)
	})

	t.Run("APausedWorkspaceGetsItsTaskAndALeavingOneNone", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		paused, leaving := storetest.NewWorkspace(t, l.env, "pro"), storetest.NewWorkspace(t, l.env, "pro")
		if err := l.system.Pause(ctx, paused, store.Operator{Name: "test"}); err != nil {
			t.Fatal(err)
		}
		l.schedule(paused, minutely())
		l.schedule(leaving, minutely())
		l.due(paused, 1)
		l.due(leaving, 1)
		l.env.Admin(t).MustExec(`UPDATE workspace_load SET leaving = true WHERE workspace_id = $1`, leaving)
		f := l.fire()
		l.wantFired(f, 1, 0)
		if len(f.Turns) != 0 || l.count(`SELECT waiting FROM workspace_load WHERE workspace_id = $1`, paused) != 1 {
			t.Errorf("the paused workspace got %v", f.Turns)
		}
	})

	t.Run("SchedulersAtOnceAndAgainSendEachOnce", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		for range 5 {
			ws := storetest.NewWorkspace(t, l.env, "pro")
			spec := minutely()
			spec.MissedRuns = store.MissedRunAll
			for range 4 {
				l.schedule(ws, spec)
			}
			l.due(ws, 5)
		}
		now := l.count(`SELECT extract(minute FROM now())`)
		var sent, missed int
		var mu sync.Mutex
		var both sync.WaitGroup
		for range 16 {
			both.Go(func() {
				for range 3 {
					f, err := l.system.FireSchedules(ctx)
					if err != nil {
						t.Error(err)
					}
					mu.Lock()
					sent, missed = sent+f.Sent, missed+f.Missed
					mu.Unlock()
				}
			})
		}
		both.Wait()
		f := l.fire()
		sent += f.Sent
		want := 100
		if l.count(`SELECT extract(minute FROM now())`) != now { // another minute began
			want = int(l.count(`SELECT count(*) FROM schedule_runs`))
		}
		if n := l.count(`SELECT count(*) FROM tasks`); sent != want || int(n) != want || missed != 0 {
			t.Errorf("sent %d, missed %d, there are %d tasks, want %d", sent, missed, n, want)
		}
		if n := l.count(`SELECT count(DISTINCT (schedule_id, occurrence)) FROM schedule_runs WHERE task_id IN (SELECT id FROM tasks)`); int(n) != want {
			t.Errorf("%d occurrences have a task, want %d", n, want)
		}
	})

	t.Run("AClockThatWasSetBackSendsNothingTwice", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "pro")
		spec := minutely()
		spec.MissedRuns = store.MissedRunAll
		s := l.schedule(ws, spec)
		l.due(ws, 3)
		first := l.fire()
		l.wantFired(first, 3, 0)
		l.due(ws, 3) // as if its owners had changed it while the clock was behind
		again := l.fire()
		if again.Sent+again.Missed > 1 { // the minute may have passed
			t.Errorf("sent %d and missed %d again", again.Sent, again.Missed)
		}
		if n := l.count(`SELECT count(*) FROM tasks WHERE schedule_id = $1`, s.ID); n != int64(3+again.Sent) {
			t.Errorf("%d tasks", n)
		}
	})

	t.Run("AKillBetweenInsertAndAdvanceLosesAndRepeatsNothing", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		db := l.env.Admin(t)
		ws := storetest.NewWorkspace(t, l.env, "pro")
		s := l.schedule(ws, minutely())
		l.due(ws, 1)
		// The update of schedules waits for this lock; the run and the task are inserted by then.
		tx := db.MustBegin()
		tx.MustExec(`CREATE FUNCTION wait_here() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NEW; END'`)
		tx.MustExec(`CREATE TRIGGER wait_here BEFORE UPDATE ON schedules FOR EACH ROW EXECUTE FUNCTION wait_here()`)
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		gate := db.MustBegin()
		gate.MustExec(`SELECT pg_advisory_xact_lock(4711)`)
		failed := make(chan error, 1)
		go func() {
			_, err := l.system.FireSchedules(ctx)
			failed <- err
		}()
		const waiting = `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'`
		for l.count(waiting) == 0 {
			select {
			case err := <-failed:
				t.Fatalf("it did not come to the update: %v", err)
			default:
			}
		}
		db.MustExec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'`)
		if err := <-failed; err == nil {
			t.Error("the killed firing succeeded")
		}
		if err := gate.Rollback(); err != nil {
			t.Fatal(err)
		}
		if n := l.count(`SELECT count(*) FROM tasks`) + l.count(`SELECT count(*) FROM schedule_runs`); n != 0 {
			t.Errorf("%d rows of the killed firing are left", n)
		}
		f := l.fire()
		if n := l.count(`SELECT count(*) FROM tasks WHERE schedule_id = $1`, s.ID); n != 1 || f.Sent != 1 {
			t.Errorf("afterwards %d tasks, %d sent", n, f.Sent)
		}
	})

	t.Run("AHeldWorkspaceDelaysNobody", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		held, free := storetest.NewWorkspace(t, l.env, "pro"), storetest.NewWorkspace(t, l.env, "pro")
		l.schedule(held, minutely())
		l.schedule(free, minutely())
		l.due(held, 1)
		l.due(free, 1)
		release := l.hold(store.ClaimedTask{Workspace: held})
		l.wantFired(l.fire(), 1, 0)
		release()
		if f := l.fire(); f.Sent != 1 {
			t.Errorf("afterwards %+v", f)
		}
	})
}
