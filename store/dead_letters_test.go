package store_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// failed submits so many tasks and lets each fail once; their ids, what failed first first.
func (l *line) failed(ws uuid.UUID, n int) []uuid.UUID {
	l.t.Helper()
	var ids []uuid.UUID
	for range n {
		_, turn := l.submit(ws, task("x"))
		c := l.won(turn)
		l.finish(c.Task, store.Failed, 1)
		ids = append(ids, c.Task.ID)
	}
	return ids
}

// letters pages through the dead letters, what failed last first.
func (l *line) letters(ws uuid.UUID, f store.EndedFilter, page int) (ids []uuid.UUID) {
	l.t.Helper()
	var after *store.EndedCursor
	for {
		list, err := l.api.DeadLetters(context.Background(), ws, f, after, page)
		if err != nil {
			l.t.Fatal(err)
		}
		for _, t := range list {
			ids = append(ids, t.ID)
			after = &store.EndedCursor{FinishedAt: *t.FinishedAt, ID: t.ID}
		}
		if len(list) < page {
			return ids
		}
	}
}

func (l *line) retryEnded(ws uuid.UUID, f store.EndedFilter, limit int) (bulk store.Bulk, turns []store.Turn) {
	l.t.Helper()
	done := l.do(ws, func(w *store.Work) (err error) {
		bulk, err = w.RetryEnded(context.Background(), f, limit)
		return err
	})
	return bulk, done.Turns
}

func (l *line) drop(ws uuid.UUID, f store.EndedFilter, limit int) (bulk store.Bulk) {
	l.t.Helper()
	l.do(ws, func(w *store.Work) (err error) {
		bulk, err = w.DropDeadLetters(context.Background(), f, limit)
		return err
	})
	return bulk
}

