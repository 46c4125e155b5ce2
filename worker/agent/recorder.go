package agent

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/worker/provider"
)

// ErrLeaseLost is what a Recorder's Begin wraps when the task is no longer this worker's: the run ends at once with it.
// It also ends a run as the cause of its cancelled context.
var ErrLeaseLost = errors.New("the task's lease is lost")

// Recorder is the ledger of one attempt's paid calls. Begin must be durable before the call goes out; an error from
// Begin means that no call may be made. ErrLeaseLost, or an *Error of the Recorder's own (the call costs too much), ends
// the run with it; any other is taken for an unreachable ledger, and Begin is tried again, with the same ID, until the
// deadline.
type Recorder interface {
	Begin(ctx context.Context, c CallStart) error
	End(ctx context.Context, callID uuid.UUID, c CallEnd) error
}

// CallStart is a call about to be made.
type CallStart struct {
	ID              uuid.UUID // made up here, so that a Begin whose answer got lost is recognised when it is repeated
	Provider, Model string
	Step, Try       int   // of the attempt, and of the step over all providers; from 1. Together unique in the attempt.
	CeilingMicroUSD int64 // the most that the call can cost
}

// Outcome is how a call ended.
type Outcome string

// The outcomes.
const (
	OutcomeOK        Outcome = "ok"
	OutcomeTransient Outcome = "transient" // outages included
	OutcomePermanent Outcome = "permanent"
	OutcomeCanceled  Outcome = "canceled" // our context ended: ErrorCode says timeout or canceled
	OutcomeCut       Outcome = "cut"      // the connection broke in the middle
)

// CallEnd is how it went.
type CallEnd struct {
	Outcome      Outcome
	ErrorCode    string // a provider.Code…, timeout or canceled; "" when ok
	Status       int    // HTTP; 0: no answer came
	LatencyMS    int64
	Usage        provider.Usage
	CostMicroUSD int64
	Estimated    bool // the usage is estimated, or the model has no known price
}

const (
	beginTimeout = 10 * time.Second // of one try
	endTimeout   = 5 * time.Second  // of all tries together
	ledgerPause  = 100 * time.Millisecond
	ledgerPauses = 2 * time.Second // the longest
)

// begin writes the call's row, waiting for the ledger as long as the deadline allows.
func (s *session) begin(ctx context.Context, c CallStart) error {
	var down error
	for pause := ledgerPause; ; pause = min(2*pause, ledgerPauses) {
		if ctx.Err() == nil {
			tryCtx, cancel := context.WithTimeout(ctx, beginTimeout)
			err := s.rec.Begin(tryCtx, c)
			cancel()
			var refused *Error
			switch {
			case err == nil:
				return nil
			case errors.Is(err, ErrLeaseLost):
				return leaseLost(err)
			case errors.As(err, &refused):
				return refused
			}
			if ctx.Err() == nil || down == nil && !errors.Is(err, ctx.Err()) {
				down = err
			}
		}
		if !wait(ctx, jitter(pause)) {
			e := ended(ctx)
			if e.Code == CodeTimeout && down != nil {
				e = &Error{Code: CodeLedgerUnavailable, Message: "the call could not be recorded, so it was not made", Retryable: true, Err: down}
			}
			return e
		}
	}
}

// end closes the call's row, also when the run's context has ended.
func (s *session) end(ctx context.Context, id uuid.UUID, c CallEnd) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	for pause := ledgerPause; ; pause = min(2*pause, ledgerPauses) {
		err := s.rec.End(ctx, id, c)
		if err == nil {
			return
		}
		if errors.Is(err, ErrLeaseLost) || !wait(ctx, jitter(pause)) {
			s.recordErrs = append(s.recordErrs, err)
			return
		}
	}
}

// wait says whether ctx is still alive after d.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// jitter is d less up to half of it.
func jitter(d time.Duration) time.Duration { return d - rand.N(d/2+1) }
