package main

import (
	"bytes"
	"math"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if err := adoptOrphans(); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

func TestParseStat(t *testing.T) {
	p, ok := parseStat("42 (a) strange) name) S 7 42 42 0 -1 4194560 1 2 3 4 10 20 30 40 20 0 1 0 5")
	if want := (process{pid: 42, parent: 7, ticks: 100}); !ok || p != want {
		t.Errorf("read %+v, %v; want %+v", p, ok, want)
	}
	if _, ok := parseStat("42 (half"); ok {
		t.Error("half a line was read")
	}
}

func TestStrangersAreWhoIsNotUs(t *testing.T) {
	from := cpu{all: 1000, user: 500, stolen: 10, ours: 100, strangers: 300}
	for name, c := range map[string]struct {
		to   cpu
		want float64
	}{
		"nobody":                     {cpu{all: 2000, user: 1000, stolen: 10, ours: 600, strangers: 300}, 0},
		"a process":                  {cpu{all: 2000, user: 1000, stolen: 10, ours: 400, strangers: 500}, 0.2},
		"the hypervisor":             {cpu{all: 2000, user: 1000, stolen: 110, ours: 600, strangers: 300}, 0.1},
		"less than sampling can see": {cpu{all: 2000, user: 1050, stolen: 10, ours: 600, strangers: 300}, 0},
		"another container":          {cpu{all: 2000, user: 1300, stolen: 10, ours: 600, strangers: 300}, 0.3},
	} {
		if got := strangers(from, c.to); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("%s: %.3f, want %.3f", name, got, c.want)
		}
	}
	if !math.IsNaN(strangers(cpu{}, cpu{})) {
		t.Error("without /proc somebody seems to know")
	}
}

func TestWrongCommandLinesEndWithTwo(t *testing.T) {
	for line, want := range map[string]string{
		"--case nosuch":  `there is no case "nosuch"; there are drain, through,`,
		"--case drain,":  `there is no case ""`,
		"--runs 0":       "--runs 0: want 1 to 100",
		"--runs many":    "invalid value",
		"--what":         "not defined: -what",
		"drain":          `unexpected argument "drain"`,
		"--quick --docs": "--docs wants a full run",
	} {
		var stdout, stderr bytes.Buffer
		if code := run(strings.Fields(line), &stdout, &stderr); code != 2 || !strings.Contains(stderr.String(), want) || stdout.Len() > 0 {
			t.Errorf("%s: code %d, %q", line, code, stderr.String())
		}
	}
}

func TestVerdicts(t *testing.T) {
	results := []result{
		{Case: "drain", System: musterSystem, Name: ratePerSecond, Median: 90, Unit: "/s"},
		{Case: "drain", System: asynqSystem, Name: ratePerSecond, Median: 100, Unit: "/s"},
		{Case: "submit", System: musterSystem, Name: "p99", Median: 61, Unit: "ms"},
		{Case: "ramp", System: musterSystem, Name: "all ten run after", Median: 50, Unit: "ms"},
		{Case: "tiers", System: musterSystem, Name: shareOfStarts + "pro", Median: 60, Unit: "%"},
		{Case: "tiers", System: musterSystem, Name: shareOfStarts + "free", Median: 12, Unit: "%"},
		{Case: "through", System: musterSystem, Name: ratePerSecond, Median: 1, Unit: "/s"},
		{Case: "caps", System: asynqSystem, Name: "cap violations", Median: 3},
	}
	for i, want := range []string{"met", "", "missed", "aim", "met", "missed", "?", ""} {
		if _, got := judge(results[i], results); got != want {
			t.Errorf("%s, %s: %q, want %q", results[i].Case, results[i].Name, got, want)
		}
	}
	if table := render(results, false); !strings.Contains(table, "| drain | muster | tasks per second | 90 /s |") || !strings.Contains(table, "| 0.9 x |") {
		t.Errorf("the table has no ratio:\n%s", table)
	}
}

func TestFiguresOfRuns(t *testing.T) {
	if m := median([]float64{9, 1, 5}); m != 5 {
		t.Errorf("the median of three is %v", m)
	}
	if m := median([]float64{4, 2}); m != 3 {
		t.Errorf("the median of two is %v", m)
	}
	for v, want := range map[float64]string{0: "0", 1234.5: "1234", 12.34: "12.3", 1.25: "1.25", 0.9: "0.9", 0.991: "0.991", 0.00004: "4e-05"} {
		if got := number(v); got != want {
			t.Errorf("%v is written %q, want %q", v, got, want)
		}
	}
	waits := []time.Duration{1, 2, 3, 4}
	if percentile(waits, 50) != 3 || percentile(waits, 99) != 4 {
		t.Error("percentiles are off")
	}
}

// A host's failure ends the bout from whatever goroutine, and its cleanups run.
func TestAFailureAnywhereEndsABout(t *testing.T) {
	cleaned := false
	_, err := within(t.Context(), func(h *host) []figure {
		h.Cleanup(func() { cleaned = true })
		go func() { h.Fatalf("task %d is lost", 7) }()
		select {} // waits for ever for what the other goroutine should have done
	})
	if err == nil || err.Error() != "task 7 is lost" || !cleaned {
		t.Errorf("ended with %v, cleaned: %v", err, cleaned)
	}
}

func TestJain(t *testing.T) {
	a, b := &tenant{}, &tenant{}
	for name, c := range map[string]struct {
		order []*tenant
		want  float64
	}{
		"taking turns":                {[]*tenant{a, b, a, b, a, b}, 1},
		"one of two taking all":       {[]*tenant{a, a, a, a}, 0.5},
		"unfair once, not at a round": {[]*tenant{a, b, b, b, b, a, b, a}, 0.5},
		"unfair at the end":           {[]*tenant{a, b, a, b, a, b, b}, 0.8},
		"unfair in a window only":     {[]*tenant{a, b, a, b, a, a, b, b}, 0.8},
	} {
		if got, err := jain(c.order, 2, 2); err != nil || math.Abs(got-c.want) > 1e-9 {
			t.Errorf("%s: %v, %v; want %v", name, got, err, c.want)
		}
	}
	if j, err := jain([]*tenant{a, b, a}, 2, 2); err == nil {
		t.Errorf("less than two rounds have %v", j)
	}
}

// What slides along must be what counting each window anew comes to.
func TestJainSlides(t *testing.T) {
	const n, rounds, size = 7, 3, 21
	all := make([]*tenant, n)
	for i := range all {
		all[i] = &tenant{}
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		order := make([]*tenant, 200)
		for i := range order {
			order[i] = all[random.IntN(1+random.IntN(n))]
		}
		want := 1.0
		for from := 0; from+size <= len(order); from++ {
			counts, squares := map[*tenant]float64{}, 0.0
			for _, who := range order[from : from+size] {
				counts[who]++
			}
			for _, c := range counts {
				squares += c * c
			}
			want = min(want, size*size/(n*squares))
		}
		if got, err := jain(order, n, rounds); err != nil || math.Abs(got-want) > 1e-9 {
			t.Fatalf("slid to %v, %v; counted %v", got, err, want)
		}
	}
}
