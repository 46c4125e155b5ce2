//go:build unix

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/generic-corp/muster/store"
)

// tier is workspaces of one plan.
type tier struct {
	plan  string
	cap   int
	count int
}

// tenant is a workspace as its customer's programs use it.
type tenant struct {
	name, id, key string
	cap           int
}

// load is the crowd: customers that send tasks and ask again, with the same Idempotency-Key, until each is acknowledged.
type load struct {
	s       *stage
	client  *http.Client
	tenants []*tenant
	weights []*tenant     // each as often as its cap: nobody is sent more than it can do
	long    *tenant       // of the agents that are to outlast a cut
	seats   chan struct{} // requests at once

	ctx     context.Context // of requests: ends with the run
	senders sync.WaitGroup
	numbers atomic.Int64
	acks    atomic.Int64

	mu      sync.Mutex
	rng     *rand.Rand
	answers []event // to requests, for the evidence of faults
}

// newLoad registers the customers over HTTP and lifts the limits that would hold the load back.
func newLoad(ctx context.Context, s *stage) (*load, error) {
	l := &load{s: s, ctx: ctx, rng: rand.New(rand.NewPCG(s.cfg.seed, 2)), seats: make(chan struct{}, 100),
		client: &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 100}}}
	tiers := append(slices.Clone(s.cfg.crowd), tier{"pro", 10, 1})
	for i, tr := range tiers {
		for n := range tr.count {
			name := fmt.Sprintf("%s-%d", tr.plan, n+1)
			if i == len(tiers)-1 {
				name = "long"
			}
			t, err := l.register(ctx, name, tr)
			if err != nil {
				return nil, fmt.Errorf("register %s: %w", name, err)
			}
			l.tenants = append(l.tenants, t)
		}
	}
	l.long = l.tenants[len(l.tenants)-1]
	l.tenants = l.tenants[:len(l.tenants)-1]
	for _, t := range l.tenants {
		l.weights = append(l.weights, slices.Repeat([]*tenant{t}, t.cap)...)
	}
	return l, nil
}

func (l *load) register(ctx context.Context, name string, tr tier) (*tenant, error) {
	var in struct {
		Workspace   struct{ ID string }
		AccessToken string `json:"access_token"`
	}
	if _, err := l.request(ctx, "POST", "/v1/auth/register", "", "", map[string]string{"email": name + "@example.com",
		"password": "correct horse battery", "workspace_name": name}, &in); err != nil {
		return nil, err
	}
	ws, ok := store.ParseID(store.WorkspacePrefix, in.Workspace.ID)
	plan, known := store.PlanByID(tr.plan)
	if !ok || !known {
		return nil, fmt.Errorf("no workspace %q or no plan %q", in.Workspace.ID, tr.plan)
	}
	customer, err := l.stripeCustomer(ctx, name)
	if err != nil {
		return nil, err
	}
	system := store.NewSystem(l.s.env.System(l.s.host))
	if _, err := system.SetPlan(ctx, ws, plan, customer, "", operator); err != nil {
		return nil, err
	}
	if _, err := system.SetLimits(ctx, ws, map[string]int64{"concurrency": int64(tr.cap), "requests_per_hour": 1_000_000, "max_waiting": 100_000,
		"provider_budget_microusd": 1_000_000_000, "agent_ms": 1_000_000_000}, operator); err != nil {
		return nil, err
	}
	var key struct{ Key string }
	if _, err := l.request(ctx, "POST", "/v1/api-keys", in.AccessToken, "", map[string]any{"name": "chaos"}, &key); err != nil {
		return nil, err
	}
	l.s.hist.add(event{What: workspace, WS: name, Workspace: ws.String(), Cap: tr.cap})
	return &tenant{name: name, id: ws.String(), key: key.Key, cap: tr.cap}, nil
}

// stripeCustomer makes a customer at the stand-in.
func (l *load) stripeCustomer(ctx context.Context, name string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, "POST", l.s.vars["STRIPE_API_BASE"]+"/v1/customers", strings.NewReader("name="+name))
	if err != nil {
		return "", err
	}
	req.Header.Set("Authorization", "Bearer "+l.s.vars["STRIPE_SECRET_KEY"])
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	res, err := l.client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	var customer struct{ ID string }
	if err := json.NewDecoder(res.Body).Decode(&customer); err != nil || customer.ID == "" {
		return "", fmt.Errorf("make a customer at Stripe's stand-in: %d %w", res.StatusCode, err)
	}
	return customer.ID, nil
}

// answer is what a request brought.
type answer struct {
	status   int // 0: none came
	replayed bool
}

