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

// A member is a user in a workspace, with a role. Every change of who is in a workspace or how many may be locks the
// workspace's row first, so that the last owner stays and no more users come in than the plan has, however many requests
// meet. A change of rights reaches back: what the person has handed out with the rights that they lose ends with them.

// Member is one user of a workspace.
type Member struct {
	User     uuid.UUID `db:"user_id"`
	Email    string    `db:"email"`
	Role     string    `db:"role"`
	JoinedAt time.Time `db:"created_at"`
}

// MemberKey is a member's place in the list.
type MemberKey struct {
	JoinedAt time.Time
	User     uuid.UUID
}

const memberQuery = `SELECT m.user_id, u.email, m.role, m.created_at FROM members m JOIN users u ON u.id = m.user_id WHERE m.workspace_id = $1`

// Members lists the workspace's members, who joined last first, those before the key (nil: from the start).
func (a *API) Members(ctx context.Context, ws uuid.UUID, before *MemberKey, limit int) ([]Member, error) {
	list := []Member{}
	err := a.inWorkspace(ctx, ws, func(tx *sqlx.Tx) error {
		query, args := memberQuery, []any{ws, limit}
		if before != nil {
			query, args = query+` AND (m.created_at, m.user_id) < ($3, $4)`, append(args, before.JoinedAt, before.User)
		}
		return tx.SelectContext(ctx, &list, query+` ORDER BY m.created_at DESC, m.user_id DESC LIMIT $2`, args...)
	})
	if err != nil {
		return nil, fmt.Errorf("list members: %w", err)
	}
	return list, nil
}

// Member reads one member of the workspace, and notes the read if noted is one.
func (a *API) Member(ctx context.Context, ws, user uuid.UUID, noted *AuditEntry) (Member, error) {
	var m Member
	err := a.inAudited(ctx, Scope{Workspace: ws}, func(tx *sqlx.Tx, n *notes) (err error) {
		if m, err = (&Work{Workspace: ws, tx: tx}).member(ctx, user); err != nil || noted == nil {
			return err
		}
		return n.add(ws, *noted)
	})
	return m, err
}

func (w *Work) member(ctx context.Context, user uuid.UUID) (Member, error) {
	var m Member
	if err := w.tx.GetContext(ctx, &m, memberQuery+` AND m.user_id = $2`, w.Workspace, user); err != nil {
		return m, noRows(fmt.Errorf("read member: %w", err), "member")
	}
	return m, nil
}

// lockMembers locks the workspace's row, under which alone its members and invitations change, and returns how many
// users it may have (0: any number). Unauthorized when the workspace is leaving: nothing of it changes then.
func (w *Work) lockMembers(ctx context.Context) (maxUsers int, err error) {
	err = w.tx.GetContext(ctx, &maxUsers, `SELECT max_users FROM workspaces WHERE id = $1 FOR NO KEY UPDATE`, w.Workspace)
	if err != nil {
		if errors.Is(err, sql.ErrNoRows) {
			return 0, errGone
		}
		return 0, fmt.Errorf("lock workspace: %w", err)
	}
	return maxUsers, nil
}

// Lost is what others lost by a change of a member's rights.
type Lost struct {
	Before      Member
	Keys        int // API keys revoked
	Invitations int // open invitations withdrawn
}

// SetRole gives a member another role; the last owner keeps theirs (Conflict). What the person minted with more rights
// than they have now ends: their keys of a higher role (unless keepKeys), and their invitations when they may not
// invite any more.
func (w *Work) SetRole(ctx context.Context, user uuid.UUID, role string, keepKeys bool) (Member, Lost, error) {
	lost, err := w.lockMember(ctx, user, role)
	if err != nil {
		return Member{}, lost, err
	}
	_, err = w.tx.ExecContext(ctx, `UPDATE members SET role = $3 WHERE workspace_id = $1 AND user_id = $2`, w.Workspace, user, role)
	if err != nil {
		return Member{}, lost, fmt.Errorf("set role: %w", err)
	}
	if !keepKeys {
		if lost.Keys, err = w.revokeKeysOf(ctx, user, role); err != nil {
			return Member{}, lost, err
		}
	}
	if role != RoleOwner {
		if lost.Invitations, err = w.withdrawInvitationsOf(ctx, user, ""); err != nil {
			return Member{}, lost, err
		}
	}
	m, err := w.member(ctx, user)
	return m, lost, err
}

