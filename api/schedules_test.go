package api

import (
	"slices"
	"testing"
	"time"

	"github.com/generic-corp/muster/store"
)

func TestSchedules(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	system := store.NewSystem(w.env.System(t))
	daily := func(more map[string]any) map[string]any {
		body := map[string]any{"name": "report", "cron": "30 6 * * 1-5", "timezone": "Europe/Berlin", "task": map[string]any{"prompt": "Say good morning"}}
		for k, v := range more {
			body[k] = v
		}
		return body
	}

	t.Run("AScheduleIsMadeShownChangedAndDeleted", func(t *testing.T) {
		c := w.owner("pro")
		r := c.post("/v1/schedules", daily(map[string]any{"expires_after_seconds": 3600})).want(201)
		path := "/v1/schedules/" + r.str("id")
		if r.header.Get("Location") != path || r.str("status") != "active" || r.str("missed_runs") != "run_once" || r.str("overlap") != "allow" ||
			r.str("task.prompt") != "Say good morning" || r.str("task.agent") != "marcus" || r.num("task.max_attempts") != 3 || r.num("expires_after_seconds") != 3600 {
			t.Errorf("%s", r.body)
		}
		runs := r.list("next_runs")
		if len(runs) != 5 || !slices.IsSortedFunc(runs, func(a, b any) int { return slices.Compare([]byte(a.(string)), []byte(b.(string))) }) {
			t.Errorf("next runs: %v", runs)
		}
		if list := c.get("/v1/schedules").want(200); list.str("data.0.id") != r.str("id") || list.at("data.0.task.prompt") != nil {
			t.Errorf("the list: %s", list.body)
		}
		if p := c.do("PATCH", path, map[string]any{"paused": true}).want(200); p.str("status") != "paused" || len(p.list("next_runs")) != 0 || p.str("task.prompt") != "Say good morning" {
			t.Errorf("paused: %s", p.body)
		}
		p := c.do("PATCH", path, map[string]any{"paused": false, "cron": "@hourly", "name": "hourly", "expires_after_seconds": 0, "task": map[string]any{"prompt": "b", "agent": "yuki"}}).want(200)
		if p.str("status") != "active" || p.str("name") != "hourly" || p.str("task.agent") != "yuki" || p.at("expires_after_seconds") != nil {
			t.Errorf("changed: %s", p.body)
		}
		if p := c.do("PATCH", path, map[string]any{"ends_at": time.Now().Add(-time.Hour)}).want(200); p.str("status") != "ended" {
			t.Errorf("at its end: %s", p.body)
		}
		c.do("PATCH", path, map[string]any{"missed_runs": "skip", "overlap": "skip", "timezone": "Europe/Berlin", "expires_after_seconds": 5,
			"starts_at": "2000-01-01T00:00:00Z", "ends_at": "2100-01-01T00:00:00Z", "paused": true}).want(200)
		unset := map[string]any{"missed_runs": nil, "overlap": nil, "timezone": nil, "expires_after_seconds": nil, "starts_at": nil, "ends_at": nil, "paused": nil}
		p = c.do("PATCH", path, unset).want(200)
		if p.str("missed_runs") != "run_once" || p.str("overlap") != "allow" || p.str("timezone") != "UTC" || p.str("status") != "active" ||
			p.at("expires_after_seconds") != nil || p.at("starts_at") != nil || p.at("ends_at") != nil || p.str("name") != "hourly" {
			t.Errorf("unset: %s", p.body)
		}
		for _, field := range []string{"name", "cron", "task"} {
			if got := c.do("PATCH", path, map[string]any{field: nil}).problem(probInvalid).fields(); !slices.Equal(got, []string{field}) {
				t.Errorf("%s cannot be unset: wrong are %v", field, got)
			}
		}
		c.do("DELETE", path, nil).want(204)
		c.get(path).problem(probNotFound)
		c.do("DELETE", path, nil).problem(probNotFound)
	})

	t.Run("ItSendsItsTaskAndListsItsRuns", func(t *testing.T) {
		c := w.owner("pro")
		id := c.post("/v1/schedules", daily(map[string]any{"cron": "* * * * *"})).want(201).str("id")
		w.exec(`UPDATE schedules SET next_at = date_trunc('minute', now()) - interval '3 minutes' WHERE workspace_id = $1`, c.ws)
		if _, err := system.FireSchedules(t.Context()); err != nil {
			t.Fatal(err)
		}
		runs := c.get("/v1/schedules/" + id + "/runs").want(200)
		if len(runs.list("data")) != 2 || runs.str("data.0.outcome") != "sent" || runs.at("data.0.reason") != nil || runs.str("data.1.reason") != "late" || runs.num("data.1.occurrences") != 3 {
			t.Fatalf("%s", runs.body)
		}
		task := c.get("/v1/tasks/" + runs.str("data.0.task_id")).want(200)
		if task.str("schedule_id") != id || task.str("status") != "queued" || task.str("created_by") != store.FormatID(store.UserPrefix, c.user) {
			t.Errorf("%s", task.body)
		}
		if list := c.get("/v1/tasks?schedule=" + id).want(200); len(list.list("data")) != 1 {
			t.Errorf("by its schedule: %s", list.body)
		}
		c.post("/v1/tasks", map[string]any{"prompt": "x"}).want(202)
		if list := c.get("/v1/tasks?schedule=" + id + "&status=succeeded").want(200); len(list.list("data")) != 0 {
			t.Errorf("by its schedule and state: %s", list.body)
		}
		c.get("/v1/tasks?schedule=x").problem(probInvalid)
		if s := c.get("/v1/schedules/" + id).want(200); s.str("last_task_id") != task.str("id") || s.at("last_run_at") != runs.at("data.0.occurrence") {
			t.Errorf("%s", s.body)
		}
		page := c.get("/v1/schedules/" + id + "/runs?limit=1").want(200)
		if next := c.get("/v1/schedules/" + id + "/runs?limit=1&cursor=" + page.str("next_cursor")).want(200); next.str("data.0.outcome") != "missed" || next.at("next_cursor") != nil {
			t.Errorf("the second page: %s", next.body)
		}
	})

	t.Run("ThePlanBoundsNumberAndPace", func(t *testing.T) {
		c := w.owner("free")
		c.post("/v1/schedules", daily(map[string]any{"cron": "*/5 * * * *"})).problem(probPlanLimit)
		for range 5 {
			c.post("/v1/schedules", daily(map[string]any{"cron": "*/15 * * * *"})).want(201)
		}
		c.post("/v1/schedules", daily(nil)).problem(probPlanLimit)
		id := c.get("/v1/schedules").want(200).str("data.0.id")
		c.do("PATCH", "/v1/schedules/"+id, map[string]any{"cron": "0,10 * * * *"}).problem(probPlanLimit)
		c.do("DELETE", "/v1/schedules/"+id, nil).want(204)
		c.post("/v1/schedules", daily(map[string]any{"task": map[string]any{"prompt": "x", "model": "anthropic/claude-opus-9"}})).problem(probPlanLimit)
		c.post("/v1/schedules", daily(nil)).want(201)
	})

	t.Run("WrongFieldsAreNamed", func(t *testing.T) {
		c := w.owner("pro")
		for field, more := range map[string]map[string]any{
			"cron": {"cron": "every day"}, "timezone": {"timezone": "Mars"}, "missed_runs": {"missed_runs": "cry"}, "overlap": {"overlap": "queue"},
			"name": {"name": "  "}, "ends_at": {"starts_at": "2100-01-02T00:00:00Z", "ends_at": "2100-01-01T00:00:00Z"}, "expires_after_seconds": {"expires_after_seconds": 0},
			"task.prompt": {"task": map[string]any{"prompt": "", "agent": "yuki"}}, "task.priority": {"task": map[string]any{"prompt": "x", "priority": 101}},
			"task.run_at": {"task": map[string]any{"prompt": "x", "run_at": "2100-01-01T00:00:00Z"}}, "task.expires_at": {"task": map[string]any{"prompt": "x", "expires_at": "2100-01-01T00:00:00Z"}},
			"task.agent": {"task": map[string]any{"prompt": "x", "agent": "nobody"}}, "next_at": {"next_at": "2100-01-01T00:00:00Z"},
		} {
			if got := c.post("/v1/schedules", daily(more)).problem(probInvalid).fields(); len(got) != 1 || got[0] != field {
				t.Errorf("%v: wrong are %v", more, got)
			}
		}
		if got := c.post("/v1/schedules", map[string]any{}).problem(probInvalid).fields(); len(got) != 3 {
			t.Errorf("of nothing: %v", got)
		}
		id := c.post("/v1/schedules", daily(nil)).want(201).str("id")
		for field, body := range map[string]map[string]any{"name": {}, "cron": {"cron": "x"}, "task.prompt": {"task": map[string]any{"agent": "yuki"}}} {
			if got := c.do("PATCH", "/v1/schedules/"+id, body).problem(probInvalid).fields(); len(got) != 1 || got[0] != field {
				t.Errorf("PATCH %v: wrong are %v", body, got)
			}
		}
	})

	t.Run("OneKeyMakesOneSchedule", func(t *testing.T) {
		c := w.owner("pro")
		key := headers{"Idempotency-Key": "nightly"}
		first := c.post("/v1/schedules", daily(nil), key).want(201)
		if again := c.post("/v1/schedules", daily(nil), key).want(201); again.str("id") != first.str("id") || len(c.get("/v1/schedules").list("data")) != 1 {
			t.Errorf("%s", again.body)
		}
	})
}
