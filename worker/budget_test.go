package worker_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/jobs"
	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
	"github.com/generic-corp/muster/worker/agent"
)

// caller is an agent that makes one call; ceiling and cost stand in its prompt, micro-dollars.
func caller(ctx context.Context, a agent.Task, calls agent.Recorder) (agent.Result, error) {
	var ceiling, cost int64
	if _, err := fmt.Sscanf(a.Prompt, "%d %d", &ceiling, &cost); err != nil {
		return agent.Result{}, err
	}
	start := agent.CallStart{ID: uuid.New(), Provider: "openai", Model: "m", Step: 1, Try: 1, CeilingMicroUSD: ceiling}
	if err := calls.Begin(ctx, start); err != nil {
		return agent.Result{}, err
	}
	err := calls.End(ctx, start.ID, agent.CallEnd{Outcome: agent.OutcomeOK, Status: 200, CostMicroUSD: cost})
	return agent.Result{Output: "ok", Usage: agent.Usage{ProviderCalls: 1, CostMicroUSD: cost}}, err
}

// limit sets an operator's limit and puts the workspace in line, where that wakes it.
func (r *rig) limit(ws uuid.UUID, name string, value int64) {
	r.t.Helper()
	turns, err := r.system.SetLimits(context.Background(), ws, map[string]int64{name: value}, store.Operator{Name: "op"})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, turn := range turns {
		r.turns.Enqueue(jobs.Turn(turn))
	}
}

func TestCallsAndTheBudget(t *testing.T) {
	t.Parallel()

	t.Run("ACallThatDoesNotFitSendsItsTaskBackUntilTheBudgetGrows", func(t *testing.T) {
		t.Parallel()
		r := start(t, 0, caller)
		ws := storetest.NewWorkspace(t, r.env, "pro")
		r.limit(ws, "provider_budget_microusd", 10_000)
		first := r.submit(ws, task("9000 9000"))
		r.await(ws, first[0], store.StatusSucceeded)
		second := r.submit(ws, task("5000 10"))
		for len(r.outcomes(ws)) < 2 {
			time.Sleep(5 * time.Millisecond)
		}
		if got := r.outcomes(ws); got[1] != string(store.BudgetCut) {
			t.Fatalf("attempts %v", got)
		}
		view := r.await(ws, second[0], store.StatusQueued)
		if view.Attempt != 0 || view.Waiting == nil || view.Waiting.Reason != "provider_budget" {
			t.Errorf("attempt %d, waiting %+v", view.Attempt, view.Waiting)
		}
		if n := r.count("muster_budget_refusals_total", "used"); n != 1 {
			t.Errorf("%v refusals", n)
		}
		r.limit(ws, "provider_budget_microusd", 20_000)
		r.await(ws, second[0], store.StatusSucceeded)
		if got := r.outcomes(ws); len(got) != 3 {
			t.Errorf("attempts %v: it went back and forth", got)
		}
	})

	t.Run("ATaskThatWouldCostTooMuchFailsForGood", func(t *testing.T) {
		t.Parallel()
		r := start(t, 0, caller)
		ws := storetest.NewWorkspace(t, r.env, "pro")
		r.limit(ws, "max_task_cost_microusd", 1_000)
		ids := r.submit(ws, task("1001 10"), task("1000 10"))
		r.await(ws, ids[1], store.StatusSucceeded)
		view := r.await(ws, ids[0], store.StatusFailed)
		if !strings.Contains(string(view.Error), agent.CodeTaskCost) || view.Attempt != 1 {
			t.Errorf("%s after %d attempts", view.Error, view.Attempt)
		}
	})

	t.Run("WhatACallCostsPastItsCeilingIsCounted", func(t *testing.T) {
		t.Parallel()
		r := start(t, 0, caller)
		ws := storetest.NewWorkspace(t, r.env, "pro")
		ids := r.submit(ws, task("1000 1500"))
		r.await(ws, ids[0], store.StatusSucceeded)
		if n := r.count("muster_provider_overrun_microusd_total", "openai"); n != 500 {
			t.Errorf("%v micro-dollars of overrun", n)
		}
	})
}
