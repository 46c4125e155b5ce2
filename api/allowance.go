package api

import (
	"context"
	"strings"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

// What a workspace may ask for beside rate limits: whether it may run tasks at all, and on which models. It is believed
// for some seconds; who would be refused is looked up anew in the request's own transaction, so that a proved address or
// a larger plan holds at once, in every process. What a shrunken plan lets through for those seconds never runs: the
// worker gets the list of models with the claim.

// allowance reads the workspace's, through a memory of seconds.
func (s *Server) allowance(ctx context.Context, ws uuid.UUID) (store.Allowance, error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	a, err := s.allowed.get(ctx, ws, func(ctx context.Context) (store.Allowance, error) { return s.Store.Allowance(ctx, ws) })
	if store.KindOf(err) == store.NotFound {
		return a, errBadCredential // erased since the credential was believed
	}
	return a, err
}

// mayRun refuses tasks of a workspace without a proved address that needs one, and models that it may not use. It comes
// before anything is stored, and not before the request is known to be no repeat of one that was accepted.
func (s *Server) mayRun(q *request, ask func(context.Context) (store.Allowance, error), models ...string) error {
	if a, ok := s.allowed.known(q.id.Workspace); ok && s.refusal(a, models) == nil {
		return nil
	}
	a, err := ask(q.ctx)
	if err != nil {
		return err
	}
	if err := s.refusal(a, models); err != nil {
		return err
	}
	s.allowed.add(q.id.Workspace, a)
	return nil
}

func (s *Server) refusal(a store.Allowance, models []string) error {
	if s.VerifiedEmail && a.Unproved {
		return refuse(probEmailUnverified, "an owner of the workspace must prove their address before it can run tasks: POST /v1/auth/email/send has another token mailed, POST /v1/auth/email/verify takes it")
	}
	for _, model := range models {
		if !store.AllowsModel(a.Models, model) {
			return refuse(probPlanLimit, "the workspace's plan does not include the model "+clip(model)+"; it has auto, "+strings.Join(a.Models, ", "))
		}
	}
	return nil
}

// orEmpty writes no list as an empty one.
func orEmpty(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}
