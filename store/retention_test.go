package store_test

import (
	"context"
	"fmt"
	"os"
	"reflect"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

var historySQL = []string{
	`CREATE TEMP TABLE past ON COMMIT DROP AS SELECT i, at, (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '70008000' || lpad(to_hex(i), 12, '0'))::uuid AS id,
		md5($1::text || at || i)::uuid AS attempt FROM (SELECT i, now() - ($4::float + $3::float - $3::float * i / $2::float) * interval '1 day' AS at FROM generate_series(1, $2::int) i) x`,
	`INSERT INTO tasks (workspace_id, id, status, agent, model, prompt, timeout_ms, attempt, max_attempts, first_max_attempts, created_at, started_at, finished_at, result, agent_ms, cost_microusd)
		SELECT $1::uuid, id, 'succeeded', 'yuki', 'auto', repeat('p', 300), 1000, 1, 1, 1, at, at, at + interval '1 hour', '{"output": "done", "data": null}', 7, 5 FROM past`,
	`INSERT INTO attempts (workspace_id, id, task_id, attempt, worker_id, outcome, billable, started_at, finished_at, agent_ms, cost_microusd)
		SELECT $1::uuid, attempt, id, 1, attempt, 'succeeded', true, at, at + interval '1 hour', 7, 5 FROM past`,
	`INSERT INTO provider_calls (workspace_id, id, task_id, attempt_id, step, try, provider, model, outcome, cost_microusd, started_at, finished_at)
		SELECT $1::uuid, md5('call' || attempt)::uuid, id, attempt, 1, 1, 'openai', 'm', 'ok', 5, at, at + interval '1 hour' FROM past`,
	`INSERT INTO metering_rows (workspace_id, attempt_id, meter, quantity, billable, day, at, task_id, agent, model)
		SELECT $1::uuid, attempt, meter, quantity, true, ((at + interval '1 hour') AT TIME ZONE 'UTC')::date, at + interval '1 hour', id, 'yuki', 'auto'
		FROM past, (VALUES ('agent_ms', 7), ('tasks', 1), ('provider_cost_microusd', 5)) m (meter, quantity)`,
}

// history fabricates n tasks of a workspace, sent evenly over the given number of days up to daysAgo, each ended an hour
// after it was sent, with an attempt, a provider call and three metering rows. It runs as superuser.
func history(t testing.TB, env *storetest.Env, ws uuid.UUID, n, days, daysAgo int) {
	t.Helper()
	db := env.Admin(t)
	tx := db.MustBegin()
	defer tx.Rollback()
	for i, q := range historySQL {
		args := []any{ws}
		if i == 0 {
			args = []any{ws.String(), n, days, daysAgo}
		}
		if _, err := tx.Exec(q, args...); err != nil {
			t.Fatalf("fabricate history: %v\n%s", err, q)
		}
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
}

// usage reads all that the API says of a workspace's usage.
func (l *line) usage(ws uuid.UUID) (all [][]store.UsageRow) {
	l.t.Helper()
	for _, group := range []string{"", "agent", "model", "key"} {
		rows, err := l.api.Usage(context.Background(), ws, store.UsageQuery{From: time.Now().AddDate(-2, 0, 0), To: time.Now().AddDate(0, 0, 1), Hourly: group == "agent", GroupBy: group, Limit: 5000})
		if err != nil || len(rows) == 0 {
			l.t.Fatalf("%d rows of usage, %v", len(rows), err)
		}
		all = append(all, rows)
	}
	return all
}

// keeping is what the retention finds of a workspace.
func (l *line) keeping(ws uuid.UUID) (store.Keeping, bool) {
	l.t.Helper()
	for after := uuid.Nil; ; {
		list, next, err := l.system.Keepings(context.Background(), after, 2)
		if err != nil {
			l.t.Fatal(err)
		}
		for _, k := range list {
			if k.Workspace == ws {
				return k, true
			}
		}
		if next == uuid.Nil {
			return store.Keeping{}, false
		}
		after = next
	}
}

// removeAll removes what a workspace keeps no longer, so many at a time.
func (l *line) removeAll(k store.Keeping, limit int) (sum store.Removed) {
	l.t.Helper()
	for after := uuid.Nil; ; {
		r, next, held, err := l.system.RemoveEnded(context.Background(), k, after, limit)
		if err != nil || held {
			l.t.Fatalf("held %v, %v", held, err)
		}
		sum.Tasks, sum.Attempts, sum.Calls = sum.Tasks+r.Tasks, sum.Attempts+r.Attempts, sum.Calls+r.Calls
		if after = next; next == uuid.Nil {
			return sum
		}
	}
}

func TestRetention(t *testing.T) {
	t.Parallel()
	ctx := context.Background()

	t.Run("RemovesWhatEndedLongAgoAndNothingElse", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws, other := storetest.NewWorkspace(t, l.env, "starter"), storetest.NewWorkspace(t, l.env, "free")
		history(t, l.env, ws, 50, 40, 100) // sent 140 to 100 days ago: Starter keeps 90
		history(t, l.env, ws, 30, 40, 20)
		history(t, l.env, other, 40, 40, 300)
		if _, err := l.system.SetLimits(ctx, other, map[string]int64{"retention_days": 0}, store.Operator{Name: "test"}); err != nil {
			t.Fatal(err)
		}
		// Sent long ago, and not ended long ago: one waits, one runs, one has just been canceled.
		ids, turn := l.submit(ws, task("waits"), task("runs"), task("ends"))
		old := func(i int) uuid.UUID { return uuid.MustParse(fmt.Sprintf("01500000-0000-7000-8000-00000000000%d", i)) }
		for i, id := range ids {
			l.count(`WITH u AS (UPDATE tasks SET id = $1, created_at = now() - interval '1 year', priority = $3 WHERE id = $2 RETURNING 1) SELECT count(*) FROM u`, old(i), id, map[bool]int{true: 9, false: 0}[i == 1])
		}
		running := l.won(turn).Task
		if running.ID != old(1) {
			t.Fatalf("%s runs", running.ID)
		}
		if _, err := l.api.Do(ctx, store.Scope{Workspace: ws}, nil, func(w *store.Work) (store.Answer, error) {
			_, err := w.Cancel(ctx, old(2))
			return store.Answer{}, err
		}); err != nil {
			t.Fatal(err)
		}
		if _, err := l.system.RollUp(ctx, time.Now().AddDate(-2, 0, 0), time.Now()); err != nil {
			t.Fatal(err)
		}
		before, daily := l.usage(ws), l.count(`SELECT sum(quantity) FROM daily_usage`)

		k, _ := l.keeping(ws)
		if !k.Due() || k.Days != 90 || time.Since(k.Oldest()) < 140*24*time.Hour {
			t.Errorf("%+v, oldest %s", k, k.Oldest())
		}
		if r := l.removeAll(k, 7); r != (store.Removed{Tasks: 50, Attempts: 50, Calls: 50}) {
			t.Errorf("removed %+v, want fifty of each", r)
		}
		if k, _ := l.keeping(other); k.Due() {
			t.Error("a workspace that keeps its tasks for ever is due")
		}
		for table, want := range map[string]int64{"tasks": 33, "attempts": 30, "provider_calls": 30, "metering_rows": 240} {
			if n := l.count(`SELECT count(*) FROM `+table+` WHERE workspace_id = $1`, ws); n != want {
				t.Errorf("%d %s are left, want %d", n, table, want)
			}
		}
		if n := l.count(`SELECT count(*) FROM tasks WHERE workspace_id = $1`, other); n != 40 {
			t.Errorf("%d tasks are left of a workspace that keeps them for ever", n)
		}
		if after := l.usage(ws); !reflect.DeepEqual(before, after) {
			t.Error("usage is another after the tasks have gone")
		}
		from := time.Now().AddDate(-2, 0, 0)
		if changed, err := l.system.RollUp(ctx, from, time.Now()); err != nil || changed != 0 || l.count(`SELECT sum(quantity) FROM daily_usage`) != daily {
			t.Errorf("a roll-up changed %d rows, %v", changed, err)
		}
		if r := l.finish(running, store.Succeeded, 5); r.Status != store.StatusSucceeded {
			t.Errorf("%+v", r)
		}
		if r := l.removeAll(k, 1000); r.Tasks != 0 {
			t.Errorf("%d tasks that have just ended are gone", r.Tasks)
		}
		removed := l.count(`SELECT count(*) FROM tasks WHERE id = $1`, old(2))
		if _, err := l.api.Task(ctx, ws, uuid.MustParse("01500000-0000-7000-8000-0000000000ff")); store.KindOf(err) != store.NotFound || removed != 1 {
			t.Errorf("%v, %d", err, removed)
		}
		// The ledger's rules compare tasks, attempts and metering rows of all times: give them what they look for.
		l.count(`WITH d AS (DELETE FROM metering_rows m WHERE NOT EXISTS (SELECT 1 FROM attempts a WHERE a.id = m.attempt_id) RETURNING 1), u AS (DELETE FROM daily_usage RETURNING 1) SELECT count(*) FROM d, u`)
		l.count(`WITH s AS (UPDATE workspace_load SET provider_used_microusd = (SELECT coalesce(sum(cost_microusd), 0) FROM provider_calls c WHERE c.workspace_id = workspace_load.workspace_id
			AND c.finished_at >= date_trunc('month', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'), used_ms = (SELECT coalesce(sum(quantity), 0) FROM metering_rows m WHERE m.workspace_id = workspace_load.workspace_id
			AND meter = 'agent_ms' AND m.day >= date_trunc('month', now() AT TIME ZONE 'UTC')) RETURNING 1) SELECT count(*) FROM s`)
	})

	t.Run("ATaskThatIsBroughtBackMeanwhileStaysOrIsNotFound", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "pro")
		const n = 60
		history(t, l.env, ws, n, 30, 400)
		l.count(`WITH u AS (UPDATE tasks SET status = 'failed', result = NULL RETURNING 1) SELECT count(*) FROM u`)
		l.count(`WITH d AS (DELETE FROM metering_rows RETURNING 1), a AS (DELETE FROM attempts RETURNING 1), t AS (UPDATE tasks SET agent_ms = 0, cost_microusd = 0, attempt = 0 RETURNING 1)
			SELECT count(*) FROM d, a, t`)
		var tasks []uuid.UUID
		if err := l.env.Admin(t).Select(&tasks, `SELECT id FROM tasks ORDER BY random()`); err != nil {
			t.Fatal(err)
		}
		k, _ := l.keeping(ws)
		var racing sync.WaitGroup
		racing.Go(func() {
			for after := uuid.Nil; ; {
				_, next, held, err := l.system.RemoveEnded(ctx, k, after, 3)
				if err != nil {
					t.Error(err)
					return
				}
				if held {
					continue
				}
				if after = next; next == uuid.Nil {
					return
				}
			}
		})
		retried, gone := int64(0), 0
		for _, id := range tasks {
			_, err := l.api.Do(ctx, store.Scope{Workspace: ws}, nil, func(w *store.Work) (store.Answer, error) { return store.Answer{}, w.Retry(ctx, id) })
			switch {
			case err == nil:
				retried++
			case store.KindOf(err) == store.NotFound:
				gone++
			default:
				t.Fatal(err)
			}
		}
		racing.Wait()
		t.Logf("%d retried, %d gone before", retried, gone)
		if left := l.count(`SELECT count(*) FROM tasks WHERE status = 'queued'`); left != retried || l.count(`SELECT waiting FROM workspace_load`) != retried {
			t.Errorf("%d tasks wait, %d were retried", left, retried)
		}
	})

	t.Run("AHeldLoadRowIsLeftForLater", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "free")
		history(t, l.env, ws, 5, 5, 100)
		k, _ := l.keeping(ws)
		tx := l.env.Admin(t).MustBegin()
		tx.MustExec(`SELECT 1 FROM workspace_load FOR UPDATE`)
		if r, _, held, err := l.system.RemoveEnded(ctx, k, uuid.Nil, 100); err != nil || !held || r.Tasks != 0 {
			t.Errorf("%+v, held %v, %v", r, held, err)
		}
		if err := tx.Rollback(); err != nil {
			t.Fatal(err)
		}
		if r := l.removeAll(k, 100); r.Tasks != 5 {
			t.Errorf("%+v", r)
		}
		l.count(`WITH d AS (DELETE FROM metering_rows RETURNING 1) SELECT count(*) FROM d`)
	})
}

