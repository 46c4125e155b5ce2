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

// Passwords change in two ways: by their owner, who knows the old one, or with a token that was mailed to the account's
// address. Either locks the user's row first; whoever opens a session holds that row too (lockUser), so that a session
// opened with the old password is always among those that end. A person is in several workspaces, and each of these
// notes it in its audit log.

// How long the tokens work that are mailed to a user.
const (
	ResetLife  = time.Hour
	VerifyLife = 7 * 24 * time.Hour
)

// mailsPerHour is how many tokens of a purpose a user is mailed in an hour at most.
const mailsPerHour = 3

// The purposes of a mailed token.
const (
	purposeReset  = "reset"
	purposeVerify = "verify"
)

// By is where a user's deed comes from, for the audit log.
type By struct{ IP, RequestID string }

// lockUser keeps the user's password from changing until the transaction ends, and returns its hash. The scope must be
// the user's.
func lockUser(ctx context.Context, tx *sqlx.Tx, user uuid.UUID) (passwordHash string, err error) {
	err = tx.GetContext(ctx, &passwordHash, `SELECT password_hash FROM users WHERE id = $1 FOR SHARE`, user)
	if err != nil {
		return "", noRows(fmt.Errorf("lock user: %w", err), "user")
	}
	return passwordHash, nil
}

// OwnCredentials reads the address and the password hash of a user who is signed in.
func (a *API) OwnCredentials(ctx context.Context, user uuid.UUID) (email, passwordHash string, err error) {
	err = a.inScope(ctx, Scope{User: user}, func(tx *sqlx.Tx) error {
		err := tx.QueryRowxContext(ctx, `SELECT email, password_hash FROM users WHERE id = $1`, user).Scan(&email, &passwordHash)
		if err != nil {
			return noRows(fmt.Errorf("read user: %w", err), "user")
		}
		return nil
	})
	return email, passwordHash, err
}

// ChangePassword replaces the hash that the user has just proved to know, and ends all their other sessions. Conflict
// when the password was changed meanwhile.
func (a *API) ChangePassword(ctx context.Context, user, session uuid.UUID, known, replacement string, by By) error {
	return a.inAudited(ctx, Scope{User: user}, func(tx *sqlx.Tx, n *notes) error {
		done, err := tx.ExecContext(ctx, `UPDATE users SET password_hash = $3 WHERE id = $1 AND password_hash = $2`, user, known, replacement)
		if err != nil {
			return fmt.Errorf("change password: %w", err)
		}
		if n, err := done.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, refuse(Conflict, "the password was changed meanwhile"))
		}
		return passwordChanged(ctx, tx, n, user, session, "password.change", by)
	})
}

// passwordChanged ends the user's sessions but the one to keep, spends the reset tokens, and notes the deed.
func passwordChanged(ctx context.Context, tx *sqlx.Tx, n *notes, user, keep uuid.UUID, action string, by By) error {
	done, err := tx.ExecContext(ctx, `UPDATE sessions SET revoked_at = now(), revoked_why = $3 WHERE user_id = $1 AND id <> $2 AND revoked_at IS NULL`,
		user, keep, action)
	if err != nil {
		return fmt.Errorf("end sessions: %w", err)
	}
	ended, err := done.RowsAffected()
	if err != nil {
		return fmt.Errorf("end sessions: %w", err)
	}
	_, err = tx.ExecContext(ctx, `UPDATE user_tokens SET used_at = now() WHERE user_id = $1 AND purpose = $2 AND used_at IS NULL`, user, purposeReset)
	if err != nil {
		return fmt.Errorf("spend reset tokens: %w", err)
	}
	return noteEverywhere(ctx, tx, n, user, action, map[string]any{"sessions_ended": ended}, by)
}

// AskReset keeps a reset token's SHA-256 for the user of this mail. due is false, and nothing is kept, when nobody has
// the mail or too many tokens were asked for lately: then nothing must be mailed.
func (a *API) AskReset(ctx context.Context, email string, tokenHash []byte, by By) (due bool, err error) {
	err = a.inAudited(ctx, Scope{Email: email}, func(tx *sqlx.Tx, n *notes) error {
		due = false
		var user uuid.UUID
		err := tx.GetContext(ctx, &user, `SELECT id FROM users WHERE email = $1`, email)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("look up user: %w", err)
		}
		if err := (Scope{User: user}).apply(ctx, tx); err != nil {
			return err
		}
		if due, err = addUserToken(ctx, tx, user, purposeReset, tokenHash, ResetLife); err != nil || !due {
			return err
		}
		return noteEverywhere(ctx, tx, n, user, "password.reset_request", nil, by)
	})
	return due, err
}

// AskVerification keeps a verification token's SHA-256 for the user. due is false, and nothing is kept, when the mail is
// verified or too many tokens were asked for lately.
func (a *API) AskVerification(ctx context.Context, user uuid.UUID, tokenHash []byte, by By) (email string, due bool, err error) {
	err = a.inAudited(ctx, Scope{User: user}, func(tx *sqlx.Tx, n *notes) error {
		due = false
		var row struct {
			Email    string `db:"email"`
			Verified bool   `db:"verified"`
		}
		err := tx.GetContext(ctx, &row, `SELECT email, email_verified_at IS NOT NULL AS verified FROM users WHERE id = $1`, user)
		if err != nil {
			return noRows(fmt.Errorf("read user: %w", err), "user")
		}
		if email = row.Email; row.Verified {
			return nil
		}
		if due, err = addUserToken(ctx, tx, user, purposeVerify, tokenHash, VerifyLife); err != nil || !due {
			return err
		}
		return noteEverywhere(ctx, tx, n, user, "email.verify_request", nil, by)
	})
	return email, due, err
}

