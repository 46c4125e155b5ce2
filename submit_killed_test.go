package main

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/generic-corp/muster/store/storetest"
)

// TestAnAPIKilledInTheMiddleOfAFlushLosesAndDoublesNothing kills the API with -9 while Postgres is at a flush of many submits.
// What was answered is there, once; what was not is repeated with its Idempotency-Key where it has one, and is there once too.
func TestAnAPIKilledInTheMiddleOfAFlushLosesAndDoublesNothing(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	s.start("api", "api")
	var tenants []*tenant
	for i := range 4 {
		tenants = append(tenants, s.tenant(fmt.Sprint("killed", i), "pro", 10))
	}
	s.env.Admin(t).MustExec(`CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.01); RETURN NEW; END $$;
		CREATE TRIGGER slow BEFORE INSERT ON tasks FOR EACH ROW EXECUTE FUNCTION slow()`)

	type request struct {
		who    *tenant
		key    string // "" of none
		prompt string
	}
	send := func(r request) (id string, err error) {
		var task struct{ ID string }
		_, err = s.request("POST", "/v1/tasks", r.who.token, r.key, map[string]any{"prompt": r.prompt}, &task)
		return task.ID, err
	}
	var mu sync.Mutex
	answered := map[string]request{} // by the task's id
	var unanswered []request
	var clients sync.WaitGroup
	for c := range 48 {
		clients.Go(func() {
			for i := 0; ; i++ {
				r := request{who: tenants[c%len(tenants)], prompt: fmt.Sprintf("%d.%d", c, i)}
				if c%6 == 0 {
					r.key = r.prompt
				}
				id, err := send(r)
				mu.Lock()
				if err != nil { // killed
					unanswered = append(unanswered, r)
					mu.Unlock()
					return
				}
				answered[id] = r
				mu.Unlock()
			}
		})
	}
	s.await(60*time.Second, "some hundred answers", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(answered) > 300
	})
	s.await(30*time.Second, "a flush", func() bool {
		return s.count(`SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'SELECT submit_together%' AND now() - query_start > interval '20 ms'`) > 0
	})
	s.kill("api")
	clients.Wait()
	s.await(30*time.Second, "Postgres to be done with the killed process", func() bool {
		return s.count(`SELECT count(*) FROM pg_stat_activity WHERE usename = 'muster_api' AND state <> 'idle'`) == 0
	})
	s.start("api", "api")
	keyed := 0
	for _, r := range unanswered {
		if r.key == "" {
			continue
		}
		keyed++
		id, err := send(r)
		if err != nil {
			t.Fatalf("repeat: %v", err)
		}
		answered[id] = r
	}
	t.Logf("%d requests were answered, %d not, %d of these repeated", len(answered)-keyed, len(unanswered), keyed)
	if keyed == 0 || len(unanswered) == keyed {
		t.Error("no request of one of the kinds was under way at the kill")
	}
	for id, r := range answered {
		if n := s.count(`SELECT count(*) FROM tasks WHERE 'task_' || replace(id::text, '-', '') = $1 AND prompt = $2 AND 'ws_' || replace(workspace_id::text, '-', '') = $3`, id, r.prompt, r.who.id); n != 1 {
			t.Errorf("task %s of %q was answered and is there %d times", id, r.prompt, n)
		}
	}
	for _, r := range unanswered {
		if n := s.count(`SELECT count(*) FROM tasks WHERE prompt = $1`, r.prompt); n > 1 || r.key != "" && n != 1 {
			t.Errorf("%q is there %d times", r.prompt, n)
		}
	}
	if n := s.count(`SELECT count(*) - count(DISTINCT prompt) FROM tasks`); n != 0 {
		t.Errorf("%d tasks are there twice", n)
	}
	if n := s.count(`SELECT count(*) FROM workspace_load w WHERE waiting > 0 AND (turn IS NULL OR waiting <> (SELECT count(*) FROM tasks t WHERE t.workspace_id = w.workspace_id))`); n != 0 {
		t.Errorf("%d load rows without a turn or with a wrong count", n)
	}
	storetest.CheckLedger(t, s.env.Env)
}