// A year of ended tasks does not make a day's claims and finishes dearer: statement by statement, the pages that a drain
// touches are about those of an empty ledger. MUSTER_TEST_HISTORY is how many ended tasks there are.
func TestAYearOfWorkDoesNotSlowADay(t *testing.T) {
	t.Parallel()
	n := 100_000
	if v := os.Getenv("MUSTER_TEST_HISTORY"); v != "" {
		var err error
		if n, err = strconv.Atoi(v); err != nil {
			t.Fatal(err)
		}
	}
	env := storetest.OwnServersWith(t, map[string]string{"shared_preload_libraries": "pg_stat_statements", "shared_buffers": "512MB", "max_wal_size": "4GB"}).Env
	l := newLineOn(t, env)
	admin := env.Admin(t)
	admin.MustExec(`CREATE EXTENSION pg_stat_statements`)
	ws := storetest.NewWorkspace(t, env, "pro")

	const drained = 300
	drain := func() (pages, ms float64) {
		t.Helper()
		var tasks []store.NewTask
		for range drained {
			tasks = append(tasks, task("x"))
		}
		_, turn := l.submit(ws, tasks...)
		admin.MustExec(`SELECT pg_stat_statements_reset()`)
		for range drained {
			c := l.won(turn)
			if turn = c.Turn; turn == nil {
				turn = l.finish(c.Task, store.Succeeded, 5).Turn
			} else {
				l.finish(c.Task, store.Succeeded, 5)
			}
		}
		var sum struct{ Pages, MS float64 }
		if err := admin.Get(&sum, `SELECT sum(shared_blks_hit + shared_blks_read) AS pages, sum(total_exec_time) AS ms FROM pg_stat_statements s
			JOIN pg_roles r ON r.oid = s.userid WHERE r.rolname = 'muster_worker'`); err != nil {
			t.Fatal(err)
		}
		return sum.Pages / drained, sum.MS / drained
	}
	drain() // warm
	pages0, ms0 := drain()
	began := time.Now()
	history(t, env, ws, n, 364, 0)
	admin.MustExec(`VACUUM ANALYZE`)
	made := time.Since(began)
	pages1, ms1 := drain()
	t.Logf("per claim and finish: %.0f pages and %.2f ms in an empty ledger, %.0f and %.2f ms with %d ended tasks (made in %.0f s)", pages0, ms0, pages1, ms1, n, made.Seconds())
	if pages1 > 1.5*pages0+20 {
		t.Errorf("a claim and its finish touch %.0f pages with %d ended tasks, %.0f without", pages1, n, pages0)
	}

	// What a month's retention removes of it, in batches like the scheduler's, and a drain beside that.
	if _, err := l.system.SetLimits(context.Background(), ws, map[string]int64{"retention_days": 30}, store.Operator{Name: "test"}); err != nil {
		t.Fatal(err)
	}
	k, _ := l.keeping(ws)
	var removed store.Removed
	var longest time.Duration
	batch := 500
	began = time.Now()
	for after := uuid.Nil; ; {
		one := time.Now()
		r, next, held, err := l.system.RemoveEnded(context.Background(), k, after, batch)
		if err != nil {
			t.Fatal(err)
		}
		if held { // it took longer than a batch may, on a loaded machine: as the scheduler does, again with fewer
			if batch /= 2; batch == 0 {
				t.Fatal("one task cannot be removed in time")
			}
			continue
		}
		longest = max(longest, time.Since(one))
		removed.Tasks += r.Tasks
		if after = next; next == uuid.Nil {
			break
		}
	}
	took := time.Since(began)
	t.Logf("%d tasks removed in %.1f s without rests, %.0f tasks/s, the longest batch of at most 500 %s", removed.Tasks, took.Seconds(), float64(removed.Tasks)/took.Seconds(), longest)
	if want := int64(n) * 333 / 364; removed.Tasks < want || removed.Tasks > int64(n) {
		t.Errorf("%d of %d tasks removed", removed.Tasks, n)
	}
	pages2, ms2 := drain()
	t.Logf("per claim and finish right behind it: %.0f pages, %.2f ms", pages2, ms2)
	if pages2 > 2*pages0+50 {
		t.Errorf("a claim and its finish touch %.0f pages behind the removal, %.0f without", pages2, pages0)
	}
}
