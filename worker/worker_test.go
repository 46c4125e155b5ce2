package worker_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/jobs"
	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
	"github.com/generic-corp/muster/worker"
	"github.com/generic-corp/muster/worker/agent"
)

// rig is one worker on a ledger and a Redis of its own, with an agent made of a function.
type rig struct {
	t      *testing.T
	env    *storetest.Env
	api    *store.API
	system *store.System
	turns  *jobs.Enqueuer
	reg    *prometheus.Registry
	stop   context.CancelFunc
	ended  chan error
}

// start runs a worker of five slots whose agent is run; the test's end stops it and checks the ledger.
func start(t *testing.T, drain time.Duration, run worker.RunnerFunc) *rig {
	t.Helper()
	return startWith(t, worker.Config{Slots: 5, DrainTimeout: drain, Runner: run})
}

// startWith is start with settings of the worker; what they leave out that has no default is filled in.
func startWith(t *testing.T, cfg worker.Config, hooks ...redis.Hook) *rig {
	t.Helper()
	env := storetest.New(t)
	rdb := env.Redis(t)
	for _, h := range hooks {
		rdb.AddHook(h)
	}
	r := &rig{t: t, env: env, api: store.NewAPI(env.API(t)), system: store.NewSystem(env.System(t)), reg: prometheus.NewRegistry(), ended: make(chan error, 1)}
	r.turns = jobs.NewEnqueuer(rdb, zerolog.Nop())
	t.Cleanup(r.turns.Close)
	cfg.Fleet, cfg.Redis, cfg.Enqueuer, cfg.Metrics, cfg.Name = store.NewFleet(env.Worker(t)), rdb, r.turns, worker.NewMetrics(r.reg), "test"
	if cfg.Isolator == nil {
		cfg.Isolator = testIsolator()
	}
	cfg.Log = zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.WarnLevel)
	w := worker.New(cfg)
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	go func() { r.ended <- w.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		<-r.ended
		cfg.Fleet.Close()
		storetest.CheckLedger(t, env)
	})
	return r
}

func (r *rig) submit(ws uuid.UUID, tasks ...store.NewTask) []uuid.UUID {
	r.t.Helper()
	var ids []uuid.UUID
	r.do(ws, func(w *store.Work) error {
		created, err := w.Submit(context.Background(), tasks)
		for _, c := range created {
			ids = append(ids, c.ID)
		}
		return err
	})
	return ids
}

func (r *rig) do(ws uuid.UUID, fn func(w *store.Work) error) store.Done {
	r.t.Helper()
	done, err := r.api.Do(context.Background(), store.Scope{Workspace: ws}, nil, func(w *store.Work) (store.Answer, error) { return store.Answer{}, fn(w) })
	if err != nil {
		r.t.Fatal(err)
	}
	for _, turn := range done.Turns {
		r.turns.Enqueue(jobs.Turn(turn))
	}
	return done
}

func task(prompt string) store.NewTask {
	return store.NewTask{Agent: "yuki", Model: "auto", Prompt: prompt, TimeoutMS: 60_000, MaxAttempts: 3}
}

