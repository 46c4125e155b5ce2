package store_test

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// expiring is a task that expires in an hour: late makes the hour pass.
func expiring(prompt string) store.NewTask {
	t, at := task(prompt), time.Now().Add(time.Hour)
	t.ExpiresAt = &at
	return t
}

// late lets the expiry of a workspace's tasks pass.
func (l *line) late(ws uuid.UUID) {
	l.t.Helper()
	l.env.Admin(l.t).MustExec(`UPDATE tasks SET expires_at = now() - interval '1 millisecond' WHERE workspace_id = $1 AND expires_at IS NOT NULL`, ws)
}

// expire sweeps and wants so many to have expired.
func (l *line) expire(want int) []store.Turn {
	l.t.Helper()
	n, more, turns, err := l.system.ExpireDue(context.Background())
	if err != nil || n != want || more {
		l.t.Fatalf("expired %d (more: %v), %v; want %d", n, more, err, want)
	}
	return turns
}

func (l *line) view(ws, id uuid.UUID) store.TaskView {
	l.t.Helper()
	v, err := l.api.Task(context.Background(), ws, id)
	if err != nil {
		l.t.Fatal(err)
	}
	return v
}

// wantExpired wants the task to have ended so: nothing started, spent or metered since its attempts before.
func (l *line) wantExpired(ws, id uuid.UUID, attempts int) {
	l.t.Helper()
	v := l.view(ws, id)
	var e store.TaskError
	if err := json.Unmarshal(v.Error, &e); err != nil {
		l.t.Fatal(err)
	}
	if v.Status != store.StatusFailed || e.Code != store.ExpiredCode || e.Retryable || v.FinishedAt == nil || v.Attempt != attempts {
		l.t.Errorf("the task is %s with %s after %d attempts; want it expired after %d", v.Status, v.Error, v.Attempt, attempts)
	}
	if n := l.count(`SELECT count(*) FROM attempts WHERE task_id = $1`, id); n != int64(attempts) {
		l.t.Errorf("%d attempts are booked, want %d", n, attempts)
	}
}

