package api

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/generic-corp/muster/api/webhooks"
	"github.com/generic-corp/muster/store"
)

// webhook makes one and returns its id.
func (c *client) webhook() string {
	c.t.Helper()
	return c.post("/v1/webhooks", map[string]any{"url": "https://example.com/hook"}).want(201).str("id")
}

func TestWebhooks(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)

	t.Run("AreMadeListedChangedAndRemoved", func(t *testing.T) {
		owner := w.owner("pro")
		made := owner.post("/v1/webhooks", map[string]any{"url": "https://EXAMPLE.com./a?b=c", "description": " ops "}).want(201)
		id, secret := made.str("id"), made.str("secret")
		if !strings.HasPrefix(secret, "whsec_") || made.str("url") != "https://example.com/a?b=c" || made.str("description") != "ops" || made.str("created_by") != userID(owner.user) {
			t.Errorf("%s", made.body)
		}
		if got := fmt.Sprint(made.at("events")); got != "[task.succeeded task.failed task.canceled]" {
			t.Errorf("events %s", got)
		}
		for _, r := range []*reply{owner.get("/v1/webhooks").want(200), owner.get("/v1/webhooks/" + id).want(200),
			owner.do("PATCH", "/v1/webhooks/"+id, map[string]any{"events": []string{"task.failed", "quota.notice", "task.failed"}}).want(200)} {
			if strings.Contains(string(r.body), "whsec_") {
				t.Error("the secret is shown again")
			}
		}
		if got := fmt.Sprint(owner.get("/v1/webhooks/" + id).at("events")); got != "[quota.notice task.failed]" {
			t.Errorf("events %s", got)
		}
		var sealed []byte
		if err := w.admin.Get(&sealed, `SELECT sealed FROM webhook_secrets WHERE workspace_id = $1`, owner.ws); err != nil || strings.Contains(string(sealed), secret) || strings.Contains(string(sealed), secret[6:]) {
			t.Error("the ledger holds the secret as it is", err)
		}
		off := owner.do("PATCH", "/v1/webhooks/"+id, map[string]any{"enabled": false}).want(200)
		if off.str("disabled_why") != "customer" || off.str("disabled_at") == "" {
			t.Errorf("%s", off.body)
		}
		owner.post("/v1/webhooks/"+id+"/test", nil).problem(probConflict)
		owner.do("PATCH", "/v1/webhooks/"+id, map[string]any{"enabled": true, "url": "https://example.org/"}).want(200)
		owner.do("DELETE", "/v1/webhooks/"+id, nil).want(204)
		owner.get("/v1/webhooks/" + id).problem(probNotFound)
	})

	t.Run("AreRefusedWhereTheyMustNotGo", func(t *testing.T) {
		owner := w.owner("pro")
		id := owner.webhook()
		for _, bad := range []string{"http://example.com/", "https://127.0.0.1/", "https://user@example.com/", "https://example.com:22/", "https://[::1]/", "https://metadata.google.internal/", "x"} {
			if got := owner.post("/v1/webhooks", map[string]any{"url": bad}).problem(probInvalid).fields(); !slices.Equal(got, []string{"url"}) {
				t.Errorf("%s: %v", bad, got)
			}
			owner.do("PATCH", "/v1/webhooks/"+id, map[string]any{"url": bad}).problem(probInvalid)
		}
		for _, bad := range []map[string]any{{}, {"url": "https://example.com", "events": []string{}}, {"url": "https://example.com", "events": []string{"task.dreamt"}},
			{"url": "https://example.com", "secret": "whsec_mine"}, {"url": "https://example.com", "description": strings.Repeat("x", 201)}} {
			owner.post("/v1/webhooks", bad).problem(probInvalid)
		}
		owner.post("/v1/webhooks/"+id+"/rotate", map[string]any{"overlap_seconds": 604_801}).problem(probInvalid)
	})

	t.Run("AreBoundedByThePlan", func(t *testing.T) {
		free := w.owner("")
		free.webhook()
		free.post("/v1/webhooks", map[string]any{"url": "https://example.com"}).problem(probPlanLimit)
		if n := free.get("/v1/workspace").want(200).num("limits.max_webhooks"); n != 1 {
			t.Error(n)
		}
	})

	// Whoever sets an endpoint up reads what it is told.
	t.Run("TellNobodyWhatTheyMayNotRead", func(t *testing.T) {
		owner := w.owner("pro")
		key := func(scopes ...string) *client {
			return w.with(owner.post("/v1/api-keys", map[string]any{"name": "x", "scopes": scopes}).want(201).str("key"))
		}
		blind, reader := key("webhooks:write"), key("webhooks:write", "tasks:read")
		blind.post("/v1/webhooks", map[string]any{"url": "https://example.com"}).problem(probForbidden)
		reader.post("/v1/webhooks", map[string]any{"url": "https://example.com", "events": []string{"quota.notice"}}).problem(probForbidden)
		id := reader.post("/v1/webhooks", map[string]any{"url": "https://example.com"}).want(201).str("id")
		blind.do("PATCH", "/v1/webhooks/"+id, map[string]any{"url": "https://evil.example"}).problem(probForbidden)
		if url := owner.get("/v1/webhooks/" + id).str("url"); url != "https://example.com" {
			t.Error(url)
		}
		blind.do("PATCH", "/v1/webhooks/"+id, map[string]any{"description": "x"}).want(200)
		if r := blind.do("PATCH", "/v1/webhooks/"+id, map[string]any{"description": nil}).want(200); r.str("description") != "" {
			t.Errorf("null unsets a description: %s", r.body)
		}
		for _, field := range []string{"url", "events", "enabled"} {
			if got := blind.do("PATCH", "/v1/webhooks/"+id, map[string]any{field: nil}).problem(probInvalid).fields(); len(got) != 1 || got[0] != field {
				t.Errorf("%s cannot be unset: wrong are %v", field, got)
			}
		}
		blind.do("DELETE", "/v1/webhooks/"+id, nil).want(204)
	})

	t.Run("KeepNoAnswerThatHoldsASecret", func(t *testing.T) {
		owner := w.owner("pro")
		again := headers{"Idempotency-Key": "once"}
		body := map[string]any{"url": "https://example.com"}
		id := owner.post("/v1/webhooks", body, again).want(201).str("id")
		owner.post("/v1/webhooks", body, again).problem(probConflict)
		owner.post("/v1/webhooks/"+id+"/rotate", map[string]any{}, again).want(201)
		owner.post("/v1/webhooks/"+id+"/rotate", map[string]any{}, again).problem(probConflict)
		test := owner.post("/v1/webhooks/"+id+"/test", nil, again).want(202).str("id")
		if owner.post("/v1/webhooks/"+id+"/test", nil, again).want(202).str("id") != test {
			t.Error("a repeated test is a second one")
		}
		if n := w.count(`SELECT count(*) FROM idempotency_keys WHERE convert_from(response, 'UTF8') LIKE '%whsec_%'`); n != 0 {
			t.Errorf("%d stored answers hold a secret", n)
		}
	})

	t.Run("AreRotatedWithAnOverlap", func(t *testing.T) {
		owner := w.owner("pro")
		made := owner.post("/v1/webhooks", map[string]any{"url": "https://example.com"}).want(201)
		path := "/v1/webhooks/" + made.str("id") + "/rotate"
		second := owner.post(path, map[string]any{"overlap_seconds": 3600}).want(201).str("secret")
		if second == made.str("secret") {
			t.Error("the same secret")
		}
		owner.post(path, map[string]any{"overlap_seconds": 3600}).problem(probConflict)
		owner.post(path, map[string]any{"overlap_seconds": 0}).want(201)
		if n := w.count(`SELECT count(*) FROM webhook_secrets WHERE workspace_id = $1 AND coalesce(expires_at > now(), true)`, owner.ws); n != 1 {
			t.Errorf("%d secrets work", n)
		}
	})

	t.Run("ListTheirDeliveriesAndReplayThem", func(t *testing.T) {
		owner := w.owner("pro")
		id := owner.webhook()
		path := "/v1/webhooks/" + id
		task := owner.post("/v1/tasks", map[string]any{"prompt": "x"}).want(202).str("id")
		owner.post("/v1/tasks/"+task+"/cancel", nil).want(202)
		for range 3 {
			owner.post(path+"/test", nil).want(202)
		}
		first := owner.get(path + "/deliveries?limit=2").want(200)
		rest := owner.get(path + "/deliveries?limit=2&cursor=" + first.str("next_cursor")).want(200)
		if len(first.list("data")) != 2 || len(rest.list("data")) != 2 || rest.at("next_cursor") != nil || rest.str("data.1.type") != "task.canceled" || rest.str("data.1.task_id") != task {
			t.Errorf("%s\n%s", first.body, rest.body)
		}
		owner.get(path + "/deliveries?status=dead&cursor=" + first.str("next_cursor")).problem(probBadRequest)
		owner.get(path + "/deliveries?status=lost").problem(probInvalid)
		owner.get(path + "/deliveries?task_id=x").problem(probInvalid)
		if n := len(owner.get(path + "/deliveries?task_id=" + task).want(200).list("data")); n != 1 {
			t.Errorf("%d of the task", n)
		}
		event := rest.str("data.1.id")
		w.exec(`UPDATE webhook_deliveries SET status = 'dead', attempts = 8, last_at = now(), last_status = 500, last_error = 'status', last_ms = 7`)
		dead := owner.get(path + "/deliveries?status=dead").want(200)
		if len(dead.list("data")) != 4 || dead.num("data.3.last_attempt.http_status") != 500 || dead.str("data.3.last_attempt.error") != "status" || dead.at("data.3.next_attempt_at") != nil {
			t.Errorf("%s", dead.body)
		}
		again := owner.post(path+"/deliveries/"+event+"/replay", nil).want(202)
		if again.str("id") != event || again.str("status") != "waiting" || again.num("attempts") != 0 {
			t.Errorf("%s", again.body)
		}
		for _, unknown := range []string{"evt_00000000000070008000000000000001", "x"} {
			if r := owner.post(path+"/deliveries/"+unknown+"/replay", nil).problem(probNotFound); r.str("detail") != "no such delivery" {
				t.Errorf("%s", r.body)
			}
		}
		owner.post(path+"/deliveries/replay", map[string]any{}).problem(probInvalid)
		if r := owner.post(path+"/deliveries/replay", map[string]any{"since": time.Now().Add(time.Hour)}).want(202); r.num("count") != 0 {
			t.Errorf("%s", r.body)
		}
		w.exec(`UPDATE webhook_deliveries SET created_at = now() - interval '33 hours' WHERE status = 'dead'`) // they died just now
		if r := owner.post(path+"/deliveries/replay", map[string]any{"since": time.Now().Add(-time.Hour)}).want(202); r.num("count") != 3 || r.at("more") != false {
			t.Errorf("%s", r.body)
		}
	})

	t.Run("NeedAKeyToSealSecretsWith", func(t *testing.T) {
		bare := newWorldOn(t, w.env, func(cfg *Config) { cfg.Webhooks.Keys = webhooks.Keys{} })
		owner := w.owner("pro")
		id := owner.webhook()
		bare.with(owner.credential).post("/v1/webhooks", map[string]any{"url": "https://example.com"}).problem(probUnavailable)
		bare.with(owner.credential).post("/v1/webhooks/"+id+"/rotate", map[string]any{}).problem(probUnavailable)
		bare.with(owner.credential).get("/v1/webhooks/" + id).want(200)
	})
}

