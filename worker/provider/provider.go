// Package provider makes one call to a language model and says exactly what came of it.
//
// A Provider is one service: anthropic (the official SDK) or openai (any server that speaks OpenAI's chat completions:
// OpenAI itself, Ollama, vLLM, a gateway). The Router turns what a customer asked for ("auto", a provider, or
// "provider/model") into the targets to try, Prices turns tokens into micro-dollars. Package agent, the only caller,
// loops, retries and records.
//
// The promise: one Complete is at most one paid request. The SDKs' hidden retries are off, redirects are not followed,
// proxies from the environment are not used, a response body is bounded, and no error carries a key.
package provider

import (
	"context"
	"time"
)

// Names of the providers.
const (
	NameAnthropic = "anthropic"
	NameOpenAI    = "openai"
)

// DefaultMaxTokens is the output limit of a request that names none.
const DefaultMaxTokens = 8192

// Provider is one model service. Implementations are safe for concurrent use.
type Provider interface {
	// Name is the provider's name in routes, prices and records: "anthropic", "openai".
	Name() string
	// Complete makes at most one request. Its error is an *Error, or wraps ctx's error when ctx ended the call.
	// On an error Response.Usage is what the call probably cost all the same (Estimated); it is zero when the
	// provider cannot have charged for it.
	Complete(ctx context.Context, r Request) (Response, error)
}

// Role is who speaks in a Message.
type Role string

// The roles of a conversation; the system's words are Request.System.
const (
	RoleUser      Role = "user"
	RoleAssistant Role = "assistant"
)

// Message is one turn of a conversation. Content must not be empty.
type Message struct {
	Role    Role
	Content string
}

// Request is one call. Messages must begin and end with the user's.
type Request struct {
	Model     string // the provider's own name of it
	System    string // "" for none
	Messages  []Message
	MaxTokens int64 // of output, thinking included; 0 means DefaultMaxTokens
}

// StopReason is why the model stopped.
type StopReason string

// The reasons, the same for every provider.
const (
	StopEnd     StopReason = "end"     // it was done
	StopLength  StopReason = "length"  // MaxTokens were used up: it can be asked to go on
	StopContext StopReason = "context" // the model's context is full: it cannot
	StopTool    StopReason = "tool"    // it wants a tool
	StopRefused StopReason = "refused" // the model or the provider's filter declined
)

// Response is a call's answer.
type Response struct {
	Text       string // as the model wrote it: may hold anything, NUL included
	StopReason StopReason
	Model      string // the exact model that answered, where the provider says; else the one asked for
	Usage      Usage
	RequestID  string // the provider's, for its support; "" when it sent none
}

// Usage counts tokens. The four counts are disjoint, each token is in exactly one: Anthropic reports cache tokens
// beside the input, OpenAI as a part of it, and both are brought to this form.
type Usage struct {
	InputTokens      int64 // neither read from nor written to the cache
	OutputTokens     int64 // thinking included
	CacheReadTokens  int64
	CacheWriteTokens int64
	Estimated        bool // the provider did not say; computed from what was sent, received and waited
}

// Add sums two usages; the sum is estimated when a part is.
func (u Usage) Add(v Usage) Usage {
	return Usage{
		InputTokens: u.InputTokens + v.InputTokens, OutputTokens: u.OutputTokens + v.OutputTokens,
		CacheReadTokens: u.CacheReadTokens + v.CacheReadTokens, CacheWriteTokens: u.CacheWriteTokens + v.CacheWriteTokens,
		Estimated: u.Estimated || v.Estimated,
	}
}

func (u Usage) empty() bool {
	return u.InputTokens == 0 && u.OutputTokens == 0 && u.CacheReadTokens == 0 && u.CacheWriteTokens == 0
}

// What estimates are made of: about four bytes of text are a token, and a model writes about fifty tokens a second.
const (
	bytesPerToken   = 4
	tokensPerSecond = 50
	messageOverhead = 4 // tokens
)

// EstimateInput is about how many tokens the request's text has.
func (r Request) EstimateInput() int64 {
	n := tokens(len(r.System))
	for _, m := range r.Messages {
		n += tokens(len(m.Content)) + messageOverhead
	}
	return n
}

// What a request has at most beside its text, in tokens: the marks around it and around each message.
const (
	requestFraming = 64
	messageFraming = 16
)

// maxInput is the most tokens that the request's text can have. The tokens of these models stand for one byte or more.
func (r Request) maxInput() int64 {
	n := int64(requestFraming + len(r.System))
	for _, m := range r.Messages {
		n += int64(len(m.Content)) + messageFraming
	}
	return n
}

func (r Request) maxTokens() int64 {
	if r.MaxTokens > 0 {
		return r.MaxTokens
	}
	return DefaultMaxTokens
}

func tokens(bytes int) int64 { return (int64(bytes) + bytesPerToken - 1) / bytesPerToken }

// estimateLost is what a call probably cost whose answer was lost. An unstreamed answer shows nothing until it is
// whole, so while none of it had come the time waited has to do.
func estimateLost(r Request, received int, waited time.Duration) Usage {
	out := tokens(received)
	if received == 0 {
		out = int64(waited.Milliseconds()) * tokensPerSecond / 1000
	}
	return Usage{InputTokens: r.EstimateInput(), OutputTokens: min(out, r.maxTokens()), Estimated: true}
}
