package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// The erasing of a workspace whose erasing has begun: batch by batch, each a transaction of its own, in the order of
// Holdings. Every batch may be repeated, and a process that dies leaves the rest to the next round.

// Rows of a batch: of tables whose rows may be large, and of others.
const (
	eraseLarge = 200
	eraseBatch = 2000
)

// Erase erases what Holdings says for as long as budget allows, and marks the workspace as deleted when nothing is left;
// done is false when there is more to do: call it again. Conflict when
// the erasing has not begun (BeginErasing). Users who are in no other workspace are erased with it.
func (s *System) Erase(ctx context.Context, ws uuid.UUID, budget time.Duration) (done bool, err error) {
	deadline := time.Now().Add(budget)
	var begun bool
	err = s.db.GetContext(ctx, &begun, `SELECT EXISTS (SELECT 1 FROM workspaces WHERE id = $1 AND status = 'deleting' AND erasing_at IS NOT NULL)`, ws)
	if err != nil {
		return false, fmt.Errorf("look whether workspace %s is to be erased: %w", ws, err)
	}
	if !begun {
		return false, refuse(Conflict, "the workspace's erasing has not begun")
	}
	for _, h := range Holdings {
		var batch func(ctx context.Context) (more bool, err error)
		switch {
		case h.Table == "members":
			batch = func(ctx context.Context) (bool, error) { return s.eraseMembers(ctx, ws) }
		case h.erase != "":
			batch = h.eraser(s.db, ws)
		default:
			continue // kept, or erased with members, or at the end
		}
		for more := true; more; {
			if time.Now().After(deadline) {
				return false, nil
			}
			if more, err = batch(ctx); err != nil {
				return false, fmt.Errorf("erase %s of workspace %s: %w", h.Table, ws, err)
			}
		}
	}
	return true, s.markDeleted(ctx, ws)
}

// eraser erases the table's rows: where there may be very many, in the order of their key, so that no batch walks over
// what is gone already.
func (h Holding) eraser(db *sqlx.DB, ws uuid.UUID) func(context.Context) (bool, error) {
	if strings.HasSuffix(h.erase, "LIMIT $2)") {
		return func(ctx context.Context) (bool, error) {
			done, err := db.ExecContext(ctx, h.erase, ws, eraseBatch)
			if err != nil {
				return false, err
			}
			n, err := done.RowsAffected()
			return n > 0, err
		}
	}
	column, _, _ := strings.Cut(h.key[0], ":")
	limit := eraseBatch
	if h.Table == "tasks" {
		limit = eraseLarge
	}
	after := uuid.Nil
	return func(ctx context.Context) (bool, error) {
		var keys []uuid.UUID
		err := db.SelectContext(ctx, &keys, fmt.Sprintf(`SELECT %[1]s FROM %[2]s WHERE workspace_id = $1 AND %[1]s > $2 ORDER BY %[1]s LIMIT $3`, column, h.Table),
			ws, after, limit)
		if err != nil || len(keys) == 0 {
			return false, err
		}
		after = keys[len(keys)-1]
		_, err = db.ExecContext(ctx, h.erase, ws, pq.Array(keys))
		return err == nil, err
	}
}

// memberBatch is how many members one transaction removes.
const memberBatch = 100

// eraseMembers removes members and erases those who are in no other workspace: their sessions everywhere, their mailed
// tokens, their address and password. Their rows are locked before the members', as everywhere: who is signing in
// elsewhere at this moment is either seen as a member there, or finds no password any more.
func (s *System) eraseMembers(ctx context.Context, ws uuid.UUID) (more bool, err error) {
	err = inTx(ctx, s.db, func(tx *sqlx.Tx) error {
		var users, alone []uuid.UUID
		err := tx.SelectContext(ctx, &users, `SELECT user_id FROM members WHERE workspace_id = $1 ORDER BY user_id LIMIT $2`, ws, memberBatch)
		if err != nil {
			return fmt.Errorf("list members: %w", err)
		}
		if more = len(users) > 0; !more {
			return nil
		}
		if _, err := tx.ExecContext(ctx, `SELECT 1 FROM users WHERE id = ANY($1) ORDER BY id FOR UPDATE`, pq.Array(users)); err != nil {
			return fmt.Errorf("lock users: %w", err)
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM members WHERE workspace_id = $1 AND user_id = ANY($2)`, ws, pq.Array(users)); err != nil {
			return fmt.Errorf("remove members: %w", err)
		}
		err = tx.SelectContext(ctx, &alone, `SELECT u FROM unnest($1::uuid[]) u WHERE NOT EXISTS (SELECT 1 FROM members m WHERE m.user_id = u)`, pq.Array(users))
		if err != nil {
			return fmt.Errorf("find users without a workspace: %w", err)
		}
		for _, statement := range []string{
			`DELETE FROM refresh_tokens r USING sessions s WHERE s.user_id = ANY($1) AND r.workspace_id = s.workspace_id AND r.session_id = s.id`,
			`DELETE FROM sessions WHERE user_id = ANY($1)`,
			`DELETE FROM user_tokens WHERE user_id = ANY($1)`,
			`UPDATE users SET email = 'erased-' || replace(id::text, '-', '') || '@erased.invalid', password_hash = '', email_verified_at = NULL, erased_at = now()
				WHERE id = ANY($1)`,
		} {
			if _, err := tx.ExecContext(ctx, statement, pq.Array(alone)); err != nil {
				return fmt.Errorf("erase users: %w", err)
			}
		}
		return nil
	})
	return more, err
}

// markDeleted erases the workspace's own words and ends its life.
func (s *System) markDeleted(ctx context.Context, ws uuid.UUID) error {
	return s.inAudited(ctx, func(tx *sqlx.Tx, n *notes) error {
		done, err := tx.ExecContext(ctx, `UPDATE workspaces SET name = 'deleted', slug = NULL, settings = '{}', status = 'deleted', deleted_at = now(), updated_at = now()
			WHERE id = $1 AND status = 'deleting' AND erasing_at IS NOT NULL`, ws)
		if err != nil {
			return fmt.Errorf("mark workspace %s as deleted: %w", ws, err)
		}
		if changed, err := done.RowsAffected(); err != nil || changed == 0 {
			return err // another scheduler was faster
		}
		return n.add(ws, AuditEntry{ActorType: ActorSystem, ActorID: "scheduler", Action: "workspace.erase", Target: FormatID(WorkspacePrefix, ws)})
	})
}
