package store_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// crowd puts n waiting tasks into the line behind whatever stands there, without going through submits.
func (l *line) crowd(ws uuid.UUID, agent string, n int) {
	l.t.Helper()
	admin := l.env.Admin(l.t)
	admin.MustExec(`INSERT INTO tasks (workspace_id, id, status, agent, model, prompt, timeout_ms, max_attempts, first_max_attempts, run_at)
		SELECT $1, gen_random_uuid(), CASE WHEN n % 5 = 0 THEN 'scheduled' ELSE 'queued' END, $2, 'auto', repeat('x', 200), 60000, 3, 3,
			CASE WHEN n % 5 = 0 THEN now() + interval '1 hour' END
		FROM generate_series(1, $3) n`, ws, agent, n)
	admin.MustExec(`UPDATE workspace_load SET waiting = waiting + $2, max_waiting = greatest(max_waiting, waiting + $2 + 100000) WHERE workspace_id = $1`, ws, n)
	if _, _, err := l.system.IssueMissed(context.Background()); err != nil {
		l.t.Fatal(err)
	}
}

// cancelMatching asks for a cancel as a request does.
func (l *line) cancelMatching(ws uuid.UUID, f store.CancelFilter) (n int) {
	l.t.Helper()
	l.do(ws, func(w *store.Work) (err error) {
		n, err = w.CancelMatching(context.Background(), f)
		return err
	})
	return n
}

// goOn lets another process go on with the cancels of a workspace, to their end.
func (l *line) goOn(ws uuid.UUID) (canceled, rounds int) {
	l.t.Helper()
	for more := true; more; rounds++ {
		g, err := l.system.GoOnCanceling(context.Background(), ws)
		if err != nil {
			l.t.Fatal(err)
		}
		canceled, more = canceled+g.Canceled, g.More
	}
	return canceled, rounds
}

