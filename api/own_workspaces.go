package api

import (
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

type ownWorkspaceJSON struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	Plan      string    `json:"plan"`
	Role      string    `json:"role" enum:"owner,member,viewer" description:"The user's own."`
	Current   bool      `json:"current" description:"The session is in it."`
	CreatedAt time.Time `json:"created_at"`
}

// listWorkspaces shows the workspaces that the user is in. To go to another, they log in or refresh with workspace_id.
func (s *Server) listWorkspaces(q *request) (answer, error) {
	p, err := params[pageParams](q, nil)
	if err != nil {
		return answer{}, err
	}
	return listPage(s, q, "workspaces of "+q.id.User.String(), p, func(before uuid.UUID, n int) ([]store.OwnWorkspace, error) {
		return s.Store.OwnWorkspaces(q.ctx, q.id.User, before, n)
	}, func(w store.OwnWorkspace) uuid.UUID { return w.ID }, func(w store.OwnWorkspace) ownWorkspaceJSON {
		return ownWorkspaceJSON{ID: store.FormatID(store.WorkspacePrefix, w.ID), Name: w.Name, Plan: w.Plan, Role: w.Role,
			Current: w.ID == q.id.Workspace, CreatedAt: w.CreatedAt.UTC()}
	})
}

// createWorkspace makes another Free workspace that the user owns. The session stays where it is.
func (s *Server) createWorkspace(q *request) (answer, error) {
	body, err := bind(q, func(b *workspaceBody, f *faults) {
		if b.Name = strings.TrimSpace(b.Name); b.Name == "" {
			f.wrong("name", "must not be empty")
		}
	})
	if err != nil {
		return answer{}, err
	}
	scope := store.Scope{Workspace: q.id.Workspace, User: q.id.User}
	return s.workIn(q, scope, true, func(w *store.Work) (answer, error) {
		made, err := w.CreateWorkspace(q.ctx, q.id.User, body.Name, q.auditEntry("", "", nil))
		return answer{status: http.StatusCreated, body: workspaceOf(made)}, err
	})
}
