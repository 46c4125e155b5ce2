package api

import (
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

type newInvitationBody struct {
	Email string `json:"email" required:"true" minLength:"3" maxLength:"254" description:"Whom it is for; nobody else can accept it."`
	Role  string `json:"role" required:"true" enum:"owner,member,viewer"`
}

type invitationJSON struct {
	ID        string    `json:"id"`
	Email     string    `json:"email"`
	Role      string    `json:"role" enum:"owner,member,viewer"`
	InvitedBy *string   `json:"invited_by" description:"The user; null when nobody's key did it."`
	CreatedAt time.Time `json:"created_at"`
	ExpiresAt time.Time `json:"expires_at"`
}

type newInvitationJSON struct {
	invitationJSON
	Token  string `json:"token" description:"Accepts the invitation; it is shown this once."`
	Mailed bool   `json:"mailed" description:"The token goes to the address by mail, too. false: no mail server is configured."`
}

type acceptInvitationBody struct {
	Token    string `json:"token" required:"true" maxLength:"200"`
	Password string `json:"password" maxLength:"1024" description:"Of a new account; without an access token it is required, with one it must be absent."`
}

func invitationOf(i store.Invitation) invitationJSON {
	j := invitationJSON{ID: store.FormatID(store.InvitationPrefix, i.ID), Email: i.Email, Role: i.Role, CreatedAt: i.CreatedAt.UTC(), ExpiresAt: i.ExpiresAt.UTC()}
	if i.InvitedBy.Valid {
		by := store.FormatID(store.UserPrefix, i.InvitedBy.UUID)
		j.InvitedBy = &by
	}
	return j
}

func (s *Server) createInvitation(q *request) (answer, error) {
	body, err := bind(q, func(b *newInvitationBody, f *faults) {
		if b.Email = strings.ToLower(b.Email); !validEmail(b.Email) {
			f.wrong("email", "must be an email address")
		}
	})
	if err != nil {
		return answer{}, err
	}
	workspace, err := s.Store.Workspace(q.ctx, q.id.Workspace)
	if err != nil {
		return answer{}, err
	}
	token, hash := newToken(invitePrefix)
	var made store.Invitation
	a, err := s.work(q, false, func(w *store.Work) (answer, error) {
		if err := w.ConfirmForMembers(q.ctx, q.id.Identity); err != nil {
			return answer{}, err
		}
		var err error
		made, err = w.Invite(q.ctx, store.NewInvitation{Email: body.Email, Role: body.Role, TokenHash: hash, InvitedBy: q.id.person()})
		if err != nil {
			return answer{}, err
		}
		shown := newInvitationJSON{invitationJSON: invitationOf(made), Token: token, Mailed: s.Mailer != nil}
		return answer{status: http.StatusCreated, body: shown},
			q.audit(w, "invitation.create", shown.ID, map[string]any{"role": made.Role})
	})
	if err == nil {
		s.mailInvitation(made.Email, workspace.Name, made.Role, token)
	}
	return a, err
}

func (s *Server) listInvitations(q *request) (answer, error) {
	p, err := params[pageParams](q, nil)
	if err != nil {
		return answer{}, err
	}
	return listPage(s, q, "invitations", p, func(before uuid.UUID, n int) ([]store.Invitation, error) {
		return s.Store.Invitations(q.ctx, q.id.Workspace, before, n)
	}, func(i store.Invitation) uuid.UUID { return i.ID }, invitationOf)
}

func (s *Server) deleteInvitation(q *request) (answer, error) {
	id, err := q.bareID(store.InvitationPrefix, "invitation")
	if err != nil {
		return answer{}, err
	}
	return s.work(q, true, func(w *store.Work) (answer, error) {
		if err := w.ConfirmForMembers(q.ctx, q.id.Identity); err != nil {
			return answer{}, err
		}
		gone, err := w.WithdrawInvitation(q.ctx, id)
		if err != nil {
			return answer{}, err
		}
		return answer{status: http.StatusNoContent}, q.audit(w, "invitation.delete", store.FormatID(store.InvitationPrefix, id), map[string]any{"role": gone.Role})
	})
}

// acceptInvitation lets in whoever holds the token and is the user of the invited mail: signed in, or by making the
// account. It never checks the password of an account that exists: whoever invites an address holds the token too, and
// would try passwords here. That the token was shown to the inviter is also why it proves no address.
func (s *Server) acceptInvitation(q *request) (answer, error) {
	signedIn := q.gin.GetHeader("Authorization") != ""
	body, err := bind(q, func(b *acceptInvitationBody, f *faults) {
		switch {
		case signedIn && b.Password != "":
			f.wrong("password", "must be absent with an access token")
		case !signedIn && b.Password == "":
			f.wrong("password", "is required without an access token")
		}
	})
	if err != nil {
		return answer{}, err
	}
	var guest store.Guest
	if signedIn {
		id, err := s.authenticate(q.gin)
		if err != nil {
			return answer{}, err
		}
		if !id.isSession() {
			return answer{}, refuse(probForbidden, "an API key is nobody who could join; send a user's access token")
		}
		guest = store.Guest{User: id.User, Session: id.Session, Home: id.Workspace}
	}
	if !strings.HasPrefix(body.Token, invitePrefix) {
		s.refused(q.gin, stranger{action: "invitation.accept_failed", user: guest.User})
		return answer{}, refuse(probNotFound, "no such invitation")
	}
	token := hashSecret(body.Token)
	email, err := s.Store.InvitedEmail(q.ctx, token) // before hashing: made-up tokens must cost little
	if store.KindOf(err) == store.NotFound {
		s.refused(q.gin, stranger{action: "invitation.accept_failed", user: guest.User})
	}
	if err != nil {
		return answer{}, err
	}
	verification := ""
	if !signedIn {
		if fault := passwordFault(body.Password, email); fault != "" {
			return answer{}, invalid(fieldError{Field: "password", Detail: fault})
		}
		if guest.PasswordHash, err = s.passwords.hash(q.ctx, body.Password); err != nil {
			return answer{}, err
		}
		verification, guest.VerifyHash = s.newVerification()
	}
	session, refresh := q.newSession()
	in, err := s.Store.Join(q.ctx, token, guest, session)
	if err != nil {
		return answer{}, err
	}
	if signedIn {
		return s.signedIn(http.StatusOK, in, refresh)
	}
	s.mailVerification(in.User.Email, verification)
	return s.signedIn(http.StatusCreated, in, refresh)
}

// user is the sender when they are signed in; null for an API key.
func (id *identity) user() uuid.NullUUID { return uuid.NullUUID{UUID: id.User, Valid: id.isSession()} }

// person is who is behind the sender: the user, or the one that an API key goes back to.
func (id *identity) person() uuid.NullUUID {
	who := id.Origin
	if id.isSession() {
		who = id.User
	}
	return uuid.NullUUID{UUID: who, Valid: who != uuid.Nil}
}
