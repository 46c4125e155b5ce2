package api

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

func TestTasks(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	f := w.fleet()

	t.Run("ATaskIsAcceptedWithItsDefaults", func(t *testing.T) {
		c := w.owner("")
		r := c.post("/v1/tasks", map[string]any{"prompt": "Hello <world> & \u2028 all"}).want(202)
		if r.header.Get("Location") != "/v1/tasks/"+r.str("id") {
			t.Errorf("Location %q", r.header.Get("Location"))
		}
		for path, want := range map[string]any{"status": "queued", "agent": "marcus", "model": "auto", "prompt": "Hello <world> & \u2028 all",
			"priority": 0.0, "timeout_seconds": 300.0, "attempt": 0.0, "max_attempts": 3.0, "run_at": nil, "result": nil, "error": nil, "usage": nil,
			"waiting.reason": "in_line", "waiting.position": 0.0} {
			if got := r.at(path); got != want {
				t.Errorf("%s = %v, want %v", path, got, want)
			}
		}
		got := c.get("/v1/tasks/" + r.str("id")).want(200)
		if string(got.body) != string(r.body) {
			t.Errorf("it reads otherwise than it was accepted:\n%s\n%s", got.body, r.body)
		}
	})
	t.Run("EverythingAskedForIsKept", func(t *testing.T) {
		c := w.owner("")
		at := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
		r := c.post("/v1/tasks", map[string]any{"prompt": "x", "agent": "yuki", "model": "anthropic/claude-haiku-5-5", "priority": -7, "timeout_seconds": 12,
			"max_attempts": 5, "run_at": at, "metadata": map[string]string{"ticket": "42"}, "input": map[string]any{"deep": []any{1, "two", nil, map[string]any{}}}}).want(202)
		got := c.get("/v1/tasks/" + r.str("id")).want(200)
		for path, want := range map[string]any{"status": "scheduled", "agent": "yuki", "model": "anthropic/claude-haiku-5-5", "priority": -7.0,
			"timeout_seconds": 12.0, "max_attempts": 5.0, "run_at": at.Format(time.RFC3339), "metadata.ticket": "42", "input.deep.1": "two",
			"waiting.reason": "scheduled", "waiting.position": nil} {
			if got := got.at(path); got != want {
				t.Errorf("%s = %v, want %v", path, got, want)
			}
		}
	})
	t.Run("TheTurnIsHandedOverAfterTheCommit", func(t *testing.T) {
		c := w.owner("")
		c.post("/v1/tasks", map[string]any{"prompt": "x"}).want(202)
		w.out.mu.Lock()
		defer w.out.mu.Unlock()
		if !slices.ContainsFunc(w.out.turns, func(turn store.Turn) bool { return turn.Workspace == c.ws && turn.Queue == "free" }) {
			t.Errorf("turns %v", w.out.turns)
		}
	})
	t.Run("ATaskThatRanShowsResultUsageAndAttempts", func(t *testing.T) {
		c := w.owner("")
		r := c.post("/v1/tasks", map[string]any{"prompt": "x"}).want(202)
		running := f.start(c.ws)
		now := c.get("/v1/tasks/" + r.str("id")).want(200)
		if now.str("status") != "running" || now.num("attempt") != 1 || now.at("waiting") != nil || now.at("started_at") == nil {
			t.Errorf("running: %s", now.body)
		}
		if a := c.get("/v1/tasks/" + r.str("id") + "/attempts").want(200); a.str("data.0.outcome") != "running" || a.at("data.0.usage") != nil {
			t.Errorf("attempts: %s", a.body)
		}
		call := uuid.New()
		err := f.BeginCall(t.Context(), store.CallStart{ID: call, Workspace: c.ws, Task: running.ID, Lease: running.Lease, Provider: "openai", Model: "m", Step: 1, Try: 1, CeilingMicroUSD: 900})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.EndCall(t.Context(), c.ws, call, store.CallEnd{Outcome: "ok", HTTPStatus: 200, LatencyMS: 12, InputTokens: 10, OutputTokens: 20, CostMicroUSD: 7}); err != nil {
			t.Fatal(err)
		}
		f.finish(running, store.Succeeded, store.AttemptUsage{AgentMS: 1234, ProviderCalls: 1, InputTokens: 10, OutputTokens: 20, CostMicroUSD: 7})
		done := c.get("/v1/tasks/" + r.str("id")).want(200)
		if done.str("status") != "succeeded" || done.str("result.output") != "done" || done.at("result.data") != nil || done.num("usage.agent_ms") != 1234 ||
			done.num("usage.cost_microusd") != 7 || done.at("finished_at") == nil || done.at("error") != nil {
			t.Errorf("done: %s", done.body)
		}
		a := c.get("/v1/tasks/" + r.str("id") + "/attempts").want(200)
		if a.str("data.0.outcome") != "succeeded" || a.num("data.0.usage.agent_ms") != 1234 || a.str("data.0.provider_calls.0.provider") != "openai" ||
			a.num("data.0.provider_calls.0.output_tokens") != 20 || a.at("data.0.provider_calls.0.error_code") != nil || a.at("data.0.billable") != true {
			t.Errorf("attempts: %s", a.body)
		}
	})
	t.Run("AttemptsComeNewestFirstInPages", func(t *testing.T) {
		c := w.owner("")
		r := c.post("/v1/tasks", map[string]any{"prompt": "x", "max_attempts": 5}).want(202)
		for range 3 {
			f.finish(f.start(c.ws), store.Retry, store.AttemptUsage{AgentMS: 5})
			got := c.get("/v1/tasks/" + r.str("id")).want(200)
			if got.str("status") != "scheduled" || got.str("waiting.reason") != "retry_backoff" || got.str("error.code") != "provider_error" {
				t.Fatalf("%s", got.body)
			}
			w.exec(`UPDATE tasks SET run_at = now() WHERE workspace_id = $1`, c.ws)
			if _, _, _, err := store.NewSystem(w.env.System(t)).PromoteDue(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		var seen []float64
		for cursor := ""; ; {
			page := c.get("/v1/tasks/" + r.str("id") + "/attempts?limit=1&cursor=" + cursor).want(200)
			seen = append(seen, page.num("data.0.attempt"))
			if cursor = page.str("next_cursor"); cursor == "" {
				break
			}
		}
		if !slices.Equal(seen, []float64{3, 2, 1}) {
			t.Errorf("attempts %v", seen)
		}
	})
}

func TestTaskRequestsNameEveryWrongField(t *testing.T) {
	t.Parallel()
	c := newWorld(t, nil).owner("")
	many := map[string]string{}
	for i := range 17 {
		many[fmt.Sprint(i)] = "x"
	}
	for name, tc := range map[string]struct {
		body   map[string]any
		fields string
	}{
		"NoPrompt":      {map[string]any{}, "prompt"},
		"EmptyPrompt":   {map[string]any{"prompt": ""}, "prompt"},
		"NullPrompt":    {map[string]any{"prompt": nil}, "prompt"},
		"HugePrompt":    {map[string]any{"prompt": strings.Repeat("x", maxPromptBytes+1)}, "prompt"},
		"UnknownAgent":  {map[string]any{"prompt": "x", "agent": "nobody"}, "agent"},
		"StrangeModel":  {map[string]any{"prompt": "x", "model": "../etc"}, "model"},
		"Priority":      {map[string]any{"prompt": "x", "priority": 101}, "priority"},
		"Timeouts":      {map[string]any{"prompt": "x", "timeout_seconds": 0}, "timeout_seconds"},
		"LongTimeout":   {map[string]any{"prompt": "x", "timeout_seconds": 301}, "timeout_seconds"},
		"Fraction":      {map[string]any{"prompt": "x", "timeout_seconds": 1.5}, "timeout_seconds"},
		"Attempts":      {map[string]any{"prompt": "x", "max_attempts": 21}, "max_attempts"},
		"Time":          {map[string]any{"prompt": "x", "run_at": "tomorrow"}, "run_at"},
		"InputArray":    {map[string]any{"prompt": "x", "input": []int{1}}, "input"},
		"MetadataType":  {map[string]any{"prompt": "x", "metadata": map[string]any{"a": 1}}, "metadata.a"},
		"MetadataNull":  {map[string]any{"prompt": "x", "metadata": map[string]any{"a": nil}}, "metadata.a"},
		"MetadataMany":  {map[string]any{"prompt": "x", "metadata": many}, "metadata"},
		"MetadataValue": {map[string]any{"prompt": "x", "metadata": map[string]any{"a": strings.Repeat("v", 513)}}, "metadata.a"},
		"MetadataKey":   {map[string]any{"prompt": "x", "metadata": map[string]any{"": "v"}}, "metadata."},
		"ServersOwn":    {map[string]any{"prompt": "x", "status": "succeeded", "workspace_id": "ws_1", "id": "task_1"}, "id status workspace_id"},
		"AllAtOnce":     {map[string]any{"agent": 1, "priority": "high", "max_attempts": true, "x": 1}, "agent max_attempts priority prompt x"},
	} {
		t.Run(name, func(t *testing.T) {
			got := c.post("/v1/tasks", tc.body).problem(probInvalid).fields()
			slices.Sort(got)
			if strings.Join(got, " ") != tc.fields {
				t.Errorf("fields %q, want %q", got, tc.fields)
			}
		})
	}
	t.Run("TheLimitsThemselvesAreAccepted", func(t *testing.T) {
		delete(many, "16")
		c.post("/v1/tasks", map[string]any{"prompt": strings.Repeat("x", maxPromptBytes), "priority": -100, "timeout_seconds": 300, "max_attempts": 20, "metadata": many, "run_at": nil, "input": nil, "model": nil}).want(202)
	})
}

func TestExpiresAt(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	o := w.owner("pro")
	in := func(d time.Duration) string { return time.Now().Add(d).UTC().Format(time.RFC3339) }
	made := o.post("/v1/tasks", map[string]any{"prompt": "x", "expires_at": in(time.Hour)}).want(202)
	if at, err := time.Parse(time.RFC3339, made.str("expires_at")); err != nil || time.Until(at) > time.Hour || time.Until(at) < 59*time.Minute {
		t.Errorf("expires_at is %v, %v", at, err)
	}
	o.post("/v1/tasks", map[string]any{"prompt": "x", "run_at": in(time.Hour), "expires_at": in(2 * time.Hour)}).want(202)
	for name, body := range map[string]map[string]any{
		"past":          {"expires_at": in(-time.Second)},
		"before run_at": {"run_at": in(2 * time.Hour), "expires_at": in(time.Hour)},
		"at run_at":     {"run_at": "2100-01-01T00:00:00Z", "expires_at": "2100-01-01T00:00:00Z"},
		"no time":       {"expires_at": "soon"},
	} {
		body["prompt"] = "x"
		if got := o.post("/v1/tasks", body).problem(probInvalid).fields(); len(got) != 1 || got[0] != "expires_at" {
			t.Errorf("%s: wrong are %v", name, got)
		}
	}
	batch := map[string]any{"tasks": []any{map[string]any{"prompt": "a"}, map[string]any{"prompt": "b", "expires_at": in(-time.Hour)}}}
	if got := o.post("/v1/tasks/batch", batch).problem(probInvalid).fields(); len(got) != 1 || got[0] != "tasks[1].expires_at" {
		t.Errorf("in a batch: %v", got)
	}
	w.exec(`UPDATE tasks SET expires_at = now() WHERE id = $1`, taskID(t, made.str("id")))
	if _, _, _, err := store.NewSystem(w.env.System(t)).ExpireDue(t.Context()); err != nil {
		t.Fatal(err)
	}
	ended := o.get("/v1/tasks/" + made.str("id")).want(200)
	if ended.str("status") != "failed" || ended.str("error.code") != "expired" || ended.at("waiting") != nil || ended.num("usage.agent_ms") != 0 {
		t.Errorf("the expired task: %s", ended.body)
	}
}

func TestBatches(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)

	t.Run("ABatchKeepsItsOrderAndItsPositions", func(t *testing.T) {
		c := w.owner("")
		r := c.post("/v1/tasks/batch", map[string]any{"tasks": []map[string]any{{"prompt": "a"}, {"prompt": "b", "priority": 5}, {"prompt": "c"}}}).want(202)
		for i, want := range []struct {
			prompt   string
			position float64
		}{{"a", 1}, {"b", 0}, {"c", 2}} {
			at := fmt.Sprintf("data.%d.", i)
			if r.str(at+"prompt") != want.prompt || r.num(at+"waiting.position") != want.position {
				t.Errorf("%d: %v", i, r.list("data")[i])
			}
			if got := c.get("/v1/tasks/" + r.str(at+"id")).want(200); got.num("waiting.position") != want.position {
				t.Errorf("%d reads position %v, want %v", i, got.num("waiting.position"), want.position)
			}
		}
	})
	t.Run("AllOrNone", func(t *testing.T) {
		c := w.owner("")
		r := c.post("/v1/tasks/batch", map[string]any{"tasks": []map[string]any{{"prompt": "a"}, {"prompt": ""}, {"prompt": "c", "agent": "x", "priority": 1000}}}).problem(probInvalid)
		if got := strings.Join(r.fields(), " "); got != "tasks[1].prompt tasks[2].priority" {
			t.Errorf("fields %q", got)
		}
		r = c.post("/v1/tasks/batch", map[string]any{"tasks": []map[string]any{{"prompt": "a"}, {"prompt": "c", "agent": "x"}}}).problem(probInvalid)
		if got := strings.Join(r.fields(), " "); got != "tasks[1].agent" {
			t.Errorf("fields %q", got)
		}
		if n := w.count(`SELECT count(*) FROM tasks WHERE workspace_id = $1`, c.ws); n != 0 {
			t.Errorf("%d tasks", n)
		}
	})
	t.Run("OneToAThousand", func(t *testing.T) {
		c := w.owner("pro")
		tasks := make([]map[string]any, 1001)
		for i := range tasks {
			tasks[i] = map[string]any{"prompt": fmt.Sprint("task ", i)}
		}
		c.post("/v1/tasks/batch", map[string]any{"tasks": tasks}).problem(probInvalid)
		c.post("/v1/tasks/batch", map[string]any{"tasks": tasks[:0]}).problem(probInvalid)
		r := c.post("/v1/tasks/batch", map[string]any{"tasks": tasks[:1000]}).want(202)
		if len(r.list("data")) != 1000 || r.str("data.999.prompt") != "task 999" {
			t.Error("not all, or out of order")
		}
		if n := w.count(`SELECT waiting FROM workspace_load WHERE workspace_id = $1`, c.ws); n != 1000 {
			t.Errorf("%d waiting", n)
		}
		one := c.post("/v1/tasks", map[string]any{"prompt": "x"}).want(202)
		if one.num("waiting.position") != 1000 {
			t.Errorf("%s", one.body)
		}
		beyond := c.post("/v1/tasks", map[string]any{"prompt": "x"}).want(202)
		if beyond.num("waiting.position_at_least") != 1000 || beyond.at("waiting.position") != nil {
			t.Errorf("%s", beyond.body)
		}
		for id, path := range map[string]string{one.str("id"): "waiting.position", beyond.str("id"): "waiting.position_at_least"} {
			if got := c.get("/v1/tasks/" + id).want(200); got.num(path) != 1000 {
				t.Errorf("%s", got.body)
			}
		}
		if urgent := c.post("/v1/tasks", map[string]any{"prompt": "x", "priority": 1}).want(202); urgent.num("waiting.position") != 0 {
			t.Errorf("%s", urgent.body)
		}
	})
	t.Run("AFullBacklogIsA429AndChangesNothing", func(t *testing.T) {
		c := w.owner("") // Free: 1,000 waiting
		c.mayRequest(5_000)
		tasks := make([]map[string]any, 999)
		for i := range tasks {
			tasks[i] = map[string]any{"prompt": "x"}
		}
		c.post("/v1/tasks/batch", map[string]any{"tasks": tasks}).want(202)
		c.post("/v1/tasks/batch", map[string]any{"tasks": tasks[:2]}).problem(probBacklogFull)
		c.post("/v1/tasks", map[string]any{"prompt": "x"}).want(202)
		c.post("/v1/tasks", map[string]any{"prompt": "x"}, headers{"Idempotency-Key": "later"}).problem(probBacklogFull)
		if n := w.count(`SELECT count(*) FROM tasks WHERE workspace_id = $1`, c.ws); n != 1000 {
			t.Errorf("%d tasks", n)
		}
		c.post("/v1/tasks/cancel", map[string]any{}).want(202)
		c.post("/v1/tasks", map[string]any{"prompt": "x"}, headers{"Idempotency-Key": "later"}).want(202) // a refusal is not kept
	})
}

func TestWaitingReasons(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	f := w.fleet()
	system := store.NewSystem(w.env.System(t))
	reason := func(c *client, id string) string {
		t.Helper()
		single := c.get("/v1/tasks/" + id).want(200)
		listed := c.get("/v1/tasks").want(200)
		for i, item := range listed.list("data") {
			if item.(map[string]any)["id"] == id && fmt.Sprint(listed.at(fmt.Sprintf("data.%d.waiting", i))) != fmt.Sprint(single.at("waiting")) {
				t.Errorf("the list says %v, the task %v", listed.at(fmt.Sprintf("data.%d.waiting", i)), single.at("waiting"))
			}
		}
		return single.str("waiting.reason")
	}
	t.Run("WorkspaceCap", func(t *testing.T) {
		c := w.owner("")
		c.post("/v1/tasks", map[string]any{"prompt": "x"}).want(202)
		running := f.start(c.ws)
		r := c.post("/v1/tasks", map[string]any{"prompt": "x"}).want(202)
		if r.str("waiting.reason") != "workspace_cap" || r.num("waiting.position") != 0 || reason(c, r.str("id")) != "workspace_cap" {
			t.Errorf("%s", r.body)
		}
		f.finish(running, store.Succeeded, store.AttemptUsage{AgentMS: 1})
		if got := reason(c, r.str("id")); got != "in_line" {
			t.Errorf("afterwards %s", got)
		}
	})
	t.Run("WorkspacePaused", func(t *testing.T) {
		c := w.owner("")
		if err := system.Pause(t.Context(), c.ws, store.Operator{Name: "test"}); err != nil {
			t.Fatal(err)
		}
		r := c.post("/v1/tasks", map[string]any{"prompt": "x"}).want(202)
		if r.str("waiting.reason") != "workspace_paused" || reason(c, r.str("id")) != "workspace_paused" {
			t.Errorf("%s", r.body)
		}
	})
	t.Run("QuotaExhausted", func(t *testing.T) {
		c := w.owner("")
		if _, err := system.SetLimits(t.Context(), c.ws, map[string]int64{"agent_ms": 5000}, store.Operator{Name: "test"}); err != nil {
			t.Fatal(err)
		}
		r := c.post("/v1/tasks", map[string]any{"prompt": "x"}).want(202) // a quota never refuses a submit
		if r.str("waiting.reason") != "quota_exhausted" || reason(c, r.str("id")) != "quota_exhausted" {
			t.Errorf("%s", r.body)
		}
		short := map[string]any{"prompt": "x", "timeout_seconds": 2}
		if behind := c.post("/v1/tasks", short).want(202); behind.str("waiting.reason") != "quota_exhausted" || reason(c, behind.str("id")) != "quota_exhausted" {
			t.Errorf("what is left is enough for it, but not for the one before it: %s", behind.body)
		}
		short["priority"] = 1
		if first := c.post("/v1/tasks", short).want(202); first.str("waiting.reason") != "in_line" || reason(c, first.str("id")) != "in_line" {
			t.Errorf("what is left is enough for it: %s", first.body)
		}
	})
}

func TestCancelAndRetry(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	f := w.fleet()
	submit := func(c *client, more map[string]any) string {
		t.Helper()
		body := map[string]any{"prompt": "x"}
		for k, v := range more {
			body[k] = v
		}
		return c.post("/v1/tasks", body).want(202).str("id")
	}
	t.Run("AWaitingTaskEndsAtOnce", func(t *testing.T) {
		c := w.owner("")
		id := submit(c, nil)
		r := c.post("/v1/tasks/"+id+"/cancel", nil).want(202)
		if r.str("status") != "canceled" || r.str("error.code") != "canceled" || r.at("cancel_requested_at") == nil {
			t.Errorf("%s", r.body)
		}
		c.post("/v1/tasks/"+id+"/cancel", nil).want(200)
		c.post("/v1/tasks/"+id+"/cancel", "{}").want(200)
		c.post("/v1/tasks/"+id+"/cancel", `{"force": true}`).problem(probInvalid)
	})
	t.Run("ARunningTaskIsAskedToStop", func(t *testing.T) {
		c := w.owner("")
		id := submit(c, nil)
		f.start(c.ws)
		r := c.post("/v1/tasks/"+id+"/cancel", nil).want(202)
		if r.str("status") != "running" || r.at("cancel_requested_at") == nil {
			t.Errorf("%s", r.body)
		}
		w.out.mu.Lock()
		defer w.out.mu.Unlock()
		if !slices.Contains(w.out.cancels, taskID(t, id)) {
			t.Errorf("the workers were not told: %v", w.out.cancels)
		}
	})
	t.Run("AnEndedTaskIsAConflict", func(t *testing.T) {
		c := w.owner("")
		id := submit(c, nil)
		f.finish(f.start(c.ws), store.Succeeded, store.AttemptUsage{AgentMS: 1})
		c.post("/v1/tasks/"+id+"/cancel", nil).problem(probConflict)
		c.post("/v1/tasks/"+id+"/retry", nil).problem(probConflict)
	})
	t.Run("AFailedTaskRunsAgainAndAttemptsGoOnCounting", func(t *testing.T) {
		c := w.owner("")
		id := submit(c, map[string]any{"max_attempts": 2})
		c.post("/v1/tasks/"+id+"/retry", nil).problem(probConflict) // it has not ended
		f.finish(f.start(c.ws), store.Failed, store.AttemptUsage{AgentMS: 1})
		r := c.post("/v1/tasks/"+id+"/retry", nil).want(202)
		if r.str("status") != "queued" || r.num("attempt") != 1 || r.num("max_attempts") != 4 || r.at("error") != nil || r.header.Get("Location") != "/v1/tasks/"+id {
			t.Errorf("%s", r.body)
		}
		f.finish(f.start(c.ws), store.Succeeded, store.AttemptUsage{AgentMS: 1})
		if got := c.get("/v1/tasks/" + id).want(200); got.num("attempt") != 2 || got.num("usage.agent_ms") != 2 {
			t.Errorf("%s", got.body)
		}
	})
	t.Run("OneKeyCannotStandForTwoTasks", func(t *testing.T) {
		c := w.owner("pro")
		a, b, key := submit(c, nil), submit(c, nil), headers{"Idempotency-Key": "stop"}
		first := c.post("/v1/tasks/"+a+"/cancel", nil, key).want(202)
		again := c.post("/v1/tasks/"+a+"/cancel", nil, key).want(202)
		if again.header.Get("Idempotent-Replayed") != "true" || string(again.body) != string(first.body) {
			t.Errorf("%s", again.body)
		}
		c.post("/v1/tasks/"+b+"/cancel", nil, key).problem(probKeyReused)
	})
	t.Run("InBulkTheFilterChooses", func(t *testing.T) {
		c := w.owner("pro")
		later := time.Now().Add(time.Hour)
		submit(c, map[string]any{"agent": "yuki"})
		submit(c, map[string]any{"agent": "yuki", "metadata": map[string]string{"k": "v", "l": "w"}})
		submit(c, map[string]any{"agent": "sable", "metadata": map[string]string{"k": "v"}})
		submit(c, map[string]any{"run_at": later})
		for _, step := range []struct {
			body  map[string]any
			count float64
		}{
			{map[string]any{"agent": "graham"}, 0},
			{map[string]any{"agent": "yuki", "metadata": map[string]string{"k": "v"}}, 1},
			{map[string]any{"metadata": map[string]string{"k": "v"}}, 1},
			{map[string]any{"status": "scheduled"}, 1},
			{map[string]any{}, 1},
			{map[string]any{}, 0},
		} {
			if r := c.post("/v1/tasks/cancel", step.body).want(202); r.num("count") != step.count {
				t.Errorf("%v: %s", step.body, r.body)
			}
		}
		c.post("/v1/tasks/cancel", nil).problem(probBadRequest) // all must be meant
		c.post("/v1/tasks/cancel", map[string]any{"status": "succeeded"}).problem(probInvalid)
		if n := w.count(`SELECT count(*) FROM audit_log WHERE workspace_id = $1 AND action = 'tasks.cancel'`, c.ws); n != 6 {
			t.Errorf("%d audit entries", n)
		}
	})
}
