package worker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/jobs"
	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
	"github.com/generic-corp/muster/worker"
	"github.com/generic-corp/muster/worker/agent"
	"github.com/generic-corp/muster/worker/childprocess"
	"github.com/generic-corp/muster/worker/isolate"
	"github.com/generic-corp/muster/worker/provider"
)

// TestMain lets the test binary be a worker process, and the child of one, with an agent that does what its prompt says.
func TestMain(m *testing.M) {
	switch {
	case len(os.Args) == 2 && os.Args[1] == isolate.Command:
		os.Exit(isolate.Serve(func(ctx context.Context, _ agent.Router, _ agent.Prices, t agent.Task, calls agent.Recorder) (agent.Result, error) {
			return prompted(ctx, t, calls)
		}))
	case os.Getenv(asWorker) != "":
		os.Exit(workerProcess())
	}
	os.Exit(storetest.Main(m))
}

const asWorker = "MUSTER_TEST_IS_WORKER"

// prompted is the agent: "ok", "exit", "hold", "stuck", each perhaps behind a call that costs; "hold" leaves its process
// id in the file that its prompt names.
func prompted(ctx context.Context, t agent.Task, calls agent.Recorder) (agent.Result, error) {
	words := strings.Fields(t.Prompt)
	if words[0] == "call" {
		if err := calls.Begin(ctx, agent.CallStart{ID: uuid.New(), Provider: "openai", Model: "m", Step: 1, Try: 1, CeilingMicroUSD: 77}); err != nil {
			return agent.Result{}, err
		}
		words = words[1:]
	}
	switch words[0] {
	case "exit":
		time.Sleep(100 * time.Millisecond) // its neighbours run by then
		os.Exit(3)
	case "hold":
		if err := os.WriteFile(words[1], []byte(strconv.Itoa(os.Getpid())), 0o600); err != nil {
			return agent.Result{}, err
		}
		return agent.Result{}, untilStopped(ctx)
	case "stuck":
		select {}
	}
	time.Sleep(200 * time.Millisecond)
	return agent.Result{Output: "done"}, nil
}

// noRouter and noPrices: the agent of these tests calls no model.
type noRouter struct{}

func (noRouter) Route(string, []string) ([]provider.Target, error) { return nil, errors.New("none") }

type noPrices struct{}

func (noPrices) Cost(string, string, provider.Usage, time.Time) (int64, bool) { return 0, false }
func (noPrices) Ceiling(string, provider.Request, time.Time) (microUSD int64) { return 0 }

// testIsolator starts the test binary as the child.
func testIsolator() *isolate.Starter {
	return isolate.New(isolate.Config{Argv: []string{os.Args[0], isolate.Command}, Router: noRouter{}, Prices: noPrices{}, MemoryBytes: 512 << 20})
}

// workerProcess is a worker on the servers that its environment names.
func workerProcess() int {
	log := zerolog.New(os.Stderr)
	db, err := store.Open(context.Background(), os.Getenv("WORKER_DATABASE_URL"), 8)
	if err != nil {
		log.Error().Err(err).Send()
		return 9
	}
	opt, err := redis.ParseURL(os.Getenv("REDIS_URL"))
	if err != nil {
		log.Error().Err(err).Send()
		return 9
	}
	rdb := redis.NewClient(opt)
	fleet := store.NewFleet(db)
	w := worker.New(worker.Config{Fleet: fleet, Redis: rdb, Enqueuer: jobs.NewEnqueuer(rdb, log), Runner: worker.RunnerFunc(prompted), Isolator: testIsolator(),
		Metrics: worker.NewMetrics(prometheus.NewRegistry()), Log: log, Name: "process", Slots: 60, DrainTimeout: 280 * time.Second})
	if err := w.Run(context.Background()); err != nil {
		log.Error().Err(err).Msg("worker ended")
		return 1
	}
	return 0
}

// plant is a ledger and a Redis with worker processes on them; the test is their scheduler.
type plant struct {
	*rig
	line *jobs.Line
	dir  string

	deaths int // of worker processes that were kept
}

