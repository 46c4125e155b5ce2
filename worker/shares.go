package worker

import (
	"math/rand/v2"

	"github.com/generic-corp/muster/store"
)

// shares say how the queues share a worker's slots: by the slots that they hold, not by how many tasks they start.
//
// With weights of 6:3:1 a saturated worker of 50 slots runs 30 tasks of pro, 15 of starter and 5 of free, however long
// each of them takes. Counting starts would give all slots to the tier with the longest tasks: whoever holds a slot for a
// minute and another one each ten starts has nearly all of them soon. With equal tasks the starts are 6:3:1 too. What one
// queue does not use the others get, except for a reserve that only pro may hold, so that a lone flood of five-minute
// tasks from below leaves it somewhere to start.
type shares struct {
	size    int // slots, at least 1
	reserve int // of them, for pro alone
	weights map[string]int
	strict  bool // a lower weight runs only when the higher ones' queues are empty
}

// reserved of the slots serve pro alone.
const reserved = 0.2

func newShares(size int, weights map[string]int, strict bool) shares {
	s := shares{size: size, weights: weights, strict: strict, reserve: int(float64(size) * reserved)}
	if s.reserve == 0 && size >= 2 {
		s.reserve = 1
	}
	return s
}

// ahead is how many slots will soon be given back: of all, and of those for the tiers below pro.
type ahead struct{ all, below int }

// room is how many more slots a queue may hold beside those that are held, ahead of some that will be given back.
func (s *shares) room(queue string, held map[string]int, soon ahead) int {
	all, below := s.size+soon.all, s.size-s.reserve+soon.below // what is left of all slots, and of those for the tiers below pro
	for q, slots := range held {
		all -= slots
		if q != store.QueuePro {
			below -= slots
		}
	}
	if queue == store.QueuePro {
		return all
	}
	return min(all, below)
}

// pick chooses the queue that the next slot is for, of those that are free or, ahead, soon will be; false when none
// may have it. Each queue is chosen with a probability in proportion to what it lacks of its share, so that a worker with
// one slot starves nobody either; when none lacks anything, the one that is least above its share.
func (s *shares) pick(held map[string]int, queues []string, soon ahead) (queue string, ok bool) {
	sum := 0
	for _, w := range s.weights {
		sum += w
	}
	best, lacking := 0.0, 0.0
	for _, q := range queues {
		if s.room(q, held, soon) <= 0 {
			continue
		}
		weight := float64(s.weights[q])
		if s.strict {
			if !ok || weight > best {
				queue, best, ok = q, weight, true
			}
			continue
		}
		lacks := weight*float64(s.size)/float64(sum) - float64(held[q])
		switch above := float64(held[q]+1) / weight; {
		case lacks > 0:
			lacking += lacks
			if rand.Float64()*lacking < lacks {
				queue, ok = q, true
			}
		case lacking == 0 && (!ok || above < best):
			queue, best, ok = q, above, true
		}
	}
	return queue, ok
}
