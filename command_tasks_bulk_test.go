package main

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

func TestTasksInBulkOnTheCommandLine(t *testing.T) {
	t.Parallel()
	env := storetest.New(t)
	vars := whole(env)
	id := storetest.NewWorkspace(t, env, "pro")
	ws := store.FormatID(store.WorkspacePrefix, id)
	env.Admin(t).MustExec(`INSERT INTO tasks (workspace_id, id, status, agent, model, prompt, timeout_ms, max_attempts, first_max_attempts, finished_at, error)
		SELECT $1, gen_random_uuid(), 'failed', 'yuki', 'auto', 'secret words', 1000, 1, 1, now() - n * interval '1 hour',
			jsonb_build_object('code', CASE WHEN n <= 3 THEN 'expired' ELSE 'timeout' END, 'message', 'm', 'retryable', false)
		FROM generate_series(1, 1500) n`, id)
	bulk := func(args ...string) (r bulkJSON) {
		t.Helper()
		code, stdout, stderr := runWith(vars, append(append([]string{"tasks"}, args...), "--json")...)
		if code != exitOK {
			t.Fatalf("%q: %d %s", args, code, stderr)
		}
		if err := json.Unmarshal([]byte(stdout), &r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	code, stdout, _ := runWith(vars, "tasks", "dead-letters", "list", ws, "--error-code", "expired")
	if code != exitOK || strings.Count(stdout, "task_") != 3 || strings.Contains(stdout, "secret words") {
		t.Errorf("list: %d %s", code, stdout)
	}
	one := strings.Fields(strings.Split(stdout, "\n")[1])[0]
	for _, step := range []struct {
		want bulkJSON
		args []string
	}{
		{bulkJSON{Matching: 3, Dry: true}, []string{"dead-letters", "drop", ws, "--error-code", "expired"}},
		{bulkJSON{Matching: 2, Dry: true}, []string{"dead-letters", "replay", ws, "--since", "2h30m"}},
		{bulkJSON{Matching: 1, Changed: 1}, []string{"dead-letters", "replay", ws, "--task", one, "--yes"}},
		{bulkJSON{Matching: 2, Changed: 2}, []string{"dead-letters", "drop", ws, "--error-code", "expired", "--yes"}},
		{bulkJSON{Matching: 1, Dry: true}, []string{"cancel-all", ws}},
		{bulkJSON{Matching: 1, Changed: 1}, []string{"cancel-all", ws, "--yes"}},
		{bulkJSON{Matching: 1498, Changed: 1498}, []string{"retry-all", ws, "--yes"}}, // two transactions
		{bulkJSON{}, []string{"retry-all", ws, "--yes"}},
		{bulkJSON{Matching: 1498, Changed: 1498}, []string{"cancel-all", ws, "--status", "queued", "--yes"}},
		{bulkJSON{Matching: 1498, Dry: true}, []string{"retry-all", ws, "--status", "canceled"}},
	} {
		if got := bulk(step.args...); got != step.want {
			t.Errorf("%q: %+v, want %+v", step.args, got, step.want)
		}
	}
	_, err := store.NewAPI(env.API(t)).Do(t.Context(), store.Scope{Workspace: id}, nil, func(w *store.Work) (store.Answer, error) {
		_, err := w.Submit(t.Context(), []store.NewTask{{Agent: "yuki", Model: "auto", Prompt: "x", TimeoutMS: 1000, MaxAttempts: 1}})
		return store.Answer{}, err
	})
	if err != nil {
		t.Fatal(err)
	}
	_, stdout, _ = runWith(vars, "tasks", "list", ws, "--status", "queued")
	if _, stdout, stderr := runWith(vars, "tasks", "show", ws, strings.Fields(strings.Split(stdout, "\n")[1])[0]); !strings.Contains(stdout, "waiting: in_line, behind 0\n") {
		t.Errorf("show says not why it waits: %s%s", stdout, stderr)
	}
	for _, args := range [][]string{{"tasks", "retry-all", ws, "--status", "running"}, {"tasks", "cancel-all", ws, "--status", "failed"},
		{"tasks", "dead-letters", "drop", ws, "--task", "x"}, {"tasks", "dead-letters", "list", ws, "--limit", "0"}, {"tasks", "dead-letters"}} {
		if code, _, stderr := runWith(vars, args...); code != exitUsage || stderr == "" {
			t.Errorf("%q: %d %q", args, code, stderr)
		}
	}
	var actions string
	err = env.Admin(t).GetContext(context.Background(), &actions, `SELECT string_agg(action, ' ' ORDER BY seq) FROM audit_log WHERE workspace_id = $1 AND actor_type = 'operator' AND action <> 'workspace.set_plan'`, id)
	if want := "dead_letters.read dead_letters.replay dead_letters.drop tasks.cancel tasks.retry tasks.retry tasks.retry tasks.cancel tasks.read task.read"; err != nil || actions != want {
		t.Errorf("the audit log has %s, %v; want %s", actions, err, want)
	}
	storetest.CheckLedger(t, env)
}
