//go:build unix

package main

import "fmt"

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
		{At: 61, What: over, Seq: 5, Workspace: "w-a", Task: "t1", Status: "succeeded"},
		{At: 62, What: leased, Seq: 6, Workspace: "w-a", Task: "t2", Lease: "l3", Worker: "two", Running: 1},
		{At: 63, What: started, Call: 3, N: 2, WS: "a", Proc: "worker-2.1"},
		{At: 64, What: ended, Call: 3},
		{At: 65, What: released, Seq: 7, Workspace: "w-a", Task: "t2", Lease: "l3", Worker: "two"},
		{At: 65, What: over, Seq: 8, Workspace: "w-a", Task: "t2", Status: "failed", Code: "invalid_request"},
		{What: final, Task: "t1", WS: "a", Status: "succeeded"}, {What: final, Task: "t2", WS: "a", Status: "failed", Code: "invalid_request"},
		{What: quota, WS: "a", Used: 8},
		{What: stored, N: 1, Task: "t1", Status: "succeeded", Attempt: 1}, {What: stored, N: 2, Task: "t2", Status: "failed", Attempt: 1},
		{What: attempted, Lease: "l1", Task: "t1", Workspace: "w-a", Worker: "one", Status: "crashed", Used: 0},
		{What: attempted, Lease: "l2", Task: "t1", Workspace: "w-a", Worker: "two", Status: "succeeded", Used: 8, Billable: true},
		{What: attempted, Lease: "l3", Task: "t2", Workspace: "w-a", Worker: "two", Status: "failed", Used: 1},
		{What: metered, Lease: "l1", Workspace: "w-a", Used: 0}, {What: metered, Lease: "l2", Workspace: "w-a", Used: 8, Billable: true},
		{What: metered, Lease: "l3", Workspace: "w-a", Used: 1},
		{What: finished},
	}
}

