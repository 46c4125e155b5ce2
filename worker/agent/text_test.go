package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/worker/provider"
)

func TestMakesTextStorable(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("é", MaxOutput)
	for _, c := range []struct {
		name, in string
		want     string
		cut      bool
	}{
		{"plain", "héllo", "héllo", false},
		{"NUL", "a\x00b", "a\uFFFDb", false},
		{"invalid UTF-8", "a\xff\xfeb", "a\uFFFDb", false},
		{"exactly the limit", long[:MaxOutput], long[:MaxOutput], false},
		{"too long, cut at a rune", "x" + long, "x" + long[:MaxOutput-2], true},
		{"grows beyond the limit", strings.Repeat("\x00", MaxOutput), strings.Repeat("\uFFFD", MaxOutput/3), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, cut := storable(c.in)
			if got != c.want || cut != c.cut || !utf8.ValidString(got) || len(got) > MaxOutput {
				t.Errorf("%d bytes, cut=%v", len(got), cut)
			}
		})
	}
}

func TestTakesAnObjectForData(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, in, want string }{
		{"an object", " {\"b\": [1, {\"c\": null}], \"a\": \"<x>\"}\n", `{"a":"<x>","b":[1,{"c":null}]}`},
		{"big integers stay exact", `{"n":12345678901234567890123}`, `{"n":12345678901234567890123}`},
		{"escaped NUL", `{"a\u0000":"b\u0000"}`, "{\"a\uFFFD\":\"b\uFFFD\"}"},
		{"lone surrogate", `{"a":"\ud800x"}`, "{\"a\":\"\uFFFDx\"}"},
		{"a number beyond numeric", `{"n":1e999999}`, ""},
		{"too deep", `{"a":` + strings.Repeat("[", 200) + strings.Repeat("]", 200) + `}`, ""},
		{"an array", `[1]`, ""},
		{"text around it", `Here: {"a":1}`, ""},
		{"two objects", `{"a":1}{"b":2}`, ""},
		{"half an object", `{"a":`, ""},
		{"text", "hello", ""},
		{"nothing", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := object(c.in); string(got) != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func TestBacksOff(t *testing.T) {
	t.Parallel()
	s := &session{Config: Config{}.withDefaults(), targets: make([]provider.Target, 1)}
	for tries, most := range map[int]time.Duration{1: 500 * time.Millisecond, 2: time.Second, 3: 2 * time.Second, 5: 8 * time.Second} {
		for range 50 {
			pause, again := s.again(t.Context(), &provider.Error{Kind: provider.Transient}, tries)
			if !again || pause < most/2 || pause > most {
				t.Fatalf("try %d: %s %v", tries, pause, again)
			}
		}
	}
	if _, again := s.again(t.Context(), &provider.Error{Kind: provider.Transient}, DefaultMaxTries); again {
		t.Error("one try too many")
	}
	if pause, _ := s.again(t.Context(), &provider.Error{Kind: provider.Transient, RetryAfter: time.Minute}, 1); pause < time.Minute {
		t.Errorf("asked again after %s instead of a minute", pause)
	}
}

// scripted is a provider in memory: it gives its answers in turn, the last one for ever.
type scripted struct {
	answers  []provider.Response
	requests []provider.Request // the first 16
	calls    int
}

func (p *scripted) Name() string { return "memory" }

func (p *scripted) Complete(_ context.Context, r provider.Request) (provider.Response, error) {
	p.calls++
	if p.calls <= 16 {
		p.requests = append(p.requests, r)
	}
	return p.answers[min(p.calls, len(p.answers))-1], nil
}

type noLedger struct{}

func (noLedger) Begin(context.Context, CallStart) error                { return nil }
func (noLedger) End(ctx context.Context, _ uuid.UUID, _ CallEnd) error { return ctx.Err() }

func inMemory(t testing.TB, answers ...provider.Response) (*scripted, Config) {
	t.Helper()
	p := &scripted{answers: answers}
	router, err := provider.NewRouter(provider.Target{Provider: p, Model: "m"})
	if err != nil {
		t.Fatal(err)
	}
	prices, err := provider.LoadPrices("")
	if err != nil {
		t.Fatal(err)
	}
	return p, Config{Router: router, Prices: prices}
}

func TestBoundsTheSteps(t *testing.T) {
	t.Parallel()
	p, cfg := inMemory(t, provider.Response{Text: "ab\x00", StopReason: provider.StopLength})
	r, err := Run(t.Context(), cfg, Task{Prompt: "go"}, noLedger{})
	if err != nil || !r.Truncated || r.Output != strings.Repeat("ab\uFFFD", 8) || len(p.requests) != DefaultMaxSteps {
		t.Errorf("%+v %v after %d", r, err, len(p.requests))
	}
	last := p.requests[7].Messages
	want := []provider.Message{{Role: provider.RoleUser, Content: "go"}, {Role: provider.RoleAssistant, Content: strings.Repeat("ab\uFFFD", 7)}, {Role: provider.RoleUser, Content: continuation}}
	if fmt.Sprint(last) != fmt.Sprint(want) {
		t.Errorf("%+v", last)
	}

	p, cfg = inMemory(t, provider.Response{Text: strings.Repeat("x", MaxOutput), StopReason: provider.StopLength})
	r, err = Run(t.Context(), cfg, Task{Prompt: "go"}, noLedger{})
	if err != nil || !r.Truncated || len(r.Output) != MaxOutput || len(p.requests) != 2 {
		t.Errorf("%d bytes, %v, %d calls", len(r.Output), err, len(p.requests))
	}

	p, cfg = inMemory(t, provider.Response{Text: "full", StopReason: provider.StopContext})
	if r, err = Run(t.Context(), cfg, Task{Prompt: "go"}, noLedger{}); err != nil || !r.Truncated || len(p.requests) != 1 {
		t.Errorf("%+v %v", r, err)
	}
}

func TestJoinsAnObjectOverSteps(t *testing.T) {
	t.Parallel()
	_, cfg := inMemory(t, provider.Response{Text: `{"a":`, StopReason: provider.StopLength}, provider.Response{Text: `1}`, StopReason: provider.StopEnd})
	r, err := Run(t.Context(), cfg, Task{Prompt: "go", Input: json.RawMessage(`{"x":1}`)}, noLedger{})
	if err != nil || string(r.Data) != `{"a":1}` || r.Usage.ProviderCalls != 2 {
		t.Errorf("%+v %v", r, err)
	}
}

func TestMarksAnUnknownPriceAsEstimated(t *testing.T) {
	t.Parallel()
	s := &session{}
	_, s.Config = inMemory(t, provider.Response{})
	u := provider.Usage{InputTokens: 1_000_000}
	c := CallEnd{Usage: u}
	if s.price(&c, provider.NameOpenAI, "my-alias", "something-else", time.Now()); !c.Estimated || c.CostMicroUSD != 10_000_000 {
		t.Errorf("%+v", c)
	}
	c = CallEnd{Usage: u}
	if s.price(&c, provider.NameOpenAI, "my-alias", "gpt-4o-2024-08-06", time.Now()); c.Estimated || c.CostMicroUSD != 2_500_000 {
		t.Errorf("the model that answered has a price: %+v", c)
	}
}

func BenchmarkRun(b *testing.B) {
	_, cfg := inMemory(b, provider.Response{Text: "hello", StopReason: provider.StopEnd, Usage: provider.Usage{InputTokens: 10, OutputTokens: 5}})
	for b.Loop() {
		if _, err := Run(b.Context(), cfg, Task{Prompt: "go"}, noLedger{}); err != nil {
			b.Fatal(err)
		}
	}
}
