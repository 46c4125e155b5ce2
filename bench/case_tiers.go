package main

import (
	"context"
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

const (
	proWait = "Free tasks 60 s: p99 of Pro's wait"
	freeGap = "Free tasks 60 s: longest time without a start of Free"
)

// longFreeMuster: tasks of Free take a minute, all others a second. The first half minute, in which the slots fill, does
// not count; the next minute does.
//
// A workspace of Pro waits for its next start from when it could have it: it has runnable work and runs fewer than its cap.
// That is since its last start, or since a task's end brought it below its cap, whichever came later. Waits that are not
// over at the end count as long as they have lasted. For Free it is told how long no workspace of it started anything: its share of
// the slots may be held by its own tasks for a minute.
func longFreeMuster(h *host, scale int) []figure {
	free, settle, measured := 60*time.Second, 30*time.Second, 60*time.Second
	if scale > 1 {
		free, settle, measured = free/3, settle/2, measured/3
	}
	f := newFleet(h)
	tier := saturate(f, [3]int{100, 100, 10})
	w := waits{since: map[*tenant]time.Time{}}
	for who, i := range tier {
		w.end(who, i) // they wait from the beginning
	}
	f.work(tierSlots, func(ctx context.Context, who *tenant) {
		w.start(who, tier[who])
		if tier[who] == 2 {
			pause(ctx, free)
		} else {
			pause(ctx, time.Second)
		}
		w.end(who, tier[who])
	})
	time.Sleep(settle)
	w.measure(true)
	time.Sleep(measured)
	pro, gap := w.measure(false)
	f.check()
	if len(pro) == 0 {
		h.Fatal("Pro started nothing")
	}
	slices.Sort(pro)
	return []figure{{proWait, ms(percentile(pro, 99)), "ms"}, {"Free tasks 60 s: starts of Pro", float64(len(pro)) / measured.Seconds(), "/s"},
		{freeGap, gap.Seconds(), "s"}}
}

// waits are measured between two calls of measure.
type waits struct {
	mu      sync.Mutex
	since   map[*tenant]time.Time // Pro's workspaces: since when each waits; without one it is at its cap or has not begun
	pro     []time.Duration
	freeAt  time.Time // the last start of Free
	freeGap time.Duration
	on      bool
}

func (w *waits) start(who *tenant, tier int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
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

// measure begins, or ends and returns what was measured.
func (w *waits) measure(on bool) (pro []time.Duration, freeGap time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	if on {
		w.on = true
		return nil, 0
	}
	for _, since := range w.since {
		w.pro = append(w.pro, now.Sub(since))
	}
	return w.pro, max(w.freeGap, now.Sub(w.freeAt))
}