// lives is the history of what may become of tasks beside that, in a workspace that is told of it: t1 is canceled while it runs,
// and once more; t2 is canceled with its group, of which t3 had ended; t4, which has a priority and is for later, meets an
// outage; t5 has no attempt left when it meets one, and is retried; t6 expires; t7 is canceled too late; a schedule sends s1
// and misses two occurrences.
func lives() (h []event) {
	seq := int64(0)
	note := func(at int64, e event) {
		seq++
		e.At, e.Seq, e.Workspace, e.Clock, e.Begun = at, seq, "w-b", at, at
		h = append(h, e)
	}
	begin := func(at int64, task, lease string) {
		note(at, event{What: leased, Task: task, Lease: lease, Worker: "one", Running: 1})
	}
	end := func(at int64, task, lease, outcome string, billable bool) {
		note(at, event{What: released, Task: task, Lease: lease, Worker: "one"})
		h = append(h, event{What: attempted, Lease: lease, Task: task, Workspace: "w-b", Worker: "one", Status: outcome, Used: 1, Billable: billable},
			event{What: metered, Lease: lease, Workspace: "w-b", Used: 1, Billable: billable})
	}
	number := map[string]int{"t1": 1, "t2": 2, "t3": 3, "t4": 4, "t5": 5, "t6": 6, "t7": 7}
	ends := 0
	done := func(at int64, task, status, code string) {
		ends++
		note(at, event{What: over, Task: task, Status: status, Code: code})
		h = append(h, event{At: at, What: told, WS: "b", Hook: fmt.Sprint("evt_", ends), Task: task, Status: status})
	}
	called := func(at, number, call int64, status string, gone bool) {
		h = append(h, event{At: at, What: started, Call: call, N: int(number), WS: "b", Proc: "worker-1.1"}, event{At: at + 1, What: ended, Call: call, Status: status, Gone: gone})
	}
	h = []event{{What: workspace, WS: "b", Workspace: "w-b", Cap: 9}, {What: hooked, WS: "b"}, {What: process, Proc: "worker-1.1", PID: 11},
		{What: worker, Worker: "one", PID: 11}, {What: planned, WS: "b", Schedule: "s"},
		{At: 1, What: submitted, N: 1, Key: "k1", WS: "b", Want: "succeeded"},
		{At: 1, What: submitted, N: 2, Key: "k2", WS: "b", Want: "succeeded", Group: "g"}, {At: 1, What: submitted, N: 3, Key: "k2", WS: "b", Want: "succeeded", Group: "g"},
		{At: 1, What: submitted, N: 4, Key: "k4", WS: "b", Want: "succeeded", Priority: 5, RunAt: 100}, {At: 1, What: submitted, N: 5, Key: "k5", WS: "b", Want: "succeeded", Attempts: 1},
		{At: 1, What: submitted, N: 6, Key: "k6", WS: "b", Want: "succeeded", ExpiresAt: 200}, {At: 1, What: submitted, N: 7, Key: "k7", WS: "b", Want: "succeeded"},
		{At: 1, What: submitted, N: 8, Key: "k8", WS: "b", Want: "succeeded", ExpiresAt: 2}, {At: 3, What: refused, N: 8, Key: "k8"}}
	for task, n := range number {
		h = append(h, event{At: 2, What: acked, N: n, Key: fmt.Sprint("k", n), Task: task})
	}

	begin(12, "t1", "l1")
	called(13, 1, 1, "0", true)
	h = append(h, event{At: 13, What: asks, Key: "cancel t1", Kind: kindCancel, WS: "b", Task: "t1"})
	note(14, event{What: stopping, Task: "t1"})
	end(15, "t1", "l1", "canceled", true)
	done(15, "t1", "canceled", "canceled")
	h = append(h, event{At: 16, What: settled, Key: "cancel t1", Status: "202", Becomes: "running"},
		event{At: 17, What: asks, Key: "again t1", Kind: kindCancel, WS: "b", Task: "t1"}, event{At: 18, What: settled, Key: "again t1", Status: "200", Becomes: "canceled"})

	begin(20, "t3", "l3")
	end(22, "t3", "l3", "succeeded", true)
	done(22, "t3", "succeeded", "")
	h = append(h, event{At: 23, What: asks, Key: "cancel g", Kind: kindCancel, WS: "b", Group: "g"})
	done(24, "t2", "canceled", "canceled")
	h = append(h, event{At: 25, What: settled, Key: "cancel g", Status: "202", Count: 1})

	begin(100, "t4", "l4")
	called(101, 4, 4, "503", false)
	end(103, "t4", "l4", "retry", false)
	begin(1103, "t4", "l5")
	called(1104, 4, 5, "200", false)
	end(1106, "t4", "l5", "succeeded", true)
	done(1106, "t4", "succeeded", "")

	begin(30, "t5", "l6")
	called(31, 5, 6, "429", false)
	end(33, "t5", "l6", "retry", false)
	done(33, "t5", "failed", codeOutage)
	h = append(h, event{At: 34, What: asks, Key: "retry t5", Kind: kindRetry, WS: "b", Task: "t5"})
	note(35, event{What: requeued, Task: "t5"})
	begin(40, "t5", "l7")
	end(42, "t5", "l7", "succeeded", true)
	done(42, "t5", "succeeded", "")
	h = append(h, event{At: 43, What: settled, Key: "retry t5", Status: "202", Becomes: "queued"})

	done(200, "t6", "failed", "expired")

	begin(210, "t7", "l8")
	end(212, "t7", "l8", "succeeded", true)
	done(212, "t7", "succeeded", "")
	h = append(h, event{At: 213, What: asks, Key: "cancel t7", Kind: kindCancel, WS: "b", Task: "t7"}, event{At: 214, What: settled, Key: "cancel t7", Status: "409"})

	begin(60_000, "s1", "l9")
	end(60_002, "s1", "l9", "succeeded", true)
	done(60_002, "s1", "succeeded", "")
	h = append(h, event{At: 200_000, What: ceased, Schedule: "s"},
		event{What: occurred, Schedule: "s", From: 60_000, Until: 60_000, Count: 1, Status: "sent", Task: "s1"},
		event{What: occurred, Schedule: "s", From: 120_000, Until: 180_000, Count: 2, Status: "missed", Code: "late"},
		event{What: stored, Task: "s1", Status: "succeeded", Attempt: 1, Schedule: "s"}, event{What: final, WS: "b", Task: "s1", Status: "succeeded", Schedule: "s"})
	for task, n := range number {
		status, code, spent := "succeeded", "", 1
		switch task {
		case "t1", "t2":
			status, code, spent = "canceled", "canceled", 2-n
		case "t4", "t5":
			spent = 2
		case "t6":
			status, code, spent = "failed", "expired", 0
		}
		h = append(h, event{What: stored, N: n, Task: task, Status: status, Attempt: spent}, event{What: final, WS: "b", Task: task, Status: status, Code: code})
	}
	return append(h, event{What: quota, WS: "b", Used: 6}, event{What: finished})
}
