package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// cpu is processor time since boot in clock ticks: of the whole machine, and of this process with all its descendants
// (the private servers).
type cpu struct{ total, busy, own float64 }

func readCPU() cpu {
	var c cpu
	raw, err := os.ReadFile("/proc/stat")
	if err != nil {
		return c
	}
	first, _, _ := strings.Cut(string(raw), "\n")
	for i, f := range strings.Fields(first)[1:] {
		v, _ := strconv.ParseFloat(f, 64)
		if i < 8 { // guest time is part of user time
			c.total += v
			if i != 3 && i != 4 { // idle, iowait
				c.busy += v
			}
		}
	}
	parent, used := map[int]int{}, map[int]float64{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range stats {
		raw, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		_, rest, ok := strings.Cut(string(raw), ") ")
		f := strings.Fields(rest)
		if !ok || len(f) < 15 {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		parent[pid], _ = strconv.Atoi(f[1])
		for _, field := range f[11:15] { // utime, stime, and those of children that have ended
			v, _ := strconv.ParseFloat(field, 64)
			used[pid] += v
		}
	}
	for pid, ticks := range used {
		for p := pid; p > 1; p = parent[p] {
			if p == os.Getpid() {
				c.own += ticks
				break
			}
		}
	}
	return c
}

// strangers is the share of the machine that others took between two readings, 0 to 1.
func strangers(from, to cpu) float64 {
	if to.total <= from.total {
		return 0
	}
	return max(0, (to.busy-from.busy)-(to.own-from.own)) / (to.total - from.total)
}

func percent(share float64) string { return fmt.Sprintf("%.0f %%", 100*share) }
