package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/api"
	"github.com/generic-corp/muster/jobs"
	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
	"github.com/generic-corp/muster/worker"
	"github.com/generic-corp/muster/worker/agent"
)

// fleet is a Muster in this process: the ledger through its roles, with row-level security, leases, quota and metering
// as in production; the agents are functions.
type fleet struct {
	h     *host
	env   *storetest.Env
	rdb   *redis.Client
	api   *store.API
	turns *jobs.Enqueuer
	reg   *prometheus.Registry // of the workers
	url   string               // of the HTTP API, once serve has been called
	http  *http.Client

	tenants map[string]*tenant // by label; complete before the first worker starts
	working bool
	stops   []func()     // of the workers
	sent    atomic.Int64 // tasks accepted
	began   atomic.Int64 // attempts that reached their agent; 0 where nobody counts
	wrong   atomic.Value // string: what an agent has seen that must not be
	crashed int64        // attempts that workers held when they were killed
}

// tenant is a workspace. Its label is its tasks' prompt, by which an agent knows whose it is.
type tenant struct {
	id      uuid.UUID
	label   string
	cap     int64
	running atomic.Int64
}

func newFleet(h *host) *fleet {
	f := &fleet{h: h, env: h.ledger(), reg: prometheus.NewRegistry(), tenants: map[string]*tenant{}}
	f.rdb = f.env.Redis(h)
	f.api = store.NewAPI(f.env.API(h))
	f.turns = jobs.NewEnqueuer(f.rdb, zerolog.Nop())
	h.Cleanup(f.turns.Close)
	return f
}

// tenant notes a workspace of a plan; all of them before the first worker starts.
func (f *fleet) tenant(id uuid.UUID, plan string) *tenant {
	p, ok := store.PlanByID(plan)
	if !ok || f.working {
		f.h.Fatalf("no plan %q, or a workspace behind the start of a worker", plan)
	}
	t := &tenant{id: id, label: fmt.Sprint("w", len(f.tenants)), cap: int64(p.Concurrency)}
	f.tenants[t.label] = t
	return t
}

func (f *fleet) workspaces(n int, plan string) []*tenant {
	all := make([]*tenant, n)
	for i := range all {
		all[i] = f.tenant(storetest.NewWorkspace(f.h, f.env, plan), plan)
	}
	return all
}

// capped makes workspaces of Pro whose cap an operator has set: tiers below may not hold all slots.
func (f *fleet) capped(n, most int) []*tenant {
	all := f.workspaces(n, "pro")
	system := store.NewSystem(f.env.System(f.h))
	for _, t := range all {
		_, err := system.SetLimits(context.Background(), t.id, map[string]int64{"concurrency": int64(most)}, store.Operator{Name: "bench"})
		f.h.must(err)
		t.cap = int64(most)
	}
	return all
}

// work starts a worker process's worth of worker; it ends with the case, or with halt. The agents are told whose task they
// run; what runs of a workspace is counted and must not exceed its cap.
func (f *fleet) work(slots int, run func(ctx context.Context, who *tenant)) {
	f.working = true
	ledger := store.NewFleet(f.env.Worker(f.h))
	w := worker.New(worker.Config{Fleet: ledger, Redis: f.rdb, Enqueuer: f.turns, Metrics: worker.NewMetrics(f.reg), Log: zerolog.Nop(), Slots: slots,
		Runner: worker.RunnerFunc(func(ctx context.Context, t agent.Task, _ agent.Recorder) (agent.Result, error) {
			f.began.Add(1)
			who := f.tenants[t.Prompt]
			if who == nil {
				f.wrong.Store(fmt.Sprintf("a task of nobody: %q", t.Prompt))
				return agent.Result{}, nil
			}
			if n := who.running.Add(1); n > who.cap {
				f.wrong.Store(fmt.Sprintf("%d tasks of a workspace with cap %d run at once", n, who.cap))
			}
			defer who.running.Add(-1)
			run(ctx, who)
			return agent.Result{Output: "ok"}, ctx.Err()
		})})
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	end := sync.OnceFunc(func() {
		stop()
		<-ended
		ledger.Close()
	})
	f.stops = append(f.stops, end)
	f.h.Cleanup(end)
}

// halt stops the workers; what has not ended goes back to the line.
func (f *fleet) halt() {
	for _, stop := range f.stops {
		stop()
	}
}

// pause is an agent's work: it takes its time, or until it is told to stop.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// emptyClaims counts turns that were delivered and found nothing they might run.
func (f *fleet) emptyClaims() (n float64) {
	families, err := f.reg.Gather()
	f.h.must(err)
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if family.GetName() == "muster_claims_total" && m.GetLabel()[0].GetValue() != "won" {
				n += m.GetCounter().GetValue()
			}
		}
	}
	return n
}