func TestACancelOfManyTasks(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	const canceled = `SELECT count(*) FROM tasks WHERE workspace_id = $1 AND status = 'canceled'`

	t.Run("IsCountedAtOnceAndEndsInBatchesWhoeverGoesOn", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws, other := storetest.NewWorkspace(t, l.env, "pro"), storetest.NewWorkspace(t, l.env, "pro")
		_, turn := l.submit(ws, task("runs"))
		running := l.won(turn).Task
		l.crowd(ws, "yuki", 3200)
		l.crowd(ws, "sable", 40)
		l.crowd(other, "yuki", 1500)
		if n := l.cancelMatching(ws, store.CancelFilter{Agent: "yuki"}); n != 3201 {
			t.Fatalf("%d tasks are said to be canceled, want 3201", n)
		}
		if n := l.count(canceled, ws); n != 999 || l.count(`SELECT count(*) FROM task_cancels`) != 1 {
			t.Fatalf("%d tasks ended with the request, and %d cancels are under way", n, l.count(`SELECT count(*) FROM task_cancels`))
		}
		if n := l.count(`SELECT count(*) FROM tasks WHERE id = $1 AND cancel_requested_at IS NOT NULL`, running.ID); n != 1 {
			t.Error("what runs is asked first")
		}
		// The request's process has died. Meanwhile the customer goes on: what is sent, or brought back, from now on stays.
		later, _ := l.submit(ws, task("later"))
		var again uuid.UUID
		if err := l.env.Admin(t).Get(&again, `SELECT id FROM tasks WHERE workspace_id = $1 AND status = 'canceled' LIMIT 1`, ws); err != nil {
			t.Fatal(err)
		}
		l.do(ws, func(w *store.Work) error { return w.Retry(ctx, again) })
		// One that has started since is asked to stop, one that has come due since ends.
		l.env.Admin(t).MustExec(`UPDATE tasks SET priority = 100 WHERE id = (SELECT id FROM tasks WHERE workspace_id = $1 AND status = 'queued' AND agent = 'yuki'
			AND id <> ALL($2) AND NOT EXISTS (SELECT 1 FROM leases l WHERE l.task_id = tasks.id) LIMIT 1)`, ws, "{"+later[0].String()+","+again.String()+"}")
		var turnOut uuid.UUID
		if err := l.env.Admin(t).Get(&turnOut, `SELECT turn FROM workspace_load WHERE workspace_id = $1`, ws); err != nil {
			t.Fatal(err)
		}
		started := l.won(&store.Turn{Workspace: ws, ID: turnOut}).Task
		n, rounds := l.goOn(uuid.Nil)
		if n != 2201 || rounds != 2 {
			t.Errorf("%d tasks were canceled in %d rounds, want 2201 in one and one that finds nothing", n, rounds)
		}
		if n := l.count(`SELECT count(*) FROM tasks WHERE id = $1 AND cancel_requested_at IS NOT NULL`, started.ID); n != 1 {
			t.Error("what has started since was not asked to stop")
		}
		for what, id := range map[string]uuid.UUID{"sent": later[0], "brought back": again} {
			if s := l.status(ws, id); s != store.StatusQueued {
				t.Errorf("what was %s meanwhile is %s", what, s)
			}
		}
		if n := l.count(canceled, ws); n != 3198 { // 3200, without the one that came back and the one that started
			t.Errorf("%d tasks are canceled", n)
		}
		if n := l.count(`SELECT count(*) FROM tasks WHERE finished_at IS NULL AND (agent = 'sable' OR workspace_id = $1)`, other); n != 1540 {
			t.Errorf("%d tasks of others wait, want 1540", n)
		}
		if n, rounds := l.goOn(uuid.Nil); n != 0 || rounds != 1 || l.count(`SELECT count(*) FROM task_cancels`) != 0 {
			t.Errorf("afterwards %d more in %d rounds", n, rounds)
		}
		for _, c := range []store.ClaimedTask{running, started} {
			if r := l.finish(c, store.Canceled, 5); r.Status != store.StatusCanceled {
				t.Errorf("%+v", r)
			}
		}
	})

	t.Run("ByStatusTakesWhatWasInItWhenAsked", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "pro")
		l.crowd(ws, "yuki", 2500) // 500 of them scheduled
		if n := l.cancelMatching(ws, store.CancelFilter{Status: store.StatusQueued}); n != 2000 {
			t.Fatalf("%d are queued, want 2000", n)
		}
		l.env.Admin(t).MustExec(`UPDATE tasks SET status = 'queued' WHERE workspace_id = $1 AND status = 'scheduled'`, ws) // they have come due: they were not in line
		l.goOn(ws)
		if n := l.count(canceled, ws); n != 2000 {
			t.Errorf("%d are canceled, want 2000", n)
		}
		if n := l.cancelMatching(ws, store.CancelFilter{}); n != 500 || l.count(`SELECT count(*) FROM task_cancels`) != 0 {
			t.Errorf("then %d at once, want 500", n)
		}
	})

	t.Run("AskedAgainIsRenewedAndOthersAreBounded", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "pro")
		l.crowd(ws, "yuki", 2600)
		if n := l.cancelMatching(ws, store.CancelFilter{}); n != 2600 {
			t.Fatal(n)
		}
		if n := l.cancelMatching(ws, store.CancelFilter{}); n != 1600 || l.count(`SELECT count(*) FROM task_cancels`) != 1 {
			t.Errorf("again: %d, want 1600, as one cancel", n)
		}
		l.crowd(ws, "yuki", 1600)
		l.env.Admin(t).MustExec(`INSERT INTO task_cancels SELECT workspace_id, gen_random_uuid(), 'running', 'n' || n, '{}', now() FROM task_cancels, generate_series(1, 20) n`)
		_, err := l.api.Do(ctx, store.Scope{Workspace: ws}, nil, func(w *store.Work) (store.Answer, error) {
			_, err := w.CancelMatching(ctx, store.CancelFilter{Agent: "yuki"})
			return store.Answer{}, err
		})
		if store.KindOf(err) != store.Conflict {
			t.Errorf("a cancel beside 21 others: %v", err)
		}
		l.goOn(uuid.Nil)
		if n := l.count(`SELECT count(*) FROM task_cancels`); n != 0 {
			t.Errorf("%d cancels never end", n)
		}
		l.cancelMatching(ws, store.CancelFilter{})
		l.goOn(ws)
		if n := l.count(canceled, ws); n != 4200 {
			t.Errorf("%d are canceled", n)
		}
	})

	t.Run("ThatCommitsBehindALaterOneKeepsTheLatersMoment", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "pro")
		l.crowd(ws, "yuki", 2500)
		l.cancelMatching(ws, store.CancelFilter{})
		// The same was asked for a minute later than what follows, and was first at the load row.
		var later time.Time
		if err := l.env.Admin(t).Get(&later, `UPDATE task_cancels SET requested_at = requested_at + interval '1 minute' RETURNING requested_at`); err != nil {
			t.Fatal(err)
		}
		l.cancelMatching(ws, store.CancelFilter{})
		if n := l.count(`SELECT count(*) FROM task_cancels WHERE requested_at = $1`, later); n != 1 {
			t.Error("the earlier one has set the later one's moment back")
		}
	})

	t.Run("ThatFailsOrIsHeldUpDelaysNobodyElses", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		bad, held, good := storetest.NewWorkspace(t, l.env, "pro"), storetest.NewWorkspace(t, l.env, "pro"), storetest.NewWorkspace(t, l.env, "pro")
		for _, ws := range []uuid.UUID{bad, held, good} {
			l.crowd(ws, "yuki", 1500)
			l.cancelMatching(ws, store.CancelFilter{})
		}
		admin := l.env.Admin(t)
		admin.MustExec(`CREATE FUNCTION trouble() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''trouble''; END'`)
		admin.MustExec(`CREATE TRIGGER trouble BEFORE UPDATE ON tasks FOR EACH ROW WHEN (NEW.workspace_id = '` + bad.String() + `') EXECUTE FUNCTION trouble()`)
		hold := admin.MustBegin()
		hold.MustExec(`SELECT 1 FROM workspace_load WHERE workspace_id = $1 FOR UPDATE`, held)
		if g, err := l.system.GoOnCanceling(ctx, uuid.Nil); err == nil || !strings.Contains(err.Error(), bad.String()) || g.Canceled != 500 || l.count(canceled, good) != 1500 {
			t.Errorf("%+v, %v", g, err)
		}
		if err := hold.Rollback(); err != nil {
			t.Fatal(err)
		}
		admin.MustExec(`DROP TRIGGER trouble ON tasks; DROP FUNCTION trouble`)
		if n, _ := l.goOn(uuid.Nil); n != 1000 {
			t.Errorf("then %d, want 1000", n)
		}
	})

	t.Run("OfAWorkspaceThatLeavesEndsBeforeItsErasing", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "pro")
		l.crowd(ws, "yuki", 2500)
		var name string
		if err := l.env.Admin(t).Get(&name, `SELECT name FROM workspaces WHERE id = $1`, ws); err != nil {
			t.Fatal(err)
		}
		var left store.Left
		l.do(ws, func(w *store.Work) (err error) {
			left, err = w.Leave(ctx, name, uuid.Nil)
			return err
		})
		if left.Canceled != 2500 {
			t.Errorf("%+v", left)
		}
		if begun, err := l.system.BeginErasing(ctx, ws); err != nil || begun {
			t.Fatalf("erasing began while tasks wait: %v", err)
		}
		if n, _ := l.goOn(uuid.Nil); n != 1500 {
			t.Errorf("%d were canceled behind the request", n)
		}
		if begun, err := l.system.BeginErasing(ctx, ws); err != nil || !begun {
			t.Fatalf("%v %v", begun, err)
		}
		if done, err := l.system.Erase(ctx, ws, time.Minute); err != nil || !done || l.count(`SELECT count(*) FROM tasks`) != 0 {
			t.Errorf("%v %v", done, err)
		}
	})
}

