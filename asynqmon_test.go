package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"
	"github.com/hibiken/asynqmon"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/jobs"
	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// monAction is a route of Asynqmon that changes something.
type monAction struct {
	method, path string // below /api
	state        string // of the messages that it acts on; empty: it acts on a queue
	verb         string
	form         string // one, all or batch
}

// monActions are all of them.
func monActions() []monAction {
	const queue = "/queues/{qname}"
	actions := []monAction{{method: "POST", path: queue + ":pause"}, {method: "POST", path: queue + ":resume"}, {method: "DELETE", path: queue}}
	for _, of := range []struct{ state, verbs string }{{"pending", "delete archive"}, {"scheduled", "delete run archive"}, {"retry", "delete run archive"},
		{"archived", "delete run"}, {"completed", "delete"}, {"aggregating", "delete run archive"}, {"active", "cancel"}} {
		tasks := queue + "/" + of.state + "_tasks"
		if of.state == "aggregating" {
			tasks = queue + "/groups/{gname}/aggregating_tasks"
		}
		for _, verb := range strings.Fields(of.verbs) {
			one, all := monAction{"POST", tasks + "/{task_id}:" + verb, of.state, verb, "one"}, monAction{"POST", tasks + ":" + verb + "_all", of.state, verb, "all"}
			if verb == "delete" {
				one.method, one.path, all.method = "DELETE", tasks+"/{task_id}", "DELETE"
			}
			actions = append(actions, one, all, monAction{"POST", tasks + ":batch_" + verb, of.state, verb, "batch"})
		}
	}
	return actions
}

func TestAsynqmonHasTheActionsThatAreTried(t *testing.T) {
	t.Parallel()
	file, _ := runtime.FuncForPC(reflect.ValueOf(asynqmon.New).Pointer()).FileLine(reflect.ValueOf(asynqmon.New).Pointer())
	source, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("read the source of asynqmon.New, %s: %v", filepath.Base(file), err)
	}
	var has, tried []string
	for _, m := range regexp.MustCompile(`HandleFunc\("([^"]+)".*\.Methods\("([^"]+)"\)`).FindAllSubmatch(source, -1) {
		if string(m[2]) != http.MethodGet {
			has = append(has, string(m[2])+" "+string(m[1]))
		}
	}
	if calls, methods := bytes.Count(source, []byte(".HandleFunc(")), bytes.Count(source, []byte(".Methods(")); calls != methods {
		t.Errorf("%d routes, %d with methods: this test reads the wrong words", calls, methods)
	}
	for _, a := range monActions() {
		tried = append(tried, a.method+" "+a.path)
	}
	slices.Sort(has)
	slices.Sort(tried)
	if !slices.Equal(has, tried) {
		t.Errorf("Asynqmon has\n%s\nand tried are\n%s", strings.Join(has, "\n"), strings.Join(tried, "\n"))
	}
}

// monitored is a fleet with an Asynqmon that is not read-only.
type monitored struct {
	*stack
	pages string
	rdb   *redis.Client
	api   *store.API
	turns *jobs.Enqueuer
}

// send is the action on a queue and a message; it returns the status and the answer.
func (m *monitored) send(base string, a monAction, queue, id string) (int, string) {
	m.t.Helper()
	path := strings.NewReplacer("{qname}", queue, "{gname}", "group", "{task_id}", id).Replace(a.path)
	body := fmt.Sprintf(`{"task_ids": [%q]}`, id)
	if a.form != "batch" {
		body = ""
	}
	req, err := http.NewRequest(a.method, base+asynqmonPath+"/api"+path, strings.NewReader(body))
	if err != nil {
		m.t.Fatal(err)
	}
	res, err := m.client.Do(req)
	if err != nil {
		m.t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		m.t.Fatal(err)
	}
	return res.StatusCode, string(answer)
}

// act is an action that must be done.
func (m *monitored) act(a monAction, queue, id string) {
	m.t.Helper()
	code, answer := m.send(m.pages, a, queue, id)
	var failed struct {
		IDs []string `json:"error_ids"`
	}
	if a.form == "batch" {
		if err := json.Unmarshal([]byte(answer), &failed); err != nil {
			m.t.Fatal(err)
		}
	}
	if code/100 != 2 || len(failed.IDs) > 0 {
		m.t.Fatalf("%s %s: %d %s", a.method, a.path, code, answer)
	}
}

