//go:build unix

// Command chaosrun is scripts/chaos: it runs Muster's real processes on private servers, lets customers send tasks, makes
// faults happen meanwhile, records what happened, and checks the record against what Muster promises.
//
//	scripts/chaos                      every fault, over 12,000 tasks, about a quarter of an hour
//	scripts/chaos --quick              the run of scripts/test
//	scripts/chaos --faults kill-worker,cut-redis-45+kill-api --tasks 500 --seed 7
//	scripts/chaos --check FILE         only checks the history of an earlier run
//	scripts/chaos --docs               writes the summary into docs/reliability.md
//
// A seed fixes what is fired in which order and when, and what customers send; the machine's own timing it cannot fix. It
// exits with 0 when every fault was shown to have happened and every promise was kept, with 1 when not, with 2 when it is
// called wrongly.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// options are what the command line says.
type options struct {
	seed   uint64
	tasks  int
	faults []round
	quick  bool
	out    string
	check  string
	docs   bool
}

func parse(args []string, stderr io.Writer) (o options, err error) {
	set := flag.NewFlagSet("scripts/chaos", flag.ContinueOnError)
	set.SetOutput(stderr)
	set.Usage = func() {
		fmt.Fprintln(stderr, "usage: scripts/chaos [flags]")
		set.PrintDefaults()
		fmt.Fprintln(stderr, "faults:")
		for _, f := range faults {
			fmt.Fprintf(stderr, "  %-22s %s\n", f.name, f.about)
		}
	}
	set.Uint64Var(&o.seed, "seed", 0, "repeats the order, times and choices of an earlier run; 0 takes a new one")
	set.IntVar(&o.tasks, "tasks", 0, "how many tasks must be acknowledged at least; 0 means 12000, with --quick 600, with --faults only what is sent meanwhile")
	names := set.String("faults", "", "fire only these, comma-separated, in this order; NAME+NAME at once")
	set.BoolVar(&o.quick, "quick", false, "the short run of scripts/test")
	set.StringVar(&o.out, "out", "", "where the history is written; default: .muster/chaos/history.jsonl")
	set.StringVar(&o.check, "check", "", "check this history of an earlier run, and run nothing")
	set.BoolVar(&o.docs, "docs", false, "write the summary into docs/reliability.md")
	if err := set.Parse(args); err != nil {
		return o, err
	}
	switch {
	case set.NArg() > 0:
		return o, fmt.Errorf("%q is no flag", set.Arg(0))
	case o.tasks < 0:
		return o, fmt.Errorf("--tasks %d: want a number of tasks", o.tasks)
	case o.quick && *names != "":
		return o, errors.New("--quick and --faults: want one of them")
	case o.check != "" && (o.quick || *names != "" || o.docs || o.out != ""):
		return o, errors.New("--check stands alone")
	case o.docs && (o.quick || *names != ""):
		return o, errors.New("--docs is for the whole run: not with --quick or --faults")
	}
	if *names == "" {
		return o, nil
	}
	for together := range strings.SplitSeq(*names, ",") {
		var r round
		for name := range strings.SplitSeq(together, "+") {
			at := slices.IndexFunc(faults, func(f fault) bool { return f.name == name })
			if at < 0 {
				return o, fmt.Errorf("there is no fault %q; scripts/chaos --help lists them", name)
			}
			r = append(r, faults[at])
		}
		o.faults = append(o.faults, r)
	}
	return o, nil
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(stderr, "chaos:", err)
		return 2
	}
	if o.check != "" {
		return checkFile(o.check, stdout, stderr)
	}
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(stderr, "chaos:", err)
		return 1
	}
	bin := filepath.Dir(self) // scripts/chaos builds both programs into .muster/bin
	if o.out == "" {
		o.out = filepath.Join(bin, "..", "chaos", "history.jsonl")
		if err := os.MkdirAll(filepath.Dir(o.out), 0o755); err != nil {
			fmt.Fprintln(stderr, "chaos:", err)
			return 1
		}
	}
	if o.seed == 0 {
		o.seed = rand.Uint64N(1_000_000) + 1
	}
	cfg := o.config(filepath.Join(bin, "muster-chaos"))
	cfg.say = func(format string, args ...any) { fmt.Fprintf(stderr, format+"\n", args...) }
	fmt.Fprintf(stdout, "seed %d, about %s\n", o.seed, expected(cfg.plan).Round(time.Minute))
	r, err := perform(ctx, cfg)
	if ctx.Err() != nil {
		fmt.Fprintf(stderr, "chaos: interrupted; the history so far is in %s\n", o.out)
		return 1
	}
	if r != nil {
		fmt.Fprint(stdout, r.summary())
		fmt.Fprintf(stdout, "\nhistory: %s\n", o.out)
	}
	if err != nil {
		fmt.Fprintln(stderr, "chaos:", err)
		return 1
	}
	if o.docs {
		if err := r.publish(filepath.Join(bin, "..", "..", "docs", "reliability.md")); err != nil {
			fmt.Fprintln(stderr, "chaos:", err)
			return 1
		}
	}
	if r.failed() {
		return 1
	}
	return 0
}

