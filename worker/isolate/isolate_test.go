package isolate_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/worker/agent"
	"github.com/generic-corp/muster/worker/isolate"
	"github.com/generic-corp/muster/worker/provider"
	"github.com/generic-corp/muster/worker/provider/providertest"
)

// TestMain lets the test binary be the child, with an agent that does what its prompt says.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == isolate.Command {
		os.Exit(isolate.Serve(misbehave))
	}
	os.Exit(m.Run())
}

func misbehave(ctx context.Context, router agent.Router, prices agent.Prices, t agent.Task, calls agent.Recorder) (agent.Result, error) {
	what, arg, _ := strings.Cut(t.Prompt, " ")
	switch what {
	case "exit":
		os.Exit(7)
	case "signal":
		n, _ := strconv.Atoi(arg)
		_ = syscall.Kill(os.Getpid(), syscall.Signal(n))
		select {}
	case "overflow":
		return agent.Result{Output: strconv.Itoa(overflow(1))}, nil
	case "memory":
		var kept [][]byte
		for {
			b := make([]byte, 16<<20)
			for i := range b {
				b[i] = 1
			}
			kept = append(kept, b)
			if len(kept) > 256 {
				return agent.Result{Output: "4 GiB were granted"}, nil
			}
		}
	case "panic":
		go func() { panic("in a goroutine of the agent's") }()
		select {}
	case "close":
		_ = syscall.Close(3)
		select {}
	case "garbage":
		_, _ = syscall.Write(3, []byte{0xff, 0xff, 0xff, 0xff, 1, 2, 3})
		select {}
	case "ignore":
		select {}
	case "spin":
		for i := 0; ; i++ {
			_ = i
		}
	case "obey":
		<-ctx.Done()
		return agent.Result{Output: "stopped"}, &agent.Error{Code: agent.CodeCanceled, Message: "stopped", Err: context.Cause(ctx)}
	case "environment":
		return agent.Result{Output: fmt.Sprint(len(os.Environ()))}, nil
	case "grandchild":
		cmd := exec.Command("/bin/sleep", "600")
		if err := cmd.Start(); err != nil {
			return agent.Result{}, &agent.Error{Code: "internal_error", Message: err.Error()}
		}
		if arg == "exit" {
			os.Exit(cmd.Process.Pid % 100)
		}
		return agent.Result{Output: strconv.Itoa(cmd.Process.Pid)}, nil
	}
	return agent.Run(ctx, agent.Config{Router: router, Prices: prices, Backoff: time.Millisecond}, t, calls)
}

//lint:ignore SA5007 it is meant to have no end
func overflow(n int) int { return overflow(n+1) + overflow(n+2) }

// ledger is a Recorder that remembers.
type ledger struct {
	mu     sync.Mutex
	starts []agent.CallStart
	ends   []agent.CallEnd
	refuse error
}

func (l *ledger) Begin(_ context.Context, c agent.CallStart) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refuse != nil {
		return l.refuse
	}
	l.starts = append(l.starts, c)
	return nil
}

func (l *ledger) End(_ context.Context, _ uuid.UUID, e agent.CallEnd) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ends = append(l.ends, e)
	return nil
}

func (l *ledger) counts() (begun, ended int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.starts), len(l.ends)
}

// rig starts children whose parent has a stand-in model server.
type rig struct {
	t       *testing.T
	starter *isolate.Starter
	models  *providertest.Server
}

func newRig(t *testing.T) *rig {
	t.Helper()
	models := providertest.New()
	server := httptest.NewServer(models)
	t.Cleanup(server.Close)
	router, err := provider.New(provider.Config{OpenAI: provider.Options{APIKey: "sk-test-0123456789abcdef", BaseURL: server.URL + "/v1"}})
	if err != nil {
		t.Fatal(err)
	}
	prices, err := provider.LoadPrices("")
	if err != nil {
		t.Fatal(err)
	}
	return &rig{t, isolate.New(isolate.Config{Argv: []string{os.Args[0], isolate.Command}, Router: router, Prices: prices,
		MemoryBytes: 512 << 20, Grace: 300 * time.Millisecond}), models}
}

