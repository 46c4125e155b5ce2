package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// childrenOf lists the processes that a process has started, with their command lines.
func childrenOf(t *testing.T, pid int) map[int]string {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil || len(stats) == 0 {
		t.Fatalf("no /proc: %v", err)
	}
	found := map[int]string{}
	for _, file := range stats {
		raw, err := os.ReadFile(file)
		if err != nil {
			continue // gone meanwhile
		}
		_, rest, _ := strings.Cut(string(raw), ") ") // STATE PARENT …
		fields := strings.Fields(rest)
		if len(fields) < 2 || fields[0] == "Z" || fields[1] != strconv.Itoa(pid) {
			continue
		}
		dir := filepath.Dir(file)
		child, err := strconv.Atoi(filepath.Base(dir))
		line, lineErr := os.ReadFile(dir + "/cmdline")
		if err == nil && lineErr == nil {
			found[child] = strings.ReplaceAll(string(line), "\x00", " ")
		}
	}
	return found
}

// A suspect runs in a child of its worker, with the real binary: its calls go through the worker, nothing secret is in its
// environment, and it ends with its worker, without being convicted for it.
func TestASuspectRunsInAChildOfItsWorker(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	s.start("scheduler", "scheduler")
	s.start("api", "api")
	w := s.tenant("suspect", "pro", 10)
	var task struct{ ID string }
	if _, err := s.request("POST", "/v1/tasks", w.token, "", map[string]any{"prompt": "sleep=3s out=done ws=suspect", "model": "openai"}, &task); err != nil {
		t.Fatal(err)
	}
	if n := s.count(`WITH u AS (UPDATE tasks SET crashes = 2 RETURNING 1) SELECT count(*) FROM u`); n != 1 {
		t.Fatalf("%d tasks", n)
	}
	child := func(worker string) (pid int) {
		t.Helper()
		s.await(60*time.Second, "the suspect's process", func() bool {
			for pid = range childrenOf(t, s.procs[worker].PID()) {
				return s.metric(worker, "muster_worker_isolated") == 1 && s.count(`SELECT count(*) FROM provider_calls WHERE outcome = 'started'`) > 0
			}
			return false
		})
		return pid
	}
	s.start("worker-1", "worker")
	pid := child("worker-1")
	line := childrenOf(t, s.procs["worker-1"].PID())[pid]
	environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil || len(environment) != 0 || !strings.Contains(line, "run-isolated") {
		t.Errorf("process %q has an environment of %d bytes, %v", line, len(environment), err)
	}
	killed := time.Now()
	s.kill("worker-1")
	s.await(10*time.Second, "the child to end with its worker", func() bool {
		_, err := os.Stat(fmt.Sprintf("/proc/%d/environ", pid))
		return err != nil
	})
	t.Logf("the child ended %s after its worker was killed", time.Since(killed).Round(time.Millisecond))
	s.start("worker-2", "worker")
	s.await(30*time.Second, "the suspect to wait", func() bool {
		var view struct {
			Status  string
			Waiting *struct{ Reason string }
		}
		if _, err := s.request("GET", "/v1/tasks/"+task.ID, w.token, "", nil, &view); err != nil {
			t.Fatal(err)
		}
		return view.Status == "scheduled" && view.Waiting != nil && view.Waiting.Reason == "isolated"
	})
	child("worker-2")
	s.await(30*time.Second, "the suspect to succeed", func() bool {
		return s.count(`SELECT count(*) FROM tasks WHERE status = 'succeeded' AND crashes = 2 AND losses = 1 AND attempt = 1 AND provider_calls = 2`) == 1
	})
	t.Logf("succeeded %s after the kill", time.Since(killed).Round(100*time.Millisecond))
}