// An event's body is what other programs read: it is what the API shows of the task, with its result, and no more.
func TestAnEventTellsTheTaskAsTheAPIShowsIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	owner := w.owner("pro")
	owner.webhook()
	fleet, system := w.fleet(), store.NewSystem(w.env.System(t))
	task := owner.post("/v1/tasks", map[string]any{"prompt": "the prompt", "input": map[string]any{"in": "put"}, "metadata": map[string]string{"ticket": "lovelace"}}).want(202).str("id")
	fleet.finish(fleet.start(owner.ws), store.Succeeded, store.AttemptUsage{AgentMS: 7, InputTokens: 3})
	lanes, err := system.TakeLanes(t.Context(), false, 1)
	if err != nil || len(lanes) != 1 {
		t.Fatal(lanes, err)
	}
	due, err := system.Due(t.Context(), lanes[0], 1)
	if err != nil || len(due) != 1 {
		t.Fatal(due, err)
	}
	render := func(maxResult int) (raw []byte, body map[string]any) {
		t.Helper()
		event, ok, err := system.DeliveryEvent(t.Context(), lanes[0], due[0].ID, maxResult)
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		if raw, err = WebhookBody(event); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(raw, &body); err != nil {
			t.Fatal(err)
		}
		return raw, body
	}
	raw, body := render(1000)
	if twice, _ := render(1000); string(twice) != string(raw) {
		t.Error("the body changes between attempts")
	}
	var shown map[string]any
	if err := json.Unmarshal(owner.get("/v1/tasks/"+task).want(200).body, &shown); err != nil {
		t.Fatal(err)
	}
	data := body["data"].(map[string]any)
	for field, value := range shown {
		if field == "prompt" || field == "input" {
			if _, told := data[field]; told {
				t.Errorf("%s is told", field)
			}
			continue
		}
		if fmt.Sprint(data[field]) != fmt.Sprint(value) {
			t.Errorf("%s is told as %v, shown as %v", field, data[field], value)
		}
	}
	if body["type"] != "task.succeeded" || body["timestamp"] != shown["finished_at"] || data["truncated"] != false || len(body) != 3 || len(data) != len(shown)-1 {
		t.Errorf("%s", raw)
	}
	if _, body := render(10); body["data"].(map[string]any)["truncated"] != true || body["data"].(map[string]any)["result"] != nil {
		t.Errorf("a result that is too large: %v", body)
	}
	owner.do("DELETE", "/v1/tasks/"+task, nil).want(204)
	raw, body = render(1000)
	if strings.Contains(string(raw), "done") || strings.Contains(string(raw), "lovelace") || body["data"].(map[string]any)["erased_at"] == nil {
		t.Errorf("an erased task: %s", raw)
	}
}
