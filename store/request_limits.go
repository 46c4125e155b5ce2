package store

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// Allowance is what is asked of a workspace's requests before their work: its plan's figures, or an operator's.
type Allowance struct {
	RequestsPerHour int            `db:"requests_per_hour"` // in any rolling hour
	Models          pq.StringArray `db:"models"`            // see AllowsModel
	// Unproved: an owner must prove their address before the workspace may run tasks, and none has.
	Unproved bool `db:"unproved"`
}

const allowanceQuery = `SELECT w.requests_per_hour, l.models, w.needs_verified_email AND NOT EXISTS (SELECT 1 FROM members m JOIN users u ON u.id = m.user_id
		WHERE m.workspace_id = w.id AND m.role = 'owner' AND u.email_verified_at IS NOT NULL) AS unproved
	FROM workspaces w JOIN workspace_load l ON l.workspace_id = w.id WHERE w.id = $1`

// Allowance reads the workspace's.
func (a *API) Allowance(ctx context.Context, ws uuid.UUID) (Allowance, error) {
	var all Allowance
	err := a.inWorkspace(ctx, ws, func(tx *sqlx.Tx) (err error) {
		all, err = (&Work{Workspace: ws, tx: tx}).Allowance(ctx)
		return err
	})
	return all, err
}

// Allowance reads the workspace's as it is in this transaction.
func (w *Work) Allowance(ctx context.Context) (Allowance, error) {
	var all Allowance
	if err := w.tx.GetContext(ctx, &all, allowanceQuery, w.Workspace); err != nil {
		return all, noRows(fmt.Errorf("read allowance: %w", err), "workspace")
	}
	return all, nil
}

// ModelOf reads which model a task asks for.
func (w *Work) ModelOf(ctx context.Context, task uuid.UUID) (string, error) {
	var model string
	err := w.tx.GetContext(ctx, &model, `SELECT model FROM tasks WHERE workspace_id = $1 AND id = $2`, w.Workspace, task)
	if err != nil {
		return "", noRows(fmt.Errorf("read task's model: %w", err), "task")
	}
	return model, nil
}
