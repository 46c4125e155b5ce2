package provider

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func day(s string) time.Time {
	t, err := time.Parse(time.DateOnly, s)
	if err != nil {
		panic(err)
	}
	return t
}

func TestPricesUsage(t *testing.T) {
	t.Parallel()
	p, err := LoadPrices("")
	if err != nil {
		t.Fatal(err)
	}
	const million = 1_000_000
	for _, c := range []struct {
		name, provider, model string
		at                    string
		u                     Usage
		want                  int64
		known                 bool
	}{
		{"each kind at its rate", "anthropic", "claude-opus-5", "2026-11-01", Usage{million, million, million, million, false}, 5e6 + 25e6 + 5e5 + 6.25e6, true},
		{"one token rounds up", "openai", "gpt-6-luna", "2026-11-01", Usage{InputTokens: 1}, 1, true},
		{"nothing costs nothing", "openai", "gpt-6-luna", "2026-11-01", Usage{}, 0, true},
		{"rounded once, not per kind", "openai", "gpt-6-luna", "2026-11-01", Usage{InputTokens: 5, OutputTokens: 1}, 1, true},
		{"exact stays exact", "openai", "gpt-6.1-sol", "2026-11-01", Usage{InputTokens: 500, OutputTokens: 100}, 2000, true},
		{"before a price change", "anthropic", "claude-sonnet-5-5", "2026-10-06", Usage{CacheReadTokens: million}, 200_000, true},
		{"on its day", "anthropic", "claude-sonnet-5-5", "2026-10-07", Usage{CacheReadTokens: million}, 100_000, true},
		{"before the first row", "anthropic", "claude-sonnet-5-5", "2020-01-01", Usage{CacheReadTokens: million}, 200_000, true},
		{"dated model", "openai", "gpt-4o-2024-08-06", "2026-11-01", Usage{InputTokens: million}, 2_500_000, true},
		{"dated model, compact", "anthropic", "claude-haiku-4-5-20251001", "2026-11-01", Usage{InputTokens: million}, 1_000_000, true},
		{"a longer name is another model", "openai", "gpt-5-pro", "2026-11-01", Usage{InputTokens: million}, 10_000_000, false},
		{"another provider's model", "openai", "claude-opus-5", "2026-11-01", Usage{OutputTokens: million}, 50_000_000, false},
		{"at the long prompt's edge", "anthropic", "claude-haiku-5-5", "2026-11-01", Usage{InputTokens: 100_000}, 10_000, true},
		{"above it, cache included", "anthropic", "claude-haiku-5-5", "2026-11-01", Usage{InputTokens: 1, CacheReadTokens: 100_000}, 5001, true},
		{"negative counts are nothing", "openai", "gpt-6-luna", "2026-11-01", Usage{InputTokens: -5, OutputTokens: -1}, 0, true},
		{"absurd counts do not overflow", "openai", "nobody-knows", "2026-11-01", Usage{1 << 62, 1 << 62, 1 << 62, 1 << 62, false}, 1000 * (10e6 + 50e6 + 10e6 + 12.5e6), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, known := p.Cost(c.provider, c.model, c.u, day(c.at))
			if got != c.want || known != c.known {
				t.Errorf("got %d known=%v, want %d known=%v", got, known, c.want, c.known)
			}
		})
	}
}

func TestKnowsTheDefaultModels(t *testing.T) {
	t.Parallel()
	p, err := LoadPrices("")
	if err != nil {
		t.Fatal(err)
	}
	for name, model := range map[string]string{NameAnthropic: DefaultAnthropicModel, NameOpenAI: DefaultOpenAIModel} {
		if _, known := p.Cost(name, model, Usage{}, time.Now()); !known {
			t.Errorf("no price for %s/%s", name, model)
		}
	}
}

func TestCeilingIsAboveTheCost(t *testing.T) {
	t.Parallel()
	p, err := LoadPrices("")
	if err != nil {
		t.Fatal(err)
	}
	r := Request{Model: "claude-opus-5", MaxTokens: 1000, Messages: []Message{{RoleUser, strings.Repeat("word ", 400)}}}
	cost, _ := p.Cost(NameAnthropic, r.Model, Usage{CacheWriteTokens: r.EstimateInput(), OutputTokens: 1000}, time.Now())
	if c := p.Ceiling(NameAnthropic, r, time.Now()); c <= cost || c > 2*cost {
		t.Errorf("ceiling %d, cost %d", c, cost)
	}
}