func TestExpiry(t *testing.T) {
	t.Parallel()

	t.Run("AWaitingTaskFailsAndWhatStandsBehindItRuns", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "free")
		ids, turn := l.submit(ws, expiring("a"), task("b"))
		l.expire(0) // not before its time
		l.late(ws)
		l.expire(1)
		l.expire(0) // twice is once
		l.wantExpired(ws, ids[0], 0)
		if c := l.won(turn); c.Task.ID != ids[1] {
			t.Errorf("%v runs, want %v", c.Task.ID, ids[1])
		}
	})

	t.Run("NoClaimGivesOutAnExpiredTaskHoweverLateTheSweepIs", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "pro")
		ids, turn := l.submit(ws, expiring("a"), expiring("b"))
		l.late(ws)
		if c := l.claim(turn); c.Outcome != store.ClaimEmpty || c.Turn != nil {
			t.Fatalf("the claim was %s and issued %v", c.Outcome, c.Turn)
		}
		if missed, _, err := l.system.IssueMissed(context.Background()); err != nil || len(missed) != 0 {
			t.Errorf("expired tasks count as missed work: %v, %v", missed, err)
		}
		l.expire(2)
		l.wantExpired(ws, ids[0], 0)
		l.wantExpired(ws, ids[1], 0)
	})

	t.Run("ARunningTaskIsNotTouchedAndOneThatWaitsAgainIs", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "pro")
		ids, turn := l.submit(ws, expiring("ends"), expiring("is tried again"), expiring("is handed back"))
		ends := l.won(turn)
		again := l.won(ends.Turn)
		back := l.won(again.Turn)
		l.late(ws)
		l.expire(0)
		l.finish(ends.Task, store.Succeeded, 5)
		if v := l.view(ws, ids[0]); v.Status != store.StatusSucceeded {
			t.Errorf("the task that ran is %s", v.Status)
		}
		l.finish(again.Task, store.Retry, 5)
		l.finish(back.Task, store.HandedBack, 5)
		l.expire(2)
		l.wantExpired(ws, ids[1], 1)
		if v := l.view(ws, ids[2]); v.Status != store.StatusFailed || v.Attempt != 0 {
			t.Errorf("the task that was handed back is %s after %d attempts", v.Status, v.Attempt)
		}
	})

	t.Run("AScheduledTaskExpiresAndItsTurnIsWithdrawn", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "pro")
		waits, at := expiring("later"), time.Now().Add(30*time.Minute)
		waits.RunAt = &at
		ids, _ := l.submit(ws, waits, expiring("now"))
		if l.turnsOut(ws) != 1 {
			t.Fatal("no turn is out")
		}
		l.late(ws)
		l.expire(2)
		l.wantExpired(ws, ids[0], 0)
		if l.turnsOut(ws) != 0 {
			t.Error("a turn is out for nothing")
		}
	})

	t.Run("ARetryOfAnExpiredTaskRuns", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "pro")
		ids, _ := l.submit(ws, expiring("a"))
		l.late(ws)
		l.expire(1)
		done := l.do(ws, func(w *store.Work) error { return w.Retry(context.Background(), ids[0]) })
		l.expire(0)
		if c := l.won(one(t, done.Turns)); c.Task.ID != ids[0] {
			t.Error("the retried task did not run")
		}
	})

	t.Run("AHeldWorkspaceDelaysNobody", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		held, free := storetest.NewWorkspace(t, l.env, "pro"), storetest.NewWorkspace(t, l.env, "pro")
		l.submit(held, expiring("a"))
		l.submit(free, expiring("b"))
		l.late(held)
		l.late(free)
		release := l.hold(store.ClaimedTask{Workspace: held})
		l.expire(1)
		release()
		l.expire(1)
	})

	t.Run("ClaimsAndExpiryShareEveryTaskBetweenThem", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "pro")
		l.env.Admin(t).MustExec(`UPDATE workspace_load SET cap = 1000 WHERE workspace_id = $1`, ws)
		tasks := make([]store.NewTask, 200)
		for i := range tasks {
			at := time.Now().Add(time.Duration(100+i) * time.Millisecond) // they expire while they are claimed
			tasks[i] = task("x")
			tasks[i].ExpiresAt = &at
		}
		ids, turn := l.submit(ws, tasks...)
		ctx, cancel := context.WithCancel(context.Background())
		var sweeps sync.WaitGroup
		for range 2 {
			sweeps.Go(func() {
				for ctx.Err() == nil {
					if _, _, _, err := l.system.ExpireDue(context.Background()); err != nil {
						t.Error(err)
					}
				}
			})
		}
		var ran []uuid.UUID
		for next := turn; next != nil; {
			c := l.claim(next)
			if next = c.Turn; c.Outcome == store.ClaimWon {
				ran = append(ran, c.Task.ID)
				l.finish(c.Task, store.Succeeded, 1)
			}
		}
		last := slices.Max(expiries(tasks))
		l.env.Admin(t).MustExec(`SELECT pg_sleep(greatest(0, extract(epoch FROM $1::timestamptz - now())))`, time.UnixMilli(last+1))
		cancel()
		sweeps.Wait()
		if _, _, _, err := l.system.ExpireDue(context.Background()); err != nil {
			t.Fatal(err)
		}
		succeeded := l.count(`SELECT count(*) FROM tasks WHERE workspace_id = $1 AND status = 'succeeded'`, ws)
		expired := l.count(`SELECT count(*) FROM tasks WHERE workspace_id = $1 AND status = 'failed' AND error->>'code' = 'expired'`, ws)
		if int(succeeded) != len(ran) || int(succeeded+expired) != len(ids) {
			t.Errorf("%d succeeded (%d were claimed) and %d expired of %d", succeeded, len(ran), expired, len(ids))
		}
		if n := l.count(`SELECT count(*) FROM attempts a JOIN tasks t ON t.id = a.task_id WHERE a.started_at >= t.expires_at`); n != 0 {
			t.Errorf("%d attempts began when their task had expired", n)
		}
		t.Logf("%d ran, %d expired", succeeded, expired)
	})
}

func expiries(tasks []store.NewTask) []int64 {
	ms := make([]int64, len(tasks))
	for i, t := range tasks {
		ms[i] = t.ExpiresAt.UnixMilli()
	}
	return ms
}
