package api

import (
	"net/http"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

// What leaves: a task's content, a member who goes, a whole workspace.

type deleteWorkspaceBody struct {
	Confirm string `json:"confirm" required:"true" maxLength:"100" description:"The workspace's name, exactly."`
}

// deleteTask erases a final task's content. Erasing it again changes nothing.
func (s *Server) deleteTask(q *request) (answer, error) {
	id, err := q.bareID(store.TaskPrefix, "task")
	if err != nil {
		return answer{}, err
	}
	return s.work(q, true, func(w *store.Work) (answer, error) {
		erased, err := w.EraseTask(q.ctx, id)
		if err == nil && erased {
			err = q.audit(w, "task.erase", store.FormatID(store.TaskPrefix, id), nil)
		}
		return answer{status: http.StatusNoContent}, err
	})
}

// deleteWorkspace begins the workspace's end. Its sessions and keys are refused from the commit on; what was believed of
// them a moment ago is forgotten here at once, in other processes within seconds.
func (s *Server) deleteWorkspace(q *request) (answer, error) {
	body, err := bind[deleteWorkspaceBody](q, nil)
	if err != nil {
		return answer{}, err
	}
	a, err := s.work(q, true, func(w *store.Work) (answer, error) {
		if err := w.ConfirmForMembers(q.ctx, q.id.Identity); err != nil {
			return answer{}, err
		}
		left, err := w.Leave(q.ctx, body.Confirm, q.id.User)
		if err != nil {
			return answer{}, err
		}
		return answer{status: http.StatusAccepted, body: workspaceOf(left.Workspace)},
			q.audit(w, "workspace.delete", store.FormatID(store.WorkspacePrefix, w.Workspace), map[string]any{"sessions_ended": left.Sessions,
				"keys_revoked": left.Keys, "invitations_withdrawn": left.Invitations, "tasks_canceled": left.Canceled, "tasks_stopping": left.Stopping})
	})
	if err == nil {
		s.believed.forgetAll(func(id identity) bool { return id.Workspace == q.id.Workspace })
	}
	return a, err
}

// isSelf: the path names the user whose session sends the request.
func (q *request) isSelf() bool {
	return q.id.isSession() && q.id.User != uuid.Nil && q.gin.Param("user_id") == store.FormatID(store.UserPrefix, q.id.User)
}
