package api

import (
	"context"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/store"
)

// backstage does what no answer waits for: work whose time an answer must not tell (is there such a user?), and the
// notes of API keys' last use and of what strangers did, written in batches. All are bounded; what does not fit is dropped, and said so. It works
// from Serve to Shutdown.
type backstage struct {
	server *Server
	queue  chan func(ctx context.Context) error
	ending chan struct{}
	end    sync.Once
	done   sync.WaitGroup

	mu   sync.Mutex
	uses map[uuid.UUID]store.KeyUse // by key, since the last note
}

// Bounds of what waits backstage.
const (
	backstageQueue = 1_000
	backstageUses  = 100_000 // keys
)

func newBackstage(s *Server) *backstage {
	return &backstage{server: s, queue: make(chan func(context.Context) error, backstageQueue), ending: make(chan struct{}),
		uses: map[uuid.UUID]store.KeyUse{}}
}

// later has fn done soon, off the request's path. Its error is logged; it must hold nothing of the customer's.
func (b *backstage) later(log *zerolog.Logger, what string, fn func(ctx context.Context) error) {
	task := func(ctx context.Context) error {
		if err := fn(ctx); err != nil {
			log.Error().Err(err).Msg(what + " failed")
		}
		return nil
	}
	select {
	case b.queue <- task:
	default:
		log.Warn().Msg(what + " dropped: too many wait")
	}
}

// used notes that a key was used now.
func (b *backstage) used(id store.Identity, at time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, known := b.uses[id.Key]; known || len(b.uses) < backstageUses {
		b.uses[id.Key] = store.KeyUse{Workspace: id.Workspace, Key: id.Key, At: at}
	}
}

// start works until stop.
func (b *backstage) start() {
	b.done.Go(func() {
		for {
			select {
			case task := <-b.queue:
				b.run(task)
			case <-b.ending:
				for len(b.queue) > 0 { // one reader: it does not block
					b.run(<-b.queue)
				}
				return
			}
		}
	})
	b.done.Go(func() {
		tick := time.NewTicker(b.server.NoteInterval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				b.run(b.noteUses)
				b.run(func(ctx context.Context) error { return b.server.strangers.write(ctx, b.server.Store, false) })
			case <-b.ending:
				b.run(b.noteUses)
				b.run(func(ctx context.Context) error { return b.server.strangers.write(ctx, b.server.Store, true) })
				return
			}
		}
	})
}

func (b *backstage) run(task func(ctx context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), b.server.WorkTimeout)
	defer cancel()
	if err := task(ctx); err != nil {
		b.server.Log.Warn().Err(err).Msg("backstage")
	}
}

// noteUses writes down what used has collected; when the ledger is away it is tried again with the next batch.
func (b *backstage) noteUses(ctx context.Context) error {
	b.mu.Lock()
	batch := b.uses
	b.uses = map[uuid.UUID]store.KeyUse{}
	b.mu.Unlock()
	if len(batch) == 0 {
		return nil
	}
	uses := make([]store.KeyUse, 0, len(batch))
	for _, u := range batch {
		uses = append(uses, u)
	}
	err := b.server.Store.NoteKeyUses(ctx, uses)
	if err != nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		for id, u := range batch {
			if _, newer := b.uses[id]; !newer && len(b.uses) < backstageUses {
				b.uses[id] = u
			}
		}
	}
	return err
}

// stop does what waits, until ctx ends.
func (b *backstage) stop(ctx context.Context) error {
	b.end.Do(func() { close(b.ending) })
	ended := make(chan struct{})
	go func() { b.done.Wait(); close(ended) }()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
