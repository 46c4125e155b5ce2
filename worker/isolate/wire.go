package isolate

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/worker/agent"
	"github.com/generic-corp/muster/worker/provider"
)

// What the two processes say to each other, each message a JSON object behind its length. The child asks and the parent
// answers, each question by its number; beside that the parent sends the task and, once, that it must stop.

// maxMessage bounds a message in bytes, so that a child gone wild cannot fill its parent's memory. A conversation of
// agent.MaxOutput with a task's largest input fits several times.
const maxMessage = 32 << 20

// order is what the parent says.
type order struct {
	Task  *assignment `json:"task,omitempty"`
	Stop  string      `json:"stop,omitempty"` // one of the reasons below
	Reply *reply      `json:"reply,omitempty"`
}

// Why a child must stop. The parent knows more; to the agent only a lost lease is different from the rest.
const (
	stopCanceled  = "canceled"
	stopLeaseLost = "lease_lost"
	stopDeadline  = "deadline" // the child has a clock of its own; this is told for completeness
)

// assignment is the attempt that a child is there for.
type assignment struct {
	Task        agent.Task `json:"task"`
	LeftMS      int64      `json:"left_ms"` // until the deadline; 0: none
	MemoryBytes uint64     `json:"memory_bytes"`
}

// question is what the child says. Exactly one of the pointers is set, or Ready.
type question struct {
	ID       int              `json:"id"`
	LeftMS   int64            `json:"left_ms,omitempty"` // how long the child waits for the answer; 0: without end
	Ready    bool             `json:"ready,omitempty"`
	Route    *routeQuestion   `json:"route,omitempty"`
	Price    *priceQuestion   `json:"price,omitempty"`
	Begin    *agent.CallStart `json:"begin,omitempty"`
	End      *endQuestion     `json:"end,omitempty"`
	Complete *callQuestion    `json:"complete,omitempty"`
	Done     *outcome         `json:"done,omitempty"`
}

type routeQuestion struct {
	Model   string   `json:"model"`
	Allowed []string `json:"allowed"`
}

// priceQuestion asks for the cost of a usage, or for the ceiling of a request.
type priceQuestion struct {
	Provider string            `json:"provider"`
	Model    string            `json:"model"`
	Usage    provider.Usage    `json:"usage"`
	Request  *provider.Request `json:"request,omitempty"`
	At       time.Time         `json:"at"`
}

type endQuestion struct {
	Call uuid.UUID     `json:"call"`
	End  agent.CallEnd `json:"end"`
}

type callQuestion struct {
	Provider string           `json:"provider"`
	Request  provider.Request `json:"request"`
}

// target is a provider.Target without the provider.
type target struct {
	Provider string `json:"provider"`
	Model    string `json:"model"`
}

type reply struct {
	ID       int               `json:"id"`
	Targets  []target          `json:"targets,omitempty"`
	MicroUSD int64             `json:"microusd,omitempty"`
	Known    bool              `json:"known,omitempty"`
	Response provider.Response `json:"response"`
	Err      *failure          `json:"err,omitempty"`
}

// outcome is what the agent function returned.
type outcome struct {
	Result    agent.Result `json:"result"`
	RecordErr string       `json:"record_err,omitempty"` // in place of Result.RecordErr
	Err       *failure     `json:"err,omitempty"`
}

// failure is an error on its way. What package agent tells apart is told apart here; the rest is text.
type failure struct {
	Agent     *agent.Error    `json:"agent,omitempty"` // its Err stays behind
	Provider  *provider.Error `json:"provider,omitempty"`
	LeaseLost bool            `json:"lease_lost,omitempty"`
	Ended     bool            `json:"ended,omitempty"` // the attempt's context has ended
	Text      string          `json:"text,omitempty"`
}

func failureOf(ctx context.Context, err error) *failure {
	if err == nil {
		return nil
	}
	f := &failure{Text: err.Error()}
	var e *agent.Error
	switch {
	case errors.As(err, &e):
		f.Agent = &agent.Error{Code: e.Code, Message: e.Message, Retryable: e.Retryable, Billable: e.Billable}
	case errors.As(err, &f.Provider):
	case errors.Is(err, agent.ErrLeaseLost):
		f.LeaseLost = true
	case ctx.Err() != nil:
		f.Ended = true
	}
	return f
}

// err is the error again.
func (f *failure) err() error {
	switch {
	case f == nil:
		return nil
	case f.Agent != nil:
		return f.Agent
	case f.Provider != nil:
		return f.Provider
	case f.LeaseLost:
		return fmt.Errorf("%s: %w", f.Text, agent.ErrLeaseLost)
	}
	return errors.New(f.Text)
}

// pipe is one direction.
type pipe struct {
	mu sync.Mutex
	w  io.Writer
}

// send writes a message. What is too large to be read is not sent.
func (p *pipe) send(message any) error {
	raw, err := json.Marshal(message)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	if len(raw) > maxMessage {
		return fmt.Errorf("a message of %d bytes is too large", len(raw))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_, err = p.w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(raw))), raw...))
	return err
}

// receive reads a message.
func receive(r io.Reader, message any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > maxMessage {
		return fmt.Errorf("a message of %d bytes is too large", size)
	}
	var raw bytes.Buffer // grows with what really comes
	if _, err := io.CopyN(&raw, r, int64(size)); err != nil {
		return err
	}
	return json.Unmarshal(raw.Bytes(), message)
}
