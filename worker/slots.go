package worker

import (
	"sync"
	"time"
)

// slots are the places of a lane where agents run. They are counted here and not by Asynq, which gives its own tokens
// back when Redis was away although the handler still runs.
type slots struct {
	size int

	mu    sync.Mutex
	free  int
	stuck int           // taken by agents that were given up, until they return
	freed chan struct{} // closed when a slot is given back, then replaced
}

func newSlots(n int) *slots { return &slots{size: n, free: n, freed: make(chan struct{})} }

// take takes up to n slots without waiting.
func (s *slots) take(n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n = min(n, s.free)
	s.free -= n
	return n
}

// takeOr takes one slot, or returns what will be closed when one is given back.
func (s *slots) takeOr() (freed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.free == 0 {
		return s.freed
	}
	s.free--
	return nil
}

func (s *slots) release(n int) {
	if n == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free += n
	close(s.freed)
	s.freed = make(chan struct{})
}

// strand notes that a slot's agent has been given up: nobody waits for it any more. returned takes that back.
func (s *slots) strand() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stuck++
	close(s.freed) // who waits looks again
	s.freed = make(chan struct{})
}

func (s *slots) returned() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stuck--
}

// waitEmpty waits until no slot is taken but by agents that were given up; false when the limit passed before.
func (s *slots) waitEmpty(limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		s.mu.Lock()
		empty, freed := s.free+s.stuck == s.size, s.freed
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