// request sends JSON and decodes the answer.
func (l *load) request(ctx context.Context, method, path, token, key string, body, into any) (a answer, err error) {
	var reader io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return a, err
		}
		reader = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, l.s.api+path, reader)
	if err != nil {
		return a, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	res, err := l.client.Do(req)
	if err != nil {
		return a, err
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		return a, err
	}
	a = answer{status: res.StatusCode, replayed: res.Header.Get("Idempotent-Replayed") == "true"}
	if a.status >= 400 {
		return a, fmt.Errorf("%s %s: %d %s", method, path, a.status, raw)
	}
	if into == nil {
		return a, nil
	}
	return a, json.Unmarshal(raw, into)
}

// run sends tasks at the run's rate until ctx ends, whatever becomes of earlier ones.
func (l *load) run(ctx context.Context) {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	due, last := 0.0, time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			due += l.s.cfg.rate * now.Sub(last).Seconds()
			last = now
		}
		for ; due >= 1; due-- {
			l.mu.Lock()
			batch, t := 1, l.weights[l.rng.IntN(len(l.weights))]
			if l.rng.IntN(20) == 0 {
				batch = 5
			}
			prompts := make([]prompt, batch)
			for i := range prompts {
				prompts[i] = l.task()
			}
			l.mu.Unlock()
			due -= float64(batch - 1)
			l.send(t, prompts)
		}
	}
}

// prompt is what a task asks the stand-in for.
type prompt struct {
	sleep time.Duration
	want  string // the state that the task ends in
}

// task makes one up: seven of ten are short, one of fifty is refused by the model. mu is held.
func (l *load) task() prompt {
	p := prompt{want: "succeeded"}
	between := func(low, high int) time.Duration {
		return time.Duration(low+l.rng.IntN(high-low)) * time.Millisecond
	}
	switch n := l.rng.IntN(100); {
	case n < 70:
		p.sleep = between(20, 400)
	case n < 96:
		p.sleep = between(400, 3000)
	default:
		p.sleep = between(5000, 12000)
	}
	if l.rng.IntN(50) == 0 {
		p.want = "failed"
	}
	return p
}

// burst sends tasks at once, so that turns stand in line.
func (l *load) burst(n int) {
	for i := range n {
		l.mu.Lock()
		p := prompt{sleep: time.Duration(500+l.rng.IntN(1000)) * time.Millisecond, want: "succeeded"}
		l.mu.Unlock()
		l.send(l.weights[i*7%len(l.weights)], []prompt{p})
	}
}

// send submits tasks as one request, in the background, and asks again until they are acknowledged.
func (l *load) send(t *tenant, prompts []prompt) {
	first := int(l.numbers.Add(int64(len(prompts)))) - len(prompts) + 1
	key := fmt.Sprintf("request-%d", first)
	var tasks []map[string]any
	for i, p := range prompts {
		text := fmt.Sprintf("n=%d ws=%s sleep=%s tokens=10/20", first+i, t.name, p.sleep)
		if p.want == "failed" {
			text += " status=400"
		}
		tasks = append(tasks, map[string]any{"prompt": text, "timeout_seconds": 300})
		l.s.hist.add(event{What: submitted, N: first + i, Key: key, WS: t.name, Want: p.want})
	}
	l.senders.Go(func() {
		_, err := l.submit(t, key, tasks)
		for i := range prompts {
			if err != nil {
				l.s.hist.add(event{What: abandoned, N: first + i, Key: key, Note: err.Error()})
			}
		}
	})
}

// submit asks until there is an answer, and records what it says.
func (l *load) submit(t *tenant, key string, tasks []map[string]any) (ids []string, err error) {
	var first int
	_, _ = fmt.Sscanf(key, "request-%d", &first)
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		ids, err := l.ask(t, key, tasks, first)
		if err == nil || l.ctx.Err() != nil {
			return ids, err
		}
		var final permanent
		if errors.As(err, &final) {
			l.s.host.Errorf("%s: %v", key, err)
			return nil, err
		}
		pause(l.ctx, wait)
	}
}

// permanent is an answer that no repeat changes.
type permanent struct{ error }