func newPlant(t *testing.T) *plant {
	t.Helper()
	env := storetest.New(t)
	r := &rig{t: t, env: env, api: store.NewAPI(env.API(t)), system: store.NewSystem(env.System(t))}
	r.turns = jobs.NewEnqueuer(env.Redis(t), zerolog.Nop())
	t.Cleanup(r.turns.Close)
	t.Cleanup(func() { storetest.CheckLedger(t, env) })
	line := jobs.NewLine(env.Redis(t))
	if err := line.PublishQueues(context.Background(), store.Queues...); err != nil {
		t.Fatal(err)
	}
	return &plant{rig: r, line: line, dir: t.TempDir()}
}

// worker starts a worker process.
func (p *plant) worker(name string) (process *childprocess.Process, log func() string) {
	p.t.Helper()
	file, err := os.Create(filepath.Join(p.dir, name))
	if err != nil {
		p.t.Fatal(err)
	}
	process, err = childprocess.Start(childprocess.Config{Argv: []string{os.Args[0]}, Output: file,
		Env: []string{asWorker + "=1", "WORKER_DATABASE_URL=" + p.env.WorkerURL, "REDIS_URL=" + p.env.RedisURL}})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		_ = process.End(context.Background(), 0, syscall.SIGKILL)
		file.Close()
	})
	return process, func() string {
		raw, err := os.ReadFile(file.Name())
		if err != nil {
			p.t.Fatal(err)
		}
		return string(raw)
	}
}