func (m *monitored) queue(verb, queue string) {
	m.t.Helper()
	m.act(monAction{method: "POST", path: "/queues/{qname}:" + verb}, queue, "")
}

// goOn resumes the queue and waits until the worker has taken what stands in it, so that the next pause keeps nobody waiting.
func (m *monitored) goOn(queue string) {
	m.t.Helper()
	m.queue("resume", queue)
	m.await(20*time.Second, "the turns in line to be taken", func() bool {
		m.rdb.Publish(m.t.Context(), "muster:turns", queue) // nobody announces a resume: the worker would look by its interval
		return m.rdb.LLen(m.t.Context(), "asynq:{"+queue+"}:pending").Val() == 0
	})
}

// line commits two tasks of a new workspace and waits for its turn to be pending.
func (m *monitored) line(plan string) (ws uuid.UUID, turn string) {
	m.t.Helper()
	ws = storetest.NewWorkspace(m.t, m.env.Env, plan)
	done, err := m.api.Do(m.t.Context(), store.Scope{Workspace: ws}, nil, func(w *store.Work) (store.Answer, error) {
		task := store.NewTask{Agent: "yuki", Model: "openai", Prompt: "sleep=300ms tokens=1/1", TimeoutMS: 60_000, MaxAttempts: 3}
		_, err := w.Submit(m.t.Context(), []store.NewTask{task, task})
		return store.Answer{}, err
	})
	if err != nil || len(done.Turns) != 1 {
		m.t.Fatal(done.Turns, err)
	}
	for _, t := range done.Turns {
		m.turns.Enqueue(jobs.Turn(t))
	}
	turn = done.Turns[0].ID.String()
	m.await(20*time.Second, "the turn", func() bool { return m.state(plan, turn) != "" })
	return ws, turn
}

// state is the message's, empty when there is none.
func (m *monitored) state(queue, id string) string {
	return m.rdb.HGet(m.t.Context(), "asynq:{"+queue+"}:t:"+id, "state").Val()
}

// move takes a pending message to a state, as Asynq itself would.
func (m *monitored) move(queue, id, state string) {
	m.t.Helper()
	if state == "pending" {
		return
	}
	prefix := "asynq:{" + queue + "}:"
	later := redis.Z{Score: float64(time.Now().Add(time.Hour).Unix()), Member: id}
	_, err := m.rdb.TxPipelined(m.t.Context(), func(p redis.Pipeliner) error {
		p.LRem(m.t.Context(), prefix+"pending", 1, id)
		p.HSet(m.t.Context(), prefix+"t:"+id, "state", state)
		if state == "aggregating" {
			p.HSet(m.t.Context(), prefix+"t:"+id, "group", "group")
			p.SAdd(m.t.Context(), prefix+"groups", "group")
			p.ZAdd(m.t.Context(), prefix+"g:group", later)
			return nil
		}
		p.ZAdd(m.t.Context(), prefix+state, later)
		return nil
	})
	if err != nil {
		m.t.Fatal(err)
	}
}

