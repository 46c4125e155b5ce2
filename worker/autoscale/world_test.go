package autoscale

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

var update = flag.Bool("update", false, "write the golden traces anew")

// world simulates tenants, a line and workers in steps of Interval. Its clock is its own: hours take milliseconds.
type world struct {
	began   time.Time
	now     time.Time
	tenants []*tenant
	workers []*machine
	made    int
	boot    time.Duration // from start to ready
	slots   int           // of a worker
	blind   bool          // the figures cannot be read
	lost    bool          // the platform does not answer
	paused  bool          // by operators

	lived   []int // workers that there were after each step until the next, draining ones included
	hour    int   // their sum in the last hour
	dearest int   // the highest that it was

	scaler *Scaler
	trace  []string
	acts   []act
	peak   int
}

type act struct {
	at         time.Duration // since the beginning
	have, want int
	reason     Reason
}

// tenant is a workspace: rate tasks a second come, each takes some time, at most cap at once.
type tenant struct {
	cap     int
	takes   time.Duration
	rate    func(t time.Duration) float64
	owed    float64
	waiting int
	running int
	turnAt  time.Time // since when there was something to run
}

type machine struct {
	id       string
	ready    time.Time
	draining bool
	stopped  time.Time
	ends     map[*tenant][]time.Time
}

func (m *machine) running() (n int) {
	for _, ends := range m.ends {
		n += len(ends)
	}
	return n
}

func newWorld(p Policy, tenants ...*tenant) *world {
	began := time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)
	for _, t := range tenants {
		t.turnAt = began
	}
	w := &world{began: began, now: began, tenants: tenants, boot: 15 * time.Second, slots: 20}
	w.scaler = New(Config{Policy: p, Driver: w, Load: w.load, Now: func() time.Time { return w.now }, Metrics: NewMetrics(prometheus.NewRegistry()), Log: zerolog.Nop()})
	return w
}

func (w *world) Workers(context.Context) ([]Worker, error) {
	if w.lost {
		return nil, errors.New("the platform does not answer")
	}
	var list []Worker
	for _, m := range w.workers {
		list = append(list, Worker{ID: m.id, Name: m.id, Stopping: m.draining})
	}
	return list, nil
}

func (w *world) Start(_ context.Context, n int) error {
	for range n {
		w.made++
		w.workers = append(w.workers, &machine{id: fmt.Sprintf("w%d", w.made), ready: w.now.Add(w.boot), ends: map[*tenant][]time.Time{}})
	}
	return nil
}

func (w *world) Stop(_ context.Context, id string) error {
	for _, m := range w.workers {
		if m.id == id && !m.draining {
			m.draining, m.stopped = true, w.now
		}
	}
	return nil
}

func (w *world) runnable(t *tenant) int { return max(0, min(t.waiting, t.cap-t.running)) }

func (w *world) load(context.Context) (Load, error) {
	if w.blind {
		return Load{}, errors.New("the ledger does not answer")
	}
	l := Load{Figures: Figures{At: w.now, Slots: w.slots}, Paused: w.paused, Busy: map[string]int{}}
	for _, t := range w.tenants {
		l.Runnable += w.runnable(t)
		l.Running += t.running
		if w.runnable(t) > 0 {
			l.OldestWait = max(l.OldestWait, w.now.Sub(t.turnAt))
		}
	}
	for _, m := range w.workers {
		l.Busy[m.id+"/1"] = m.running()
	}
	return l, nil
}

