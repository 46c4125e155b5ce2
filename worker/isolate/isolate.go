// Package isolate runs one attempt of an agent in a child process of its own, for tasks that were running when a worker
// died: should one of them be the cause, it takes only its child.
//
// The worker starts a Child and gives it the attempt. The child (serve.go) has the agent function and nothing else: no
// key, no URL of a database, no secret of any kind. It asks its parent, over two pipes, for routes, prices and the rows
// around each model call, and lets the parent make the call (wire.go). Cancel and deadline reach it the same way; a child
// that does not return then is killed.
//
// The promise: when Run has returned, nothing of the attempt runs any more. The child and what it has started stand in a
// process group of their own, which is killed at the end, whatever it was; a child whose parent dies ends too.
package isolate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/generic-corp/muster/worker/agent"
	"github.com/generic-corp/muster/worker/childprocess"
	"github.com/generic-corp/muster/worker/provider"
)

// Command is the hidden command of the binary under which a child serves.
const Command = "run-isolated"

// Config makes a Starter. Argv, Router and Prices are required.
type Config struct {
	Argv   []string // starts a child, which calls Serve
	Env    []string // of a child: nothing that it could give away; nil is an empty environment
	Router agent.Router
	Prices agent.Prices

	// MemoryBytes bounds what a child may allocate (RLIMIT_DATA, on Linux); past it the child dies. 0: no bound.
	MemoryBytes uint64

	// Grace is how long a child may go on after its deadline or a stop before it is killed; 0 is 5 s.
	Grace time.Duration
}

const (
	defaultGrace = 5 * time.Second
	startTimeout = 30 * time.Second
	keptWords    = 64 << 10 // bytes of the end of what a child writes
	toldWords    = 4 << 10  // bytes of it that Crash.Words has
)

// Starter starts children.
type Starter struct{ cfg Config }

// New prepares a Starter.
func New(cfg Config) *Starter {
	if cfg.Grace == 0 {
		cfg.Grace = defaultGrace
	}
	if cfg.Env == nil {
		cfg.Env = []string{} // nil would be our own
	}
	return &Starter{cfg: cfg}
}

// Crash is the error of an attempt whose process died before the agent function had returned.
type Crash struct {
	How   string // "exit status 2", "signal: killed"
	Words string // of the last that it wrote, what Go's runtime says at a crash: reasons and stacks, no values
}

func (e *Crash) Error() string { return "the attempt's process ended: " + e.How }

// Child is a started process that waits for its one attempt. Close it in any case.
type Child struct {
	cfg       Config
	process   *childprocess.Process
	to        pipe
	in        *os.File // the parent's ends
	out       *os.File
	words     *lastWords
	questions chan question // closed when the child says no more
}

// Start starts a child and returns when it is ready, so that its own start is nobody's agent time.
func (s *Starter) Start(ctx context.Context) (*Child, error) {
	childIn, in, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe: %w", err)
	}
	out, childOut, err := os.Pipe()
	if err != nil {
		childIn.Close()
		in.Close()
		return nil, fmt.Errorf("make a pipe: %w", err)
	}
	c := &Child{cfg: s.cfg, in: in, out: out, to: pipe{w: in}, words: &lastWords{}, questions: make(chan question)}
	c.process, err = childprocess.Start(childprocess.Config{Argv: s.cfg.Argv, Env: s.cfg.Env, Stdin: childIn, Files: []*os.File{childOut},
		Output: c.words, OnParentDeath: killed})
	childIn.Close()
	childOut.Close()
	if err != nil {
		in.Close()
		out.Close()
		return nil, fmt.Errorf("start a process for the attempt: %w", err)
	}
	go c.listen()
	timer := time.NewTimer(startTimeout)
	defer timer.Stop()
	select {
	case q, ok := <-c.questions:
		if ok && q.Ready {
			return c, nil
		}
		err = c.crash()
	case <-timer.C:
		err = errors.New("it did not get ready in time")
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	c.Close()
	return nil, fmt.Errorf("start a process for the attempt: %w", err)
}

// listen passes on what the child asks.
func (c *Child) listen() {
	defer close(c.questions)
	for {
		var q question
		if err := receive(c.out, &q); err != nil {
			return // it ended, or speaks nonsense: the same
		}
		c.questions <- q
	}
}

// Close ends the child, with all that it has started.
func (c *Child) Close() {
	c.process.KillGroup()
	c.in.Close()
	c.out.Close()
	for range c.questions { // let listen end
	}
}

// crash waits for a child that says no more, and says how it ended.
func (c *Child) crash() *Crash {
	select {
	case <-c.process.Exited():
	case <-time.After(3 * time.Second): // it has only closed its pipe
	}
	how := c.process.How()
	c.process.KillGroup()
	return &Crash{How: how, Words: c.words.String()}
}

