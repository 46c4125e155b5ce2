package store

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// Webhook endpoints: where a workspace wants to be told what happens to its tasks. Everything that decides whether an
// event is written for an endpoint changes under the load row's lock, which whoever ends a task holds: no event is
// written for one that is gone, and none is missed by one that was there before.

// What endpoints are told of.
const (
	EventTaskSucceeded = "task.succeeded"
	EventTaskFailed    = "task.failed"
	EventTaskCanceled  = "task.canceled"
	EventQuotaNotice   = "quota.notice" // see notices.go
	EventWebhookTest   = "webhook.test" // sent on request, to one endpoint
)

// WebhookEvents are the events that an endpoint may ask for.
var WebhookEvents = []string{EventTaskSucceeded, EventTaskFailed, EventTaskCanceled, EventQuotaNotice}

// Why an endpoint is disabled.
const (
	DisabledByCustomer = "customer"
	DisabledByOperator = "operator"
	DisabledGone       = "gone"    // it answered 410
	DisabledFailing    = "failing" // nothing arrived there for WebhookPatience
)

// WebhookPatience is how long everything sent to an endpoint may fail before it is disabled.
const WebhookPatience = 3 * 24 * time.Hour

// Webhook is an endpoint as its customer sees it. Its secrets can be written and not read by the API.
type Webhook struct {
	ID           uuid.UUID      `db:"id"`
	URL          string         `db:"url"`
	Events       pq.StringArray `db:"events"`
	Description  string         `db:"description"`
	Enabled      bool           `db:"enabled"`
	DisabledWhy  *string        `db:"disabled_why"` // nil while enabled
	DisabledAt   *time.Time     `db:"disabled_at"`
	FailingSince *time.Time     `db:"failing_since"` // nil: the last attempt succeeded, or there was none
	CreatedBy    string         `db:"created_by"`    // usr_… or key_…
	CreatedAt    time.Time      `db:"created_at"`
	UpdatedAt    time.Time      `db:"updated_at"`
}

const webhookColumns = `id, url, events, description, enabled, disabled_why, disabled_at, failing_since, created_by, created_at, updated_at`

// NewWebhook is an endpoint to be made, already validated.
type NewWebhook struct {
	ID          uuid.UUID // made before the secret is sealed for it
	URL         string
	Events      []string
	Description string
	Sealed      []byte // its secret
	CreatedBy   string
}

// CreateWebhook stores an endpoint with its secret; PlanLimit when the workspace has as many as it may.
func (w *Work) CreateWebhook(ctx context.Context, n NewWebhook) (Webhook, error) {
	if _, err := w.lockWebhooks(ctx); err != nil {
		return Webhook{}, err
	}
	var most, have int
	err := w.tx.QueryRowxContext(ctx, `SELECT max_webhooks, (SELECT count(*) FROM webhook_endpoints WHERE workspace_id = $1) FROM workspaces WHERE id = $1`,
		w.Workspace).Scan(&most, &have)
	if err != nil {
		return Webhook{}, noRows(fmt.Errorf("count webhooks: %w", err), "workspace")
	}
	if have >= most {
		return Webhook{}, refuse(PlanLimit, "the plan includes %d webhooks, and the workspace has %d", most, have)
	}
	var made Webhook
	err = w.tx.GetContext(ctx, &made, `INSERT INTO webhook_endpoints (workspace_id, id, url, events, description, created_by)
		VALUES ($1, $2, $3, $4, $5, $6) RETURNING `+webhookColumns, w.Workspace, n.ID, n.URL, pq.Array(n.Events), n.Description, n.CreatedBy)
	if err != nil {
		return Webhook{}, fmt.Errorf("insert webhook: %w", err)
	}
	if err := w.addWebhookSecret(ctx, n.ID, n.Sealed); err != nil {
		return Webhook{}, err
	}
	return made, w.flagWebhooks(ctx)
}

// lockWebhooks locks the load row; a workspace that is leaving gets no further.
func (w *Work) lockWebhooks(ctx context.Context) (*load, error) {
	l, err := w.lockLoad(ctx)
	if err == nil && l.Leaving {
		err = errGone
	}
	return l, err
}

