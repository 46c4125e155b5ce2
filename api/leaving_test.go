package api

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// end finishes a claimed task with words of the test's in its result or its error.
func (f *fleet) end(task store.ClaimedTask, outcome store.Outcome, words string) {
	f.w.t.Helper()
	fin := &store.Finish{Workspace: task.Workspace, Task: task.ID, Lease: task.Lease, Outcome: outcome, Usage: store.AttemptUsage{AgentMS: 1234, CostMicroUSD: 5}}
	if outcome == store.Succeeded {
		fin.Result = json.RawMessage(fmt.Sprintf(`{"output": %q, "data": {"k": %q}}`, words, words))
	} else {
		fin.Error = &store.TaskError{Code: "provider_error", Message: words, Retryable: true}
	}
	done, err := f.Finish(f.w.t.Context(), fin, false)
	if err != nil || !done.Accepted {
		f.w.t.Fatalf("finish: %+v %v", done, err)
	}
}

// canary is a word that stands nowhere else.
func canary() string { return "canary" + strings.ReplaceAll(uuid.NewString(), "-", "") }

// traces fails the test when the words stand in another table than those.
func (w *world) traces(words string, allowed ...string) {
	w.t.Helper()
	if found := storetest.Traces(w.t, w.env, words); !slices.Equal(found, allowed) {
		w.t.Errorf("%s stands in %v, want %v", words[:12], found, allowed)
	}
}

