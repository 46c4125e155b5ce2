package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// leavingSince makes a workspace one that its owner deleted so long ago.
func leavingSince(t *testing.T, env *storetest.Env, ws uuid.UUID, ago time.Duration) {
	t.Helper()
	env.Admin(t).MustExec(`UPDATE workspaces SET status = 'deleting', deleting_at = now() - $2 * interval '1 millisecond' WHERE id = $1`, ws, ago.Milliseconds())
	env.Admin(t).MustExec(`UPDATE workspace_load SET leaving = true WHERE workspace_id = $1`, ws)
}

// endedTasks gives a workspace n ended tasks with their attempts, each with the words in it.
func endedTasks(t *testing.T, env *storetest.Env, ws uuid.UUID, words string, n int) {
	t.Helper()
	env.Admin(t).MustExec(`INSERT INTO tasks (workspace_id, id, status, agent, model, prompt, timeout_ms, max_attempts, first_max_attempts, finished_at, attempt, agent_ms)
		SELECT $1, md5($2 || i)::uuid, 'failed', 'yuki', 'auto', $2, 1000, 1, 1, now(), 1, 7 FROM generate_series(1, $3) i`, ws, words, n)
	env.Admin(t).MustExec(`INSERT INTO attempts (workspace_id, id, task_id, attempt, worker_id, outcome, billable, started_at, agent_ms, error)
		SELECT $1, md5('a' || $2 || i)::uuid, md5($2 || i)::uuid, 1, gen_random_uuid(), 'failed', true, now(), 7, jsonb_build_object('code', 'x', 'message', $2::text, 'retryable', false)
		FROM generate_series(1, $3) i`, ws, words, n)
	env.Admin(t).MustExec(`INSERT INTO metering_rows (workspace_id, attempt_id, meter, quantity, billable, day, task_id, agent, model)
		SELECT $1, md5('a' || $2 || i)::uuid, 'agent_ms', 7, true, (now() AT TIME ZONE 'UTC')::date, md5($2 || i)::uuid, 'yuki', 'auto' FROM generate_series(1, $3) i`, ws, words, n)
	env.Admin(t).MustExec(`UPDATE workspace_load SET used_ms = 7 * $2 WHERE workspace_id = $1`, ws, n)
}

func TestASchedulerThatIsKilledWhileItErasesIsFollowedByAnother(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	db := s.env.Admin(t)
	gone, stays := storetest.NewWorkspace(t, s.env.Env, "pro"), storetest.NewWorkspace(t, s.env.Env, "pro")
	const words, others, tasks = "wordsofwhoeverleaves", "wordsofwhoeverstays", 30_000
	endedTasks(t, s.env.Env, gone, words, tasks)
	endedTasks(t, s.env.Env, stays, others, 100)
	leavingSince(t, s.env.Env, gone, 23*time.Hour)
	count := func(query string, args ...any) (n int) {
		t.Helper()
		if err := db.Get(&n, query, args...); err != nil {
			t.Fatal(err)
		}
		return n
	}
	left := func() int { return count(`SELECT count(*) FROM tasks WHERE workspace_id = $1`, gone) }

	s.start("first", "scheduler")
	s.await(20*time.Second, "the first to lead", func() bool { return s.metric("first", "muster_scheduler_leading") == 1 })
	if n := count(`SELECT count(*) FROM workspaces WHERE id = $1 AND erasing_at IS NOT NULL`, gone); n != 0 {
		t.Error("it is erased before the time to undo is over")
	}
	leavingSince(t, s.env.Env, gone, 25*time.Hour)
	s.await(30*time.Second, "the erasing to be on its way", func() bool { return left() < tasks })
	s.kill("first")
	if n := left(); n == 0 || n == tasks {
		t.Fatalf("%d tasks were left at the kill: it was not in the middle", n)
	}
	if n := count(`SELECT count(*) FROM workspaces WHERE id = $1 AND status = 'deleting' AND erasing_at IS NOT NULL`, gone); n != 1 {
		t.Error("half erased, and not marked so")
	}
	if err := store.NewSystem(s.env.System(t)).Restore(context.Background(), gone, store.Operator{Name: "test"}); store.KindOf(err) != store.Conflict {
		t.Errorf("a workspace that is half erased is restored: %v", err)
	}
	s.start("second", "scheduler")
	s.await(120*time.Second, "the second to finish", func() bool {
		return count(`SELECT count(*) FROM workspaces WHERE id = $1 AND status = 'deleted'`, gone) == 1
	})
	if found := storetest.Traces(t, s.env.Env, words); len(found) != 0 {
		t.Errorf("its words stand in %v", found)
	}
	if got := count(`SELECT sum(quantity) FROM metering_rows WHERE workspace_id = $1`, gone); got != 7*tasks {
		t.Errorf("%d ms are metered, want %d", got, 7*tasks)
	}
	if n := count(`SELECT count(*) FROM audit_log WHERE workspace_id = $1 AND action = 'workspace.erase'`, gone); n != 1 {
		t.Errorf("%d audit entries", n)
	}
	if found := storetest.Traces(t, s.env.Env, others); !slices.Equal(found, []string{"attempts", "tasks"}) {
		t.Errorf("of the other workspace %v are left", found)
	}
	storetest.CheckLedger(t, s.env.Env)
}

