package store

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// Users as operators see them: never a password's hash, never a token's.

// Account is a user with the workspaces that they are in.
type Account struct {
	User
	Memberships []Membership
}

// Membership is one of an account's workspaces.
type Membership struct {
	Workspace uuid.UUID `db:"workspace_id"`
	Name      string    `db:"name"`
	Status    string    `db:"status"`
	Role      string    `db:"role"`
	JoinedAt  time.Time `db:"created_at"`
}

const userColumns = `u.id, u.email, u.email_verified_at IS NOT NULL AS verified, u.created_at`

// Users lists the accounts that are not erased, newest first, at most limit.
func (s *System) Users(ctx context.Context, limit int) ([]User, error) {
	list := []User{}
	err := s.db.SelectContext(ctx, &list, `SELECT `+userColumns+` FROM users u WHERE u.erased_at IS NULL ORDER BY u.id DESC LIMIT $1`, limit)
	if err != nil {
		return nil, fmt.Errorf("list users: %w", err)
	}
	return list, nil
}

// Account reads the account of an address in lower case. Each of its workspaces notes the look; the system's chain, when it has
// none. NotFound when nobody has the address.
func (s *System) Account(ctx context.Context, email string, by Operator) (Account, error) {
	var a Account
	err := s.inAudited(ctx, func(tx *sqlx.Tx, n *notes) error {
		a = Account{}
		err := tx.GetContext(ctx, &a.User, `SELECT `+userColumns+` FROM users u WHERE u.email = $1 AND u.erased_at IS NULL`, email)
		if err != nil {
			return noRows(fmt.Errorf("read user: %w", err), "user")
		}
		err = tx.SelectContext(ctx, &a.Memberships, `SELECT m.workspace_id, w.name, w.status, m.role, m.created_at FROM members m
			JOIN workspaces w ON w.id = m.workspace_id WHERE m.user_id = $1 ORDER BY m.created_at, m.workspace_id`, a.ID)
		if err != nil {
			return fmt.Errorf("read the user's workspaces: %w", err)
		}
		look := AuditEntry{ActorType: ActorOperator, ActorID: by.Name, Action: "user.read", Target: FormatID(UserPrefix, a.ID)}
		if len(a.Memberships) == 0 {
			return n.add(SystemChain, look)
		}
		return noteForUser(ctx, tx, n, a.ID, look)
	})
	return a, err
}

// AllowReset keeps the SHA-256 of a token that an operator hands to the user of this address, with which they set a new
// password within ResetLife; nothing is mailed. Each of their workspaces notes it. NotFound when nobody has the address.
func (s *System) AllowReset(ctx context.Context, email string, tokenHash []byte, by Operator) error {
	return s.inAudited(ctx, func(tx *sqlx.Tx, n *notes) error {
		var user uuid.UUID
		if err := tx.GetContext(ctx, &user, `SELECT id FROM users WHERE email = $1 AND erased_at IS NULL`, email); err != nil {
			return noRows(fmt.Errorf("read user: %w", err), "user")
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO user_tokens (user_id, token_hash, purpose, expires_at) VALUES ($1, $2, $3, now() + make_interval(secs => $4))`,
			user, tokenHash, purposeReset, ResetLife.Seconds())
		if err != nil {
			return fmt.Errorf("add reset token: %w", err)
		}
		return noteForUser(ctx, tx, n, user, AuditEntry{ActorType: ActorOperator, ActorID: by.Name, Action: "password.reset_allow", Target: FormatID(UserPrefix, user)})
	})
}
