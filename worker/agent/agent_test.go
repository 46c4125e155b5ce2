package agent_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/worker/agent"
	"github.com/generic-corp/muster/worker/provider"
	"github.com/generic-corp/muster/worker/provider/providertest"
)

const key = "sk-test-0123456789abcdef"

// ledger is a Recorder that writes history, in the order things happened.
type ledger struct {
	mu      sync.Mutex
	history []string // "begin STEP.TRY PROVIDER", "end STEP.TRY OUTCOME CODE"
	open    map[uuid.UUID]agent.CallStart
	starts  []agent.CallStart
	ends    []agent.CallEnd

	begin func(n int) error // of the nth Begin, from 1; nil takes all
	begun int
	end   func() error
}

func (l *ledger) Begin(_ context.Context, c agent.CallStart) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.begun++
	if l.begin != nil {
		if err := l.begin(l.begun); err != nil {
			l.history = append(l.history, "begin failed")
			return err
		}
	}
	if l.open == nil {
		l.open = map[uuid.UUID]agent.CallStart{}
	}
	l.open[c.ID] = c
	l.starts = append(l.starts, c)
	l.history = append(l.history, fmt.Sprintf("begin %d.%d %s", c.Step, c.Try, c.Provider))
	return nil
}

func (l *ledger) End(ctx context.Context, id uuid.UUID, c agent.CallEnd) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if l.end != nil {
		if err := l.end(); err != nil {
			return err
		}
	}
	s, ok := l.open[id]
	if !ok {
		return fmt.Errorf("call %s is not open", id)
	}
	delete(l.open, id)
	l.ends = append(l.ends, c)
	l.history = append(l.history, strings.TrimSpace(fmt.Sprintf("end %d.%d %s %s", s.Step, s.Try, c.Outcome, c.ErrorCode)))
	return nil
}

// world is two stand-ins behind a real router.
type world struct {
	anthropic, openai *providertest.Server
	urls              map[string]string
	cfg               agent.Config
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{anthropic: providertest.New(), openai: providertest.New(), urls: map[string]string{}}
	for name, s := range map[string]*providertest.Server{"anthropic": w.anthropic, "openai": w.openai} {
		srv := httptest.NewServer(s)
		t.Cleanup(srv.Close)
		w.urls[name] = srv.URL
	}
	w.route(t, provider.Config{
		Anthropic: provider.Options{APIKey: key, BaseURL: w.urls["anthropic"]},
		OpenAI:    provider.Options{APIKey: key, BaseURL: w.urls["openai"] + "/v1"},
	})
	return w
}

func (w *world) route(t *testing.T, c provider.Config) {
	t.Helper()
	router, err := provider.New(c)
	if err != nil {
		t.Fatal(err)
	}
	prices, err := provider.LoadPrices("")
	if err != nil {
		t.Fatal(err)
	}
	w.cfg = agent.Config{Router: router, Prices: prices, Backoff: time.Millisecond, MaxBackoff: 20 * time.Millisecond}
}

func (w *world) run(ctx context.Context, model, prompt string) (*ledger, agent.Result, error) {
	l := &ledger{}
	r, err := agent.Run(ctx, w.cfg, agent.Task{Prompt: prompt, Model: model}, l)
	return l, r, err
}

func check(t *testing.T, l *ledger, want ...string) {
	t.Helper()
	if !slices.Equal(l.history, want) {
		t.Errorf("history\n %s\nwant\n %s", strings.Join(l.history, "\n "), strings.Join(want, "\n "))
	}
	if len(l.open) != 0 {
		t.Errorf("%d calls were never ended", len(l.open))
	}
}

func code(t *testing.T, err error, want string, retryable, billable bool) {
	t.Helper()
	var e *agent.Error
	if !errors.As(err, &e) {
		t.Fatalf("%v is not an *agent.Error", err)
	}
	if e.Code != want || e.Retryable != retryable || e.Billable != billable || e.Message == "" {
		t.Errorf("got %+v, want code %s retryable=%v billable=%v", *e, want, retryable, billable)
	}
	if strings.Contains(fmt.Sprintf("%+v", *e), key) {
		t.Errorf("a key in %+v", *e)
	}
}

