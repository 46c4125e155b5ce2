// Package agent runs one attempt of a task: it builds the conversation from the agent's instructions, the input and the
// prompt, and calls the model until it is done or the context ends.
//
// The worker calls Run and keeps the time; package provider makes the single calls; the Recorder, which the worker
// brings, is the ledger. The promise: no provider call goes out before the ledger holds its row, every row that was
// begun is ended (or the end's failure is told), and whatever the model says can be stored.
package agent

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/generic-corp/muster/worker/provider"
)

// Defaults and bounds.
const (
	DefaultMaxSteps = 8       // calls that go on where the last one was cut off by its token limit, the first included
	DefaultMaxTries = 6       // of one step at one provider
	MaxOutput       = 1 << 20 // bytes of Result.Output

	defaultBackoff    = 500 * time.Millisecond
	defaultMaxBackoff = 8 * time.Second
)

// Router says where a model can be asked for; *provider.Router is one.
type Router interface {
	Route(model string, allowed []string) ([]provider.Target, error)
}

// Prices says what calls cost; *provider.Prices is one.
type Prices interface {
	Cost(providerName, model string, u provider.Usage, at time.Time) (microUSD int64, known bool)
	Ceiling(providerName string, r provider.Request, at time.Time) (microUSD int64)
}

// Config is the same for all tasks of a worker. Router and Prices are required.
type Config struct {
	Router     Router
	Prices     Prices
	MaxSteps   int           // 0 means DefaultMaxSteps
	MaxTries   int           // 0 means DefaultMaxTries
	MaxTokens  int64         // of output per call; 0 means provider.DefaultMaxTokens
	Backoff    time.Duration // before the second try, doubled for each further one; 0 means 500 ms
	MaxBackoff time.Duration // its limit, and the longest Retry-After that is waited for while another provider is left; 0 means 8 s
}

// Task is what one attempt needs to know.
type Task struct {
	Instructions string          // the agent's; "" for none
	Prompt       string          // must not be blank
	Input        json.RawMessage // shown before the prompt unless it is empty, null or {}
	Model        string          // as provider.Router takes it; "" means auto
	Models       []string        // that it may run on, as store.Plan.Models; empty: all
}

// Usage is what an attempt used, failed calls included. The token counts are disjoint.
type Usage struct {
	ProviderCalls    int64
	InputTokens      int64
	OutputTokens     int64
	CacheReadTokens  int64
	CacheWriteTokens int64
	CostMicroUSD     int64
}

// Add sums two usages.
func (u Usage) Add(v Usage) Usage {
	return Usage{ProviderCalls: u.ProviderCalls + v.ProviderCalls, InputTokens: u.InputTokens + v.InputTokens, OutputTokens: u.OutputTokens + v.OutputTokens,
		CacheReadTokens: u.CacheReadTokens + v.CacheReadTokens, CacheWriteTokens: u.CacheWriteTokens + v.CacheWriteTokens, CostMicroUSD: u.CostMicroUSD + v.CostMicroUSD}
}

// Result is what an attempt brought. On an error Usage is right all the same, and Output is what had been written.
type Result struct {
	Output    string          // valid UTF-8 without NUL, at most MaxOutput bytes
	Data      json.RawMessage // the output, when all of it is one JSON object that jsonb takes; else nil
	Truncated bool            // the model would have written more
	Usage     Usage
	RecordErr error // ends of calls that the Recorder did not take; the ledger's sweep closes those at their ceiling
}

// continuation asks for the rest. Assistant text at the end of a conversation would say it too, but newer models
// refuse that.
const continuation = "Continue exactly where you stopped. Repeat nothing, explain nothing."

// Run runs one attempt until the model is done or ctx ends; ctx's deadline is the attempt's. Its error is an *Error.
// It returns only after the last call has returned, and starts nothing that outlives it.
func Run(ctx context.Context, c Config, t Task, rec Recorder) (Result, error) {
	s := &session{Config: c.withDefaults(), rec: rec, exact: strings.Contains(t.Model, "/")}
	text, truncated, err := s.run(ctx, t)
	r := Result{Truncated: truncated, Usage: s.usage, RecordErr: errors.Join(s.recordErrs...)}
	var cut bool
	if r.Output, cut = storable(text); cut {
		r.Truncated = true
	}
	if err != nil {
		return r, err
	}
	r.Data = object(r.Output)
	return r, nil
}

func (c Config) withDefaults() Config {
	if c.MaxSteps == 0 {
		c.MaxSteps = DefaultMaxSteps
	}
	if c.MaxTries == 0 {
		c.MaxTries = DefaultMaxTries
	}
	if c.Backoff == 0 {
		c.Backoff = defaultBackoff
	}
	if c.MaxBackoff == 0 {
		c.MaxBackoff = defaultMaxBackoff
	}
	return c
}

// run returns the model's text as it came.
func (s *session) run(ctx context.Context, t Task) (text string, truncated bool, err error) {
	if strings.TrimSpace(t.Prompt) == "" {
		return "", false, &Error{Code: CodeInvalidRequest, Message: "the prompt is empty", Billable: true}
	}
	if s.targets, err = s.Router.Route(t.Model, t.Models); err != nil {
		return "", false, s.failed(err)
	}
	first := provider.Message{Role: provider.RoleUser, Content: userMessage(t)}
	messages := []provider.Message{first}
	var out strings.Builder
	for step := 1; ; step++ {
		res, err := s.step(ctx, step, provider.Request{System: t.Instructions, Messages: messages, MaxTokens: s.MaxTokens})
		if err != nil {
			return out.String(), false, err
		}
		out.WriteString(res.Text)
		switch res.StopReason {
		case provider.StopTool:
			return out.String(), false, &Error{Code: CodeInvalidToolCall, Message: "the model asked for a tool that it was not given", Retryable: true}
		case provider.StopRefused:
			return out.String(), false, &Error{Code: CodeRefused, Message: "the model declined the request", Billable: true}
		case provider.StopContext:
			return out.String(), true, nil
		case provider.StopLength:
			if strings.TrimSpace(out.String()) == "" {
				return "", false, &Error{Code: CodeNoOutput, Message: "the model used up its tokens without writing an answer"}
			}
			if step >= s.MaxSteps || out.Len() > MaxOutput {
				return out.String(), true, nil
			}
			so, _ := storable(out.String())
			messages = []provider.Message{first, {Role: provider.RoleAssistant, Content: so}, {Role: provider.RoleUser, Content: continuation}}
		default:
			return out.String(), false, nil
		}
	}
}

// userMessage ends with the prompt, whatever the input.
func userMessage(t Task) string {
	in := strings.TrimSpace(string(t.Input))
	if in == "" || in == "null" || strings.Join(strings.Fields(in), "") == "{}" {
		return t.Prompt
	}
	return "<input>\n" + in + "\n</input>\n\n" + t.Prompt
}