// submit records n tasks of a workspace as batches over HTTP do, and puts it in line.
func (f *fleet) submit(to *tenant, n int) {
	ctx := context.Background()
	for n > 0 {
		tasks := make([]store.NewTask, min(n, 1000))
		n -= len(tasks)
		for i := range tasks {
			tasks[i] = store.NewTask{Agent: "yuki", Model: "auto", Prompt: to.label, TimeoutMS: taskTimeoutMS, MaxAttempts: 1}
		}
		done, err := f.api.Do(ctx, store.Scope{Workspace: to.id}, nil, func(w *store.Work) (store.Answer, error) {
			_, err := w.Submit(ctx, tasks)
			return store.Answer{}, err
		})
		f.h.must(err)
		f.sent.Add(int64(len(tasks)))
		for _, t := range done.Turns {
			f.turns.Enqueue(jobs.Turn(t))
		}
	}
}

// taskTimeoutMS of every task: none of the agents takes longer.
const taskTimeoutMS = 120_000

// settled waits until n agents have run, and then until n tasks are final: asking the ledger all the time would be a load
// of its own.
func (f *fleet) settled(ran *countdown, n int) {
	<-ran.done
	db := f.env.Admin(f.h)
	for {
		var final int
		f.h.must(db.Get(&final, `SELECT count(*) FROM tasks WHERE finished_at IS NOT NULL`))
		if final >= n {
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// enqueuer and canceler introduce the API to Redis, as the API process does.
type enqueuer struct{ *jobs.Enqueuer }

func (e enqueuer) Enqueue(turns ...store.Turn) {
	for _, t := range turns {
		e.Enqueuer.Enqueue(jobs.Turn(t))
	}
}

type canceler struct{}

func (canceler) Cancel(...uuid.UUID) {}

// customer is a tenant with what it needs to use the HTTP API.
type customer struct {
	*tenant
	token string
}

// task is the body of one of its tasks.
func (c customer) task() string {
	return fmt.Sprintf(`{"prompt": %q, "timeout_seconds": %d}`, c.label, taskTimeoutMS/1000)
}

// batch is the body of n of them.
func (c customer) batch(n int) []byte {
	return []byte(`{"tasks": [` + strings.TrimSuffix(strings.Repeat(c.task()+",", n), ",") + `]}`)
}

// signingKey of access tokens: one that this process's API gave is good at a muster process too.
var signingKey = bytes.Repeat([]byte("k"), 32)

// serve starts the HTTP API without rate limits and registers customers with it.
func (f *fleet) serve(connections, customers int, plan string) []customer {
	server, err := api.New(api.Config{Store: f.api, Enqueuer: enqueuer{f.turns}, Canceler: canceler{}, SigningKeys: [][]byte{signingKey}, Log: zerolog.Nop()})
	f.h.must(err)
	listener := httptest.NewServer(server.Handler())
	f.h.Cleanup(listener.Close)
	f.url = listener.URL
	f.http = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: connections, MaxConnsPerHost: connections}}
	all := make([]customer, customers)
	var next atomic.Int64
	crowd(f.h, 4, func() { // hashing a password takes its time
		for i := next.Add(1) - 1; i < int64(customers); i = next.Add(1) - 1 {
			all[i] = f.register(int(i), plan)
		}
	})
	for i := range all {
		all[i].tenant = f.tenant(all[i].id, plan)
	}
	return all
}

// register makes a customer as people do, and puts it on its plan as operators do.
func (f *fleet) register(i int, plan string) customer {
	var in struct {
		Workspace   struct{ ID string }
		AccessToken string `json:"access_token"`
	}
	body, err := json.Marshal(map[string]string{"email": fmt.Sprintf("b%d@example.com", i), "password": "correct horse battery", "workspace_name": "b"})
	f.h.must(err)
	f.h.must(f.send("/v1/auth/register", "", body, &in))
	ws, ok := store.ParseID(store.WorkspacePrefix, in.Workspace.ID)
	p, known := store.PlanByID(plan)
	if !ok || !known {
		f.h.Fatalf("no workspace %q or no plan %q", in.Workspace.ID, plan)
	}
	_, err = store.NewSystem(f.env.System(f.h)).SetPlan(context.Background(), ws, p, "", "", store.Operator{Name: "bench"})
	f.h.must(err)
	return customer{&tenant{id: ws}, in.AccessToken}
}

func (f *fleet) send(path, token string, raw []byte, answer any) error {
	return post(f.http, f.url+path, token, raw, answer)
}

// post sends JSON and reads the answer, if it is wanted.
func post(client *http.Client, url, token string, raw []byte, answer any) error {
	req, err := http.NewRequest("POST", url, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode >= 300 {
		return fmt.Errorf("POST %s: %d %s", url, res.StatusCode, strings.TrimSpace(string(got)))
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(got, answer)
}
