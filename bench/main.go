// Command bench measures Muster beside bare Asynq and River: the same work, the same machine, one run, private servers
// with fsync on. It prints a table of medians with ratios, targets and the share of the machine that strangers took, and
// writes it as Markdown and JSON.
//
//	scripts/bench                     every case, 3 runs each: 25 minutes
//	scripts/bench --case drain,flood  these only
//	scripts/bench --quick             a tenth of the work, 1 run: to see that it works
//	scripts/bench --runs 5 --out fig  fig.md and fig.json, instead of results.md and results.json in .muster/bench
//	scripts/bench --docs              puts the table into docs/benchmarks.md, and the figures into bench/results.json
//
// Each of Muster's bouts checks its own history (check.go) and fails when it is not exact: a figure of work that was lost,
// done twice or not metered is none. The peers' bouts are in peers.go and beside the cases.
//
// It is a module of its own, so that the peers stay out of the product's dependencies.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// figure is one measured number.
type figure struct {
	Name  string
	Value float64
	Unit  string
}

// bout is one system doing one case's work.
type bout struct {
	Case, System string
	run          func(h *host, scale int) []figure // scale divides the amount of work
	once         bool                              // one run tells enough: it is long, or a sample by itself
	full         bool                              // too long for --quick
	beside       bool                              // it idles for minutes: it runs along with the bout before it
}

// result is one figure of one bout over its runs.
type result struct {
	Case     string    `json:"case"`
	System   string    `json:"system"`
	Name     string    `json:"figure"`
	Median   float64   `json:"median"`
	Runs     []float64 `json:"runs"`
	Unit     string    `json:"unit"`
	Measured string    `json:"measured"` // the UTC day

	// The share of the machine that others took, 0 to 1; null: unknown.
	Strangers      *float64   `json:"strangers"`        // the most of any run
	StrangersByRun []*float64 `json:"strangers_by_run"` // beside Runs
}

// options is the command line.
type options struct {
	cases []string // empty: all
	quick bool
	runs  int
	out   string // files without their ending; "": defaultOut
	docs  bool
}

func main() {
	if payload := os.Getenv(asynqVictim); payload != "" {
		beAsynqVictim(payload)
		return
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// Exit codes: 1 when a bout or its history fails, or when a full run misses what is wanted; 2 for a wrong command line, 130
// when interrupted.
func run(args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := adoptOrphans(); err != nil {
		fmt.Fprintln(stderr, "bench: the CPU that strangers take will be too high:", err)
	}
	results, failed := measure(ctx, o, stderr)
	if ctx.Err() != nil {
		fmt.Fprintln(stderr, "\nbench: interrupted; the servers are gone")
		return 130
	}
	return conclude(o, os.Getenv("MUSTER_BENCH_ROOT"), results, failed, stdout, stderr) // scripts/bench sets it
}

// conclude shows and writes what was measured and returns the exit code. root is the repository.
func conclude(o options, root string, results []result, failed bool, stdout, stderr io.Writer) int {
	fmt.Fprint(stdout, "\n", render(results, o.quick))
	files, err := publish(o, root, results)
	if err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		failed = true
	}
	fmt.Fprintf(stdout, "\nwritten: %s\n", strings.Join(files, ", "))
	if !o.quick { // a tenth of the work proves nothing, either way
		for _, miss := range misses(results) {
			fmt.Fprintln(stderr, "bench: missed:", miss)
			failed = true
		}
	}
	if failed {
		return 1
	}
	return 0
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	names := flags.String("case", "", "cases, comma-separated; default all: "+strings.Join(caseNames(), ","))
	flags.BoolVar(&o.quick, "quick", false, "a tenth of the work, one run")
	flags.IntVar(&o.runs, "runs", 3, "runs of each case, 1 to 100")
	flags.StringVar(&o.out, "out", "", "write OUT.md and OUT.json; default "+defaultOut+" in the repository")
	flags.BoolVar(&o.docs, "docs", false, "write the table into docs/benchmarks.md and the figures into bench/results.json; with --case these cases' rows only")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			flags.SetOutput(stderr)
			flags.Usage()
		}
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if o.runs < 1 || o.runs > 100 {
		return o, fmt.Errorf("--runs %d: want 1 to 100", o.runs)
	}
	if o.docs && o.quick {
		return o, errors.New("--docs wants a full run, not --quick")
	}
	if o.quick {
		o.runs = 1
	}
	if *names != "" {
		o.cases = strings.Split(*names, ",")
	}
	for _, name := range o.cases {
		if !slices.Contains(caseNames(), name) {
			return o, fmt.Errorf("there is no case %q; there are %s", name, strings.Join(caseNames(), ", "))
		}
	}
	return o, nil
}

