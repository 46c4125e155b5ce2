package autoscale

import (
	"testing"
	"time"
)

func TestDecide(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)
	base := Policy{Min: 0, Max: 10, Target: 50, MaxWait: 30 * time.Second, MaxStep: 4, Cooldown: 5 * time.Minute, Drain: 5 * time.Minute}
	with := func(change func(*Policy)) Policy {
		p := base
		change(&p)
		return p
	}
	figures := func(runnable, running int, wait time.Duration) Figures {
		return Figures{At: now, Runnable: runnable, Running: running, OldestWait: wait, Slots: 20}
	}
	for _, c := range []struct {
		name   string
		policy Policy
		f      Figures
		have   int
		want   int
		reason Reason
	}{
		{"NothingToDoIsNoWorker", base, figures(0, 0, 0), 0, 0, Enough},
		{"OneTaskIsOneWorker", base, figures(1, 0, 0), 0, 1, Backlog},
		{"FortyNineStayWithOne", base, figures(49, 5, 0), 1, 1, Enough},
		{"FiftyNeedTwo", base, figures(50, 5, 0), 1, 2, Backlog},
		{"AStepIsBounded", base, figures(500, 0, 0), 1, 5, Backlog},
		{"NeverPastTheMaximum", base, figures(100_000, 0, 0), 9, 10, Backlog},
		{"AtTheMaximum", base, figures(100_000, 0, 0), 10, 10, Maximum},
		{"ALoweredMaximumActsAtOnce", base, figures(0, 100, 0), 12, 10, Maximum},
		{"UpToTheMinimum", with(func(p *Policy) { p.Min = 3 }), figures(0, 0, 0), 1, 3, Minimum},
		{"WhatRunsKeepsItsWorkers", base, figures(0, 100, 0), 4, 5, Running},
		{"AFullFleetThatKeepsWorkWaitingGrows", base, figures(5, 16, 30*time.Second), 1, 2, Waiting},
		{"NotBeforeItHasWaitedForMaxWait", base, figures(5, 16, 29*time.Second), 1, 1, Enough},
		{"TheLongerItHasWaitedTheMoreCome", base, figures(150, 64, 90*time.Second), 4, 7, Waiting},
		{"AQuarterOfALargeFleetForEachMaxWait", with(func(p *Policy) { p.Max = 20 }), figures(350, 128, 65*time.Second), 8, 12, Waiting},
		{"NoMoreThanWhatWaitsCanUse", base, figures(5, 16, time.Hour), 1, 2, Waiting},
		{"FreeSlotsMeanThatWorkersAreNotWhatIsMissing", base, figures(5, 15, time.Hour), 1, 1, Enough},
		{"NoFiguresHold", base, Figures{}, 7, 7, FiguresMissing},
		{"StaleFiguresHold", base, Figures{At: now.Add(-16 * time.Second), Slots: 20}, 7, 7, FiguresMissing},
		{"FiguresOfAMomentAgoAreGood", base, Figures{At: now.Add(-14 * time.Second), Runnable: 300, Slots: 20}, 6, 7, Backlog},
		{"UnknownWorkersHold", base, figures(300, 0, 0), -1, -1, WorkersUnknown},
		{"PausedDoesNothing", with(func(p *Policy) { p.Paused, p.Min = true, 3 }), figures(300, 0, 0), 1, 1, Paused},
		{"AnEmptyPurseAddsNothingBeyondTheIncome", with(func(p *Policy) { p.Budget = 240 }), figures(300, 0, 0), 3, 3, Budget},
		{"TheIncomeIsSpent", with(func(p *Policy) { p.Budget = 240 }), figures(300, 0, 0), 0, 3, Backlog},
		{"WhatTheLastLeaderCouldAffordGoesSlowly", with(func(p *Policy) { p.Budget = 240 }), figures(300, 0, 0), 5, 4, Budget},
		{"NobodyCouldAffordSoMany", with(func(p *Policy) { p.Budget, p.Max = 240, 40 }), figures(300, 0, 0), 30, 11, Budget},
		{"TheBudgetNeedsNoFigures", with(func(p *Policy) { p.Budget = 240 }), Figures{}, 5, 4, Budget},
		{"APauseGoesBeforeTheBudget", with(func(p *Policy) { p.Budget, p.Paused = 240, true }), figures(0, 0, 0), 5, 5, Paused},
		{"TheMinimumGoesBeforeTheBudget", with(func(p *Policy) { p.Budget, p.Min = 60, 2 }), figures(300, 0, 0), 0, 2, Backlog},
		{"TheBudgetSendsNobodyOfTheMinimumHome", with(func(p *Policy) { p.Budget, p.Min = 60, 2 }), figures(300, 0, 0), 2, 2, Budget},
		{"ANewLeaderWatchesForACooldown", base, figures(0, 0, 0), 5, 5, Cooldown},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			d := Decider{Policy: c.policy}
			if got := d.Decide(now, c.f, Fleet{Have: c.have}); got.Want != c.want || got.Reason != c.reason {
				t.Errorf("want %d because of %s; decided %d because of %s", c.want, c.reason, got.Want, got.Reason)
			}
		})
	}
}

// TestTheOldestWaitCountsAtEachLook: not only when work is first seen, and only it makes the difference.
func TestTheOldestWaitCountsAtEachLook(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)
	for wait, want := range map[time.Duration]int{29 * time.Second: 1, 30 * time.Second: 2, 60 * time.Second: 3} {
		d := Decider{Policy: usual}
		if got := d.Decide(now, Figures{At: now, Runnable: 40, Running: 20, OldestWait: time.Second, Slots: 20}, Fleet{Have: 1}); got.Want != 1 {
			t.Errorf("at first: %+v", got)
		}
		at := now.Add(10 * time.Second)
		if got := d.Decide(at, Figures{At: at, Runnable: 40, Running: 20, OldestWait: wait, Slots: 20}, Fleet{Have: 1}); got.Want != want {
			t.Errorf("want %d after a wait of %s: %+v", want, wait, got)
		}
	}
}
