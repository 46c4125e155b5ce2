package api

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/generic-corp/muster/store"
)

func TestIdempotency(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)

	t.Run("AHundredSubmitsAtOnceWithOneKeyMakeOneTask", func(t *testing.T) {
		c := w.owner("pro")
		replies := make([]*reply, 100)
		var wg sync.WaitGroup
		for i := range replies {
			wg.Go(func() {
				r, err := c.try("POST", "/v1/tasks", map[string]any{"prompt": "once"}, headers{"Idempotency-Key": "the one"})
				if err != nil {
					t.Error(err)
					return
				}
				replies[i] = r
			})
		}
		wg.Wait()
		if t.Failed() {
			return
		}
		fresh, replayed, inFlight, ids := 0, 0, 0, map[string]bool{}
		for _, r := range replies {
			switch {
			case r.status == 202 && r.header.Get("Idempotent-Replayed") == "true":
				replayed++
				ids[r.str("id")] = true
			case r.status == 202:
				fresh++
				ids[r.str("id")] = true
			default:
				r.problem(probInFlight)
				inFlight++
			}
		}
		if fresh != 1 || len(ids) != 1 {
			t.Errorf("%d fresh, %d replayed, %d in flight, ids %v", fresh, replayed, inFlight, ids)
		}
		if n := w.count(`SELECT count(*) FROM tasks WHERE workspace_id = $1`, c.ws); n != 1 {
			t.Errorf("%d tasks", n)
		}
		if n := w.count(`SELECT waiting FROM workspace_load WHERE workspace_id = $1`, c.ws); n != 1 {
			t.Errorf("%d waiting", n)
		}
		again := c.post("/v1/tasks", map[string]any{"prompt": "once"}, headers{"Idempotency-Key": "the one"}).want(202)
		if again.header.Get("Idempotent-Replayed") != "true" || again.header.Get("Location") != "/v1/tasks/"+again.str("id") {
			t.Errorf("headers %v", again.header)
		}
	})
	t.Run("TheFirstAnswerIsGivenAgainToTheByte", func(t *testing.T) {
		c, key := w.owner(""), headers{"Idempotency-Key": "k"}
		first := c.post("/v1/tasks/batch", `{"tasks":[{"prompt":"<a> & é"},{"prompt":"b"}]}`, key).want(202)
		again := c.post("/v1/tasks/batch", `{"tasks":[{"prompt":"<a> & é"},{"prompt":"b"}]}`, key).want(202)
		if string(first.body) != string(again.body) {
			t.Errorf("%s\n%s", first.body, again.body)
		}
	})
	t.Run("AnotherBodyIsRefused", func(t *testing.T) {
		c, key := w.owner(""), headers{"Idempotency-Key": "k"}
		c.post("/v1/tasks", map[string]any{"prompt": "a"}, key).want(202)
		c.post("/v1/tasks", map[string]any{"prompt": "b"}, key).problem(probKeyReused)
	})
	t.Run("AKeyIsScopedToRouteAndWorkspace", func(t *testing.T) {
		c, d, key := w.owner(""), w.owner(""), headers{"Idempotency-Key": "k"}
		one := c.post("/v1/tasks", map[string]any{"prompt": "a"}, key).want(202)
		two := d.post("/v1/tasks", map[string]any{"prompt": "a"}, key).want(202)
		if one.str("id") == two.str("id") || two.header.Get("Idempotent-Replayed") != "" {
			t.Error("another workspace's answer")
		}
		c.post("/v1/tasks/batch", map[string]any{"tasks": []any{map[string]any{"prompt": "a"}}}, key).want(202)
	})
	t.Run("AnEmptyAnswerIsKeptToo", func(t *testing.T) {
		c := w.owner("")
		id := c.post("/v1/api-keys", map[string]any{"name": "x"}).want(201).str("id")
		c.do("DELETE", "/v1/api-keys/"+id, nil, headers{"Idempotency-Key": "d"}).want(204)
		if r := c.do("DELETE", "/v1/api-keys/"+id, nil, headers{"Idempotency-Key": "d"}).want(204); r.header.Get("Idempotent-Replayed") != "true" {
			t.Error("not the first answer")
		}
	})
	t.Run("AMalformedKeyIsRefused", func(t *testing.T) {
		c := w.owner("")
		for _, key := range []string{strings.Repeat("k", 256), "ключ", "a\tb"} {
			if got := c.post("/v1/tasks", map[string]any{"prompt": "a"}, headers{"Idempotency-Key": key}).problem(probInvalid).fields(); got[0] != "Idempotency-Key" {
				t.Errorf("fields %v", got)
			}
		}
		c.post("/v1/tasks", map[string]any{"prompt": "a"}, headers{"Idempotency-Key": strings.Repeat("k", 255)}).want(202)
	})
}

