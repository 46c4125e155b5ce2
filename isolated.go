package main

import (
	"context"
	"os"
	"runtime"

	"github.com/generic-corp/muster/worker/agent"
	"github.com/generic-corp/muster/worker/isolate"
)

// A task that was running in more than one crash of a worker runs in a child of its worker, which is this binary under a
// command that only workers use.

// isolator starts such children. They get an environment with nothing in it: what they need they ask their worker for.
func isolator(cfg Config, agents agent.Config) (*isolate.Starter, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if runtime.GOOS == "linux" {
		self = "/proc/self/exe" // the binary that runs, also when its file has been replaced meanwhile
	}
	return isolate.New(isolate.Config{Argv: []string{self, isolate.Command}, Router: agents.Router, Prices: agents.Prices,
		MemoryBytes: uint64(cfg.IsolatedMemoryMB) << 20}), nil
}

// runIsolated is such a child. It returns the exit code.
func runIsolated() int {
	return isolate.Serve(func(ctx context.Context, router agent.Router, prices agent.Prices, t agent.Task, calls agent.Recorder) (agent.Result, error) {
		return agent.Run(ctx, agent.Config{Router: router, Prices: prices}, t, calls)
	})
}
