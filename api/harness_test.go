package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/api/logtest"
	"github.com/generic-corp/muster/api/ratelimit"
	"github.com/generic-corp/muster/api/webhooks"
	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }

// world is one API on one database, listening on a real port.
type world struct {
	t     testing.TB
	env   *storetest.Env
	store *store.API
	admin *sqlx.DB
	api   *Server
	url   string
	out   outbox
	log   *logtest.Log
}

// outbox records what was handed over after commits.
type outbox struct {
	mu      sync.Mutex
	turns   []store.Turn
	cancels []uuid.UUID
}

func (o *outbox) Enqueue(turns ...store.Turn) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.turns = append(o.turns, turns...)
}

func (o *outbox) Cancel(ids ...uuid.UUID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.cancels = append(o.cancels, ids...)
}

var testKeys = [][]byte{[]byte("the current signing key of the tests"), []byte("an earlier signing key of the tests!")}

// newWorld starts an API; change (nil: nothing) alters its configuration.
func newWorld(t testing.TB, change func(*Config)) *world {
	t.Helper()
	return newWorldOn(t, storetest.New(t), change)
}

// newWorldOn starts one more API on a database, like another process beside the first.
func newWorldOn(t testing.TB, env *storetest.Env, change func(*Config)) *world {
	t.Helper()
	w := &world{t: t, env: env, store: store.NewAPI(env.API(t)), admin: env.Admin(t), log: &logtest.Log{}}
	cfg := Config{Store: w.store, Enqueuer: &w.out, Canceler: &w.out, SigningKeys: testKeys, Log: zerolog.New(w.log), CredentialMS: 200, NoteInterval: 50 * time.Millisecond}
	limits, err := ratelimit.New(ratelimit.Config{Redis: env.Redis(t), Timeout: 20 * time.Second, Log: zerolog.New(w.log)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { limits.Close() })
	cfg.RateLimits, cfg.AddressFactor = limits, 100 // every client of a test comes from one address
	if cfg.Webhooks.Keys, err = webhooks.NewKeys(testKeys); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(&cfg)
	}
	api, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.api, w.url = api, "http://"+ln.Addr().String()
	served := make(chan error, 1)
	go func() { served <- api.Serve(ln) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := api.Shutdown(ctx); err != nil {
			t.Errorf("shut down: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return w
}

// client sends requests with one credential and holds every answer against OpenAPI.
type client struct {
	*world
	credential string
	ws, user   uuid.UUID
	session    uuid.UUID
}

func (w *world) anonymous() *client { return &client{world: w} }

func (w *world) with(credential string) *client { return &client{world: w, credential: credential} }

// owner registers a new workspace on the plan (empty: free) and returns its owner, signed in.
func (w *world) owner(plan string) *client {
	w.t.Helper()
	_, hash := newToken(refreshPrefix)
	in, err := w.store.Register(w.t.Context(), store.NewAccount{Email: uuid.NewString() + "@example.com", PasswordHash: "none", WorkspaceName: "Test"},
		store.NewSession{RefreshHash: hash})
	if err != nil {
		w.t.Fatal(err)
	}
	if plan != "" {
		p, ok := store.PlanByID(plan)
		if !ok {
			w.t.Fatalf("no plan %q", plan)
		}
		if _, err := store.NewSystem(w.env.System(w.t)).SetPlan(w.t.Context(), in.Workspace.ID, p, "", "", store.Operator{Name: "test"}); err != nil {
			w.t.Fatal(err)
		}
	}
	return w.signIn(in.Workspace.ID, in.User.ID, in.Session)
}

func (w *world) signIn(ws, user, session uuid.UUID) *client {
	w.t.Helper()
	token, err := w.api.tokens.issue(ws, user, session)
	if err != nil {
		w.t.Fatal(err)
	}
	return &client{world: w, credential: token, ws: ws, user: user, session: session}
}

// colleague adds a user with a role to the client's workspace and signs them in.
func (c *client) colleague(role string) *client {
	c.t.Helper()
	user, session := store.NewID(), store.NewID()
	for _, q := range []struct {
		sql  string
		args []any
	}{
		{`INSERT INTO users (id, email, password_hash) VALUES ($1, $2, 'none')`, []any{user, user.String() + "@example.com"}},
		{`INSERT INTO members (workspace_id, user_id, role) VALUES ($1, $2, $3)`, []any{c.ws, user, role}},
		{`INSERT INTO sessions (workspace_id, id, user_id, expires_at) VALUES ($1, $2, $3, now() + interval '1 day')`, []any{c.ws, session, user}},
	} {
		c.exec(q.sql, q.args...)
	}
	return c.signIn(c.ws, user, session)
}

func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	if _, err := w.admin.Exec(sql, args...); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
}

// mayRequest is an operator's override of the requests per hour.
func (c *client) mayRequest(perHour int64) {
	c.t.Helper()
	if _, err := store.NewSystem(c.env.System(c.t)).SetLimits(c.t.Context(), c.ws, map[string]int64{"requests_per_hour": perHour}, store.Operator{Name: "test"}); err != nil {
		c.t.Fatal(err)
	}
}

// count runs a query for one number as the superuser.
func (w *world) count(sql string, args ...any) int {
	w.t.Helper()
	var n int
	if err := w.admin.Get(&n, sql, args...); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
	return n
}

// reply is an answer that OpenAPI allows.
type reply struct {
	t      testing.TB
	status int
	header http.Header
	body   []byte
}

// header pairs for do.
type headers map[string]string

func (c *client) get(path string, h ...headers) *reply {
	c.t.Helper()
	return c.do(http.MethodGet, path, nil, h...)
}

func (c *client) post(path string, body any, h ...headers) *reply {
	c.t.Helper()
	return c.do(http.MethodPost, path, body, h...)
}

// do sends a request; body is marshalled unless it is a string (sent as it is) or nil.
func (c *client) do(method, path string, body any, h ...headers) *reply {
	c.t.Helper()
	r, err := c.try(method, path, body, h...)
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	return r
}

var testTransport = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}, Timeout: 70 * time.Second}

