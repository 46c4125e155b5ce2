package worker_test

import (
	"context"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
	"github.com/generic-corp/muster/worker"
	"github.com/generic-corp/muster/worker/agent"
)

// fetchCounter counts how often Redis is asked to pop a turn, and in how many round trips.
type fetchCounter struct{ fetches, trips atomic.Int64 }

func (c *fetchCounter) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

func (c *fetchCounter) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		c.count([]redis.Cmder{cmd})
		return next(ctx, cmd)
	}
}

func (c *fetchCounter) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		c.count(cmds)
		return next(ctx, cmds)
	}
}

func (c *fetchCounter) count(cmds []redis.Cmder) {
	n := int64(0)
	for _, cmd := range cmds {
		if args := cmd.Args(); len(args) == 9 && strings.HasPrefix(cmd.Name(), "eval") {
			if key, ok := args[3].(string); ok && strings.HasSuffix(key, ":pending") {
				n++
			}
		}
	}
	if n > 0 {
		c.fetches.Add(n)
		c.trips.Add(1)
	}
}

// startLooking is start with a worker that looks at empty queues by itself only once an hour.
func startLooking(t *testing.T, slots int, run worker.RunnerFunc) (*rig, *fetchCounter) {
	t.Helper()
	count := &fetchCounter{}
	return startWith(t, worker.Config{Slots: slots, CheckInterval: time.Hour, Runner: run}, count), count
}

