package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestCanaries lets several workspaces use every route at random, through real processes with debug logs, each with a
// word of its own in everything it sends. Its word may come back to it and to nobody else; no word and no secret may
// stand in a log, a metric, in Redis or in the operators' pages.
func TestCanaries(t *testing.T) {
	t.Parallel()
	const workspaces, operations, senders = 6, 1200, 6
	seed := cmp.Or(os.Getenv("MUSTER_TEST_SEED"), fmt.Sprint(time.Now().UnixNano()))
	t.Logf("MUSTER_TEST_SEED=%s", seed)
	h := fnv64(seed)

	s := newStack(t)
	z := &zoo{stack: s, ids: map[string][]string{}, statuses: map[int]int{}, answers: map[string]map[int]int{}}
	s.vars["LOG_LEVEL"] = "debug"
	s.vars["OPENAI_BASE_URL"] = z.watchModels(t) + "/v1"
	z.hooks = z.watchHooks(t)
	s.start("api", "api")
	s.start("worker", "worker")
	s.start("scheduler", "scheduler")
	patterns := z.published()
	for i := range workspaces {
		z.animals = append(z.animals, z.register(i))
	}
	for _, a := range z.animals {
		z.settleIn(a)
	}

	var wg sync.WaitGroup
	for n := range senders {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(h, uint64(n)))
			for range operations / senders {
				pattern := patterns[r.IntN(len(patterns))]
				if r.IntN(5) == 0 {
					pattern = []string{"POST /v1/tasks", "POST /v1/tasks/batch", "POST /v1/auth/login"}[r.IntN(3)]
				}
				z.act(r, pattern, z.animals[r.IntN(len(z.animals))])
			}
		})
	}
	wg.Wait()
	s.awaitAll(120 * time.Second)

	s.awaitAll(120 * time.Second)
	if z.modelCalls == 0 || z.hookCalls == 0 || z.own < operations/20 || z.statuses[200] == 0 || z.statuses[202] == 0 || z.statuses[404] == 0 || z.statuses[422] == 0 {
		t.Errorf("the run was too tame: %d model calls, %d answers with the asker's own word, answers by status %v", z.modelCalls, z.own, z.statuses)
	}
	extra := rand.New(rand.NewPCG(h, senders))
	for _, p := range patterns { // what chance has left out
		for tries := 0; !z.served(p) && !canaryRefused[p]; tries++ {
			if tries == 500 {
				t.Errorf("%s was never served: %v", p, z.answers[p])
				break
			}
			a := z.animals[extra.IntN(len(z.animals))]
			if p == "POST /v1/tasks/{id}/cancel" {
				z.act(extra, "POST /v1/tasks", a)
			}
			if strings.HasPrefix(p, "POST /v1/webhooks/{id}/") && tries%20 == 0 {
				z.act(extra, "POST /v1/webhooks", a)
				z.act(extra, "POST /v1/webhooks/{id}/test", a)
			}
			z.act(extra, p, a)
		}
	}
	places := z.searchEverywhere()
	t.Logf("%d operations on %d routes by %d workspaces, %d model calls, %d answers with the asker's own word, answers by status %v; %d words and secrets looked for in %s",
		operations, len(patterns), workspaces, z.modelCalls, z.own, z.statuses, z.words(), places)
}

func fnv64(s string) uint64 {
	h := uint64(14695981039346656037)
	for _, b := range []byte(s) {
		h = (h ^ uint64(b)) * 1099511628211
	}
	return h
}

// zoo is the workspaces of one run and what is known of them.
type zoo struct {
	*stack
	animals []*animal
	hooks   string // where the customers' webhooks are

	mu         sync.Mutex
	ids        map[string][]string // of all workspaces, by collection: everybody tries everybody's
	cursors    []string
	secrets    []string // tokens, keys and passwords that were handed out
	statuses   map[int]int
	answers    map[string]map[int]int // by route
	modelCalls int
	hookCalls  int
	own        int // answers that hold the asking workspace's word: the control that words would be seen
}

// animal is one workspace with its word.
type animal struct {
	word     string // in everything that it sends
	email    string
	password string
	ws       string

	keys []string // of several roles

	mu      sync.Mutex
	session string
	refresh string
	invites []string            // tokens
	ids     map[string][]string // by collection
}

// canaryRefused are routes that need what this run does not have: a mailed token, a signed event, a changed password, a
// workspace to spare.
var canaryRefused = map[string]bool{"POST /v1/auth/email/verify": true, "POST /v1/auth/password/reset": true, "POST /v1/billing/webhook": true,
	"POST /v1/auth/password": true, "DELETE /v1/workspace": true}