func (c *client) try(method, path string, body any, h ...headers) (*reply, error) {
	var reader io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		reader = strings.NewReader(b)
	default:
		raw, err := json.Marshal(b)
		if err != nil {
			return nil, err
		}
		reader = bytes.NewReader(raw)
	}
	req, err := http.NewRequest(method, c.url+path, reader)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.credential != "" {
		req.Header.Set("Authorization", "Bearer "+c.credential)
	}
	for _, pairs := range h {
		for name, value := range pairs {
			req.Header.Set(name, value)
		}
	}
	resp, err := testTransport.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	r := &reply{t: c.t, status: resp.StatusCode, header: resp.Header, body: raw}
	if method != http.MethodHead {
		if fault := contractFault(method, req.URL.Path, r); fault != "" {
			c.t.Errorf("%s %s → %d breaks the contract: %s\n%s", method, path, r.status, fault, raw[:min(len(raw), 2000)])
		}
	}
	return r, nil
}

// want fails the test unless the status is this one.
func (r *reply) want(status int) *reply {
	r.t.Helper()
	if r.status != status {
		r.t.Fatalf("status %d, want %d: %s", r.status, status, r.body[:min(len(r.body), 2000)])
	}
	return r
}

// problem fails the test unless the answer is this problem.
func (r *reply) problem(p problem) *reply {
	r.t.Helper()
	r.want(p.status)
	if got := r.str("type"); got != problemBase+p.slug {
		r.t.Fatalf("problem %s, want %s: %s", got, p.slug, r.body)
	}
	return r
}

// at reads a value by a path such as data.0.id; nil when there is none.
func (r *reply) at(path string) any {
	r.t.Helper()
	var v any
	if err := json.Unmarshal(r.body, &v); err != nil {
		r.t.Fatalf("answer is not JSON: %v: %s", err, r.body)
	}
	for part := range strings.SplitSeq(path, ".") {
		switch n := v.(type) {
		case map[string]any:
			v = n[part]
		case []any:
			var i int
			if _, err := fmt.Sscan(part, &i); err != nil || i >= len(n) {
				return nil
			}
			v = n[i]
		default:
			return nil
		}
	}
	return v
}

func (r *reply) str(path string) string {
	r.t.Helper()
	s, _ := r.at(path).(string)
	return s
}

func (r *reply) num(path string) float64 {
	r.t.Helper()
	n, ok := r.at(path).(float64)
	if !ok {
		r.t.Fatalf("no number at %s: %s", path, r.body)
	}
	return n
}

func (r *reply) list(path string) []any {
	r.t.Helper()
	l, ok := r.at(path).([]any)
	if !ok {
		r.t.Fatalf("no list at %s: %s", path, r.body)
	}
	return l
}

// fields are the names in errors.
func (r *reply) fields() []string {
	r.t.Helper()
	var names []string
	for _, e := range r.list("errors") {
		names = append(names, e.(map[string]any)["field"].(string))
	}
	return names
}

// fleet is a worker for tests that need tasks to run.
type fleet struct {
	*store.Fleet
	w      *world
	worker uuid.UUID
}

func (w *world) fleet() *fleet {
	w.t.Helper()
	f := &fleet{Fleet: store.NewFleet(w.env.Worker(w.t)), w: w, worker: store.NewID()}
	w.t.Cleanup(f.Close)
	if err := f.Register(w.t.Context(), store.Worker{ID: f.worker, Name: "test", Version: "test", Slots: 10}); err != nil {
		w.t.Fatal(err)
	}
	return f
}

// start claims the workspace's best task.
func (f *fleet) start(ws uuid.UUID) store.ClaimedTask {
	f.w.t.Helper()
	var turn uuid.UUID
	if err := f.w.admin.Get(&turn, `SELECT turn FROM workspace_load WHERE workspace_id = $1`, ws); err != nil {
		f.w.t.Fatalf("no turn: %v", err)
	}
	claimed, err := f.Claim(f.w.t.Context(), &store.Claim{Workspace: ws, Turn: turn, Lease: uuid.New(), Worker: f.worker}, false)
	if err != nil || claimed.Outcome != store.ClaimWon {
		f.w.t.Fatalf("claim: %v %v", claimed.Outcome, err)
	}
	return claimed.Task
}

// finish ends a claimed task.
func (f *fleet) finish(task store.ClaimedTask, outcome store.Outcome, usage store.AttemptUsage) {
	f.w.t.Helper()
	fin := &store.Finish{Workspace: task.Workspace, Task: task.ID, Lease: task.Lease, Outcome: outcome, Usage: usage}
	if outcome == store.Succeeded {
		fin.Result = json.RawMessage(`{"output": "done", "data": null}`)
	} else {
		fin.Error = &store.TaskError{Code: "provider_error", Message: "the provider refused", Retryable: outcome == store.Retry}
	}
	done, err := f.Finish(f.w.t.Context(), fin, false)
	if err != nil || !done.Accepted {
		f.w.t.Fatalf("finish: %+v %v", done, err)
	}
}

func taskID(t *testing.T, text string) uuid.UUID {
	t.Helper()
	id, ok := store.ParseID(store.TaskPrefix, text)
	if !ok {
		t.Fatalf("not a task id: %q", text)
	}
	return id
}
