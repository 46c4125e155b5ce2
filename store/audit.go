package store

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// The audit log says who did what. It is a chain per workspace, and one of the system (SystemChain) for what nobody in
// particular did: the database numbers, dates and hashes each entry (migration 00005), audit_chain.go checks the chains.
//
// Lengthening a chain locks its head until the transaction ends. So a transaction collects its entries and writes them as
// the last thing before its commit, chain by chain in the order of their ids: heads come after every other lock, are held
// shortly, and cannot be part of a deadlock.

// The kinds of actors in the audit log.
const (
	ActorUser      = "user"
	ActorAPIKey    = "api_key"
	ActorOperator  = "operator"
	ActorSystem    = "system"
	ActorAnonymous = "anonymous" // somebody without a good credential
)

// SystemChain is the chain of no workspace.
var SystemChain = uuid.Nil

// AuditEntry is one line of an audit log: who did what to which thing. It must hold no secret.
type AuditEntry struct {
	ActorType string         // ActorUser, ActorAPIKey, …
	ActorID   string         // with its prefix: usr_…, key_…; an operator's name
	Action    string         // noun.verb: api_key.create
	Target    string         // the thing's id with its prefix
	Details   map[string]any // nil is {}
	IP        string         // where the request came from; empty inside Muster
	RequestID string
}

// Audit notes an entry in the work's own transaction: the change and its entry commit together or not at all. No role of
// the application may change or remove it afterwards.
func (w *Work) Audit(e AuditEntry) error {
	if w.notes == nil {
		return fmt.Errorf("note %s: this transaction is not an audited one", e.Action)
	}
	return w.notes.add(w.Workspace, e)
}

// notes are the entries of one transaction, until it writes them.
type notes struct{ list []note }

type note struct {
	AuditEntry
	chain   uuid.UUID
	details string // JSON
}

func (n *notes) add(chain uuid.UUID, e AuditEntry) error {
	details := "{}"
	if e.Details != nil {
		raw, err := json.Marshal(e.Details)
		if err != nil {
			return fmt.Errorf("note %s: write details: %w", e.Action, err)
		}
		details = string(raw)
	}
	n.list = append(n.list, note{AuditEntry: e, chain: chain, details: details})
	return nil
}

// append writes the entries. enter (nil: the role writes to any chain) is called before each chain's.
func (n *notes) append(ctx context.Context, tx *sqlx.Tx, enter func(chain uuid.UUID) error) error {
	slices.SortStableFunc(n.list, func(a, b note) int { return bytes.Compare(a.chain[:], b.chain[:]) })
	for rest := n.list; len(rest) > 0; {
		chain, count := rest[0].chain, 1
		for count < len(rest) && rest[count].chain == chain {
			count++
		}
		if enter != nil {
			if err := enter(chain); err != nil {
				return err
			}
		}
		if err := appendTo(ctx, tx, chain, rest[:count]); err != nil {
			return err
		}
		rest = rest[count:]
	}
	return nil
}

func appendTo(ctx context.Context, tx *sqlx.Tx, chain uuid.UUID, list []note) error {
	columns := make([][]string, 7)
	for _, e := range list {
		for i, value := range []string{e.ActorType, e.ActorID, e.Action, e.Target, e.details, e.IP, e.RequestID} {
			columns[i] = append(columns[i], value)
		}
	}
	args := []any{chain}
	for _, c := range columns {
		args = append(args, pq.Array(c))
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO audit_log (workspace_id, actor_type, actor_id, action, target, details, ip, request_id)
		SELECT $1, v.actor_type, v.actor_id, v.action, v.target, v.details, v.ip, v.request_id
		FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::jsonb[], $7::text[], $8::text[])
			AS v (actor_type, actor_id, action, target, details, ip, request_id)`, args...)
	if err != nil {
		return fmt.Errorf("write audit entries: %w", err)
	}
	return nil
}

// inAudited is inScope for what is noted: when fn has succeeded its entries are written, and the transaction commits.
func (a *API) inAudited(ctx context.Context, s Scope, fn func(tx *sqlx.Tx, n *notes) error) error {
	return a.inScope(ctx, s, func(tx *sqlx.Tx) error {
		n := &notes{}
		if err := fn(tx, n); err != nil {
			return err
		}
		return n.append(ctx, tx, func(chain uuid.UUID) error { return (Scope{Workspace: chain}).apply(ctx, tx) })
	})
}

// inAudited is inTx for what is noted.
func (s *System) inAudited(ctx context.Context, fn func(tx *sqlx.Tx, n *notes) error) error {
	return inTx(ctx, s.db, func(tx *sqlx.Tx) error {
		n := &notes{}
		if err := fn(tx, n); err != nil {
			return err
		}
		return n.append(ctx, tx, nil)
	})
}

// noteEverywhere notes what a user did to their own account in each workspace that they are in. The scope must be the
// user's.
func noteEverywhere(ctx context.Context, tx *sqlx.Tx, n *notes, user uuid.UUID, action string, details map[string]any, by By) error {
	name := FormatID(UserPrefix, user)
	return noteForUser(ctx, tx, n, user, AuditEntry{ActorType: ActorUser, ActorID: name, Action: action, Target: name, Details: details,
		IP: by.IP, RequestID: by.RequestID})
}

// noteForUser notes an entry in each workspace that the user is in.
func noteForUser(ctx context.Context, tx *sqlx.Tx, n *notes, user uuid.UUID, e AuditEntry) error {
	var workspaces []uuid.UUID
	if err := tx.SelectContext(ctx, &workspaces, `SELECT workspace_id FROM members WHERE user_id = $1`, user); err != nil {
		return fmt.Errorf("find the user's workspaces: %w", err)
	}
	for _, ws := range workspaces {
		if err := n.add(ws, e); err != nil {
			return err
		}
	}
	return nil
}
