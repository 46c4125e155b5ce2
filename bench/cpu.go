package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Who used the machine's processors during a run. "Ours" is this process with everything it has started: private
// servers (which run as another user), muster's processes, the peers' workers. What a child has used goes to its
// parent when the parent waits for it, and adoptOrphans makes us the parent of those whose own has been killed, so that
// the sum over our tree never loses anything. The kernel's own threads (writing back, memory) belong to nobody.

// cpu is processor time since boot in clock ticks.
type cpu struct {
	all       float64 // of the machine: that there was
	user      float64 // spent in processes, as the kernel's tick sees it
	stolen    float64 // given to other machines by the hypervisor
	ours      float64
	strangers float64 // of processes that we can see and that are not ours
}

// process is a line of /proc/PID/stat.
type process struct {
	pid, parent int
	ticks       float64 // its own and its waited-for children's, user and system
}

// kthreadd is the parent of the kernel's threads.
const kthreadd = 2

func readCPU() cpu {
	var c cpu
	raw, err := os.ReadFile("/proc/stat")
	if err != nil {
		return c // not Linux: nobody knows
	}
	first, _, _ := strings.Cut(string(raw), "\n")
	for i, f := range strings.Fields(first)[1:] {
		v, _ := strconv.ParseFloat(f, 64)
		switch i {
		case 0, 1, 2: // user, nice, system; not interrupts, which serve everybody
			c.user += v
		case 7:
			c.stolen = v
		}
		if i < 8 { // guest time is part of user time
			c.all += v
		}
	}
	parents, processes := map[int]int{}, []process{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is well formed
	for _, file := range stats {
		raw, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended; its parent has its time
		}
		if p, ok := parseStat(string(raw)); ok {
			parents[p.pid] = p.parent
			processes = append(processes, p)
		}
	}
	for _, p := range processes {
		switch root := origin(p.pid, os.Getpid(), parents); root {
		case os.Getpid():
			c.ours += p.ticks
		case kthreadd:
		default:
			c.strangers += p.ticks
		}
	}
	return c
}

// parseStat reads "123 (name) S 1 …"; the name may hold anything, so the fields count from its end.
func parseStat(line string) (p process, ok bool) {
	end := strings.LastIndex(line, ") ")
	if end < 0 {
		return p, false
	}
	pid, _, _ := strings.Cut(line, " ")
	f := strings.Fields(line[end+2:])
	if len(f) < 15 {
		return p, false
	}
	p.pid, _ = strconv.Atoi(pid)
	p.parent, _ = strconv.Atoi(f[1])
	for _, field := range f[11:15] { // utime, stime, cutime, cstime
		v, _ := strconv.ParseFloat(field, 64)
		p.ticks += v
	}
	return p, p.pid > 0
}

// origin is self for a process of ours, kthreadd for a thread of the kernel, 1 for anybody else.
func origin(pid, self int, parents map[int]int) int {
	for ; pid > 1; pid = parents[pid] {
		if pid == self || pid == kthreadd {
			return pid
		}
	}
	return 1
}

// unseen is the share of the machine that may be spent where /proc shows no process of it, other containers for
// instance, before we say so: the kernel counts processes exactly and the machine by sampling.
const unseen = 0.1

// strangers is the share of the machine that others took between two readings, 0 to 1; NaN where nobody can tell.
func strangers(from, to cpu) float64 {
	all := to.all - from.all
	if all <= 0 {
		return math.NaN()
	}
	seen := max(0, to.strangers-from.strangers)
	share := (seen + to.stolen - from.stolen) / all
	if rest := (to.user - from.user - (to.ours - from.ours) - seen) / all; rest > unseen {
		share += rest
	}
	return min(1, max(0, share))
}

func percent(share float64) string {
	if math.IsNaN(share) {
		return "unknown"
	}
	return fmt.Sprintf("%.0f %%", 100*share)
}
