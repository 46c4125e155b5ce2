package api

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

// TestWhatIsKeptNoLongerIsUnknown: a task that the retention has removed is answered as one that never was, lists go on as if it
// had not been, and what was metered of it stays.
func TestWhatIsKeptNoLongerIsUnknown(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	c := w.owner("starter") // keeps 90 days
	f := w.fleet()
	var ids []string
	for i := range 6 {
		ids = append(ids, c.post("/v1/tasks", map[string]any{"prompt": fmt.Sprint("p", i), "max_attempts": 1}).want(202).str("id"))
		outcome := store.Succeeded
		if i == 1 {
			outcome = store.Failed // a dead letter
		}
		f.finish(f.start(c.ws), outcome, store.AttemptUsage{AgentMS: 100})
	}
	// The first three were sent and ended 100 days ago.
	for i, id := range ids[:3] {
		old := uuid.MustParse(fmt.Sprintf("01500000-0000-7000-8000-00000000000%d", i))
		for _, q := range []string{`UPDATE attempts SET task_id = $2 WHERE task_id = $1`, `UPDATE metering_rows SET task_id = $2 WHERE task_id = $1`,
			`UPDATE tasks SET id = $2, created_at = now() - interval '100 days', finished_at = now() - interval '100 days' WHERE id = $1`} {
			w.exec(q, taskID(t, id), old)
		}
		ids[i] = store.FormatID(store.TaskPrefix, old)
	}
	listed := func(path string) (got []string) {
		t.Helper()
		for next := path + "limit=2"; next != ""; {
			page := c.get(next).want(200)
			for i := range page.list("data") {
				got = append(got, page.str(fmt.Sprintf("data.%d.id", i)))
			}
			if next = ""; page.at("next_cursor") != nil {
				next = path + "limit=2&cursor=" + page.str("next_cursor")
			}
		}
		slices.Sort(got)
		return got
	}
	if got := listed("/v1/tasks?"); !slices.Equal(got, ids) || len(listed("/v1/dead-letters?")) != 1 {
		t.Fatalf("before: %v, want %v", got, ids)
	}
	first := c.get("/v1/tasks?limit=4").want(200) // its cursor points behind a task that will be gone
	usage, quota := c.get("/v1/usage?group_by=agent").want(200).body, c.get("/v1/quota").want(200).body

	system := store.NewSystem(w.env.System(t))
	keepings, _, err := system.Keepings(t.Context(), uuid.Nil, 100)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keepings {
		for after, more := uuid.Nil, true; more; more = after != uuid.Nil {
			if _, after, _, err = system.RemoveEnded(t.Context(), k, after, 100); err != nil {
				t.Fatal(err)
			}
		}
	}

	unknown := store.FormatID(store.TaskPrefix, store.NewID())
	for _, id := range ids[:3] {
		for _, route := range [][2]string{{"GET", ""}, {"GET", "/attempts"}, {"POST", "/retry"}, {"POST", "/cancel"}, {"DELETE", ""}} {
			gone, never := c.do(route[0], "/v1/tasks/"+id+route[1], nil).problem(probNotFound), c.do(route[0], "/v1/tasks/"+unknown+route[1], nil).problem(probNotFound)
			if gone.str("detail") != never.str("detail") {
				t.Errorf("%s %s: %s, of an unknown one %s", route[0], route[1], gone.body, never.body)
			}
		}
	}
	if got := listed("/v1/tasks?"); !slices.Equal(got, ids[3:]) {
		t.Errorf("the list has %v, want %v", got, ids[3:])
	}
	if rest := c.get("/v1/tasks?limit=4&cursor=" + first.str("next_cursor")).want(200); len(rest.list("data")) != 0 || rest.at("next_cursor") != nil {
		t.Errorf("a list that was begun before does not go on: %s", rest.body)
	}
	if got := listed("/v1/dead-letters?"); len(got) != 0 {
		t.Errorf("dead letters: %v", got)
	}
	c.get("/v1/tasks/" + ids[4]).want(200)
	if now := c.get("/v1/usage?group_by=agent").want(200).body; string(now) != string(usage) {
		t.Errorf("the usage is %s and was %s", now, usage)
	}
	if now := c.get("/v1/quota").want(200).body; string(now) != string(quota) {
		t.Errorf("the quota is %s and was %s", now, quota)
	}
}
