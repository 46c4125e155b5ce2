package worker

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// gate is the Redis client that the Asynq server gets. It passes everything on except the server's fetches:
//
//   - A fetch waits for a free slot and reserves it, so that no turn is popped to wait behind a long task.
//   - Which queue it pops from is for the shares to say (shares.go), whichever one Asynq asks for.
//   - While several slots are free it pops for all of them in one round trip and hands the turns out one by one: Asynq
//     fetches one after the other, and a round trip for each would bound the worker.
//   - A queue that was found empty waits for an announcement (jobs.WatchTurns) instead of being asked again; announcements
//     may be lost, so after lookInterval it is asked all the same.
//
// It knows a fetch by the shape of its script's keys and arguments (isFetch). Asynq's version is pinned and TestGate fails when the
// shape changes; without the gate an idle server would poll.
type gate struct {
	redis.UniversalClient
	slots        *slots
	queues       []string
	lookInterval time.Duration
	stopping     <-chan struct{}

	mu        sync.Mutex
	popped    []*redis.Cmd   // turns that wait for Asynq's next fetch, each with a slot
	ahead     int            // how many to pop at once, at least 1: doubled while Redis has as many, else what it had
	handing   map[string]int // queue → slots reserved for turns that were popped and not handed to the handler yet
	poppedAt  time.Time
	heard     chan struct{} // closed at an announcement, then replaced
	news      uint64        // announcements so far
	emptyAt   map[string]time.Time
	newcomers map[string]newcomer // queue → the last who came and may still wait
	idleAt    time.Time           // when idle was last found out
	lineIdle  bool
	looking   bool
	popping   bool
	stopped   bool // what is popped is handed out no more
}

const (
	// Asynq dates the lease that it will have on a turn, 30 s, before it asks for one. So a fetch that has waited for this long returns with
	// nothing and is asked again: else the turn's lease might be over when it comes, and Asynq could neither end nor retry it.
	fetchLimit    = 5 * time.Second
	asynqTick     = time.Millisecond // Asynq's own pause after it found all queues empty: the gate does the waiting
	handLimit     = time.Second      // a popped turn reaches its handler far sooner, or never (a message that Asynq cannot read)
	idleAge       = 5 * time.Millisecond
	newcomerLimit = time.Minute // a newcomer of whose turn nothing is seen for so long is believed to be served: Postgres' clock was set back
	maxAhead      = 32
)

func newGate(rdb redis.UniversalClient, s *slots, lookInterval time.Duration, stopping <-chan struct{}) *gate {
	return &gate{UniversalClient: rdb, slots: s, queues: slices.Sorted(maps.Keys(s.weights)), lookInterval: lookInterval, stopping: stopping, ahead: 1,
		handing: map[string]int{}, heard: make(chan struct{}), emptyAt: map[string]time.Time{}, newcomers: map[string]newcomer{}}
}

// EvalSha is how Asynq runs its scripts.
func (g *gate) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	if isFetch(keys, args) {
		return g.fetch(ctx, func(p redis.Pipeliner, queue string) *redis.Cmd {
			return p.EvalSha(ctx, sha, fetchKeys(queue), args[0], taskPrefix(queue))
		})
	}
	return g.UniversalClient.EvalSha(ctx, sha, keys, args...)
}

// Eval is how Asynq runs a script that Redis does not know yet.
func (g *gate) Eval(ctx context.Context, script string, keys []string, args ...any) *redis.Cmd {
	if isFetch(keys, args) {
		return g.fetch(ctx, func(p redis.Pipeliner, queue string) *redis.Cmd {
			return p.Eval(ctx, script, fetchKeys(queue), args[0], taskPrefix(queue))
		})
	}
	return g.UniversalClient.Eval(ctx, script, keys, args...)
}

