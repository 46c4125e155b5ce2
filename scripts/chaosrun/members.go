//go:build unix

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/generic-corp/muster/scripts/chaosrun/steppedclock"
	"github.com/generic-corp/muster/scripts/privateservers"
	"github.com/generic-corp/muster/worker/childprocess"
)

// member is a muster process of the run, and whoever starts it again: like systemd or muster up it sees to it that the
// process runs, until the run ends. The n-th process of a member is called NAME.n.
type member struct {
	name  string
	argv  []string
	env   func(proc string) []string
	ops   string // host:port of its operators' listener, over all its processes
	log   string // a file, likewise
	clock string // a file that sets their wall clock; see steppedclock
	hist  *history

	mu     sync.Mutex
	proc   *childprocess.Process
	number int
	absent time.Duration // how long the next process lets itself be waited for
	meant  bool          // the process was ended by the run
	up     bool          // it has answered
	failed int           // processes that ended before they were up: their servers were away
	done   chan struct{}
}

// run keeps the member running until ctx ends.
func (m *member) run(ctx context.Context) {
	defer close(m.done)
	for ctx.Err() == nil {
		m.mu.Lock()
		wait := m.absent
		m.absent = 200 * time.Millisecond
		m.mu.Unlock()
		pause(ctx, wait)
		if ctx.Err() != nil {
			return
		}
		p, err := m.start()
		if err != nil {
			m.hist.add(event{What: exited, Proc: m.name, Note: err.Error()})
			return
		}
		select {
		case <-p.Exited():
		case <-ctx.Done():
			_ = p.Signal(syscall.SIGCONT) // in case it is stopped
			_ = p.End(context.Background(), 40*time.Second, syscall.SIGTERM, syscall.SIGKILL)
			return
		}
		m.mu.Lock()
		switch {
		case m.meant:
		case m.up:
			m.hist.add(event{What: exited, Proc: m.current(), Note: fmt.Sprintf("ended by itself with code %d: %s", p.ExitCode(), lastLine(m.log))})
		default:
			m.failed++
		}
		m.mu.Unlock()
	}
}

func (m *member) start() (*childprocess.Process, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.number++
	m.meant, m.up = false, false
	file, err := os.OpenFile(m.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	p, err := childprocess.Start(childprocess.Config{Argv: m.argv, Env: m.env(m.current()), Output: file, OnParentDeath: syscall.SIGKILL})
	if err != nil {
		return nil, err
	}
	m.proc = p
	m.hist.add(event{What: process, Proc: m.current(), PID: p.PID()})
	go m.noteUp(p)
	return p, nil
}

// noteUp waits until the process answers.
func (m *member) noteUp(p *childprocess.Process) {
	for p.Alive() {
		if healthy(m.ops) {
			m.mu.Lock()
			m.up = m.up || m.proc == p
			m.mu.Unlock()
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func healthy(addr string) bool {
	client := http.Client{Timeout: 2 * time.Second}
	res, err := client.Get("http://" + addr + "/health")
	if err != nil {
		return false
	}
	res.Body.Close()
	return res.StatusCode == http.StatusOK
}

// current is the name of the process; mu is held.
func (m *member) current() string { return m.name + "." + strconv.Itoa(m.number) }

// now returns the process that runs, or nil.
func (m *member) now() (p *childprocess.Process, name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.up || !m.proc.Alive() {
		return nil, m.current()
	}
	return m.proc, m.current()
}

// isUp says whether the process answers.
func (m *member) isUp() bool {
	p, _ := m.now()
	return p != nil
}

// kill is kill -9; the next process starts so much later.
func (m *member) kill(absent time.Duration) error {
	m.mu.Lock()
	p := m.proc
	m.meant, m.absent = true, absent
	m.mu.Unlock()
	return p.End(context.Background(), 0, syscall.SIGKILL)
}

// metric sums a metric over its labels; 0 when the process doesn't answer.
func (m *member) metric(name string) (sum float64) {
	client := http.Client{Timeout: 5 * time.Second}
	res, err := client.Get("http://" + m.ops + "/metrics")
	if err != nil {
		return 0
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, name); ok && (rest[0] == ' ' || rest[0] == '{') {
			v, _ := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndexByte(line, ' '):]), 64)
			sum += v
		}
	}
	return sum
}

// said counts a text in the logs of the member's processes.
func (m *member) said(text string) int {
	raw, _ := os.ReadFile(m.log)
	return bytes.Count(raw, []byte(text))
}

// raced says what a process said when it raced or panicked, "" if none did.
func (m *member) raced() string {
	raw, _ := os.ReadFile(m.log)
	for _, word := range []string{"DATA RACE", "panic:", "fatal error:"} {
		if at := bytes.Index(raw, []byte(word)); at >= 0 {
			return string(raw[at:min(len(raw), at+3000)])
		}
	}
	return ""
}

func lastLine(file string) string {
	raw, _ := os.ReadFile(file)
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	return lines[len(lines)-1]
}

// join makes a member and starts it. vars are its environment; a process's own are added by more.
func (s *stage) join(ctx context.Context, name string, argv []string, vars map[string]string, more func(proc string) map[string]string) error {
	ops, err := privateservers.FreePort()
	if err != nil {
		return err
	}
	m := &member{name: name, argv: append([]string{s.cfg.muster}, argv...), ops: fmt.Sprint("127.0.0.1:", ops), log: filepath.Join(s.dir, name+".log"),
		clock: filepath.Join(s.dir, name+".clock"), hist: s.hist, done: make(chan struct{})}
	m.env = func(proc string) []string {
		all := maps.Clone(vars)
		all["PATH"], all["OPS_ADDR"], all[steppedclock.Variable] = os.Getenv("PATH"), m.ops, m.clock
		if more != nil {
			maps.Copy(all, more(proc))
		}
		var env []string
		for k, v := range all {
			env = append(env, k+"="+v)
		}
		return env
	}
	s.members = append(s.members, m)
	go m.run(ctx)
	for deadline := time.Now().Add(30 * time.Second); !m.isUp(); pause(ctx, 20*time.Millisecond) {
		if time.Now().After(deadline) || ctx.Err() != nil {
			return fmt.Errorf("%s does not start: %s", name, lastLine(m.log))
		}
	}
	return nil
}

// of returns the members whose names begin so.
func (s *stage) of(prefix string) (found []*member) {
	for _, m := range s.members {
		if strings.HasPrefix(m.name, prefix) {
			found = append(found, m)
		}
	}
	return found
}
