package worker_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/jobs"
	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
	"github.com/generic-corp/muster/worker"
	"github.com/generic-corp/muster/worker/agent"
)

// order is the prompts of the tasks that started, in that order, over all workers. A prompt's first word names its workspace.
type order struct {
	mu      sync.Mutex
	prompts []string
	started chan struct{} // closed at a start, then replaced
}

func (o *order) add(prompt string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.prompts = append(o.prompts, prompt)
	close(o.started)
	o.started = make(chan struct{})
}

func (o *order) len() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.prompts)
}

// before counts from an index on what each workspace started before a prompt, tasks in fetched aside; while the prompt has
// not started, started will be closed at the next start.
func (o *order) before(prompt string, from int, fetched []string) (counts map[string]int, started <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	to := slices.Index(o.prompts, prompt)
	if to < 0 {
		return nil, o.started
	}
	counts = map[string]int{}
	for _, p := range o.prompts[min(from, to):to] {
		if !slices.Contains(fetched, p) {
			who, _, _ := strings.Cut(p, " ")
			counts[who]++
		}
	}
	return counts, nil
}

// here runs a worker in this process until the test ends.
func (p *plant) here(name string, slots int, run worker.RunnerFunc) {
	p.t.Helper()
	fleet := store.NewFleet(p.env.Worker(p.t))
	w := worker.New(worker.Config{Fleet: fleet, Redis: p.env.Redis(p.t), Enqueuer: p.turns, Runner: run, Isolator: testIsolator(), Name: name, Slots: slots,
		Metrics: worker.NewMetrics(prometheus.NewRegistry()), Log: zerolog.New(zerolog.NewTestWriter(p.t)).Level(zerolog.WarnLevel)})
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	p.t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			p.t.Errorf("%s: %v", name, err)
		}
		fleet.Close()
	})
}

// fetched waits until a turn stands in Redis, or has passed it, and returns the prompts of the tasks that workers hold then,
// whether their agents have started or not.
func (p *plant) fetched(turn store.Turn) (prompts []string) {
	p.t.Helper()
	rdb, key := p.env.Redis(p.t), "asynq:{"+turn.Queue+"}:t:"+turn.ID.String()
	for deadline := time.Now().Add(time.Minute); rdb.Exists(context.Background(), key).Val() == 0; time.Sleep(100 * time.Microsecond) {
		if p.count(`SELECT count(*) FROM workspace_load WHERE turn = $1`, turn.ID) == 0 {
			break // used up
		}
		if time.Now().After(deadline) {
			p.t.Fatal("the turn never came to Redis")
		}
	}
	if err := p.env.Admin(p.t).Select(&prompts, `SELECT t.prompt FROM leases l JOIN tasks t ON t.workspace_id = l.workspace_id AND t.id = l.task_id`); err != nil {
		p.t.Fatal(err)
	}
	return prompts
}

// Two hundred workspaces wait with more work than two workers with twenty slots can do, and newcomers join the line one after
// the other. From when a newcomer's turn stands in Redis nobody starts more than two tasks before its first, those aside that
// a worker had claimed by then. What counts is the order in which agents start and no time: on a slow machine a round takes
// longer for everybody.
func TestNobodyOfManyStartsMoreThanTwoBeforeANewcomer(t *testing.T) {
	t.Parallel()
	const workspaces, backlog, newcomers = 200, 30, 8 // each newcomer waits for about a round: most of the backlog is left
	p := newPlant(t)
	model := storetest.NewWorkspace(t, p.env, "starter")
	all, prompts := append([]uuid.UUID{model}, storetest.CloneWorkspace(t, p.env, model, workspaces-1)...), make([]string, workspaces)
	for i := range prompts {
		prompts[i] = fmt.Sprintf("w%d task=#", i)
	}
	for _, turn := range storetest.AddBacklog(t, p.env, all, prompts, workspaces*backlog) {
		p.turns.Enqueue(jobs.Turn(turn))
	}
	o := &order{started: make(chan struct{})}
	for i := range 2 {
		p.here(fmt.Sprint("worker ", i), 10, func(_ context.Context, a agent.Task, _ agent.Recorder) (agent.Result, error) {
			o.add(a.Prompt)
			time.Sleep(20 * time.Millisecond) // long enough that no slot goes on with its workspace's next task
			return agent.Result{Output: "ok"}, nil
		})
	}

	others := 0 // starts while a newcomer stood in line
	for i := range newcomers {
		newcomer, prompt := storetest.NewWorkspace(t, p.env, "starter"), fmt.Sprintf("newcomer%d task", i)
		done := p.do(newcomer, func(w *store.Work) error {
			_, err := w.Submit(context.Background(), []store.NewTask{task(prompt)})
			return err
		})
		fetched, from := p.fetched(done.Turns[0]), o.len()
		counts, started := o.before(prompt, from, fetched)
		for ; started != nil; counts, started = o.before(prompt, from, fetched) {
			select {
			case <-started:
			case <-time.After(time.Minute):
				t.Fatal("nothing starts any more")
			}
		}
		sum, most := 0, 0
		for who, n := range counts {
			sum, most = sum+n, max(most, n)
			if n > 2 {
				t.Errorf("%s started %d tasks before the first of %s", who, n, prompt)
			}
		}
		others += sum
		t.Logf("%s waited for %d starts, nobody's more than %d", prompt, sum, most)
	}
	if others < newcomers*workspaces/4 {
		t.Errorf("only %d tasks started while newcomers stood in line: the test shows nothing", others)
	}
	if n := p.count(`SELECT count(*) FROM workspace_load WHERE waiting > 0`); n < workspaces {
		t.Errorf("%d of %d backlogs are left: the test shows nothing", n, workspaces)
	}
}