// RemoveMember takes a user out of the workspace; the last owner stays (Conflict). Their sessions here end, and so do
// the invitations that they sent or were sent, and the API keys that they, or keys of theirs, minted (unless keepKeys).
func (w *Work) RemoveMember(ctx context.Context, user uuid.UUID, keepKeys bool) (Lost, error) {
	lost, err := w.lockMember(ctx, user, "")
	if err != nil {
		return lost, err
	}
	_, err = w.tx.ExecContext(ctx, `DELETE FROM members WHERE workspace_id = $1 AND user_id = $2`, w.Workspace, user)
	if err != nil {
		return lost, fmt.Errorf("remove member: %w", err)
	}
	// A statement of its own, after the DELETE: whoever signs in at this moment holds the member's row until the session
	// is there to be seen (see signIn).
	_, err = w.tx.ExecContext(ctx, `UPDATE sessions SET revoked_at = now(), revoked_why = 'member removed'
		WHERE workspace_id = $1 AND user_id = $2 AND revoked_at IS NULL`, w.Workspace, user)
	if err != nil {
		return lost, fmt.Errorf("end the member's sessions: %w", err)
	}
	if !keepKeys {
		if lost.Keys, err = w.revokeKeysOf(ctx, user, ""); err != nil {
			return lost, err
		}
	}
	lost.Invitations, err = w.withdrawInvitationsOf(ctx, user, lost.Before.Email)
	return lost, err
}

// lockMember locks the members and reads one, who is about to have another role ("": none). Conflict when that would
// leave the workspace without an owner.
func (w *Work) lockMember(ctx context.Context, user uuid.UUID, role string) (Lost, error) {
	if _, err := w.lockMembers(ctx); err != nil {
		return Lost{}, err
	}
	m, err := w.member(ctx, user)
	if err != nil {
		return Lost{}, err
	}
	if m.Role == RoleOwner && role != RoleOwner {
		var others int
		err := w.tx.GetContext(ctx, &others, `SELECT count(*) FROM members WHERE workspace_id = $1 AND role = $2 AND user_id <> $3`,
			w.Workspace, RoleOwner, user)
		if err != nil {
			return Lost{}, fmt.Errorf("count owners: %w", err)
		}
		if others == 0 {
			return Lost{}, refuse(Conflict, "this is the workspace's last owner; make somebody else an owner first")
		}
	}
	return Lost{Before: m}, nil
}

// revokeKeysOf ends the keys that go back to the user and have a higher role than this one ("": all).
func (w *Work) revokeKeysOf(ctx context.Context, user uuid.UUID, above string) (int, error) {
	done, err := w.tx.ExecContext(ctx, `UPDATE api_keys SET revoked_at = now() WHERE workspace_id = $1 AND origin_user = $2 AND revoked_at IS NULL
		AND ($3 = '' OR array_position(ARRAY['owner', 'member', 'viewer'], role) < array_position(ARRAY['owner', 'member', 'viewer'], $3))`,
		w.Workspace, user, above)
	if err != nil {
		return 0, fmt.Errorf("revoke the member's API keys: %w", err)
	}
	n, err := done.RowsAffected()
	return int(n), err
}

// withdrawInvitationsOf ends the open invitations that the user sent, and those that were sent to email ("": nobody's).
func (w *Work) withdrawInvitationsOf(ctx context.Context, user uuid.UUID, email string) (int, error) {
	done, err := w.tx.ExecContext(ctx, `UPDATE invitations SET revoked_at = now() WHERE workspace_id = $1 AND accepted_at IS NULL AND revoked_at IS NULL
		AND (invited_by = $2 OR email = $3)`, w.Workspace, user, email)
	if err != nil {
		return 0, fmt.Errorf("withdraw the member's invitations: %w", err)
	}
	n, err := done.RowsAffected()
	return int(n), err
}