func TestDeadLetters(t *testing.T) {
	t.Parallel()
	ctx := context.Background()

	t.Run("AreWhatFailedAndIsNotErasedInPages", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws, other := storetest.NewWorkspace(t, l.env, "pro"), storetest.NewWorkspace(t, l.env, "pro")
		ids := l.failed(ws, 5)
		l.failed(other, 1)
		expired, _ := l.submit(ws, expiring("x"))
		l.late(ws)
		l.expire(1)
		canceled, _ := l.submit(ws, task("x"), task("waits"))
		l.do(ws, func(w *store.Work) error { _, err := w.Cancel(ctx, canceled[0]); return err })
		l.do(ws, func(w *store.Work) error { _, err := w.EraseTask(ctx, ids[1]); return err })
		want := slices.Concat(expired, []uuid.UUID{ids[4], ids[3], ids[2], ids[0]})
		for _, page := range []int{1, 2, 50} {
			if got := l.letters(ws, store.EndedFilter{}, page); !slices.Equal(got, want) {
				t.Errorf("in pages of %d: %v, want %v", page, got, want)
			}
		}
		ended := l.view(ws, ids[2]).FinishedAt
		for name, c := range map[string]struct {
			filter store.EndedFilter
			want   []uuid.UUID
		}{
			"another agent":   {store.EndedFilter{Agent: "sable"}, nil},
			"the agent":       {store.EndedFilter{Agent: "yuki"}, want},
			"what expired":    {store.EndedFilter{ErrorCode: "expired"}, expired},
			"after a time":    {store.EndedFilter{FinishedAfter: ended}, []uuid.UUID{expired[0], ids[4], ids[3]}},
			"before a time":   {store.EndedFilter{FinishedBefore: ended}, []uuid.UUID{ids[0]}},
			"by other pairs":  {store.EndedFilter{Metadata: map[string]string{"a": "b"}}, nil},
			"of these, those": {store.EndedFilter{IDs: []uuid.UUID{ids[0], ids[1], canceled[0], uuid.New()}}, []uuid.UUID{ids[0]}},
		} {
			if got := l.letters(ws, c.filter, 50); !slices.Equal(got, c.want) {
				t.Errorf("%s: %v, want %v", name, got, c.want)
			}
		}
	})

	t.Run("AReplayPutsThemInLineOnceWhatFailedFirstFirst", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "pro")
		ids := l.failed(ws, 5)
		only := store.EndedFilter{Status: store.StatusFailed}
		if bulk, turns := l.retryEnded(ws, only, 2); bulk != (store.Bulk{Count: 2, More: true}) || len(turns) != 1 {
			t.Fatalf("the first two: %+v, %d turns", bulk, len(turns))
		}
		for i, want := range []string{"queued", "queued", "failed", "failed", "failed"} {
			if got := l.status(ws, ids[i]); got != want {
				t.Errorf("task %d is %s, want %s", i, got, want)
			}
		}
		if bulk, _ := l.retryEnded(ws, only, 3); bulk != (store.Bulk{Count: 3}) {
			t.Errorf("the rest: %+v", bulk)
		}
		if bulk, _ := l.retryEnded(ws, only, 3); bulk != (store.Bulk{}) {
			t.Errorf("again: %+v", bulk)
		}
		if v := l.view(ws, ids[0]); v.MaxAttempts != 6 || v.Attempt != 1 || string(v.Error) != "null" {
			t.Errorf("after its replay: %+v", v.Task)
		}
	})

	t.Run("ARetryInBulkTakesCanceledOnesToo", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "pro")
		l.failed(ws, 1)
		l.submit(ws, task("a"), task("b"))
		l.do(ws, func(w *store.Work) error { _, err := w.CancelMatching(ctx, store.CancelFilter{}); return err })
		if bulk, _ := l.retryEnded(ws, store.EndedFilter{Status: store.StatusCanceled}, 1); bulk != (store.Bulk{Count: 1, More: true}) {
			t.Errorf("one of the canceled: %+v", bulk)
		}
		if bulk, _ := l.retryEnded(ws, store.EndedFilter{}, 10); bulk != (store.Bulk{Count: 2}) {
			t.Errorf("all others: %+v", bulk)
		}
	})

	t.Run("TheBacklogBoundsAReplay", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "pro")
		l.failed(ws, 3)
		l.limit(ws, map[string]int64{"max_waiting": 2})
		if bulk, _ := l.retryEnded(ws, store.EndedFilter{}, 10); bulk != (store.Bulk{Count: 2, More: true}) {
			t.Errorf("with room for two: %+v", bulk)
		}
		_, err := l.api.Do(ctx, store.Scope{Workspace: ws}, nil, func(w *store.Work) (store.Answer, error) {
			_, err := w.RetryEnded(ctx, store.EndedFilter{}, 10)
			return store.Answer{}, err
		})
		if store.KindOf(err) != store.BacklogFull {
			t.Errorf("without room: %v", err)
		}
	})

	t.Run("AModelThatThePlanLacksStaysWhereItIs", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "pro")
		ids := l.failed(ws, 2)
		l.env.Admin(t).MustExec(`UPDATE tasks SET model = 'openai/gpt-large' WHERE id = $1`, ids[0])
		l.env.Admin(t).MustExec(`UPDATE workspace_load SET models = '{openai/gpt-small}' WHERE workspace_id = $1`, ws)
		if bulk, _ := l.retryEnded(ws, store.EndedFilter{}, 1); bulk != (store.Bulk{Count: 1}) || l.status(ws, ids[0]) != "failed" {
			t.Errorf("%+v, and the barred one is %s", bulk, l.status(ws, ids[0]))
		}
	})

	t.Run("ADropErasesContentAndKeepsMetering", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "pro")
		ids := l.failed(ws, 3)
		metered := l.count(`SELECT count(*) FROM metering_rows WHERE workspace_id = $1`, ws)
		if bulk := l.drop(ws, store.EndedFilter{}, 2); bulk != (store.Bulk{Count: 2, More: true}) {
			t.Errorf("the first two: %+v", bulk)
		}
		if bulk := l.drop(ws, store.EndedFilter{IDs: ids}, 10); bulk != (store.Bulk{Count: 1}) {
			t.Errorf("of all three: %+v", bulk)
		}
		for _, id := range ids {
			if v := l.view(ws, id); v.Prompt != "" || v.ErasedAt == nil || v.AgentMS != 1 || v.Status != "failed" {
				t.Errorf("dropped: %+v", v.Task)
			}
		}
		if n := l.count(`SELECT count(*) FROM metering_rows WHERE workspace_id = $1`, ws); n != metered {
			t.Errorf("%d metering rows of %d are left", n, metered)
		}
		if bulk, _ := l.retryEnded(ws, store.EndedFilter{IDs: ids}, 10); bulk.Count != 0 {
			t.Errorf("%d dropped tasks were replayed", bulk.Count)
		}
	})

	t.Run("ReplaysAndDropsShareThemOut", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "pro")
		l.env.Admin(t).MustExec(`INSERT INTO tasks (workspace_id, id, status, agent, model, prompt, timeout_ms, max_attempts, first_max_attempts, finished_at, error)
			SELECT $1, gen_random_uuid(), 'failed', 'yuki', 'auto', 'x', 1000, 1, 1, now() - n * interval '1 second', '{"code": "x", "message": "", "retryable": false}'
			FROM generate_series(1, 400) n`, ws)
		var replayed, dropped atomic.Int64
		var all sync.WaitGroup
		for i := range 40 {
			all.Go(func() {
				for range 4 {
					if i%2 == 0 {
						bulk, _ := l.retryEnded(ws, store.EndedFilter{Status: store.StatusFailed}, 7)
						replayed.Add(int64(bulk.Count))
					} else {
						dropped.Add(int64(l.drop(ws, store.EndedFilter{}, 7).Count))
					}
				}
			})
		}
		all.Wait()
		queued := l.count(`SELECT count(*) FROM tasks WHERE workspace_id = $1 AND status = 'queued' AND erased_at IS NULL AND max_attempts = 2`, ws)
		erased := l.count(`SELECT count(*) FROM tasks WHERE workspace_id = $1 AND status = 'failed' AND erased_at IS NOT NULL`, ws)
		if queued != replayed.Load() || erased != dropped.Load() || queued+erased != 400 {
			t.Errorf("replayed %d (%d in line), dropped %d (%d erased)", replayed.Load(), queued, dropped.Load(), erased)
		}
	})
}

