package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"fmt"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// Work is one API transaction on behalf of one workspace. Its methods (Submit, Cancel, …) share the transaction, so
// that a request's change, its audit entry and its idempotency key commit together or not at all.
type Work struct {
	Workspace uuid.UUID
	tx        *sqlx.Tx
	notes     *notes // nil where nothing is noted
	turns     []Turn
	cancels   []uuid.UUID
	about     uuid.NullUUID // the one task that the answer will show, when it is an older one
}

// Answer is what a request is answered, as stored for its idempotency key.
type Answer struct {
	Status  int
	Headers map[string]string // Location and the like
	Body    []byte            // nil stores no answer: the repeat of a route that mints credentials is a Conflict
}

// Done is a committed Work.
type Done struct {
	Answer   Answer
	Replayed bool        // the answer is an earlier request's
	Turns    []Turn      // to put in line now that they are committed
	Cancels  []uuid.UUID // running tasks that were asked to stop: tell the workers
}

// IdempotencyKey names one request for good. Key is the client's, 1..255 characters, scoped to workspace and Route.
type IdempotencyKey struct {
	Route    string // method and route pattern
	Key      string
	BodyHash [sha256.Size]byte
}

// Do runs fn in one transaction that may see exactly one workspace. With a key (nil is none) the second request with
// the same key and body gets the first one's answer, another body is KeyReused, and InFlight is the answer while the
// first still runs. Everything that fn did is undone when it fails; a refused request stores no key.
//
// A deadlock or a lock timeout runs fn again, so fn must have no effect outside w.
func (a *API) Do(ctx context.Context, scope Scope, key *IdempotencyKey, fn func(w *Work) (Answer, error)) (Done, error) {
	var done Done
	err := a.inScope(ctx, scope, func(tx *sqlx.Tx) error {
		w := &Work{Workspace: scope.Workspace, tx: tx, notes: &notes{}}
		done = Done{}
		if key != nil {
			earlier, err := w.claimKey(ctx, key)
			if err != nil || earlier != nil {
				if earlier != nil {
					done = Done{Answer: *earlier, Replayed: true}
				}
				return err
			}
		}
		answer, err := fn(w)
		if err != nil {
			return err
		}
		if key != nil {
			if err := w.storeAnswer(ctx, key, answer); err != nil {
				return err
			}
		}
		err = w.notes.append(ctx, tx, func(chain uuid.UUID) error {
			if chain == scope.Workspace {
				return nil
			}
			return (Scope{Workspace: chain}).apply(ctx, tx)
		})
		if err != nil {
			return err
		}
		done = Done{Answer: answer, Turns: w.turns, Cancels: w.cancels}
		return nil
	})
	return done, err
}

// claimKey returns the earlier answer to the key, or nil when this request is the first.
//
// The advisory lock ends with the transaction: a second request sees that the first is in flight instead of
// waiting for it, and a first that dies leaves nothing behind. One statement (function claim_key, migration 00015).
func (w *Work) claimKey(ctx context.Context, key *IdempotencyKey) (*Answer, error) {
	var row struct {
		Free     bool           `db:"free"`
		BodyHash []byte         `db:"body_hash"`
		Status   *int           `db:"status"` // nil: the key is new
		Headers  sql.NullString `db:"headers"`
		Response []byte         `db:"response"`
	}
	err := w.tx.GetContext(ctx, &row, `SELECT free, body_hash, status, headers, response FROM claim_key($1, $2, $3)`, w.Workspace, key.Route, key.Key)
	if err != nil {
		return nil, fmt.Errorf("claim idempotency key: %w", err)
	}
	if !row.Free {
		return nil, refuse(InFlight, "a request with this Idempotency-Key is still running")
	}
	if row.Status == nil {
		return nil, nil
	}
	if string(row.BodyHash) != string(key.BodyHash[:]) {
		return nil, refuse(KeyReused, "this Idempotency-Key was used with another body")
	}
	if row.Response == nil {
		return nil, refuse(Conflict, "a request with this Idempotency-Key has already succeeded; its answer held a credential and was not kept, or was erased")
	}
	answer := Answer{Status: *row.Status, Body: row.Response}
	if err := json.Unmarshal([]byte(row.Headers.String), &answer.Headers); err != nil {
		return nil, fmt.Errorf("read idempotency key's headers: %w", err)
	}
	return &answer, nil
}

func (w *Work) storeAnswer(ctx context.Context, key *IdempotencyKey, answer Answer) error {
	headers, err := json.Marshal(answer.Headers)
	if err != nil {
		return fmt.Errorf("write idempotency key's headers: %w", err)
	}
	_, err = w.tx.ExecContext(ctx, `INSERT INTO idempotency_keys (workspace_id, route, key, body_hash, status, headers, response, task_id)
		VALUES ($1, $2, $3, $4, $5, coalesce(nullif($6, 'null'), '{}')::jsonb, $7, $8)`,
		w.Workspace, key.Route, key.Key, key.BodyHash[:], answer.Status, string(headers), answer.Body, w.about)
	if err != nil {
		return fmt.Errorf("store idempotency key: %w", err)
	}
	return nil
}
