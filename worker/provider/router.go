package provider

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/generic-corp/muster/store"
)

// ErrNoProvider: nothing is configured, so no task could run.
var ErrNoProvider = errors.New("no model provider is configured: set ANTHROPIC_API_KEY, OPENAI_API_KEY, or OPENAI_BASE_URL for a server without keys")

// Auto is the model name that leaves the choice to the router; so does "".
const Auto = "auto"

// Models used where none is named and the operator has set no other.
const (
	DefaultAnthropicModel = "claude-sonnet-5-5"
	DefaultOpenAIModel    = "gpt-6.1-sol"
)

// Options is one provider's configuration.
type Options struct {
	APIKey  string
	BaseURL string        // "" means the service's own
	Model   string        // used where a request names none; "" means the Default…Model
	Timeout time.Duration // of one call; 0 means 290 s
}

// Config is what the operator has configured. A provider is configured when it has a key; openai also when it has a
// base URL.
type Config struct {
	Anthropic Options
	OpenAI    Options
	Order     []string // of auto; nil means anthropic, openai. Names that are not configured are passed over.
}

// Target is one provider and the model to ask it for.
type Target struct {
	Provider Provider
	Model    string
}

// Router knows the configured providers. It is immutable.
type Router struct{ targets []Target }

// New builds the configured providers and their router. It reports all mistakes at once, and ErrNoProvider when
// nothing is configured.
func New(c Config) (*Router, error) {
	var (
		mistakes []error
		targets  []Target
	)
	order := c.Order
	if order == nil {
		order = []string{NameAnthropic, NameOpenAI}
	}
	for _, name := range order {
		if name != NameAnthropic && name != NameOpenAI {
			mistakes = append(mistakes, fmt.Errorf("provider order: %q is not one of %s, %s", name, NameAnthropic, NameOpenAI))
		}
	}
	add := func(name, model, fallback string, p Provider, err error) {
		if err != nil {
			mistakes = append(mistakes, err)
			return
		}
		if model == "" {
			model = fallback
		}
		if !validModel(model) {
			mistakes = append(mistakes, fmt.Errorf("%s model: %q is not a model name", name, model))
			return
		}
		targets = append(targets, Target{p, model})
	}
	if c.Anthropic.APIKey != "" {
		p, err := NewAnthropic(c.Anthropic)
		add(NameAnthropic, c.Anthropic.Model, DefaultAnthropicModel, p, err)
	}
	if c.OpenAI.APIKey != "" || c.OpenAI.BaseURL != "" {
		p, err := NewOpenAI(c.OpenAI)
		add(NameOpenAI, c.OpenAI.Model, DefaultOpenAIModel, p, err)
	}
	if len(mistakes) > 0 {
		return nil, errors.Join(mistakes...)
	}
	rank := func(t Target) int {
		if i := slices.Index(order, t.Provider.Name()); i >= 0 {
			return i
		}
		return len(order)
	}
	slices.SortStableFunc(targets, func(a, b Target) int { return rank(a) - rank(b) })
	return NewRouter(targets...)
}

// NewRouter routes among targets, in this order for auto; each Target's Model is its provider's default.
func NewRouter(targets ...Target) (*Router, error) {
	if len(targets) == 0 {
		return nil, ErrNoProvider
	}
	for i, t := range targets {
		if slices.ContainsFunc(targets[:i], func(u Target) bool { return u.Provider.Name() == t.Provider.Name() }) {
			return nil, fmt.Errorf("provider %s is configured twice", t.Provider.Name())
		}
	}
	return &Router{slices.Clone(targets)}, nil
}

// Targets returns the configured providers with their default models, in the order of auto.
func (r *Router) Targets() []Target { return slices.Clone(r.targets) }

// Route returns the targets to try for a model, in order, at least one: all of them for auto, one for a provider's
// name or for "provider/model". Only models that allowed has (as store.Plan.Models; empty: all) are among them: where a
// provider's default is not, the first of its models that allowed names takes its place. Its error is a permanent *Error
// with CodeUnknownModel or CodeModelNotAllowed.
func (r *Router) Route(model string, allowed []string) ([]Target, error) {
	if model == "" || model == Auto {
		return among(r.targets, allowed)
	}
	name, exact, named := strings.Cut(model, "/")
	for _, t := range r.targets {
		if t.Provider.Name() != name {
			continue
		}
		if !named {
			return among([]Target{t}, allowed)
		}
		if !store.AllowsModel(allowed, model) {
			return nil, notAllowed(allowed)
		}
		if validModel(exact) {
			return []Target{{t.Provider, exact}}, nil
		}
	}
	return nil, &Error{Kind: Permanent, Code: CodeUnknownModel,
		Message: fmt.Sprintf("the model %q is not available: use %s", clean(model, ""), r.choices())}
}

// among makes the targets of providers: each with its default model, or the first that allowed names.
func among(targets []Target, allowed []string) ([]Target, error) {
	var fit []Target
	for _, t := range targets {
		prefix := t.Provider.Name() + "/"
		if store.AllowsModel(allowed, prefix+t.Model) {
			fit = append(fit, t)
			continue
		}
		for _, pattern := range allowed {
			if name, ours := strings.CutPrefix(pattern, prefix); ours && !strings.HasSuffix(name, "*") {
				fit = append(fit, Target{t.Provider, name})
				break
			}
		}
	}
	if len(fit) == 0 {
		return nil, notAllowed(allowed)
	}
	return fit, nil
}

func notAllowed(allowed []string) error {
	return &Error{Kind: Permanent, Code: CodeModelNotAllowed, Message: "the workspace's plan does not allow this model; it allows " + strings.Join(allowed, ", ")}
}

func (r *Router) choices() string {
	out := []string{`"auto"`}
	for _, t := range r.targets {
		out = append(out, fmt.Sprintf("%q", t.Provider.Name()), fmt.Sprintf("%q", t.Provider.Name()+"/MODEL"))
	}
	return strings.Join(out, ", ")
}

// validModel: 1..200 printable ASCII characters without spaces.
func validModel(s string) bool {
	return s != "" && len(s) <= 200 && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}
