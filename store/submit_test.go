package store_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

func TestSubmit(t *testing.T) {
	t.Parallel()
	ctx := context.Background()

	t.Run("DecidesAsTheLineWould", func(t *testing.T) {
		t.Parallel()
		l := newLineOn(t, storetest.New(t))
		admin := l.env.Admin(t)
		reached := map[string]int{}
		random := rand.New(rand.NewPCG(7, 7))
		pick := func(of ...int) int { return of[random.IntN(len(of))] }
		for i := range 60 {
			ws := storetest.NewWorkspace(t, l.env, "pro")
			l.makeUp(ws, pick(0, 1, 2, 10), pick(5_000, 100_000, 1_000_000), pick(0, 0, 4_000, 95_000), pick(0, 8_000), pick(0, 3_000), pick(0, 100, 160, 10_000), pick(0, 0, 200), pick(0, 0, 0, 1) == 1, pick(0, 0, 1) == 1, pick(120, 1_000, 1_000))
			for range pick(0, 1, 3) {
				earlier := task("earlier")
				earlier.TimeoutMS, earlier.Priority = pick(2_000, 60_000), pick(-5, 0, 5)
				ids, turn := l.submit(ws, earlier)
				if turn != nil && pick(0, 1) == 1 {
					l.won(turn)
				}
				admin.MustExec(`UPDATE tasks SET needs_microusd = $3 WHERE workspace_id = $1 AND id = $2`, ws, ids[0], pick(0, 0, 150))
			}
			admin.MustExec(`UPDATE workspace_load SET turn = NULL, turn_at = NULL WHERE workspace_id = $1`, ws) // as if used up
			n := task("new")
			n.TimeoutMS, n.Priority = pick(2_000, 60_000), pick(0, 10)
			views, turns, err := l.api.Submit(ctx, ws, []store.NewTask{n})
			if err != nil {
				t.Fatal(err)
			}
			reason := views[0].Waiting.Reason
			reached[reason]++
			again, err := l.api.Task(ctx, ws, views[0].ID)
			if err != nil || *again.Waiting != *views[0].Waiting {
				t.Errorf("%d: submitted it waits so: %+v, read so: %+v (%v)", i, views[0].Waiting, again.Waiting, err)
			}
			if (reason == store.WaitInLine) != (len(turns) == 1) {
				t.Errorf("%d: %s with %d turns", i, reason, len(turns))
			}
			if missed, turned, err := l.system.IssueMissed(ctx); err != nil || len(missed)+len(turned) > 0 {
				t.Errorf("%d: %s, and the sweep finds it forgotten: %v %v %v", i, reason, missed, turned, err)
			}
			if len(turns) == 1 {
				l.won(&turns[0])
			}
		}
		for _, reason := range []string{store.WaitInLine, store.WaitCap, store.WaitQuota, store.WaitBudget, store.WaitPaused} {
			if reached[reason] == 0 {
				t.Errorf("no state led to %s: %v", reason, reached)
			}
		}
	})

	t.Run("KnowsThePositionsOfAMixedBatch", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "pro")
		_, turn := l.submit(ws, task("runs"))
		l.won(turn)
		random := rand.New(rand.NewPCG(1, 2))
		later := time.Now().Add(time.Hour)
		for round := range 12 {
			batch := make([]store.NewTask, 1+random.IntN(8))
			for i := range batch {
				batch[i] = task("x")
				batch[i].Priority = random.IntN(3) - 1
				if round > 6 && random.IntN(3) == 0 {
					batch[i].RunAt = &later
				}
			}
			views, _, err := l.api.Submit(ctx, ws, batch)
			if err != nil {
				t.Fatal(err)
			}
			var line []uuid.UUID
			if err := l.env.Admin(t).Select(&line, `SELECT t.id FROM tasks t WHERE workspace_id = $1 AND status = 'queued'
				AND NOT EXISTS (SELECT 1 FROM leases l WHERE l.task_id = t.id) ORDER BY priority DESC, id`, ws); err != nil {
				t.Fatal(err)
			}
			for i, v := range views {
				want := slices.Index(line, v.ID)
				read, err := l.api.Task(ctx, ws, v.ID)
				switch {
				case err != nil:
					t.Fatal(err)
				case v.Status == store.StatusScheduled:
					if want >= 0 || *v.Waiting != (store.Waiting{Reason: store.WaitScheduled}) {
						t.Errorf("round %d, %d: scheduled, waits so: %+v", round, i, v.Waiting)
					}
				case want != v.Waiting.Position || want != read.Waiting.Position || v.Waiting.More || read.Waiting.More:
					t.Errorf("round %d, %d: stands at %d, told %+v, read %+v", round, i, want, v.Waiting, read.Waiting)
				}
			}
		}
	})

	t.Run("RefusesWholeWhatDoesNotFit", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "pro")
		l.env.Admin(t).MustExec(`UPDATE workspace_load SET max_waiting = 10 WHERE workspace_id = $1`, ws)
		l.env.Admin(t).MustExec(`INSERT INTO agents (workspace_id, id, name) VALUES ($1, $2, 'own')`, ws, uuid.New())
		own, others := task("x"), task("x")
		own.Agent, others.Agent = "own", "nobody"
		var unknown store.UnknownAgents
		if _, _, err := l.api.Submit(ctx, ws, []store.NewTask{own, others}); !errors.As(err, &unknown) || !slices.Equal(unknown, []string{"nobody"}) {
			t.Errorf("an unknown agent: %v", err)
		}
		var wg sync.WaitGroup
		var mu sync.Mutex
		accepted := 0
		for range 16 { // many at once: the backlog fills up between a look and its lock
			wg.Go(func() {
				views, _, err := l.api.Submit(ctx, ws, []store.NewTask{own, own, own})
				mu.Lock()
				defer mu.Unlock()
				accepted += len(views)
				if err != nil && store.KindOf(err) != store.BacklogFull {
					t.Errorf("a full backlog: %v", err)
				}
			})
		}
		wg.Wait()
		if n := l.count(`SELECT count(*) FROM tasks WHERE workspace_id = $1`, ws); accepted != 9 || n != 9 {
			t.Errorf("%d tasks were accepted and %d stored; nine fit", accepted, n)
		}
		if _, _, err := l.api.Submit(ctx, uuid.New(), []store.NewTask{task("x")}); store.KindOf(err) != store.NotFound {
			t.Errorf("no such workspace: %v", err)
		}
		l.env.Admin(t).MustExec(`UPDATE workspace_load SET leaving = true, max_waiting = 100 WHERE workspace_id = $1`, ws)
		if _, _, err := l.api.Submit(ctx, ws, []store.NewTask{task("x")}); store.KindOf(err) != store.Unauthorized {
			t.Errorf("a workspace that leaves: %v", err)
		}
	})

	t.Run("LeavesNoScopeBehind", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		a, b := storetest.NewWorkspace(t, l.env, "pro"), storetest.NewWorkspace(t, l.env, "pro")
		db := l.env.API(t)
		db.SetMaxOpenConns(1)
		api := store.NewAPI(db)
		views, _, err := api.Submit(ctx, a, []store.NewTask{task("x")})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := api.Task(ctx, b, views[0].ID); store.KindOf(err) != store.NotFound {
			t.Errorf("b reads a's task: %v", err)
		}
		if _, err := api.TaskStatus(ctx, a, views[0].ID); err != nil {
			t.Error(err)
		}
		if _, err := api.Allowance(ctx, a); err != nil {
			t.Error(err)
		}
		_, _ = api.CheckSession(ctx, a, uuid.New(), uuid.New())
		_, _ = api.CheckKey(ctx, []byte("01234567890123456789012345678901"))
		var seen int
		if err := db.Get(&seen, `SELECT count(*) FROM tasks`); err != nil || seen != 0 {
			t.Errorf("without a scope %d tasks are seen (%v)", seen, err)
		}
		// What only reads takes its caller's scope: another workspace's line is nobody's.
		var told string
		if err := db.Get(&told, `SELECT format('%s %s', waiting_reason($1), line_position($1, $2, 0::smallint))`, a, uuid.Max); err != nil || told != " 0" {
			t.Errorf("without a scope the line is told: %q (%v)", told, err)
		}
	})
}

// BenchmarkSubmit is what a submit costs Postgres and this process, with nobody else about.
func BenchmarkSubmit(b *testing.B) {
	env := storetest.New(b)
	api := store.NewAPI(env.API(b))
	for _, size := range []int{1, 100} {
		tasks := make([]store.NewTask, size)
		for i := range tasks {
			tasks[i] = task("x")
		}
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			ws := storetest.NewWorkspace(b, env, "pro")
			env.Admin(b).MustExec(`UPDATE workspace_load SET max_waiting = 100000000 WHERE workspace_id = $1`, ws)
			for b.Loop() {
				if _, _, err := api.Submit(b.Context(), ws, tasks); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