var providers = []string{"anthropic", "openai"}

func TestRecordsOneCallAroundAPlainAnswer(t *testing.T) {
	t.Parallel()
	for _, name := range providers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			l, r, err := w.run(t.Context(), name, "out=hello tokens=100/20 cached=50 cache_write=30")
			if err != nil || r.Output != "hello" || r.Data != nil || r.Truncated || r.RecordErr != nil {
				t.Fatalf("%+v %v", r, err)
			}
			check(t, l, "begin 1.1 "+name, "end 1.1 ok")
			// 2 $/M in, 10 out, 0.10 cached, 2.50 written, for both default models.
			in := map[string]int64{"anthropic": 100, "openai": 20}[name]
			want := agent.Usage{ProviderCalls: 1, InputTokens: in, OutputTokens: 20, CacheReadTokens: 50, CacheWriteTokens: 30, CostMicroUSD: 2*in + 200 + 5 + 75}
			if r.Usage != want {
				t.Errorf("usage %+v, want %+v", r.Usage, want)
			}
			end := l.ends[0]
			if end.Usage.InputTokens != in || end.CostMicroUSD != want.CostMicroUSD || end.Estimated || end.Status != 200 {
				t.Errorf("%+v", end)
			}
			if start := l.starts[0]; start.CeilingMicroUSD < end.CostMicroUSD || start.Model == "" {
				t.Errorf("%+v", start)
			}
		})
	}
}

func TestBuildsTheConversation(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, input, want string }{
		{"no input", ``, "do it"},
		{"null", `null`, "do it"},
		{"empty object", "{ \n}", "do it"},
		{"input first, the prompt last", `{"a":1}`, "<input>\n{\"a\":1}\n</input>\n\ndo it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			_, err := agent.Run(t.Context(), w.cfg, agent.Task{Instructions: "be kind", Prompt: "do it", Input: json.RawMessage(c.input)}, &ledger{})
			if err != nil {
				t.Fatal(err)
			}
			call := w.anthropic.Recent()[0]
			if call.System != "be kind" || call.Messages[0].Content != c.want {
				t.Errorf("%+v", call)
			}
		})
	}
}

func TestGoesOnWhereTheTokenLimitCut(t *testing.T) {
	t.Parallel()
	for _, name := range providers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			l, r, err := w.run(t.Context(), name, "out=one stop=length ws=acme")
			if err != nil || !strings.HasPrefix(r.Output, "oneI read") || r.Truncated || r.Usage.ProviderCalls != 2 {
				t.Fatalf("%+v %v", r, err)
			}
			check(t, l, "begin 1.1 "+name, "end 1.1 ok", "begin 2.1 "+name, "end 2.1 ok")
		})
	}
}

func TestRetriesWhatMayPass(t *testing.T) {
	t.Parallel()
	for _, name := range providers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			l, r, err := w.run(t.Context(), name, "out=hello fail=429:1 fail=500:1 fail=cut:1 fail=garbage:1 retry_after=0s")
			if err != nil || r.Output != "hello" || r.Usage.ProviderCalls != 5 {
				t.Fatalf("%+v %v", r, err)
			}
			check(t, l, "begin 1.1 "+name, "end 1.1 transient rate_limited", "begin 1.2 "+name, "end 1.2 transient provider_failed",
				"begin 1.3 "+name, "end 1.3 cut provider_cut", "begin 1.4 "+name, "end 1.4 transient bad_response", "begin 1.5 "+name, "end 1.5 ok")
			if cut := l.ends[2]; !cut.Estimated || cut.CostMicroUSD == 0 {
				t.Errorf("a cut call has cost something: %+v", cut)
			}
			if limited := l.ends[0]; limited.CostMicroUSD != 0 || limited.Status != 429 {
				t.Errorf("%+v", limited)
			}
			server := map[string]*providertest.Server{"anthropic": w.anthropic, "openai": w.openai}[name]
			if got := server.Stats().Calls; got != 5 {
				t.Errorf("the server saw %d calls, the ledger 5", got)
			}
		})
	}
}

