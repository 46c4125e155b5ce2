package store

import (
	"runtime"

	"github.com/google/uuid"
)

// HoldSubmits keeps small submits in their lanes until release, so that a test decides which share a flush; waiting counts them.
func (a *API) HoldSubmits() (waiting func() int, release func()) {
	lanes := a.submits.lanes[:]
	for i := range lanes {
		lanes[i].mu.Lock()
		for lanes[i].running { // it has answered everybody and is about to see that nobody waits
			lanes[i].mu.Unlock()
			runtime.Gosched()
			lanes[i].mu.Lock()
		}
		lanes[i].running = true
		lanes[i].mu.Unlock()
	}
	return a.SubmitsInLanes, func() {
		for i := range lanes {
			go a.submits.run(&lanes[i])
		}
	}
}

// SubmitsAside counts a workspace's submits that wait aside and whose transaction has not begun.
func (a *API) SubmitsAside(ws uuid.UUID) int {
	room := &a.submits.aside
	room.mu.Lock()
	defer room.mu.Unlock()
	return len(room.waiting[ws])
}

// SubmitsInLanes counts submits that wait for a flush.
func (a *API) SubmitsInLanes() (n int) {
	for i := range a.submits.lanes {
		lane := &a.submits.lanes[i]
		lane.mu.Lock()
		n += len(lane.waiting)
		lane.mu.Unlock()
	}
	return n
}
