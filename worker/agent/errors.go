package agent

import (
	"context"
	"errors"

	"github.com/generic-corp/muster/worker/provider"
)

// Codes of an Error: what a customer sees in task.error.code, and three that the worker keeps to itself.
const (
	CodeTimeout         = "timeout"           // the attempt's deadline
	CodeCanceled        = "canceled"          // its context was cancelled; the cause is wrapped
	CodeProviderError   = "provider_error"    // the model service failed, or our account there
	CodeInvalidRequest  = "invalid_request"   // the service refused the request
	CodeTooLarge        = "request_too_large" // likewise, for its size
	CodeUnknownModel    = "unknown_model"
	CodeModelNotAllowed = "model_not_allowed" // the workspace's plan does not have it any more
	CodeRefused         = "refused"           // the model declined
	CodeNoOutput        = "no_output"         // all tokens used, nothing written
	CodeInvalidToolCall = "invalid_tool_call" // a tool that does not exist
	CodeTaskCost        = "task_cost_limit"   // the next call could make the task cost more than a task may, or alone more than a month may

	CodeLeaseLost         = "lease_lost"         // the attempt is somebody else's: write nothing
	CodeLedgerUnavailable = "ledger_unavailable" // no call could be recorded until the deadline
	CodeProviderBudget    = "provider_budget"    // the next call does not fit into the workspace's budget: it waits in line
)

// Error is why an attempt failed. Message is safe to show to the customer.
type Error struct {
	Code      string
	Message   string
	Retryable bool  // another attempt may succeed
	Billable  bool  // the agent's time counts: a timeout, a cancel, the customer's own mistake; never ours or the provider's
	Err       error // the cause, for logs; may be nil
}

func (e *Error) Error() string { return e.Code + ": " + e.Message }

// Unwrap returns the cause: a *provider.Error, the context's cause, ErrLeaseLost.
func (e *Error) Unwrap() error { return e.Err }

// ended says how a context ended. A cancel's cause is the worker's to read: a customer's cancel is billable, as set
// here, a drain is not.
func ended(ctx context.Context) *Error {
	cause := context.Cause(ctx)
	switch {
	case errors.Is(cause, ErrLeaseLost):
		return leaseLost(cause)
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return &Error{Code: CodeTimeout, Message: "the time for this attempt is over", Retryable: true, Billable: true, Err: cause}
	default:
		return &Error{Code: CodeCanceled, Message: "the attempt was canceled", Billable: true, Err: cause}
	}
}

func leaseLost(err error) *Error {
	return &Error{Code: CodeLeaseLost, Message: ErrLeaseLost.Error(), Err: err}
}

// failed makes the run's error of a call's last one.
func (s *session) failed(err error) *Error {
	var e *provider.Error
	if !errors.As(err, &e) {
		return &Error{Code: CodeProviderError, Message: "the model could not be called", Retryable: true, Err: err}
	}
	if s.fallsBack(e) && len(s.targets) > 0 {
		return &Error{Code: CodeProviderError, Message: e.Message, Retryable: true, Err: err}
	}
	code := CodeProviderError
	switch e.Code {
	case provider.CodeInvalid:
		code = CodeInvalidRequest
	case provider.CodeTooLarge:
		code = CodeTooLarge
	case provider.CodeUnknownModel:
		code = CodeUnknownModel
	case provider.CodeModelNotAllowed:
		code = CodeModelNotAllowed
	}
	return &Error{Code: code, Message: e.Message, Billable: true, Err: err}
}
