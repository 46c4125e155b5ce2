package main

import (
	"context"
	"math/rand/v2"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/worker"
	"github.com/generic-corp/muster/worker/childprocess"
)

// recovery: kill -9 of a real worker process at a seeded random moment while its tasks run; seconds until the last of them
// runs again elsewhere, as the model service sees it: its agent's call arrives a second time.
//
// Six workers and one scheduler run. Every few seconds one worker that holds tasks is killed and another started in its
// place, as a supervisor would; what each victim held is tracked apart, so thirty kills take two minutes. The slots of the
// other five have room for everything. A task whose worker is killed answers at once when it runs again, so that none
// crashes twice (the second time it would wait first, by design, to meet other neighbours).

const (
	recoveryKills   = 30
	recoverySeed    = 1
	recoveryWorkers = 6
	recoverySlots   = 10
	recoveryTask    = 6 * time.Second
	recoveryLimit   = 60 * time.Second       // then something is broken
	inFlight        = 100 * time.Millisecond // calls that a killed worker had sent may still arrive
)

// sightings are the calls of tasks at the model service.
type sightings struct {
	mu    sync.Mutex
	calls map[string][]time.Time // by the task's number
	heard chan struct{}          // closed at a call, then replaced
}

var taskNumber = regexp.MustCompile(`task=(\d+)`)

