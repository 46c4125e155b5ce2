package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/hibiken/asynqmon"

	"github.com/generic-corp/muster/store/storetest"
)

// TestAsynqmonsActionsDoNoHarm does what Asynqmon's page would offer were it not read-only, one after the other, to the turns of
// real processes: nothing is lost, and no task runs twice. The log says how long each repair took.
func TestAsynqmonsActionsDoNoHarm(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	s.start("scheduler", "scheduler")
	s.start("api", "api")
	redis, err := asynq.ParseRedisURI(s.env.RedisURL)
	if err != nil {
		t.Fatal(err)
	}
	pages := httptest.NewServer(asynqmon.New(asynqmon.Options{RootPath: asynqmonPath, RedisConnOpt: redis}))
	t.Cleanup(pages.Close)
	inspector, client := asynq.NewInspector(redis), asynq.NewClient(redis)
	t.Cleanup(func() { inspector.Close(); client.Close() })
	send := func(base, method, path string) int {
		t.Helper()
		req, err := http.NewRequest(method, base+asynqmonPath+"/api/queues/pro"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := s.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return res.StatusCode
	}
	act := func(method, path string) {
		t.Helper()
		if code := send(pages.URL, method, path); code/100 != 2 {
			t.Fatalf("%s %s: %d", method, path, code)
		}
	}
	pending := func() (id string) {
		if list, err := inspector.ListPendingTasks("pro"); err == nil && len(list) > 0 {
			id = list[0].ID
		}
		return id
	}
	x := s.tenant("asynqmon", "pro", 10)
	for range 6 {
		if _, err := s.request("POST", "/v1/tasks", x.token, "", map[string]any{"prompt": "sleep=300ms tokens=1/1"}, nil); err != nil {
			t.Fatal(err)
		}
	}
	s.await(20*time.Second, "the turn", func() bool { return pending() != "" })

	// Served by Muster's own page: refused.
	for _, c := range [][2]string{{"DELETE", "/pending_tasks/" + pending()}, {"POST", ":pause"}, {"DELETE", ""}} {
		if code := send("http://"+s.procs["scheduler"].ops, c[0], c[1]); code != http.StatusMethodNotAllowed {
			t.Errorf("%s %s on Muster's own page is answered %d", c[0], c[1], code)
		}
	}

	// Without a worker, so that turns stay where they are put.
	repaired := func(what string, actions func(turn string)) {
		t.Helper()
		old, began := pending(), time.Now()
		actions(old)
		s.await(30*time.Second, "a new turn after "+what, func() bool { id := pending(); return id != "" && id != old })
		t.Logf("%s: a new turn stands in line after %.1f s", what, time.Since(began).Seconds())
	}
	repaired("delete a pending turn", func(turn string) { act("DELETE", "/pending_tasks/"+turn) })
	repaired("delete all pending turns", func(string) { act("DELETE", "/pending_tasks:delete_all") })
	repaired("archive a pending turn", func(turn string) { act("POST", "/pending_tasks/"+turn+":archive") })
	archived, err := inspector.ListArchivedTasks("pro")
	if err != nil || len(archived) != 1 {
		t.Fatalf("%d archived turns, %v", len(archived), err)
	}
	act("POST", "/archived_tasks/"+archived[0].ID+":run") // the old turn stands in line too; it is stale
	repaired("archive all pending turns", func(string) { act("POST", "/pending_tasks:archive_all") })
	act("DELETE", "/archived_tasks:delete_all")
	repaired("delete the queue", func(string) {
		act("DELETE", "/pending_tasks:delete_all")
		act("DELETE", "")
	})
	// The current turn a second and third time, as Asynq's own retry would hold it: run one, archive and delete the other.
	list, err := inspector.ListPendingTasks("pro")
	if err != nil || len(list) != 1 {
		t.Fatalf("%d pending turns, %v", len(list), err)
	}
	for i := range 3 {
		copied := asynq.NewTask(list[0].Type, list[0].Payload)
		if _, err := client.Enqueue(copied, asynq.TaskID(fmt.Sprint("copy-", i)), asynq.Queue("pro"), asynq.ProcessIn(time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	act("POST", "/scheduled_tasks/copy-0:run")
	act("POST", "/scheduled_tasks/copy-1:archive")
	act("DELETE", "/scheduled_tasks/copy-2")
	act("POST", "/archived_tasks:run_all")

	// A paused queue holds its turns until it is resumed.
	act("POST", ":pause")
	s.start("worker", "worker")
	s.await(30*time.Second, "the worker", func() bool { return s.count(`SELECT count(*) FROM workers WHERE dead_at IS NULL`) == 1 })
	time.Sleep(2 * time.Second) // nothing tells that a worker does nothing
	if n := s.count(`SELECT count(*) FROM leases`) + s.count(`SELECT count(*) FROM attempts`); n != 0 {
		t.Errorf("%d tasks were started from a paused queue", n)
	}
	act("POST", ":resume")
	began := time.Now()
	s.await(60*time.Second, "an active turn", func() bool { l, err := inspector.ListActiveTasks("pro"); return err == nil && len(l) > 0 })
	t.Logf("after resume tasks run in %.1f s", time.Since(began).Seconds())
	act("POST", "/active_tasks:cancel_all")
	s.await(60*time.Second, "all tasks", func() bool { return s.count(`SELECT count(*) FROM tasks WHERE status = 'succeeded'`) == 6 })
	if n := s.count(`SELECT count(*) FROM attempts`); n != 6 {
		t.Errorf("%d attempts at 6 tasks", n)
	}
	storetest.CheckLedger(t, s.env.Env)
}
