package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// customer is a customer's server that verifies what comes.
type customer struct {
	t      *testing.T
	secret string
	before func(n int) int // called at the nth request; the status to answer, 0 is 200

	mu   sync.Mutex
	n    int
	came map[string]int    // requests by webhook-id
	told map[string]string // events by task
}

func (c *customer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	raw, _ := io.ReadAll(r.Body)
	var event struct {
		Type string
		Data struct {
			ID     string
			Result *struct{ Output string }
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	reference, err := standardwebhooks.NewWebhook(c.secret)
	if err == nil {
		err = reference.Verify(raw, r.Header)
	}
	if err == nil {
		err = json.Unmarshal(raw, &event)
	}
	if err != nil {
		c.t.Errorf("webhook: %v: %s", err, raw)
	}
	c.n++
	status := 0
	if c.before != nil {
		status = c.before(c.n)
	}
	c.came[r.Header.Get("webhook-id")]++
	if status != 0 {
		w.WriteHeader(status)
		return
	}
	if event.Type == store.EventTaskSucceeded && (event.Data.Result == nil || event.Data.Result.Output == "") {
		c.t.Errorf("a success without its result: %s", raw)
	}
	if before, known := c.told[event.Data.ID]; known && before != event.Type {
		c.t.Errorf("task %s is told as %s and %s", event.Data.ID, before, event.Type)
	}
	c.told[event.Data.ID] = event.Type
}

// TestWebhooksArriveWhateverDies: real processes, of which schedulers are killed between sending and booking, and Redis
// flushed. Each task's end comes at least once, under one id, signed.
func TestWebhooksArriveWhateverDies(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	c := &customer{t: t, came: map[string]int{}, told: map[string]string{}}
	server := httptest.NewServer(c)
	t.Cleanup(server.Close)
	s.start("api", "api")
	s.start("worker", "worker")
	s.start("scheduler", "scheduler")
	tn := s.tenant("hooked", "pro", 10)
	var hook struct{ ID, Secret string }
	if _, err := s.request("POST", "/v1/webhooks", tn.token, "", map[string]any{"url": server.URL + "/hook"}, &hook); err != nil {
		t.Fatal(err)
	}
	c.secret = hook.Secret
	submit := func(n int, directive string) {
		var tasks []map[string]any
		for range n {
			tasks = append(tasks, map[string]any{"prompt": "hello " + directive + " tokens=5/5", "max_attempts": 1})
		}
		if _, err := s.request("POST", "/v1/tasks/batch", tn.token, "", map[string]any{"tasks": tasks}, nil); err != nil {
			t.Fatal(err)
		}
	}
	told := func() int {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.told)
	}

	submit(10, "")
	s.await(60*time.Second, "ten tasks to be told", func() bool { return told() == 10 })

	// The scheduler dies while a customer's server has an event and has not answered.
	killed := 0
	c.mu.Lock()
	c.before = func(int) int {
		if killed == 0 {
			killed++
			s.kill("scheduler")
		}
		return 0
	}
	c.mu.Unlock()
	submit(10, "status=400")
	s.await(60*time.Second, "the kill", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return killed == 1 })
	s.start("scheduler-2", "scheduler")
	s.start("scheduler-3", "scheduler")
	s.await(90*time.Second, "twenty tasks to be told", func() bool { return told() == 20 })
	s.await(90*time.Second, "what was not booked to come again", func() bool {
		return s.count(`SELECT count(*) FROM webhook_deliveries WHERE status = 'succeeded'`) == 20
	})
	again := 0
	c.mu.Lock()
	for _, n := range c.came {
		if n > 1 {
			again++
		}
	}
	c.mu.Unlock()
	if again == 0 {
		t.Error("nothing came a second time: the kill hit nothing")
	}

	// The customer's server is down, Redis loses everything, tasks are canceled in bulk.
	c.mu.Lock()
	c.before = func(int) int { return http.StatusBadGateway }
	c.mu.Unlock()
	submit(10, "")
	s.awaitAll(60 * time.Second)
	if err := s.env.Redis(t).FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	var scheduled []map[string]any
	for range 10 {
		scheduled = append(scheduled, map[string]any{"prompt": "later", "run_at": time.Now().Add(time.Hour)})
	}
	if _, err := s.request("POST", "/v1/tasks/batch", tn.token, "", map[string]any{"tasks": scheduled}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.request("POST", "/v1/tasks/cancel", tn.token, "", map[string]any{}, nil); err != nil {
		t.Fatal(err)
	}
	s.await(60*time.Second, "failures", func() bool { return s.count(`SELECT count(*) FROM webhook_deliveries WHERE last_status = 502`) > 0 })
	s.kill("scheduler-2")
	c.mu.Lock()
	c.before = nil
	c.mu.Unlock()
	s.await(120*time.Second, "all forty to be told", func() bool {
		s.env.Admin(t).MustExec(`UPDATE webhook_deliveries SET next_at = now() WHERE status = 'waiting' AND next_at > now()`) // hours pass
		return s.count(`SELECT count(*) FROM webhook_deliveries WHERE status = 'succeeded'`) == 40
	})
	types := map[string]int{}
	for _, kind := range c.told {
		types[kind]++
	}
	if fmt.Sprint(types) != "map[task.canceled:10 task.failed:10 task.succeeded:20]" || len(c.came) != 40 {
		t.Errorf("told %v under %d ids", types, len(c.came))
	}
	storetest.CheckLedger(t, s.env.Env)
	for name := range s.procs {
		if strings.Contains(s.log(name), hook.Secret) || strings.Contains(s.log(name), "/hook") {
			t.Errorf("the log of %s holds the webhook's secret or address", name)
		}
	}
	t.Logf("%d requests for 40 events", c.n)
}

func TestProductionKeepsWebhooksAwayFromThisMachine(t *testing.T) {
	t.Parallel()
	vars := map[string]string{"MUSTER_ENV": "production", "WEBHOOK_ALLOW_LOOPBACK": "true", "WEBHOOK_DENIED_NETWORKS": "198.51.100.7, 2001:db8::/32"}
	load := func() (Config, error) { return loadConfig(func(k string) string { return vars[k] }, nil) }
	if _, err := load(); err == nil || !strings.Contains(err.Error(), "WEBHOOK_ALLOW_LOOPBACK") {
		t.Errorf("this machine is reached in production: %v", err)
	}
	vars["MUSTER_ENV"] = "development"
	cfg, err := load()
	if err != nil || !cfg.Webhooks.rules().Loopback || len(cfg.Webhooks.rules().Denied) != 2 {
		t.Errorf("%+v %v", cfg.Webhooks.rules(), err)
	}
	vars["WEBHOOK_DENIED_NETWORKS"] = "here"
	if _, err := load(); err == nil || !strings.Contains(err.Error(), "WEBHOOK_DENIED_NETWORKS") {
		t.Errorf("a network that is none: %v", err)
	}
}

// The owners hear of an endpoint that was disabled.
func TestOwnersAreMailedThatAWebhookIsDisabled(t *testing.T) {
	t.Parallel()
	server, mailer := smtp(t)
	p := newPostRoom(t, mailer)
	p.owner("second@example.com")
	p.exec(`UPDATE workspaces SET name = $2 WHERE id = $1`, p.ws, "Ada\r\nBcc: all@example.com")
	p.exec(`INSERT INTO webhook_endpoints (workspace_id, id, url, events, created_by, enabled, disabled_why, disabled_at, letter_at)
		SELECT $1, gen_random_uuid(), 'https://hooks.example.com/token', '{task.failed}', 'usr_x', false, w, now(), now()
		FROM unnest('{gone,failing}'::text[]) w`, p.ws)
	mailRound := func() {
		if err := p.mailWebhookLetters(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	mailRound()
	mailRound()
	var text strings.Builder
	for range 4 { // two owners, two endpoints
		l := server.Next(t)
		if strings.Contains(l.Header, "Bcc") || strings.Contains(l.Text, "/token") || !strings.Contains(l.Text, "hooks.example.com") {
			t.Errorf("%s\n\n%s", l.Header, l.Text)
		}
		text.WriteString(l.Text)
	}
	if !server.Empty() || !strings.Contains(text.String(), "410") || !strings.Contains(text.String(), "3 days") {
		t.Errorf("letters:\n%s", text.String())
	}
	if n := p.count(`SELECT count(*) FROM webhook_endpoints WHERE letter_at IS NOT NULL`); n != 0 {
		t.Errorf("%d letters are not booked", n)
	}
}
