package worker

import (
	"math"
	"slices"
	"testing"
	"time"

	"github.com/generic-corp/muster/store"
)

// crowd simulates a worker whose queues never run empty: at each step the slot whose task ends is given to whom shares says.
// It returns each queue's starts and the slots that it held on average, over the second half.
func crowd(s *slots, steps int, lasts map[string]int) (starts, held map[string]float64) {
	type task struct {
		queue string
		ends  int
	}
	var running []task
	starts, held = map[string]float64{}, map[string]float64{}
	queues := []string{store.QueueFree, store.QueuePro, store.QueueStarter}
	for step := range steps {
		var still []task
		for _, t := range running {
			if t.ends <= step {
				s.release(t.queue, 1) // no agent has run: nothing goes ahead
				continue
			}
			still = append(still, t)
		}
		running = still
		taken, _ := s.share(s.size, queues)
		for _, q := range taken {
			running = append(running, task{q, step + lasts[q]})
			if step >= steps/2 {
				starts[q]++
			}
		}
		if step >= steps/2 {
			for _, t := range running {
				held[t.queue] += 2 / float64(steps)
			}
		}
	}
	return starts, held
}

func TestShares(t *testing.T) {
	t.Parallel()
	equal := map[string]int{store.QueuePro: 10, store.QueueStarter: 10, store.QueueFree: 10}
	longFree := map[string]int{store.QueuePro: 10, store.QueueStarter: 10, store.QueueFree: 600}
	near := func(t *testing.T, what string, got, want, within float64) {
		t.Helper()
		if math.Abs(got-want) > within*want {
			t.Errorf("%s: %.2f, want %.2f within %.0f %%", what, got, want, 100*within)
		}
	}

	t.Run("EqualTasksStartSixToThreeToOne", func(t *testing.T) {
		t.Parallel()
		for _, size := range []int{1, 2, 5, 50, 100} {
			starts, _ := crowd(newSlots(newShares(size, DefaultWeights, false)), 40_000, equal)
			sum := starts[store.QueuePro] + starts[store.QueueStarter] + starts[store.QueueFree]
			within := 0.1
			if size < 10 { // nobody starves, but whole slots cannot be shared exactly
				within = 0.7
			}
			near(t, "pro", starts[store.QueuePro]/sum, 0.6, within)
			near(t, "starter", starts[store.QueueStarter]/sum, 0.3, within)
			near(t, "free", starts[store.QueueFree]/sum, 0.1, within)
		}
	})

	t.Run("LongTasksHoldNoMoreThanTheirShare", func(t *testing.T) {
		t.Parallel()
		starts, held := crowd(newSlots(newShares(50, DefaultWeights, false)), 20_000, longFree)
		near(t, "pro's slots", held[store.QueuePro], 30, 0.01)
		near(t, "starter's slots", held[store.QueueStarter], 15, 0.01)
		near(t, "free's slots", held[store.QueueFree], 5, 0.01)
		if starts[store.QueueFree] == 0 {
			t.Error("free starves")
		}
	})

	t.Run("WhatOneLeavesTheOthersGetExceptTheReserve", func(t *testing.T) {
		t.Parallel()
		s := newSlots(newShares(50, DefaultWeights, false))
		if taken, _ := s.share(50, []string{store.QueueFree}); len(taken) != 40 {
			t.Errorf("free alone gets %d slots of 50, want all but the reserve of 10", len(taken))
		}
		if n := s.take(store.QueueStarter, 5); n != 0 {
			t.Errorf("starter takes %d slots of the reserve", n)
		}
		if s.takeOr(store.QueueStarter) == nil {
			t.Error("starter takes a slot of the reserve")
		}
		if n := s.take(store.QueuePro, 50); n != 10 {
			t.Errorf("pro gets %d slots, want the reserve of 10", n)
		}
		s = newSlots(newShares(50, DefaultWeights, false))
		if taken, _ := s.share(60, []string{store.QueuePro}); len(taken) != 50 {
			t.Errorf("pro alone gets %d slots of 50", len(taken))
		}
	})

	t.Run("StrictTiersStartTheHighestFirst", func(t *testing.T) {
		t.Parallel()
		s := newSlots(newShares(10, DefaultWeights, true))
		taken, _ := s.share(9, []string{store.QueueFree, store.QueuePro, store.QueueStarter})
		for _, q := range taken {
			if q != store.QueuePro {
				t.Errorf("%s starts while pro waits", q)
			}
		}
		if taken, _ = s.share(1, []string{store.QueueFree, store.QueueStarter}); len(taken) != 1 || taken[0] != store.QueueStarter {
			t.Errorf("%v", taken)
		}
	})

}

// paced lets agents of the tiers have returned at this pace, one each so long.
func paced(each time.Duration, tiers ...*pace) {
	now := time.Now()
	for _, p := range tiers {
		for i := range p.left {
			p.left[i] = now.Add(-each * time.Duration(paceOver-i))
		}
	}
}

