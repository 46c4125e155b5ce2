package main

import (
	"context"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

func TestWatch(t *testing.T) {
	t.Parallel()
	id := uuid.New()
	start := time.Now()
	type look struct {
		at     time.Duration
		beat   int64
		silent bool
	}
	for name, looks := range map[string][]look{
		"ABeatThatMovesIsAlive":               {{0, 1, false}, {4 * time.Second, 2, false}, {8 * time.Second, 3, false}, {12 * time.Second, 4, false}, {16 * time.Second, 5, false}},
		"ABeatThatStandsStillIsSilentAfter12": {{0, 1, false}, {4 * time.Second, 1, false}, {8 * time.Second, 1, false}, {11900 * time.Millisecond, 1, false}, {12 * time.Second, 1, true}, {13 * time.Second, 1, true}},
		"ABeatThatMovesAgainHasAllItsTime":    {{0, 1, false}, {4 * time.Second, 1, false}, {8 * time.Second, 1, false}, {11 * time.Second, 2, false}, {15 * time.Second, 2, false}, {19 * time.Second, 2, false}, {23 * time.Second, 2, true}},
		"WhoWasBlindWaitsAfresh":              {{0, 1, false}, {4 * time.Second, 1, false}, {8 * time.Second, 1, false}, {12001 * time.Millisecond, 1, false}, {16 * time.Second, 1, false}, {20 * time.Second, 1, false}, {24001 * time.Millisecond, 1, false}},
	} {
		t.Run(name, func(t *testing.T) {
			var w watch
			for _, l := range looks {
				silent := w.see([]store.Worker{{ID: id, Beat: l.beat}}, start.Add(l.at))
				if got := len(silent) == 1; got != l.silent {
					t.Errorf("after %s: silent %t, want %t", l.at, got, l.silent)
				}
			}
			if w.see(nil, start.Add(time.Minute)); len(w.workers) != 0 {
				t.Error("a worker that has left is remembered")
			}
		})
	}
}

// What a scheduler has seen while another led counts from the moment it leads.
func TestARivalKnowsWhoIsSilentWhenItTakesOver(t *testing.T) {
	t.Parallel()
	env := storetest.New(t)
	fleet := store.NewFleet(env.Worker(t))
	t.Cleanup(fleet.Close)
	worker := store.Worker{ID: store.NewID(), Name: "silent", Slots: 1}
	if err := fleet.Register(t.Context(), worker); err != nil {
		t.Fatal(err)
	}
	s := &scheduler{system: store.NewSystem(env.System(t)), log: zerolog.Nop(), metrics: newSchedulerMetrics(prometheus.NewRegistry())}
	leading := newLeadership()
	s.watchOnce(context.Background(), leading)
	seen, ok := s.watch.workers[worker.ID]
	if !ok {
		t.Fatal("a scheduler that does not lead watches nobody")
	}
	seen.since = seen.since.Add(-workerDead)
	s.watch.workers[worker.ID] = seen
	s.watchOnce(context.Background(), leading)
	if n := testutil.ToFloat64(s.metrics.dead); n != 0 {
		t.Fatal("a scheduler that does not lead declared a worker dead")
	}
	leading.set(time.Now().Add(time.Hour))
	s.watchOnce(context.Background(), leading)
	if n := testutil.ToFloat64(s.metrics.dead); n != 1 {
		t.Errorf("%v workers were declared dead at its first look, want the silent one", n)
	}
}
