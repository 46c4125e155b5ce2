package main

import (
	"math"
	"testing"
)

// miniature divides the work so that a bout takes seconds.
const miniature = 200

// Each of Muster's bouts runs in miniature: its code works, and its history is exact. Not memory and recovery, which need the
// built processes and minutes.
func TestEveryBoutRunsInMiniature(t *testing.T) {
	t.Parallel()
	for _, b := range bouts() {
		if b.System != musterSystem || b.Case == "memory" || b.Case == "recovery" {
			continue
		}
		t.Run(b.Case, func(t *testing.T) {
			t.Parallel()
			figures, err := within(t.Context(), func(h *host) []figure { return b.run(h, miniature) })
			if err != nil || len(figures) == 0 {
				t.Fatalf("%v, %v", figures, err)
			}
			for _, f := range figures {
				if math.IsNaN(f.Value) || math.IsInf(f.Value, 0) {
					t.Errorf("%s: %v", f.Name, f.Value)
				}
			}
			t.Log(figures)
		})
	}
}