// run lets time pass; at is called before each step.
func (w *world) run(d time.Duration, at func(t time.Duration)) {
	for end := w.now.Add(d); w.now.Before(end); w.now = w.now.Add(Interval) {
		if at != nil {
			at(w.now.Sub(w.began))
		}
		w.work()
		d := w.scaler.Step(context.Background())
		w.lived = append(w.lived, len(w.workers))
		w.hour += len(w.workers)
		if gone := len(w.lived) - 1 - int(time.Hour/Interval); gone >= 0 {
			w.hour -= w.lived[gone]
		}
		w.dearest = max(w.dearest, w.hour)
		w.peak = max(w.peak, d.Want)
		if d.Want != d.Have {
			w.acts = append(w.acts, act{w.now.Sub(w.began), d.Have, d.Want, d.Reason})
			purse := ""
			if w.scaler.cfg.Policy.Budget > 0 {
				purse = fmt.Sprintf(", draining %2d, purse %3d", d.Draining, d.Purse)
			}
			w.note("%2d -> %2d  %-8s need %2d, runnable %3d, running %3d, waited %3ds%s", d.Have, d.Want, d.Reason, d.Need,
				d.Figures.Runnable, d.Figures.Running, int(d.Figures.OldestWait.Seconds()), purse)
		}
	}
}

// work ends and begins tasks.
func (w *world) work() {
	for _, m := range w.workers {
		for t, ends := range m.ends {
			left := slices.DeleteFunc(ends, func(end time.Time) bool { return !end.After(w.now) })
			t.running -= len(ends) - len(left)
			m.ends[t] = left
		}
	}
	w.workers = slices.DeleteFunc(w.workers, func(m *machine) bool {
		over := m.draining && w.now.Sub(m.stopped) >= w.scaler.cfg.Policy.Drain
		for t, ends := range m.ends {
			if over { // what it could not end goes back to its place
				t.running, t.waiting = t.running-len(ends), t.waiting+len(ends)
			}
		}
		return over || m.draining && m.running() == 0
	})
	for _, t := range w.tenants {
		if t.rate != nil {
			t.owed += t.rate(w.now.Sub(w.began)) * Interval.Seconds()
			t.waiting += int(t.owed)
			t.owed -= float64(int(t.owed))
		}
	}
	for began := true; began; { // a task for each tenant in turn, as the line does
		began = false
		for _, t := range w.tenants {
			if w.runnable(t) == 0 {
				t.turnAt = w.now
				continue
			}
			for _, m := range w.workers {
				if !m.draining && !m.ready.After(w.now) && m.running() < w.slots {
					m.ends[t] = append(m.ends[t], w.now.Add(t.takes))
					t.waiting, t.running, t.turnAt, began = t.waiting-1, t.running+1, w.now, true
					break
				}
			}
		}
	}
}

func (w *world) note(format string, args ...any) {
	at := w.now.Sub(w.began)
	w.trace = append(w.trace, fmt.Sprintf("%02d:%02d:%02d  ", int(at.Hours()), int(at.Minutes())%60, int(at.Seconds())%60)+fmt.Sprintf(format, args...))
}

// golden compares the trace with the one that is kept, and prints it.
func (w *world) golden(t *testing.T) {
	t.Helper()
	file := filepath.Join("testdata", strings.ToLower(t.Name()[strings.LastIndexByte(t.Name(), '/')+1:])+".trace")
	got := strings.Join(w.trace, "\n") + "\n"
	t.Logf("trace:\n%s", got)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the trace is not that of %s (go test -update writes it anew):\n%s", file, want)
	}
}

// minutes are worker-minutes, of a sum of steps.
func minutes(steps int) float64 { return float64(steps) * Interval.Minutes() }

// turns counts how often the direction changed within any hour: one up and one down are one turn.
func (w *world) turns() int {
	most := 0
	for i := range w.acts {
		n := 0
		for j := i + 1; j < len(w.acts) && w.acts[j].at-w.acts[i].at <= time.Hour; j++ {
			if (w.acts[j].want > w.acts[j].have) != (w.acts[j-1].want > w.acts[j-1].have) {
				n++
			}
		}
		most = max(most, n)
	}
	return most
}

// between lists what was done from one time to another.
func (w *world) between(from, to time.Duration) (acts []act) {
	for _, a := range w.acts {
		if a.at >= from && a.at < to {
			acts = append(acts, a)
		}
	}
	return acts
}

func (w *world) live() (n int) {
	for _, m := range w.workers {
		if !m.draining {
			n++
		}
	}
	return n
}
