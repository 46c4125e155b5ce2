package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/jobs"
	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/worker/agent"
	"github.com/generic-corp/muster/worker/isolate"
)

// Runner runs one attempt of an agent. It returns only when nothing of the attempt runs any more: the slot is free
// then, and not before.
type Runner interface {
	Run(ctx context.Context, t agent.Task, calls agent.Recorder) (agent.Result, error)
}

// RunnerFunc is a function as a Runner.
type RunnerFunc func(ctx context.Context, t agent.Task, calls agent.Recorder) (agent.Result, error)

// Run calls f.
func (f RunnerFunc) Run(ctx context.Context, t agent.Task, calls agent.Recorder) (agent.Result, error) {
	return f(ctx, t, calls)
}

// attempt is a claim being asked for, then an agent that runs, then a finish on its way.
type attempt struct {
	task uuid.UUID
	won  bool // the ledger has answered that the lease is ours

	returned bool // the agent has; its finish is on its way

	ctx  context.Context         // the agent's, without a deadline
	stop context.CancelCauseFunc // with one of the causes below
}

// Why an agent is stopped before its deadline.
var (
	errCanceled  = errors.New("canceled by the customer")
	errHandBack  = errors.New("the worker is leaving")
	errLeaseLost = fmt.Errorf("taken away: %w", agent.ErrLeaseLost)
)

const (
	claimPatience = 8 * time.Second // how long a claim with an unknown end is asked again
	askAgain      = 200 * time.Millisecond
	askAgainMax   = 2 * time.Second
	ignoreLimit   = 10 * time.Second // an agent that ignores its deadline for so long makes its worker unfit
)

// claim asks until the ledger's answer is known, for a while: a claim whose answer got lost may have been granted.
// What is granted all the same is found by the beat and handed back.
func (w *Worker) claim(c *store.Claim) (store.Claimed, error) {
	claimed, err := w.cfg.Fleet.Claim(context.Background(), c, false)
	deadline := time.Now().Add(claimPatience)
	for pause := askAgain; store.Unavailable(err) && time.Now().Before(deadline); pause = min(2*pause, askAgainMax) {
		time.Sleep(pause)
		claimed, err = w.cfg.Fleet.Claim(context.Background(), c, true)
	}
	return claimed, err
}

// run runs the agent under the attempt's deadline and says how it ended; nil when the agent has ignored its deadline for
// so long that the attempt was ended without it (strand). It returns when the agent has.
func (w *Worker) run(ctx context.Context, t store.ClaimedTask) *store.Finish {
	log := w.taskLog(t)
	log.Info().Int("attempt", t.Attempt).Str("agent", t.Agent).Bool("isolated", t.Suspect()).Msg("attempt starts")
	runner, leave, err := w.place(ctx, t)
	if err != nil {
		return w.unplaced(ctx, t, err)
	}
	defer leave()
	limit := time.Duration(t.ReservedMS) * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	calls := &recorder{worker: w, task: t}
	var ended atomic.Bool // by the agent's return, or without it
	watchdog := time.AfterFunc(limit+ignoreLimit, func() {
		if ended.CompareAndSwap(false, true) {
			w.strand(ctx, t, calls)
		}
	})
	defer watchdog.Stop()

	started := time.Now()
	result, err := w.runAgent(ctx, t, runner, calls)
	took := time.Since(started) // monotonic
	if !ended.CompareAndSwap(false, true) {
		log.Warn().Dur("took", took).Msg("an agent returned that had been given up")
		w.slots.returned()
		return nil
	}
	var crash *isolate.Crash
	if errors.As(err, &crash) {
		log.Error().Str("how", crash.How).Str("words", crash.Words).Msg("the attempt's own process died")
		result.Usage = calls.abandon()
	}
	f := w.finished(t, result.Usage, took)
	if result.RecordErr != nil {
		log.Warn().Err(result.RecordErr).Msg("a provider call's end was not recorded; the sweep closes it as estimated")
	}
	if err == nil {
		f.Outcome = store.Succeeded
		if f.Result, err = json.Marshal(taskResult{Output: result.Output, Data: result.Data}); err == nil {
			return f
		}
		err = &agent.Error{Code: "internal_error", Message: "the result could not be stored", Err: err}
	}
	if crash != nil {
		f.Outcome, f.Apart = store.Crashed, true
		f.Error = &store.TaskError{Code: store.CodeAgentCrashed, Message: "the process that ran this attempt, and nothing else, died", Retryable: true}
	} else {
		w.explain(ctx, t, calls.explained(err), f)
	}
	log.Info().Err(err).Str("outcome", string(f.Outcome)).Msg("attempt ends without a result")
	return f
}

// finished begins the account of an attempt.
func (w *Worker) finished(t store.ClaimedTask, u agent.Usage, took time.Duration) *store.Finish {
	w.cfg.Metrics.observeTokens(u)
	return &store.Finish{Workspace: t.Workspace, Task: t.ID, Lease: t.Lease, Usage: store.AttemptUsage{
		AgentMS: took.Milliseconds(), ProviderCalls: u.ProviderCalls, InputTokens: u.InputTokens, OutputTokens: u.OutputTokens,
		CacheReadTokens: u.CacheReadTokens, CacheWriteTokens: u.CacheWriteTokens, CostMicroUSD: u.CostMicroUSD}}
}

// resultRefused stands for a result that the database cannot hold.
var resultRefused = &store.TaskError{Code: "invalid_output", Message: "the result could not be stored"}

