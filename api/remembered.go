package api

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/hashicorp/golang-lru/v2/expirable"
)

// remembered are answers of the ledger to one kind of question, by what was asked. Each is believed for two thirds of the
// life to the whole of it, by chance: what was asked in one moment, by all customers after a start, would else be asked again in one
// moment for ever. Errors are not remembered.
type remembered[K comparable, V any] struct {
	lru  *expirable.LRU[K, believed[V]]
	life time.Duration
	room chan struct{} // for those who ask the ledger now
}

type believed[V any] struct {
	value V
	until time.Time
}

const (
	rememberedMost = 10_000

	// asksAtOnce is for how many of such questions a process takes a connection at a time. Each is a read of a fraction of a
	// millisecond that no row's lock holds up, so that more would only take connections, and the processor time of opening
	// them, from the requests themselves.
	asksAtOnce = 8
)

func remember[K comparable, V any](life time.Duration, room chan struct{}) *remembered[K, V] {
	return &remembered[K, V]{lru: expirable.NewLRU[K, believed[V]](rememberedMost, nil, life), life: life, room: room}
}

// known is what is believed now.
func (r *remembered[K, V]) known(key K) (value V, ok bool) {
	b, ok := r.lru.Get(key)
	if !ok || time.Now().After(b.until) {
		return value, false
	}
	return b.value, true
}

// get asks the ledger when nothing is known. It waits for room to do so until ctx ends.
func (r *remembered[K, V]) get(ctx context.Context, key K, ask func(context.Context) (V, error)) (V, error) {
	if value, ok := r.known(key); ok {
		return value, nil
	}
	select {
	case r.room <- struct{}{}:
		defer func() { <-r.room }()
	case <-ctx.Done():
		var none V
		return none, fmt.Errorf("wait to ask the ledger: %w", ctx.Err())
	}
	if value, ok := r.known(key); ok { // somebody has asked meanwhile
		return value, nil
	}
	value, err := ask(ctx)
	if err == nil {
		r.add(key, value)
	}
	return value, err
}

func (r *remembered[K, V]) add(key K, value V) {
	r.lru.Add(key, believed[V]{value, time.Now().Add(r.life - rand.N(r.life/3+1))})
}

func (r *remembered[K, V]) forget(key K) { r.lru.Remove(key) }

// forgetAll forgets those that match, so that this process sees a change at once.
func (r *remembered[K, V]) forgetAll(match func(V) bool) {
	for _, key := range r.lru.Keys() {
		if b, ok := r.lru.Peek(key); ok && match(b.value) {
			r.lru.Remove(key)
		}
	}
}
