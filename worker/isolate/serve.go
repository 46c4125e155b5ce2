package isolate

import (
	"context"
	"errors"
	"io"
	"os"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/worker/agent"
	"github.com/generic-corp/muster/worker/provider"
)

const killed = syscall.SIGKILL

// maxStack bounds a goroutine's stack in a child: an endless recursion ends it before its memory does.
const maxStack = 64 << 20

// Agent is the function that a child runs, with the router, the prices and the recorder that its parent answers for.
type Agent func(ctx context.Context, router agent.Router, prices agent.Prices, t agent.Task, calls agent.Recorder) (agent.Result, error)

// Serve is a child: it takes its one attempt from standard input, runs it and says on descriptor 3 what came of it. It
// returns the process' exit code. When the parent is gone it ends the process, and all in its group, at once.
func Serve(run Agent) int {
	debug.SetMaxStack(maxStack)
	firstToDie()
	syscall.CloseOnExec(3) // what the agent starts has nothing to say to the parent
	s := &served{to: pipe{w: os.NewFile(3, "parent")}, waiting: map[int]chan reply{}}
	first := make(chan assignment, 1)
	ctx, stop := context.WithCancelCause(context.Background())
	s.stop = stop
	go s.listen(os.Stdin, first)
	if err := s.to.send(question{Ready: true}); err != nil {
		return 1
	}
	a := <-first
	if err := bound(a.MemoryBytes); err != nil {
		return 1 // the parent sees a crash; without its bound nothing runs
	}
	if a.LeftMS > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(a.LeftMS)*time.Millisecond)
		defer cancel()
	}
	result, err := run(ctx, router{s}, prices{s}, a.Task, recorder{s})
	o := outcome{Result: result, Err: failureOf(ctx, err)}
	if result.RecordErr != nil {
		o.RecordErr, o.Result.RecordErr = result.RecordErr.Error(), nil
	}
	if err := s.to.send(question{Done: &o}); err != nil {
		return 1
	}
	return 0
}

// served is the child's side of the pipes.
type served struct {
	to   pipe
	stop context.CancelCauseFunc

	mu      sync.Mutex
	asked   int
	waiting map[int]chan reply
}

// listen takes the parent's orders until the parent is gone.
func (s *served) listen(from io.Reader, first chan<- assignment) {
	for {
		var o order
		if err := receive(from, &o); err != nil {
			_ = syscall.Kill(-os.Getpid(), syscall.SIGKILL) // the group is ours: we and what we have started
			os.Exit(1)
		}
		switch {
		case o.Task != nil:
			first <- *o.Task
		case o.Stop == stopLeaseLost:
			s.stop(agent.ErrLeaseLost)
		case o.Stop == stopCanceled:
			s.stop(errors.New("stopped by the worker"))
		case o.Reply != nil:
			s.mu.Lock()
			answer := s.waiting[o.Reply.ID]
			delete(s.waiting, o.Reply.ID)
			s.mu.Unlock()
			if answer != nil {
				answer <- *o.Reply
			}
		}
	}
}

// ask asks the parent and waits for its answer. When the parent says that the attempt has ended, its own clock or a stop
// will say so too, in a moment: the caller must find its context ended.
func (s *served) ask(ctx context.Context, q question) (reply, error) {
	answer := make(chan reply, 1)
	s.mu.Lock()
	s.asked++
	q.ID = s.asked
	s.waiting[q.ID] = answer
	s.mu.Unlock()
	if deadline, ok := ctx.Deadline(); ok {
		q.LeftMS = max(1, time.Until(deadline).Milliseconds())
	}
	if err := s.to.send(q); err != nil {
		return reply{}, err
	}
	r := <-answer // the parent answers for certain, or is gone and so are we
	if r.Err != nil && r.Err.Ended {
		<-ctx.Done()
		return r, ctx.Err()
	}
	return r, r.Err.err()
}

type router struct{ *served }

// Route asks the parent; its targets' calls are made there.
func (r router) Route(model string, allowed []string) ([]provider.Target, error) {
	answer, err := r.ask(context.Background(), question{Route: &routeQuestion{Model: model, Allowed: allowed}})
	if err != nil {
		return nil, err
	}
	targets := make([]provider.Target, len(answer.Targets))
	for i, t := range answer.Targets {
		targets[i] = provider.Target{Provider: remote{r.served, t.Provider}, Model: t.Model}
	}
	return targets, nil
}

// remote is a provider that the parent calls.
type remote struct {
	*served
	name string
}

func (p remote) Name() string { return p.name }

func (p remote) Complete(ctx context.Context, r provider.Request) (provider.Response, error) {
	answer, err := p.ask(ctx, question{Complete: &callQuestion{Provider: p.name, Request: r}})
	return answer.Response, err
}

type prices struct{ *served }

func (p prices) Cost(providerName, model string, u provider.Usage, at time.Time) (microUSD int64, known bool) {
	answer, err := p.ask(context.Background(), question{Price: &priceQuestion{Provider: providerName, Model: model, Usage: u, At: at}})
	if err != nil {
		panic(err) // the pipe broke: nothing that goes on here can count
	}
	return answer.MicroUSD, answer.Known
}

func (p prices) Ceiling(providerName string, r provider.Request, at time.Time) (microUSD int64) {
	answer, err := p.ask(context.Background(), question{Price: &priceQuestion{Provider: providerName, Request: &r, At: at}})
	if err != nil {
		panic(err)
	}
	return answer.MicroUSD
}

type recorder struct{ *served }

func (r recorder) Begin(ctx context.Context, c agent.CallStart) error {
	_, err := r.ask(ctx, question{Begin: &c})
	return err
}

func (r recorder) End(ctx context.Context, call uuid.UUID, e agent.CallEnd) error {
	_, err := r.ask(ctx, question{End: &endQuestion{Call: call, End: e}})
	return err
}
