package jobs

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"
)

// Enqueuer puts turns on their queues behind the caller's back: the turn is committed, so a request need not wait for
// Redis, and a turn that cannot be delivered is issued anew by the scheduler.
type Enqueuer struct {
	client  *asynq.Client
	pipe    *Pipe
	news    *announcer
	turns   chan queued
	wg      sync.WaitGroup
	log     zerolog.Logger
	dropped atomic.Int64
	lastLog atomic.Int64 // unix seconds

	mu     sync.RWMutex // held for reading while turns is given something
	closed bool
}

// queued is a turn on its way to Redis.
type queued struct {
	Turn
	newcomer bool
}

const (
	enqueueBuffer  = 16_384 // turns waiting for Redis, about 1.5 MB
	enqueueSenders = 32     // they share round trips
	enqueueTimeout = 5 * time.Second
)

// NewEnqueuer starts the senders on a connection that the caller keeps and closes after Close.
func NewEnqueuer(rdb redis.UniversalClient, log zerolog.Logger) *Enqueuer {
	pipe := NewPipe(rdb)
	e := &Enqueuer{client: asynq.NewClientFromRedisClient(pipe), pipe: pipe, news: newAnnouncer(rdb), turns: make(chan queued, enqueueBuffer), log: log}
	for range enqueueSenders {
		e.wg.Add(1)
		go e.send()
	}
	return e
}

// Enqueue takes turns of workspaces that come to the line and returns at once. When more wait than it keeps, which means
// that Redis has been away for a while, and after Close, it drops them and counts.
func (e *Enqueuer) Enqueue(turns ...Turn) { e.take(true, turns) }

// Requeue is Enqueue for workspaces that go back to the line's end behind a task of theirs.
func (e *Enqueuer) Requeue(turns ...Turn) { e.take(false, turns) }

func (e *Enqueuer) take(newcomers bool, turns []Turn) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.closed { // by whom a process that stops could not wait for
		e.drop(int64(len(turns)), errors.New("this process is stopping"))
		return
	}
	for _, t := range turns {
		select {
		case e.turns <- queued{t, newcomers}:
		default:
			e.drop(1, errors.New("too many turns wait for redis"))
		}
	}
}

// Dropped counts turns that did not reach Redis; the scheduler has issued or will issue them anew.
func (e *Enqueuer) Dropped() int64 { return e.dropped.Load() }

// Close sends what is left, for at most a few seconds.
func (e *Enqueuer) Close() {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return
	}
	e.closed = true
	close(e.turns)
	e.mu.Unlock()
	e.wg.Wait()
	_ = e.pipe.Close()
	e.news.close()
}

func (e *Enqueuer) send() {
	defer e.wg.Done()
	for t := range e.turns {
		if err := e.enqueue(t.Turn); err != nil {
			e.drop(1+e.clear(), err)
			continue
		}
		e.news.note(t)
	}
}

func (e *Enqueuer) enqueue(t Turn) error {
	task, err := newTurnTask(t)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), enqueueTimeout)
	defer cancel()
	if _, err = e.client.EnqueueContext(ctx, task); errors.Is(err, asynq.ErrTaskIDConflict) {
		return nil // it stands in line already: a commit whose answer got lost was repeated
	}
	return err
}

// clear empties the buffer: Redis is away, and waiting out each turn's timeout would only make the rest late.
func (e *Enqueuer) clear() int64 {
	for n := int64(0); ; n++ {
		select {
		case _, ok := <-e.turns:
			if !ok {
				return n
			}
		default:
			return n
		}
	}
}

func (e *Enqueuer) drop(n int64, err error) {
	e.dropped.Add(n)
	now := time.Now().Unix()
	if last := e.lastLog.Load(); now > last && e.lastLog.CompareAndSwap(last, now) { // once a second is enough
		e.log.Warn().Err(err).Int64("dropped_total", e.dropped.Load()).Msg("turns did not reach redis; the scheduler will issue them anew")
	}
}
