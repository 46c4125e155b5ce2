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

// The workspaces of one user: they are in several, with a role in each, and may make more.

// MaxFreeWorkspaces is how many workspaces on the first plan a user may own: each of them has that plan's agent time and
// provider budget for nothing.
const MaxFreeWorkspaces = 3

// OwnWorkspace is a workspace as one of its members sees it among their others.
type OwnWorkspace struct {
	ID        uuid.UUID `db:"id"`
	Name      string    `db:"name"`
	Plan      string    `db:"plan"`
	Role      string    `db:"role"`
	CreatedAt time.Time `db:"created_at"`
}

// OwnWorkspaces lists the workspaces that the user is a member of and that are not leaving, newest first, those below before (uuid.Nil: from the
// start).
func (a *API) OwnWorkspaces(ctx context.Context, user, before uuid.UUID, limit int) ([]OwnWorkspace, error) {
	list := []OwnWorkspace{}
	err := a.inScope(ctx, Scope{User: user}, func(tx *sqlx.Tx) error {
		return tx.SelectContext(ctx, &list, `SELECT w.id, w.name, w.plan, m.role, w.created_at FROM members m JOIN workspaces w ON w.id = m.workspace_id
			WHERE m.user_id = $1 AND w.status = 'active' AND w.id < $2 ORDER BY w.id DESC LIMIT $3`, user, orMax(before), limit)
	})
	if err != nil {
		return nil, fmt.Errorf("list the user's workspaces: %w", err)
	}
	return list, nil
}

// CreateWorkspace makes another workspace on the first plan, owned by the user of the work's scope, and notes the entry
// in its audit log. PlanLimit when the user has too many on that plan (see mayFound).
func (w *Work) CreateWorkspace(ctx context.Context, user uuid.UUID, name string, e AuditEntry) (Workspace, error) {
	if _, err := w.tx.ExecContext(ctx, `SELECT 1 FROM users WHERE id = $1 FOR NO KEY UPDATE`, user); err != nil {
		return Workspace{}, fmt.Errorf("lock user: %w", err)
	}
	if err := mayFound(ctx, w.tx, user); err != nil {
		return Workspace{}, err
	}
	made := &Work{Workspace: NewID(), tx: w.tx, notes: w.notes}
	if err := made.found(ctx, user, name); err != nil {
		return Workspace{}, err
	}
	e.Action, e.Target = "workspace.create", FormatID(WorkspacePrefix, made.Workspace)
	if err := made.Audit(e); err != nil {
		return Workspace{}, err
	}
	ws, err := made.workspace(ctx)
	if err != nil {
		return Workspace{}, err
	}
	return ws, (Scope{Workspace: w.Workspace, User: user}).apply(ctx, w.tx)
}

// mayFound refuses with PlanLimit when the user has MaxFreeWorkspaces on the first plan: those that they own, and those
// that they have deleted this month, whose agent time of the month they have had. The scope must be the user's.
func mayFound(ctx context.Context, tx *sqlx.Tx, user uuid.UUID) error {
	var have int
	err := tx.GetContext(ctx, &have, `SELECT
		(SELECT count(*) FROM members m JOIN workspaces x ON x.id = m.workspace_id WHERE m.user_id = $1 AND m.role = $2 AND x.plan = $3 AND x.status = 'active')
		+ (SELECT count(*) FROM workspaces x WHERE x.deleted_by = $1 AND x.plan = $3 AND x.deleting_at >= date_trunc('month', now()))`,
		user, RoleOwner, Plans[0].ID)
	if err != nil {
		return fmt.Errorf("count the user's workspaces: %w", err)
	}
	if have >= MaxFreeWorkspaces {
		return refuse(PlanLimit, "you have %d workspaces on the %s plan, those counted that you deleted this month; choose another plan for one of them, or wait for the next month",
			have, Plans[0].Name)
	}
	return nil
}

// found inserts the work's workspace on the first plan with the user as its owner, and leaves their scope set.
func (w *Work) found(ctx context.Context, user uuid.UUID, name string) error {
	if err := (Scope{Workspace: w.Workspace, User: user}).apply(ctx, w.tx); err != nil {
		return err
	}
	plan := Plans[0]
	_, err := w.tx.ExecContext(ctx, `INSERT INTO workspaces (id, name, plan, requests_per_hour, max_users, needs_verified_email,
			max_schedules, min_schedule_seconds, retention_days, max_webhooks)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`, w.Workspace, name, plan.ID, plan.RequestsPerHour, plan.MaxUsers, plan.NeedsVerifiedEmail,
		plan.MaxSchedules, plan.MinScheduleSeconds, plan.RetentionDays, plan.MaxWebhooks)
	if err != nil {
		return fmt.Errorf("insert workspace: %w", err)
	}
	_, err = w.tx.ExecContext(ctx, `INSERT INTO workspace_load (workspace_id, queue, cap, max_waiting, quota_ms, models, period,
			provider_budget_microusd, max_task_cost_microusd)
		VALUES ($1, $2, $3, $4, $5, $6, `+currentPeriod+`, $7, $8)`, w.Workspace, plan.Queue, plan.Concurrency, plan.MaxWaiting, plan.AgentMS, models(plan.Models),
		plan.ProviderBudgetMicroUSD, plan.MaxTaskCostMicroUSD)
	if err != nil {
		return fmt.Errorf("insert load row: %w", err)
	}
	_, err = w.tx.ExecContext(ctx, `INSERT INTO members (workspace_id, user_id, role) VALUES ($1, $2, $3)`, w.Workspace, user, RoleOwner)
	if err != nil {
		return fmt.Errorf("insert member: %w", err)
	}
	return nil
}

// chooseWorkspace finds where the user signs in: the wanted workspace, or (zero) the one that they have been in
// longest, leaving ones left out. Somebody whose last one they were removed from, or have deleted, gets a new one of their
// own: their address is registered, so they could not come back otherwise. PlanLimit when they have made and deleted too
// many (see mayFound). The scope must be the user's.
func chooseWorkspace(ctx context.Context, tx *sqlx.Tx, n *notes, user uuid.UUID, wanted Wanted, by By) (uuid.UUID, error) {
	var ws uuid.UUID
	err := tx.GetContext(ctx, &ws, `SELECT m.workspace_id FROM members m JOIN workspaces w ON w.id = m.workspace_id AND w.status = 'active'
		WHERE m.user_id = $1 AND CASE WHEN $2::uuid IS NOT NULL THEN w.id = $2 WHEN $3::text <> '' THEN w.slug = $3 ELSE true END
		ORDER BY m.created_at, m.workspace_id LIMIT 1`, user, uuid.NullUUID{UUID: wanted.ID, Valid: wanted.ID != uuid.Nil}, wanted.Slug)
	if errors.Is(err, sql.ErrNoRows) && wanted == (Wanted{}) {
		if err := mayFound(ctx, tx, user); err != nil {
			return uuid.Nil, err
		}
		fresh := &Work{Workspace: NewID(), tx: tx, notes: n}
		if err := fresh.found(ctx, user, "My workspace"); err != nil {
			return uuid.Nil, err
		}
		return fresh.Workspace, fresh.Audit(AuditEntry{ActorType: ActorUser, ActorID: FormatID(UserPrefix, user), Action: "workspace.create",
			Target: FormatID(WorkspacePrefix, fresh.Workspace), IP: by.IP, RequestID: by.RequestID})
	}
	if err != nil {
		return uuid.Nil, noRows(fmt.Errorf("choose workspace: %w", err), "workspace")
	}
	return ws, nil
}