func TestSlots(t *testing.T) {
	t.Parallel()
	pro, free := store.QueuePro, store.QueueFree
	all := []string{free, pro, store.QueueStarter}

	t.Run("AnOwedFinishHoldsTheDrainAndNoSlot", func(t *testing.T) {
		t.Parallel()
		s := newSlots(newShares(1, DefaultWeights, false))
		s.take(pro, 1)
		s.enter(pro, 0)
		s.leave(pro, true)
		if s.waitEmpty(0) {
			t.Error("empty while a finish is owed")
		}
		if n := s.take(pro, 1); n != 1 {
			t.Error("the slot is not free")
		}
		s.release(pro, 1)
		s.paid()
		if !s.waitEmpty(time.Minute) {
			t.Error("not empty")
		}
	})

	t.Run("ClaimsGoAheadAtThePaceOfReturnsAndByAQuarterAtMost", func(t *testing.T) {
		t.Parallel()
		for _, c := range []struct {
			each time.Duration // between two returns
			want int
		}{{time.Second, 0}, {aheadTime, 1}, {aheadTime / 5, 5}, {time.Microsecond, 10}} {
			s := newSlots(newShares(40, DefaultWeights, false))
			if s.take(pro, 40) != 40 {
				t.Fatal("no slots")
			}
			paced(c.each, &s.pro)
			taken, _ := s.share(100, all)
			if n := len(taken); n > c.want || n < c.want-1 { // time has passed
				t.Errorf("%d claims go ahead with a return each %s, want %d", n, c.each, c.want)
			}
		}
		if taken, _ := newSlots(newShares(40, DefaultWeights, false)).share(100, all); len(taken) != 40 {
			t.Errorf("%d slots taken by a worker on which nothing has run", len(taken))
		}
	})

	t.Run("NeverMoreAgentsRunThanThereAreSlotsAndEntrantsComeInOrder", func(t *testing.T) {
		t.Parallel()
		s := newSlots(newShares(4, DefaultWeights, false))
		s.take(pro, 4)
		for range 4 {
			if !s.enter(pro, 0) {
				t.Fatal("a free slot cannot be entered")
			}
		}
		paced(time.Microsecond, &s.pro)
		if taken, _ := s.share(1, []string{pro}); len(taken) != 1 {
			t.Fatal("no claim goes ahead")
		}
		if s.enter(pro, time.Millisecond) {
			t.Fatal("a fifth agent runs")
		}
		if s.wanted() {
			t.Error("who has given up still waits")
		}
		entered := make(chan bool)
		go func() { entered <- s.enter(pro, time.Minute) }()
		for !s.wanted() {
			time.Sleep(time.Millisecond)
		}
		s.leave(pro, false)
		if !<-entered {
			t.Error("the slot that was left is not entered")
		}
	})

	t.Run("WhicheverTiersGoAheadNeverMoreAgentsRunThanThereAreSlots", func(t *testing.T) {
		t.Parallel()
		const size = 50
		s := newSlots(newShares(size, DefaultWeights, false))
		var running, waiting []string // queues of agents, and of those who have claimed ahead
		left, ahead := map[string]int{}, 0
		for step := range 10 * size {
			taken, _ := s.share(size, all)
			waiting = slices.DeleteFunc(append(waiting, taken...), func(q string) bool {
				if !s.enter(q, 0) {
					return false
				}
				running = append(running, q)
				return true
			})
			below := 0
			for _, q := range running {
				if q != pro {
					below++
				}
			}
			if len(running) > size || below > size-s.reserve {
				t.Fatalf("step %d: %d agents run in %d slots, %d of them below pro", step, len(running), size, below)
			}
			ahead = max(ahead, len(waiting))
			paced(time.Microsecond, &s.pro, &s.below)
			left[running[0]]++
			s.leave(running[0], false)
			running = running[1:]
		}
		if ahead < size/aheadShare || left[pro] == 0 || left[free] == 0 || left[store.QueueStarter] == 0 {
			t.Errorf("%d claims went ahead, and agents of %v returned: it shows too little", ahead, left)
		}
	})

	t.Run("WhoWentAheadStaysOutOfTheReserve", func(t *testing.T) {
		t.Parallel()
		s := newSlots(newShares(10, DefaultWeights, false)) // 2 for pro
		if s.take(free, 10) != 8 {
			t.Fatal("the reserve is taken")
		}
		for range 8 {
			s.enter(free, 0)
		}
		paced(time.Microsecond, &s.pro)
		if taken, _ := s.share(10, []string{free}); len(taken) != 0 {
			t.Errorf("%d claims of free go ahead of agents of pro, whose slots it may not have", len(taken))
		}
		paced(time.Microsecond, &s.below)
		if taken, _ := s.share(1, []string{free}); len(taken) != 1 {
			t.Fatal("no claim goes ahead")
		}
		if s.enter(free, time.Millisecond) {
			t.Error("free runs in the reserve")
		}
		if s.take(pro, 1) != 1 || !s.enter(pro, 0) {
			t.Error("pro does not get the reserve")
		}
	})
}
