package main

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hibiken/asynq"
)

// growth: does a long backlog, or do many workspaces, make hand-out slower? Each size has servers of its own, filled
// before the worker starts. What is measured is the way from the 1,000th task to the 9,000th, the same piece of work at
// every size; at the smallest a tenth of the backlog is left by then.

const (
	growthFrom, growthTo = 1_000, 9_000
	growthSmallest       = 10_000
	growthWorkspaces     = 200 // when the backlog grows
	growthBacklog        = 100_000
)

// stretch measures the time and the CPU between two ticks.
type stretch struct {
	n            atomic.Int64
	began, ended time.Time
	before       cpu
	cpu          figure
	done         chan struct{}
}

func newStretch() *stretch { return &stretch{done: make(chan struct{})} }

func (s *stretch) tick() {
	switch s.n.Add(1) {
	case growthFrom:
		s.before, s.began = readCPU(), time.Now()
	case growthTo:
		s.ended, s.cpu = time.Now(), cpuPerTask(growthTo-growthFrom, s.before)
		close(s.done)
	}
}

// figures waits for the stretch's end and tells the rate and the CPU at a size.
func (s *stretch) figures(size string) (perSecond float64, figures []figure) {
	<-s.done
	perSecond = (growthTo - growthFrom) / s.ended.Sub(s.began).Seconds()
	return perSecond, []figure{{"at " + size, perSecond, "/s"}, {"CPU per task at " + size, s.cpu.Value, s.cpu.Unit}}
}

// leastTo compares the lowest rate with the first one.
func leastTo(what string, rates []float64) figure {
	return figure{leastOfGrowth + " " + what, slices.Min(rates) / rates[0], "x"}
}

// backlogs are the sizes to try; a quick run leaves the largest out.
func backlogs(scale int) []int {
	if scale > 1 {
		return []int{growthSmallest, 100_000}
	}
	return []int{growthSmallest, 100_000, 1_000_000}
}

func growthMuster(h *host, scale int) []figure {
	var figures []figure
	var rates []float64
	for _, n := range backlogs(scale) {
		rate, more := growthAt(h, growthWorkspaces, n, backlogName(n)+" waiting")
		rates, figures = append(rates, rate), append(figures, more...)
	}
	figures = append(figures, leastTo("backlog", rates))
	rates = nil
	for _, n := range []int{100, 10_000} {
		rate, more := growthAt(h, n, growthBacklog, backlogName(n)+" workspaces")
		rates, figures = append(rates, rate), append(figures, more...)
	}
	return append(figures, leastTo("number of workspaces", rates))
}

// growthAt drains the stretch with one worker of 100 slots.
func growthAt(h *host, workspaces, tasks int, size string) (perSecond float64, figures []figure) {
	h.inner(func(h *host) {
		f := newFleet(h)
		f.load(f.clones(workspaces, "pro"), tasks, "")
		s := newStretch()
		f.work(100, func(context.Context, *tenant) { s.tick() })
		perSecond, figures = s.figures(size)
		f.check()
	})
	return perSecond, figures
}

func growthAsynq(h *host, scale int) []figure {
	return growthOfPeer(h, func(h *host, n int, s *stretch) {
		client, serve := newAsynq(h)
		fill(h, client, n, "no-op")
		serve(100, asynqTuned, func(context.Context, *asynq.Task) error { s.tick(); return nil })
	})
}

func growthRiver(h *host, scale int) []figure {
	return growthOfPeer(h, func(h *host, n int, s *stretch) {
		client, start := newRiver(h, 100, true, func(context.Context, string) { s.tick() })
		insertJobs(h, client, n, "no-op")
		start()
	})
}

// growthOfPeer: the peers know no workspaces, and their two sizes tell whether they are flat.
func growthOfPeer(h *host, start func(h *host, n int, s *stretch)) (figures []figure) {
	var rates []float64
	for _, n := range []int{growthSmallest, 100_000} {
		h.inner(func(h *host) {
			s := newStretch()
			start(h, n, s)
			rate, more := s.figures(fmt.Sprintf("%s waiting", backlogName(n)))
			rates, figures = append(rates, rate), append(figures, more...)
		})
	}
	return append(figures, leastTo("backlog", rates))
}
