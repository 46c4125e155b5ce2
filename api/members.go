package api

import (
	"net/http"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

type memberJSON struct {
	UserID   string    `json:"user_id"`
	Email    string    `json:"email"`
	Role     string    `json:"role" enum:"owner,member,viewer"`
	JoinedAt time.Time `json:"joined_at"`
}

type memberParams struct {
	UserID string `path:"user_id"`
}

type deleteMemberParams struct {
	memberParams
	Keys string `query:"keys" enum:"revoke,keep" default:"revoke" description:"What happens to the API keys that the user minted, or keys of theirs: revoke, or keep them as the workspace's."`
}

type memberBody struct {
	Role string `json:"role" required:"true" enum:"owner,member,viewer"`
	Keys string `json:"keys" enum:"revoke,keep" description:"What happens to the user's API keys of a higher role than the new one: revoke (when absent), or keep."`
}

func memberOf(m store.Member) memberJSON {
	return memberJSON{UserID: store.FormatID(store.UserPrefix, m.User), Email: m.Email, Role: m.Role, JoinedAt: m.JoinedAt.UTC()}
}

// member reads the {user_id} of the path.
func (q *request) member() (uuid.UUID, error) {
	id, ok := store.ParseID(store.UserPrefix, q.gin.Param("user_id"))
	if !ok {
		return id, refuse(probNotFound, "no such member")
	}
	return id, nil
}

func (s *Server) listMembers(q *request) (answer, error) {
	p, err := params[pageParams](q, nil)
	if err != nil {
		return answer{}, err
	}
	return listPage(s, q, "members", p, func(before *store.MemberKey, n int) ([]store.Member, error) {
		return s.Store.Members(q.ctx, q.id.Workspace, before, n)
	}, func(m store.Member) *store.MemberKey { return &store.MemberKey{JoinedAt: m.JoinedAt, User: m.User} }, memberOf)
}

func (s *Server) getMember(q *request) (answer, error) {
	user, err := q.member()
	if err != nil {
		return answer{}, err
	}
	var noted *store.AuditEntry
	if user != q.id.User { // another person's record
		e := q.auditEntry("member.read", store.FormatID(store.UserPrefix, user), nil)
		noted = &e
	}
	m, err := s.Store.Member(q.ctx, q.id.Workspace, user, noted)
	return answer{status: http.StatusOK, body: memberOf(m)}, err
}

func (s *Server) patchMember(q *request) (answer, error) {
	body, err := bind[memberBody](q, nil)
	if err != nil {
		return answer{}, err
	}
	user, err := q.member()
	if err != nil {
		return answer{}, err
	}
	a, err := s.work(q, true, func(w *store.Work) (answer, error) {
		if err := w.ConfirmForMembers(q.ctx, q.id.Identity); err != nil {
			return answer{}, err
		}
		m, lost, err := w.SetRole(q.ctx, user, body.Role, body.Keys == "keep")
		if err != nil {
			return answer{}, err
		}
		return answer{status: http.StatusOK, body: memberOf(m)}, q.audit(w, "member.update", store.FormatID(store.UserPrefix, user),
			map[string]any{"role": m.Role, "role_before": lost.Before.Role, "keys_revoked": lost.Keys, "invitations_withdrawn": lost.Invitations})
	})
	if err == nil {
		s.forgetMember(q.id.Workspace, user)
	}
	return a, err
}

func (s *Server) deleteMember(q *request) (answer, error) {
	if err := q.noBody(); err != nil {
		return answer{}, err
	}
	p, err := params[deleteMemberParams](q, nil)
	if err != nil {
		return answer{}, err
	}
	user, err := q.member()
	if err != nil {
		return answer{}, err
	}
	if p.Keys == "keep" {
		if err := authorize(q.route, q.id); err != nil { // who leaves by themselves takes their keys along
			return answer{}, err
		}
	}
	a, err := s.work(q, true, func(w *store.Work) (answer, error) {
		if err := w.ConfirmForMembers(q.ctx, q.id.Identity); err != nil {
			return answer{}, err
		}
		lost, err := w.RemoveMember(q.ctx, user, p.Keys == "keep")
		if err != nil {
			return answer{}, err
		}
		return answer{status: http.StatusNoContent}, q.audit(w, "member.remove", store.FormatID(store.UserPrefix, user),
			map[string]any{"role": lost.Before.Role, "keys_revoked": lost.Keys, "invitations_withdrawn": lost.Invitations})
	})
	if err == nil {
		s.forgetMember(q.id.Workspace, user)
	}
	return a, err
}

// forgetMember makes this process see a member's new rights at once, and those of the keys that go back to them.
func (s *Server) forgetMember(ws, user uuid.UUID) {
	s.believed.forgetAll(func(id identity) bool { return id.Workspace == ws && (id.User == user || id.Origin == user) })
}