// sweep does what the scheduler does, but that it knows of a death at once: it takes the tasks of dead workers back,
// promotes what is due, and issues lost turns anew.
func (p *plant) sweep(dead bool) {
	p.t.Helper()
	ctx := context.Background()
	if dead {
		live, err := p.system.LiveWorkers(ctx)
		if err != nil {
			p.t.Fatal(err)
		}
		for _, w := range live {
			if _, err := p.system.DeclareDead(ctx, w.ID, w.Beat); err != nil {
				p.t.Fatal(err)
			}
		}
	}
	_, turns, err := p.system.RecoverDeadWorkers(ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	_, _, due, err := p.system.PromoteDue(ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	turns = append(turns, due...)
	for _, queue := range store.Queues { // a turn that was on its way into a worker that died
		before, err := p.system.Now(ctx)
		if err != nil {
			p.t.Fatal(err)
		}
		if oldest, ok, err := p.line.OldestPending(queue); err != nil {
			p.t.Fatal(err)
		} else if ok && oldest.Before(before) {
			before = oldest
		}
		lost, err := p.system.ReissueLost(ctx, queue, before.Add(-5*time.Second))
		if err != nil {
			p.t.Fatal(err)
		}
		turns = append(turns, lost...)
	}
	for _, turn := range turns {
		p.turns.Enqueue(jobs.Turn(turn))
	}
}

// keep keeps one worker process alive, and sweeps, until done says so.
func (p *plant) keep(limit time.Duration, done func() bool) {
	p.t.Helper()
	process, log := p.worker("worker-0")
	for deadline := time.Now().Add(limit); !done(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.t.Fatalf("not done after %s and %d deaths; the last worker said\n%s", limit, p.deaths, log())
		}
		died := !process.Alive()
		if died {
			p.deaths++
			if process.ExitCode() != 3 {
				p.t.Fatalf("a worker ended %s:\n%s", process.How(), log())
			}
		}
		p.sweep(died)
		if died {
			process, log = p.worker(fmt.Sprintf("worker-%d", p.deaths))
		}
	}
}

func (p *plant) count(query string, args ...any) (n int) {
	p.t.Helper()
	if err := p.env.Admin(p.t).Get(&n, query, args...); err != nil {
		p.t.Fatal(err)
	}
	return n
}

// One task ends each process that runs it, beside fifty good ones of several workspaces. Two workers die of it; then all
// that ran there are suspects, the good ones show in their children that they are not, and it dies three times alone.
func TestAPoisonedTaskTakesTwoWorkersAndNoNeighbour(t *testing.T) {
	t.Parallel()
	p := newPlant(t)
	var good [][2]uuid.UUID
	for range 5 {
		ws := storetest.NewWorkspace(t, p.env, "pro")
		var tasks []store.NewTask
		for range 10 {
			tasks = append(tasks, task("call ok"))
		}
		for _, id := range p.submit(ws, tasks...) {
			good = append(good, [2]uuid.UUID{ws, id})
		}
	}
	victim := storetest.NewWorkspace(t, p.env, "pro")
	poisoned := p.submit(victim, task("call exit"))[0]
	began := time.Now()
	p.keep(3*time.Minute, func() bool { return p.count(`SELECT count(*) FROM tasks WHERE finished_at IS NULL`) == 0 })
	took := time.Since(began)
	for _, g := range good {
		if v, err := p.api.Task(context.Background(), g[0], g[1]); err != nil || v.Status != store.StatusSucceeded || v.Attempt != 1 {
			t.Errorf("a good task is %s after %d crashes and attempt %d, %v: %s", v.Status, v.Crashes, v.Attempt, err, v.Error)
		}
	}
	v, err := p.api.Task(context.Background(), victim, poisoned)
	if err != nil || v.Status != store.StatusFailed || v.Crashes != 5 || !bytes.Contains(v.Error, []byte("worker_crashed")) {
		t.Errorf("the poisoned task is %s after %d crashes, %v: %s", v.Status, v.Crashes, err, v.Error)
	}
	if p.deaths != 2 {
		t.Errorf("%d workers died, want 2", p.deaths)
	}
	suspects := p.count(`SELECT count(*) FROM tasks WHERE status = 'succeeded' AND crashes = 2`)
	if suspects == 0 {
		t.Error("no good task was a suspect: the test shows nothing")
	}
	if n := p.count(`SELECT count(*) FROM attempts WHERE task_id = $1 AND cost_microusd = 77 AND provider_calls = 1 AND NOT billable`, poisoned); n != 5 {
		t.Errorf("%d of five crashed attempts are booked with the call that they left open", n)
	}
	if n := p.count(`SELECT count(*) FROM provider_calls WHERE task_id = $1 AND outcome IN ('orphaned', 'cut')`, poisoned); n != 5 {
		t.Errorf("%d of five calls of crashed attempts are closed", n)
	}
	t.Logf("50 good tasks succeeded, %d of them as suspects; the poisoned one failed after %.1f s, 2 deaths of workers and 3 of its own process",
		suspects, took.Seconds())
}

// A child ends with its worker, however that dies, and its task is not convicted for it.
func TestAChildDiesWithItsWorker(t *testing.T) {
	t.Parallel()
	p := newPlant(t)
	ws := storetest.NewWorkspace(t, p.env, "pro")
	file := filepath.Join(p.dir, "pid")
	id := p.submit(ws, task("hold "+file))[0]
	holder := func() (pid int) {
		t.Helper()
		for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			if raw, err := os.ReadFile(file); err == nil && len(raw) > 0 {
				if pid, err = strconv.Atoi(string(raw)); err != nil {
					t.Fatal(err)
				}
				if err := os.Remove(file); err != nil {
					t.Fatal(err)
				}
				return pid
			}
			if time.Now().After(deadline) {
				t.Fatal("nobody runs the task")
			}
			p.sweep(false)
		}
	}
	for death := range 3 {
		process, _ := p.worker(fmt.Sprintf("worker-%d", death))
		pid := holder()
		if isolated := pid != process.PID(); isolated != (death == 2) {
			t.Fatalf("run %d: the task runs in process %d of worker %d", death+1, pid, process.PID())
		}
		killed := time.Now()
		if err := process.End(context.Background(), 0, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(10 * time.Second); runs(pid); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("process %d runs on after its worker's death", pid)
			}
		}
		t.Logf("process %d of worker %d ended %s after the kill", pid, process.PID(), time.Since(killed))
		p.sweep(true)
	}
	v, err := p.api.Task(context.Background(), ws, id)
	if err != nil || v.Status != store.StatusScheduled || v.Crashes != 2 || v.Waiting.Reason != store.WaitIsolated || p.count(`SELECT losses FROM tasks`) != 1 {
		t.Errorf("%+v, %+v, %v", v.Task, v.Waiting, err)
	}
}

// noProcess starts nothing.
type noProcess struct{}