var secretField = regexp.MustCompile(`"(key|token|access_token|refresh_token|secret)":\s*"([^"]{20,})"`)

// published lists "METHOD /path" of OpenAPI; each must have an entry in the table of bodies or need none.
func (z *zoo) published() []string {
	z.t.Helper()
	var document struct {
		Paths map[string]map[string]json.RawMessage `json:"paths"`
	}
	if _, err := z.request("GET", "/openapi.json", "", "", nil, &document); err != nil {
		z.t.Fatal(err)
	}
	var all []string
	for path, methods := range document.Paths {
		for method := range methods {
			p := strings.ToUpper(method) + " " + path
			if _, ok := canaryBodies[p]; !ok && method != "get" {
				z.t.Fatalf("%s has no body in canaryBodies: every route takes part", p)
			}
			all = append(all, p)
		}
	}
	slices.Sort(all)
	return all
}

func (z *zoo) register(i int) *animal {
	z.t.Helper()
	a := &animal{word: fmt.Sprintf("canary%dx%08x", i, rand.Uint32()), ids: map[string][]string{}}
	a.email, a.password = a.word+"@example.com", "pass "+a.word
	var reg struct {
		Workspace    struct{ ID string }
		AccessToken  string `json:"access_token"`
		RefreshToken string `json:"refresh_token"`
	}
	if _, err := z.request("POST", "/v1/auth/register", "", "", map[string]string{"email": a.email, "password": a.password, "workspace_name": a.word}, &reg); err != nil {
		z.t.Fatal(err)
	}
	a.ws, a.session, a.refresh = reg.Workspace.ID, reg.AccessToken, reg.RefreshToken
	z.secrets = append(z.secrets, reg.AccessToken, reg.RefreshToken, a.password)
	z.ids["workspaces"] = append(z.ids["workspaces"], a.ws)
	plan := []string{"pro", "starter", "growth"}[i%3]
	if code, _, stderr := z.muster("workspace", "set-plan", a.ws, plan); code != 0 {
		z.t.Fatal(stderr)
	}
	if code, _, stderr := z.muster("workspace", "set-limit", a.ws, "requests_per_hour=1000000"); code != 0 {
		z.t.Fatal(stderr)
	}
	return a
}

// settleIn mints what a workspace acts with: keys of each role, tasks, an invitation.
func (z *zoo) settleIn(a *animal) {
	for _, role := range []string{"owner", "owner", "member", "viewer"} {
		var key struct{ ID, Key string }
		if _, err := z.request("POST", "/v1/api-keys", a.session, "", map[string]any{"name": "key " + a.word, "role": role}, &key); err != nil {
			z.t.Fatal(err)
		}
		a.keys = append(a.keys, key.Key)
		z.secrets = append(z.secrets, key.Key)
	}
	for i := range 2 {
		var invitation struct{ Token string }
		if _, err := z.request("POST", "/v1/invitations", a.session, "", map[string]any{"email": fmt.Sprintf("guest%d-%s@example.com", i, a.word), "role": "member"}, &invitation); err != nil {
			z.t.Fatal(err)
		}
		var joined struct{ User struct{ ID string } }
		if _, err := z.request("POST", "/v1/invitations/accept", "", "", map[string]any{"token": invitation.Token, "password": a.password}, &joined); err != nil {
			z.t.Fatal(err)
		}
		a.ids["members"] = append(a.ids["members"], joined.User.ID)
	}
}

// id is more often the workspace's own than anybody's.
func (z *zoo) id(r *rand.Rand, a *animal, collection string) string {
	a.mu.Lock()
	own := a.ids[collection]
	a.mu.Unlock()
	switch {
	case len(own) > 0 && r.IntN(3) == 0:
		return own[len(own)-1] // the newest: it may still run
	case len(own) > 0 && r.IntN(2) == 0:
		return own[r.IntN(len(own))]
	}
	return z.any(r, collection)
}

func (z *zoo) any(r *rand.Rand, collection string) string {
	z.mu.Lock()
	defer z.mu.Unlock()
	if list := z.ids[collection]; len(list) > 0 {
		return list[r.IntN(len(list))]
	}
	return "none"
}

// rubbish looks like a token and is nobody's.
func rubbish(r *rand.Rand) string {
	return fmt.Sprintf("mst_live_%030d%06d", r.IntN(1e9), r.IntN(1e6))
}

