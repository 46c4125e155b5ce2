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
}

func newFleet(h *host) *fleet {
	f := &fleet{h: h, env: h.ledger(), reg: prometheus.NewRegistry()}
	f.rdb = f.env.Redis(h)
	f.api = store.NewAPI(f.env.API(h))
	f.turns = jobs.NewEnqueuer(f.rdb, zerolog.Nop())
	h.Cleanup(f.turns.Close)
	return f
}

// work starts a worker process's worth of worker; it ends with the case.
func (f *fleet) work(slots int, run func(ctx context.Context, t agent.Task)) {
	ledger := store.NewFleet(f.env.Worker(f.h))
	w := worker.New(worker.Config{Fleet: ledger, Redis: f.rdb, Enqueuer: f.turns, Metrics: worker.NewMetrics(f.reg), Log: zerolog.Nop(), Slots: slots,
		Runner: worker.RunnerFunc(func(ctx context.Context, t agent.Task, _ agent.Recorder) (agent.Result, error) {
			run(ctx, t)
			return agent.Result{Output: "ok"}, nil
		})})
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	f.h.Cleanup(func() {
		stop()
		<-ended
		ledger.Close()
	})
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

func (f *fleet) workspaces(n int, plan string) []uuid.UUID {
	all := make([]uuid.UUID, n)
	for i := range all {
		all[i] = storetest.NewWorkspace(f.h, f.env, plan)
	}
	return all
}

// submit records n tasks in one transaction, as a batch over HTTP does, and puts the workspace in line.
func (f *fleet) submit(ws uuid.UUID, n int, prompt string) {
	ctx := context.Background()
	for n > 0 {
		tasks := make([]store.NewTask, min(n, 1000))
		n -= len(tasks)
		for i := range tasks {
			tasks[i] = store.NewTask{Agent: "yuki", Model: "auto", Prompt: prompt, TimeoutMS: 60_000, MaxAttempts: 1}
		}
		done, err := f.api.Do(ctx, store.Scope{Workspace: ws}, nil, func(w *store.Work) (store.Answer, error) {
			_, err := w.Submit(ctx, tasks)
			return store.Answer{}, err
		})
		f.h.must(err)
		for _, t := range done.Turns {
			f.turns.Enqueue(jobs.Turn(t))
		}
	}
}

// settled waits until n agents have run, and then until n tasks are final and metered as often: asking the ledger all the
// time would be a load of its own.
func (f *fleet) settled(ran *countdown, n int) {
	<-ran.done
	db := f.env.Admin(f.h)
	for {
		var final, metered int
		f.h.must(db.Get(&final, `SELECT count(*) FROM tasks WHERE finished_at IS NOT NULL`))
		if final >= n {
			f.h.must(db.Get(&metered, `SELECT count(*) FROM metering_rows WHERE meter = 'tasks'`))
			if metered != n {
				f.h.Fatalf("%d tasks are final, %d are metered", final, metered)
			}
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

// serve starts the HTTP API without rate limits, and returns a function that registers a workspace and gives its token.
func (f *fleet) serve(connections int) (tenant func(plan string) (ws uuid.UUID, token string)) {
	server, err := api.New(api.Config{Store: f.api, Enqueuer: enqueuer{f.turns}, Canceler: canceler{}, SigningKeys: [][]byte{bytes.Repeat([]byte("k"), 32)}, Log: zerolog.Nop()})
	f.h.must(err)
	listener := httptest.NewServer(server.Handler())
	f.h.Cleanup(listener.Close)
	f.url = listener.URL
	f.http = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: connections, MaxConnsPerHost: connections}}
	system, n := store.NewSystem(f.env.System(f.h)), 0
	return func(plan string) (uuid.UUID, string) {
		n++
		var in struct {
			Workspace   struct{ ID string }
			AccessToken string `json:"access_token"`
		}
		f.post("/v1/auth/register", "", map[string]string{"email": fmt.Sprintf("b%d@example.com", n), "password": "correct horse battery", "workspace_name": "b"}, &in)
		ws, ok := store.ParseID(store.WorkspacePrefix, in.Workspace.ID)
		p, known := store.PlanByID(plan)
		if !ok || !known {
			f.h.Fatalf("no workspace %q or no plan %q", in.Workspace.ID, plan)
		}
		_, err := system.SetPlan(context.Background(), ws, p, "", "", store.Operator{Name: "bench"})
		f.h.must(err)
		return ws, in.AccessToken
	}
}

func (f *fleet) post(path, token string, body, answer any) {
	raw, err := json.Marshal(body)
	f.h.must(err)
	f.h.must(f.send(path, token, raw, answer))
}

func (f *fleet) send(path, token string, raw []byte, answer any) error {
	req, err := http.NewRequest("POST", f.url+path, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := f.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode >= 300 {
		return fmt.Errorf("POST %s: %d %s", path, res.StatusCode, strings.TrimSpace(string(got)))
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(got, answer)
}
