package worker

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// gate is the Redis client that a lane's Asynq server gets. It passes everything on except the server's fetches:
//
//   - A fetch waits for a free slot and reserves it, so that no turn is popped to wait behind a long task.
//   - A fetch of a queue that was found empty waits for an announcement (jobs.WatchTurns) instead of asking Redis again;
//     announcements may be lost, so after lookInterval it asks all the same.
//
// It knows a fetch by the shape of its script's keys (isFetch). Asynq's version is pinned and
// TestGateKnowsAsynqsFetch fails when the shape changes; without the gate an idle server would poll.
type gate struct {
	redis.UniversalClient
	slots        *slots
	queues       []string
	lookInterval time.Duration
	stopping     <-chan struct{}

	mu        sync.Mutex
	handing   int // slots reserved for turns that were popped and not handed to the handler yet
	poppedAt  time.Time
	heard     chan struct{} // closed at an announcement, then replaced
	news      uint64        // announcements so far
	emptyAt   map[string]time.Time
	newcomers map[string]time.Time // queue → when one came last
	idleAt    time.Time            // when idle was last found out
	lineIdle  bool
	looking   bool
}

const (
	asynqTick     = time.Millisecond // Asynq's own pause after it found all queues empty: the gate does the waiting
	handLimit     = time.Second      // a popped turn reaches its handler far sooner, or never (a message that Asynq cannot read)
	idleAge       = 5 * time.Millisecond
	newcomerLimit = time.Second // for how long a newcomer keeps slots from going on
)

func newGate(rdb redis.UniversalClient, s *slots, queues []string, lookInterval time.Duration, stopping <-chan struct{}) *gate {
	return &gate{UniversalClient: rdb, slots: s, queues: queues, lookInterval: lookInterval, stopping: stopping,
		heard: make(chan struct{}), emptyAt: map[string]time.Time{}, newcomers: map[string]time.Time{}}
}

// EvalSha is how Asynq runs its scripts.
func (g *gate) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	if queue, ok := isFetch(keys); ok {
		return g.fetch(ctx, queue, func() *redis.Cmd { return g.UniversalClient.EvalSha(ctx, sha, keys, args...) })
	}
	return g.UniversalClient.EvalSha(ctx, sha, keys, args...)
}

// Eval is how Asynq runs a script that Redis does not know yet.
func (g *gate) Eval(ctx context.Context, script string, keys []string, args ...any) *redis.Cmd {
	if queue, ok := isFetch(keys); ok {
		return g.fetch(ctx, queue, func() *redis.Cmd { return g.UniversalClient.Eval(ctx, script, keys, args...) })
	}
	return g.UniversalClient.Eval(ctx, script, keys, args...)
}

// isFetch knows Asynq's dequeue script by its keys: asynq:{QUEUE}:pending, :paused, :active, :lease.
func isFetch(keys []string) (queue string, ok bool) {
	if len(keys) != 4 || !strings.HasSuffix(keys[1], "}:paused") || !strings.HasSuffix(keys[2], "}:active") || !strings.HasSuffix(keys[3], "}:lease") {
		return "", false
	}
	queue, ok = strings.CutPrefix(keys[0], "asynq:{")
	if !ok {
		return "", false
	}
	return strings.CutSuffix(queue, "}:pending")
}

func pendingKey(queue string) string { return "asynq:{" + queue + "}:pending" }

func (g *gate) fetch(ctx context.Context, queue string, pop func() *redis.Cmd) *redis.Cmd {
	nothing := redis.NewCmd(ctx)
	nothing.SetErr(redis.Nil)
	for {
		wait, skip := g.lookAgain(queue)
		if skip {
			return nothing
		}
		if wait != nil && !g.sleep(wait) {
			return nothing
		}
		if wait != nil {
			continue
		}
		if freed := g.slots.takeOr(); freed != nil {
			select {
			case <-freed:
				continue
			case <-g.stopping:
				return nothing
			}
		}
		select {
		case <-g.stopping:
			g.slots.release(1)
			return nothing
		default:
		}
		g.mu.Lock()
		news := g.news
		g.mu.Unlock()
		cmd := pop()
		if cmd.Err() == nil {
			g.mu.Lock()
			g.handing++
			g.poppedAt = time.Now()
			g.mu.Unlock()
			return cmd
		}
		g.slots.release(1)
		if cmd.Err() == redis.Nil { //nolint:errorlint // go-redis returns it bare, and Asynq compares it so
			g.mu.Lock()
			if g.news == news {
				g.emptyAt[queue] = time.Now()
			}
			g.mu.Unlock()
		}
		return cmd
	}
}

// nap is a wait for an announcement, or for the time to look all the same.
type nap struct {
	heard <-chan struct{}
	limit time.Duration
}

// lookAgain says what to do with a fetch of the queue: ask Redis (nil, false), skip to the lane's next queue, or, when
// all of them are known to be empty, wait.
func (g *gate) lookAgain(queue string) (wait *nap, skip bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.takeBack()
	at, empty := g.emptyAt[queue]
	left := g.lookInterval - time.Since(at)
	if !empty || left <= 0 {
		return nil, false
	}
	for _, q := range g.queues {
		at, empty := g.emptyAt[q]
		if !empty || time.Since(at) >= g.lookInterval {
			return nil, true
		}
		left = min(left, g.lookInterval-time.Since(at))
	}
	return &nap{heard: g.heard, limit: left}, false
}

// sleep ends early with an announcement; false when the worker stops.
func (g *gate) sleep(n *nap) bool {
	timer := time.NewTimer(n.limit)
	defer timer.Stop()
	select {
	case <-n.heard:
	case <-timer.C:
	case <-g.stopping:
		return false
	}
	return true
}

// hand gives a popped turn's slot to its handler. One whose slot was taken back waits for another.
func (g *gate) hand() {
	g.mu.Lock()
	reserved := g.handing > 0
	if reserved {
		g.handing--
	}
	g.mu.Unlock()
	for !reserved {
		freed := g.slots.takeOr()
		if freed == nil {
			return
		}
		<-freed
	}
}

// takeBack frees the slots of turns that never reached a handler. Called with mu held.
func (g *gate) takeBack() {
	if g.handing > 0 && time.Since(g.poppedAt) > handLimit {
		g.slots.release(g.handing)
		g.handing = 0
	}
}

// announce is told what jobs.WatchTurns hears.
func (g *gate) announce(queue string, newcomer bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if queue == "" {
		clear(g.emptyAt)
	} else {
		delete(g.emptyAt, queue)
	}
	if newcomer {
		g.newcomers[queue] = time.Now()
	}
	g.news++
	g.lineIdle = false
	close(g.heard)
	g.heard = make(chan struct{})
}

// newcomer says whether a workspace has come to the queue a moment ago, and may still wait there.
func (g *gate) newcomer(queue string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return time.Since(g.newcomers[queue]) < newcomerLimit
}

// idle says whether nobody waits in the lane's queues, as of at most idleAge ago. It says no while it doesn't know.
func (g *gate) idle() bool {
	g.mu.Lock()
	if g.looking || time.Since(g.idleAt) < idleAge {
		defer g.mu.Unlock()
		return g.lineIdle
	}
	g.looking = true
	news := g.news
	g.mu.Unlock()

	ctx, cancel := context.WithTimeout(context.Background(), handLimit)
	defer cancel()
	waiting := make([]*redis.IntCmd, len(g.queues))
	_, err := g.UniversalClient.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, q := range g.queues {
			waiting[i] = p.LLen(ctx, pendingKey(q))
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
