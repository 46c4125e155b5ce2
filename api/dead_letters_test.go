package api

import (
	"fmt"
	"testing"

	"github.com/generic-corp/muster/store"
)

func TestDeadLettersOverHTTP(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	f := w.fleet()
	fails := func(c *client, more map[string]any) string {
		t.Helper()
		body := map[string]any{"prompt": "x"}
		for k, v := range more {
			body[k] = v
		}
		id := c.post("/v1/tasks", body).want(202).str("id")
		f.finish(f.start(c.ws), store.Failed, store.AttemptUsage{AgentMS: 1})
		return id
	}
	ids := func(r *reply) string {
		var all []string
		for i := range r.list("data") {
			all = append(all, r.str(fmt.Sprintf("data.%d.id", i)))
		}
		return fmt.Sprint(all)
	}

	t.Run("TheyAreListedInPagesWithFilters", func(t *testing.T) {
		c := w.owner("pro")
		first, second := fails(c, nil), fails(c, map[string]any{"agent": "sable", "metadata": map[string]string{"ticket": "7"}})
		r := c.get("/v1/dead-letters?limit=1").want(200)
		if ids(r) != fmt.Sprint([]string{second}) {
			t.Fatalf("%s", r.body)
		}
		next := r.str("next_cursor")
		if r := c.get("/v1/dead-letters?limit=1&cursor=" + next).want(200); ids(r) != fmt.Sprint([]string{first}) || r.at("next_cursor") != nil {
			t.Errorf("the second page: %s", r.body)
		}
		c.get("/v1/dead-letters?limit=1&agent=sable&cursor=" + next).problem(probBadRequest)
		for query, want := range map[string][]string{"agent=sable": {second}, "metadata.ticket=7": {second}, "error_code=provider_error": {second, first},
			"error_code=expired": nil, "finished_after=2100-01-01T00:00:00Z": nil, "finished_before=2100-01-01T00:00:00Z": {second, first}} {
			if got := ids(c.get("/v1/dead-letters?" + query).want(200)); got != fmt.Sprint(want) {
				t.Errorf("%s: %s, want %v", query, got, want)
			}
		}
		c.get("/v1/dead-letters?finished_after=soon").problem(probInvalid)
	})

	t.Run("AReplayRunsThemAgainOnce", func(t *testing.T) {
		c := w.owner("pro")
		first, second, third := fails(c, nil), fails(c, nil), fails(c, nil)
		key := headers{"Idempotency-Key": "replay"}
		body := map[string]any{"ids": []string{first, second}}
		if r := c.post("/v1/dead-letters/replay", body, key).want(202); r.num("count") != 2 || r.at("more") != false {
			t.Errorf("%s", r.body)
		}
		f.start(c.ws) // its turn was handed over
		if r := c.post("/v1/dead-letters/replay", body, key).want(202); r.num("count") != 2 || r.header.Get("Idempotent-Replayed") != "true" {
			t.Errorf("the repeat: %s", r.body)
		}
		if r := c.post("/v1/dead-letters/replay", body).want(202); r.num("count") != 0 {
			t.Errorf("without a key: %s", r.body)
		}
		if r := c.post("/v1/tasks/retry", map[string]any{"status": "canceled"}).want(202); r.num("count") != 0 {
			t.Errorf("canceled ones: %s", r.body)
		}
		if r := c.post("/v1/tasks/retry", map[string]any{"limit": 1}).want(202); r.num("count") != 1 || r.at("more") != false {
			t.Errorf("all: %s", r.body)
		}
		if got := c.get("/v1/tasks/" + third).want(200).str("status"); got != "queued" {
			t.Errorf("the third is %s", got)
		}
	})

	t.Run("ADropErasesWhatIsChosen", func(t *testing.T) {
		c := w.owner("pro")
		first, second := fails(c, nil), fails(c, nil)
		c.do("DELETE", "/v1/dead-letters", map[string]any{}).problem(probInvalid)
		c.do("DELETE", "/v1/dead-letters", map[string]any{"limit": 1}).problem(probInvalid)
		c.do("DELETE", "/v1/dead-letters", map[string]any{"all": true, "agent": "yuki"}).problem(probInvalid)
		if r := c.do("DELETE", "/v1/dead-letters", map[string]any{"ids": []string{first}}).want(200); r.num("count") != 1 {
			t.Errorf("%s", r.body)
		}
		if r := c.get("/v1/tasks/" + first).want(200); r.str("prompt") != "" || r.at("erased_at") == nil || r.num("usage.agent_ms") != 1 {
			t.Errorf("the dropped one: %s", r.body)
		}
		if got := ids(c.get("/v1/dead-letters").want(200)); got != fmt.Sprint([]string{second}) {
			t.Errorf("left are %s", got)
		}
		if r := c.do("DELETE", "/v1/dead-letters", map[string]any{"all": true}).want(200); r.num("count") != 1 || r.at("more") != false {
			t.Errorf("all: %s", r.body)
		}
	})

	t.Run("AnothersTasksAreNotThere", func(t *testing.T) {
		a, b := w.owner("pro"), w.owner("pro")
		theirs := fails(b, nil)
		for _, r := range []*reply{a.post("/v1/dead-letters/replay", map[string]any{"ids": []string{theirs}}).want(202),
			a.post("/v1/tasks/retry", map[string]any{}).want(202), a.do("DELETE", "/v1/dead-letters", map[string]any{"ids": []string{theirs}}).want(200)} {
			if r.num("count") != 0 {
				t.Errorf("%s", r.body)
			}
		}
		if got := ids(a.get("/v1/dead-letters").want(200)); got != "[]" {
			t.Errorf("%s is shown", got)
		}
		if got := ids(b.get("/v1/dead-letters").want(200)); got != fmt.Sprint([]string{theirs}) {
			t.Errorf("their own: %s", got)
		}
	})

	t.Run("WrongFieldsAreNamed", func(t *testing.T) {
		c := w.owner("pro")
		for field, body := range map[string]map[string]any{
			"ids[1]": {"ids": []string{"task_" + "0190000000007000800000000000abcd", "key_1"}}, "ids": {"ids": []string{}}, "limit": {"limit": 1001},
			"status": {"status": "running"}, "finished_after": {"finished_after": "then"}, "force": {"force": true}, "metadata.": {"metadata": map[string]string{"": "x"}},
		} {
			if got := c.post("/v1/tasks/retry", body).problem(probInvalid).fields(); len(got) != 1 || got[0] != field {
				t.Errorf("%v: wrong are %v", body, got)
			}
		}
	})
}