func TestFailsAtOnceOnWhatWillNotPass(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, c := range []struct {
		prompt, model, history, code string
		retryable, billable          bool
	}{
		{"status=400", "openai", "permanent invalid_request", agent.CodeInvalidRequest, false, true},
		{"status=413", "openai", "permanent request_too_large", agent.CodeTooLarge, false, true},
		{"status=401", "openai", "permanent provider_auth", agent.CodeProviderError, true, false},
		{"status=404", "openai", "permanent unknown_model", agent.CodeProviderError, true, false}, // the operator's default
		{"x", "openai/no-such-model", "permanent unknown_model", agent.CodeUnknownModel, false, true},
		{"stop=refusal", "openai", "ok", agent.CodeRefused, false, true},
		{"stop=tool", "openai", "ok", agent.CodeInvalidToolCall, true, false},
		{"out= stop=length", "openai", "ok", agent.CodeNoOutput, false, false},
	} {
		t.Run(c.prompt, func(t *testing.T) {
			l, r, err := w.run(t.Context(), c.model, c.prompt)
			code(t, err, c.code, c.retryable, c.billable)
			check(t, l, "begin 1.1 openai", "end 1.1 "+c.history)
			if r.Usage.ProviderCalls != 1 {
				t.Errorf("%+v", r.Usage)
			}
		})
	}
	l, _, err := w.run(t.Context(), "mistral/large", "x")
	code(t, err, agent.CodeUnknownModel, false, true)
	check(t, l)
	l, _, err = w.run(t.Context(), "", " \n")
	code(t, err, agent.CodeInvalidRequest, false, true)
	check(t, l)
}

func TestGivesUpAfterSomeTries(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cfg.MaxTries = 3
	l, r, err := w.run(t.Context(), "openai", "status=503")
	code(t, err, agent.CodeProviderError, true, false)
	if len(l.history) != 6 || r.Usage.ProviderCalls != 3 || w.openai.Stats().Calls != 3 {
		t.Errorf("%v %+v", l.history, r.Usage)
	}
	var e *provider.Error
	if !errors.As(err, &e) || e.Status != 503 {
		t.Errorf("the cause is lost: %v", err)
	}
}

func TestFallsBackOnAnOutage(t *testing.T) {
	t.Parallel()
	dead := httptest.NewServer(nil)
	dead.Close()
	t.Run("unreachable: at once", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.route(t, provider.Config{
			Anthropic: provider.Options{APIKey: key, BaseURL: dead.URL},
			OpenAI:    provider.Options{APIKey: key, BaseURL: w.urls["openai"] + "/v1"},
		})
		l, r, err := w.run(t.Context(), "auto", "out=hello stop=length")
		if err != nil || !strings.HasPrefix(r.Output, "hello") {
			t.Fatal(err)
		}
		check(t, l, "begin 1.1 anthropic", "end 1.1 transient provider_unreachable", "begin 1.2 openai", "end 1.2 ok",
			"begin 2.1 openai", "end 2.1 ok") // and stays there
	})
	t.Run("credentials: at once", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.route(t, provider.Config{
			Anthropic: provider.Options{APIKey: "bad-key", BaseURL: w.urls["anthropic"]},
			OpenAI:    provider.Options{APIKey: key, BaseURL: w.urls["openai"] + "/v1"},
		})
		l, _, err := w.run(t.Context(), "auto", "x")
		if err != nil {
			t.Fatal(err)
		}
		check(t, l, "begin 1.1 anthropic", "end 1.1 permanent provider_auth", "begin 1.2 openai", "end 1.2 ok")
	})
	t.Run("transient: when its tries are used up", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.cfg.MaxTries = 2
		l, _, err := w.run(t.Context(), "auto", "fail=500:2 retry_after=0s out=x")
		if err == nil { // the second stand-in has its own count and fails twice as well
			t.Fatal("no error")
		}
		check(t, l, "begin 1.1 anthropic", "end 1.1 transient provider_failed", "begin 1.2 anthropic", "end 1.2 transient provider_failed",
			"begin 1.3 openai", "end 1.3 transient provider_failed", "begin 1.4 openai", "end 1.4 transient provider_failed")
		code(t, err, agent.CodeProviderError, true, false)
	})
	t.Run("a long Retry-After: at once", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // the second one says the same, and nobody waits an hour
		defer cancel()
		l, _, _ := w.run(ctx, "auto", "fail=429:1 retry_after=1h")
		if len(l.history) < 3 || l.history[2] != "begin 1.2 openai" {
			t.Errorf("%v", l.history)
		}
	})
	t.Run("not for one provider alone", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.route(t, provider.Config{
			Anthropic: provider.Options{APIKey: key, BaseURL: dead.URL},
			OpenAI:    provider.Options{APIKey: key, BaseURL: w.urls["openai"] + "/v1"},
		})
		w.cfg.MaxTries = 2
		l, _, err := w.run(t.Context(), "anthropic", "x")
		code(t, err, agent.CodeProviderError, true, false)
		if len(l.history) != 4 || w.openai.Stats().Calls != 0 {
			t.Errorf("%v", l.history)
		}
	})
	t.Run("not for a refused request", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		_, _, err := w.run(t.Context(), "auto", "status=400")
		code(t, err, agent.CodeInvalidRequest, false, true)
		if w.openai.Stats().Calls != 0 {
			t.Error("asked the second provider")
		}
	})
}

