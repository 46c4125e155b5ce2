package main

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hibiken/asynq"
)

// growth: does a long backlog, or do many workspaces, make hand-out slower? Each size has servers of its own, filled
// before the worker starts. What is measured is the way from the 1,000th task to the 9,000th, the same piece of work at
// every size; at the smallest a tenth of the backlog is left by then. That takes a second, too short to be compared once:
// the sizes take turns, growthRounds times, always on fresh servers, and a size's rate is that of all its stretches together.

const (
	growthRounds         = 2 // one in a quick run
	growthFrom, growthTo = 1_000, 9_000
	growthSmallest       = 10_000
	growthWorkspaces     = 200 // when the backlog grows
	growthBacklog        = 100_000
)

// shrunk is a size of a full and of a quick run; a miniature run, of the tests, has less of it.
func shrunk(n, scale int) int { return n / max(1, scale/quickScale) }

// stretch measures the time and the CPU between two ticks.
type stretch struct {
	from, to     int
	n            atomic.Int64
	began, ended time.Time
	before       cpu
	cpu          figure
	done         chan struct{}
}

func newStretch(scale int) *stretch {
	return &stretch{from: shrunk(growthFrom, scale), to: shrunk(growthTo, scale), done: make(chan struct{})}
}

func (s *stretch) tick() {
	switch int(s.n.Add(1)) {
	case s.from:
		s.before, s.began = readCPU(), time.Now()
	case s.to:
		s.ended, s.cpu = time.Now(), cpuPerTask(s.to-s.from, s.before)
		close(s.done)
	}
}

// size is one that the others are compared with or compared.
type size struct {
	name  string
	drain func(h *host, s *stretch) // starts it; what it checks afterwards waits for the stretch's end

	took time.Duration // all stretches so far
	cpu  float64       // sum over the stretches of microseconds per task
}

// compare drains each size in turn and compares the lowest rate with the first one's.
func compare(h *host, scale int, what string, sizes []*size) (figures []figure) {
	rounds := growthRounds
	if scale > 1 {
		rounds = 1
	}
	for range rounds {
		for _, z := range sizes {
			h.inner(func(h *host) {
				s := newStretch(scale)
				z.drain(h, s)
				<-s.done
				z.took += s.ended.Sub(s.began)
				z.cpu += s.cpu.Value
			})
		}
	}
	rates := make([]float64, len(sizes))
	for i, z := range sizes {
		rates[i] = float64(rounds*(shrunk(growthTo, scale)-shrunk(growthFrom, scale))) / z.took.Seconds()
		figures = append(figures, figure{"at " + z.name, rates[i], "/s"}, figure{"CPU per task at " + z.name, z.cpu / float64(rounds), "µs"})
	}
	return append(figures, figure{leastOfGrowth + " " + what, slices.Min(rates) / rates[0], "x"})
}

// backlogs are the sizes to try; a quick run leaves the largest out.
func backlogs(scale int) []int {
	if scale > 1 {
		return []int{shrunk(growthSmallest, scale), shrunk(100_000, scale)}
	}
	return []int{growthSmallest, 100_000, 1_000_000}
}

func growthMuster(h *host, scale int) []figure {
	var byBacklog, byWorkspaces []*size
	for _, n := range backlogs(scale) {
		byBacklog = append(byBacklog, &size{name: backlogName(n) + " waiting", drain: growthAt(shrunk(growthWorkspaces, scale), n)})
	}
	for _, n := range []int{shrunk(100, scale), shrunk(10_000, scale)} {
		byWorkspaces = append(byWorkspaces, &size{name: backlogName(n) + " workspaces", drain: growthAt(n, shrunk(growthBacklog, scale))})
	}
	return append(compare(h, scale, "backlog", byBacklog), compare(h, scale, "number of workspaces", byWorkspaces)...)
}

// growthAt drains the stretch with one worker of 100 slots.
func growthAt(workspaces, tasks int) func(h *host, s *stretch) {
	return func(h *host, s *stretch) {
		f := newFleet(h)
		f.load(f.clones(workspaces, "pro"), tasks, "")
		f.work(100, func(context.Context, *tenant) { s.tick() })
		<-s.done
		f.check()
	}
}

func growthAsynq(h *host, scale int) []figure {
	return growthOfPeer(h, scale, func(h *host, n int, s *stretch) {
		client, serve := newAsynq(h)
		fill(h, client, n, "no-op")
		serve(100, asynqTuned, func(context.Context, *asynq.Task) error { s.tick(); return nil })
	})
}

func growthRiver(h *host, scale int) []figure {
	return growthOfPeer(h, scale, func(h *host, n int, s *stretch) {
		client, start := newRiver(h, 100, true, func(context.Context, string) { s.tick() })
		insertJobs(h, client, n, "no-op")
		start()
	})
}

// growthOfPeer: the peers know no workspaces, and their two sizes tell whether they are flat.
func growthOfPeer(h *host, scale int, start func(h *host, n int, s *stretch)) []figure {
	var sizes []*size
	for _, n := range []int{shrunk(growthSmallest, scale), shrunk(100_000, scale)} {
		sizes = append(sizes, &size{name: backlogName(n) + " waiting", drain: func(h *host, s *stretch) { start(h, n, s) }})
	}
	return compare(h, scale, "backlog", sizes)
}