// taskResult is a task's result as the contract has it.
type taskResult struct {
	Output string          `json:"output"`
	Data   json.RawMessage `json:"data"`
}

// runAgent looks the agent up and runs it; a panic is an error.
func (w *Worker) runAgent(ctx context.Context, t store.ClaimedTask, runner Runner, calls agent.Recorder) (result agent.Result, err error) {
	defer func() {
		if p := recover(); p != nil {
			w.taskLog(t).Error().Interface("panic", p).Bytes("stack", debug.Stack()).Msg("agent panicked")
			err = &agent.Error{Code: "internal_error", Message: "the agent failed unexpectedly", Retryable: true}
		}
	}()
	persona, ok := store.BuiltinAgent(t.Agent)
	if !ok {
		return result, &agent.Error{Code: "unknown_agent", Message: fmt.Sprintf("there is no agent %q", t.Agent)}
	}
	model := t.Model
	if model == "" || model == "auto" {
		model = persona.Model
	}
	return runner.Run(ctx, agent.Task{Instructions: persona.Instructions, Prompt: t.Prompt, Input: t.Input, Model: model, Models: t.Models}, calls)
}

// explain turns an agent's error into an outcome.
func (w *Worker) explain(ctx context.Context, t store.ClaimedTask, err error, f *store.Finish) {
	var e *agent.Error
	if !errors.As(err, &e) {
		e = &agent.Error{Code: "internal_error", Message: "the agent failed unexpectedly", Retryable: true}
	}
	f.Error = &store.TaskError{Code: e.Code, Message: e.Message, Retryable: e.Retryable}
	cause := context.Cause(ctx)
	switch {
	case errors.Is(cause, errHandBack), e.Code == agent.CodeLeaseLost, e.Code == agent.CodeLedgerUnavailable:
		// After a lost lease the ledger refuses it, as it should. A ledger that took no calls is ours to answer for: no
		// attempt spent, nothing billed.
		f.Outcome, f.Error = store.HandedBack, nil
	case errors.Is(cause, errCanceled):
		f.Outcome = store.Canceled
		f.Error = &store.TaskError{Code: agent.CodeCanceled, Message: "canceled on request"}
	case e.Code == agent.CodeProviderBudget:
		var short *shortBudget
		if errors.As(e, &short) {
			f.NeedsMicroUSD = short.needs
		}
		f.Outcome = store.BudgetCut
	case e.Code == agent.CodeTimeout && t.ReservedMS < t.TimeoutMS:
		f.Outcome = store.QuotaCut
		f.Error = &store.TaskError{Code: "quota_exceeded", Message: "the workspace's agent time ran out under this attempt", Retryable: true}
	case e.Code == agent.CodeTimeout:
		f.Outcome = store.Timeout
	case e.Retryable:
		f.Outcome = store.Retry
	default:
		f.Outcome, f.CustomerFault = store.Failed, e.Billable
	}
}

// finish books the attempt. The result is kept, and asked to be taken again, until the ledger has taken or refused it:
// whatever else the ledger answers (a failover, a schema that is not there yet) says nothing about the result. It returns
// the answer to f.Next.
func (w *Worker) finish(f *store.Finish, t store.ClaimedTask) (next *store.Claimed) {
	log := w.taskLog(t)
	r, err := w.cfg.Fleet.Finish(context.Background(), f, false)
	for pause, told := askAgain, false; err != nil; pause = min(2*pause, askAgainMax) {
		switch {
		case errors.Is(err, store.ErrClosed): // this process ends without an answer; the scheduler takes the task back
			log.Warn().Err(err).Msg("the result is lost with this process")
			return nil
		case store.BadData(err) && f.Error == resultRefused:
			log.Error().Err(err).Msg("finish failed; the beat will hand the task back")
			return nil
		case store.BadData(err):
			log.Error().Err(err).Msg("the result cannot be stored")
			f.Outcome, f.Result, f.Error = store.Failed, nil, resultRefused
		case !told:
			told = true
			log.Warn().Err(err).Msg("the ledger does not take the result yet; it is kept")
		}
		time.Sleep(pause)
		r, err = w.cfg.Fleet.Finish(context.Background(), f, true)
	}
	w.enqueue(r.Turn)
	if !r.Accepted {
		w.cfg.Metrics.refused.Inc()
		log.Warn().Msg("the finish was refused: the lease had been taken away")
		return nil
	}
	w.cfg.Metrics.attempts.WithLabelValues(string(f.Outcome)).Inc()
	w.cfg.Metrics.duration.WithLabelValues(string(f.Outcome)).Observe(float64(f.Usage.AgentMS) / 1000)
	if r.Notice != 0 {
		log.Warn().Int("percent", r.Notice).Msg("the workspace has passed this share of its agent time")
	}
	log.Info().Str("outcome", string(f.Outcome)).Str("status", r.Status).Int64("agent_ms", f.Usage.AgentMS).Msg("attempt ended")
	return r.Next
}

func (w *Worker) enqueue(t *store.Turn) {
	if t != nil {
		w.cfg.Enqueuer.Requeue(jobs.Turn(*t))
	}
}

func (w *Worker) taskLog(t store.ClaimedTask) *zerolog.Logger {
	log := w.cfg.Log.With().Str("workspace", store.FormatID(store.WorkspacePrefix, t.Workspace)).
		Str("task", store.FormatID(store.TaskPrefix, t.ID)).Str("attempt_id", store.FormatID(store.AttemptPrefix, t.Lease)).Logger()
	return &log
}