// BenchmarkACancelOf200000 cancels the longest line that a plan allows while others, and the workspace itself, submit and claim:
//
//	go test ./store -run '^$' -bench ACancelOf200000 -benchtime 1x
func BenchmarkACancelOf200000(b *testing.B) {
	l := newLine(b)
	ctx := context.Background()
	ws, other := storetest.NewWorkspace(b, l.env, "pro"), storetest.NewWorkspace(b, l.env, "pro")
	for range b.N {
		l.crowd(ws, "yuki", 200_000)
		l.env.Admin(b).MustExec(`VACUUM ANALYZE tasks`)
		during := func(stop chan struct{}, do func()) (waits []time.Duration) {
			for {
				select {
				case <-stop:
					slices.Sort(waits)
					return waits
				default:
					start := time.Now()
					do()
					waits = append(waits, time.Since(start))
				}
			}
		}
		stop := make(chan struct{})
		var all sync.WaitGroup
		for name, id := range map[string]uuid.UUID{"own": ws, "other": other} {
			all.Go(func() {
				waits := during(stop, func() {
					if _, _, err := l.api.Submit(ctx, id, []store.NewTask{task("x")}); err != nil {
						b.Error(err)
					}
				})
				b.ReportMetric(float64(waits[len(waits)-1].Milliseconds()), name+"-submit-max-ms")
				b.ReportMetric(float64(waits[len(waits)/2].Microseconds())/1000, name+"-submit-p50-ms")
			})
		}
		start := time.Now()
		if n := l.cancelMatching(ws, store.CancelFilter{}); n < 200_000 {
			b.Fatal(n)
		}
		b.ReportMetric(float64(time.Since(start).Milliseconds()), "request-ms")
		_, rounds := l.goOn(ws)
		b.ReportMetric(time.Since(start).Seconds(), "whole-s")
		b.ReportMetric(float64(rounds), "rounds")
		close(stop)
		all.Wait()
		l.cancelMatching(ws, store.CancelFilter{})
		l.cancelMatching(other, store.CancelFilter{})
		l.goOn(uuid.Nil)
	}
}