func (noProcess) Start(context.Context) (*isolate.Child, error) {
	return nil, errors.New("no memory left")
}

// A suspect for which no process can be started is not convicted, and counts as lost each time, so that it ends some day.
func TestASuspectThatCannotBeStartedIsALoss(t *testing.T) {
	t.Parallel()
	r := startWith(t, worker.Config{Slots: 2, Isolator: noProcess{}, Runner: worker.RunnerFunc(prompted)})
	ws := storetest.NewWorkspace(t, r.env, "pro")
	later := time.Now().Add(time.Hour)
	suspect := task("ok")
	suspect.RunAt = &later
	id := r.submit(ws, suspect)[0]
	admin := r.env.Admin(t)
	admin.MustExec(`UPDATE tasks SET crashes = 2, run_at = now() WHERE id = $1`, id)
	_, _, turns, err := r.system.PromoteDue(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, turn := range turns {
		r.turns.Enqueue(jobs.Turn(turn))
	}
	v := r.await(ws, id, store.StatusScheduled)
	var losses int
	if err := admin.Get(&losses, `SELECT t.losses FROM tasks t JOIN attempts a ON a.task_id = t.id AND a.error->>'code' = $2 WHERE t.id = $1`, id, store.CodeNotStarted); err != nil {
		t.Fatal(err)
	}
	if losses != 1 || v.Crashes != 2 || v.Attempt != 0 || v.Waiting.Reason != store.WaitIsolated {
		t.Errorf("%d losses, %+v, %+v", losses, v.Task, v.Waiting)
	}
}

// runs reports whether a process runs; one that has ended and is not reaped does not.
func runs(pid int) bool {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && !bytes.Contains(raw, []byte(") Z "))
}

// An agent that never returns costs its worker process, not its neighbours, and is not run again.
func TestAStuckAgentEndsItsWorkerProcess(t *testing.T) {
	t.Parallel()
	p := newPlant(t)
	ws := storetest.NewWorkspace(t, p.env, "pro")
	stuck := task("call stuck")
	stuck.TimeoutMS = 1000
	file := filepath.Join(p.dir, "pid")
	long := task("hold " + file)
	long.TimeoutMS = 15_000 // past the moment at which the stuck one is given up
	process, log := p.worker("worker")
	began := time.Now()
	ids := p.submit(ws, stuck, long)
	select {
	case <-process.Exited():
	case <-time.After(90 * time.Second):
		t.Fatalf("the worker goes on with a slot that never comes back:\n%s", log())
	}
	took := time.Since(began)
	if process.ExitCode() != 1 || !strings.Contains(log(), worker.ErrUnfit.Error()) || !strings.Contains(log(), "an agent ignores its deadline") {
		t.Errorf("it ended %s:\n%s", process.How(), log())
	}
	if took > 60*time.Second {
		t.Errorf("it took %s: the drain waited for the stuck agent", took)
	}
	v := p.await(ws, ids[0], store.StatusFailed)
	if !bytes.Contains(v.Error, []byte(`"timeout"`)) || v.AgentMS != 1000 || v.Attempt != 1 || v.Crashes != 0 || v.CostMicroUSD != 77 {
		t.Errorf("the stuck task: %+v, %s", v.Task, v.Error)
	}
	if v := p.await(ws, ids[1], store.StatusFailed); !bytes.Contains(v.Error, []byte(`"canceled"`)) && !bytes.Contains(v.Error, []byte(`"timeout"`)) || v.AgentMS < 14_000 {
		t.Errorf("its neighbour did not have its time: %+v, %s", v.Task, v.Error)
	}
	if live, err := p.system.LiveWorkers(context.Background()); err != nil || len(live) != 0 {
		t.Errorf("the worker held nothing any more and did not leave: %v, %v", live, err)
	}
	if n := p.count(`SELECT count(*) FROM attempts WHERE outcome = 'timeout' AND billable AND task_id = $1`, ids[0]); n != 1 {
		t.Errorf("%d timeouts are booked, want 1", n)
	}
	t.Logf("the worker ended %.1f s after the submit: a deadline of 1 s, 10 s of patience, then its neighbour's deadline at 15 s", took.Seconds())
}
