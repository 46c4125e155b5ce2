package main

import (
	"fmt"
	"slices"
	"strings"
)

// What Muster has to reach, and what it aims at, on two cores.

// target is a bound of one of Muster's figures.
type target struct {
	Case, Figure string
	to           string // the system whose same figure is the unit; "": the figure itself
	most         bool   // an upper bound; else a lower one
	must, aim    float64
}

const (
	ratePerSecond = "tasks per second"
	shareOfStarts = "share of starts: "
	leastOfGrowth = "least, to the smallest"
)

// targets name figures of full runs: where a figure's name tells a size, a quick one has another name and no bound.
var targets = []target{
	{"drain", ratePerSecond, asynqSystem, false, 0.7, 1.0},
	{"through", ratePerSecond, asynqSystem, false, 0.5, 0.8},
	{"submit", ratePerSecond, "", false, 2_000, 4_000},
	{"submit", "p99", "", true, 60, 60},
	{"pick-up", "p50", "", true, 12, 8},
	{"pick-up", "p99", "", true, 40, 20},
	{"ramp", "all ten run after", "", true, 150, 50},
	{"flood", "B waits", "", true, 50, 20},
	{"many", "most starts of another before the newcomer's", "", true, 2, 2},
	{"many", "Jain's index, worst ten rounds", "", false, 0.99, 0.99},
	{"caps", "makespan over ideal", "", true, 1.2, 1.1},
	{"caps", "wasted dispatches", "", true, 0, 0},
	{"caps", "cap violations", "", true, 0, 0},
	{"tiers", shareOfStarts + "pro", "", false, 54, 54},
	{"tiers", shareOfStarts + "pro", "", true, 66, 66},
	{"tiers", shareOfStarts + "starter", "", false, 27, 27},
	{"tiers", shareOfStarts + "starter", "", true, 33, 33},
	{"tiers", shareOfStarts + "free", "", false, 9, 9},
	{"tiers", shareOfStarts + "free", "", true, 11, 11},
	{"tiers", longFree(longFreeTask, 0) + proWait, "", true, 2_000, 2_000},
	{"tiers", longFree(longFreeTask, 0) + freeGap, "", true, 65, 65},
	{"tiers", longFree(longFreeTask, longFreeSpread) + proWait, "", true, 2_000, 2_000},
	{"tiers", longFree(longFreeTask, longFreeSpread) + freeGap, "", true, 65, 65},
	{"growth", leastOfGrowth + " backlog", "", false, 0.9, 0.9},
	{"growth", leastOfGrowth + " number of workspaces", "", false, 0.9, 0.9},
	{"memory", redisPerTask, "", true, 0, 0},
	{"memory", rssGrowth(memoryMany) + "api", "", true, 1.2, 1.2},
	{"memory", rssGrowth(memoryMany) + "worker", "", true, 1.2, 1.2},
	{"memory", rssGrowth(memoryMany) + "scheduler", "", true, 1.2, 1.2},
	{"recovery", "p95", "", true, 20, 10},
}

// judge says what a figure has to reach ("" when nothing) and whether it does: "missed", "met", or "aim" when it also
// reaches the aim. With several bounds the worst counts; without the peer that is the unit nobody can tell.
func judge(r result, all []result) (wants, verdict string) {
	if r.System != musterSystem {
		return "", ""
	}
	for _, t := range targets {
		if t.Case != r.Case || t.Figure != r.Name {
			continue
		}
		value, unit := r.Median, r.Unit
		if t.to != "" {
			peer := slices.IndexFunc(all, func(p result) bool { return p.Case == r.Case && p.System == t.to && p.Name == r.Name })
			if peer < 0 || all[peer].Median == 0 {
				return wants, "?"
			}
			value, unit = r.Median/all[peer].Median, "x "+t.to
		}
		want := strings.TrimSpace(t.bound(t.must) + " " + unit)
		if t.aim != t.must {
			want += ", aim " + number(t.aim)
		}
		if wants != "" {
			want = wants + ", " + want
		}
		wants = want
		switch {
		case !t.holds(value, t.must):
			verdict = "missed"
		case verdict == "missed":
		case !t.holds(value, t.aim):
			verdict = "met"
		case verdict == "":
			verdict = "met"
			if t.aim != t.must {
				verdict = "aim"
			}
		}
	}
	return wants, verdict
}

// misses tells which figures of the measured cases miss what they must reach, and which have not been measured.
func misses(results []result) (all []string) {
	for _, r := range results {
		if wants, verdict := judge(r, results); verdict == "missed" {
			all = append(all, fmt.Sprintf("%s, %s: %s, wanted %s", r.Case, r.Name, strings.TrimSpace(number(r.Median)+" "+r.Unit), wants))
		}
	}
	for _, t := range targets {
		measured := func(r result) bool { return r.Case == t.Case }
		named := func(r result) bool { return measured(r) && r.System == musterSystem && r.Name == t.Figure }
		if slices.ContainsFunc(results, measured) && !slices.ContainsFunc(results, named) {
			all = append(all, fmt.Sprintf("%s, %s: not measured", t.Case, t.Figure))
		}
	}
	return slices.Compact(all) // a figure with two bounds
}

func (t target) holds(value, bound float64) bool {
	if t.most {
		return value <= bound
	}
	return value >= bound
}

func (t target) bound(v float64) string {
	if t.most {
		return fmt.Sprintf("≤ %s", number(v))
	}
	return fmt.Sprintf("≥ %s", number(v))
}