func (r *rig) run(ctx context.Context, prompt string, calls agent.Recorder) (agent.Result, error) {
	r.t.Helper()
	child, err := r.starter.Start(ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	defer child.Close()
	return child.Run(ctx, agent.Task{Prompt: prompt, Model: "auto", Input: json.RawMessage(`{}`)}, calls)
}

func codeOf(err error) string {
	var e *agent.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return fmt.Sprint(err)
}

func TestAnAttemptGoesThroughItsChildAsItWouldHere(t *testing.T) {
	t.Parallel()
	r, l := newRig(t), &ledger{}
	got, err := r.run(t.Context(), `out={"a":1} tokens=100/20`, l)
	if err != nil {
		t.Fatal(err)
	}
	if got.Output != `{"a":1}` || string(got.Data) != `{"a":1}` || got.Usage.InputTokens != 100 || got.Usage.OutputTokens != 20 || got.Usage.CostMicroUSD == 0 {
		t.Errorf("%+v", got)
	}
	if len(l.starts) != 1 || len(l.ends) != 1 || l.starts[0].CeilingMicroUSD < l.ends[0].CostMicroUSD || l.ends[0].CostMicroUSD != got.Usage.CostMicroUSD || l.ends[0].Outcome != agent.OutcomeOK {
		t.Errorf("begun %+v, ended %+v", l.starts, l.ends)
	}
	if r.models.Stats().Calls != 1 {
		t.Errorf("%d calls", r.models.Stats().Calls)
	}
	t.Run("with the provider's errors", func(t *testing.T) {
		l := &ledger{}
		got, err := r.run(t.Context(), "fail=500:1 out=after", l)
		if err != nil || got.Output != "after" || len(l.ends) != 2 || l.ends[0].Outcome != agent.OutcomeTransient {
			t.Errorf("%+v, %v, %+v", got, err, l.ends)
		}
		if _, err := r.run(t.Context(), "status=400", l); codeOf(err) != agent.CodeInvalidRequest {
			t.Errorf("%v", err)
		}
	})
	t.Run("with the ledger's refusals", func(t *testing.T) {
		if _, err := r.run(t.Context(), "x", &ledger{refuse: fmt.Errorf("gone: %w", agent.ErrLeaseLost)}); codeOf(err) != agent.CodeLeaseLost {
			t.Errorf("%v", err)
		}
		if _, err := r.run(t.Context(), "x", &ledger{refuse: &agent.Error{Code: agent.CodeTaskCost, Message: "too dear", Billable: true}}); codeOf(err) != agent.CodeTaskCost {
			t.Errorf("%v", err)
		}
	})
	t.Run("with nothing in its environment", func(t *testing.T) {
		if got, err := r.run(t.Context(), "environment", &ledger{}); err != nil || got.Output != "0" {
			t.Errorf("%+v, %v", got, err)
		}
	})
}

func TestACrashTakesOnlyTheChild(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for prompt, how := range map[string]string{
		"exit":            "exit status 7",
		"signal 11":       "exit status 2", // Go's runtime dies of a SIGSEGV by itself
		"signal 9":        "signal: killed",
		"overflow":        "exit status 2",
		"panic":           "exit status 2",
		"memory":          "exit status 2",
		"close":           "running", // it says no more, and is ended
		"garbage":         "running",
		"grandchild exit": "exit status",
	} {
		t.Run(prompt, func(t *testing.T) {
			t.Parallel()
			if raceEnabled && prompt == "memory" {
				return // no bound fits the race detector's own memory; it stands in the tests without it
			}
			ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
			defer cancel()
			_, err := r.run(ctx, prompt, &ledger{})
			var crash *isolate.Crash
			if !errors.As(err, &crash) || !strings.HasPrefix(crash.How, how) {
				t.Errorf("%v, want a crash: %s", err, how)
			}
			if prompt == "panic" && (!strings.Contains(crash.Words, "misbehave") || strings.Contains(crash.Words, "in a goroutine of the agent's")) {
				t.Errorf("its last words must tell where, and nothing that may be a customer's: %q", crash.Words)
			}
			if prompt == "memory" && !strings.Contains(crash.Words, "out of memory") {
				t.Errorf("its last words: %q", crash.Words)
			}
		})
	}
}

func TestAChildEndsAtItsDeadlineAndWhenItIsStopped(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	cause := errors.New("the customer wants it no more")
	for _, c := range []struct {
		prompt, code string
		cause        error // nil: the deadline
	}{
		{"ignore", agent.CodeTimeout, nil},
		{"spin", agent.CodeTimeout, nil},
		{"sleep=1h", agent.CodeTimeout, nil},
		{"ignore", agent.CodeCanceled, cause},
		{"obey", agent.CodeCanceled, cause},
		{"sleep=1h", agent.CodeCanceled, cause},
		{"sleep=1h", agent.CodeLeaseLost, fmt.Errorf("beat: %w", agent.ErrLeaseLost)},
	} {
		t.Run(c.prompt+" "+c.code, func(t *testing.T) {
			t.Parallel()
			l := &ledger{}
			child, err := r.starter.Start(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer child.Close()
			ctx, stop := context.WithCancelCause(t.Context())
			defer stop(nil)
			if c.cause == nil {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, 500*time.Millisecond)
				defer cancel()
			} else {
				time.AfterFunc(500*time.Millisecond, func() { stop(c.cause) })
			}
			_, err = child.Run(ctx, agent.Task{Prompt: c.prompt, Model: "auto"}, l)
			if codeOf(err) != c.code {
				t.Errorf("%v, want %s", err, c.code)
			}
			if begun, ended := l.counts(); begun != ended {
				t.Errorf("%d calls begun, %d ended", begun, ended)
			}
			if strings.HasPrefix(c.prompt, "sleep") && (len(l.ends) != 1 || l.ends[0].Outcome != agent.OutcomeCanceled || l.ends[0].Usage.InputTokens == 0) {
				t.Errorf("%+v", l.ends)
			}
		})
	}
}

// alive reports whether a process runs; one that has ended and is not reaped does not.
func alive(pid int) bool {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && !strings.Contains(string(raw), ") Z ")
}

func TestNothingThatAChildStartedOutlivesIt(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	got, err := r.run(t.Context(), "grandchild", &ledger{})
	pid, convErr := strconv.Atoi(got.Output)
	if err != nil || convErr != nil {
		t.Fatalf("%+v, %v", got, err)
	}
	for deadline := time.Now().Add(10 * time.Second); alive(pid); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("process %d, started by the child, runs on", pid)
		}
	}
}

func TestAChildThatCannotStartIsAnError(t *testing.T) {
	t.Parallel()
	for _, argv := range [][]string{{"/nonexistent/muster", isolate.Command}, {"/bin/true"}} {
		if _, err := isolate.New(isolate.Config{Argv: argv}).Start(t.Context()); err == nil {
			t.Errorf("%v was started", argv)
		}
	}
}
