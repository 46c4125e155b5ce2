//go:build unix

package main

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestAHistoryThatKeepsEveryPromiseIsFoundGood(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		of   []event
		want tally
	}{
		{good(), tally{Submitted: 2, Acknowledged: 2, Replays: 1, Succeeded: 1, Failed: 1, Attempts: 3, Crashed: 1, Calls: 3, Overlaps: 1, MostAtOnce: 2}},
		// A stopped process goes on behind its row with a call that the next attempt has made meanwhile.
		{change(func(e event) bool { return e.What == started && e.Call == 1 }, func(e *event) { e.At = 53 })(good()),
			tally{Submitted: 2, Acknowledged: 2, Replays: 1, Succeeded: 1, Failed: 1, Attempts: 3, Crashed: 1, Calls: 3, Overlaps: 1, Late: 1, MostAtOnce: 2}},
		{lives(), tally{Submitted: 8, Acknowledged: 7, Refused: 1, Succeeded: 4, Canceled: 2, Stopped: 1, Expired: 1, Retried: 1, Later: 1, Ranked: 1, Attempts: 8,
			Outages: 2, Calls: 4, MostAtOnce: 1, Sent: 1, Missed: 2, Told: 9}},
	} {
		if got := check(c.of); !reflect.DeepEqual(*got, c.want) {
			t.Errorf("%+v, want %+v", *got, c.want)
		}
	}
}

// What a fault explains is no breach.
func TestTheLedgersTimesAreNotComparedWhileItsClockIsStepped(t *testing.T) {
	t.Parallel()
	h := lives()
	h[slices.IndexFunc(h, func(e event) bool { return e.What == leased && e.Lease == "l4" })].Clock = 40
	if got := check(h); len(got.Violations) != 1 {
		t.Errorf("%v", got.Violations)
	}
	h = append([]event{{At: 50, What: faultOn, Fault: "clock-steps", Number: 1}, {At: 60, What: faultOff, Fault: "clock-steps", Number: 1}}, h...)
	if got := check(h); len(got.Violations) != 0 {
		t.Errorf("%v", got.Violations)
	}
}

// spoiled is a history in which one promise is broken.
type spoiled struct {
	rule  string
	spoil func([]event) []event
}

func without(drop func(event) bool) func([]event) []event {
	return func(h []event) []event { return slices.DeleteFunc(h, drop) }
}

func with(more ...event) func([]event) []event {
	return func(h []event) []event { return append(h[:len(h)-1], append(more, h[len(h)-1])...) }
}

func change(which func(event) bool, how func(*event)) func([]event) []event {
	return func(h []event) []event {
		how(&h[slices.IndexFunc(h, which)])
		return h
	}
}

// all spoils one after the other.
func all(spoils ...func([]event) []event) func([]event) []event {
	return func(h []event) []event {
		for _, spoil := range spoils {
			h = spoil(h)
		}
		return h
	}
}

func is(what, lease string) func(event) bool {
	return func(e event) bool { return e.What == what && e.Lease == lease }
}

func of(what, task string) func(event) bool {
	return func(e event) bool { return e.What == what && e.Task == task }
}

func keyed(what, key string) func(event) bool {
	return func(e event) bool { return e.What == what && e.Key == key }
}

func numbered(what string, n int) func(event) bool {
	return func(e event) bool { return e.What == what && e.N == n }
}