func caseNames() (names []string) {
	for _, b := range bouts() {
		if !slices.Contains(names, b.Case) {
			names = append(names, b.Case)
		}
	}
	return names
}

// quickScale divides the work of a quick run.
const quickScale = 10

// measure runs the chosen bouts in rounds, all of them once per round, so that what disturbs the machine for a while
// disturbs everybody. It goes on behind a bout that fails.
func measure(ctx context.Context, o options, stderr io.Writer) (results []result, failed bool) {
	scale := 1
	if o.quick {
		scale = quickScale
	}
	var plan [][]bout
	for round := range o.runs {
		for _, b := range bouts() {
			chosen := len(o.cases) == 0 || slices.Contains(o.cases, b.Case)
			switch {
			case !chosen || b.once && round > 0 || b.full && o.quick:
			case b.beside && len(plan) > 0:
				plan[len(plan)-1] = append(plan[len(plan)-1], b)
			default:
				plan = append(plan, []bout{b})
			}
		}
	}
	bar := newProgress(stderr, len(plan))
	for _, together := range plan {
		bar.next(together)
		before := readCPU()
		ends := playAll(ctx, together, scale)
		taken := strangers(before, readCPU())
		if ctx.Err() != nil {
			return results, true
		}
		for i, b := range together {
			if ends[i].err != nil {
				bar.say(fmt.Sprintf("bench: %s, %s: %v", b.Case, b.System, ends[i].err))
				failed = true
			}
			for _, f := range ends[i].figures {
				results = add(results, b, f, taken)
			}
		}
	}
	bar.end()
	sortResults(results)
	return results, failed
}

// ended is how a bout went.
type ended struct {
	figures []figure
	err     error
}

// playAll runs bouts at once, each on a host of its own.
func playAll(ctx context.Context, together []bout, scale int) []ended {
	ends := make([]ended, len(together))
	var all sync.WaitGroup
	for i, b := range together {
		all.Go(func() {
			ends[i].figures, ends[i].err = within(ctx, func(h *host) []figure { return b.run(h, scale) })
		})
	}
	all.Wait()
	return ends
}

// add notes a figure of one run.
func add(results []result, b bout, f figure, taken float64) []result {
	i := slices.IndexFunc(results, func(r result) bool { return r.Case == b.Case && r.System == b.System && r.Name == f.Name })
	if i < 0 {
		i = len(results)
		results = append(results, result{Case: b.Case, System: b.System, Name: f.Name, Unit: f.Unit, Measured: time.Now().UTC().Format(time.DateOnly)})
	}
	r := &results[i]
	r.Runs = append(r.Runs, f.Value)
	r.Median = median(r.Runs)
	if math.IsNaN(taken) {
		r.StrangersByRun = append(r.StrangersByRun, nil)
		return results
	}
	r.StrangersByRun = append(r.StrangersByRun, &taken)
	if r.Strangers == nil || *r.Strangers < taken {
		r.Strangers = &taken
	}
	return results
}

// sortResults brings results into the order of the bouts.
func sortResults(results []result) {
	all := bouts()
	order := func(r result) int {
		return slices.IndexFunc(all, func(b bout) bool { return b.Case == r.Case && b.System == r.System })
	}
	slices.SortStableFunc(results, func(a, b result) int { return order(a) - order(b) })
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 0 {
		return (sorted[middle-1] + sorted[middle]) / 2
	}
	return sorted[middle]
}

// progress is a bar on a terminal, and a line for each bout elsewhere.
type progress struct {
	to       io.Writer
	terminal bool
	began    time.Time
	done, of int
}

func newProgress(to io.Writer, of int) *progress {
	p := &progress{to: to, began: time.Now(), of: of, done: -1}
	if f, ok := to.(*os.File); ok {
		info, err := f.Stat()
		p.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return p
}

func (p *progress) next(together []bout) {
	p.done++
	p.show(together[0].Case + ", " + together[0].System)
}

func (p *progress) show(what string) {
	const width = 30
	full := width * p.done / max(1, p.of)
	line := fmt.Sprintf("[%s%s] %d/%d %s %s", strings.Repeat("#", full), strings.Repeat(".", width-full), p.done, p.of,
		time.Since(p.began).Round(time.Second), what)
	if p.terminal {
		fmt.Fprint(p.to, "\r\033[K", line)
	} else {
		fmt.Fprintln(p.to, line)
	}
}

// say writes a line that stays.
func (p *progress) say(line string) {
	if p.terminal {
		fmt.Fprint(p.to, "\r\033[K")
	}
	fmt.Fprintln(p.to, line)
}

func (p *progress) end() {
	p.done = p.of
	p.show("")
	if p.terminal {
		fmt.Fprintln(p.to)
	}
}
