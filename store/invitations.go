package store

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// An invitation lets one mail address into one workspace with one role. It is open until it is accepted, withdrawn
// (revoked) or expired, works once, and is known to the ledger by its token's hash only. A new invitation of the same
// mail replaces the open one.

// InvitationLife is how long an invitation can be accepted.
const InvitationLife = 7 * 24 * time.Hour

// Invitation is an open invitation as lists show it.
type Invitation struct {
	ID        uuid.UUID     `db:"id"`
	Email     string        `db:"email"`
	Role      string        `db:"role"`
	InvitedBy uuid.NullUUID `db:"invited_by"` // the user, also when one of their keys did it
	CreatedAt time.Time     `db:"created_at"`
	ExpiresAt time.Time     `db:"expires_at"`
}

const invitationColumns = `id, email, role, invited_by, created_at, expires_at`

// openInvitation is the condition under which an invitation can be accepted.
const openInvitation = `accepted_at IS NULL AND revoked_at IS NULL AND expires_at > now()`

// NewInvitation is an invitation to be made, already validated.
type NewInvitation struct {
	Email     string // lower case
	Role      string
	TokenHash []byte // SHA-256 of the token
	InvitedBy uuid.NullUUID
}

// Invite makes an invitation. PlanLimit when members and open invitations are as many as the workspace may have users,
// Conflict when the mail is a member's.
func (w *Work) Invite(ctx context.Context, n NewInvitation) (Invitation, error) {
	var made Invitation
	maxUsers, err := w.lockMembers(ctx)
	if err != nil {
		return made, err
	}
	var known bool
	err = w.tx.GetContext(ctx, &known, `SELECT EXISTS (SELECT 1 FROM members m JOIN users u ON u.id = m.user_id WHERE m.workspace_id = $1 AND u.email = $2)`,
		w.Workspace, n.Email)
	if err != nil {
		return made, fmt.Errorf("look for a member: %w", err)
	}
	if known {
		return made, refuse(Conflict, "this email address is a member's already")
	}
	_, err = w.tx.ExecContext(ctx, `UPDATE invitations SET revoked_at = now() WHERE workspace_id = $1 AND email = $2 AND accepted_at IS NULL AND revoked_at IS NULL`,
		w.Workspace, n.Email)
	if err != nil {
		return made, fmt.Errorf("replace invitation: %w", err)
	}
	var users int
	err = w.tx.GetContext(ctx, &users, `SELECT (SELECT count(*) FROM members WHERE workspace_id = $1)
		+ (SELECT count(*) FROM invitations WHERE workspace_id = $1 AND `+openInvitation+`)`, w.Workspace)
	if err != nil {
		return made, fmt.Errorf("count users: %w", err)
	}
	if maxUsers > 0 && users >= maxUsers {
		return made, errTooManyUsers(maxUsers)
	}
	err = w.tx.GetContext(ctx, &made, `INSERT INTO invitations (workspace_id, id, email, role, token_hash, invited_by, expires_at)
		VALUES ($1, $2, $3, $4, $5, $6, now() + make_interval(secs => $7)) RETURNING `+invitationColumns,
		w.Workspace, NewID(), n.Email, n.Role, n.TokenHash, n.InvitedBy, InvitationLife.Seconds())
	if err != nil {
		return made, fmt.Errorf("insert invitation: %w", err)
	}
	return made, nil
}

func errTooManyUsers(maxUsers int) error {
	return refuse(PlanLimit, "the plan includes %d user(s), open invitations counted", maxUsers)
}

// Invitations lists the workspace's open invitations, newest first, those below before (uuid.Nil: from the start).
func (a *API) Invitations(ctx context.Context, ws, before uuid.UUID, limit int) ([]Invitation, error) {
	list := []Invitation{}
	err := a.inWorkspace(ctx, ws, func(tx *sqlx.Tx) error {
		return tx.SelectContext(ctx, &list, `SELECT `+invitationColumns+` FROM invitations
			WHERE workspace_id = $1 AND id < $2 AND `+openInvitation+` ORDER BY id DESC LIMIT $3`, ws, orMax(before), limit)
	})
	if err != nil {
		return nil, fmt.Errorf("list invitations: %w", err)
	}
	return list, nil
}

// WithdrawInvitation ends an open invitation.
func (w *Work) WithdrawInvitation(ctx context.Context, id uuid.UUID) (Invitation, error) {
	var gone Invitation
	err := w.tx.GetContext(ctx, &gone, `UPDATE invitations SET revoked_at = now() WHERE workspace_id = $1 AND id = $2 AND `+openInvitation+`
		RETURNING `+invitationColumns, w.Workspace, id)
	if err != nil {
		return gone, noRows(fmt.Errorf("withdraw invitation: %w", err), "invitation")
	}
	return gone, nil
}

// InvitedEmail reads whom the token with this SHA-256 invites; NotFound when it is unknown, used, withdrawn or expired.
func (a *API) InvitedEmail(ctx context.Context, tokenHash []byte) (email string, err error) {
	err = a.inScope(ctx, Scope{Credential: tokenHash}, func(tx *sqlx.Tx) error {
		err := tx.GetContext(ctx, &email, `SELECT email FROM invitations WHERE token_hash = $1 AND `+openInvitation, tokenHash)
		if err != nil {
			return noRows(fmt.Errorf("look up invitation: %w", err), "invitation")
		}
		return nil
	})
	return email, err
}

