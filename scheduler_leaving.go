package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

// The scheduler's leader sees leaving workspaces out: once the time to undo is over, nothing runs and Stripe was seen to
// have every billable day, it ends the subscription and erases. Whatever holds a workspace up is looked at again in a
// few seconds; what an operator must mend is logged as an error and counted in muster_leaving_blocked.

const (
	leavePause  = 5 * time.Second  // between two looks
	leaveBudget = 20 * time.Second // of a look, for erasing; the next goes on
	// leaveLate: a workspace whose last day is not settled so long after the time to undo has missed two nights.
	leaveLate = 50 * time.Hour
	// leaveRemind is how often the same trouble is logged.
	leaveRemind = 10 * time.Minute
)

// seeingOut is what the scheduler needs for it.
type seeingOut struct {
	endSubscription func(ctx context.Context, id string) error // nil: no Stripe account is configured
	grace           time.Duration                              // between a workspace's deletion and its erasing: the time to undo

	at       time.Time               // of the last look
	reminded map[uuid.UUID]time.Time // when a workspace's trouble was last logged
}

// leaveOnce is one look, unless the last was a moment ago.
func (s *scheduler) leaveOnce(ctx context.Context) {
	if time.Since(s.leaving.at) < leavePause {
		return
	}
	s.leaving.at = time.Now()
	s.part(ctx, "leaving", s.seeOut)
}

// seeOut brings each leaving workspace as far as it can go. One workspace's trouble delays no other.
func (s *scheduler) seeOut(ctx context.Context) error {
	leavers, err := s.system.Leavers(ctx)
	if err != nil {
		return err
	}
	until := time.Now().Add(leaveBudget)
	blocked := 0
	var failures []error
	for _, l := range leavers {
		trouble, err := s.seeOutOne(ctx, l, time.Until(until))
		if err != nil {
			failures = append(failures, err)
		}
		if trouble != "" {
			blocked++
			s.remind(l.Workspace, trouble)
		}
	}
	s.metrics.leavingBlocked.Set(float64(blocked))
	return errors.Join(failures...)
}

// seeOutOne does a workspace's next steps. trouble is what an operator must look at; empty when it only takes its time.
func (s *scheduler) seeOutOne(ctx context.Context, l store.Leaver, budget time.Duration) (trouble string, err error) {
	over := time.Duration(l.For*float64(time.Second)) - s.leaving.grace
	if l.ErasingAt == nil {
		switch {
		case over < 0, l.Running > 0:
			return "", nil
		case l.Unsettled > 0 && s.leaving.endSubscription == nil:
			return fmt.Sprintf("%d days are not settled, and no Stripe account is configured", l.Unsettled), nil
		case l.Unsettled > 0 && over > leaveLate:
			return fmt.Sprintf("%d days are still not settled; look at muster billing push and reconcile", l.Unsettled), nil
		case l.Unsettled > 0:
			return "", nil
		}
		if begun, err := s.system.BeginErasing(ctx, l.Workspace); err != nil || !begun {
			return "", err
		}
		s.log.Info().Str("workspace", store.FormatID(store.WorkspacePrefix, l.Workspace)).Msg("erasing a workspace that was deleted")
	}
	if l.Subscription != nil && l.SubscriptionEnded == nil {
		if s.leaving.endSubscription == nil {
			return "it has the Stripe subscription " + *l.Subscription + ", and no Stripe account is configured", nil
		}
		if err := s.leaving.endSubscription(ctx, *l.Subscription); err != nil {
			return "its Stripe subscription " + *l.Subscription + " cannot be ended: " + err.Error(), nil
		}
		if err := s.system.SubscriptionEnded(ctx, l.Workspace); err != nil {
			return "", err
		}
	}
	done, err := s.system.Erase(ctx, l.Workspace, budget)
	if done && err == nil {
		s.metrics.erased.Inc()
		s.log.Info().Str("workspace", store.FormatID(store.WorkspacePrefix, l.Workspace)).Msg("workspace erased")
	}
	return "", err
}

func (s *scheduler) remind(ws uuid.UUID, trouble string) {
	if at, known := s.leaving.reminded[ws]; known && time.Since(at) < leaveRemind {
		return
	}
	if s.leaving.reminded == nil {
		s.leaving.reminded = map[uuid.UUID]time.Time{}
	}
	s.leaving.reminded[ws] = time.Now()
	s.log.Error().Str("workspace", store.FormatID(store.WorkspacePrefix, ws)).Str("trouble", trouble).Msg("a deleted workspace cannot be erased")
}