func TestHonoursRetryAfter(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	start := time.Now()
	l, _, err := w.run(t.Context(), "openai", "fail=429:1 retry_after=300ms")
	if err != nil || time.Since(start) < 300*time.Millisecond {
		t.Errorf("%v after %s", err, time.Since(start))
	}
	check(t, l, "begin 1.1 openai", "end 1.1 transient rate_limited", "begin 1.2 openai", "end 1.2 ok")
}

func TestDoesNotWaitPastTheDeadline(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	l, _, err := w.run(ctx, "openai", "status=429 retry_after=2h")
	code(t, err, agent.CodeProviderError, true, false)
	check(t, l, "begin 1.1 openai", "end 1.1 transient rate_limited")
	if ctx.Err() != nil {
		t.Error("the time was burnt")
	}
}

func TestEndsAtTheDeadline(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	l, r, err := w.run(ctx, "anthropic", "sleep=1h")
	code(t, err, agent.CodeTimeout, true, true)
	check(t, l, "begin 1.1 anthropic", "end 1.1 canceled timeout")
	if !errors.Is(err, context.DeadlineExceeded) || r.Usage.InputTokens == 0 || !l.ends[0].Estimated || l.ends[0].LatencyMS < 50 {
		t.Errorf("%v %+v %+v", err, r.Usage, l.ends[0])
	}
}

func TestEndsWhenCanceled(t *testing.T) {
	t.Parallel()
	cause := errors.New("the customer wants it no more")
	for _, c := range []struct {
		name, prompt string
		cause        error
		code, end    string
		billable     bool
	}{
		{"in a call", "sleep=1h", cause, agent.CodeCanceled, "canceled canceled", true},
		{"in a wait", "status=429 retry_after=1h", cause, agent.CodeCanceled, "transient rate_limited", true},
		{"because the lease is lost", "sleep=1h", fmt.Errorf("beat: %w", agent.ErrLeaseLost), agent.CodeLeaseLost, "canceled lease_lost", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			l := &ledger{}
			if strings.HasPrefix(c.prompt, "sleep") {
				go func() {
					for w.openai.Stats().Calls == 0 {
						time.Sleep(time.Millisecond)
					}
					cancel(c.cause)
				}()
			} else {
				l.end = func() error { cancel(c.cause); return nil } // between the calls
			}
			_, err := agent.Run(ctx, w.cfg, agent.Task{Prompt: c.prompt, Model: "openai"}, l)
			code(t, err, c.code, false, c.billable)
			if !errors.Is(err, c.cause) {
				t.Errorf("the cause is lost: %v", err)
			}
			check(t, l, "begin 1.1 openai", "end 1.1 "+c.end)
		})
	}
}