// flagWebhooks notes in the locked load row whether any endpoint is enabled.
func (w *Work) flagWebhooks(ctx context.Context) error { return flagWebhooks(ctx, w.tx, w.Workspace) }

func flagWebhooks(ctx context.Context, tx *sqlx.Tx, ws uuid.UUID) error {
	_, err := tx.ExecContext(ctx, `UPDATE workspace_load SET webhooks = EXISTS (
			SELECT 1 FROM webhook_endpoints WHERE workspace_id = $1 AND enabled) WHERE workspace_id = $1`, ws)
	if err != nil {
		return fmt.Errorf("flag webhooks: %w", err)
	}
	return nil
}

func (w *Work) addWebhookSecret(ctx context.Context, endpoint uuid.UUID, sealed []byte) error {
	_, err := w.tx.ExecContext(ctx, `INSERT INTO webhook_secrets (workspace_id, endpoint_id, id, sealed) VALUES ($1, $2, $3, $4)`,
		w.Workspace, endpoint, NewID(), sealed)
	if err != nil {
		return fmt.Errorf("insert webhook secret: %w", err)
	}
	return nil
}

// Webhooks lists the workspace's endpoints, newest first, those below before (uuid.Nil: from the start).
func (a *API) Webhooks(ctx context.Context, ws, before uuid.UUID, limit int) ([]Webhook, error) {
	list := []Webhook{}
	err := a.inWorkspace(ctx, ws, func(tx *sqlx.Tx) error {
		return tx.SelectContext(ctx, &list, `SELECT `+webhookColumns+` FROM webhook_endpoints
			WHERE workspace_id = $1 AND id < $2 ORDER BY id DESC LIMIT $3`, ws, orMax(before), limit)
	})
	if err != nil {
		return nil, fmt.Errorf("list webhooks: %w", err)
	}
	return list, nil
}

// Webhook reads one endpoint.
func (a *API) Webhook(ctx context.Context, ws, id uuid.UUID) (Webhook, error) {
	var hook Webhook
	err := a.inWorkspace(ctx, ws, func(tx *sqlx.Tx) (err error) {
		hook, err = (&Work{Workspace: ws, tx: tx}).webhook(ctx, id)
		return err
	})
	return hook, err
}

func (w *Work) webhook(ctx context.Context, id uuid.UUID) (Webhook, error) {
	var hook Webhook
	err := w.tx.GetContext(ctx, &hook, `SELECT `+webhookColumns+` FROM webhook_endpoints WHERE workspace_id = $1 AND id = $2`, w.Workspace, id)
	if err != nil {
		return hook, noRows(fmt.Errorf("read webhook: %w", err), "webhook")
	}
	return hook, nil
}

// WebhookPatch changes an endpoint; nil fields stay.
type WebhookPatch struct {
	URL         *string
	Events      []string
	Description *string
	Enabled     *bool
}

// ChangeWebhook changes an endpoint. Another URL, or enabling it, forgets what is held against it. Conflict when an operator has
// disabled what is to be enabled.
func (w *Work) ChangeWebhook(ctx context.Context, id uuid.UUID, p WebhookPatch) (Webhook, error) {
	if _, err := w.lockWebhooks(ctx); err != nil {
		return Webhook{}, err
	}
	var hook Webhook
	err := w.tx.GetContext(ctx, &hook, `UPDATE webhook_endpoints SET url = coalesce($3, url), events = coalesce($4, events),
			description = coalesce($5, description), updated_at = now(),
			failures = CASE WHEN fresh THEN 0 ELSE failures END, failing_since = CASE WHEN fresh THEN NULL ELSE failing_since END,
			not_before = CASE WHEN fresh THEN NULL ELSE not_before END, slow = CASE WHEN fresh THEN false ELSE slow END
		FROM (SELECT $3::text IS NOT NULL AS fresh) f
		WHERE workspace_id = $1 AND id = $2 RETURNING `+webhookColumns, w.Workspace, id, p.URL, pq.Array(p.Events), p.Description)
	if err != nil {
		return hook, noRows(fmt.Errorf("change webhook: %w", err), "webhook")
	}
	switch {
	case p.Enabled == nil:
		return hook, nil
	case *p.Enabled && hook.DisabledWhy != nil && *hook.DisabledWhy == DisabledByOperator:
		return hook, refuse(Conflict, "the webhook was disabled by an operator; ask support")
	}
	return w.switchWebhook(ctx, id, *p.Enabled, DisabledByCustomer)
}

