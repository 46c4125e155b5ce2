package store_test

import (
	"context"
	"errors"
	"testing"

	"github.com/generic-corp/muster/store"
)

// A task whose call did not fit waits for as much as that needs, unless it would wait in vain.
func TestACallThatCanNeverBegin(t *testing.T) {
	t.Parallel()
	ctx := context.Background()

	t.Run("WhatNoMonthCouldAffordFailsAndKeepsNobodyWaiting", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws, running := l.budget(4_000_000, 1)
		l.end(ws, l.called(running[0], 1_500_000), 1_500_000)
		if _, err := l.begin(running[0], 3_000_000); !errors.Is(err, store.ErrBudgetUsed) {
			t.Fatal(err)
		}
		l.cut(running[0], 3_000_000)
		behind, _ := l.submit(ws, task("behind"))
		free, _ := store.PlanByID("free") // 1,000,000 a month, 500,000 a task
		if turns, err := l.system.SetPlan(ctx, ws, free, "", "", store.Operator{Name: "test"}); err != nil || len(turns) != 0 {
			t.Fatalf("more is used than the new plan has: %v %v", turns, err)
		}
		l.monthPasses(ws)
		if r := l.reason(ws, behind[0]); r != store.WaitInLine {
			t.Errorf("in the new month it waits for %s", r)
		}
		_, turned, err := l.system.IssueMissed(ctx)
		if err != nil || len(turned) != 1 {
			t.Fatalf("what can never be afforded waits for ever: %v %v", turned, err)
		}
		c := l.won(&turned[0]).Task
		if _, err := l.begin(c, 3_000_000); c.ID != running[0].ID || !errors.Is(err, store.ErrTaskCost) {
			t.Fatalf("%+v: %v", c, err)
		}
		if c := l.won(l.finish(c, store.Failed, 1).Turn); c.Task.ID != behind[0] {
			t.Errorf("claimed %+v", c.Task)
		}
	})

	t.Run("ABudgetBelowASingleCallFailsItsTaskAndOneOfNothingLetsItWait", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws, running := l.budget(100, 1)
		l.end(ws, l.called(running[0], 100), 10)
		l.cut(running[0], 95)
		if l.limit(ws, map[string]int64{"provider_budget_microusd": 0}) != nil || l.reason(ws, running[0].ID) != store.WaitBudget {
			t.Error("without any budget it does not wait")
		}
		if l.limit(ws, map[string]int64{"provider_budget_microusd": 95}) != nil {
			t.Error("85 are left, and a month's 95 would do")
		}
		turn := l.limit(ws, map[string]int64{"provider_budget_microusd": 94})
		if turn == nil {
			t.Fatal("no month brings 95, and it waits for them")
		}
		c := l.won(turn).Task
		if _, err := l.begin(c, 95); !errors.Is(err, store.ErrTaskCost) {
			t.Errorf("a call of more than the whole budget: %v", err)
		}
		if _, err := l.begin(c, 94); !errors.Is(err, store.ErrBudgetUsed) {
			t.Errorf("a call of what a month brings: %v", err)
		}
		l.limit(ws, map[string]int64{"provider_budget_microusd": 0})
		if _, err := l.begin(c, 1); !errors.Is(err, store.ErrBudgetUsed) {
			t.Errorf("a call without any budget: %v", err)
		}
	})

	t.Run("ARetryForgetsTheCallThatDidNotFit", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws, running := l.budget(100, 1)
		l.end(ws, l.called(running[0], 100), 95)
		l.cut(running[0], 30)
		l.do(ws, func(w *store.Work) error { _, err := w.Cancel(ctx, running[0].ID); return err })
		done := l.do(ws, func(w *store.Work) error { return w.Retry(ctx, running[0].ID) })
		l.called(l.won(one(t, done.Turns)).Task, 5)
	})
}