// config makes the run's description.
func (o options) config(muster string) config {
	c := config{seed: o.seed, tasks: o.tasks, muster: muster, history: o.out, workers: 3, slots: 10,
		crowd: []tier{{"free", 1, 6}, {"starter", 3, 6}, {"growth", 5, 6}, {"pro", 10, 6}}}
	rng := rand.New(rand.NewPCG(o.seed, 0))
	switch {
	case o.quick:
		c.plan, c.hasty = quickPlan(), true
		c.crowd = []tier{{"free", 1, 2}, {"starter", 3, 2}, {"growth", 5, 2}, {"pro", 10, 2}}
		c.tasks = max(c.tasks, 600)
		c.rate = 10
	case len(o.faults) > 0:
		c.plan, c.rate = o.faults, 15
	default:
		c.plan = fullPlan(rng)
		if c.tasks == 0 {
			c.tasks = 12_000
		}
		c.rate = float64(c.tasks) / expected(c.plan).Seconds()
	}
	return c
}

func byName(name string) fault {
	return faults[slices.IndexFunc(faults, func(f fault) bool { return f.name == name })]
}

// fullPlan is every fault once, the quick ones twice, in any order, and then pairs of them at once.
func fullPlan(rng *rand.Rand) (plan []round) {
	for _, f := range faults {
		if slices.Contains([]string{"stop-worker-18", "cut-worker-18", "cut-redis-35"}, f.name) { // those of the quick run
			continue
		}
		plan = append(plan, round{f})
		if f.takes <= 15*time.Second {
			plan = append(plan, round{f})
		}
	}
	rng.Shuffle(len(plan), func(i, j int) { plan[i], plan[j] = plan[j], plan[i] })
	pairs := [][2]string{{"kill-worker", "flush-redis"}, {"kill-scheduler", "kill-worker"}, {"cut-redis-10", "kill-api"}, {"kill-postgres", "lose-answers"},
		{"cut-postgres-10", "kill-worker"}, {"cut-redis-10", "stop-worker-18"}, {"kill-redis-lose", "lose-commits-worker"},
		{"clock-steps", "flush-redis"}, {"clock-steps", "kill-worker"}, {"clock-steps-muster", "kill-worker"}}
	rng.Shuffle(len(pairs), func(i, j int) { pairs[i], pairs[j] = pairs[j], pairs[i] })
	for _, p := range pairs {
		plan = append(plan, round{byName(p[0]), byName(p[1])})
	}
	return plan
}

// quickPlan is what scripts/test has time for: what lasts long happens at once.
func quickPlan() (plan []round) {
	for _, names := range [][]string{
		{"cut-postgres-10", "restart-postgres", "clock-steps-muster", "clock-steps"}, // first: what is dated ahead waits until then
		{"kill-worker", "kill-scheduler", "lose-answers"},
		{"flush-redis", "kill-api", "cut-worker-18"},
		{"kill-redis-lose", "kill-postgres", "lose-commits-api", "lose-commits-worker"},
		{"cut-redis-35", "stop-worker-18"},
	} {
		var r round
		for _, name := range names {
			r = append(r, byName(name))
		}
		plan = append(plan, r)
	}
	return plan
}

// expected is about how long a plan takes.
func expected(plan []round) (d time.Duration) {
	for _, r := range plan {
		longest := time.Duration(0)
		for _, f := range r {
			longest = max(longest, f.takes)
		}
		d += longest + 2*time.Second
	}
	return d
}

// perform is the whole run: its stage, its faults, its check.
func perform(ctx context.Context, cfg config) (r *report, err error) {
	s, err := newStage(ctx, cfg)
	defer func() {
		r0 := r
		if s.servers != nil && (err != nil || r0 != nil && r0.failed()) {
			dir := filepath.Join(filepath.Dir(cfg.history), "logs")
			if copyErr := s.copyLogs(dir); copyErr == nil {
				cfg.say("logs: %s", dir)
			}
		}
		err = errors.Join(err, s.close())
	}()
	if err == nil {
		err = s.run(ctx)
	}
	if s.hist == nil {
		return nil, err
	}
	events, histErr := s.hist.close()
	if err = errors.Join(err, histErr); err != nil && !s.booked.Load() {
		return nil, err
	}
	return &report{seed: cfg.seed, firings: s.firings, tally: check(events), errors: s.host.errors, took: time.Since(s.hist.start)}, err
}

// checkFile checks a history that was written before.
func checkFile(path string, stdout, stderr io.Writer) int {
	file, err := os.Open(path)
	if err != nil {
		fmt.Fprintln(stderr, "chaos:", err)
		return 2
	}
	defer file.Close()
	events, err := readHistory(file)
	if err != nil {
		fmt.Fprintln(stderr, "chaos:", err)
		return 1
	}
	if len(events) == 0 || events[len(events)-1].What != finished {
		fmt.Fprintln(stderr, "chaos: the run was not finished: its tasks' ends are not in the history")
		return 1
	}
	r := &report{tally: check(events)}
	fmt.Fprint(stdout, r.summary())
	if r.failed() {
		return 1
	}
	return 0
}
