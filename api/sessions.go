package api

import (
	"net/http"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

type sessionJSON struct {
	ID          string    `json:"id"`
	WorkspaceID string    `json:"workspace_id" description:"The workspace that it was opened in."`
	UserAgent   string    `json:"user_agent"`
	IP          string    `json:"ip" description:"Where it was opened from."`
	Current     bool      `json:"current" description:"It is the one that asks."`
	CreatedAt   time.Time `json:"created_at"`
	ExpiresAt   time.Time `json:"expires_at" description:"Unless it is refreshed before."`
}

// listSessions shows the user's live sessions in all their workspaces.
func (s *Server) listSessions(q *request) (answer, error) {
	p, err := params[pageParams](q, nil)
	if err != nil {
		return answer{}, err
	}
	return listPage(s, q, "sessions of "+q.id.User.String(), p, func(before uuid.UUID, n int) ([]store.Session, error) {
		return s.Store.Sessions(q.ctx, q.id.User, before, n)
	}, func(x store.Session) uuid.UUID { return x.ID }, func(x store.Session) sessionJSON {
		return sessionJSON{ID: store.FormatID(store.SessionPrefix, x.ID), WorkspaceID: store.FormatID(store.WorkspacePrefix, x.Workspace),
			UserAgent: x.UserAgent, IP: x.IP, Current: x.ID == q.id.Session, CreatedAt: x.CreatedAt.UTC(), ExpiresAt: x.ExpiresAt.UTC()}
	})
}

// deleteSession ends one of the user's sessions; their own current one too.
func (s *Server) deleteSession(q *request) (answer, error) {
	id, err := q.bareID(store.SessionPrefix, "session")
	if err != nil {
		return answer{}, err
	}
	if err := s.Store.RevokeOwnSession(q.ctx, q.id.User, id, q.by()); err != nil {
		return answer{}, err
	}
	s.believed.forgetAll(func(known identity) bool { return known.Session == id })
	return answer{status: http.StatusNoContent}, nil
}