// isFetch knows Asynq's dequeue script by its keys and arguments: the lease's end and the prefix of the queue's tasks.
func isFetch(keys []string, args []any) bool {
	if len(keys) != 4 || len(args) != 2 {
		return false
	}
	queue, ok := strings.CutPrefix(keys[0], "asynq:{")
	if !ok {
		return false
	}
	queue, ok = strings.CutSuffix(queue, "}:pending")
	return ok && slices.Equal(keys, fetchKeys(queue)) && args[1] == taskPrefix(queue)
}

func fetchKeys(queue string) []string {
	key := "asynq:{" + queue + "}:"
	return []string{key + "pending", key + "paused", key + "active", key + "lease"}
}

func taskPrefix(queue string) string { return "asynq:{" + queue + "}:t:" }

// fetch returns one turn, as Asynq's script would, when there are a turn and a slot for it; nothing when there were none for
// fetchLimit, and when the worker stops and has handed out what it had popped.
func (g *gate) fetch(ctx context.Context, pop func(p redis.Pipeliner, queue string) *redis.Cmd) *redis.Cmd {
	nothing := redis.NewCmd(ctx)
	nothing.SetErr(redis.Nil)
	for until := time.Now().Add(fetchLimit); ; {
		if cmd := g.takePopped(); cmd != nil {
			return cmd
		}
		queues, n := g.plan()
		if len(queues) == 0 {
			if n.limit = min(n.limit, time.Until(until)); n.limit <= 0 || !g.sleep(n) {
				return nothing
			}
			continue
		}
		if err := g.pop(ctx, queues, pop); err != nil {
			cmd := redis.NewCmd(ctx)
			cmd.SetErr(err)
			return cmd
		}
	}
}

func (g *gate) takePopped() *redis.Cmd {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.takeBack()
	if len(g.popped) == 0 {
		return nil
	}
	cmd := g.popped[0]
	g.popped = g.popped[1:]
	return cmd
}

// nap is a wait for an announcement, for a free slot, or for the time to look all the same.
type nap struct {
	heard, freed <-chan struct{}
	limit        time.Duration
}

// plan reserves slots and says from which queues to pop for them, or what to wait for.
func (g *gate) plan() (queues []string, n nap) {
	g.mu.Lock()
	defer g.mu.Unlock()
	n = nap{heard: g.heard, limit: g.lookInterval}
	select {
	case <-g.stopping:
		return nil, n
	default:
	}
	full := make([]string, 0, len(g.queues))
	for _, q := range g.queues {
		at, empty := g.emptyAt[q]
		left := g.lookInterval - time.Since(at)
		if !empty || left <= 0 {
			full = append(full, q)
			continue
		}
		n.limit = min(n.limit, left)
	}
	queues, n.freed = g.slots.share(g.ahead, full)
	g.popping = len(queues) > 0
	return queues, n
}

// sleep is false when the worker stops.
func (g *gate) sleep(n nap) bool {
	timer := time.NewTimer(n.limit)
	defer timer.Stop()
	select {
	case <-n.heard:
	case <-n.freed:
	case <-timer.C:
	case <-g.stopping:
		return false
	}
	return true
}

// pop pops a turn for each slot that plan has reserved, and gives back the slots for which there was none.
func (g *gate) pop(ctx context.Context, queues []string, pop func(p redis.Pipeliner, queue string) *redis.Cmd) error {
	g.mu.Lock()
	news := g.news
	g.mu.Unlock()
	cmds := make([]*redis.Cmd, len(queues))
	_, _ = g.UniversalClient.Pipelined(ctx, func(p redis.Pipeliner) error { // each answer has its own error
		for i, q := range queues {
			cmds[i] = pop(p, q)
		}
		return nil
	})
	g.mu.Lock()
	defer g.mu.Unlock()
	g.popping = false
	var failed error
	got := 0
	for i, q := range queues {
		switch err := cmds[i].Err(); {
		case err == nil:
			got++
			g.popped = append(g.popped, cmds[i])
			g.handing[q]++
			g.poppedAt = time.Now()
			continue
		case err != redis.Nil: //nolint:errorlint // go-redis returns it bare
			failed = err
		case g.news == news:
			g.emptyAt[q] = time.Now()
			delete(g.newcomers, q)
		}
		g.slots.release(q, 1)
	}
	if g.ahead = max(1, got); got == len(queues) {
		g.ahead = min(2*got, maxAhead)
	}
	if g.stopped {
		g.abandon()
	}
	if got > 0 {
		return nil
	}
	return failed
}