// TestAsynqmonsActionsDoNoHarm does each action that Asynqmon's page would offer were it not read-only to the current turn of a
// workspace of its own, in each state that the action applies to, while a fleet works: nothing is lost, and no task runs twice.
// The log says how long after the action the workspace's first task started.
func TestAsynqmonsActionsDoNoHarm(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	s.vars["WORKER_CONCURRENCY"] = "60"
	s.start("scheduler", "scheduler")
	s.start("worker", "worker")
	conn, err := asynq.ParseRedisURI(s.env.RedisURL)
	if err != nil {
		t.Fatal(err)
	}
	writable := asynqmon.New(asynqmon.Options{RootPath: asynqmonPath, RedisConnOpt: conn})
	pages := httptest.NewServer(writable)
	rdb := s.env.Redis(t)
	m := &monitored{stack: s, pages: pages.URL, rdb: rdb, api: store.NewAPI(s.env.API(t)), turns: jobs.NewEnqueuer(rdb, zerolog.Nop())}
	t.Cleanup(func() { m.turns.Close(); pages.Close(); writable.Close() })

	began := time.Now()
	type subject struct {
		action string
		ws     uuid.UUID
		at     time.Time
	}
	var subjects []subject
	acted := func(ws uuid.UUID, action string) { subjects = append(subjects, subject{action, ws, s.moment()}) }
	lost := 0 // turns that no message stands for any more
	for _, a := range monActions() {
		if code, _ := m.send("http://"+s.procs["scheduler"].ops, a, "pro", uuid.NewString()); code != http.StatusMethodNotAllowed {
			t.Errorf("%s %s on Muster's own page is answered %d", a.method, a.path, code)
		}
		if a.state == "" {
			continue
		}
		m.queue("pause", "pro") // so that the turn stays where it is put
		ws, turn := m.line("pro")
		if n := s.count(`SELECT count(*) FROM workspace_load WHERE workspace_id = $1 AND turn = $2`, ws, turn); n != 1 {
			t.Fatalf("%s is not the turn of workspace %s", turn, ws)
		}
		if a.state == "active" {
			m.goOn("pro")
			m.await(20*time.Second, "the turn to be active", func() bool { return m.state("pro", turn) == "active" })
		} else {
			m.move("pro", turn, a.state)
		}
		m.act(a, "pro", turn)
		acted(ws, fmt.Sprintf("%s, %s %s", a.state, a.verb, a.form))
		if got, want := m.state("pro", turn), map[string]string{"archive": "archived", "run": "pending"}[a.verb]; got != want && a.verb != "cancel" {
			t.Errorf("%s %s: the message is %q, not %q", a.method, a.path, got, want)
		}
		if a.verb == "delete" || a.verb == "archive" {
			lost++
		}
		if a.state != "active" {
			m.goOn("pro")
		}
	}

	// A paused queue holds its turns, while others are served. A queue that holds a turn is not deleted, an empty one is.
	m.queue("pause", "starter")
	ws, _ := m.line("starter")
	other, _ := m.line("free")
	s.await(30*time.Second, "the other tier", func() bool {
		return s.count(`SELECT count(*) FROM tasks WHERE workspace_id = $1 AND status = 'succeeded'`, other) == 2
	})
	if n := s.count(`SELECT (SELECT count(*) FROM leases WHERE workspace_id = $1) + (SELECT count(*) FROM attempts WHERE workspace_id = $1)`, ws); n != 0 {
		t.Errorf("%d tasks were started from a paused queue", n)
	}
	m.queue("resume", "starter")
	acted(ws, "queue, pause and resume")
	s.await(60*time.Second, "the resumed queue to be empty", func() bool {
		return s.count(`SELECT count(*) FROM tasks WHERE workspace_id = $1 AND finished_at IS NULL`, ws) == 0 &&
			rdb.LLen(t.Context(), "asynq:{starter}:active").Val() == 0
	})
	m.queue("pause", "starter")
	ws, turn := m.line("starter")
	remove := monAction{method: "DELETE", path: "/queues/{qname}"}
	if code, answer := m.send(m.pages, remove, "starter", ""); code != http.StatusBadRequest {
		t.Errorf("a queue that holds a turn is deleted: %d %s", code, answer)
	}
	m.act(monAction{method: "DELETE", path: "/queues/{qname}/pending_tasks/{task_id}"}, "starter", turn)
	lost++
	m.queue("resume", "starter")
	m.act(remove, "starter", "")
	acted(ws, "queue, delete")

	s.await(60*time.Second, "all tasks", func() bool { return s.count(`SELECT count(*) FROM tasks WHERE finished_at IS NULL`) == 0 })
	for _, v := range subjects {
		var attempts, succeeded int
		var after float64
		if err := s.env.Admin(t).QueryRow(`SELECT (SELECT count(*) FROM tasks WHERE workspace_id = $1 AND status = 'succeeded'), count(*),
			coalesce(extract(epoch FROM min(started_at) - $2), 0)::float8 FROM attempts WHERE workspace_id = $1`, v.ws, v.at).Scan(&succeeded, &attempts, &after); err != nil {
			t.Fatal(err)
		}
		if succeeded != 2 || attempts != 2 {
			t.Errorf("%s: %d of 2 tasks succeeded, in %d attempts", v.action, succeeded, attempts)
		}
		t.Logf("%-28s the first task starts after %5.2f s", v.action, after)
	}
	if n := s.metric("scheduler", "muster_repaired_turns_total"); n < float64(lost) {
		t.Errorf("%v turns were issued anew, of %d that were lost", n, lost)
	}
	if len(subjects) != len(monActions())-1 { // pause and resume have one
		t.Errorf("%d actions have a verdict", len(subjects))
	}
	t.Logf("all within %.0f s", time.Since(began).Seconds())
	storetest.CheckLedger(t, s.env.Env)
}