// Guest is who accepts an invitation: a user who is signed in (with the session that says so), or a new one.
type Guest struct {
	User    uuid.UUID // uuid.Nil: a new user
	Session uuid.UUID // of User, in Workspace
	Home    uuid.UUID // the session's workspace

	PasswordHash string // of a new user
	VerifyHash   []byte // of a new user: SHA-256 of the token mailed to them; nil: none
}

// Join accepts the invitation with this SHA-256 and opens a session of the guest in its workspace. NotFound when the
// invitation cannot be accepted any more; Conflict when it is for another mail than the user's, when the new user's mail
// has an account already, or when the user is a member; PlanLimit when the workspace has no room.
func (a *API) Join(ctx context.Context, tokenHash []byte, g Guest, s NewSession) (SignIn, error) {
	user := g.User
	if user == uuid.Nil {
		user = NewID()
	}
	var in SignIn
	err := a.inAudited(ctx, Scope{Credential: tokenHash}, func(tx *sqlx.Tx, n *notes) error {
		var ws uuid.UUID
		if err := tx.GetContext(ctx, &ws, `SELECT workspace_id FROM invitations WHERE token_hash = $1`, tokenHash); err != nil {
			return noRows(fmt.Errorf("look up invitation: %w", err), "invitation")
		}
		if g.User != uuid.Nil {
			if err := holdSession(ctx, tx, g); err != nil {
				return err
			}
		}
		if err := (Scope{Workspace: ws, User: user}).apply(ctx, tx); err != nil {
			return err
		}
		w := &Work{Workspace: ws, tx: tx, notes: n}
		if err := w.acceptInvitation(ctx, tokenHash, user, g, s); err != nil {
			return err
		}
		var err error
		in, err = w.signIn(ctx, user, s, "session.login")
		return err
	})
	return in, err
}

// holdSession makes sure that the guest's session is alive and that a change of their password waits for this
// transaction, so that it sees the session that is opened here.
func holdSession(ctx context.Context, tx *sqlx.Tx, g Guest) error {
	if err := (Scope{User: g.User}).apply(ctx, tx); err != nil {
		return err
	}
	if _, err := lockUser(ctx, tx, g.User); err != nil {
		return err
	}
	var alive bool
	err := tx.GetContext(ctx, &alive, `SELECT EXISTS (SELECT 1 FROM sessions WHERE workspace_id = $1 AND id = $2 AND user_id = $3
		AND revoked_at IS NULL AND expires_at > now())`, g.Home, g.Session, g.User)
	if err != nil {
		return fmt.Errorf("check session: %w", err)
	}
	if !alive {
		return refuse(Unauthorized, "the session has ended")
	}
	return nil
}

// acceptInvitation is Join in the invitation's workspace, up to the member.
func (w *Work) acceptInvitation(ctx context.Context, tokenHash []byte, user uuid.UUID, g Guest, s NewSession) error {
	maxUsers, err := w.lockMembers(ctx)
	if KindOf(err) == Unauthorized { // the workspace is leaving, and its invitations have ended
		return refuse(NotFound, "no such invitation")
	}
	if err != nil {
		return err
	}
	var i Invitation
	err = w.tx.GetContext(ctx, &i, `UPDATE invitations SET accepted_at = now() WHERE workspace_id = $1 AND token_hash = $2 AND `+openInvitation+`
		RETURNING `+invitationColumns, w.Workspace, tokenHash)
	if err != nil {
		return noRows(fmt.Errorf("spend invitation: %w", err), "invitation")
	}
	if g.User == uuid.Nil {
		err := insertUser(ctx, w.tx, user, i.Email, g.PasswordHash, g.VerifyHash)
		if KindOf(err) == Conflict {
			return refuse(Conflict, "the invited email address has an account: sign in and accept with its access token")
		}
		if err != nil {
			return err
		}
	} else {
		var email string
		if err := w.tx.GetContext(ctx, &email, `SELECT email FROM users WHERE id = $1`, user); err != nil {
			return noRows(fmt.Errorf("read user: %w", err), "user")
		}
		if email != i.Email {
			return refuse(Conflict, "the invitation is for another email address than yours")
		}
	}
	var users int
	if err := w.tx.GetContext(ctx, &users, `SELECT count(*) FROM members WHERE workspace_id = $1 AND user_id <> $2`, w.Workspace, user); err != nil {
		return fmt.Errorf("count members: %w", err)
	}
	if maxUsers > 0 && users >= maxUsers {
		return errTooManyUsers(maxUsers)
	}
	_, err = w.tx.ExecContext(ctx, `INSERT INTO members (workspace_id, user_id, role) VALUES ($1, $2, $3)`, w.Workspace, user, i.Role)
	if violates(err, "members_pkey") {
		return refuse(Conflict, "you are a member of this workspace already")
	}
	if err != nil {
		return fmt.Errorf("insert member: %w", err)
	}
	return w.Audit(AuditEntry{ActorType: ActorUser, ActorID: FormatID(UserPrefix, user), IP: s.IP, RequestID: s.RequestID,
		Action: "member.join", Target: FormatID(UserPrefix, user),
		Details: map[string]any{"role": i.Role, "invitation": FormatID(InvitationPrefix, i.ID), "new_account": g.User == uuid.Nil}})
}
