package store

import (
	"context"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// Stranger is what somebody without a good credential did, perhaps many times.
type Stranger struct {
	Chain uuid.UUID // the workspace that it concerns; SystemChain: none in particular
	User  uuid.UUID // whom it concerns: it is noted in each of their workspaces besides; uuid.Nil: nobody known
	Entry AuditEntry
}

// NoteStrangers writes what strangers did, in one transaction.
func (a *API) NoteStrangers(ctx context.Context, list []Stranger) error {
	return a.inAudited(ctx, Scope{}, func(tx *sqlx.Tx, n *notes) error {
		for _, s := range list {
			if err := n.add(s.Chain, s.Entry); err != nil {
				return err
			}
			if s.User == uuid.Nil {
				continue
			}
			if err := (Scope{User: s.User}).apply(ctx, tx); err != nil {
				return err
			}
			if err := noteForUser(ctx, tx, n, s.User, s.Entry); err != nil {
				return err
			}
		}
		return nil
	})
}
