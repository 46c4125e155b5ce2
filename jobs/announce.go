package jobs

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// Announcements tell idle workers that a turn was put in line, so that they sleep instead of polling: a wake-up may be
// lost, a worker looks by itself from time to time. They also tell busy workers that a newcomer waits (a workspace that
// comes to the line from outside, not back to it), so that nobody goes on with its next task before it.

// announceChannel carries a queue's name, and behind newcomerMark when the last newcomer's turn was issued, in Unix milliseconds as in its message.
const (
	announceChannel = "muster:turns"
	newcomerMark    = "!"
)

// announcePause is the least time between two announcements of one process: many turns that are enqueued together
// share one.
const announcePause = time.Millisecond

// announcer publishes which queues have got turns.
type announcer struct {
	rdb    redis.UniversalClient
	signal chan struct{} // holds one: something is dirty
	done   chan struct{} // closed when run has returned

	mu    sync.Mutex
	dirty map[string]time.Time // queue → when its last newcomer's turn was issued; zero: there was none
}

func newAnnouncer(rdb redis.UniversalClient) *announcer {
	a := &announcer{rdb: rdb, signal: make(chan struct{}, 1), done: make(chan struct{}), dirty: map[string]time.Time{}}
	go a.run()
	return a
}

// note remembers that the queue of the turn has got it, and returns at once.
func (a *announcer) note(t queued) {
	a.mu.Lock()
	newcomer := a.dirty[t.Queue]
	if t.newcomer && t.IssuedAt.After(newcomer) {
		newcomer = t.IssuedAt
	}
	a.dirty[t.Queue] = newcomer
	a.mu.Unlock()
	select {
	case a.signal <- struct{}{}:
	default:
	}
}

// close announces what is left.
func (a *announcer) close() {
	close(a.signal)
	<-a.done
}

func (a *announcer) run() {
	defer close(a.done)
	for range a.signal {
		a.mu.Lock()
		dirty := a.dirty
		a.dirty = map[string]time.Time{}
		a.mu.Unlock()
		for queue, newcomer := range dirty {
			if !newcomer.IsZero() {
				queue += newcomerMark + strconv.FormatInt(newcomer.UnixMilli(), 10)
			}
			ctx, cancel := context.WithTimeout(context.Background(), enqueueTimeout)
			_ = a.rdb.Publish(ctx, announceChannel, queue).Err() // workers also look by themselves
			cancel()
		}
		time.Sleep(announcePause)
	}
}

// WatchTurns calls heard for each announcement until ctx ends. With an empty queue it says that announcements may have
// been missed: at the start and after Redis was away. With a time it tells of a newcomer, whose turn was issued then: it has been
// served when that turn has, or a later one of the queue.
func WatchTurns(ctx context.Context, rdb redis.UniversalClient, heard func(queue string, newcomer time.Time)) {
	sub := rdb.Subscribe(ctx, announceChannel)
	defer sub.Close()
	events := sub.ChannelWithSubscriptions()
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-events:
			if !ok {
				return
			}
			switch e := e.(type) {
			case *redis.Subscription:
				heard("", time.Time{})
			case *redis.Message:
				heard(parseAnnouncement(e.Payload))
			}
		}
	}
}

func parseAnnouncement(payload string) (queue string, newcomer time.Time) {
	queue, mark, _ := strings.Cut(payload, newcomerMark)
	if at, err := strconv.ParseInt(mark, 10, 64); err == nil {
		newcomer = time.UnixMilli(at)
	}
	return queue, newcomer
}
