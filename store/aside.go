package store

import (
	"slices"
	"sync"

	"github.com/google/uuid"
)

// asideRoom is where what met a held load row waits for it, apart from the lanes: each workspace's by itself, in one goroutine
// and one transaction at a time, together with what arrives for it meanwhile. So a row that stays held costs one connection,
// and nobody else's time.
type asideRoom[T comparable] struct {
	most  int           // of a batch
	seats chan struct{} // each takes a connection, for one batch

	mu      sync.Mutex
	waiting map[uuid.UUID][]T // by workspace; present while serve runs for it
}

// asideSeats is how many workspaces wait for their rows at once.
const asideSeats = 4

func newAsideRoom[T comparable](most int) asideRoom[T] {
	return asideRoom[T]{most: most, seats: make(chan struct{}, asideSeats), waiting: map[uuid.UUID][]T{}}
}

// join lets one wait with its workspace, if that waits aside.
func (r *asideRoom[T]) join(ws uuid.UUID, one T) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	others, ok := r.waiting[ws]
	if ok {
		r.waiting[ws] = append(others, one)
	}
	return ok
}

// put lets some wait for their workspace's row; true when the workspace was not there yet and has to be served.
func (r *asideRoom[T]) put(ws uuid.UUID, some ...T) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	others, ok := r.waiting[ws]
	r.waiting[ws] = append(others, some...)
	return !ok
}

// withdraw takes one out again; false when it is in a batch by now, or was never here.
func (r *asideRoom[T]) withdraw(ws uuid.UUID, one T) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.Index(r.waiting[ws], one)
	if i < 0 {
		return false
	}
	r.waiting[ws] = slices.Delete(r.waiting[ws], i, i+1)
	return true
}

// serve commits what waits for a workspace's row, a batch at a time, until nothing does.
func (r *asideRoom[T]) serve(ws uuid.UUID, commit func(batch []T)) {
	for left := false; !left; left = r.leave(ws) {
		r.seats <- struct{}{} // in the order of asking, so that no row that stays held keeps others from a seat
		if batch := r.take(ws); len(batch) > 0 {
			commit(batch)
		}
		<-r.seats
	}
}

// take takes a batch of what waits in a workspace's place.
func (r *asideRoom[T]) take(ws uuid.UUID) []T {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := min(len(r.waiting[ws]), r.most)
	batch := slices.Clone(r.waiting[ws][:n])
	r.waiting[ws] = slices.Delete(r.waiting[ws], 0, n)
	return batch
}

// leave gives a workspace's place up, unless more has come.
func (r *asideRoom[T]) leave(ws uuid.UUID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.waiting[ws]) > 0 {
		return false
	}
	delete(r.waiting, ws)
	return true
}