func TestErasingWaitsUntilMoneyIsSettled(t *testing.T) {
	t.Parallel()
	env := storetest.New(t)
	system, db := store.NewSystem(env.System(t)), env.Admin(t)
	ws := storetest.NewWorkspace(t, env, "free")
	plan, _ := store.PlanByID("pro")
	if _, err := system.SetPlan(context.Background(), ws, plan, "cus_1", "sub_1", store.Operator{Name: "test"}); err != nil {
		t.Fatal(err)
	}
	const words = "wordsthatwait"
	endedTasks(t, env, ws, words, 3)
	leavingSince(t, env, ws, time.Hour)
	s := &scheduler{system: system, log: zerolog.Nop(), metrics: newSchedulerMetrics(prometheus.NewRegistry()), leaving: seeingOut{grace: time.Minute}}
	look := func(blocked float64, erased bool, why string) {
		t.Helper()
		if err := s.seeOut(context.Background()); err != nil {
			t.Fatal(err)
		}
		if got := testutil.ToFloat64(s.metrics.leavingBlocked); got != blocked {
			t.Errorf("%s: %v blocked", why, got)
		}
		if got := testutil.ToFloat64(s.metrics.erased) == 1; got != erased {
			t.Errorf("%s: erased %v", why, got)
		}
		if found := storetest.Traces(t, env, words); (len(found) == 0) != erased {
			t.Errorf("%s: its words stand in %v", why, found)
		}
	}
	look(1, false, "unsettled, no Stripe account")
	var ended []string
	trouble := errors.New("no such subscription")
	s.leaving.endSubscription = func(_ context.Context, id string) error { ended = append(ended, id); return trouble }
	look(0, false, "unsettled, the night is to come")
	leavingSince(t, env, ws, 51*time.Hour)
	look(1, false, "unsettled after two nights")
	row := func(status string, value int) {
		t.Helper()
		db.MustExec(`DELETE FROM push_ledger`)
		db.MustExec(`INSERT INTO push_ledger (workspace_id, id, meter, day, value, status, stripe_customer_id, event_at)
			VALUES ($1, gen_random_uuid(), 'agent_ms', (now() AT TIME ZONE 'UTC')::date, $2, $3, 'cus_1', now())`, ws, value, status)
	}
	leavingSince(t, env, ws, time.Hour)
	for why, book := range map[string]func(){"pending": func() { row("pending", 21) }, "another total": func() { row("confirmed", 20) }} {
		book()
		look(0, false, why)
	}
	if len(ended) != 0 {
		t.Errorf("the subscription was ended before all was settled: %v", ended)
	}
	row("confirmed", 21)
	look(1, false, "settled, but Stripe does not end the subscription")
	trouble = nil
	look(0, true, "settled and ended")
	look(0, true, "again")
	if !slices.Equal(ended, []string{"sub_1", "sub_1"}) {
		t.Errorf("ended %v", ended)
	}
	accounts, err := system.MeteredWorkspaces(context.Background(), time.Now().AddDate(0, 0, -1), time.Now())
	if err != nil || len(accounts) != 1 || *accounts[0].Customer != "cus_1" {
		t.Errorf("the books lost the workspace: %+v, %v", accounts, err)
	}
	storetest.CheckLedger(t, env)
}