// await waits until the ledger says the task has the status.
func (r *rig) await(ws, id uuid.UUID, status string) store.TaskView {
	r.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		view, err := r.api.Task(context.Background(), ws, id)
		if err != nil {
			r.t.Fatal(err)
		}
		if view.Status == status {
			return view
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("task is %s, want %s", view.Status, status)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (r *rig) outcomes(ws uuid.UUID) []string {
	r.t.Helper()
	var list []string
	if err := r.env.Admin(r.t).Select(&list, `SELECT outcome FROM attempts WHERE workspace_id = $1 ORDER BY finished_at`, ws); err != nil {
		r.t.Fatal(err)
	}
	return list
}

// untilStopped is an agent that runs until its context ends.
func untilStopped(ctx context.Context) error {
	<-ctx.Done()
	return &agent.Error{Code: agent.CodeCanceled, Message: "stopped", Err: context.Cause(ctx)}
}

func TestWorker(t *testing.T) {
	t.Parallel()
	bg := context.Background()

	t.Run("RunsEveryTaskOnceUnderTheCap", func(t *testing.T) {
		t.Parallel()
		var running, highest, ran atomic.Int64
		r := start(t, 0, func(context.Context, agent.Task, agent.Recorder) (agent.Result, error) {
			n := running.Add(1)
			defer running.Add(-1)
			for old := highest.Load(); n > old && !highest.CompareAndSwap(old, n); old = highest.Load() {
			}
			ran.Add(1)
			time.Sleep(100 * time.Millisecond) // long beside a hand-out, so that the cap is reached
			return agent.Result{Output: "done"}, nil
		})
		ws := storetest.NewWorkspace(t, r.env, "starter") // cap 3
		var tasks []store.NewTask
		for range 30 {
			tasks = append(tasks, task("x"))
		}
		for _, id := range r.submit(ws, tasks...) {
			r.await(ws, id, store.StatusSucceeded)
		}
		if ran.Load() != 30 || highest.Load() != 3 {
			t.Errorf("%d runs with at most %d at once, want 30 and 3", ran.Load(), highest.Load())
		}
	})

	t.Run("ACancelReachesTheRunningAgentByMessage", func(t *testing.T) {
		t.Parallel()
		started := make(chan struct{})
		r := start(t, 0, func(ctx context.Context, _ agent.Task, _ agent.Recorder) (agent.Result, error) {
			close(started)
			return agent.Result{}, untilStopped(ctx)
		})
		ws := storetest.NewWorkspace(t, r.env, "pro")
		id := r.submit(ws, task("x"))[0]
		<-started
		asked := time.Now()
		done := r.do(ws, func(w *store.Work) error { _, err := w.Cancel(bg, id); return err })
		if err := jobs.PublishCancels(bg, r.env.Redis(t), done.Cancels...); err != nil {
			t.Fatal(err)
		}
		view := r.await(ws, id, store.StatusCanceled)
		t.Logf("canceled after %s", time.Since(asked))
		if got := r.outcomes(ws); len(got) != 1 || got[0] != "canceled" || view.Attempt != 1 {
			t.Errorf("outcomes %v, attempt %d", got, view.Attempt)
		}
	})

	t.Run("ACancelReachesTheRunningAgentByTheBeatAlone", func(t *testing.T) {
		t.Parallel()
		started := make(chan struct{})
		r := start(t, 0, func(ctx context.Context, _ agent.Task, _ agent.Recorder) (agent.Result, error) {
			close(started)
			return agent.Result{}, untilStopped(ctx)
		})
		ws := storetest.NewWorkspace(t, r.env, "pro")
		id := r.submit(ws, task("x"))[0]
		<-started
		r.do(ws, func(w *store.Work) error { _, err := w.Cancel(bg, id); return err })
		r.await(ws, id, store.StatusCanceled)
	})

	t.Run("ADrainLetsAgentsEndAndHandsTheRestBack", func(t *testing.T) {
		t.Parallel()
		var started sync.WaitGroup
		started.Add(2)
		leave := make(chan struct{})
		r := start(t, 300*time.Millisecond, func(ctx context.Context, a agent.Task, _ agent.Recorder) (agent.Result, error) {
			started.Done()
			if a.Prompt == "quick" {
				<-leave
				return agent.Result{Output: "in time"}, nil
			}
			return agent.Result{}, untilStopped(ctx)
		})
		ws := storetest.NewWorkspace(t, r.env, "pro")
		ids := r.submit(ws, task("quick"), task("long"))
		started.Wait()
		r.stop()
		close(leave)
		if err := <-r.ended; err != nil {
			t.Fatal(err)
		}
		r.ended <- nil
		quick, long := r.await(ws, ids[0], store.StatusSucceeded), r.await(ws, ids[1], store.StatusQueued)
		if quick.Attempt != 1 || long.Attempt != 0 {
			t.Errorf("attempts %d and %d, want 1 and 0: a hand-back spends none", quick.Attempt, long.Attempt)
		}
		live, err := r.system.LiveWorkers(bg)
		if err != nil || len(live) != 0 {
			t.Errorf("after leaving: %v, %v", live, err)
		}
	})

	t.Run("ADrainingWorkerSaysHowManyItReallyRuns", func(t *testing.T) {
		t.Parallel()
		started, leave := make(chan struct{}), make(chan struct{})
		r := start(t, time.Minute, func(context.Context, agent.Task, agent.Recorder) (agent.Result, error) {
			close(started)
			<-leave
			return agent.Result{Output: "done"}, nil
		})
		r.submit(storetest.NewWorkspace(t, r.env, "pro"), task("x"))
		<-started
		r.stop()
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			live, err := r.system.LiveWorkers(bg)
			if err != nil || len(live) != 1 {
				t.Fatalf("%v, %v", live, err)
			}
			if live[0].Draining {
				if live[0].Running != 1 {
					t.Errorf("its beat says that %d of 5 slots run, want 1", live[0].Running)
				}
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("it never said that it drains")
			}
		}
		close(leave)
	})

	t.Run("APanicFailsTheAttemptNotTheWorker", func(t *testing.T) {
		t.Parallel()
		r := start(t, 0, func(_ context.Context, t agent.Task, _ agent.Recorder) (agent.Result, error) {
			if t.Prompt == "bad" {
				panic("boom")
			}
			return agent.Result{Output: "ok"}, nil
		})
		ws := storetest.NewWorkspace(t, r.env, "pro")
		ids := r.submit(ws, task("bad"), task("good"))
		r.await(ws, ids[0], store.StatusScheduled)
		r.await(ws, ids[1], store.StatusSucceeded)
	})

	t.Run("ADeadlineIsATimeoutUnlessTheQuotaSetIt", func(t *testing.T) {
		t.Parallel()
		r := start(t, 0, func(ctx context.Context, _ agent.Task, _ agent.Recorder) (agent.Result, error) {
			<-ctx.Done()
			return agent.Result{}, &agent.Error{Code: agent.CodeTimeout, Message: "over", Retryable: true, Billable: true}
		})
		ws := storetest.NewWorkspace(t, r.env, "pro")
		short := task("x")
		short.TimeoutMS = 50
		id := r.submit(ws, short)[0]
		view := r.await(ws, id, store.StatusFailed)
		if view.AgentMS != 50 {
			t.Errorf("metered %d ms of a reservation of 50: what overshoots is ours", view.AgentMS)
		}
	})

	t.Run("AFinishAfterALostLeaseIsRefused", func(t *testing.T) {
		t.Parallel()
		started, leave := make(chan struct{}, 2), make(chan struct{})
		r := start(t, 0, func(context.Context, agent.Task, agent.Recorder) (agent.Result, error) {
			started <- struct{}{}
			<-leave
			return agent.Result{Output: "too late"}, nil
		})
		ws := storetest.NewWorkspace(t, r.env, "pro")
		id := r.submit(ws, task("x"))[0]
		<-started
		workers, err := r.system.LiveWorkers(bg)
		if err != nil || len(workers) != 1 {
			t.Fatalf("%v, %v", workers, err)
		}
		for dead := false; !dead; { // its beat may move under us
			live, err := r.system.LiveWorkers(bg)
			if err != nil {
				t.Fatal(err)
			}
			if dead, err = r.system.DeclareDead(bg, live[0].ID, live[0].Beat); err != nil {
				t.Fatal(err)
			}
		}
		n, turns, err := r.system.RecoverDeadWorkers(bg)
		if err != nil || n != 1 {
			t.Fatalf("recovered %d, %v", n, err)
		}
		close(leave)
		refused := func() float64 {
			families, err := r.reg.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range families {
				if f.GetName() == "muster_refused_writes_total" {
					return f.GetMetric()[0].GetCounter().GetValue()
				}
			}
			return -1
		}
		for deadline := time.Now().Add(20 * time.Second); refused() != 1; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("refused writes: %v", refused())
			}
		}
		for _, turn := range turns {
			r.turns.Enqueue(jobs.Turn(turn))
		}
		view := r.await(ws, id, store.StatusSucceeded) // by the same process under its new name
		if view.Crashes != 1 || view.Attempt != 1 {
			t.Errorf("crashes %d, attempt %d", view.Crashes, view.Attempt)
		}
	})

	t.Run("AnAgentThatIgnoresItsDeadlineMakesTheWorkerUnfit", func(t *testing.T) {
		t.Parallel()
		never, returned := make(chan struct{}), make(chan struct{})
		r := start(t, 0, func(context.Context, agent.Task, agent.Recorder) (agent.Result, error) {
			defer close(returned)
			<-never
			return agent.Result{}, nil
		})
		t.Cleanup(func() { close(never); <-returned })
		ws := storetest.NewWorkspace(t, r.env, "pro")
		stuck := task("x")
		stuck.TimeoutMS = 1
		r.submit(ws, stuck)
		select {
		case err := <-r.ended:
			if !errors.Is(err, worker.ErrUnfit) {
				t.Errorf("worker ended with %v", err)
			}
			r.ended <- nil
		case <-time.After(60 * time.Second):
			t.Fatal("the worker goes on with a slot that never comes back")
		}
		if live, err := r.system.LiveWorkers(bg); err != nil || len(live) != 0 {
			t.Errorf("it holds nothing any more, and did not leave: %v, %v", live, err)
		}
		if got := r.outcomes(ws); len(got) != 1 || got[0] != "timeout" {
			t.Errorf("outcomes %v, want the timeout", got)
		}
	})

	t.Run("AClaimThatWasNeverAnsweredIsHandedBack", func(t *testing.T) {
		t.Parallel()
		r := start(t, 0, func(context.Context, agent.Task, agent.Recorder) (agent.Result, error) {
			return agent.Result{Output: "ok"}, nil
		})
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			if live, err := r.system.LiveWorkers(bg); err == nil && len(live) == 1 {
				break
			} else if time.Now().After(deadline) {
				t.Fatal("the worker never registered")
			}
		}
		live, err := r.system.LiveWorkers(bg)
		if err != nil {
			t.Fatal(err)
		}
		ws := storetest.NewWorkspace(t, r.env, "pro")
		var turn store.Turn
		var id uuid.UUID
		done, err := r.api.Do(bg, store.Scope{Workspace: ws}, nil, func(w *store.Work) (store.Answer, error) {
			created, err := w.Submit(bg, []store.NewTask{task("x")})
			id = created[0].ID
			return store.Answer{}, err
		})
		if err != nil {
			t.Fatal(err)
		}
		turn = done.Turns[0]
		other := store.NewFleet(r.env.Worker(t))
		defer other.Close()
		claimed, err := other.Claim(bg, &store.Claim{Workspace: ws, Turn: turn.ID, Lease: uuid.New(), Worker: live[0].ID}, false)
		if err != nil || claimed.Outcome != store.ClaimWon {
			t.Fatalf("%+v, %v", claimed, err)
		}
		view := r.await(ws, id, store.StatusSucceeded)
		if got := r.outcomes(ws); len(got) != 2 || got[0] != "handed_back" || view.Attempt != 1 {
			t.Errorf("outcomes %v, attempt %d", got, view.Attempt)
		}
	})
}

func TestMetricsNameNoWorkspace(t *testing.T) {
	t.Parallel()
	reg := prometheus.NewRegistry()
	worker.NewMetrics(reg)
	problems, err := testutil.GatherAndLint(reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}
