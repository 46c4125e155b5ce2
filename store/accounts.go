package store

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// The roles of a workspace's members, most powerful first.
const (
	RoleOwner  = "owner"
	RoleMember = "member"
	RoleViewer = "viewer"
)

// User is a person who signs in. The password's hash never leaves Credentials.
type User struct {
	ID        uuid.UUID `db:"id"`
	Email     string    `db:"email"`    // lower case
	Verified  bool      `db:"verified"` // the address has proved to be theirs
	CreatedAt time.Time `db:"created_at"`
}

// NewAccount is a registration, already validated (see api).
type NewAccount struct {
	Email         string // lower case, ASCII
	PasswordHash  string // a PHC string
	WorkspaceName string // 1..100 characters
	VerifyHash    []byte // SHA-256 of the token mailed to prove the address; nil: none
}

// SignIn is what somebody has who has just registered, logged in or refreshed.
type SignIn struct {
	User      User
	Workspace Workspace
	Role      string
	Session   uuid.UUID
}

// Register makes a user, a workspace on the first plan with the user as its owner, and a session, all or nothing. A
// mail that is registered already is a Conflict.
func (a *API) Register(ctx context.Context, account NewAccount, s NewSession) (SignIn, error) {
	user, ws := NewID(), NewID()
	var in SignIn
	err := a.inAudited(ctx, Scope{User: user}, func(tx *sqlx.Tx, n *notes) error {
		if err := insertUser(ctx, tx, user, account.Email, account.PasswordHash, account.VerifyHash); err != nil {
			return err
		}
		w := &Work{Workspace: ws, tx: tx, notes: n}
		if err := w.found(ctx, user, account.WorkspaceName); err != nil {
			return err
		}
		var err error
		in, err = w.signIn(ctx, user, s, "account.register")
		return err
	})
	return in, err
}