// see notes a call; one that repeats an earlier one is not to take its time again.
func (s *sightings) see(body []byte) []byte {
	m := taskNumber.FindSubmatch(body)
	if m == nil {
		return body
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	number := string(m[1])
	s.calls[number] = append(s.calls[number], time.Now())
	close(s.heard)
	s.heard = make(chan struct{})
	if len(s.calls[number]) > 1 {
		body = []byte(strings.ReplaceAll(string(body), "sleep="+recoveryTask.String(), "sleep=10ms"))
	}
	return body
}

// since is when the task was first called behind a moment; else what closes at the next call.
func (s *sightings) since(number string, at time.Time) (first time.Time, heard <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.calls[number] {
		if t.After(at) {
			return t, nil
		}
	}
	return time.Time{}, s.heard
}

// heldTask is a task that a worker held when it was killed.
type heldTask struct {
	Task    uuid.UUID `db:"task_id"`
	Number  string    `db:"number"`
	Crashes int       `db:"crashes"`
}

func recoveryMuster(h *host, scale int) []figure {
	kills := max(3, recoveryKills/scale)
	random := rand.New(rand.NewPCG(recoverySeed, uint64(kills)))
	f := newFleet(h)
	c := newCrew(h, f.env, map[string]string{"WORKER_CONCURRENCY": strconv.Itoa(recoverySlots), "LOG_LEVEL": "error"})
	seen := &sightings{calls: map[string][]time.Time{}, heard: make(chan struct{})}
	c.called = seen.see
	c.start("scheduler", "scheduler")
	names := make([]string, recoveryWorkers)
	for i := range names {
		names[i] = "worker " + strconv.Itoa(i)
		c.start(names[i], "worker")
	}
	// Ten tasks of each of three workspaces run at once, about five on each worker.
	f.load(f.clones(3, "pro"), 30*(kills+10), " task=# sleep="+recoveryTask.String())
	time.Sleep(3 * time.Second) // all of them run, and all workers have beaten

	var waits []time.Duration
	var mu sync.Mutex
	var watching sync.WaitGroup
	for range kills {
		time.Sleep(2*time.Second + time.Duration(random.Int64N(int64(2*time.Second))))
		name, held, at := f.killOne(c, names, random)
		f.crashed += int64(len(held))
		watching.Go(func() {
			last := seen.last(h, held, at)
			mu.Lock()
			waits = append(waits, last)
			mu.Unlock()
		})
		c.start(name, "worker")
	}
	await(h, watching.Wait)
	c.end()
	f.check()
	slices.Sort(waits)
	return []figure{{"p50", percentile(waits, 50).Seconds(), "s"}, {"p95", percentile(waits, 95).Seconds(), "s"},
		{"max", waits[len(waits)-1].Seconds(), "s"}, {"kills", float64(len(waits)), ""}, {"tasks that crashed", float64(f.crashed), ""}}
}

// killOne kills one of the workers that hold tasks, none of which has crashed before, and says what it held.
func (f *fleet) killOne(c *crew, names []string, random *rand.Rand) (name string, held []heldTask, at time.Time) {
	db := f.env.Admin(f.h)
	for {
		name = names[random.IntN(len(names))]
		p := c.procs[name]
		const query = `SELECT l.task_id, substring(t.prompt from 'task=([0-9]+)') AS number, t.crashes
			FROM leases l JOIN tasks t ON t.workspace_id = l.workspace_id AND t.id = l.task_id JOIN workers w ON w.id = l.worker_id
			WHERE w.name LIKE '%/' || $1::text AND w.dead_at IS NULL`
		f.h.must(db.Select(&held, query, strconv.Itoa(p.PID())))
		if len(held) == 0 || slices.ContainsFunc(held, func(t heldTask) bool { return t.Crashes > 0 }) {
			held = nil
			time.Sleep(50 * time.Millisecond)
			continue
		}
		f.h.must(p.End(context.Background(), 0, syscall.SIGKILL))
		at = time.Now()
		held = nil // what it held when it was gone: nobody touches that before it is declared dead
		f.h.must(db.Select(&held, query, strconv.Itoa(p.PID())))
		return name, held, at
	}
}

// last is how long behind a moment the last of the tasks was called again.
func (s *sightings) last(h *host, tasks []heldTask, at time.Time) (longest time.Duration) {
	limit := time.After(time.Until(at.Add(recoveryLimit)))
	for _, t := range tasks {
		for {
			first, heard := s.since(t.Number, at.Add(inFlight))
			if heard == nil {
				longest = max(longest, first.Sub(at))
				break
			}
			select {
			case <-heard:
			case <-limit:
				h.Fatalf("task %s did not run again within %s of its worker's death", t.Task, recoveryLimit)
			}
		}
	}
	return longest
}

// await waits for fn, or until the bout has failed.
func await(h *host, fn func()) {
	done := make(chan struct{})
	go func() {
		fn()
		close(done)
	}()
	select {
	case <-done:
	case <-h.failed:
		h.must(h.err)
	}
}

// recoveryAsynq: one kill of a bare Asynq server that holds ten tasks, with a second server there. It recovers by a sweep
// once a minute, so this takes minutes.

const (
	asynqVictim      = "MUSTER_BENCH_ASYNQ_VICTIM" // a Redis URL: be the server that is killed
	asynqVictimTasks = 10
	asynqStarted     = "started" // a list in Redis: who has started what
)

func asynqServer(url string, who string) (*asynq.Server, error) {
	opt, err := asynq.ParseRedisURI(url)
	if err != nil {
		return nil, err
	}
	rdb := opt.MakeRedisClient().(redis.UniversalClient)
	server := asynq.NewServer(opt, asynq.Config{Concurrency: asynqVictimTasks, Logger: worker.AsynqLogger(zerolog.Nop()), LogLevel: asynq.FatalLevel, ShutdownTimeout: time.Second})
	return server, server.Start(asynq.HandlerFunc(func(ctx context.Context, t *asynq.Task) error {
		if err := rdb.RPush(ctx, asynqStarted, who+" "+string(t.Payload())).Err(); err != nil {
			return err
		}
		if who == "victim" {
			pause(ctx, time.Hour)
		}
		return nil
	}))
}

// beAsynqVictim is this program as the server that is killed.
func beAsynqVictim(url string) {
	server, err := asynqServer(url, "victim")
	if err != nil {
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	<-ctx.Done()
	server.Shutdown()
}

func recoveryAsynq(h *host, _ int) []figure {
	url := h.servers().Redis.URL(0)
	opt, err := asynq.ParseRedisURI(url)
	h.must(err)
	client := asynq.NewClient(opt)
	defer client.Close()
	rdb := opt.MakeRedisClient().(redis.UniversalClient)
	defer rdb.Close()
	started := func(who string) (n int) {
		all, err := rdb.LRange(context.Background(), asynqStarted, 0, -1).Result()
		h.must(err)
		for _, line := range all {
			if strings.HasPrefix(line, who) {
				n++
			}
		}
		return n
	}
	self, err := os.Executable()
	h.must(err)
	victim, err := childprocess.Start(childprocess.Config{Argv: []string{self}, Env: append(os.Environ(), asynqVictim+"="+url), OnParentDeath: syscall.SIGKILL})
	h.must(err)
	h.Cleanup(func() { _ = victim.End(context.Background(), 0, syscall.SIGKILL) })
	for i := range asynqVictimTasks {
		_, err := client.Enqueue(asynq.NewTask("job", []byte(strconv.Itoa(i))), asynq.MaxRetry(3))
		h.must(err)
	}
	for started("victim") < asynqVictimTasks {
		time.Sleep(20 * time.Millisecond)
	}
	second, err := asynqServer(url, "second")
	h.must(err)
	h.Cleanup(second.Shutdown)
	time.Sleep(2 * time.Second)
	h.must(victim.End(context.Background(), 0, syscall.SIGKILL))
	at := time.Now()
	for started("second") < asynqVictimTasks {
		if time.Since(at) > 5*time.Minute {
			h.Fatal("the tasks did not run again within 5 minutes")
		}
		time.Sleep(50 * time.Millisecond)
	}
	return []figure{{"p50", time.Since(at).Seconds(), "s"}, {"kills", 1, ""}}
}
