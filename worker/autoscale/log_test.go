package autoscale

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"
)

// said is a line of the log.
type said struct {
	Level, Error, Reason, Message string
	Have, Draining, Want, Need    int
	Runnable, Running             int
	Wait                          *float64 `json:"oldest_wait_ms"`
	Slots                         int      `json:"slots_per_worker"`
	Age                           *float64 `json:"figures_age_ms"`
	Limit, Floor                  *int
	Purse                         *int `json:"purse_minutes"`
	Stops                         []string
	DryRun                        *bool `json:"dry_run"`
}

// listen returns what the world's scaler has logged since it was last asked.
func (w *world) listen(t *testing.T) func() []said {
	t.Helper()
	var log bytes.Buffer
	w.scaler.cfg.Log = zerolog.New(&log)
	return func() (lines []said) {
		t.Helper()
		for line := range strings.Lines(log.String()) {
			var l said
			if err := json.Unmarshal([]byte(line), &l); err != nil {
				t.Fatal(err)
			}
			lines = append(lines, l)
		}
		log.Reset()
		return lines
	}
}

// outline is a line's decision: "backlog 1 2".
func outline(lines []said) (short []string) {
	for _, l := range lines {
		short = append(short, fmt.Sprintf("%s %d %d", l.Reason, l.Have, l.Want))
	}
	return short
}

func (w *world) logged(t *testing.T, lines []said, want ...string) {
	t.Helper()
	if got := strings.Join(outline(lines), ", "); got != strings.Join(want, ", ") {
		t.Errorf("logged %s\nwant   %s", got, strings.Join(want, ", "))
	}
}