func TestErasingATask(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	c, fleet := w.owner("pro"), w.fleet()
	other := c.post("/v1/tasks", map[string]any{"prompt": "another", "metadata": map[string]string{"k": "v"}}, headers{"Idempotency-Key": "other"}).want(202).str("id")
	fleet.end(fleet.start(c.ws), store.Succeeded, "another's result")

	secret := canary()
	body := map[string]any{"prompt": "say " + secret, "input": map[string]any{"a": secret}, "metadata": map[string]string{"m": secret}}
	id := c.post("/v1/tasks", body, headers{"Idempotency-Key": "first"}).want(202).str("id")
	path := "/v1/tasks/" + id
	c.do("DELETE", path, nil).problem(probConflict) // it waits
	task := fleet.start(c.ws)
	c.do("DELETE", path, nil).problem(probConflict) // it runs
	fleet.end(task, store.Failed, "failed over "+secret)
	c.post(path+"/retry", nil, headers{"Idempotency-Key": "again"}).want(202)
	fleet.end(fleet.start(c.ws), store.Succeeded, "it is "+secret)
	batch := c.post("/v1/tasks/batch", map[string]any{"tasks": []any{map[string]any{"prompt": "b " + secret}, map[string]any{"prompt": "c"}}}, headers{"Idempotency-Key": "batch"}).want(202)
	canceled := "/v1/tasks/" + batch.str("data.0.id")
	c.post(canceled+"/cancel", nil, headers{"Idempotency-Key": "cancel"}).want(202)
	c.post("/v1/tasks/cancel", map[string]any{"metadata": map[string]string{"m": secret}}).want(202)
	w.traces(secret, "attempts", "idempotency_keys", "tasks")

	figures := func() (rows []string) {
		if err := w.admin.Select(&rows, `SELECT m::text FROM metering_rows m WHERE workspace_id = $1
			UNION ALL SELECT (to_jsonb(a) - 'error')::text FROM attempts a WHERE workspace_id = $1
			UNION ALL SELECT (to_jsonb(t) - '{prompt,input,metadata,result,error,erased_at}'::text[])::text FROM tasks t WHERE workspace_id = $1 ORDER BY 1`, c.ws); err != nil {
			t.Fatal(err)
		}
		return rows
	}
	before := figures()
	c.do("DELETE", path, nil, headers{"Idempotency-Key": "gone"}).want(204)
	c.do("DELETE", canceled, nil).want(204)
	w.traces(secret)
	if after := figures(); !slices.Equal(before, after) {
		t.Errorf("figures changed:\n%s\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}

	got := c.get(path).want(200)
	if got.str("status") != "succeeded" || got.str("prompt") != "" || got.at("result") != nil || got.str("erased_at") == "" || got.num("usage.agent_ms") != 2468 {
		t.Errorf("%s", got.body)
	}
	if got := c.get(canceled).want(200); got.str("error.code") != "canceled" || got.str("error.message") != "erased" {
		t.Errorf("%s", got.body)
	}
	if attempts := c.get(path + "/attempts").want(200); attempts.str("data.1.error.message") != "erased" || attempts.num("data.1.usage.agent_ms") != 1234 {
		t.Errorf("%s", attempts.body)
	}
	for range 2 { // erased once, told once
		c.do("DELETE", path, nil).want(204)
	}
	if c.do("DELETE", path, nil, headers{"Idempotency-Key": "gone"}).want(204).header.Get("Idempotent-Replayed") != "true" {
		t.Error("the repeat is no replay")
	}
	if n := w.count(`SELECT count(*) FROM audit_log WHERE action = 'task.erase'`); n != 2 {
		t.Errorf("%d audit entries, want 2", n)
	}
	c.post(path+"/retry", nil).problem(probConflict)
	c.post(canceled+"/retry", nil).problem(probConflict)

	// The keys of erased answers make no second task; an answer about another task is still given.
	c.post("/v1/tasks", body, headers{"Idempotency-Key": "first"}).problem(probConflict)
	c.post(path+"/retry", nil, headers{"Idempotency-Key": "again"}).problem(probConflict)
	if r := c.post("/v1/tasks", map[string]any{"prompt": "another", "metadata": map[string]string{"k": "v"}}, headers{"Idempotency-Key": "other"}).want(202); r.str("id") != other || r.header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("%s", r.body)
	}
	if r := c.get("/v1/tasks/" + other).want(200); r.str("prompt") != "another" || r.str("result.output") != "another's result" || r.at("erased_at") != nil {
		t.Errorf("%s", r.body)
	}
	storetest.CheckLedger(t, w.env)
}

// erase sees a leaving workspace out, as the scheduler does.
func (w *world) erase(ws uuid.UUID) {
	w.t.Helper()
	system := store.NewSystem(w.env.System(w.t))
	if begun, err := system.BeginErasing(w.t.Context(), ws); err != nil || !begun {
		w.t.Fatalf("begin erasing: %v, %v", begun, err)
	}
	for done := false; !done; {
		var err error
		if done, err = system.Erase(w.t.Context(), ws, time.Minute); err != nil {
			w.t.Fatal(err)
		}
	}
}

// fill gives a client's workspace a row of everything, each with the words in it, and returns a task that runs.
func (c *client) fill(words string, fleet *fleet) store.ClaimedTask {
	c.t.Helper()
	c.do("PATCH", "/v1/workspace", map[string]any{"name": words}).want(200)
	c.exec(`UPDATE workspaces SET settings = jsonb_build_object('note', $2::text) WHERE id = $1`, c.ws, words)
	c.exec(`INSERT INTO agents (workspace_id, id, name, instructions) VALUES ($1, $2, $3, $3)`, c.ws, store.NewID(), words)
	c.post("/v1/api-keys", map[string]any{"name": words}).want(201)
	c.post("/v1/invitations", map[string]any{"email": words + "@example.com", "role": "viewer"}).want(201)
	c.exec(`UPDATE sessions SET user_agent = $2 WHERE workspace_id = $1`, c.ws, words)
	c.post("/v1/webhooks", map[string]any{"url": "https://example.com/" + words, "description": words}).want(201)
	for range 3 {
		c.post("/v1/tasks", map[string]any{"prompt": words, "metadata": map[string]string{"m": words}}, headers{"Idempotency-Key": uuid.NewString()}).want(202)
	}
	fleet.end(fleet.start(c.ws), store.Failed, words)
	fleet.end(fleet.start(c.ws), store.Succeeded, words)
	running := fleet.start(c.ws)
	c.post("/v1/tasks", map[string]any{"prompt": words, "input": map[string]any{"waits": words}}).want(202)
	return running
}

func TestDeletingAWorkspace(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	elsewhere := newWorldOn(t, w.env, nil) // another API process, with its own beliefs
	fleet := w.fleet()
	in := w.registered("leaver@example.com")
	ws, _ := store.ParseID(store.WorkspacePrefix, in.str("workspace.id"))
	user, _ := store.ParseID(store.UserPrefix, in.str("user.id"))
	plan, _ := store.PlanByID("pro")
	if _, err := store.NewSystem(w.env.System(t)).SetPlan(t.Context(), ws, plan, "", "", store.Operator{Name: "test"}); err != nil {
		t.Fatal(err)
	}
	c := w.with(in.str("access_token"))
	c.ws, c.user = ws, user
	words, others := canary(), canary()
	stays := w.owner("pro")
	stays.fill(others, fleet)
	running := c.fill(words, fleet)
	key := w.with(c.post("/v1/api-keys", map[string]any{"name": "k"}).want(201).str("key"))
	invitation := c.post("/v1/invitations", map[string]any{"email": "guest@example.com", "role": "member"}).want(201).str("token")
	colleague := c.colleague(store.RoleMember)
	// The colleague is in another workspace too; they stay a user.
	w.exec(`INSERT INTO members (workspace_id, user_id, role) VALUES ($1, $2, 'viewer')`, stays.ws, colleague.user)
	for _, credential := range []string{c.credential, key.credential, colleague.credential} {
		elsewhere.with(credential).get("/v1/me").want(200) // believed there now
	}

	colleague.do("DELETE", "/v1/workspace", map[string]any{"confirm": words}).problem(probForbidden)
	key.do("DELETE", "/v1/workspace", map[string]any{"confirm": words}).problem(probForbidden)
	c.do("DELETE", "/v1/workspace", nil).problem(probBadRequest)
	if r := c.do("DELETE", "/v1/workspace", map[string]any{"confirm": strings.ToUpper(words)}).problem(probInvalid); !slices.Equal(r.fields(), []string{"confirm"}) {
		t.Errorf("%s", r.body)
	}
	asked := time.Now()
	if r := c.do("DELETE", "/v1/workspace", map[string]any{"confirm": words}).want(202); r.str("status") != "deleting" {
		t.Errorf("%s", r.body)
	}

	for _, door := range []*world{w, elsewhere} {
		for _, credential := range []string{c.credential, key.credential, colleague.credential} {
			eventually(t, 5*time.Second-time.Since(asked), func() bool { return door.with(credential).get("/v1/me").status == 401 })
		}
	}
	nobody := w.anonymous()
	nobody.post("/v1/auth/refresh", map[string]any{"refresh_token": in.str("refresh_token")}).problem(probUnauthorized)
	nobody.post("/v1/auth/login", map[string]any{"email": "leaver@example.com", "password": "correct horse battery", "workspace_id": in.str("workspace.id")}).problem(probNotFound)
	nobody.post("/v1/invitations/accept", map[string]any{"token": invitation, "password": "correct horse battery"}).problem(probNotFound)
	if n := w.count(`SELECT count(*) FROM tasks WHERE workspace_id = $1 AND status IN ('queued', 'scheduled')`, ws); n != 1 {
		t.Errorf("%d tasks are in line or run, want the running one", n)
	}
	if n := w.count(`SELECT count(*) FROM tasks WHERE workspace_id = $1 AND cancel_requested_at IS NOT NULL AND id = $2`, ws, running.ID); n != 1 || !slices.Contains(w.out.cancels, running.ID) {
		t.Error("the running task was not asked to stop")
	}
	if n := w.count(`SELECT count(*) FROM audit_log WHERE workspace_id = $1 AND action = 'workspace.delete' AND actor_id = $2`, ws, in.str("user.id")); n != 1 {
		t.Errorf("%d audit entries", n)
	}

	// What runs ends in its own time and is metered; erasing waits for it, and brings nothing of it back.
	system := store.NewSystem(w.env.System(t))
	if begun, err := system.BeginErasing(t.Context(), ws); err != nil || begun {
		t.Errorf("erasing began while a task runs: %v, %v", begun, err)
	}
	if _, err := system.Erase(t.Context(), ws, time.Minute); store.KindOf(err) != store.Conflict {
		t.Errorf("erased without its beginning: %v", err)
	}
	fleet.end(running, store.Succeeded, words)
	metered := func() int {
		return w.count(`SELECT coalesce(sum(quantity), 0) FROM metering_rows WHERE workspace_id = $1 AND meter = 'agent_ms'`, ws)
	}
	if got := metered(); got != 3*1234 {
		t.Errorf("%d ms metered, want %d", got, 3*1234)
	}
	w.erase(ws)
	w.traces(words)
	w.traces("leaver@example.com")
	if got := metered(); got != 3*1234 {
		t.Errorf("%d ms metered after the erasing", got)
	}
	for table, want := range map[string]int{"tasks": 0, "api_keys": 0, "members": 0, "sessions": 0, "refresh_tokens": 0, "invitations": 0, "idempotency_keys": 0, "agents": 0, "attempts": 3} {
		if n := w.count(`SELECT count(*) FROM `+table+` WHERE workspace_id = $1`, ws); n != want {
			t.Errorf("%d %s are left, want %d", n, table, want)
		}
	}
	if n := w.count(`SELECT count(*) FROM workspaces WHERE id = $1 AND status = 'deleted' AND deleted_at IS NOT NULL AND plan = 'pro'`, ws); n != 1 {
		t.Error("the workspace is not marked as deleted")
	}
	if n := w.count(`SELECT count(*) FROM users WHERE id = $1 AND erased_at IS NOT NULL AND password_hash = ''`, user); n != 1 {
		t.Error("its owner is not erased")
	}
	if n := w.count(`SELECT count(*) FROM users WHERE id = $1 AND erased_at IS NULL`, colleague.user); n != 1 {
		t.Error("a user who is in another workspace was erased")
	}
	nobody.post("/v1/auth/login", map[string]any{"email": "leaver@example.com", "password": "correct horse battery"}).problem(probUnauthorized)
	nobody.post("/v1/auth/register", map[string]any{"email": "leaver@example.com", "password": "correct horse battery", "workspace_name": "Back"}).want(201)

	// The other workspace is as it was.
	if found := storetest.Traces(t, w.env, others); !slices.Equal(found, []string{"agents", "api_keys", "attempts", "idempotency_keys", "invitations", "sessions", "tasks", "webhook_deliveries", "webhook_endpoints", "workspaces"}) {
		t.Errorf("of the other workspace %v are left", found)
	}
	stays.get("/v1/me").want(200)
	storetest.CheckLedger(t, w.env)
	if begun, err := system.BeginErasing(t.Context(), stays.ws); err != nil || begun {
		t.Errorf("an active workspace: %v, %v", begun, err)
	}
}

func TestNothingSlipsInWhileAWorkspaceIsDeleted(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(cfg *Config) { cfg.CredentialMS = 60_000 }) // whoever is believed stays believed: the ledger must refuse
	for round := range 5 {
		c := w.owner("pro")
		key := w.with(c.post("/v1/api-keys", map[string]any{"name": "k"}).want(201).str("key"))
		key.get("/v1/me").want(200)
		other := newWorldOn(t, w.env, func(cfg *Config) { cfg.CredentialMS = 60_000 })
		there := other.with(key.credential)
		there.get("/v1/me").want(200)
		owner := other.with(c.credential)
		owner.get("/v1/me").want(200)
		var wg sync.WaitGroup
		start := make(chan struct{})
		for range 8 {
			wg.Go(func() {
				<-start
				for i := range 6 {
					if r := there.post("/v1/tasks", map[string]any{"prompt": "x"}); r.status != 202 && r.status != 401 {
						t.Errorf("a submit is answered %d: %s", r.status, r.body)
					}
					if i == 2 {
						if r := owner.post("/v1/api-keys", map[string]any{"name": "late"}); r.status != 201 && r.status != 401 {
							t.Errorf("minting a key is answered %d: %s", r.status, r.body)
						}
						if r := owner.post("/v1/invitations", map[string]any{"email": uuid.NewString() + "@example.com", "role": "viewer"}); r.status != 201 && r.status != 401 {
							t.Errorf("inviting is answered %d: %s", r.status, r.body)
						}
					}
				}
			})
		}
		wg.Go(func() {
			<-start
			c.do("DELETE", "/v1/workspace", map[string]any{"confirm": "Test"}).want(202)
		})
		close(start)
		wg.Wait()
		there.post("/v1/tasks", map[string]any{"prompt": "x"}).problem(probUnauthorized)
		there.post("/v1/tasks/batch", map[string]any{"tasks": []any{map[string]any{"prompt": "x"}}}).problem(probUnauthorized)
		owner.post("/v1/api-keys", map[string]any{"name": "late"}).problem(probUnauthorized)
		owner.do("PATCH", "/v1/workspace", map[string]any{"name": "late"}).problem(probUnauthorized)
		owner.do("DELETE", "/v1/workspace", map[string]any{"confirm": "Test"}).problem(probUnauthorized)
		for what, query := range map[string]string{
			"tasks in line":    `SELECT count(*) FROM tasks WHERE workspace_id = $1 AND finished_at IS NULL`,
			"counted in line":  `SELECT waiting FROM workspace_load WHERE workspace_id = $1`,
			"turns":            `SELECT count(turn) FROM workspace_load WHERE workspace_id = $1`,
			"living keys":      `SELECT count(*) FROM api_keys WHERE workspace_id = $1 AND revoked_at IS NULL`,
			"living sessions":  `SELECT count(*) FROM sessions WHERE workspace_id = $1 AND revoked_at IS NULL`,
			"open invitations": `SELECT count(*) FROM invitations WHERE workspace_id = $1 AND accepted_at IS NULL AND revoked_at IS NULL`,
		} {
			if n := w.count(query, c.ws); n != 0 {
				t.Errorf("round %d: %d %s", round, n, what)
			}
		}
	}
	storetest.CheckLedger(t, w.env)
}

func TestLeavingAndComingBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	nobody := w.anonymous()
	login := func(email string) *reply {
		return nobody.post("/v1/auth/login", map[string]any{"email": email, "password": "correct horse battery"})
	}
	delete := func(in *reply) {
		t.Helper()
		w.with(in.str("access_token")).do("DELETE", "/v1/workspace", map[string]any{"confirm": in.str("workspace.name")}).want(202)
	}

	t.Run("AnOperatorRestoresItBeforeItIsErased", func(t *testing.T) {
		in := w.registered("undo@example.com")
		ws, _ := store.ParseID(store.WorkspacePrefix, in.str("workspace.id"))
		delete(in)
		system := store.NewSystem(w.env.System(t))
		if _, err := system.Resume(t.Context(), ws, store.Operator{Name: "test"}); store.KindOf(err) != store.Conflict {
			t.Errorf("a leaving workspace is changed: %v", err)
		}
		if err := system.Restore(t.Context(), ws, store.Operator{Name: "test"}); err != nil {
			t.Fatal(err)
		}
		back := login("undo@example.com").want(200)
		if back.str("workspace.id") != in.str("workspace.id") || back.str("workspace.status") != "active" {
			t.Errorf("%s", back.body)
		}
		c := w.with(back.str("access_token"))
		c.post("/v1/tasks", map[string]any{"prompt": "x"}).want(202)
		nobody.post("/v1/auth/refresh", map[string]any{"refresh_token": in.str("refresh_token")}).problem(probUnauthorized) // what ended stays ended
		if err := system.Restore(t.Context(), ws, store.Operator{Name: "test"}); store.KindOf(err) != store.Conflict {
			t.Errorf("an active workspace is restored: %v", err)
		}
		delete(back)
		w.erase(ws)
		if err := system.Restore(t.Context(), ws, store.Operator{Name: "test"}); store.KindOf(err) != store.Conflict {
			t.Errorf("an erased workspace is restored: %v", err)
		}
	})
	t.Run("WhoSignsInMeanwhileGetsAnotherAndStays", func(t *testing.T) {
		in := w.registered("returns@example.com")
		ws, _ := store.ParseID(store.WorkspacePrefix, in.str("workspace.id"))
		delete(in)
		back := login("returns@example.com").want(200)
		if back.str("workspace.id") == in.str("workspace.id") || len(w.with(back.str("access_token")).get("/v1/workspaces").want(200).list("data")) != 1 {
			t.Errorf("%s", back.body)
		}
		w.erase(ws)
		w.with(back.str("access_token")).get("/v1/me").want(200)
		if r := login("returns@example.com").want(200); r.str("workspace.id") != back.str("workspace.id") {
			t.Errorf("%s", r.body)
		}
	})
	t.Run("DeletedFreeWorkspacesCountUntilTheMonthIsOver", func(t *testing.T) {
		in := w.registered("again@example.com")
		for range store.MaxFreeWorkspaces - 1 {
			delete(in)
			in = login("again@example.com").want(200)
		}
		w.with(in.str("access_token")).post("/v1/workspaces", map[string]any{"name": "one more"}).problem(probPlanLimit)
		delete(in)
		login("again@example.com").problem(probPlanLimit)
		w.exec(`UPDATE workspaces SET deleting_at = deleting_at - interval '32 days' WHERE deleted_by = (SELECT id FROM users WHERE email = 'again@example.com')`)
		login("again@example.com").want(200)
	})
	t.Run("MembersLeaveByThemselves", func(t *testing.T) {
		owner := w.owner("pro")
		for _, role := range []string{store.RoleViewer, store.RoleMember} {
			c := owner.colleague(role)
			self, key := "/v1/members/"+store.FormatID(store.UserPrefix, c.user), (*client)(nil)
			if role == store.RoleMember {
				key = w.with(c.post("/v1/api-keys", map[string]any{"name": "mine", "role": "member"}).want(201).str("key"))
				key.do("DELETE", self, nil).problem(probForbidden) // a key is nobody's self
			}
			c.do("DELETE", "/v1/members/"+store.FormatID(store.UserPrefix, owner.user), nil).problem(probForbidden)
			c.do("DELETE", self+"?keys=keep", nil).problem(probForbidden)
			c.do("DELETE", self, nil).want(204)
			c.get("/v1/me").problem(probUnauthorized)
			if key != nil {
				key.get("/v1/me").problem(probUnauthorized)
			}
			owner.get(self).problem(probNotFound)
			if n := w.count(`SELECT count(*) FROM audit_log WHERE workspace_id = $1 AND action = 'member.remove' AND actor_id = target AND target = $2`, owner.ws,
				store.FormatID(store.UserPrefix, c.user)); n != 1 {
				t.Errorf("%d audit entries", n)
			}
		}
		last := "/v1/members/" + store.FormatID(store.UserPrefix, owner.user)
		owner.do("DELETE", last, nil).problem(probConflict)
		owner.colleague(store.RoleOwner)
		owner.do("DELETE", last, nil).want(204)
	})
}