// Each row makes one promise broken in a good history.
func TestEachBrokenPromiseIsFound(t *testing.T) {
	t.Parallel()
	find := func(name string, h []event, c spoiled) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := check(c.spoil(h))
			if !slices.ContainsFunc(got.Violations, func(v violation) bool { return v.Rule == c.rule }) {
				t.Errorf("found %v, want a violation of %q", got.Violations, c.rule)
			}
		})
	}
	for name, c := range map[string]spoiled{
		"AnAcknowledgedTaskIsGone":        {ruleLost, without(func(e event) bool { return e.What == final && e.Task == "t2" })},
		"ATaskEndsOtherwise":              {ruleLost, change(func(e event) bool { return e.What == final && e.Task == "t1" }, func(e *event) { e.Status = "failed" })},
		"ATaskIsShownTwice":               {ruleLost, with(event{What: final, Task: "t1", Status: "succeeded"})},
		"ALeaseStaysBehind":               {ruleLost, without(is(released, "l3"))},
		"OneKeyMadeTwoTasks":              {ruleDouble, with(event{What: acked, N: 2, Key: "k2", Task: "t3"}, event{What: final, Task: "t3", Status: "failed"})},
		"OneRequestIsStoredTwice":         {ruleDouble, with(event{What: stored, N: 2, Task: "t3", Status: "failed"})},
		"ATaskThatNobodySent":             {ruleDouble, with(event{What: stored, N: 9, Task: "t9", Status: "succeeded"})},
		"ATaskSucceedsTwice":              {ruleDouble, change(is(attempted, "l1"), func(e *event) { e.Status = "succeeded" })},
		"TheCapIsExceededByTheTrigger":    {ruleCap, change(is(leased, "l3"), func(e *event) { e.Running = 2 })},
		"TheCapIsExceededByTheLog":        {ruleCap, change(is(released, "l2"), func(e *event) { e.Seq = 9 })},
		"ATaskIsLeasedTwice":              {ruleCap, change(is(released, "l1"), func(e *event) { e.Seq = 10 })},
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
		find(name, good(), c)
	}
	for name, c := range map[string]spoiled{
		"ACanceledTaskIsStarted": {ruleCancel, with(event{At: 300, What: leased, Seq: 90, Workspace: "w-b", Task: "t2", Lease: "l90", Worker: "one"})},
		"ATaskIsStartedThatWasToStop": {ruleCancel, all(without(of(over, "t1")),
			with(event{At: 300, What: leased, Seq: 90, Workspace: "w-b", Task: "t1", Lease: "l90", Worker: "one"}))},
		"AnAcknowledgedCancelIsForgotten":  {ruleCancel, all(without(of(stopping, "t1")), change(of(over, "t1"), func(e *event) { e.Status = "succeeded" }))},
		"AnAgentRunsOnAfterItsCancel":      {ruleCancel, change(of(over, "t1"), func(e *event) { e.At, e.Status = 30_000, "succeeded" })},
		"NobodyAskedForACancel":            {ruleCancel, without(keyed(asks, "cancel g"))},
		"NobodyAskedForAStop":              {ruleCancel, without(func(e event) bool { return e.What == asks && e.Task == "t1" })},
		"ACancelIsSaidToHaveComeTooLate":   {ruleCancel, change(keyed(settled, "cancel t1"), func(e *event) { e.Status = "409" })},
		"ACancelIsSaidToHaveBeenMade":      {ruleCancel, change(keyed(settled, "cancel t7"), func(e *event) { e.Status = "200" })},
		"ACancelIsSaidToHaveEndedWhatRan":  {ruleCancel, change(keyed(settled, "cancel t7"), func(e *event) { e.Status, e.Becomes = "202", "canceled" })},
		"ACancelOfManyIsCountedWrong":      {ruleCancel, change(keyed(settled, "cancel g"), func(e *event) { e.Count = 2 })},
		"ATaskEndsTwice":                   {ruleDouble, with(event{At: 300, What: over, Seq: 90, Workspace: "w-b", Task: "t3", Status: "canceled"})},
		"ATaskThatHasEndedIsStarted":       {ruleDouble, with(event{At: 300, What: leased, Seq: 90, Workspace: "w-b", Task: "t3", Lease: "l90", Worker: "one"})},
		"ARefusedTaskIsMade":               {ruleDouble, with(event{What: stored, N: 8, Task: "t8", Status: "succeeded"})},
		"ATaskNeverEnds":                   {ruleLost, without(of(over, "t3"))},
		"ATaskEndsWhileItRuns":             {ruleLost, change(is(released, "l3"), func(e *event) { e.Seq = 90 })},
		"ATaskEndsOtherwiseThanItsAttempt": {ruleLost, change(of(over, "t3"), func(e *event) { e.Status = "failed" })},
		"AnOutageDoesNotEndItsAttemptSo":   {ruleRetry, change(is(attempted, "l4"), func(e *event) { e.Status = "failed" })},
		"AnOutageIsNone":                   {ruleRetry, change(func(e event) bool { return e.What == ended && e.Call == 4 }, func(e *event) { e.Status = "200" })},
		"AnOutageIsNotWaitedFor":           {ruleRetry, change(is(leased, "l5"), func(e *event) { e.Clock = 1_102 })},
		"AnOutageFailsWhatHasAttemptsLeft": {ruleRetry, change(numbered(submitted, 5), func(e *event) { e.Attempts = 2 })},
		"ATaskIsStartedBeyondItsAttempts":  {ruleRetry, change(numbered(submitted, 4), func(e *event) { e.Attempts = 1 })},
		"ARowCountsOtherAttempts":          {ruleRetry, change(of(stored, "t4"), func(e *event) { e.Attempt = 3 })},
		"AnAcknowledgedRetryIsForgotten":   {ruleRetry, without(of(requeued, "t5"))},
		"NobodyAskedForARetry":             {ruleRetry, without(keyed(asks, "retry t5"))},
		"WhatSucceededIsInLineAgain":       {ruleRetry, with(event{At: 300, What: requeued, Seq: 90, Workspace: "w-b", Task: "t3"})},
		"AnOutageIsBilled":                 {ruleMetering, change(is(attempted, "l4"), func(e *event) { e.Billable = true })},
		"ACancelIsNotBilled":               {ruleMetering, change(is(attempted, "l1"), func(e *event) { e.Billable = false })},
		"ATaskIsStartedBeforeItsTime":      {ruleTimes, change(is(leased, "l4"), func(e *event) { e.Clock = 99 })},
		"ATaskIsStartedAfterItHasExpired":  {ruleTimes, change(numbered(submitted, 7), func(e *event) { e.ExpiresAt = 210 })},
		"ATaskExpiresTooEarly":             {ruleTimes, change(of(over, "t6"), func(e *event) { e.Begun = 199 })},
		"ATaskExpiresThatNeverWasTo":       {ruleTimes, change(numbered(submitted, 6), func(e *event) { e.ExpiresAt = 0 })},
		"ABetterTaskIsPassedOver":          {ruleTimes, change(is(leased, "l5"), func(e *event) { e.PassedOver = 1 })},
		"AnOccurrenceIsLeftOut":            {ruleSchedules, change(func(e event) bool { return e.What == occurred && e.Count == 2 }, func(e *event) { e.From, e.Until = 180_000, 240_000 })},
		"AnOccurrenceIsMissedForNoReason":  {ruleSchedules, change(func(e event) bool { return e.What == occurred && e.Count == 2 }, func(e *event) { e.Code = "" })},
		"AnOccurrencesTaskIsGone":          {ruleSchedules, without(of(final, "s1"))},
		"AScheduleSendsATaskForNothing":    {ruleSchedules, with(event{What: stored, Task: "s2", Status: "succeeded", Schedule: "s"})},
		"AScheduleStandsStill":             {ruleSchedules, change(func(e event) bool { return e.What == ceased }, func(e *event) { e.At = 300_000 })},
		"AnEndIsNotTold":                   {ruleWebhooks, without(of(told, "t6"))},
		"AnEndIsToldUnderTwoIDs":           {ruleWebhooks, with(event{What: told, WS: "b", Hook: "evt_x", Task: "t6", Status: "failed"})},
		"AnEndIsToldOtherwise":             {ruleWebhooks, change(of(told, "t6"), func(e *event) { e.Status = "canceled" })},
		"OneIDTellsTwoThings":              {ruleWebhooks, with(event{What: told, WS: "b", Hook: "evt_1", Task: "t1", Status: "failed"})},
		"WhatIsNotThereIsTold":             {ruleWebhooks, with(event{What: told, WS: "b", Hook: "evt_x", Task: "t99", Status: "failed"})},
		"AnEventIsNotSigned":               {ruleWebhooks, change(of(told, "t6"), func(e *event) { e.Note = "no matching signature found" })},
	} {
		find(name, lives(), c)
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
