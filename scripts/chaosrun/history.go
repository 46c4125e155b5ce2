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
	process   = "process"   // Proc, PID: a muster process started
	exited    = "exited"    // Proc: it ended although nobody had ended it
	submitted = "submit"    // N, Key, WS, Want: the first request for the task is about to be sent
	answered  = "answer"    // Key, Status, Took: an answer, or none (0), to a request
	acked     = "ack"       // N, Key, Task: a 202 that names the task; Replayed
	abandoned = "abandon"   // N, Key: the client gave up asking
	started   = "start"     // Call, N, WS, Proc, Sleep: an agent's call reached the model server
	ended     = "end"       // Call: the call was answered, or Gone: its client had left
	faultOn   = "fault"     // Fault, Number
	faultHit  = "hit"       // Fault, Number, Proc: what runs in this process may be taken away, from now on
	faultOff  = "lifted"    // Fault, Number
	recovered = "recovered" // Fault, Number, Took
	leased    = "leased"    // Seq, Workspace, Task, Lease, Worker, Running: as the ledger's trigger noted it
	released  = "released"  // the same, of a lease that ended
	worker    = "worker"    // Worker, PID: a row of the ledger
	final     = "final"     // Task, WS, Status, Code: as the customer reads it over HTTP
	stored    = "task"      // N, Task, Status, Attempt: a row of the ledger
	attempted = "attempt"   // Lease, Task, Workspace, Worker, Status (outcome), Used, Billable
	metered   = "metered"   // Lease, Workspace, Used, Billable: a row of the meter agent_ms
	quota     = "quota"     // WS, Used: agent time used this month, as the customer reads it over HTTP
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
