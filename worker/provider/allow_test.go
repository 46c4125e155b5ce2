package provider_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/worker/provider"
)

func TestRoutesStayAmongTheAllowedModels(t *testing.T) {
	t.Parallel()
	router, err := provider.New(provider.Config{Anthropic: provider.Options{APIKey: "a"}, OpenAI: provider.Options{APIKey: "o", Model: "dear"}})
	if err != nil {
		t.Fatal(err)
	}
	const sonnet = "anthropic:" + provider.DefaultAnthropicModel
	for _, c := range []struct {
		name    string
		allowed []string
		model   string
		want    string // "" for model_not_allowed
	}{
		{"no list allows all", nil, "auto", sonnet + " openai:dear"},
		{"auto takes the first allowed of each provider", []string{"openai/cheap", "openai/cheaper", "anthropic/small"}, "auto", "anthropic:small openai:cheap"},
		{"auto keeps a default that is allowed", []string{"openai/cheap", "openai/dear"}, "auto", "openai:dear"},
		{"a pattern allows a default", []string{"openai/d*"}, "auto", "openai:dear"},
		{"a pattern names no model to take", []string{"openai/x*"}, "auto", ""},
		{"a provider", []string{"openai/cheap"}, "openai", "openai:cheap"},
		{"a provider without an allowed model", []string{"openai/cheap"}, "anthropic", ""},
		{"an exact model", []string{"openai/cheap"}, "openai/cheap", "openai:cheap"},
		{"an exact model that is not allowed", []string{"openai/cheap"}, "openai/cheap-2", ""},
		{"an exact model by a pattern", []string{"openai/cheap*"}, "openai/cheap-2", "openai:cheap-2"},
		{"another provider's model of that name", []string{"openai/cheap"}, "anthropic/cheap", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			targets, err := router.Route(c.model, c.allowed)
			var got []string
			for _, x := range targets {
				got = append(got, x.Provider.Name()+":"+x.Model)
			}
			if s := strings.Join(got, " "); s != c.want {
				t.Errorf("got %q, want %q", s, c.want)
			}
			var e *provider.Error
			if c.want == "" && (!errors.As(err, &e) || e.Code != provider.CodeModelNotAllowed || e.Kind != provider.Permanent || e.FallsBack()) {
				t.Errorf("%v", err)
			}
		})
	}
}

// TestFreeModelsAreTheCheapOnes: what the first plan allows costs at most $2.50 per million output tokens, long prompts
// included, and there is one of each provider, so that auto finds a model wherever a provider is configured.
func TestFreeModelsAreTheCheapOnes(t *testing.T) {
	t.Parallel()
	prices, err := provider.LoadPrices("")
	if err != nil {
		t.Fatal(err)
	}
	providers := map[string]bool{}
	for _, model := range store.Plans[0].Models {
		name, exact, _ := strings.Cut(model, "/")
		providers[name] = true
		cost, known := prices.Cost(name, exact, provider.Usage{OutputTokens: 1_000_000}, time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC))
		if !known || cost > 2_500_000 {
			t.Errorf("%s: known %v, %d micro-dollars per million output tokens", model, known, cost)
		}
	}
	if !providers[provider.NameAnthropic] || !providers[provider.NameOpenAI] {
		t.Errorf("providers %v", providers)
	}
	if err := store.CheckModels(store.Plans[0].Models); err != nil {
		t.Error(err)
	}
}
