package worker

import (
	"slices"
	"sync"
	"time"

	"github.com/generic-corp/muster/store"
)

// slots are the places where agents run, and which queue's tasks hold them. They are counted here and not by Asynq,
// which gives its own tokens back when Redis was away although the handler still runs.
//
// A slot is held from before its turn is popped until the agent has returned. While agents return quickly some more are
// held than there are (overdraft): the next tasks are claimed while the last ones still run, so that a slot does not stand
// idle for each claim's round through the ledger. Never more agents run than there are slots: who has claimed ahead waits
// in enter.
type slots struct {
	shares

	mu       sync.Mutex
	held     map[string]int // queue → slots
	running  map[string]int // queue → agents
	entrants []*entrant     // who have claimed ahead, in order
	owed     int            // finishes of agents that have returned, on their way to the ledger
	stuck    int            // held by agents that were given up, until they return
	freed    chan struct{}  // closed when a slot is given back or a finish is booked, then replaced

	pro, below pace // at which agents of pro, and of the tiers below it, return
}

// pace is when the last agents returned, a ring.
type pace struct {
	left [paceOver]time.Time
	next int
}

func (p *pace) note() {
	p.left[p.next] = time.Now()
	p.next = (p.next + 1) % paceOver
}

// within is how many agents will return in this time.
func (p *pace) within(d time.Duration) int {
	oldest := p.left[p.next]
	if oldest.IsZero() {
		return 0
	}
	return int(paceOver * d / max(time.Since(oldest), 1))
}

// entrant waits for a slot to run in.
type entrant struct {
	queue   string
	entered chan struct{} // closed when it may run
}

// How far claims go ahead: as many as agents will return within aheadTime, by the pace at which the last ones did, and at
// most a quarter of the slots. Tasks of a second never get there. The tiers below pro go by their own pace: slots that short
// tasks of pro give back may be pro's alone, and who waits for them in vain has claimed for nothing.
const (
	aheadTime  = 20 * time.Millisecond
	aheadShare = 4
	paceOver   = 16
)

func newSlots(s shares) *slots {
	return &slots{shares: s, held: map[string]int{}, running: map[string]int{}, freed: make(chan struct{})}
}

// free is how many slots nobody holds, below zero when claims go ahead. Called with mu held.
func (s *slots) free() int {
	n := s.size
	for _, slots := range s.held {
		n -= slots
	}
	return n
}

// overdraft is how many slots may be held beyond those there are. Called with mu held.
func (s *slots) overdraft() ahead {
	most, below := s.size/aheadShare, s.below.within(aheadTime)
	return ahead{all: min(most, s.pro.within(aheadTime)+below), below: min(most, below)}
}

// take takes up to n slots for the queue without waiting.
func (s *slots) take(queue string, n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n = max(0, min(n, s.room(queue, s.held, ahead{})))
	s.held[queue] += n
	return n
}

// takeOr takes one slot for the queue, or returns what will be closed when one is given back.
func (s *slots) takeOr(queue string) (freed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.room(queue, s.held, ahead{}) <= 0 {
		return s.freed
	}
	s.held[queue]++
	return nil
}

// share takes up to n slots, ahead of those that are free too, for those of the queues whose turn it is: one name for each
// slot. Freed will be closed when a slot is given back.
func (s *slots) share(n int, queues []string) (taken []string, freed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	soon := s.overdraft()
	for len(taken) < n {
		queue, ok := s.pick(s.held, queues, soon)
		if !ok {
			break
		}
		s.held[queue]++
		taken = append(taken, queue)
	}
	return taken, s.freed
}

// release gives back slots in which no agent has run.
func (s *slots) release(queue string, n int) {
	if n == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held[queue] -= n
	s.tell()
}

// enter waits until an agent may run in a slot that the caller holds; false when it could not within the limit.
func (s *slots) enter(queue string, limit time.Duration) bool {
	s.mu.Lock()
	if len(s.entrants) == 0 && s.mayRun(queue) {
		s.running[queue]++
		s.mu.Unlock()
		return true
	}
	e := &entrant{queue: queue, entered: make(chan struct{})}
	s.entrants = append(s.entrants, e)
	s.admit()
	s.mu.Unlock()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-e.entered:
		return true
	case <-timer.C:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.entrants, e); i >= 0 {
		s.entrants = slices.Delete(s.entrants, i, i+1)
		return false
	}
	return true // at the last moment
}

// mayRun: an agent of the queue may start. Called with mu held.
func (s *slots) mayRun(queue string) bool { return s.room(queue, s.running, ahead{}) > 0 }

// admit lets those enter who may, in their order. Called with mu held.
func (s *slots) admit() {
	s.entrants = slices.DeleteFunc(s.entrants, func(e *entrant) bool {
		if !s.mayRun(e.queue) {
			return false
		}
		s.running[e.queue]++
		close(e.entered)
		return true
	})
}

// wanted says whether somebody has claimed ahead and waits.
func (s *slots) wanted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.entrants) > 0
}

// leave gives back the slot of an agent that has returned. With owing its finish is on its way, and paid says that it is
// there.
func (s *slots) leave(queue string, owing bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held[queue]--
	s.running[queue]--
	if owing {
		s.owed++
	}
	if queue == store.QueuePro {
		s.pro.note()
	} else {
		s.below.note()
	}
	s.admit()
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

// waitEmpty waits until no slot is held but by agents that were given up, and no finish is owed; false when the limit
// passed before.
func (s *slots) waitEmpty(limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		s.mu.Lock()
		empty, freed := s.free()+s.stuck == s.size && s.owed == 0, s.freed
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
