//go:build unix

package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// TestChaos is the short run: real processes, 600 tasks and more, while the API, a worker, the scheduler, Redis and Postgres
// are killed, Redis is flushed and emptied, Redis, Postgres and a worker are cut off, a worker stands still, replies are lost,
// and the clocks of Postgres and of the processes are stepped. The whole, with cuts of 90 s and everything twice, is
// scripts/chaos. CHAOS_SEED repeats a run.
func TestChaos(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	muster := filepath.Join(dir, "muster")
	build := exec.Command("go", slices.Concat([]string{"build", "-overlay", "scripts/chaosrun/overlay.json", "-o", muster}, buildFlags, []string{"."})...)
	build.Dir = filepath.Join("..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build muster: %v\n%s", err, out)
	}
	seed, err := seedOf(os.Getenv("CHAOS_SEED"))
	if err != nil {
		t.Fatal(err)
	}
	o := options{seed: seed, quick: true, out: filepath.Join(dir, "history.jsonl")}
	cfg := o.config(muster)
	cfg.say = t.Logf
	t.Logf("seed %d", seed)
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	defer cancel()
	r, err := perform(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(r.summary())
	if r.failed() {
		kept, err := os.MkdirTemp("", "chaos-failed-")
		if err == nil {
			err = os.CopyFS(kept, os.DirFS(dir))
		}
		t.Errorf("a promise was broken or a fault did not fire; history and logs: %s (%v)", kept, err)
	}
	if got := r.tally; got.Acknowledged < cfg.tasks || slices.Contains([]int{got.Replays, got.Crashed, got.Canceled, got.Stopped, got.Expired, got.OutOfReach, got.Outages,
		got.Retried, got.Later, got.Ranked, got.Sent, got.Told, got.ToldAgain}, 0) {
		t.Errorf("the run shows too little: %+v", *got)
	}
}

// seedOf reads a seed, or makes one.
func seedOf(s string) (uint64, error) {
	if s == "" {
		return rand.Uint64N(1_000_000) + 1, nil
	}
	return strconv.ParseUint(s, 10, 64)
}

// Every fault is in one of the two runs, and the same seed fires the same.
func TestPlans(t *testing.T) {
	t.Parallel()
	names := func(plan []round) (all []string) {
		for _, r := range plan {
			for _, f := range r {
				all = append(all, f.name)
			}
		}
		return all
	}
	one, same, other := options{seed: 1}.config(""), options{seed: 1}.config(""), options{seed: 2}.config("")
	if !slices.Equal(names(one.plan), names(same.plan)) || slices.Equal(names(one.plan), names(other.plan)) {
		t.Error("a seed does not fix the order of faults, or fixes nothing")
	}
	quick := names(options{quick: true}.config("").plan)
	for _, f := range faults {
		if !slices.Contains(names(one.plan), f.name) && !slices.Contains(quick, f.name) {
			t.Errorf("%s is in no run", f.name)
		}
	}
	if d := expected(one.plan); d > 19*time.Minute || one.tasks <= 10_000 {
		t.Errorf("the whole run takes %s for %d tasks", d, one.tasks)
	}
}

func TestWrongUsageExitsWith2AndSaysWhy(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"UnknownFlag":    {[]string{"--speed", "3"}, "flag provided but not defined: -speed"},
		"UnknownFault":   {[]string{"--faults", "kill-worker,kill-joy"}, `there is no fault "kill-joy"`},
		"NegativeTasks":  {[]string{"--tasks", "-1"}, "--tasks -1: want a number of tasks"},
		"UnreadableSeed": {[]string{"--seed", "x"}, `invalid value "x" for flag -seed`},
		"StrayWord":      {[]string{"quick"}, `"quick" is no flag`},
		"QuickAndFaults": {[]string{"--quick", "--faults", "kill-api"}, "want one of them"},
		"DocsOfAPart":    {[]string{"--docs", "--quick"}, "--docs is for the whole run"},
		"CheckAndMore":   {[]string{"--check", "x", "--quick"}, "--check stands alone"},
		"CheckOfNothing": {[]string{"--check", "/does/not/exist"}, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out, errs bytes.Buffer
			if code := run(t.Context(), c.args, &out, &errs); code != 2 || !strings.Contains(errs.String(), c.want) {
				t.Errorf("code %d, %q; want 2 and %q", code, errs.String(), c.want)
			}
		})
	}
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"--help"}, &out, &errs); code != 0 || !strings.Contains(errs.String(), "kill-postgres") {
		t.Errorf("--help: code %d, %q", code, errs.String())
	}
}

// A run that is interrupted ends its processes and servers and removes what it has made.
func TestAnInterruptedRunLeavesNothingBehind(t *testing.T) {
	t.Parallel()
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	o := options{seed: 1, quick: true, out: filepath.Join(t.TempDir(), "history.jsonl")}
	cfg := o.config("/bin/sleep") // "sleep scheduler" ends at once and is started again and again
	cfg.say, cfg.under = t.Logf, t.TempDir()
	go func() {
		defer interrupt()
		for ctx.Err() == nil {
			if raw, _ := os.ReadFile(o.out); bytes.Contains(raw, []byte(`"what":"process"`)) {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	if _, err := perform(ctx, cfg); err == nil {
		t.Error("the run ended well")
	}
	left, err := os.ReadDir(cfg.under)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestTheSummaryIsWrittenBetweenItsLines(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "doc.md")
	if err := os.WriteFile(path, []byte("before\n"+docsBegin+"\nold\n"+docsEnd+"\nafter\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 { // writing it again changes nothing
		if err := writeDocs(path, "new\n"); err != nil {
			t.Fatal(err)
		}
		if got, want := string(mustRead(t, path)), "before\n"+docsBegin+"\n\nnew\n\n"+docsEnd+"\nafter\n"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if err := os.WriteFile(path, []byte("nothing"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := writeDocs(path, "new\n"); err == nil {
		t.Error("a document without a place was taken")
	}
}

func TestAFailedRunIsNotWrittenIntoTheDocument(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "doc.md")
	empty := docsBegin + "\n" + docsEnd + "\n"
	for name, r := range map[string]*report{
		"AFaultDidNotFire": {tally: &tally{}, firings: []*firing{{fault: faults[0], err: errNotFired}}},
		"APromiseIsBroken": {tally: &tally{Violations: []violation{{ruleLost, "t1"}}}},
		"ALedgersRuleIs":   {tally: &tally{}, errors: []string{"drift"}},
	} {
		if err := os.WriteFile(path, []byte(empty), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := r.publish(path); err == nil || string(mustRead(t, path)) != empty {
			t.Errorf("%s: %v, the document is %q", name, err, mustRead(t, path))
		}
	}
	if err := (&report{tally: &tally{}}).publish(path); err != nil || string(mustRead(t, path)) == empty {
		t.Errorf("a good run is not written: %v", err)
	}
}

// The document's table has a row for each fault that the whole run fires: who adds one makes that run and writes down what came
// of it.
func TestTheDocumentTellsOfEachFault(t *testing.T) {
	t.Parallel()
	_, table, _ := strings.Cut(string(mustRead(t, "../../docs/reliability.md")), docsBegin)
	table, _, _ = strings.Cut(table, docsEnd)
	for _, f := range slices.Concat(fullPlan(rand.New(rand.NewPCG(1, 0)))...) {
		if row := fmt.Sprintf("\n| `%s` | %s | ", f.name, f.about); !strings.Contains(table, row) {
			t.Errorf("docs/reliability.md has no row %q; scripts/chaos --docs writes it", strings.TrimSpace(row))
		}
	}
}