// Run runs the child's one attempt; ctx's deadline is the attempt's. Its error is an *agent.Error, or a *Crash. Calls that
// were open at a crash are the caller's to end. A child that goes on past its deadline is a timeout like any other.
func (c *Child) Run(ctx context.Context, t agent.Task, calls agent.Recorder) (agent.Result, error) {
	a := assignment{Task: t, MemoryBytes: c.cfg.MemoryBytes}
	if deadline, ok := ctx.Deadline(); ok {
		a.LeftMS = max(1, time.Until(deadline).Milliseconds())
	}
	// What the child asks for is not under ctx itself: it must have heard of the end before its call fails for it.
	asked, endAsked := context.WithCancel(context.WithoutCancel(ctx))
	var said sync.WaitGroup // a child that does not listen blocks who speaks to it, until it is killed
	defer said.Wait()
	defer endAsked()
	said.Go(func() {
		if err := c.to.send(order{Task: &a}); err != nil {
			c.process.KillGroup()
		}
	})
	ended, patience := ctx.Done(), (<-chan time.Time)(nil)
	for {
		select {
		case q, ok := <-c.questions:
			switch {
			case !ok:
				return agent.Result{}, c.crash()
			case q.Done != nil:
				r := q.Done.Result
				if q.Done.RecordErr != "" {
					r.RecordErr = errors.New(q.Done.RecordErr)
				}
				return r, endOf(ctx, q.Done.Err)
			}
			said.Go(func() {
				r := c.answer(asked, q, calls)
				r.ID = q.ID
				if err := c.to.send(order{Reply: &r}); err != nil {
					_ = c.to.send(order{Reply: &reply{ID: q.ID, Err: &failure{Text: "the answer could not be sent"}}})
				}
			})
		case <-ended:
			said.Go(func() {
				_ = c.to.send(order{Stop: reason(ctx)}) // who cannot be told is killed
				endAsked()
			})
			ended, patience = nil, time.After(c.cfg.Grace)
		case <-patience:
			c.process.KillGroup()
			return agent.Result{}, endOf(ctx, &failure{Ended: true})
		}
	}
}

func reason(ctx context.Context) string {
	switch {
	case errors.Is(context.Cause(ctx), agent.ErrLeaseLost):
		return stopLeaseLost
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return stopDeadline
	}
	return stopCanceled
}

// endOf is the error of an attempt, with the cause that only the parent knows.
func endOf(ctx context.Context, f *failure) error {
	switch {
	case f == nil:
		return nil
	case f.Ended && errors.Is(ctx.Err(), context.DeadlineExceeded):
		return &agent.Error{Code: agent.CodeTimeout, Message: "the time for this attempt is over", Retryable: true, Billable: true, Err: context.Cause(ctx)}
	case f.Ended && errors.Is(context.Cause(ctx), agent.ErrLeaseLost):
		return &agent.Error{Code: agent.CodeLeaseLost, Message: agent.ErrLeaseLost.Error(), Err: context.Cause(ctx)}
	case f.Ended:
		return &agent.Error{Code: agent.CodeCanceled, Message: "the attempt was canceled", Billable: true, Err: context.Cause(ctx)}
	}
	return f.err()
}

// answer does what the child asks for.
func (c *Child) answer(ctx context.Context, q question, calls agent.Recorder) (r reply) {
	if q.End != nil {
		ctx = context.WithoutCancel(ctx) // a call's end is written whatever became of the attempt
	}
	if q.LeftMS > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(q.LeftMS)*time.Millisecond)
		defer cancel()
	}
	var err error
	switch {
	case q.Route != nil:
		var targets []provider.Target
		targets, err = c.cfg.Router.Route(q.Route.Model, q.Route.Allowed)
		for _, t := range targets {
			r.Targets = append(r.Targets, target{t.Provider.Name(), t.Model})
		}
	case q.Price != nil && q.Price.Request != nil:
		r.MicroUSD = c.cfg.Prices.Ceiling(q.Price.Provider, *q.Price.Request, q.Price.At)
	case q.Price != nil:
		r.MicroUSD, r.Known = c.cfg.Prices.Cost(q.Price.Provider, q.Price.Model, q.Price.Usage, q.Price.At)
	case q.Begin != nil:
		err = calls.Begin(ctx, *q.Begin)
	case q.End != nil:
		err = calls.End(ctx, q.End.Call, q.End.End)
	case q.Complete != nil:
		r.Response, err = c.complete(ctx, *q.Complete)
	default:
		err = errors.New("not understood")
	}
	r.Err = failureOf(ctx, err)
	return r
}

// complete makes a call at the provider of this name.
func (c *Child) complete(ctx context.Context, q callQuestion) (provider.Response, error) {
	targets, err := c.cfg.Router.Route(q.Provider, nil)
	if err != nil {
		return provider.Response{}, err
	}
	return targets[0].Provider.Complete(ctx, q.Request)
}

// lastWords keeps the end of what is written.
type lastWords struct {
	mu   sync.Mutex
	kept []byte
}

var _ io.Writer = (*lastWords)(nil)

func (w *lastWords) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.kept = append(w.kept, p...)
	if over := len(w.kept) - keptWords; over > 0 {
		w.kept = append([]byte(nil), w.kept[over:]...)
	}
	return len(p), nil
}

// runtimeWords are lines of Go's runtime that hold no value of the program: a panic's would, a customer's content perhaps.
var runtimeWords = regexp.MustCompile(`^(fatal error: |runtime: |\[signal |goroutine \d+ \[|created by |\t/)|^[\w./*()·-]+\([^ ]*\)$`)

func (w *lastWords) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var told strings.Builder
	for line := range strings.Lines(string(w.kept)) {
		line = strings.TrimRight(line, "\n")
		if strings.HasPrefix(line, "panic: ") {
			line = "panic"
		} else if !runtimeWords.MatchString(line) {
			continue
		}
		if told.Len()+len(line) > toldWords {
			break
		}
		told.WriteString(line + "\n")
	}
	return told.String()
}
