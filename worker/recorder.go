package worker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/worker/agent"
)

// recorder writes one attempt's provider calls to the ledger, which admits each by what it may cost at most.
type recorder struct {
	worker *Worker
	task   store.ClaimedTask
	start  agent.CallStart // of the call under way: an attempt makes one at a time

	// What is known of the attempt without its agent, which may be stuck or gone.
	mu        sync.Mutex
	open      bool        // the call of start was granted and has not ended
	usage     agent.Usage // of the calls that ended
	refusal   *agent.Error
	abandoned bool
}

// abandon ends the attempt's calls without its agent: one that is open counts at its ceiling, and no other begins. It
// returns what the attempt has used.
func (r *recorder) abandon() agent.Usage {
	r.mu.Lock()
	r.abandoned = true
	open, start := r.open, r.start
	r.mu.Unlock()
	if open {
		end := agent.CallEnd{Outcome: agent.OutcomeCut, ErrorCode: "agent_gone", CostMicroUSD: start.CeilingMicroUSD, Estimated: true}
		ctx, cancel := context.WithTimeout(context.Background(), abandonTimeout)
		defer cancel()
		if err := r.End(ctx, start.ID, end); err != nil {
			r.worker.taskLog(r.task).Warn().Err(err).Msg("a provider call's end was not recorded; the sweep closes it as estimated")
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.usage
}

const abandonTimeout = 10 * time.Second

// How long a call waits for a part of the provider budget that other calls hold, before its task goes back to the line;
// and how often it looks. Shorter than a call often takes: who waits in line uses no agent time.
const (
	budgetPatience = 5 * time.Second
	budgetLook     = 250 * time.Millisecond
)

// shortBudget is a call that did not fit into the workspace's provider budget.
type shortBudget struct {
	needs int64 // micro-dollars
	err   error
}

func (e *shortBudget) Error() string { return fmt.Sprintf("%d micro-dollars: %v", e.needs, e.err) }
func (e *shortBudget) Unwrap() error { return e.err }

// Begin asks the ledger for the permission to make a call.
func (r *recorder) Begin(ctx context.Context, c agent.CallStart) error {
	err := r.begin(ctx, c)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open = err == nil
	r.refusal = nil
	errors.As(err, &r.refusal)
	return err
}

func (r *recorder) begin(ctx context.Context, c agent.CallStart) error {
	r.mu.Lock()
	r.start = c
	abandoned := r.abandoned
	r.mu.Unlock()
	if abandoned {
		return errLeaseLost
	}
	start := store.CallStart{ID: c.ID, Workspace: r.task.Workspace, Task: r.task.ID, Lease: r.task.Lease,
		Provider: c.Provider, Model: c.Model, Step: c.Step, Try: c.Try, CeilingMicroUSD: c.CeilingMicroUSD}
	err := r.worker.cfg.Fleet.BeginCall(ctx, start)
	for until := time.Now().Add(r.worker.cfg.BudgetPatience); errors.Is(err, store.ErrBudgetHeld) && time.Now().Before(until); {
		select {
		case <-time.After(min(budgetLook, time.Until(until))):
		case <-ctx.Done():
			return ctx.Err()
		}
		err = r.worker.cfg.Fleet.BeginCall(ctx, start)
	}
	m := r.worker.cfg.Metrics
	switch {
	case errors.Is(err, store.ErrLeaseLost):
		m.refused.Inc()
		return errLeaseLost
	case errors.Is(err, store.ErrTaskCost):
		m.budgetRefusals.WithLabelValues("task").Inc()
		return &agent.Error{Code: agent.CodeTaskCost, Message: "the next model call could make this task cost more than a task may, or costs more than a month's whole provider budget", Billable: true, Err: err}
	case errors.Is(err, store.ErrBudgetUsed), errors.Is(err, store.ErrBudgetHeld):
		why := "used"
		if errors.Is(err, store.ErrBudgetHeld) {
			why = "held"
		}
		m.budgetRefusals.WithLabelValues(why).Inc()
		return &agent.Error{Code: agent.CodeProviderBudget, Message: "the workspace's provider budget does not allow the next model call", Retryable: true,
			Err: &shortBudget{needs: c.CeilingMicroUSD, err: err}}
	}
	return err
}

// End closes the call's row.
func (r *recorder) End(ctx context.Context, call uuid.UUID, e agent.CallEnd) error {
	m := r.worker.cfg.Metrics
	m.calls.WithLabelValues(r.start.Provider, string(e.Outcome)).Inc()
	m.callDuration.WithLabelValues(r.start.Provider).Observe(float64(e.LatencyMS) / 1000)
	m.callCost.WithLabelValues(r.start.Provider).Add(float64(e.CostMicroUSD))
	ended, err := r.worker.cfg.Fleet.EndCall(ctx, r.task.Workspace, call, store.CallEnd{Outcome: string(e.Outcome), ErrorCode: e.ErrorCode,
		HTTPStatus: e.Status, LatencyMS: e.LatencyMS, InputTokens: e.Usage.InputTokens, OutputTokens: e.Usage.OutputTokens,
		CacheReadTokens: e.Usage.CacheReadTokens, CacheWriteTokens: e.Usage.CacheWriteTokens, CostMicroUSD: e.CostMicroUSD, Estimated: e.Estimated})
	if err != nil {
		return err
	}
	r.mu.Lock()
	if r.open {
		r.open = false
		r.usage = r.usage.Add(agent.Usage{ProviderCalls: 1, InputTokens: e.Usage.InputTokens, OutputTokens: e.Usage.OutputTokens,
			CacheReadTokens: e.Usage.CacheReadTokens, CacheWriteTokens: e.Usage.CacheWriteTokens, CostMicroUSD: e.CostMicroUSD})
	}
	r.mu.Unlock()
	if ended.OverrunMicroUSD > 0 {
		m.overrun.WithLabelValues(r.start.Provider).Add(float64(ended.OverrunMicroUSD))
		r.worker.taskLog(r.task).Warn().Str("provider", r.start.Provider).Str("model", r.start.Model).Int64("ceiling_microusd", r.start.CeilingMicroUSD).
			Int64("cost_microusd", e.CostMicroUSD).Msg("a provider call cost more than it could")
	}
	r.worker.enqueue(ended.Turn)
	return nil
}

// explained gives an error that came from another process what it could not bring along: the refusal that ended the run.
func (r *recorder) explained(err error) error {
	var e *agent.Error
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refusal != nil && errors.As(err, &e) && e.Code == r.refusal.Code {
		return r.refusal
	}
	return err
}