// spend lets so many round trips to Redis go by. A server that polled it by Asynq's tick, 1 ms, would have come in between for
// each few of them, however busy the machine is.
func spend(t *testing.T, rdb *redis.Client, trips int) {
	t.Helper()
	for range trips {
		if err := rdb.Ping(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestGate(t *testing.T) {
	t.Parallel()

	// Also the alarm for a new version of Asynq whose fetch the gate does not know: Asynq's own tick would then ask
	// Redis hundreds of times a second.
	t.Run("AnIdleWorkerSleepsUntilATurnIsAnnounced", func(t *testing.T) {
		t.Parallel()
		ran := make(chan struct{}, 1)
		r, count := startLooking(t, 5, func(context.Context, agent.Task, agent.Recorder) (agent.Result, error) {
			ran <- struct{}{}
			return agent.Result{Output: "ok"}, nil
		})
		ws := storetest.NewWorkspace(t, r.env, "pro")
		ids := r.submit(ws, task("first"))
		<-ran
		r.await(ws, ids[0], store.StatusSucceeded)
		rdb := r.env.Redis(t)
		announcements := rdb.Subscribe(t.Context(), "muster:turns") // parallel tests' too: each of them wakes this worker
		t.Cleanup(func() { announcements.Close() })
		if _, err := announcements.Receive(t.Context()); err != nil {
			t.Fatal(err)
		}
		heard := announcements.Channel(redis.WithChannelSize(100_000))
		before := count.fetches.Load()
		spend(t, rdb, 2000)
		if n := count.fetches.Load() - before; before == 0 || n > 3*int64(len(heard)+2) {
			t.Errorf("%d fetches before, %d while idle, with %d announcements", before, n, len(heard))
		}
		ids = r.submit(ws, task("second"))
		select {
		case <-ran:
		case <-time.After(20 * time.Second):
			t.Fatal("the announced turn was not fetched")
		}
		r.await(ws, ids[0], store.StatusSucceeded)
	})

	t.Run("NoTurnIsFetchedForASlotThatIsTaken", func(t *testing.T) {
		t.Parallel()
		release := make(chan struct{})
		started := make(chan string, 10)
		r, _ := startLooking(t, 1, func(_ context.Context, a agent.Task, _ agent.Recorder) (agent.Result, error) {
			started <- a.Prompt
			<-release
			return agent.Result{Output: "ok"}, nil
		})
		ctx := context.Background()
		a, b := storetest.NewWorkspace(t, r.env, "starter"), storetest.NewWorkspace(t, r.env, "starter")
		first := r.submit(a, task("long"))
		<-started
		second := r.submit(b, task("waits"))
		rdb := r.env.Redis(t)
		for rdb.LLen(ctx, "asynq:{starter}:pending").Val() == 0 { // until its turn stands in line
			time.Sleep(time.Millisecond)
		}
		spend(t, rdb, 500)
		if n := rdb.LLen(ctx, "asynq:{starter}:pending").Val(); n != 1 {
			t.Errorf("%d turns pending: another worker could not take it", n)
		}
		close(release)
		r.await(a, first[0], store.StatusSucceeded)
		r.await(b, second[0], store.StatusSucceeded)
	})

	t.Run("TurnsForSeveralFreeSlotsShareARoundTrip", func(t *testing.T) {
		t.Parallel()
		const slots = 10
		var blocked atomic.Bool
		blocked.Store(true)
		started, release := make(chan struct{}, slots), make(chan struct{})
		r, count := startLooking(t, slots, func(context.Context, agent.Task, agent.Recorder) (agent.Result, error) {
			if blocked.Load() {
				started <- struct{}{}
				<-release
			}
			return agent.Result{Output: "ok"}, nil
		})
		full := storetest.NewWorkspace(t, r.env, "pro") // cap 10
		last := r.submit(full, make10("holds a slot")...)
		for range slots {
			<-started
		}
		waiting := map[uuid.UUID][]uuid.UUID{}
		for range 3 * slots {
			ws := storetest.NewWorkspace(t, r.env, "pro")
			waiting[ws] = r.submit(ws, task("waits"))
		}
		rdb := r.env.Redis(t)
		for rdb.LLen(context.Background(), "asynq:{pro}:pending").Val() < 3*slots {
			time.Sleep(time.Millisecond)
		}
		fetches, trips := count.fetches.Load(), count.trips.Load()
		blocked.Store(false)
		close(release)
		for ws, ids := range waiting {
			r.await(ws, ids[0], store.StatusSucceeded)
		}
		for _, id := range last {
			r.await(full, id, store.StatusSucceeded)
		}
		fetches, trips = count.fetches.Load()-fetches, count.trips.Load()-trips
		t.Logf("%d fetches in %d round trips", fetches, trips)
		if fetches < 3*slots || trips >= fetches {
			t.Errorf("%d fetches in %d round trips", fetches, trips)
		}
	})
}

func make10(prompt string) []store.NewTask {
	tasks := make([]store.NewTask, 10)
	for i := range tasks {
		tasks[i] = task(prompt)
	}
	return tasks
}

// starts is the order in which workspaces' tasks began.
type starts struct {
	mu    sync.Mutex
	order []string
}

func (s *starts) add(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.order = append(s.order, name)
}

func (s *starts) has(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.order, name)
}

// between counts the starts of each name after one mark and before another.
func (s *starts) between(from, to string) map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	counts := map[string]int{}
	first, last := slices.Index(s.order, from), slices.Index(s.order, to)
	for i := first + 1; i < last; i++ {
		counts[s.order[i]]++
	}
	return counts
}

// count reads one of the worker's counters.
func (r *rig) count(name, label string) float64 {
	r.t.Helper()
	families, err := r.reg.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && len(m.GetLabel()) == 1 && m.GetLabel()[0].GetValue() == label {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

func TestTurnsThatBringMore(t *testing.T) {
	t.Parallel()

	t.Run("ALoneWorkspaceNeedsFewTurns", func(t *testing.T) {
		t.Parallel()
		r, _ := startLooking(t, 5, func(context.Context, agent.Task, agent.Recorder) (agent.Result, error) {
			return agent.Result{Output: "ok"}, nil
		})
		ws := storetest.NewWorkspace(t, r.env, "starter") // cap 3: with fewer slots than cap its own next turn stands in line
		tasks := make([]store.NewTask, 300)
		for i := range tasks {
			tasks[i] = task("short")
		}
		ids := r.submit(ws, tasks...)
		for _, id := range ids {
			r.await(ws, id, store.StatusSucceeded)
		}
		if n := r.count("muster_claims_total", "won"); n > float64(len(ids))/2 { // about 60; more on a loaded machine
			t.Errorf("%v turns for %d tasks", n, len(ids))
		}
	})

	t.Run("NobodyStartsMoreThanTwoBeforeANewcomer", func(t *testing.T) {
		t.Parallel()
		var s starts
		r, _ := startLooking(t, 2, func(_ context.Context, a agent.Task, _ agent.Recorder) (agent.Result, error) {
			s.add(a.Prompt)
			time.Sleep(3 * time.Millisecond)
			return agent.Result{Output: "ok"}, nil
		})
		flood := map[string][]uuid.UUID{}
		workspaces := map[string]uuid.UUID{}
		for _, name := range []string{"a", "b", "c", "d"} {
			workspaces[name] = storetest.NewWorkspace(t, r.env, "starter")
			tasks := make([]store.NewTask, 80)
			for i := range tasks {
				tasks[i] = task(name)
			}
			flood[name] = r.submit(workspaces[name], tasks...)
		}
		r.await(workspaces["a"], flood["a"][20], store.StatusSucceeded) // all under way
		newcomer := storetest.NewWorkspace(t, r.env, "starter")
		var ids []uuid.UUID
		done := r.do(newcomer, func(w *store.Work) error {
			created, err := w.Submit(context.Background(), []store.NewTask{task("new")})
			ids = append(ids, created[0].ID)
			return err
		})
		rdb := r.env.Redis(t)
		for !s.has("new") && rdb.Exists(context.Background(), "asynq:{starter}:t:"+done.Turns[0].ID.String()).Val() == 0 {
			time.Sleep(100 * time.Microsecond) // until its turn stands in line, or has passed it
		}
		s.add("|")
		r.await(newcomer, ids[0], store.StatusSucceeded)
		for name, list := range flood {
			for _, id := range list {
				r.await(workspaces[name], id, store.StatusSucceeded)
			}
		}
		counts := s.between("|", "new")
		t.Logf("starts between the newcomer's turn and its task: %v", counts)
		for name, n := range counts {
			if n > 2 {
				t.Errorf("%s started %d tasks", name, n)
			}
		}
	})
}
