package api

import (
	"net/http"
	"strings"
	"time"

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
	list := "workspaces of " + q.id.User.String() // the workspace alone does not say whose list it is
	before, err := s.before(q, list, p.Cursor)
	if err != nil {
		return answer{}, err
	}
	workspaces, err := s.Store.OwnWorkspaces(q.ctx, q.id.User, before, p.Limit+1)
	if err != nil {
		return answer{}, err
	}
	page := listJSON[ownWorkspaceJSON]{Data: []ownWorkspaceJSON{}}
	for _, w := range workspaces[:min(len(workspaces), p.Limit)] {
		page.Data = append(page.Data, ownWorkspaceJSON{ID: store.FormatID(store.WorkspacePrefix, w.ID), Name: w.Name, Plan: w.Plan, Role: w.Role,
			Current: w.ID == q.id.Workspace, CreatedAt: w.CreatedAt.UTC()})
	}
	if len(workspaces) > p.Limit {
		page.next(s.cursors.seal(q.id.Workspace, list, workspaces[p.Limit-1].ID))
	}
	return answer{status: http.StatusOK, body: page}, nil
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
