package store

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// APIKey is a workspace's key as lists show it: the secret itself is stored nowhere, only its SHA-256.
type APIKey struct {
	ID         uuid.UUID      `db:"id"`
	Name       string         `db:"name"`
	Prefix     string         `db:"prefix"` // the key's first characters, to recognise it by
	Role       string         `db:"role"`
	Scopes     pq.StringArray `db:"scopes"`
	CreatedBy  uuid.NullUUID  `db:"created_by"`  // null when another key made it
	Origin     uuid.NullUUID  `db:"origin_user"` // the person it goes back to, through all keys between
	CreatedAt  time.Time      `db:"created_at"`
	ExpiresAt  *time.Time     `db:"expires_at"`   // null: never
	LastUsedAt *time.Time     `db:"last_used_at"` // noted in batches: some seconds late
}

const apiKeyColumns = `id, name, prefix, role, scopes, created_by, origin_user, created_at, expires_at, last_used_at`

// NewAPIKey is a key to be made, already validated.
type NewAPIKey struct {
	Name      string
	Prefix    string
	Hash      []byte // SHA-256 of the key
	Role      string
	Scopes    []string
	CreatedBy uuid.NullUUID // null: another key makes it
	Origin    uuid.NullUUID // the person it goes back to
	ExpiresAt *time.Time
}

// CreateKey stores a key.
func (w *Work) CreateKey(ctx context.Context, n NewAPIKey) (APIKey, error) {
	var key APIKey
	err := w.tx.GetContext(ctx, &key, `INSERT INTO api_keys (workspace_id, id, name, prefix, key_hash, role, scopes, created_by, expires_at, origin_user)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) RETURNING `+apiKeyColumns,
		w.Workspace, NewID(), n.Name, n.Prefix, n.Hash, n.Role, pq.Array(n.Scopes), n.CreatedBy, n.ExpiresAt, n.Origin)
	if err != nil {
		return APIKey{}, fmt.Errorf("insert API key: %w", err)
	}
	return key, nil
}

// Keys lists the workspace's keys that are not revoked, newest first, those below before (uuid.Nil: from the start).
func (a *API) Keys(ctx context.Context, ws, before uuid.UUID, limit int) ([]APIKey, error) {
	keys := []APIKey{}
	err := a.inWorkspace(ctx, ws, func(tx *sqlx.Tx) error {
		return tx.SelectContext(ctx, &keys, `SELECT `+apiKeyColumns+` FROM api_keys
			WHERE workspace_id = $1 AND id < $2 AND revoked_at IS NULL ORDER BY id DESC LIMIT $3`, ws, orMax(before), limit)
	})
	if err != nil {
		return nil, fmt.Errorf("list API keys: %w", err)
	}
	return keys, nil
}

// orMax is id, or the greatest of all when id is uuid.Nil: where a list that runs downwards begins.
func orMax(id uuid.UUID) uuid.UUID {
	if id == uuid.Nil {
		return uuid.Max
	}
	return id
}

// Key reads one key that is not revoked, and locks it for a change.
func (w *Work) Key(ctx context.Context, id uuid.UUID) (APIKey, error) {
	var key APIKey
	err := w.tx.GetContext(ctx, &key, `SELECT `+apiKeyColumns+` FROM api_keys
		WHERE workspace_id = $1 AND id = $2 AND revoked_at IS NULL FOR NO KEY UPDATE`, w.Workspace, id)
	if err != nil {
		return APIKey{}, noRows(fmt.Errorf("read API key: %w", err), "API key")
	}
	return key, nil
}

// RevokeKey ends a key for good.
func (w *Work) RevokeKey(ctx context.Context, id uuid.UUID) error {
	_, err := w.tx.ExecContext(ctx, `UPDATE api_keys SET revoked_at = now() WHERE workspace_id = $1 AND id = $2 AND revoked_at IS NULL`,
		w.Workspace, id)
	if err != nil {
		return fmt.Errorf("revoke API key %s: %w", id, err)
	}
	return nil
}

