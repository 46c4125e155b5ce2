package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// tiers: 50 workspaces of each tier, all with more work than they can start, 50 slots.

const tierSlots, tierWorkspaces = 50, 50

var tierPlans = []string{"pro", "starter", "free"}

// saturate makes the tiers' workspaces, each with so many tasks, and says whose workspace is of which tier.
func saturate(f *fleet, each [3]int) (tier map[*tenant]int) {
	tier = map[*tenant]int{}
	for i, plan := range tierPlans {
		all := f.clones(tierWorkspaces, plan)
		for _, t := range all {
			tier[t] = i
		}
		f.load(all, tierWorkspaces*each[i], "")
	}
	return tier
}

// tiersMuster: equal tasks of 100 ms, the share of starts.
func tiersMuster(h *host, scale int) []figure {
	f := newFleet(h)
	tier := saturate(f, [3]int{80, 80, 80})
	var counts [3]atomic.Int64
	f.work(tierSlots, func(ctx context.Context, who *tenant) {
		counts[tier[who]].Add(1)
		pause(ctx, 100*time.Millisecond)
	})
	time.Sleep(time.Second) // all slots are taken, in whatever order the first turns came
	before := [3]int64{counts[0].Load(), counts[1].Load(), counts[2].Load()}
	time.Sleep(6 * time.Second / time.Duration(min(scale, 2)))
	var total float64
	var shares [3]float64
	for i := range counts {
		shares[i] = float64(counts[i].Load() - before[i])
		total += shares[i]
	}
	f.check()
	var figures []figure
	for i, plan := range tierPlans {
		figures = append(figures, figure{shareOfStarts + plan, 100 * shares[i] / total, "%"})
	}
	return figures
}

// The second part: tasks of Free take a minute, all others a second. The first half minute, in which the slots fill, does not
// count; the next minute does. Once the others' tasks take exactly a second: what begins together then ends together, and goes
// on doing so; the slots fall free in waves, a second and a claim apart, and a workspace that does not get into one of them
// waits for the next. And once they take a second give or take a tenth, as no agent's are all alike.

const (
	longFreeTask, longFreeSettle, longFreeMeasured = 60 * time.Second, 30 * time.Second, 60 * time.Second

	longFreeSpread = 100 * time.Millisecond // of the others' second

	proWait = "p99 of Pro's wait"
	freeGap = "longest time without a start of Free"
)

// longFree is what the figures are called by, before what they tell.
func longFree(free, spread time.Duration) string {
	others := "exactly 1 s"
	if spread > 0 {
		others = fmt.Sprintf("1 s ± %d %%", 100*spread/time.Second)
	}
	return fmt.Sprintf("Free tasks %g s, the others' %s: ", free.Seconds(), others)
}

func longFreeMuster(spread time.Duration) func(h *host, scale int) []figure {
	return func(h *host, scale int) []figure {
		cut := time.Duration(min(scale, 30)) // the others' tasks stay as long as they are
		free, measured := longFreeTask/cut, longFreeMeasured/cut
		w := longFreeWaits(h, free, spread, longFreeSettle/cut, measured)
		name := longFree(free, spread)
		return []figure{{name + proWait, ms(percentile(w.pro, 99)), "ms"},
			{name + "starts of Pro", float64(w.starts[0]) / measured.Seconds(), "/s"},
			{name + "starts of Starter", float64(w.starts[1]) / measured.Seconds(), "/s"},
			{name + freeGap, w.freeGap.Seconds(), "s"}}
	}
}

// longFreeWaits measures, behind a time to settle, with tasks of Pro and Starter that take a second, more or less by up to spread.
//
// A workspace of Pro waits for its next start from when it could have it: it has runnable work and runs fewer than its cap.
// That is since its last start, or since a task's end brought it below its cap, whichever came later. For Free it is told how
// long no workspace of it started anything: its share of the slots may be held by its own tasks for a minute.
func longFreeWaits(h *host, free, spread, settle, measured time.Duration) *waits {
	f := newFleet(h)
	tier := saturate(f, [3]int{100, 100, 10})
	w := &waits{since: map[*tenant]time.Time{}}
	for who, i := range tier {
		w.end(who, i) // they wait from the beginning
	}
	f.work(tierSlots, func(ctx context.Context, who *tenant) {
		w.start(who, tier[who])
		if tier[who] == 2 {
			pause(ctx, free)
		} else {
			pause(ctx, time.Second-spread+rand.N(2*spread+1))
		}
		w.end(who, tier[who])
	})
	time.Sleep(settle)
	w.measure(true)
	time.Sleep(measured)
	w.measure(false)
	f.check()
	if len(w.pro) == 0 {
		h.Fatal("Pro started nothing")
	}
	slices.Sort(w.pro)
	return w
}

// waits are measured between two calls of measure.
type waits struct {
	mu      sync.Mutex
	since   map[*tenant]time.Time // Pro's workspaces: since when each waits; without one it is at its cap or has not begun
	pro     []time.Duration
	starts  [3]int64
	freeAt  time.Time // the last start of Free
	freeGap time.Duration
	on      bool
}

func (w *waits) start(who *tenant, tier int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	if w.on {
		w.starts[tier]++
	}
	switch tier {
	case 0:
		if since, waiting := w.since[who]; waiting && w.on {
			w.pro = append(w.pro, now.Sub(since))
		}
		delete(w.since, who)
		if who.running.Load() < who.cap {
			w.since[who] = now
		}
	case 2:
		if w.on && !w.freeAt.IsZero() {
			w.freeGap = max(w.freeGap, now.Sub(w.freeAt))
		}
		w.freeAt = now
	}
}

// end notes that a workspace of Pro has room again.
func (w *waits) end(who *tenant, tier int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, waiting := w.since[who]; tier == 0 && !waiting {
		w.since[who] = time.Now()
	}
}

// measure begins, or ends. Waits that are not over then count as long as they have lasted.
func (w *waits) measure(on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.on = on; on {
		return
	}
	now := time.Now()
	for _, since := range w.since {
		w.pro = append(w.pro, now.Sub(since))
	}
	w.freeGap = max(w.freeGap, now.Sub(w.freeAt))
}
