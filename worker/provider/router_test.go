package provider_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/generic-corp/muster/worker/provider"
)

func TestRoutes(t *testing.T) {
	t.Parallel()
	both := provider.Config{Anthropic: provider.Options{APIKey: "a"}, OpenAI: provider.Options{APIKey: "o", Model: "my-gpt"}}
	swapped := both
	swapped.Order = []string{"openai", "anthropic"}
	local := provider.Config{OpenAI: provider.Options{BaseURL: "http://127.0.0.1:11434/v1"}}
	const sonnet = "anthropic:" + provider.DefaultAnthropicModel
	for _, c := range []struct {
		name   string
		config provider.Config
		model  string
		want   string // "" for unknown_model
	}{
		{"auto tries all in order", both, "auto", sonnet + " openai:my-gpt"},
		{"nothing is auto", both, "", sonnet + " openai:my-gpt"},
		{"the operator's order", swapped, "auto", "openai:my-gpt " + sonnet},
		{"a provider", both, "openai", "openai:my-gpt"},
		{"an exact model", both, "anthropic/claude-x", "anthropic:claude-x"},
		{"a model with slashes", both, "openai/meta/llama-4", "openai:meta/llama-4"},
		{"a local server", local, "auto", "openai:" + provider.DefaultOpenAIModel},
		{"a provider that is not configured", local, "anthropic", ""},
		{"an unknown provider", both, "mistral/large", ""},
		{"no model after the slash", both, "openai/", ""},
		{"a model with spaces", both, "openai/a b", ""},
		{"a bare model", both, "claude-opus-5", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := provider.New(c.config)
			if err != nil {
				t.Fatal(err)
			}
			targets, err := r.Route(c.model, nil)
			var got []string
			for _, x := range targets {
				got = append(got, x.Provider.Name()+":"+x.Model)
			}
			if s := strings.Join(got, " "); s != c.want {
				t.Errorf("got %q, want %q", s, c.want)
			}
			var e *provider.Error
			if c.want == "" && (!errors.As(err, &e) || e.Code != provider.CodeUnknownModel || e.Kind != provider.Permanent || e.FallsBack()) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestRefusesToStartWithoutAProvider(t *testing.T) {
	t.Parallel()
	if _, err := provider.New(provider.Config{}); !errors.Is(err, provider.ErrNoProvider) || !strings.Contains(err.Error(), "ANTHROPIC_API_KEY") {
		t.Error(err)
	}
}

func TestListsAllMistakesOfAConfiguration(t *testing.T) {
	t.Parallel()
	_, err := provider.New(provider.Config{
		Anthropic: provider.Options{APIKey: "top-secret", BaseURL: "ftp://x"},
		OpenAI:    provider.Options{BaseURL: "http://user:hunter2@host/v1"},
		Order:     []string{"openai", "mistral"},
	})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"anthropic base URL", "openai base URL", "mistral"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %v", want, err)
		}
	}
	if strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "top-secret") {
		t.Errorf("a secret in %v", err)
	}
	if _, err := provider.New(provider.Config{OpenAI: provider.Options{APIKey: "o", Model: "a b"}}); err == nil {
		t.Error("a model with a space was accepted")
	}
}