// ReplaceKey stores the key that takes over from old, which works on until overlap from now has passed (0: it ends now),
// or until its own end if that is sooner. Conflict when old has expired. old must be locked (Key).
func (w *Work) ReplaceKey(ctx context.Context, old APIKey, n NewAPIKey, overlap time.Duration) (APIKey, error) {
	var alive bool
	err := w.tx.GetContext(ctx, &alive, `UPDATE api_keys SET
			revoked_at = CASE WHEN $3 = 0 THEN now() END,
			expires_at = CASE WHEN $3 = 0 THEN expires_at ELSE least(expires_at, now() + make_interval(secs => $3)) END
		WHERE workspace_id = $1 AND id = $2 AND revoked_at IS NULL RETURNING $4::timestamptz IS NULL OR $4 > now()`,
		w.Workspace, old.ID, overlap.Seconds(), old.ExpiresAt)
	if err != nil {
		return APIKey{}, noRows(fmt.Errorf("let API key %s run out: %w", old.ID, err), "API key")
	}
	if !alive {
		return APIKey{}, refuse(Conflict, "the key has expired; make another one")
	}
	return w.CreateKey(ctx, n)
}

// CheckKey reports who the key with this SHA-256 stands for now; Unauthorized when it is unknown, expired or revoked, and
// then with the workspace and the key of one that is known. One round trip (function check_key, migration 00015).
func (a *API) CheckKey(ctx context.Context, hash []byte) (Identity, error) {
	var row struct {
		Workspace uuid.UUID      `db:"workspace_id"`
		ID        uuid.UUID      `db:"id"`
		Role      string         `db:"role"`
		Scopes    pq.StringArray `db:"scopes"`
		Origin    uuid.NullUUID  `db:"origin_user"`
		Alive     bool           `db:"alive"`
	}
	err := a.db.GetContext(ctx, &row, `SELECT workspace_id, id, role, scopes, origin_user, alive FROM check_key($1)`, hash)
	if errors.Is(err, sql.ErrNoRows) {
		return Identity{}, refuse(Unauthorized, "the API key is unknown, expired or revoked")
	}
	if err != nil {
		return Identity{}, fmt.Errorf("check API key: %w", err)
	}
	if !row.Alive {
		return Identity{Workspace: row.Workspace, Key: row.ID}, refuse(Unauthorized, "the API key is unknown, expired or revoked")
	}
	return Identity{Workspace: row.Workspace, Key: row.ID, Origin: row.Origin.UUID, Role: row.Role, Scopes: row.Scopes}, nil
}

// KeyUse is when a key was last used.
type KeyUse struct {
	Workspace, Key uuid.UUID
	At             time.Time
}

// NoteKeyUses writes down when keys of any workspaces were last used, in one transaction, each workspace's under its
// own scope. A later use that is noted already stays.
func (a *API) NoteKeyUses(ctx context.Context, uses []KeyUse) error {
	byWorkspace := map[uuid.UUID][]KeyUse{}
	for _, u := range uses {
		byWorkspace[u.Workspace] = append(byWorkspace[u.Workspace], u)
	}
	workspaces := slices.SortedFunc(maps.Keys(byWorkspace), func(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) })
	return a.inScope(ctx, Scope{}, func(tx *sqlx.Tx) error {
		for _, ws := range workspaces {
			if err := (Scope{Workspace: ws}).apply(ctx, tx); err != nil {
				return err
			}
			var keys []string
			var at []time.Time
			for _, u := range byWorkspace[ws] {
				keys, at = append(keys, u.Key.String()), append(at, u.At.UTC())
			}
			_, err := tx.ExecContext(ctx, `UPDATE api_keys k SET last_used_at = u.at FROM unnest($2::uuid[], $3::timestamptz[]) AS u (id, at)
				WHERE k.workspace_id = $1 AND k.id = u.id AND (k.last_used_at IS NULL OR k.last_used_at < u.at)`, ws, pq.Array(keys), pq.Array(at))
			if err != nil {
				return fmt.Errorf("note uses of API keys: %w", err)
			}
		}
		return nil
	})
}
