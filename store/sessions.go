package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// A session is one sign-in. Its refresh tokens are a family: each works once and is replaced by the next, and the
// second use of one means that somebody else has a copy, so the whole session ends. Access tokens name their session
// and are worth nothing once it is revoked.

// SessionLife is how long a session lives after its last refresh, and so how long a refresh token works.
const SessionLife = 30 * 24 * time.Hour

// NewSession is what opens or continues a session: where it comes from and the SHA-256 of its next refresh token.
type NewSession struct {
	RefreshHash []byte // 32 bytes
	UserAgent   string // cut to 256 bytes by the caller
	IP          string
	RequestID   string
}

// Identity is who a credential stands for, as the ledger has it now.
type Identity struct {
	Workspace uuid.UUID
	User      uuid.UUID // uuid.Nil for an API key
	Session   uuid.UUID // uuid.Nil for an API key
	Key       uuid.UUID // uuid.Nil for a session
	Origin    uuid.UUID // of an API key: the person it goes back to, who minted it or the key that minted it; may be uuid.Nil
	Role      string
	Scopes    []string // an API key's; nil for a session, which has all its role's
}

// openSession inserts a session of the user with its first refresh token.
func (w *Work) openSession(ctx context.Context, user uuid.UUID, s NewSession) (uuid.UUID, error) {
	id := NewID()
	_, err := w.tx.ExecContext(ctx, `INSERT INTO sessions (workspace_id, id, user_id, user_agent, ip, expires_at)
		VALUES ($1, $2, $3, $4, $5, now() + make_interval(secs => $6))`, w.Workspace, id, user, s.UserAgent, s.IP, SessionLife.Seconds())
	if err != nil {
		return uuid.Nil, fmt.Errorf("open session: %w", err)
	}
	return id, w.addRefreshToken(ctx, id, s.RefreshHash)
}

func (w *Work) addRefreshToken(ctx context.Context, session uuid.UUID, hash []byte) error {
	_, err := w.tx.ExecContext(ctx, `INSERT INTO refresh_tokens (workspace_id, session_id, token_hash) VALUES ($1, $2, $3)`,
		w.Workspace, session, hash)
	if err != nil {
		return fmt.Errorf("add refresh token: %w", err)
	}
	return nil
}

var errRefresh = &Error{Kind: Unauthorized, Message: "the refresh token is unknown, used, expired or revoked"}

// Refresh takes the refresh token with this SHA-256 and continues its session with the next one, or, when wanted is
// another one than the session's (zero: the same), ends it and opens one there. A token that was used before
// revokes its session; that, an unknown, an expired and a revoked one are the same Unauthorized. A workspace that the
// user is no member of is NotFound, and the token is not spent then.
func (a *API) Refresh(ctx context.Context, presented []byte, wanted Wanted, s NewSession) (SignIn, error) {
	var in SignIn
	refused := false // kept outside the error, because the revocation must commit
	err := a.inAudited(ctx, Scope{Credential: presented}, func(tx *sqlx.Tx, n *notes) error {
		refused = false
		var token struct {
			Workspace uuid.UUID `db:"workspace_id"`
			Session   uuid.UUID `db:"session_id"`
		}
		err := tx.GetContext(ctx, &token, `SELECT workspace_id, session_id FROM refresh_tokens WHERE token_hash = $1`, presented)
		if errors.Is(err, sql.ErrNoRows) {
			return errRefresh
		}
		if err != nil {
			return fmt.Errorf("look up refresh token: %w", err)
		}
		if err := (Scope{Workspace: token.Workspace}).apply(ctx, tx); err != nil {
			return err
		}
		w := &Work{Workspace: token.Workspace, tx: tx, notes: n}
		workspace, err := w.wantedBy(ctx, token.Session, wanted)
		if err != nil {
			return err
		}
		if workspace == uuid.Nil || workspace == token.Workspace {
			in, refused, err = w.refresh(ctx, token.Session, presented, s)
		} else {
			in, refused, err = w.switchTo(ctx, workspace, token.Session, presented, s)
		}
		return err
	})
	if err == nil && refused {
		err = errRefresh
	}
	return in, err
}

// wantedBy is the wanted workspace of the session's user. A slug that is none of theirs becomes an id that is nobody's, so
// that it goes the way of a foreign workspace's.
func (w *Work) wantedBy(ctx context.Context, session uuid.UUID, wanted Wanted) (uuid.UUID, error) {
	if wanted.ID != uuid.Nil || wanted.Slug == "" {
		return wanted.ID, nil
	}
	var user, workspace uuid.UUID
	if err := w.tx.GetContext(ctx, &user, `SELECT user_id FROM sessions WHERE workspace_id = $1 AND id = $2`, w.Workspace, session); err != nil {
		return uuid.Nil, fmt.Errorf("read session: %w", err)
	}
	if err := (Scope{User: user}).apply(ctx, w.tx); err != nil {
		return uuid.Nil, err
	}
	workspace, err := chooseWorkspace(ctx, w.tx, w.notes, user, wanted, By{})
	if KindOf(err) == NotFound {
		workspace, err = NewID(), nil
	}
	if err != nil {
		return uuid.Nil, err
	}
	return workspace, (Scope{Workspace: w.Workspace}).apply(ctx, w.tx)
}

