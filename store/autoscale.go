package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"
)

// autoscalePaused is the name of a switch.
const autoscalePaused = "autoscale_paused"

// AutoscalePause is who has paused the autoscaler, and why.
type AutoscalePause struct {
	By     string    `db:"by"`
	Reason string    `db:"reason"`
	At     time.Time `db:"set_at"`
}

// AutoscalePaused tells whether operators have paused the autoscaler; nil: they have not.
func (s *System) AutoscalePaused(ctx context.Context) (*AutoscalePause, error) {
	var p AutoscalePause
	err := s.db.GetContext(ctx, &p, `SELECT by, reason, set_at FROM switches WHERE name = $1`, autoscalePaused)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("read the autoscaler's pause: %w", err)
	}
	return &p, nil
}

// PauseAutoscale has the leading scheduler start and stop no worker until ResumeAutoscale. It tells whether that is new:
// who paused first stays named.
func (s *System) PauseAutoscale(ctx context.Context, reason string, by Operator) (changed bool, err error) {
	return s.switchAutoscale(ctx, "autoscale.pause", map[string]any{"reason": reason}, by,
		`INSERT INTO switches (name, by, reason) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`, by.Name, reason)
}

// ResumeAutoscale lifts the pause, and tells whether there was one.
func (s *System) ResumeAutoscale(ctx context.Context, by Operator) (changed bool, err error) {
	return s.switchAutoscale(ctx, "autoscale.resume", nil, by, `DELETE FROM switches WHERE name = $1`)
}

func (s *System) switchAutoscale(ctx context.Context, action string, details map[string]any, by Operator, statement string, args ...any) (changed bool, err error) {
	err = s.inAudited(ctx, func(tx *sqlx.Tx, n *notes) error {
		result, err := tx.ExecContext(ctx, statement, append([]any{autoscalePaused}, args...)...)
		if err != nil {
			return err
		}
		rows, err := result.RowsAffected()
		if changed = rows > 0; err != nil || !changed {
			return err
		}
		return n.add(SystemChain, AuditEntry{ActorType: ActorOperator, ActorID: by.Name, Action: action, Target: "autoscale", Details: details})
	})
	if err != nil {
		return false, fmt.Errorf("switch the autoscaler: %w", err)
	}
	return changed, nil
}