// insertUser inserts a user, with a token that will prove their mail (nil: none); Conflict when the mail is registered.
// The scope must be the user's.
func insertUser(ctx context.Context, tx *sqlx.Tx, user uuid.UUID, email, passwordHash string, verifyHash []byte) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO users (id, email, password_hash) VALUES ($1, $2, $3)`, user, email, passwordHash)
	if violates(err, "users_email_key") {
		return refuse(Conflict, "this email address is registered already")
	}
	if err != nil {
		return fmt.Errorf("insert user: %w", err)
	}
	if verifyHash != nil {
		if _, err := addUserToken(ctx, tx, user, purposeVerify, verifyHash, VerifyLife); err != nil {
			return err
		}
	}
	return nil
}

// Credentials finds who signs in with this mail and their password's hash; NotFound when nobody does.
func (a *API) Credentials(ctx context.Context, email string) (user uuid.UUID, passwordHash string, err error) {
	var row struct {
		ID   uuid.UUID `db:"id"`
		Hash string    `db:"password_hash"`
	}
	err = a.inScope(ctx, Scope{Email: email}, func(tx *sqlx.Tx) error {
		err := tx.GetContext(ctx, &row, `SELECT id, password_hash FROM users WHERE email = $1`, email)
		if err != nil {
			return noRows(fmt.Errorf("look up user: %w", err), "user")
		}
		return nil
	})
	return row.ID, row.Hash, err
}

// Wanted is the workspace that somebody signs in to: by id, by slug, or (zero) any of theirs.
type Wanted struct {
	ID   uuid.UUID
	Slug string // counts when ID is uuid.Nil
}

// Login opens a session of a user whose password was right, in one of their workspaces (zero: the one they have been in
// longest). A workspace they are not a member of, or that is being deleted, is NotFound, exactly like an unknown one;
// Unauthorized when the
// password is no longer the one whose hash was checked.
func (a *API) Login(ctx context.Context, user uuid.UUID, checkedHash string, workspace Wanted, s NewSession) (SignIn, error) {
	var in SignIn
	err := a.inAudited(ctx, Scope{User: user}, func(tx *sqlx.Tx, n *notes) error {
		hash, err := lockUser(ctx, tx, user)
		if err != nil {
			return err
		}
		if hash != checkedHash {
			return refuse(Unauthorized, "the email address or the password is wrong")
		}
		ws, err := chooseWorkspace(ctx, tx, n, user, workspace, By{IP: s.IP, RequestID: s.RequestID})
		if err != nil {
			return err
		}
		if err := (Scope{Workspace: ws, User: user}).apply(ctx, tx); err != nil {
			return err
		}
		w := &Work{Workspace: ws, tx: tx, notes: n}
		in, err = w.signIn(ctx, user, s, "session.login")
		return err
	})
	return in, err
}

// signIn opens a session of the user in the work's workspace, notes it under the action, and reads the whole; NotFound
// when they are no member, or the workspace is being deleted. It holds the member's row, so that whoever removes the member sees the session. The scope
// must be the workspace's and the user's.
func (w *Work) signIn(ctx context.Context, user uuid.UUID, s NewSession, action string) (SignIn, error) {
	var role string
	err := w.tx.GetContext(ctx, &role, `SELECT role FROM members WHERE workspace_id = $1 AND user_id = $2 FOR SHARE`, w.Workspace, user)
	if err != nil {
		return SignIn{}, noRows(fmt.Errorf("lock member: %w", err), "workspace")
	}
	var active bool // in a statement of its own: whoever deletes the workspace holds the member's row until that is committed
	err = w.tx.GetContext(ctx, &active, `SELECT status = 'active' FROM workspaces WHERE id = $1`, w.Workspace)
	if err != nil {
		return SignIn{}, noRows(fmt.Errorf("read workspace: %w", err), "workspace")
	}
	if !active {
		return SignIn{}, refuse(NotFound, "no such workspace")
	}
	session, err := w.openSession(ctx, user, s)
	if err != nil {
		return SignIn{}, err
	}
	err = w.Audit(AuditEntry{
		ActorType: ActorUser, ActorID: FormatID(UserPrefix, user), IP: s.IP, RequestID: s.RequestID,
		Action: action, Target: FormatID(SessionPrefix, session),
	})
	if err != nil {
		return SignIn{}, err
	}
	return w.account(ctx, user, session)
}

// account reads the user, the workspace and the user's role in it.
func (w *Work) account(ctx context.Context, user, session uuid.UUID) (SignIn, error) {
	in := SignIn{Session: session}
	var row struct {
		User
		Role string `db:"role"`
	}
	err := w.tx.GetContext(ctx, &row, `SELECT u.id, u.email, u.email_verified_at IS NOT NULL AS verified, u.created_at, m.role FROM users u
		JOIN members m ON m.user_id = u.id AND m.workspace_id = $1 WHERE u.id = $2`, w.Workspace, user)
	if err != nil {
		return SignIn{}, noRows(fmt.Errorf("read user: %w", err), "user")
	}
	in.User, in.Role = row.User, row.Role
	in.Workspace, err = w.workspace(ctx)
	return in, err
}

// Account reads who a session belongs to, in one of their workspaces.
func (a *API) Account(ctx context.Context, ws, user uuid.UUID) (SignIn, error) {
	var in SignIn
	err := a.inWorkspace(ctx, ws, func(tx *sqlx.Tx) (err error) {
		in, err = (&Work{Workspace: ws, tx: tx}).account(ctx, user, uuid.Nil)
		return err
	})
	return in, err
}

// Workspace reads one workspace with its limits.
func (a *API) Workspace(ctx context.Context, ws uuid.UUID) (Workspace, error) {
	var row Workspace
	err := a.inWorkspace(ctx, ws, func(tx *sqlx.Tx) (err error) {
		row, err = (&Work{Workspace: ws, tx: tx}).workspace(ctx)
		return err
	})
	return row, err
}

func (w *Work) workspace(ctx context.Context) (Workspace, error) {
	var row Workspace
	err := w.tx.GetContext(ctx, &row, workspaceQuery+` WHERE ws.id = $1`, w.Workspace)
	if err != nil {
		return Workspace{}, noRows(fmt.Errorf("read workspace: %w", err), "workspace")
	}
	return row, nil
}

// WorkspaceChange is what owners change of a workspace; nil leaves a value.
type WorkspaceChange struct {
	Name *string // 1..100 characters
	Slug *string // a DNS label of 3..63 characters; empty: none

	Overage *OverageSetting
}

// Change changes the workspace and returns it as it is then; Conflict when another one has the slug, and see setOverage.
func (w *Work) Change(ctx context.Context, c WorkspaceChange) (Workspace, error) {
	if c.Overage != nil { // first: whoever holds both rows locks the load row first
		if err := w.setOverage(ctx, *c.Overage); err != nil {
			return Workspace{}, err
		}
	}
	done, err := w.tx.ExecContext(ctx, `UPDATE workspaces SET name = coalesce($2::text, name),
			slug = CASE WHEN $3::text IS NULL THEN slug ELSE nullif($3::text, '') END, updated_at = now() WHERE id = $1`, w.Workspace, c.Name, c.Slug)
	if violates(err, "workspaces_slug_key") {
		return Workspace{}, refuse(Conflict, "another workspace has this slug")
	}
	if err != nil {
		return Workspace{}, fmt.Errorf("change workspace: %w", err)
	}
	if n, err := done.RowsAffected(); err != nil {
		return Workspace{}, fmt.Errorf("change workspace: %w", err)
	} else if n == 0 {
		return Workspace{}, errGone
	}
	return w.workspace(ctx)
}