// A client that has had no answer asks again, perhaps for so long that its tasks have expired meanwhile.
func TestTheRepeatOfASubmitIsRecognisedWhenItsTasksHaveExpired(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64 // of the API's clock
	w := newWorld(t, func(c *Config) { c.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) } })
	c := w.owner("pro")
	soon := map[string]any{"prompt": "a", "expires_at": time.Now().Add(time.Minute)}
	for path, body := range map[string]any{"/v1/tasks": soon, "/v1/tasks/batch": map[string]any{"tasks": []any{soon}}} {
		first := c.post(path, body, headers{"Idempotency-Key": "k"}).want(202)
		ahead.Store(int64(2 * time.Minute))
		again := c.post(path, body, headers{"Idempotency-Key": "k"}).want(202)
		if again.header.Get("Idempotent-Replayed") != "true" || string(again.body) != string(first.body) {
			t.Errorf("%s: %v %s, want %s again", path, again.header, again.body, first.body)
		}
		for _, key := range []headers{{"Idempotency-Key": "late"}, nil} {
			if got := c.post(path, body, key).problem(probInvalid).fields(); len(got) != 1 || !strings.HasSuffix(got[0], "expires_at") {
				t.Errorf("%s, too late: %v", path, got)
			}
		}
		ahead.Store(0)
	}
}

func TestNothingOfAnotherWorkspaceIsShown(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	a, b := w.owner("pro"), w.owner("pro")
	f := w.fleet()
	task := b.post("/v1/tasks", map[string]any{"prompt": "secret of b", "metadata": map[string]string{"k": "v"}}).want(202).str("id")
	f.finish(f.start(b.ws), store.Failed, store.AttemptUsage{})
	key := b.post("/v1/api-keys", map[string]any{"name": "key of b"}).want(201).str("id")
	w.exec(`INSERT INTO agents (workspace_id, id, name) VALUES ($1, '01900000-0000-7000-8000-000000000001', 'bob')`, b.ws)

	for _, c := range []struct {
		method, path string
		own          int // what b itself is answered; asked last, since it may change things
	}{
		{"GET", "/v1/tasks/{task}", 200},
		{"GET", "/v1/tasks/{task}/attempts", 200},
		{"POST", "/v1/tasks/{task}/cancel", 409},
		{"POST", "/v1/tasks/{task}/retry", 202},
		{"DELETE", "/v1/api-keys/{key}", 204},
		{"GET", "/v1/agents/{agent}", 200},
	} {
		t.Run(c.method+" "+c.path, func(t *testing.T) {
			fill := func(task, key, agent string) string {
				return strings.NewReplacer("{task}", task, "{key}", key, "{agent}", agent).Replace(c.path)
			}
			unknown := fill("task_0190000000007000800000000000abcd", "key_0190000000007000800000000000abcd", "agt_0190000000007000800000000000abcd")
			foreign := fill(task, key, "agt_01900000000070008000000000000001")
			var bodies []string
			for _, path := range []string{foreign, unknown, fill("task_x", "key_x", "agt_x")} {
				r := a.do(c.method, path, nil, headers{"X-Request-ID": "same"}).problem(probNotFound)
				bodies = append(bodies, string(r.body))
			}
			if bodies[0] != bodies[1] || bodies[1] != bodies[2] {
				t.Errorf("foreign, unknown and malformed differ:\n%s", strings.Join(bodies, "\n"))
			}
			b.do(c.method, foreign, nil).want(c.own)
		})
	}
	t.Run("ListsShowTheirOwn", func(t *testing.T) {
		for _, path := range []string{"/v1/tasks", "/v1/tasks?metadata.k=v", "/v1/api-keys", "/v1/usage"} {
			if r := a.get(path).want(200); len(r.list("data")) != 0 {
				t.Errorf("%s: %s", path, r.body)
			}
		}
		if r := b.get("/v1/tasks?metadata.k=v").want(200); len(r.list("data")) != 1 {
			t.Errorf("%s", r.body)
		}
		if r := a.get("/v1/agents").want(200); len(r.list("data")) != 5 {
			t.Errorf("%s", r.body)
		}
		if r := b.get("/v1/agents").want(200); len(r.list("data")) != 6 || r.str("data.5.name") != "bob" {
			t.Errorf("%s", r.body)
		}
	})
	t.Run("ACancelOfAllReachesItsOwnOnly", func(t *testing.T) {
		if r := a.post("/v1/tasks/cancel", map[string]any{}).want(202); r.num("count") != 0 {
			t.Errorf("%s", r.body)
		}
		if r := b.get("/v1/tasks/" + task).want(200); r.str("status") != "queued" {
			t.Errorf("%s", r.body)
		}
	})
	t.Run("AnAgentOfAnotherCannotBeNamed", func(t *testing.T) {
		a.post("/v1/tasks", map[string]any{"prompt": "x", "agent": "bob"}).problem(probInvalid)
		b.post("/v1/tasks", map[string]any{"prompt": "x", "agent": "bob"}).want(202)
	})
	t.Run("ACursorOfAnotherIsForged", func(t *testing.T) {
		for i := range 3 {
			a.post("/v1/tasks", map[string]any{"prompt": fmt.Sprint(i)}).want(202)
			b.post("/v1/tasks", map[string]any{"prompt": fmt.Sprint(i)}).want(202)
		}
		cursor := b.get("/v1/tasks?limit=1").want(200).str("next_cursor")
		a.get("/v1/tasks?limit=1&cursor=" + cursor).problem(probBadRequest)
		b.get("/v1/tasks?limit=1&cursor=" + cursor).want(200)
	})
}