func TestOperatorsLetSomebodyInAgain(t *testing.T) {
	t.Parallel()
	env := storetest.New(t)
	vars := whole(env)
	ws := storetest.NewWorkspace(t, env, "pro")
	var email string
	if err := env.Admin(t).Get(&email, `SELECT u.email FROM users u JOIN members m ON m.user_id = u.id WHERE m.workspace_id = $1`, ws); err != nil {
		t.Fatal(err)
	}
	code, out, stderr := runWith(vars, "user", "show", strings.ToUpper(email))
	if code != exitOK || !strings.Contains(out, email) || !strings.Contains(out, store.FormatID(store.WorkspacePrefix, ws)) || !strings.Contains(out, "owner") {
		t.Errorf("%d %s %s", code, out, stderr)
	}
	if code, out, _ := runWith(vars, "user", "list", "--json"); code != exitOK || !strings.Contains(out, email) || strings.Contains(out, "hash") {
		t.Errorf("%d %s", code, out)
	}
	if code, _, stderr := runWith(vars, "user", "reset-password", "nobody@example.com"); code != exitFailure || !strings.Contains(stderr, "no such user") {
		t.Errorf("%d %s", code, stderr)
	}
	code, out, stderr = runWith(vars, "user", "reset-password", email)
	token := strings.TrimSpace(out)
	if code != exitOK || !strings.HasPrefix(token, "mst_rst_") || strings.Contains(stderr, token) {
		t.Fatalf("%d %q %s", code, out, stderr)
	}
	if found := storetest.Traces(t, env, token); len(found) != 0 {
		t.Errorf("the token itself stands in %v", found)
	}
	noted := func(chain uuid.UUID, want string) {
		t.Helper()
		var got string
		err := env.Admin(t).Get(&got, `SELECT coalesce(string_agg(action, ' ' ORDER BY seq), '') FROM audit_log WHERE workspace_id = $1 AND actor_type = 'operator'
			AND action <> 'workspace.set_plan'`, chain)
		if err != nil || got != want {
			t.Errorf("noted are %q, not %q, %v", got, want, err)
		}
	}
	noted(ws, "user.read password.reset_allow")
	noted(store.SystemChain, "users.read")
	env.Admin(t).MustExec(`INSERT INTO users (id, email, password_hash) VALUES ($1, 'alone@example.com', 'none')`, store.NewID())
	if code, out, stderr := runWith(vars, "user", "show", "alone@example.com"); code != exitOK || !strings.Contains(out, "alone@example.com") {
		t.Errorf("%d %s %s", code, out, stderr)
	}
	noted(store.SystemChain, "users.read user.read")
	users, hash := store.NewAPI(env.API(t)), sha256.Sum256([]byte(token))
	if _, _, err := users.ResetPassword(context.Background(), hash[:], "another hash", store.By{}); err != nil {
		t.Errorf("the token does not reset the password: %v", err)
	}
	if _, _, err := users.ResetPassword(context.Background(), hash[:], "a third", store.By{}); store.KindOf(err) != store.Unauthorized {
		t.Errorf("the token works twice: %v", err)
	}

	leavingSince(t, env, ws, time.Minute)
	id := store.FormatID(store.WorkspacePrefix, ws)
	if code, out, stderr := runWith(vars, "workspace", "show", id); code != exitOK || !strings.Contains(out, "deleting") {
		t.Errorf("%d %s %s", code, out, stderr)
	}
	if code, _, stderr := runWith(vars, "workspace", "set-plan", id, "free"); code != exitFailure || !strings.Contains(stderr, "being deleted") {
		t.Errorf("%d %s", code, stderr)
	}
	if code, out, stderr := runWith(vars, "workspace", "restore", id); code != exitOK || !strings.Contains(out, "active") {
		t.Errorf("%d %s %s", code, out, stderr)
	}
	if code, _, stderr := runWith(vars, "workspace", "restore", id); code != exitFailure || !strings.Contains(stderr, "not being deleted") {
		t.Errorf("%d %s", code, stderr)
	}
}