func TestLog(t *testing.T) {
	t.Parallel()

	t.Run("EachStepIsToldWithAllThatItWasMadeOf", func(t *testing.T) {
		t.Parallel()
		p := usual
		p.Budget, p.Cooldown = 600, time.Minute
		w := newWorld(p, &tenant{cap: unlimited, takes: 3 * time.Minute, rate: during(1, 30*time.Minute, 60*time.Minute)})
		heard := w.listen(t)
		w.run(2*time.Hour, nil)
		steps, drained := 0, 0
		for _, l := range heard() {
			if l.Wait == nil || l.Age == nil || l.Limit == nil || l.Floor == nil || l.Purse == nil || l.DryRun == nil || l.Slots != 20 || l.Message != "autoscale" {
				t.Fatalf("an input is missing: %+v", l)
			}
			if len(l.Stops) != max(0, l.Have-l.Want) {
				t.Errorf("%d -> %d stops %v", l.Have, l.Want, l.Stops)
			}
			drained = max(drained, l.Draining)
			if l.Want == l.Have {
				continue
			}
			if a := w.acts[steps]; a.have != l.Have || a.want != l.Want || string(a.reason) != l.Reason {
				t.Errorf("step %d was %+v, logged as %+v", steps, a, l)
			}
			steps++
			if l.Reason == string(Backlog) && (l.Runnable < 50*l.Have || *l.Wait <= 0 && l.Have > 0 || l.Need != l.Want) {
				t.Errorf("up by %+v", l)
			}
		}
		if steps != len(w.acts) || steps < 10 || drained == 0 {
			t.Errorf("%d steps are logged of %d, with up to %d draining", steps, len(w.acts), drained)
		}
	})

	t.Run("WhenNothingChangesALineComesEachTenMinutes", func(t *testing.T) {
		t.Parallel()
		w := newWorld(usual, &tenant{cap: unlimited, takes: 10 * time.Second, rate: func(time.Duration) float64 { return 1 }})
		w.run(time.Hour, nil)
		heard := w.listen(t)
		w.run(time.Hour, nil)
		w.logged(t, heard(), "enough 1 1", "enough 1 1", "enough 1 1", "enough 1 1", "enough 1 1", "enough 1 1")
	})

	t.Run("HoldsAreToldAtTheirBeginningWithTheCauseAndAtTheirEnd", func(t *testing.T) {
		t.Parallel()
		w := newWorld(usual, &tenant{cap: unlimited, takes: 10 * time.Second, waiting: 10})
		heard := w.listen(t)
		w.run(time.Minute, nil)
		w.blind = true
		w.run(5*time.Minute, nil)
		w.blind, w.lost = false, true
		w.run(5*time.Minute, nil)
		w.lost = false
		w.run(30*time.Second, nil)
		lines := heard()
		w.logged(t, lines, "backlog 0 1", "enough 1 1", "figures_missing 1 1", "workers_unknown -1 -1", "enough 1 1")
		if l := lines[2]; l.Level != "warn" || l.Error != "the ledger does not answer" || l.Age != nil {
			t.Errorf("%+v", l)
		}
		if l := lines[3]; l.Level != "warn" || l.Error != "the platform does not answer" {
			t.Errorf("%+v", l)
		}
		if l := lines[4]; l.Level != "info" || l.Error != "" {
			t.Errorf("%+v", l)
		}
		if n := testutil.ToFloat64(w.scaler.cfg.Metrics.decisions.WithLabelValues(string(FiguresMissing))); n != 150 {
			t.Errorf("%v held decisions are counted, want 150", n)
		}
	})

	t.Run("LimitsCooldownAndPause", func(t *testing.T) {
		t.Parallel()
		p := usual
		p.Max, p.MaxStep = 2, 2
		w := newWorld(p, &tenant{cap: unlimited, takes: 20 * time.Second, waiting: 200})
		heard := w.listen(t)
		w.run(150*time.Second, nil) // 200 tasks end after 15 + 5 * 20 s
		lines := heard()
		w.logged(t, lines, "backlog 0 2", "maximum 2 2", "enough 2 2", "cooldown 2 2")
		if last := lines[len(lines)-1]; last.Need > 1 || *last.Floor != 5 || *last.Limit != 2 {
			t.Errorf("the need, the cool-down's floor and the limit: %+v", last)
		}
		w.paused = true
		w.run(time.Minute, nil)
		w.logged(t, heard(), "paused 2 2")
		w.paused = false
		w.run(8*time.Minute, nil)
		w.logged(t, heard(), "cooldown 2 2", "surplus 2 1", "enough 1 1")
	})

	t.Run("TheBudget", func(t *testing.T) {
		t.Parallel()
		p := usual
		p.Min, p.Budget = 0, 60
		w := newWorld(p, &tenant{cap: unlimited, takes: time.Minute, waiting: 1 << 20})
		w.paused = true
		w.run(time.Hour, nil)
		heard := w.listen(t)
		w.paused = false
		w.run(3*time.Hour, nil)
		lines := heard()
		if len(lines) < 3 || lines[0].Reason != string(Backlog) || *lines[0].Purse != 15 || lines[1].Reason != string(Budget) || *lines[1].Limit != 1 {
			t.Errorf("%v", outline(lines))
		}
	})

	// A need that moves about what is there makes "enough" and "cooldown" alternate at each look.
	t.Run("WhatAlternatesIsToldOnceAMinute", func(t *testing.T) {
		t.Parallel()
		busy := &tenant{cap: unlimited, takes: Interval, rate: func(time.Duration) float64 { return 0 }}
		p := usual
		p.Min, p.Max = 0, 1
		w := newWorld(p, busy)
		w.run(time.Minute, func(time.Duration) { busy.waiting = 1 })
		heard := w.listen(t)
		looks := 0
		w.run(10*time.Minute, func(time.Duration) {
			looks++
			busy.waiting = looks % 2
		})
		lines := heard()
		seen := map[string]int{}
		for _, l := range lines {
			seen[l.Reason]++
		}
		if seen["enough"] < 9 || seen["cooldown"] < 9 || len(lines) > 22 {
			t.Errorf("%d lines in 10 minutes: %v", len(lines), seen)
		}
	})
}
