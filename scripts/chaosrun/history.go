//go:build unix

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// What an event tells. The history is the only thing that the checker knows.
const (
	began     = "begin"     // Note: options
	workspace = "workspace" // WS, Workspace (its id in the ledger), Cap
	hooked    = "hook"      // WS: its customer's server is told of each task's end, from now on
	process   = "process"   // Proc, PID: a muster process started
	exited    = "exited"    // Proc: it ended although nobody had ended it

	// What customers do.
	submitted = "submit"     // N, Key, WS, Want, Group, Priority, Attempts, RunAt, ExpiresAt: the first request for the task is about to be sent
	answered  = "answer"     // Key, Status, Took: an answer, or none (0), to a request
	acked     = "ack"        // N, Key, Task: a 202 that names the task; Replayed
	refused   = "refused"    // N, Key: a 422, since the task would have expired by now
	abandoned = "abandon"    // N, Key: the client gave up asking
	asks      = "ask"        // Key, Kind, WS, Task or Group: the first request to cancel or to retry is about to be sent
	settled   = "settled"    // Key, Status, Becomes, Count: its answer
	planned   = "plan"       // Schedule, WS: a schedule of every minute was made
	ceased    = "cease"      // Schedule: it was paused
	told      = "told"       // WS, Hook, Task, Status, Note: their server took an event; what was wrong with it
	final     = "final"      // Task, WS, Status, Code, Schedule: at the end, as the customer reads it over HTTP
	occurred  = "occurrence" // Schedule, From, Until, Count, Status, Code, Task: likewise
	quota     = "quota"      // WS, Used: agent time used this month, likewise

	// What the model server sees.
	started = "start" // Call, N, WS, Proc, Sleep: an agent's call reached it
	ended   = "end"   // Call, Status: the call was answered, or Gone: its client had left

	// What is done to it all.
	faultOn   = "fault"     // Fault, Number
	faultHit  = "hit"       // Fault, Number, Proc: what runs in this process may be taken away, from now on
	faultOff  = "lifted"    // Fault, Number
	recovered = "recovered" // Fault, Number, Took

	// What the ledger's triggers note, in its order: Seq, Clock, Begun, Workspace, Task, and:
	leased   = "leased"   // Lease, Worker, Running, PassedOver
	released = "released" // Lease, Worker, Running: a lease ended
	stopping = "stopping" // a task that runs was asked to stop
	over     = "over"     // Status, Code: the task ended
	requeued = "requeued" // it is in line again

	// What the ledger holds.
	worker    = "worker"  // Worker, PID
	stored    = "task"    // N, Task, Status, Attempt, Schedule
	attempted = "attempt" // Lease, Task, Workspace, Worker, Status (outcome), Used, Billable
	metered   = "metered" // Lease, Workspace, Used, Billable: a row of the meter agent_ms
	finished  = "finish"
)

// event is one line of the history.
type event struct {
	At        int64  `json:"at_ms"` // since the run began, monotonic
	What      string `json:"what"`
	N         int    `json:"n,omitempty"` // the number of a task, from 1, which its prompt carries to the model server
	Key       string `json:"key,omitempty"`
	WS        string `json:"ws,omitempty"`
	Workspace string `json:"workspace,omitempty"`
	Cap       int    `json:"cap,omitempty"`
	Task      string `json:"task,omitempty"`
	Lease     string `json:"lease,omitempty"`
	Worker    string `json:"worker,omitempty"`
	Proc      string `json:"proc,omitempty"`
	PID       int    `json:"pid,omitempty"`
	Call      int64  `json:"call,omitempty"`
	Sleep     string `json:"sleep,omitempty"`
	Gone      bool   `json:"gone,omitempty"`
	Replayed  bool   `json:"replayed,omitempty"`
	Seq       int64  `json:"seq,omitempty"`
	Running   int    `json:"running,omitempty"`
	Status    string `json:"status,omitempty"`
	Code      string `json:"code,omitempty"`
	Want      string `json:"want,omitempty"`
	Attempt   int    `json:"attempt,omitempty"`
	Used      int64  `json:"used_ms,omitempty"`
	Billable  bool   `json:"billable,omitempty"`
	Fault     string `json:"fault,omitempty"`
	Number    int    `json:"number,omitempty"`
	Took      int64  `json:"took_ms,omitempty"`
	Note      string `json:"note,omitempty"`

	Kind       string `json:"kind,omitempty"`          // kindCancel or kindRetry
	Group      string `json:"group,omitempty"`         // of tasks that are canceled or retried together, by their metadata
	Becomes    string `json:"becomes,omitempty"`       // the task's status in the answer
	Count      int    `json:"count,omitempty"`         // of tasks or occurrences
	Priority   int    `json:"priority,omitempty"`      // -100 to 100
	Attempts   int    `json:"attempts,omitempty"`      // at most
	RunAt      int64  `json:"run_at_ms,omitempty"`     // Unix time, as all of these; 0: none
	ExpiresAt  int64  `json:"expires_at_ms,omitempty"` // 0: none
	Clock      int64  `json:"clock_ms,omitempty"`      // the ledger's
	Begun      int64  `json:"begun_ms,omitempty"`      // the ledger's when the transaction began, by which it decides
	PassedOver int    `json:"passed_over,omitempty"`   // tasks of higher priority that could have started instead
	Schedule   string `json:"schedule,omitempty"`
	From       int64  `json:"from_ms,omitempty"` // the occurrence, or the first of a span
	Until      int64  `json:"until_ms,omitempty"`
	Hook       string `json:"hook,omitempty"` // webhook-id
}

// history is the append-only record of a run: a file of one JSON object per line, and the same in memory. Each event is
// written out at once, so that what was recorded survives the program that records it.
type history struct {
	start time.Time

	mu     sync.Mutex
	file   *os.File
	failed error
	events []event
}

func newHistory(path string) (*history, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("make the history: %w", err)
	}
	return &history{start: time.Now(), file: file}, nil
}

// add records what happens now and returns when that is, in milliseconds.
func (h *history) add(e event) int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	e.At = time.Since(h.start).Milliseconds()
	line, err := json.Marshal(e)
	if err == nil {
		_, err = h.file.Write(append(line, '\n'))
	}
	if err != nil && h.failed == nil {
		h.failed = fmt.Errorf("write the history: %w", err)
	}
	h.events = append(h.events, e)
	return e.At
}

// now is the history's clock.
func (h *history) now() int64 { return time.Since(h.start).Milliseconds() }

// close returns all events, and an error if the file does not hold them.
func (h *history) close() ([]event, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.file.Close(); err != nil && h.failed == nil {
		h.failed = fmt.Errorf("close the history: %w", err)
	}
	return h.events, h.failed
}

// readHistory reads what a run has written. A last line that was cut off is left out.
func readHistory(r io.Reader) (events []event, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			if !lines.Scan() {
				return events, lines.Err()
			}
			return nil, fmt.Errorf("line %d of the history: %w", len(events)+1, err)
		}
		events = append(events, e)
	}
	return events, lines.Err()
}