var idField = regexp.MustCompile(`"(?:id|user_id)":\s*"((task|key|inv|usr|ses|agt|sched|wh|evt)_[0-9a-z]+)"`)
var cursorField = regexp.MustCompile(`"next_cursor":\s*"([^"]+)"`)

var collectionOf = map[string]string{"task": "tasks", "key": "api-keys", "inv": "invitations", "usr": "members", "ses": "sessions", "agt": "agents", "sched": "schedules", "wh": "webhooks", "evt": "deliveries"}

// act sends one operation as the workspace, or as nobody, and looks at what comes back.
func (z *zoo) act(r *rand.Rand, pattern string, a *animal) {
	method, path, _ := strings.Cut(pattern, " ")
	for before, rest, ok := strings.Cut(path, "{"); ok; before, rest, ok = strings.Cut(path, "{") {
		_, after, _ := strings.Cut(rest, "}")
		path = before + z.id(r, a, before[strings.LastIndex(strings.TrimSuffix(before, "/"), "/")+1:len(before)-1]) + after
	}
	if method == "GET" {
		q := url.Values{}
		z.mu.Lock()
		if len(z.cursors) > 0 && r.IntN(3) == 0 {
			q.Set("cursor", z.cursors[r.IntN(len(z.cursors))]) // of any workspace and list
		}
		z.mu.Unlock()
		if r.IntN(4) == 0 {
			q.Set("limit", fmt.Sprint(r.IntN(5)))
		}
		if r.IntN(8) == 0 {
			q.Set("metadata.word", z.animals[r.IntN(len(z.animals))].word)
		}
		if len(q) > 0 {
			path += "?" + q.Encode()
		}
	}
	var body io.Reader
	if make := canaryBodies[pattern]; make != nil {
		raw, _ := json.Marshal(make(r, z, a))
		body = bytes.NewReader(raw)
	}
	req, err := http.NewRequest(method, z.base+path, body)
	if err != nil {
		z.t.Error(err)
		return
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("User-Agent", "agent "+a.word)
	if r.IntN(3) == 0 {
		req.Header.Set("Idempotency-Key", fmt.Sprint("shared-", r.IntN(20))) // the same keys for all workspaces
	}
	if r.IntN(20) != 0 && pattern != "POST /v1/invitations/accept" {
		req.Header.Set("Authorization", "Bearer "+z.token(r, a))
	}
	if strings.HasPrefix(pattern, "GET /v1/tasks/{id}") && r.IntN(3) == 0 {
		req.Header.Set("Prefer", "wait=1")
	}
	z.send(pattern, req, a)
}

// token is one of the workspace's own credentials.
func (z *zoo) token(r *rand.Rand, a *animal) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if r.IntN(2) == 0 {
		return a.session
	}
	return a.keys[r.IntN(len(a.keys))]
}

func (z *zoo) send(pattern string, req *http.Request, a *animal) {
	res, err := z.client.Do(req)
	if err != nil {
		z.t.Errorf("%s: %v", pattern, err)
		return
	}
	defer res.Body.Close()
	body := io.Reader(res.Body)
	if res.Header.Get("Content-Type") == "text/event-stream" {
		body = io.LimitReader(res.Body, int64(len("retry: 3000\nid: 0\n\n"))) // it does not end by itself
	}
	raw, err := io.ReadAll(body)
	if err != nil {
		z.t.Errorf("%s: %v", pattern, err)
		return
	}
	seen := fmt.Sprint(res.Header) + string(raw)
	for _, other := range z.animals {
		if other != a && strings.Contains(seen, other.word) {
			z.t.Errorf("%s, asked by %s, shows the word of %s:\n%d %.2000s", pattern, a.word, other.word, res.StatusCode, seen)
		}
	}
	if res.StatusCode >= 500 && res.StatusCode != http.StatusServiceUnavailable {
		z.t.Errorf("%s: %d %s", pattern, res.StatusCode, raw)
	}
	a.learn(pattern, res.StatusCode, raw)
	z.mu.Lock()
	defer z.mu.Unlock()
	z.statuses[res.StatusCode]++
	if strings.Contains(seen, a.word) {
		z.own++
	}
	if z.answers[pattern] == nil {
		z.answers[pattern] = map[int]int{}
	}
	z.answers[pattern][res.StatusCode]++
	for _, m := range secretField.FindAllStringSubmatch(string(raw), -1) {
		z.secrets = append(z.secrets, m[2])
	}
	for _, m := range idField.FindAllStringSubmatch(string(raw), -1) {
		if c := collectionOf[m[2]]; len(z.ids[c]) < 500 {
			z.ids[c] = append(z.ids[c], m[1])
		}
	}
	for _, m := range cursorField.FindAllStringSubmatch(string(raw), -1) {
		z.cursors = append(z.cursors, m[1])
	}
}