func (l *load) ask(t *tenant, key string, tasks []map[string]any, first int) (ids []string, err error) {
	l.seats <- struct{}{}
	defer func() { <-l.seats }()
	began := time.Now()
	type task struct{ ID string }
	var a answer
	if len(tasks) == 1 {
		var one task
		a, err = l.request(l.ctx, "POST", "/v1/tasks", t.key, key, tasks[0], &one)
		ids = []string{one.ID}
	} else {
		var many struct{ Data []task }
		a, err = l.request(l.ctx, "POST", "/v1/tasks/batch", t.key, key, map[string]any{"tasks": tasks}, &many)
		for _, one := range many.Data {
			ids = append(ids, one.ID)
		}
	}
	e := event{What: answered, Key: key, Status: fmt.Sprint(a.status), Took: time.Since(began).Milliseconds(), Replayed: a.replayed}
	e.At = l.s.hist.add(e)
	l.mu.Lock()
	l.answers = append(l.answers, e)
	l.mu.Unlock()
	switch {
	case err == nil:
		if len(ids) != len(tasks) {
			return nil, permanent{fmt.Errorf("%d tasks are acknowledged of %d", len(ids), len(tasks))}
		}
		for i, id := range ids {
			l.s.hist.add(event{What: acked, N: first + i, Key: key, Task: id, Replayed: a.replayed})
		}
		l.acks.Add(int64(len(ids)))
		return ids, nil
	case a.status >= 400 && a.status < 500 && a.status != http.StatusConflict && a.status != http.StatusTooManyRequests:
		return nil, permanent{err}
	}
	return nil, err
}

// lasting sends agents that run for so long, waits until they run, and returns a function that tells the calls of those that
// still do.
func (l *load) lasting(ctx context.Context, n int, d time.Duration) (still func() []event, err error) {
	first := int(l.numbers.Load()) + 1
	for range n {
		l.send(l.long, []prompt{{sleep: d, want: "succeeded"}})
	}
	still = func() []event {
		return slices.DeleteFunc(l.s.models.running(), func(e event) bool { return e.WS != l.long.name || e.N < first || e.Sleep != d.String() })
	}
	return still, until(ctx, 30*time.Second, "long agents to run", func() bool { return len(still()) >= n })
}

// probe sends a small task to the workspace of the long ones and returns how long it took to succeed.
func (l *load) probe(ctx context.Context) error {
	n := int(l.numbers.Add(1))
	key := fmt.Sprintf("request-%d", n)
	l.s.hist.add(event{What: submitted, N: n, Key: key, WS: l.long.name, Want: "succeeded"})
	ids, err := l.submit(l.long, key, []map[string]any{{"prompt": fmt.Sprintf("n=%d ws=%s sleep=1ms tokens=1/1", n, l.long.name)}})
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		var task struct{ Status string }
		if _, err := l.request(ctx, "GET", "/v1/tasks/"+ids[0], l.long.key, "", nil, &task); err == nil && task.Status == "succeeded" {
			return nil
		}
		pause(ctx, 50*time.Millisecond)
	}
	return ctx.Err()
}

func (l *load) acked() int { return int(l.acks.Load()) }

// wait returns when every request is acknowledged.
func (l *load) wait() { l.senders.Wait() }

// since counts the answers since then, by status, and their slowest acknowledgement.
func (l *load) since(at int64) (byStatus map[string]int, slowest time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	byStatus = map[string]int{}
	for _, e := range l.answers {
		if e.At >= at {
			byStatus[e.Status]++
			slowest = max(slowest, time.Duration(e.Took)*time.Millisecond)
			if e.Replayed {
				byStatus["replayed"]++
			}
		}
	}
	return byStatus, slowest
}

// readFinals reads every task's end, and each workspace's used time, as the customers see them.
func (l *load) readFinals(ctx context.Context) error {
	for _, t := range append(slices.Clone(l.tenants), l.long) {
		for cursor := ""; ; {
			var page struct {
				Data []struct {
					ID, Status string
					Error      *struct{ Code string }
				}
				NextCursor *string `json:"next_cursor"`
			}
			if _, err := l.request(ctx, "GET", "/v1/tasks?limit=200&cursor="+cursor, t.key, "", nil, &page); err != nil {
				return fmt.Errorf("read the tasks of %s: %w", t.name, err)
			}
			for _, task := range page.Data {
				e := event{What: final, WS: t.name, Task: task.ID, Status: task.Status}
				if task.Error != nil {
					e.Code = task.Error.Code
				}
				l.s.hist.add(e)
			}
			if page.NextCursor == nil {
				break
			}
			cursor = *page.NextCursor
		}
		var q struct {
			UsedMS int64 `json:"used_ms"`
		}
		if _, err := l.request(ctx, "GET", "/v1/quota", t.key, "", nil, &q); err != nil {
			return fmt.Errorf("read the quota of %s: %w", t.name, err)
		}
		l.s.hist.add(event{What: quota, WS: t.name, Used: q.UsedMS})
	}
	return nil
}
