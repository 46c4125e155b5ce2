// Command bench measures Muster beside bare Asynq and River: the same work, the same machine, one run, private servers
// with fsync on. It prints a table of medians with the ratio to Asynq and the share of the machine that strangers took,
// and writes it as Markdown and JSON.
//
//	scripts/bench                     every case, 3 runs each
//	scripts/bench --case drain,flood  these only
//	scripts/bench --quick             a tenth of the work, 1 run: to see that it works
//	scripts/bench --runs 5 --out docs/benchmarks
//
// It is a module of its own, so that the peers stay out of the product's dependencies.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// figure is one measured number.
type figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
}

// bout is one system doing one case's work.
type bout struct {
	Case, System string
	run          func(h *host, scale int) []figure // scale divides the amount of work
}

// result is the medians of one bout's runs.
type result struct {
	Case      string    `json:"case"`
	System    string    `json:"system"`
	Name      string    `json:"figure"`
	Median    float64   `json:"median"`
	Runs      []float64 `json:"runs"`
	Unit      string    `json:"unit"`
	Strangers float64   `json:"strangers"` // the most of any run, 0 to 1
}

func main() {
	only := flag.String("case", "", "cases, comma-separated; default all")
	quick := flag.Bool("quick", false, "a tenth of the work, one run")
	runs := flag.Int("runs", 3, "runs of each case")
	out := flag.String("out", "", "write OUT.md and OUT.json")
	flag.Parse()
	if flag.NArg() > 0 || *runs < 1 {
		flag.Usage()
		os.Exit(2)
	}
	scale := 1
	if *quick {
		scale, *runs = 10, 1
	}
	chosen := bouts
	if *only != "" {
		names := strings.Split(*only, ",")
		for _, n := range names {
			if !slices.ContainsFunc(bouts, func(b bout) bool { return b.Case == n }) {
				fmt.Fprintf(os.Stderr, "bench: there is no case %q\n", n)
				os.Exit(2)
			}
		}
		chosen = slices.DeleteFunc(slices.Clone(bouts), func(b bout) bool { return !slices.Contains(names, b.Case) })
	}
	results, failed := measure(chosen, *runs, scale)
	table := render(results, scale)
	fmt.Print("\n", table)
	if *out != "" {
		raw, _ := json.MarshalIndent(results, "", "  ") // plain data: cannot fail
		for file, content := range map[string][]byte{*out + ".md": []byte(table), *out + ".json": append(raw, '\n')} {
			if err := os.WriteFile(file, content, 0o644); err != nil {
				fmt.Fprintln(os.Stderr, "bench:", err)
				failed = true
			}
		}
	}
	if failed {
		os.Exit(1)
	}
}

// measure runs the bouts in rounds, all of them once per round, so that what disturbs the machine for a while disturbs
// everybody.
func measure(chosen []bout, runs, scale int) (results []result, failed bool) {
	at := map[[3]string]int{}
	began, done := time.Now(), 0
	for range runs {
		for _, b := range chosen {
			progress(began, done, runs*len(chosen), b)
			before := readCPU()
			figures, err := within(func(h *host) []figure { return b.run(h, scale) })
			taken := strangers(before, readCPU())
			done++
			if err != nil {
				fmt.Fprintf(os.Stderr, "\nbench: %s, %s: %v\n", b.Case, b.System, err)
				failed = true
				continue
			}
			for _, f := range figures {
				key := [3]string{b.Case, b.System, f.Name}
				i, ok := at[key]
				if !ok {
					i = len(results)
					at[key] = i
					results = append(results, result{Case: b.Case, System: b.System, Name: f.Name, Unit: f.Unit})
				}
				results[i].Runs = append(results[i].Runs, f.Value)
				results[i].Strangers = max(results[i].Strangers, taken)
			}
		}
	}
	progress(began, done, done, bout{})
	for i := range results {
		sorted := slices.Sorted(slices.Values(results[i].Runs))
		results[i].Median = sorted[len(sorted)/2]
	}
	order := func(r result) int {
		return slices.IndexFunc(bouts, func(b bout) bool { return b.Case == r.Case && b.System == r.System })
	}
	slices.SortStableFunc(results, func(a, b result) int { return order(a) - order(b) })
	return results, failed
}

func progress(began time.Time, done, of int, b bout) {
	const width = 30
	full := width * done / of
	fmt.Fprintf(os.Stderr, "\r\033[K[%s%s] %d/%d %s %s %s", strings.Repeat("#", full), strings.Repeat(".", width-full), done, of,
		time.Since(began).Round(time.Second), b.Case, b.System)
}

// render makes the Markdown table.
func render(results []result, scale int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %d cores, %s, fsync on", time.Now().UTC().Format("2006-01-02"), runtime.NumCPU(), runtime.Version())
	if scale > 1 {
		fmt.Fprintf(&b, ", a %dth of the work", scale)
	}
	b.WriteString(".\n\n| case | system | figure | median | runs | to Asynq | strangers' CPU |\n|---|---|---|---|---|---|---|\n")
	for _, r := range results {
		ratio := ""
		for _, peer := range results {
			if peer.Case == r.Case && peer.System == asynqSystem && peer.Name == r.Name && r.System != asynqSystem && peer.Median > 0 {
				ratio = fmt.Sprintf("%.2f x", r.Median/peer.Median)
			}
		}
		var each []string
		for _, v := range r.Runs {
			each = append(each, number(v))
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s %s | %s | %s | %s |\n", r.Case, r.System, r.Name, number(r.Median), r.Unit, strings.Join(each, ", "), ratio, percent(r.Strangers))
	}
	return b.String()
}

func number(v float64) string {
	if v >= 100 || v == float64(int64(v)) {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