// hand gives a popped turn's slot to its handler. One whose slot was taken back waits for another.
func (g *gate) hand(queue string) {
	g.mu.Lock()
	reserved := g.handing[queue] > 0
	if reserved {
		g.handing[queue]--
	}
	g.mu.Unlock()
	for !reserved {
		freed := g.slots.takeOr(queue)
		if freed == nil {
			return
		}
		<-freed
	}
}

// takeBack frees the slots of turns that never reached a handler. Called with mu held.
func (g *gate) takeBack() {
	if time.Since(g.poppedAt) > handLimit && len(g.popped) == 0 {
		g.abandon()
	}
}

// stop waits, for handLimit at most, until what was popped has been handed out: a worker that drains gives it back to the line. It
// frees the slots of what was not, which comes back when Asynq's lease on it ends, or is issued anew before.
func (g *gate) stop() {
	over := func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return len(g.popped) == 0 && !g.popping
	}
	for deadline := time.Now().Add(handLimit); !over() && time.Now().Before(deadline); {
		time.Sleep(asynqTick)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stopped = true
	g.abandon()
}

// abandon frees the slots of popped turns. A handler that is on its way with one finds itself another slot (hand). Called with
// mu held.
func (g *gate) abandon() {
	g.popped = nil
	for queue, n := range g.handing {
		g.slots.release(queue, n)
	}
	clear(g.handing)
}

// announce is told what jobs.WatchTurns hears.
func (g *gate) announce(queue string, issued time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if queue == "" {
		clear(g.emptyAt)
	} else {
		delete(g.emptyAt, queue)
	}
	if issued.After(g.newcomers[queue].issued) {
		g.newcomers[queue] = newcomer{issued, time.Now()}
	}
	g.news++
	g.lineIdle = false
	close(g.heard)
	g.heard = make(chan struct{})
}

// newcomer is a workspace that came to a queue from outside.
type newcomer struct{ issued, heard time.Time } // its turn, by Postgres' clock; its announcement, by ours

// awaits says whether a newcomer waits in the queue.
func (g *gate) awaits(queue string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	n, ok := g.newcomers[queue]
	return ok && time.Since(n.heard) < newcomerLimit
}

// served notes that a turn of the queue is being served. A queue is a line: whoever stood there before it has been served too,
// here or by another worker.
func (g *gate) served(queue string, issued time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if n, ok := g.newcomers[queue]; ok && !issued.Before(n.issued) {
		delete(g.newcomers, queue)
	}
}

// idle says whether nobody waits in the queues, as of at most idleAge ago. It says no while it doesn't know.
func (g *gate) idle() bool {
	g.mu.Lock()
	if g.looking || len(g.popped) > 0 || time.Since(g.idleAt) < idleAge {
		defer g.mu.Unlock()
		return g.lineIdle && len(g.popped) == 0
	}
	g.looking = true
	news := g.news
	g.mu.Unlock()

	ctx, cancel := context.WithTimeout(context.Background(), handLimit)
	defer cancel()
	waiting := make([]*redis.IntCmd, len(g.queues))
	_, err := g.UniversalClient.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, q := range g.queues {
			waiting[i] = p.LLen(ctx, fetchKeys(q)[0])
		}
		return nil
	})
	idle := err == nil
	for _, n := range waiting {
		idle = idle && n.Val() == 0
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.looking, g.idleAt, g.lineIdle = false, time.Now(), idle && g.news == news
	return g.lineIdle
}