// SwitchWebhook enables or disables an endpoint: an operator's change, of nothing else.
func (w *Work) SwitchWebhook(ctx context.Context, id uuid.UUID, enabled bool) (Webhook, error) {
	if _, err := w.lockWebhooks(ctx); err != nil {
		return Webhook{}, err
	}
	return w.switchWebhook(ctx, id, enabled, DisabledByOperator)
}

// switchWebhook enables an endpoint, which forgets that it has failed, or disables it for a reason, unless it has one already.
// The load row is locked.
func (w *Work) switchWebhook(ctx context.Context, id uuid.UUID, enabled bool, why string) (Webhook, error) {
	set := `enabled = false, disabled_why = coalesce(disabled_why, $3), disabled_at = coalesce(disabled_at, now())`
	args := []any{w.Workspace, id, why}
	if enabled {
		set = `enabled = true, disabled_why = NULL, disabled_at = NULL, letter_at = NULL, failures = 0, failing_since = NULL, not_before = NULL, slow = false`
		args = args[:2]
	}
	var hook Webhook
	err := w.tx.GetContext(ctx, &hook, `UPDATE webhook_endpoints SET `+set+`, updated_at = now() WHERE workspace_id = $1 AND id = $2 RETURNING `+webhookColumns, args...)
	if err != nil {
		return hook, noRows(fmt.Errorf("switch webhook: %w", err), "webhook")
	}
	return hook, w.flagWebhooks(ctx)
}

// DeleteWebhook removes an endpoint with its secrets; nothing more is sent to it. Its deliveries are swept.
func (w *Work) DeleteWebhook(ctx context.Context, id uuid.UUID) error {
	if _, err := w.lockWebhooks(ctx); err != nil {
		return err
	}
	done, err := w.tx.ExecContext(ctx, `DELETE FROM webhook_endpoints WHERE workspace_id = $1 AND id = $2`, w.Workspace, id)
	if err != nil {
		return fmt.Errorf("delete webhook: %w", err)
	}
	if n, err := done.RowsAffected(); err != nil || n == 0 {
		if err == nil {
			err = refuse(NotFound, "no such webhook")
		}
		return err
	}
	if _, err := w.tx.ExecContext(ctx, `DELETE FROM webhook_secrets WHERE workspace_id = $1 AND endpoint_id = $2`, w.Workspace, id); err != nil {
		return fmt.Errorf("delete webhook's secrets: %w", err)
	}
	return w.flagWebhooks(ctx)
}

// RotateWebhook stores another secret. Those before it sign beside it until overlap from now has passed, 0: no more.
// Conflict when two are at work already.
func (w *Work) RotateWebhook(ctx context.Context, id uuid.UUID, sealed []byte, overlap time.Duration) (Webhook, error) {
	if _, err := w.lockWebhooks(ctx); err != nil {
		return Webhook{}, err
	}
	hook, err := w.webhook(ctx, id)
	if err != nil {
		return Webhook{}, err
	}
	var alive int
	if overlap > 0 {
		err = w.tx.GetContext(ctx, &alive, `SELECT count(*) FROM webhook_secrets WHERE workspace_id = $1 AND endpoint_id = $2 AND expires_at > now()`, w.Workspace, id)
		if err != nil {
			return Webhook{}, fmt.Errorf("count webhook's secrets: %w", err)
		}
	}
	if alive > 0 {
		return Webhook{}, refuse(Conflict, "an earlier secret still works beside the current one; wait for its end, or rotate with overlap_seconds 0, which ends both")
	}
	_, err = w.tx.ExecContext(ctx, `UPDATE webhook_secrets SET expires_at = least(expires_at, now() + make_interval(secs => $3))
		WHERE workspace_id = $1 AND endpoint_id = $2`, w.Workspace, id, overlap.Seconds())
	if err != nil {
		return Webhook{}, fmt.Errorf("let webhook's secret run out: %w", err)
	}
	return hook, w.addWebhookSecret(ctx, id, sealed)
}