// Whatever a provider may truthfully report for a request, in any of the table's models, costs no more than its ceiling.
func TestNoTruthfulUsageCostsMoreThanTheCeiling(t *testing.T) {
	t.Parallel()
	p, err := LoadPrices("")
	if err != nil {
		t.Fatal(err)
	}
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	highest := 0.0
	for range 50_000 {
		row := p.embedded[random.IntN(len(p.embedded))]
		r := Request{Model: row.Model, System: strings.Repeat("s", random.IntN(300)), MaxTokens: int64(1 + random.IntN(20_000))}
		for range 1 + random.IntN(5) {
			r.Messages = append(r.Messages, Message{RoleUser, strings.Repeat("é", random.IntN(1<<random.IntN(19)))})
		}
		asked := r
		if random.IntN(4) == 0 {
			asked.Model = "an-alias" // without a price: that of whatever answers is taken
		}
		// Each byte a token, and the marks; each token in one of three kinds.
		in := random.Int64N(r.maxInput() + 1)
		read := random.Int64N(in + 1)
		u := Usage{CacheReadTokens: read, CacheWriteTokens: random.Int64N(in - read + 1), OutputTokens: random.Int64N(r.MaxTokens + 1)}
		u.InputTokens = in - read - u.CacheWriteTokens
		at := row.from.Add(time.Duration(random.IntN(500)-100) * 24 * time.Hour)
		ceiling := p.Ceiling(row.Provider, asked, at)
		for _, model := range []string{asked.Model, r.Model} {
			cost, _ := p.Cost(row.Provider, model, u, at)
			if cost > ceiling {
				t.Fatalf("%s at %s: %+v costs %d, above the ceiling %d (seed %d)", model, at.Format(time.DateOnly), u, cost, ceiling, seed)
			}
			highest = max(highest, float64(cost)/float64(ceiling))
		}
	}
	if highest < 0.8 {
		t.Errorf("the dearest usage reached %.2f of its ceiling: the walk proved little", highest)
	}
}

func TestOverridesPrices(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "prices.json")
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"default": {"input": 1000000, "output": 1000000, "cache_read": 0, "cache_write": 0}, "prices": [
		{"provider": "openai", "model": "*", "effective_from": "2026-01-01", "input": 0, "output": 0, "cache_read": 0, "cache_write": 0},
		{"provider": "openai", "model": "llama*", "effective_from": "2026-01-01", "input": 7, "output": 0, "cache_read": 0, "cache_write": 0},
		{"provider": "anthropic", "model": "claude-opus-5", "effective_from": "2027-01-01", "input": 1000000, "output": 0, "cache_read": 0, "cache_write": 0}]}`)
	p, err := LoadPrices(path)
	if err != nil {
		t.Fatal(err)
	}
	u := Usage{InputTokens: 1_000_000}
	for _, c := range []struct {
		name, provider, model, at string
		want                      int64
		known                     bool
	}{
		{"beats the embedded table", "openai", "gpt-6-sol", "2026-11-01", 0, true},
		{"the longest prefix wins", "openai", "llama-4", "2026-11-01", 7, true},
		{"not begun: the embedded price", "anthropic", "claude-opus-5", "2026-12-31", 5_000_000, true},
		{"begun", "anthropic", "claude-opus-5", "2027-01-01", 1_000_000, true},
		{"what it does not name stays", "anthropic", "claude-haiku-4-5", "2026-11-01", 1_000_000, true},
		{"its own default", "anthropic", "claude-9", "2026-11-01", 1_000_000, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got, known := p.Cost(c.provider, c.model, u, day(c.at)); got != c.want || known != c.known {
				t.Errorf("got %d known=%v", got, known)
			}
		})
	}

	write(`{"prices": [
		{"provider": "", "model": "a*b", "effective_from": "yesterday", "input": -1, "output": 0, "cache_read": 0},
		{"provider": "p", "model": "m", "effective_from": "2026-01-01", "input": 1, "output": 1, "cache_read": 1, "cache_write": 1},
		{"provider": "p", "model": "m", "effective_from": "2026-01-01", "input": 1, "output": 1, "cache_read": 1, "cache_write": 1,
		 "long_prompt": {"above_tokens": 0, "input": 2000000000, "output": 1, "cache_read": 1, "cache_write": 1}}]}`)
	_, err = LoadPrices(path)
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		path, "prices[0]: provider", "prices[0]: model", "prices[0]: effective_from", "prices[0]: input: must be 0..", "prices[0]: cache_write: missing",
		"prices[2]: the same provider", "prices[2].long_prompt: above_tokens", "prices[2].long_prompt: input",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in:\n%v", want, err)
		}
	}
	for _, bad := range []string{"", "[]", `{"pricez": []}`, `{} {}`} {
		write(bad)
		if _, err := LoadPrices(path); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
	if _, err := LoadPrices(path + ".missing"); err == nil {
		t.Error("a missing file was accepted")
	}
}
