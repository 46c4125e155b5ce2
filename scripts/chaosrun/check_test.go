//go:build unix

package main

import (
	"slices"
	"strings"
	"testing"
)

// good is the history of two tasks of a workspace with a cap of one: the first crashes with its worker while its call is
// on its way, and is run again elsewhere; the second's first answer is lost.
func good() []event {
	return []event{
		{What: workspace, WS: "a", Workspace: "w-a", Cap: 1},
		{What: process, Proc: "worker-1.1", PID: 11}, {What: process, Proc: "worker-2.1", PID: 12},
		{What: worker, Worker: "one", PID: 11}, {What: worker, Worker: "two", PID: 12},
		{At: 10, What: submitted, N: 1, Key: "k1", WS: "a", Want: "succeeded"},
		{At: 11, What: acked, N: 1, Key: "k1", Task: "t1"},
		{At: 12, What: submitted, N: 2, Key: "k2", WS: "a", Want: "failed"},
		{At: 20, What: acked, N: 2, Key: "k2", Task: "t2", Replayed: true},
		{At: 30, What: leased, Seq: 1, Workspace: "w-a", Task: "t1", Lease: "l1", Worker: "one", Running: 1},
		{At: 31, What: started, Call: 1, N: 1, WS: "a", Proc: "worker-1.1"},
		{At: 40, What: faultHit, Fault: "stop-worker", Number: 1, Proc: "worker-1.1"},
		{At: 50, What: released, Seq: 2, Workspace: "w-a", Task: "t1", Lease: "l1", Worker: "one"},
		{At: 51, What: leased, Seq: 3, Workspace: "w-a", Task: "t1", Lease: "l2", Worker: "two", Running: 1},
		{At: 52, What: started, Call: 2, N: 1, WS: "a", Proc: "worker-2.1"},
		{At: 55, What: ended, Call: 1, Gone: true},
		{At: 60, What: ended, Call: 2},
		{At: 61, What: released, Seq: 4, Workspace: "w-a", Task: "t1", Lease: "l2", Worker: "two"},
		{At: 62, What: leased, Seq: 5, Workspace: "w-a", Task: "t2", Lease: "l3", Worker: "two", Running: 1},
		{At: 63, What: started, Call: 3, N: 2, WS: "a", Proc: "worker-2.1"},
		{At: 64, What: ended, Call: 3},
		{At: 65, What: released, Seq: 6, Workspace: "w-a", Task: "t2", Lease: "l3", Worker: "two"},
		{What: final, Task: "t1", WS: "a", Status: "succeeded"}, {What: final, Task: "t2", WS: "a", Status: "failed", Code: "invalid_request"},
		{What: quota, WS: "a", Used: 8},
		{What: stored, N: 1, Task: "t1", Status: "succeeded"}, {What: stored, N: 2, Task: "t2", Status: "failed"},
		{What: attempted, Lease: "l1", Task: "t1", Workspace: "w-a", Worker: "one", Status: "crashed", Used: 0},
		{What: attempted, Lease: "l2", Task: "t1", Workspace: "w-a", Worker: "two", Status: "succeeded", Used: 8, Billable: true},
		{What: attempted, Lease: "l3", Task: "t2", Workspace: "w-a", Worker: "two", Status: "failed", Used: 1},
		{What: metered, Lease: "l1", Workspace: "w-a", Used: 0}, {What: metered, Lease: "l2", Workspace: "w-a", Used: 8, Billable: true},
		{What: metered, Lease: "l3", Workspace: "w-a", Used: 1},
		{What: finished},
	}
}

func TestAHistoryThatKeepsEveryPromiseIsFoundGood(t *testing.T) {
	t.Parallel()
	got := check(good())
	if len(got.Violations) > 0 {
		t.Errorf("%v", got.Violations)
	}
	got.Violations = nil
	want := tally{Submitted: 2, Acknowledged: 2, Replays: 1, Succeeded: 1, Failed: 1, Attempts: 3, Crashed: 1, Calls: 3, Overlaps: 1, MostAtOnce: 2}
	if g := *got; g.Submitted != want.Submitted || g.Acknowledged != want.Acknowledged || g.Replays != want.Replays || g.Succeeded != want.Succeeded ||
		g.Failed != want.Failed || g.Attempts != want.Attempts || g.Crashed != want.Crashed || g.Calls != want.Calls || g.Overlaps != want.Overlaps ||
		g.Late != want.Late || g.MostAtOnce != want.MostAtOnce || g.Suspects != want.Suspects {
		t.Errorf("%+v, want %+v", g, want)
	}
}

