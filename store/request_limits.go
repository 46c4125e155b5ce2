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

// Allowance reads the workspace's, in one round trip.
func (a *API) Allowance(ctx context.Context, ws uuid.UUID) (Allowance, error) {
	return allowance(ctx, a.db, ws)
}

// Allowance reads the workspace's as it is in this transaction.
func (w *Work) Allowance(ctx context.Context) (Allowance, error) {
	return allowance(ctx, w.tx, w.Workspace)
}

// allowance asks the function of that name (migration 00015).
func allowance(ctx context.Context, db sqlx.QueryerContext, ws uuid.UUID) (Allowance, error) {
	var all Allowance
	if err := sqlx.GetContext(ctx, db, &all, `SELECT requests_per_hour, models, unproved FROM allowance($1)`, ws); err != nil {
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
