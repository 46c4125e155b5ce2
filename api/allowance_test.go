package api

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

func TestAFreeWorkspaceNeedsAProvedAddress(t *testing.T) {
	t.Parallel()
	strict := func(cfg *Config) { cfg.VerifiedEmail, cfg.CredentialMS = true, 3000 }
	w := newWorld(t, strict)
	second := newWorldOn(t, w.env, strict) // another process, with a cache of its own
	free := w.owner("")
	key := w.with(free.post("/v1/api-keys", map[string]any{"name": "x"}).want(201).str("key"))
	elsewhere := second.with(key.credential)
	one := map[string]any{"prompt": "x"}
	senders := map[string]*client{"its owner": free, "its key": key, "its key at another process": elsewhere}
	for who, c := range senders {
		for _, try := range []struct {
			path string
			body any
		}{{"/v1/tasks", one}, {"/v1/tasks/batch", map[string]any{"tasks": []any{one}}}} {
			r := c.post(try.path, try.body, headers{"Idempotency-Key": who}).problem(probEmailUnverified)
			if !strings.Contains(r.str("detail"), "/v1/auth/email/send") {
				t.Errorf("%s is not told what to do: %s", who, r.body)
			}
		}
	}
	if n := w.count(`SELECT (SELECT count(*) FROM tasks) + (SELECT count(*) FROM idempotency_keys WHERE route LIKE '%tasks%')`); n != 0 {
		t.Errorf("%d rows of refused requests", n)
	}
	paid := w.owner("starter")
	paid.post("/v1/tasks", one).want(202)

	// A colleague's proof is not an owner's.
	colleague := free.colleague(store.RoleMember)
	w.exec(`UPDATE users SET email_verified_at = now() WHERE id = $1`, colleague.user)
	free.post("/v1/tasks", one).problem(probEmailUnverified)

	token, hash := newToken(verifyPrefix)
	if _, due, err := w.store.AskVerification(t.Context(), free.user, hash, store.By{}); err != nil || !due {
		t.Fatal(due, err)
	}
	w.anonymous().post("/v1/auth/email/verify", map[string]any{"token": token}).want(204)
	for who, c := range senders {
		t.Log(who)
		c.post("/v1/tasks", one, headers{"Idempotency-Key": who}).want(202) // at once, the same request
	}

	// What was accepted stays accepted, and a retry asks again.
	fleet := w.fleet()
	task := fleet.start(free.ws)
	fleet.finish(task, store.Failed, store.AttemptUsage{})
	w.exec(`UPDATE users SET email_verified_at = NULL WHERE id = $1`, free.user)
	third := newWorldOn(t, w.env, strict).with(key.credential) // without a memory of the proof
	retry := "/v1/tasks/" + store.FormatID(store.TaskPrefix, task.ID) + "/retry"
	third.post(retry, nil).problem(probEmailUnverified)
	third.post("/v1/tasks", one, headers{"Idempotency-Key": "its key"}).want(202) // a repeat of one that was accepted
	w.exec(`UPDATE users SET email_verified_at = now() WHERE id = $1`, free.user)
	third.post(retry, nil).want(202)
}

func TestWithoutTheSettingNobodyIsAskedForAProof(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.owner("").post("/v1/tasks", map[string]any{"prompt": "x"}).want(202)
}

func TestAPlanAllowsItsModels(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(cfg *Config) { cfg.CredentialMS = 3000 })
	free, paid := w.owner(""), w.owner("pro")
	ask := func(c *client, model string) *reply {
		return c.post("/v1/tasks", map[string]any{"prompt": "x", "model": model})
	}
	const dear, cheap = "anthropic/claude-opus-5", "openai/gpt-6-luna"
	for _, model := range []string{"auto", "openai", "anthropic", cheap} {
		ask(free, model).want(202)
	}
	for _, model := range []string{dear, "openai/gpt-6-luna-2", "mistral"} {
		r := ask(free, model).problem(probPlanLimit)
		if !strings.Contains(r.str("detail"), cheap) {
			t.Errorf("the allowed ones are not named: %s", r.body)
		}
	}
	free.post("/v1/tasks/batch", map[string]any{"tasks": []any{map[string]any{"prompt": "x"}, map[string]any{"prompt": "x", "model": dear}}}).problem(probPlanLimit)
	if n := w.count(`SELECT count(*) FROM tasks WHERE workspace_id = $1`, free.ws); n != 4 {
		t.Errorf("%d tasks", n)
	}
	ask(paid, dear).want(202)
	if got := free.get("/v1/workspace").want(200).list("limits.models"); len(got) != len(store.Plans[0].Models) {
		t.Errorf("limits.models: %v", got)
	}
	if got := paid.get("/v1/workspace").want(200).list("limits.models"); len(got) != 0 {
		t.Errorf("limits.models of pro: %v", got)
	}
	if got := w.anonymous().get("/v1/plans").want(200).list("data.0.models"); len(got) == 0 {
		t.Errorf("the plan shows no models")
	}

	system := store.NewSystem(w.env.System(t))
	override := func(models ...string) {
		t.Helper()
		if _, err := system.Override(t.Context(), free.ws, nil, &models, store.Operator{Name: "test"}); err != nil {
			t.Fatal(err)
		}
	}
	override("anthropic/claude-*")
	ask(free, dear).want(202) // a larger list holds at once
	override("openai/x")
	fresh := newWorldOn(t, w.env, nil).with(free.credential)
	ask(fresh, dear).problem(probPlanLimit)
	if _, err := system.Override(t.Context(), free.ws, nil, &[]string{"no pattern"}, store.Operator{Name: "test"}); store.KindOf(err) != store.Invalid {
		t.Errorf("a malformed pattern: %v", err)
	}
}

func TestTheClaimCarriesTheModelsOfTheMoment(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	ws := w.owner("pro")
	ws.post("/v1/tasks", map[string]any{"prompt": "x", "model": "anthropic/claude-opus-5"}).want(202)
	system, fleet := store.NewSystem(w.env.System(t)), w.fleet()
	models := []string{"openai/a", "openai/b*"}
	if _, err := system.Override(t.Context(), ws.ws, nil, &models, store.Operator{Name: "test"}); err != nil {
		t.Fatal(err)
	}
	var turn uuid.UUID
	if err := w.admin.Get(&turn, `SELECT turn FROM workspace_load WHERE workspace_id = $1`, ws.ws); err != nil {
		t.Fatal(err)
	}
	claim := &store.Claim{Workspace: ws.ws, Turn: turn, Lease: uuid.New(), Worker: fleet.worker}
	for _, again := range []bool{false, true} { // an answer that got lost is given once more
		c, err := fleet.Claim(t.Context(), claim, again)
		if err != nil || fmt.Sprint(c.Task.Models) != fmt.Sprint(models) {
			t.Errorf("%v, %v", c.Task.Models, err)
		}
	}
}
