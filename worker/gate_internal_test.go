package worker

import (
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// fetchOnce asks the gate as Asynq does.
func fetchOnce(t *testing.T, g *gate) error {
	t.Helper()
	lease := time.Now().Add(30 * time.Second).Unix()
	return g.Eval(t.Context(), `return redis.call("RPOP", KEYS[1]) or false`, fetchKeys(store.QueuePro), lease, taskPrefix(store.QueuePro)).Err()
}

// The lease that Asynq will have on a turn is dated before the fetch.
func TestAFetchThatFindsNothingReturnsLongBeforeAsynqsLeaseIsOver(t *testing.T) {
	t.Parallel()
	g := newGate(storetest.New(t).Redis(t), newSlots(newShares(2, DefaultWeights, false)), time.Hour, make(chan struct{}))
	began := time.Now()
	if err := fetchOnce(t, g); err != redis.Nil { //nolint:errorlint // go-redis returns it bare
		t.Fatalf("a fetch from empty queues: %v", err)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %s of the 30 s", took)
	}
}

// What was popped holds slots. A worker that drains gets them back, whether or not Asynq still takes the turns.
func TestPoppedTurnsKeepNoSlotsOfAWorkerThatDrains(t *testing.T) {
	t.Parallel()
	rdb := storetest.New(t).Redis(t)
	client := asynq.NewClientFromRedisClient(rdb)
	for range 4 {
		if _, err := client.Enqueue(asynq.NewTask("turn", nil), asynq.Queue(store.QueuePro)); err != nil {
			t.Fatal(err)
		}
	}
	stopping := make(chan struct{})
	s := newSlots(newShares(4, map[string]int{store.QueuePro: 1}, false))
	g := newGate(rdb, s, time.Hour, stopping)
	g.ahead = 4
	if err := fetchOnce(t, g); err != nil {
		t.Fatal(err)
	}
	if len(g.popped) != 3 || s.take(store.QueuePro, 1) != 0 {
		t.Fatalf("%d turns are popped and wait: the test tests nothing", len(g.popped))
	}
	close(stopping)
	if err := fetchOnce(t, g); err != nil {
		t.Errorf("a popped turn is not handed out while the worker drains: %v", err)
	}
	g.stop()
	if !s.waitEmpty(0) {
		t.Errorf("%v slots are held though no handler has a turn", s.held)
	}
	if err := fetchOnce(t, g); err != redis.Nil { //nolint:errorlint // go-redis returns it bare
		t.Errorf("a fetch behind the stop: %v", err)
	}
}

func TestANewcomerIsAwaitedUntilItIsServed(t *testing.T) {
	t.Parallel()
	pro, at := store.QueuePro, time.Now()
	g := newGate(storetest.New(t).Redis(t), newSlots(newShares(2, DefaultWeights, false)), time.Hour, make(chan struct{}))
	awaited := func(what string, want bool) {
		t.Helper()
		if got := g.awaits(pro); got != want {
			t.Errorf("%s: awaited %t, want %t", what, got, want)
		}
	}
	awaited("nobody came", false)
	g.announce(pro, time.Time{})
	awaited("somebody came back", false)
	g.announce(pro, at)
	awaited("one came", true)
	g.served(pro, at.Add(-time.Millisecond))
	g.served(store.QueueFree, at)
	awaited("one before it was served, and one of another queue", true)
	g.announce(pro, at.Add(-time.Second))
	g.served(pro, at.Add(-time.Second))
	awaited("one that came before it was announced late", true)
	g.served(pro, at)
	awaited("it was served", false)
	g.announce(pro, at.Add(time.Second))
	g.served(pro, at.Add(time.Minute))
	awaited("one behind it was served, so another worker had it", false)
	g.announce(pro, at.Add(time.Hour))
	if err := fetchOnce(t, g); err != redis.Nil { //nolint:errorlint // go-redis returns it bare
		t.Fatal(err)
	}
	awaited("the queue was found empty", false)
	g.announce(pro, at.Add(2*time.Hour))
	n := g.newcomers[pro]
	n.heard = n.heard.Add(-newcomerLimit)
	g.newcomers[pro] = n
	awaited("nothing was seen of it for a long time", false)
}
