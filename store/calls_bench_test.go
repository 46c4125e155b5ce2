package store_test

import (
	"testing"

	"github.com/generic-corp/muster/store/storetest"
)

// BenchmarkCall begins and ends one provider call: what the ledger adds to a model call's seconds.
func BenchmarkCall(b *testing.B) {
	l := newLine(b)
	ws := storetest.NewWorkspace(b, l.env, "pro")
	l.limit(ws, map[string]int64{"provider_budget_microusd": 1e15, "max_task_cost_microusd": 1e15})
	_, turn := l.submit(ws, task("x"))
	running := l.won(turn).Task
	for b.Loop() {
		l.end(ws, l.called(running, 100), 7)
	}
}