// Each row makes one promise broken in the good history.
func TestEachBrokenPromiseIsFound(t *testing.T) {
	t.Parallel()
	without := func(drop func(event) bool) func([]event) []event {
		return func(h []event) []event { return slices.DeleteFunc(h, drop) }
	}
	with := func(more ...event) func([]event) []event {
		return func(h []event) []event { return append(h[:len(h)-1], append(more, h[len(h)-1])...) }
	}
	change := func(which func(event) bool, how func(*event)) func([]event) []event {
		return func(h []event) []event {
			how(&h[slices.IndexFunc(h, which)])
			return h
		}
	}
	is := func(what, lease string) func(event) bool {
		return func(e event) bool { return e.What == what && e.Lease == lease }
	}
	for name, c := range map[string]struct {
		rule  string
		spoil func([]event) []event
	}{
		"AnAcknowledgedTaskIsGone":        {ruleLost, without(func(e event) bool { return e.What == final && e.Task == "t2" })},
		"ATaskEndsOtherwise":              {ruleLost, change(func(e event) bool { return e.What == final && e.Task == "t1" }, func(e *event) { e.Status = "failed" })},
		"ATaskIsShownTwice":               {ruleLost, with(event{What: final, Task: "t1", Status: "succeeded"})},
		"ALeaseStaysBehind":               {ruleLost, without(is(released, "l3"))},
		"OneKeyMadeTwoTasks":              {ruleDouble, with(event{What: acked, N: 2, Key: "k2", Task: "t3"}, event{What: final, Task: "t3", Status: "failed"})},
		"OneRequestIsStoredTwice":         {ruleDouble, with(event{What: stored, N: 2, Task: "t3", Status: "failed"})},
		"ATaskThatNobodySent":             {ruleDouble, with(event{What: stored, N: 9, Task: "t9", Status: "succeeded"})},
		"ATaskSucceedsTwice":              {ruleDouble, change(is(attempted, "l1"), func(e *event) { e.Status = "succeeded" })},
		"TheCapIsExceededByTheTrigger":    {ruleCap, change(is(leased, "l3"), func(e *event) { e.Running = 2 })},
		"TheCapIsExceededByTheLog":        {ruleCap, change(is(released, "l2"), func(e *event) { e.Seq = 7 })},
		"ATaskIsLeasedTwice":              {ruleCap, change(is(released, "l1"), func(e *event) { e.Seq = 9 })},
		"AnAgentRunsWithoutALease":        {ruleCalls, with(event{At: 70, What: started, Call: 4, N: 2, WS: "a", Proc: "worker-1.1"}, event{At: 71, What: ended, Call: 4})},
		"AnAgentRunsAfterItsLease":        {ruleCalls, with(event{At: 9000, What: started, Call: 4, N: 2, WS: "a", Proc: "worker-2.1"}, event{At: 9001, What: ended, Call: 4})},
		"ACallNeverEnds":                  {ruleCalls, without(func(e event) bool { return e.What == ended && e.Call == 2 })},
		"AnAgentIsCanceledForNoReason":    {ruleSurvive, change(func(e event) bool { return e.What == ended && e.Call == 2 }, func(e *event) { e.Gone = true })},
		"ALivingWorkerIsTakenForDead":     {ruleSurvive, without(func(e event) bool { return e.What == faultHit })},
		"AnAttemptHasNoRow":               {ruleMetering, without(is(metered, "l2"))},
		"AnAttemptHasTwoRows":             {ruleMetering, with(event{What: metered, Lease: "l2", Workspace: "w-a", Used: 8, Billable: true})},
		"ARowSaysOtherwise":               {ruleMetering, change(is(metered, "l3"), func(e *event) { e.Used = 2 })},
		"ARowHasNoAttempt":                {ruleMetering, with(event{What: metered, Lease: "l9", Workspace: "w-a", Used: 1})},
		"ALeaseIsNotBooked":               {ruleMetering, without(func(e event) bool { return e.Lease == "l1" && (e.What == attempted || e.What == metered) })},
		"AnAttemptIsBookedTwice":          {ruleMetering, with(event{What: attempted, Lease: "l3", Task: "t2", Workspace: "w-a", Status: "failed", Used: 1})},
		"ACrashIsBilled":                  {ruleMetering, change(is(attempted, "l1"), func(e *event) { e.Billable = true })},
		"TheCustomerIsShownAnotherFigure": {ruleMetering, change(func(e event) bool { return e.What == quota }, func(e *event) { e.Used = 9 })},
		"AProcessEndsByItself":            {ruleProcess, with(event{What: exited, Proc: "worker-2.1", Note: "code 1"})},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := check(c.spoil(good()))
			if !slices.ContainsFunc(got.Violations, func(v violation) bool { return v.Rule == c.rule }) {
				t.Errorf("found %v, want a violation of %q", got.Violations, c.rule)
			}
		})
	}
}

func TestAHistoryIsReadAsItWasWritten(t *testing.T) {
	t.Parallel()
	path := t.TempDir() + "/history.jsonl"
	h, err := newHistory(path)
	if err != nil {
		t.Fatal(err)
	}
	h.add(event{What: submitted, N: 1, Key: "k", WS: "a", Want: "succeeded"})
	h.add(event{What: ended, Call: 7, Gone: true})
	events, err := h.close()
	if err != nil {
		t.Fatal(err)
	}
	file := strings.NewReader(string(mustRead(t, path)) + `{"at_ms":3,"wh`) // cut off by a crash
	back, err := readHistory(file)
	if err != nil || !slices.Equal(back, events) {
		t.Errorf("%v, %v; want %v", back, err, events)
	}
	if _, err := readHistory(strings.NewReader("{\n" + `{"what":"begin"}`)); err == nil {
		t.Error("a broken line in the middle was passed over")
	}
}
