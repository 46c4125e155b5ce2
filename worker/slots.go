package worker

import (
	"sync"
	"time"
)

// slots are the places where agents run, and which queue's tasks hold them. They are counted here and not by Asynq,
// which gives its own tokens back when Redis was away although the handler still runs.
type slots struct {
	shares

	mu    sync.Mutex
	free  int
	held  map[string]int // queue → slots
	owed  int            // finishes of agents that have returned, on their way to the ledger
	stuck int            // taken by agents that were given up, until they return
	freed chan struct{}  // closed when a slot is given back or a finish is booked, then replaced
}

func newSlots(s shares) *slots {
	return &slots{shares: s, free: s.size, held: map[string]int{}, freed: make(chan struct{})}
}

// take takes up to n slots for the queue without waiting.
func (s *slots) take(queue string, n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n = max(0, min(n, s.free, s.room(queue, s.held)))
	s.free -= n
	s.held[queue] += n
	return n
}

// takeOr takes one slot for the queue, or returns what will be closed when one is given back.
func (s *slots) takeOr(queue string) (freed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.free == 0 || s.room(queue, s.held) <= 0 {
		return s.freed
	}
	s.free--
	s.held[queue]++
	return nil
}

// share takes up to n slots for those of the queues whose turn it is, one name for each slot, or returns what will be
// closed when one is given back.
func (s *slots) share(n int, queues []string) (taken []string, freed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(taken) < n && s.free > 0 {
		queue, ok := s.pick(s.held, queues)
		if !ok {
			break
		}
		s.free--
		s.held[queue]++
		taken = append(taken, queue)
	}
	return taken, s.freed
}

func (s *slots) release(queue string, n int) {
	if n == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free += n
	s.held[queue] -= n
	s.tell()
}

// releaseOwing gives back the slot of an agent that has returned while its finish is on its way; paid says that it is
// there.
func (s *slots) releaseOwing(queue string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free++
	s.held[queue]--
	s.owed++
	s.tell()
}

func (s *slots) paid() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.owed--
	if s.owed == 0 {
		s.tell()
	}
}

// tell wakes those who wait. Called with mu held.
func (s *slots) tell() {
	close(s.freed)
	s.freed = make(chan struct{})
}

// strand notes that a slot's agent has been given up: nobody waits for it any more. returned takes that back.
func (s *slots) strand() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stuck++
	s.tell()
}

func (s *slots) returned() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stuck--
}

// waitEmpty waits until no slot is taken but by agents that were given up, and no finish is owed; false when the limit
// passed before.
func (s *slots) waitEmpty(limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		s.mu.Lock()
		empty, freed := s.free+s.stuck == s.size && s.owed == 0, s.freed
		s.mu.Unlock()
		if empty {
			return true
		}
		select {
		case <-freed:
		case <-timer.C:
			return false
		}
	}
}