func TestDeadLettersAreFoundThroughTheirIndex(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	ws := storetest.NewWorkspace(t, l.env, "pro")
	db := l.env.Admin(t)
	db.MustExec(`INSERT INTO tasks (workspace_id, id, status, agent, model, prompt, timeout_ms, max_attempts, first_max_attempts, finished_at)
		SELECT $1, gen_random_uuid(), CASE WHEN n % 500 = 0 THEN 'failed' ELSE 'succeeded' END, 'yuki', 'auto', 'x', 1000, 1, 1, now() - n * interval '1 second'
		FROM generate_series(1, 20000) n`, ws)
	db.MustExec(`ANALYZE tasks`)
	if got := l.letters(ws, store.EndedFilter{}, 50); len(got) != 40 {
		t.Fatalf("%d letters", len(got))
	}
	for order, filter := range map[string]store.EndedFilter{
		`t.finished_at DESC, t.id DESC`: {Status: store.StatusFailed},
		`t.status, t.finished_at, t.id`: {},
	} {
		where, args := filter.Where(ws)
		var plan []string
		if err := db.Select(&plan, `EXPLAIN SELECT t.id FROM tasks t WHERE `+where+` ORDER BY `+order+` LIMIT 50`, args...); err != nil {
			t.Fatal(err)
		}
		if text := strings.Join(plan, "\n"); !strings.Contains(text, "tasks_ended_badly") || strings.Contains(text, "Sort") {
			t.Errorf("ordered by %s:\n%s", order, text)
		}
	}
}
