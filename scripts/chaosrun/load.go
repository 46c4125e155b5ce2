//go:build unix

package main

import (
	"context"
	"encoding/json"
	"fmt"
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
	plan          string
	cap           int
	schedule      string // its schedule's id; "" for none
}

// load is the crowd: customers that send tasks and ask again, with the same Idempotency-Key, until each is acknowledged; what
// they want of their tasks, and what they do with them later, is in wishes.go and customers.go.
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
	answers []event            // to requests, for the evidence of faults
	idle    map[string]*tenant // acknowledged tasks with which their customers have nothing in mind; see cancelOne
}

// newLoad registers the customers over HTTP and lifts the limits that would hold the load back.
func newLoad(ctx context.Context, s *stage) (*load, error) {
	l := &load{s: s, ctx: ctx, rng: rand.New(rand.NewPCG(s.cfg.seed, 2)), seats: make(chan struct{}, 100), idle: map[string]*tenant{},
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
	if err := l.furnish(ctx); err != nil {
		return nil, err
	}
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
	return &tenant{name: name, id: ws.String(), key: key.Key, plan: tr.plan, cap: tr.cap}, nil
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
			t, wishes := l.weights[l.rng.IntN(len(l.weights))], l.wishes()
			l.mu.Unlock()
			due -= float64(len(wishes) - 1)
			l.send(t, wishes)
		}
	}
}

// burst sends tasks at once, so that turns stand in line.
func (l *load) burst(n int) {
	for i := range n {
		l.mu.Lock()
		w := wish{sleep: l.between(500, 1500), want: store.StatusSucceeded}
		l.mu.Unlock()
		l.send(l.weights[i*7%len(l.weights)], []wish{w})
	}
}

// send submits tasks as one request, in the background, asks again until they are acknowledged, and does what else their
// customer does with them.
func (l *load) send(t *tenant, wishes []wish) {
	first := int(l.numbers.Add(int64(len(wishes)))) - len(wishes) + 1
	l.senders.Go(func() {
		ids, err := l.submit(t, first, wishes)
		if err != nil || len(ids) == 0 {
			return
		}
		if g := wishes[0].group; g != nil {
			l.followGroup(t, g.named(first), ids)
			return
		}
		for i, w := range wishes {
			l.senders.Go(func() { l.follow(t, w, ids[i]) })
		}
	})
}

// submit asks until the tasks are acknowledged, or refused because they would have expired, which names none; the first has
// the given number.
func (l *load) submit(t *tenant, first int, wishes []wish) (ids []string, err error) {
	key, path, now := fmt.Sprintf("request-%d", first), "/v1/tasks", time.Now()
	bodies := make([]map[string]any, len(wishes))
	perishable := false
	for i, w := range wishes {
		e := event{What: submitted, N: first + i, Key: key, WS: t.name, Want: w.want, Priority: w.priority, Attempts: w.attempts}
		bodies[i] = w.body(first, &e, now)
		perishable = perishable || e.ExpiresAt != 0
		l.s.hist.add(e)
	}
	var said struct {
		ID   string
		Data []struct{ ID string }
	}
	var body any = bodies[0]
	if len(bodies) > 1 {
		path, body = "/v1/tasks/batch", map[string]any{"tasks": bodies}
	}
	a, err := l.insist(t, key, path, body, &said)
	for _, one := range said.Data {
		ids = append(ids, one.ID)
	}
	if len(bodies) == 1 {
		ids = []string{said.ID}
	}
	switch {
	case a.status == http.StatusUnprocessableEntity && perishable:
		l.each(first, len(wishes), event{What: refused, Key: key})
		return nil, nil
	case err == nil && len(ids) != len(wishes):
		err = fmt.Errorf("%d tasks are acknowledged of %d", len(ids), len(wishes))
	}
	if err != nil {
		if l.ctx.Err() == nil {
			l.s.host.Errorf("%s: %v", key, err)
		}
		l.each(first, len(wishes), event{What: abandoned, Key: key, Note: err.Error()})
		return nil, err
	}
	for i, id := range ids {
		l.s.hist.add(event{What: acked, N: first + i, Key: key, Task: id, Replayed: a.replayed})
	}
	l.acks.Add(int64(len(ids)))
	return ids, nil
}

// each records the same of so many tasks.
func (l *load) each(first, n int, e event) {
	for i := range n {
		e.N = first + i
		l.s.hist.add(e)
	}
}

// lasting sends agents that run for so long, waits until they run, and returns a function that tells the calls of those that
// still do.
func (l *load) lasting(ctx context.Context, n int, d time.Duration) (still func() []event, err error) {
	first := int(l.numbers.Load()) + 1
	for range n {
		l.send(l.long, []wish{{sleep: d, want: store.StatusSucceeded}})
	}
	still = func() []event {
		return slices.DeleteFunc(l.s.models.running(), func(e event) bool { return e.WS != l.long.name || e.N < first || e.Sleep != d.String() })
	}
	return still, until(ctx, 30*time.Second, "long agents to run", func() bool { return len(still()) >= n })
}

// probe sends a small task to the workspace of the long ones and returns when it has succeeded.
func (l *load) probe(ctx context.Context) error {
	ids, err := l.submit(l.long, int(l.numbers.Add(1)), []wish{{sleep: time.Millisecond, want: store.StatusSucceeded}})
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		if status, err := l.statusOf(ctx, l.long, ids[0]); err == nil && status == store.StatusSucceeded {
			return nil
		}
		pause(ctx, 50*time.Millisecond)
	}
	return ctx.Err()
}

func (l *load) acked() int { return int(l.acks.Load()) }

// wait returns when every request is answered, and customers have done what they want with their tasks.
func (l *load) wait() { l.senders.Wait() }
