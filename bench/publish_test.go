package main

import (
	"bytes"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// good is what a run of a case brings when all is well.
func good(name string, median float64) []result {
	taken := 0.25
	var all []result
	for _, t := range targets {
		if t.Case == name && t.to == "" {
			all = append(all, result{Case: name, System: musterSystem, Name: t.Figure, Median: median, Runs: []float64{median}, Measured: "2026-01-02",
				Strangers: &taken, StrangersByRun: []*float64{&taken}})
		}
	}
	return all
}

// repository is a directory with the page that the table goes into, and figures of an earlier day.
func repository(t *testing.T, old ...result) (root, page, figures string) {
	t.Helper()
	root = t.TempDir()
	page, figures = filepath.Join(root, "docs", "benchmarks.md"), filepath.Join(root, "bench", "results.json")
	for _, dir := range []string{"docs", "bench"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(page, []byte("before\n"+tableBegins+"old table\n"+tableEnds+"behind\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := writeJSON(figures, old); err != nil {
		t.Fatal(err)
	}
	return root, page, figures
}

func read(t *testing.T, file string) string {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// casesIn are the cases of a file of figures, in their order.
func casesIn(t *testing.T, file string) (names []string) {
	t.Helper()
	var results []result
	if err := json.Unmarshal([]byte(read(t, file)), &results); err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
		names = append(names, r.Case)
	}
	return names
}

func TestEveryRunWritesItsFigures(t *testing.T) {
	root, page, figures := repository(t)
	elsewhere := filepath.Join(t.TempDir(), "new", "fig")
	for out, want := range map[string]string{"": filepath.Join(root, defaultOut), elsewhere: elsewhere} {
		var stdout, stderr bytes.Buffer
		if code := conclude(options{out: out}, root, good("ramp", 50), false, &stdout, &stderr); code != 0 || stderr.Len() > 0 {
			t.Errorf("code %d, %s", code, stderr.String())
		}
		if !strings.Contains(stdout.String(), "written: "+want+".md, "+want+".json\n") {
			t.Errorf("it does not say where the figures are:\n%s", stdout.String())
		}
		if table := read(t, want+".md"); !strings.Contains(table, "| ramp | muster | all ten run after |") || !strings.Contains(table, "| 25 % |") {
			t.Errorf("the table is\n%s", table)
		}
		if got := casesIn(t, want+".json"); !slices.Equal(got, []string{"ramp"}) {
			t.Errorf("the figures are of %v", got)
		}
	}
	if !strings.Contains(read(t, page), "old table") || len(casesIn(t, figures)) > 0 {
		t.Error("the docs were written without --docs")
	}
}

func TestDocsOfSomeCasesKeepTheOthersRows(t *testing.T) {
	old := append(good("ramp", 41), good("flood", 19)...)
	root, page, figures := repository(t, old...)
	files, err := publish(options{docs: true, cases: []string{"ramp"}}, root, good("ramp", 42))
	if err != nil || !slices.Contains(files, page) || !slices.Contains(files, figures) {
		t.Fatalf("%v, %v", files, err)
	}
	if got := casesIn(t, figures); !slices.Equal(got, []string{"ramp", "flood"}) {
		t.Errorf("the figures are of %v", got)
	}
	text := read(t, page)
	for _, want := range []string{"before\n" + tableBegins, "| all ten run after | 42 |", "| B waits | 19 |", tableEnds + "behind\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, "old table") || strings.Contains(text, "| 41 |") {
		t.Errorf("the page keeps what was measured anew:\n%s", text)
	}
	if got := casesIn(t, filepath.Join(root, defaultOut+".json")); !slices.Equal(got, []string{"ramp"}) {
		t.Errorf("the run's own figures are of %v", got)
	}

	if _, err := publish(options{docs: true}, root, good("caps", 0)); err != nil {
		t.Fatal(err)
	}
	if got := casesIn(t, figures); !slices.Equal(slices.Compact(got), []string{"caps"}) {
		t.Errorf("behind a run of all cases the figures are of %v", got)
	}
	if err := os.WriteFile(page, []byte("no marks"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := publish(options{docs: true}, root, good("caps", 0)); err == nil || read(t, page) != "no marks" {
		t.Errorf("a page without marks: %v", err)
	}
}

// Who reads the table has to know whether one run was disturbed or all of them.
func TestStrangersAreKeptForEachRun(t *testing.T) {
	var results []result
	b, f := bout{Case: "ramp", System: musterSystem}, figure{"all ten run after", 20, "ms"}
	for _, taken := range []float64{0.02, math.NaN(), 0.3, 0.01} {
		results = add(results, b, f, taken)
	}
	file := filepath.Join(t.TempDir(), "figures.json")
	if err := writeJSON(file, results); err != nil {
		t.Fatal(err)
	}
	again, err := readJSON(file)
	if err != nil {
		t.Fatal(err)
	}
	r := again[0]
	if len(r.Runs) != 4 || len(r.StrangersByRun) != 4 || *r.StrangersByRun[0] != 0.02 || r.StrangersByRun[1] != nil || *r.StrangersByRun[2] != 0.3 || *r.Strangers != 0.3 {
		t.Errorf("%+v", r)
	}
	if table := render(again, false); !strings.Contains(table, "| strangers' CPU, most |") || !strings.Contains(table, "| 30 % |") {
		t.Errorf("the table is\n%s", table)
	}
}

func TestAFullRunThatMissesWhatIsWantedEndsWithOne(t *testing.T) {
	missed := good("ramp", 151)
	for name, c := range map[string]struct {
		o       options
		results []result
		failed  bool
		code    int
		said    string
	}{
		"met":          {options{}, good("ramp", 150), false, 0, ""},
		"missed":       {options{}, missed, false, 1, "bench: missed: ramp, all ten run after: 151, wanted ≤ 150, aim 50\n"},
		"missed quick": {options{quick: true}, missed, false, 0, ""},
		"failed quick": {options{quick: true}, missed, true, 1, ""},
		"not measured": {options{}, good("submit", 10_000)[:1], true, 1, "bench: missed: submit, p99: not measured\n"},
	} {
		var stdout, stderr bytes.Buffer
		if code := conclude(c.o, t.TempDir(), c.results, c.failed, &stdout, &stderr); code != c.code || stderr.String() != c.said {
			t.Errorf("%s: code %d, %q", name, code, stderr.String())
		}
	}
}