// refresh continues the session.
func (w *Work) refresh(ctx context.Context, session uuid.UUID, presented []byte, s NewSession) (in SignIn, refused bool, err error) {
	user, refused, err := w.spendRefreshToken(ctx, session, presented, s)
	if err != nil || refused {
		return in, refused, err
	}
	if err := w.addRefreshToken(ctx, session, s.RefreshHash); err != nil {
		return in, false, err
	}
	_, err = w.tx.ExecContext(ctx, `UPDATE sessions SET expires_at = now() + make_interval(secs => $3) WHERE workspace_id = $1 AND id = $2`,
		w.Workspace, session, SessionLife.Seconds())
	if err != nil {
		return in, false, fmt.Errorf("extend session: %w", err)
	}
	in, err = w.account(ctx, user, session)
	if KindOf(err) == NotFound { // no member any more
		return SignIn{}, false, errRefresh
	}
	return in, false, err
}

// switchTo ends the session and opens one in another workspace. The user is locked before the session, like everywhere
// (see recovery.go).
func (w *Work) switchTo(ctx context.Context, workspace, session uuid.UUID, presented []byte, s NewSession) (in SignIn, refused bool, err error) {
	var user uuid.UUID
	if err := w.tx.GetContext(ctx, &user, `SELECT user_id FROM sessions WHERE workspace_id = $1 AND id = $2`, w.Workspace, session); err != nil {
		return in, false, fmt.Errorf("read session: %w", err)
	}
	if err := (Scope{Workspace: w.Workspace, User: user}).apply(ctx, w.tx); err != nil {
		return in, false, err
	}
	if _, err := lockUser(ctx, w.tx, user); err != nil {
		return in, false, err
	}
	if _, refused, err = w.spendRefreshToken(ctx, session, presented, s); err != nil || refused {
		return in, refused, err
	}
	if _, err := w.RevokeSession(ctx, session, "went to another workspace"); err != nil {
		return in, false, err
	}
	err = w.Audit(AuditEntry{ActorType: ActorUser, ActorID: FormatID(UserPrefix, user), IP: s.IP, RequestID: s.RequestID,
		Action: "session.leave", Target: FormatID(SessionPrefix, session)})
	if err != nil {
		return in, false, err
	}
	if err := (Scope{Workspace: workspace, User: user}).apply(ctx, w.tx); err != nil {
		return in, false, err
	}
	in, err = (&Work{Workspace: workspace, tx: w.tx, notes: w.notes}).signIn(ctx, user, s, "session.switch")
	return in, false, err
}

// spendRefreshToken marks the token as used, under the session's row lock, so that two uses of one token meet. refused:
// the session has ended, or ends now because the token was used before.
func (w *Work) spendRefreshToken(ctx context.Context, session uuid.UUID, presented []byte, s NewSession) (user uuid.UUID, refused bool, err error) {
	var row struct {
		User  uuid.UUID `db:"user_id"`
		Alive bool      `db:"alive"`
	}
	err = w.tx.GetContext(ctx, &row, `SELECT user_id, revoked_at IS NULL AND expires_at > now() AS alive FROM sessions
		WHERE workspace_id = $1 AND id = $2 FOR NO KEY UPDATE`, w.Workspace, session)
	if err != nil {
		return user, false, fmt.Errorf("lock session: %w", err)
	}
	if !row.Alive {
		return user, true, nil
	}
	var fresh bool
	err = w.tx.GetContext(ctx, &fresh, `SELECT used_at IS NULL FROM refresh_tokens WHERE workspace_id = $1 AND token_hash = $2`,
		w.Workspace, presented)
	if err != nil {
		return user, false, fmt.Errorf("read refresh token: %w", err)
	}
	if !fresh {
		if _, err := w.RevokeSession(ctx, session, "refresh token reused"); err != nil {
			return user, false, err
		}
		return user, true, w.Audit(AuditEntry{ActorType: ActorUser, ActorID: FormatID(UserPrefix, row.User), IP: s.IP, RequestID: s.RequestID,
			Action: "session.reuse_detected", Target: FormatID(SessionPrefix, session)})
	}
	_, err = w.tx.ExecContext(ctx, `UPDATE refresh_tokens SET used_at = now() WHERE workspace_id = $1 AND token_hash = $2`, w.Workspace, presented)
	if err != nil {
		return user, false, fmt.Errorf("spend refresh token: %w", err)
	}
	return row.User, false, nil
}

// Session is a live session as its user sees it among their others.
type Session struct {
	ID        uuid.UUID `db:"id"`
	Workspace uuid.UUID `db:"workspace_id"`
	UserAgent string    `db:"user_agent"`
	IP        string    `db:"ip"`
	CreatedAt time.Time `db:"created_at"`
	ExpiresAt time.Time `db:"expires_at"` // unless it is refreshed
}