// learn keeps what an answer gives the workspace to go on with.
func (a *animal) learn(pattern string, status int, raw []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var answer struct {
		Workspace    struct{ ID string }
		AccessToken  string `json:"access_token"`
		RefreshToken string `json:"refresh_token"`
		Token        string
	}
	_ = json.Unmarshal(raw, &answer) // other shapes have none of it
	switch {
	case status >= 300:
	case answer.AccessToken != "" && answer.Workspace.ID == a.ws && pattern != "POST /v1/invitations/accept":
		a.session, a.refresh = answer.AccessToken, answer.RefreshToken
	case pattern == "POST /v1/invitations":
		a.invites = append(a.invites, answer.Token)
	}
	for _, m := range idField.FindAllStringSubmatch(string(raw), -1) {
		a.ids[collectionOf[m[2]]] = append(a.ids[collectionOf[m[2]]], m[1])
	}
}

func (z *zoo) served(pattern string) bool {
	z.mu.Lock()
	defer z.mu.Unlock()
	for status := range z.answers[pattern] {
		if status < 400 {
			return true
		}
	}
	return false
}

func (z *zoo) words() int { return len(z.animals) + len(z.secrets) }

// searchEverywhere looks for every word and secret where no customer's content may be, and says where it looked.
func (z *zoo) searchEverywhere() string {
	z.t.Helper()
	places := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(z.procs)) {
		places["the log of "+name] = z.log(name)
		for _, page := range []string{"/metrics", "/ops/asynqmon/api/queues", "/ops/asynqmon/api/queues/pro/active_tasks", "/ops/asynqmon/api/queues/pro/archived_tasks"} {
			if res, err := z.client.Get("http://" + z.procs[name].ops + page); err == nil {
				raw, _ := io.ReadAll(res.Body)
				res.Body.Close()
				places[name+page] = string(raw)
			}
		}
	}
	for name, file := range map[string]string{"the log of Postgres": z.env.Postgres.LogFile(), "the log of Redis": z.env.RedisServer.LogFile()} {
		raw, err := os.ReadFile(file)
		if err != nil {
			z.t.Fatal(err)
		}
		places[name] = string(raw)
	}
	places["Redis"] = z.dumpRedis()
	for place, text := range places {
		if text == "" {
			z.t.Errorf("%s is empty: nothing was looked at", place)
		}
		for _, a := range z.animals {
			if i := strings.Index(text, a.word); i >= 0 {
				z.t.Errorf("%s holds the word of a workspace: …%s…", place, text[max(0, i-300):min(len(text), i+100)])
			}
		}
		for _, secret := range z.secrets {
			if i := strings.Index(text, secret); i >= 0 {
				z.t.Errorf("%s holds a secret: …%s…", place, text[max(0, i-300):min(len(text), i+20)])
			}
		}
	}
	return strings.Join(slices.Sorted(maps.Keys(places)), ", ")
}

// dumpRedis is every key with its value, as Redis stores it.
func (z *zoo) dumpRedis() string {
	z.t.Helper()
	var b strings.Builder
	rdb, ctx := z.env.Redis(z.t), z.t.Context()
	keys := rdb.Scan(ctx, 0, "*", 1000).Iterator()
	for keys.Next(ctx) {
		fmt.Fprintln(&b, keys.Val())
		switch kind := rdb.Type(ctx, keys.Val()).Val(); kind {
		case "string":
			fmt.Fprintln(&b, rdb.Get(ctx, keys.Val()).Val())
		case "hash":
			fmt.Fprintln(&b, rdb.HGetAll(ctx, keys.Val()).Val())
		case "list":
			fmt.Fprintln(&b, rdb.LRange(ctx, keys.Val(), 0, -1).Val())
		case "set":
			fmt.Fprintln(&b, rdb.SMembers(ctx, keys.Val()).Val())
		case "zset":
			fmt.Fprintln(&b, rdb.ZRange(ctx, keys.Val(), 0, -1).Val())
		case "none": // it was there when the names were read, and its time was over
		default:
			z.t.Errorf("Redis holds a %s, which this test does not read", kind)
		}
	}
	if err := keys.Err(); err != nil {
		z.t.Fatal(err)
	}
	return b.String()
}
