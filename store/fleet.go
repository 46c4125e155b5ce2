package store

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"runtime"
	"sync"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// Fleet is a worker process's side of the ledger, with the login role muster_worker.
//
// Claims and finishes that arrive together share one transaction (group commit): one durable life of a task as three
// transactions costs 1,380 tasks/s on two cores, the same work in batches of a hundred 47,900/s. Two lanes, chosen by
// the workspace, keep the database busy while the other lane commits; a workspace is always in the same lane, so lanes
// never wait for each other's rows. Nothing lingers: what arrives during a commit is the next batch. What one member
// meets (values that the database refuses, a load row that somebody holds) never delays or fails the others; see
// batch.go.
type Fleet struct {
	db    *sqlx.DB
	lanes [laneCount]chan *op
	seed  maphash.Seed
	wg    sync.WaitGroup // the lanes and those who wait aside

	mu     sync.RWMutex // held for reading while a lane is given something
	closed bool

	aside asideRoom[*op]
}

// ErrClosed: the Fleet has been closed; nothing was asked of the ledger.
var ErrClosed = errors.New("the fleet's side of the ledger is closed")

const (
	laneCount = 2
	maxBatch  = 64
)

// op is a claim or a finish on its way through a lane.
type op struct {
	claim    *Claim
	finish   *Finish
	again    bool // asked before, with an unknown end
	claimed  *Claimed
	finished *Finished
	err      error
	done     chan struct{} // closed when one of the three above is set for good
}

// answer ends the op; its results are set when err is nil.
func (o *op) answer(err error) {
	o.err = err
	close(o.done)
}

func (o *op) workspace() uuid.UUID {
	if o.claim != nil {
		return o.claim.Workspace
	}
	return o.finish.Workspace
}

// NewFleet starts the lanes. Close stops them.
func NewFleet(db *sqlx.DB) *Fleet {
	f := &Fleet{db: db, seed: maphash.MakeSeed(), aside: newAsideRoom[*op](maxBatch)}
	for i := range f.lanes {
		f.lanes[i] = make(chan *op, 4*maxBatch)
		f.wg.Add(1)
		go f.runLane(f.lanes[i])
	}
	return f
}

// Close waits for what the lanes hold. A Claim or Finish asked after it fails with ErrClosed.
func (f *Fleet) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return
	}
	f.closed = true
	for _, lane := range f.lanes {
		close(lane)
	}
	f.wg.Wait()
}

// Claim asks for the task that a turn entitles to. After an error that is Unavailable the claim may have been
// committed: ask again with the same Claim and again set, until it is answered.
func (f *Fleet) Claim(ctx context.Context, c *Claim, again bool) (Claimed, error) {
	o := &op{claim: c, again: again, done: make(chan struct{})}
	f.pass(o)
	if o.err != nil {
		return Claimed{}, fmt.Errorf("claim turn %s: %w", c.Turn, o.err)
	}
	return *o.claimed, nil
}

// Finish ends an attempt. After an error that is Unavailable ask again, with again set: a finish counts once.
func (f *Fleet) Finish(ctx context.Context, fin *Finish, again bool) (Finished, error) {
	o := &op{finish: fin, again: again, done: make(chan struct{})}
	f.pass(o)
	if o.err != nil {
		return Finished{}, fmt.Errorf("finish task %s: %w", fin.Task, o.err)
	}
	return *o.finished, nil
}

func (f *Fleet) pass(o *op) {
	ws := o.workspace()
	f.mu.RLock()
	if f.closed {
		f.mu.RUnlock()
		o.err = ErrClosed
		return
	}
	if !f.aside.join(ws, o) {
		f.lanes[maphash.Bytes(f.seed, ws[:])%laneCount] <- o
	}
	f.mu.RUnlock()
	<-o.done
}

func (f *Fleet) runLane(lane chan *op) {
	defer f.wg.Done()
	batch := make([]*op, 0, maxBatch)
	for first := range lane {
		batch = append(batch[:0], first)
		runtime.Gosched()
	collect:
		for len(batch) < maxBatch {
			select {
			case o, ok := <-lane:
				if !ok {
					break collect
				}
				batch = append(batch, o)
			default:
				break collect
			}
		}
		f.commit(batch)
	}
}

// ErrWorkerDead: this worker has been declared dead and its tasks were given to others.
var ErrWorkerDead = errors.New("this worker has been declared dead")
