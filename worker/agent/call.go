package agent

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/worker/provider"
)

// session is one run.
type session struct {
	Config
	rec        Recorder
	exact      bool // the customer named the model, not only the provider
	targets    []provider.Target
	at         int // the target in use: once fallen back, a run stays there
	usage      Usage
	recordErrs []error
}

// step gets one answer: it retries what may pass, and falls back to the next target when one is out.
func (s *session) step(ctx context.Context, step int, r provider.Request) (provider.Response, error) {
	for try, here := 1, 1; ; try, here = try+1, here+1 {
		res, err := s.call(ctx, step, try, r)
		if err == nil {
			return res, nil
		}
		var e *provider.Error
		if !errors.As(err, &e) {
			return res, err
		}
		pause, again := s.again(ctx, e, here)
		switch {
		case again:
			if !wait(ctx, pause) {
				return res, ended(ctx)
			}
		case s.fallsBack(e) && s.at+1 < len(s.targets):
			s.at++
			here = 0
		default:
			return res, s.failed(e)
		}
	}
}

// fallsBack: a default model that its provider doesn't know is the operator's mistake, not the customer's.
func (s *session) fallsBack(e *provider.Error) bool {
	return e.FallsBack() || e.Code == provider.CodeUnknownModel && !s.exact
}

// again says whether the same target is to be asked again, and after what pause.
func (s *session) again(ctx context.Context, e *provider.Error, tries int) (time.Duration, bool) {
	another := s.at+1 < len(s.targets)
	if e.Kind == provider.Permanent || e.Kind == provider.Outage && another || tries >= s.MaxTries {
		return 0, false
	}
	pause := jitter(min(s.Backoff<<min(tries-1, 20), s.MaxBackoff))
	if e.RetryAfter > 0 {
		pause = e.RetryAfter + rand.N(s.Backoff/2+1) // never earlier than told; not all at once
		if another && e.RetryAfter > s.MaxBackoff {
			return 0, false
		}
	}
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= pause {
		return 0, false // waiting would only burn the customer's time
	}
	return pause, true
}

// call makes one recorded call. Its error is a *provider.Error, or the *Error that ends the run.
func (s *session) call(ctx context.Context, step, try int, r provider.Request) (provider.Response, error) {
	target := s.targets[s.at]
	name := target.Provider.Name()
	r.Model = target.Model
	at := time.Now() // for both prices, so that none that changes meanwhile can put the cost above the ceiling
	id := uuid.New()
	err := s.begin(ctx, CallStart{
		ID: id, Provider: name, Model: r.Model, Step: step, Try: try, CeilingMicroUSD: s.Prices.Ceiling(name, r, at),
	})
	if err != nil {
		return provider.Response{}, err
	}
	start := time.Now()
	res, err := target.Provider.Complete(ctx, r)
	c := CallEnd{Outcome: OutcomeOK, LatencyMS: time.Since(start).Milliseconds(), Usage: res.Usage}
	var e *provider.Error
	switch {
	case err == nil:
		c.Status = 200
	case errors.As(err, &e):
		c.Outcome, c.ErrorCode, c.Status = OutcomeTransient, e.Code, e.Status
		if e.Kind == provider.Permanent {
			c.Outcome = OutcomePermanent
		} else if e.Code == provider.CodeCut {
			c.Outcome = OutcomeCut
		}
	case ctx.Err() != nil:
		end := ended(ctx)
		c.Outcome, c.ErrorCode, err = OutcomeCanceled, end.Code, end
	default: // no provider of ours does this
		e = &provider.Error{Kind: provider.Transient, Code: provider.CodeFailed, Message: name + " failed"}
		c.Outcome, c.ErrorCode, err = OutcomeTransient, e.Code, e
	}
	s.price(&c, name, r.Model, res.Model, at)
	s.end(ctx, id, c)
	return res, err
}

// price puts the cost on a call and the call on the run's usage.
func (s *session) price(c *CallEnd, name, asked, answered string, at time.Time) {
	cost, known := s.Prices.Cost(name, asked, c.Usage, at)
	if !known && answered != "" && answered != asked {
		if other, ok := s.Prices.Cost(name, answered, c.Usage, at); ok {
			cost, known = other, true
		}
	}
	c.CostMicroUSD, c.Estimated = cost, c.Usage.Estimated || !known && cost > 0
	s.usage.ProviderCalls++
	s.usage.InputTokens += c.Usage.InputTokens
	s.usage.OutputTokens += c.Usage.OutputTokens
	s.usage.CacheReadTokens += c.Usage.CacheReadTokens
	s.usage.CacheWriteTokens += c.Usage.CacheWriteTokens
	s.usage.CostMicroUSD += cost
}