// addUserToken keeps a token's hash unless the user has been mailed enough of its purpose in the last hour.
func addUserToken(ctx context.Context, tx *sqlx.Tx, user uuid.UUID, purpose string, tokenHash []byte, life time.Duration) (added bool, err error) {
	if _, err := tx.ExecContext(ctx, `SELECT 1 FROM users WHERE id = $1 FOR NO KEY UPDATE`, user); err != nil {
		return false, fmt.Errorf("lock user: %w", err)
	}
	done, err := tx.ExecContext(ctx, `INSERT INTO user_tokens (user_id, token_hash, purpose, expires_at)
		SELECT $1, $2, $3, now() + make_interval(secs => $4)
		WHERE (SELECT count(*) FROM user_tokens WHERE user_id = $1 AND purpose = $3 AND created_at > now() - interval '1 hour') < $5`,
		user, tokenHash, purpose, life.Seconds(), mailsPerHour)
	if err != nil {
		return false, fmt.Errorf("add %s token: %w", purpose, err)
	}
	n, err := done.RowsAffected()
	return n == 1, err
}

var errUserToken = &Error{Kind: Unauthorized, Message: "the token is unknown, used or expired"}

// userToken finds whose live token of the purpose this is; Unauthorized when it is none.
func userToken(ctx context.Context, tx *sqlx.Tx, purpose string, tokenHash []byte) (user uuid.UUID, err error) {
	err = tx.GetContext(ctx, &user, `SELECT user_id FROM user_tokens WHERE token_hash = $1 AND purpose = $2 AND used_at IS NULL AND expires_at > now()`,
		tokenHash, purpose)
	if errors.Is(err, sql.ErrNoRows) {
		return user, errUserToken
	}
	if err != nil {
		return user, fmt.Errorf("look up %s token: %w", purpose, err)
	}
	return user, nil
}

// ResetEmail reads whose password the reset token with this SHA-256 resets; Unauthorized when it cannot be used.
func (a *API) ResetEmail(ctx context.Context, tokenHash []byte) (email string, err error) {
	err = a.inScope(ctx, Scope{Credential: tokenHash}, func(tx *sqlx.Tx) error {
		user, err := userToken(ctx, tx, purposeReset, tokenHash)
		if err != nil {
			return err
		}
		if err := (Scope{User: user}).apply(ctx, tx); err != nil {
			return err
		}
		if err := tx.GetContext(ctx, &email, `SELECT email FROM users WHERE id = $1`, user); err != nil {
			return fmt.Errorf("read user: %w", err)
		}
		return nil
	})
	return email, err
}

// ResetPassword spends a reset token: the user has another password, all their sessions end, and their mail is proved.
// It returns who they are; Unauthorized when the token cannot be used.
func (a *API) ResetPassword(ctx context.Context, tokenHash []byte, passwordHash string, by By) (user uuid.UUID, email string, err error) {
	err = a.spendUserToken(ctx, purposeReset, tokenHash, func(tx *sqlx.Tx, n *notes, id uuid.UUID) error {
		user = id
		err := tx.GetContext(ctx, &email, `UPDATE users SET password_hash = $2, email_verified_at = coalesce(email_verified_at, now())
			WHERE id = $1 RETURNING email`, user, passwordHash)
		if err != nil {
			return fmt.Errorf("reset password: %w", err)
		}
		return passwordChanged(ctx, tx, n, user, uuid.Nil, "password.reset", by)
	})
	return user, email, err
}

// VerifyEmail spends a verification token; Unauthorized when it cannot be used.
func (a *API) VerifyEmail(ctx context.Context, tokenHash []byte, by By) error {
	return a.spendUserToken(ctx, purposeVerify, tokenHash, func(tx *sqlx.Tx, n *notes, user uuid.UUID) error {
		_, err := tx.ExecContext(ctx, `UPDATE users SET email_verified_at = coalesce(email_verified_at, now()) WHERE id = $1`, user)
		if err != nil {
			return fmt.Errorf("verify email: %w", err)
		}
		return noteEverywhere(ctx, tx, n, user, "email.verify", nil, by)
	})
}

// spendUserToken runs fn for the token's user, with their row locked: of two uses of one token the second finds it used.
func (a *API) spendUserToken(ctx context.Context, purpose string, tokenHash []byte, fn func(tx *sqlx.Tx, n *notes, user uuid.UUID) error) error {
	return a.inAudited(ctx, Scope{Credential: tokenHash}, func(tx *sqlx.Tx, n *notes) error {
		user, err := userToken(ctx, tx, purpose, tokenHash)
		if err != nil {
			return err
		}
		if err := (Scope{User: user}).apply(ctx, tx); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `SELECT 1 FROM users WHERE id = $1 FOR NO KEY UPDATE`, user); err != nil {
			return fmt.Errorf("lock user: %w", err)
		}
		done, err := tx.ExecContext(ctx, `UPDATE user_tokens SET used_at = now() WHERE user_id = $1 AND token_hash = $2 AND used_at IS NULL`, user, tokenHash)
		if err != nil {
			return fmt.Errorf("spend %s token: %w", purpose, err)
		}
		if n, err := done.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, errUserToken)
		}
		return fn(tx, n, user)
	})
}
