package store

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// AuditLine is an entry as it was written.
type AuditLine struct {
	Seq       int64           `db:"seq"` // from 1, without gaps in its chain
	At        time.Time       `db:"at"`
	ActorType string          `db:"actor_type"`
	ActorID   string          `db:"actor_id"`
	Action    string          `db:"action"`
	Target    string          `db:"target"`
	Details   json.RawMessage `db:"details"` // a JSON object
	IP        string          `db:"ip"`
	RequestID string          `db:"request_id"`
	Hash      []byte          `db:"hash"`
}

// AuditFilter chooses entries; zero fields choose all.
type AuditFilter struct {
	Action        string // exactly, or api_key.* for all of a noun
	Actor         string // its id
	Target        string
	CreatedAfter  *time.Time // exclusive
	CreatedBefore *time.Time // exclusive
}

// Details are the filter as an entry tells it: whoever read the log, and what of it.
func (f AuditFilter) Details() map[string]any {
	details := map[string]any{}
	for name, value := range map[string]string{"action": f.Action, "actor": f.Actor, "target": f.Target} {
		if value != "" {
			details[name] = value
		}
	}
	for name, at := range map[string]*time.Time{"created_after": f.CreatedAfter, "created_before": f.CreatedBefore} {
		if at != nil {
			details[name] = at.UTC().Format(time.RFC3339Nano)
		}
	}
	return details
}

// AuditLog lists the workspace's entries, newest first, those below the number before (0: from the newest). With noted
// it notes the read, in the same transaction; the list does not show that entry.
func (a *API) AuditLog(ctx context.Context, ws uuid.UUID, f AuditFilter, before int64, limit int, noted *AuditEntry) ([]AuditLine, error) {
	var lines []AuditLine
	err := a.inAudited(ctx, Scope{Workspace: ws}, func(tx *sqlx.Tx, n *notes) (err error) {
		if noted != nil {
			if err := n.add(ws, *noted); err != nil {
				return err
			}
		}
		lines, err = readAudit(ctx, tx, ws, f, before, limit)
		return err
	})
	return lines, err
}

// AuditLog is the operators' look at any chain. They note it first (Note).
func (s *System) AuditLog(ctx context.Context, chain uuid.UUID, f AuditFilter, before int64, limit int) ([]AuditLine, error) {
	return readAudit(ctx, s.db, chain, f, before, limit)
}

// Note writes down what an operator is about to do that is no change of a workspace's rows: to look at them, mostly.
// NotFound when the chain is of no workspace.
func (s *System) Note(ctx context.Context, chain uuid.UUID, by Operator, action, target string, details map[string]any) error {
	return s.inAudited(ctx, func(tx *sqlx.Tx, n *notes) error {
		var known bool
		err := tx.GetContext(ctx, &known, `SELECT $1 OR EXISTS (SELECT 1 FROM workspaces WHERE id = $2)`, chain == SystemChain, chain)
		if err != nil {
			return fmt.Errorf("look for workspace: %w", err)
		}
		if !known {
			return refuse(NotFound, "no such workspace")
		}
		return n.add(chain, AuditEntry{ActorType: ActorOperator, ActorID: by.Name, Action: action, Target: target, Details: details})
	})
}

// readAudit runs down the primary key, so a page costs the same at any depth; filters are applied on the way.
func readAudit(ctx context.Context, db sqlx.QueryerContext, chain uuid.UUID, f AuditFilter, before int64, limit int) ([]AuditLine, error) {
	if before == 0 {
		before = math.MaxInt64
	}
	args := []any{chain, before}
	where := []string{"workspace_id = $1", "seq < $2"}
	add := func(condition string, value any) {
		args = append(args, value)
		where = append(where, condition+"$"+strconv.Itoa(len(args)))
	}
	if noun, all := strings.CutSuffix(f.Action, ".*"); all {
		add("split_part(action, '.', 1) = ", noun)
	} else if f.Action != "" {
		add("action = ", f.Action)
	}
	if f.Actor != "" {
		add("actor_id = ", f.Actor)
	}
	if f.Target != "" {
		add("target = ", f.Target)
	}
	if f.CreatedAfter != nil {
		add("at > ", *f.CreatedAfter)
	}
	if f.CreatedBefore != nil {
		add("at < ", *f.CreatedBefore)
	}
	args = append(args, limit)
	lines := []AuditLine{}
	err := sqlx.SelectContext(ctx, db, &lines, `SELECT seq, at, actor_type, actor_id, action, target, details, ip, request_id, hash FROM audit_log
		WHERE `+strings.Join(where, " AND ")+` ORDER BY seq DESC LIMIT $`+strconv.Itoa(len(args)), args...)
	if err != nil {
		return nil, fmt.Errorf("list audit entries: %w", err)
	}
	return lines, nil
}