// Sessions lists the user's live sessions in all their workspaces, newest first, those below before (uuid.Nil: from the
// start).
func (a *API) Sessions(ctx context.Context, user, before uuid.UUID, limit int) ([]Session, error) {
	list := []Session{}
	err := a.inScope(ctx, Scope{User: user}, func(tx *sqlx.Tx) error {
		return tx.SelectContext(ctx, &list, `SELECT s.id, s.workspace_id, s.user_agent, s.ip, s.created_at, s.expires_at FROM sessions s
			JOIN members m ON m.workspace_id = s.workspace_id AND m.user_id = s.user_id
			WHERE s.user_id = $1 AND s.id < $2 AND s.revoked_at IS NULL AND s.expires_at > now() ORDER BY s.id DESC LIMIT $3`, user, orMax(before), limit)
	})
	if err != nil {
		return nil, fmt.Errorf("list sessions: %w", err)
	}
	return list, nil
}

// RevokeOwnSession ends one of the user's live sessions, in whichever of their workspaces; NotFound when it is none.
func (a *API) RevokeOwnSession(ctx context.Context, user, session uuid.UUID, by By) error {
	return a.inAudited(ctx, Scope{User: user}, func(tx *sqlx.Tx, n *notes) error {
		var ws uuid.UUID
		err := tx.GetContext(ctx, &ws, `UPDATE sessions SET revoked_at = now(), revoked_why = 'revoked by its user'
			WHERE user_id = $1 AND id = $2 AND revoked_at IS NULL AND expires_at > now() RETURNING workspace_id`, user, session)
		if err != nil {
			return noRows(fmt.Errorf("revoke session: %w", err), "session")
		}
		return n.add(ws, AuditEntry{ActorType: ActorUser, ActorID: FormatID(UserPrefix, user), Action: "session.revoke",
			Target: FormatID(SessionPrefix, session), IP: by.IP, RequestID: by.RequestID})
	})
}

// RevokeSession ends a session of the workspace, its tokens with it. It reports whether it was alive.
func (w *Work) RevokeSession(ctx context.Context, session uuid.UUID, why string) (bool, error) {
	done, err := w.tx.ExecContext(ctx, `UPDATE sessions SET revoked_at = now(), revoked_why = $3
		WHERE workspace_id = $1 AND id = $2 AND revoked_at IS NULL`, w.Workspace, session, why)
	if err != nil {
		return false, fmt.Errorf("revoke session: %w", err)
	}
	n, err := done.RowsAffected()
	return n == 1, err
}

// CheckSession reports who an access token's session stands for now: Unauthorized when the session has ended, is not
// the user's, or the user is no longer a member. One round trip (function check_session, migration 00015).
func (a *API) CheckSession(ctx context.Context, ws, user, session uuid.UUID) (Identity, error) {
	var role sql.NullString
	if err := a.db.GetContext(ctx, &role, `SELECT check_session($1, $2, $3)`, ws, user, session); err != nil {
		return Identity{}, fmt.Errorf("check session: %w", err)
	}
	if !role.Valid {
		return Identity{}, refuse(Unauthorized, "the session has ended")
	}
	return Identity{Workspace: ws, User: user, Session: session, Role: role.String}, nil
}

// Confirm makes sure, in the work's transaction, that the sender still has the credential and the role that they were
// believed to have a moment ago; Unauthorized otherwise. Whoever hands out rights that outlive the request asks it
// first. It holds the member's row, so that a change of their rights waits and then sees what was handed out.
func (w *Work) Confirm(ctx context.Context, id Identity) error {
	person := id.User
	if id.Key != uuid.Nil {
		person = id.Origin
	}
	var roles []string // none when the key's person has left and the key was kept
	err := w.tx.SelectContext(ctx, &roles, `SELECT role FROM members WHERE workspace_id = $1 AND user_id = $2 FOR SHARE`, w.Workspace, person)
	if err != nil {
		return fmt.Errorf("confirm member: %w", err)
	}
	var holds bool
	if id.Key != uuid.Nil {
		err = w.tx.GetContext(ctx, &holds, `SELECT EXISTS (SELECT 1 FROM api_keys WHERE workspace_id = $1 AND id = $2 AND role = $3
			AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now()))`, w.Workspace, id.Key, id.Role)
	} else {
		err = w.tx.GetContext(ctx, &holds, `SELECT EXISTS (SELECT 1 FROM sessions WHERE workspace_id = $1 AND id = $2 AND user_id = $3
			AND revoked_at IS NULL AND expires_at > now())`, w.Workspace, id.Session, person)
		holds = holds && len(roles) == 1 && roles[0] == id.Role
	}
	if err != nil {
		return fmt.Errorf("confirm credential: %w", err)
	}
	if !holds {
		return refuse(Unauthorized, "the credential or its rights have changed")
	}
	return nil
}

// ConfirmForMembers is Confirm for a sender who changes members or invitations: it takes the lock under which these
// change before it holds the sender's own row.
func (w *Work) ConfirmForMembers(ctx context.Context, id Identity) error {
	if _, err := w.lockMembers(ctx); err != nil {
		return err
	}
	return w.Confirm(ctx, id)
}
