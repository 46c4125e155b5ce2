package store

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// The states of a delivery, and who moves it where:
//
//	event    ─► waiting                     whoever causes it (announce, Work.TestWebhook)
//	attempt  waiting ─► succeeded | waiting, later | dead    scheduler (System.BookDelivery)
//	disabled waiting ─► dead                scheduler (System.SweepWebhooks)
//	replay   any ─► waiting, anew           API (Work.ReplayDelivery)
const (
	DeliveryWaiting   = "waiting"
	DeliverySucceeded = "succeeded"
	DeliveryDead      = "dead"
)

// DeliveryLife is how long a delivery is kept.
const DeliveryLife = 30 * 24 * time.Hour

// Delivery is an event on its way to one endpoint, without what it tells.
type Delivery struct {
	ID          uuid.UUID     `db:"id"` // the event's
	Type        string        `db:"type"`
	Task        uuid.NullUUID `db:"task_id"`
	Status      string        `db:"status"`
	Attempts    int           `db:"attempts"`
	NextAt      time.Time     `db:"next_at"` // while waiting
	CreatedAt   time.Time     `db:"created_at"`
	DeliveredAt *time.Time    `db:"delivered_at"`
	LastAt      *time.Time    `db:"last_at"`     // the last attempt's: its end,
	LastStatus  *int          `db:"last_status"` // the HTTP status that came, nil for none,
	LastError   *string       `db:"last_error"`  // what was wrong, nil when it succeeded,
	LastMS      *int64        `db:"last_ms"`     // and how long it took; one that was given up unsent has no status and took no time
}

const deliveryColumns = `id, type, task_id, status, attempts, next_at, created_at, delivered_at, last_at, last_status, last_error, last_ms`

// DeliveryFilter chooses deliveries; zero fields choose all.
type DeliveryFilter struct {
	Status string
	Task   uuid.UUID
}

// Deliveries lists an endpoint's deliveries, newest event first, those below before (uuid.Nil: from the start). NotFound
// when there is no such endpoint.
func (a *API) Deliveries(ctx context.Context, ws, endpoint uuid.UUID, f DeliveryFilter, before uuid.UUID, limit int) ([]Delivery, error) {
	list := []Delivery{}
	err := a.inWorkspace(ctx, ws, func(tx *sqlx.Tx) error {
		if _, err := (&Work{Workspace: ws, tx: tx}).webhook(ctx, endpoint); err != nil {
			return err
		}
		return tx.SelectContext(ctx, &list, `SELECT `+deliveryColumns+` FROM webhook_deliveries WHERE workspace_id = $1 AND endpoint_id = $2 AND id < $3
			AND ($5 = '' OR status = $5) AND ($6::uuid IS NULL OR task_id = $6) ORDER BY id DESC LIMIT $4`,
			ws, endpoint, orMax(before), limit, f.Status, uuid.NullUUID{UUID: f.Task, Valid: f.Task != uuid.Nil})
	})
	if err != nil {
		return nil, fmt.Errorf("list deliveries: %w", err)
	}
	return list, nil
}

// TestWebhook writes a test event for one endpoint, whatever it asked for; Conflict when it is disabled.
func (w *Work) TestWebhook(ctx context.Context, endpoint uuid.UUID) (Delivery, error) {
	if err := w.sendsTo(ctx, endpoint); err != nil {
		return Delivery{}, err
	}
	var d Delivery
	err := w.tx.GetContext(ctx, &d, `INSERT INTO webhook_deliveries (workspace_id, endpoint_id, id, type, data)
		VALUES ($1, $2, $3, $4, jsonb_build_object('webhook_id', $5::text)) RETURNING `+deliveryColumns,
		w.Workspace, endpoint, NewID(), EventWebhookTest, FormatID(WebhookPrefix, endpoint))
	if err != nil {
		return d, fmt.Errorf("insert test event: %w", err)
	}
	return d, nil
}

// sendsTo refuses an endpoint that is disabled, and keeps the others so until the transaction ends.
func (w *Work) sendsTo(ctx context.Context, endpoint uuid.UUID) error {
	if _, err := w.lockWebhooks(ctx); err != nil {
		return err
	}
	hook, err := w.webhook(ctx, endpoint)
	if err == nil && !hook.Enabled {
		err = refuse(Conflict, "the webhook is disabled; enable it first")
	}
	return err
}

// anew makes a delivery as if it had never been tried.
const anew = `status = 'waiting', attempts = 0, next_at = now(), delivered_at = NULL`

// ReplayDelivery sends a delivery again, from its first attempt on, whatever has become of it. Conflict when the endpoint
// is disabled.
func (w *Work) ReplayDelivery(ctx context.Context, endpoint, id uuid.UUID) (Delivery, error) {
	if err := w.sendsTo(ctx, endpoint); err != nil {
		return Delivery{}, err
	}
	var d Delivery
	err := w.tx.GetContext(ctx, &d, `UPDATE webhook_deliveries SET `+anew+` WHERE workspace_id = $1 AND endpoint_id = $2 AND id = $3
		RETURNING `+deliveryColumns, w.Workspace, endpoint, id)
	if err != nil {
		return d, noRows(fmt.Errorf("replay delivery: %w", err), "delivery")
	}
	return d, nil
}

// MaxReplays is how many deliveries one ReplayDeliveries takes.
const MaxReplays = 10_000

// settled is when a delivery that waits no more died or arrived. Those that were given up unsent by an older version have no
// last_at.
const settled = `coalesce(last_at, created_at)`

// ReplayDeliveries replays the endpoint's deliveries that died, or (by status) arrived, since a time and before until, when that
// is not nil; oldest event first. The time of the event would not do: a delivery dies a day and more after it. It returns how
// many; with MaxReplays of them there may be more.
func (w *Work) ReplayDeliveries(ctx context.Context, endpoint uuid.UUID, status string, since time.Time, until *time.Time) (int, error) {
	if err := w.sendsTo(ctx, endpoint); err != nil {
		return 0, err
	}
	done, err := w.tx.ExecContext(ctx, `UPDATE webhook_deliveries SET `+anew+` WHERE workspace_id = $1 AND endpoint_id = $2 AND id IN (
			SELECT id FROM webhook_deliveries WHERE workspace_id = $1 AND endpoint_id = $2 AND status = $3 AND `+settled+` >= $4
				AND ($5::timestamptz IS NULL OR `+settled+` < $5) ORDER BY id LIMIT $6)`, w.Workspace, endpoint, status, since, until, MaxReplays)
	if err != nil {
		return 0, fmt.Errorf("replay deliveries: %w", err)
	}
	n, err := done.RowsAffected()
	return int(n), err
}

// SweepWebhooks gives up what waits for endpoints that are disabled, and removes what waits for endpoints that are gone,
// deliveries older than DeliveryLife and secrets that have ended, batch by batch.
func (s *System) SweepWebhooks(ctx context.Context) error {
	// Which lanes comes first: what waits in the others, however much, is not looked at.
	swept := func(which string) string {
		return `WITH RECURSIVE ` + lanes + `, swept AS MATERIALIZED (SELECT l.workspace_id, l.endpoint_id FROM lanes l
			LEFT JOIN webhook_endpoints e ON e.workspace_id = l.workspace_id AND e.id = l.endpoint_id WHERE ` + which + `)`
	}
	const waiting = `SELECT d.workspace_id, d.endpoint_id, d.id FROM swept l CROSS JOIN LATERAL (SELECT d.* FROM webhook_deliveries d
		WHERE d.workspace_id = l.workspace_id AND d.endpoint_id = l.endpoint_id AND d.status = 'waiting' LIMIT $1) d LIMIT $1`
	for _, q := range []struct {
		what, sql string
		args      []any
	}{
		{"deliveries to disabled webhooks", swept(`NOT e.enabled`) + ` UPDATE webhook_deliveries SET status = 'dead', last_at = now(), last_status = NULL, last_error = $2, last_ms = NULL
			WHERE (workspace_id, endpoint_id, id) IN (` + waiting + `)`, []any{DeliveryDisabled}},
		{"deliveries to deleted webhooks", swept(`e.id IS NULL`) + ` DELETE FROM webhook_deliveries
			WHERE (workspace_id, endpoint_id, id) IN (` + waiting + `)`, nil},
		{"old deliveries", `DELETE FROM webhook_deliveries WHERE (workspace_id, endpoint_id, id) IN (SELECT workspace_id, endpoint_id, id FROM webhook_deliveries
			WHERE created_at < now() - $2 * interval '1 millisecond' LIMIT $1)`, []any{DeliveryLife.Milliseconds()}},
		{"old webhook secrets", `DELETE FROM webhook_secrets WHERE (workspace_id, endpoint_id, id) IN (SELECT workspace_id, endpoint_id, id FROM webhook_secrets
			WHERE expires_at < now() LIMIT $1)`, nil},
	} {
		for n := int64(1); n > 0; {
			done, err := s.db.ExecContext(ctx, q.sql, append([]any{sweepBatch}, q.args...)...)
			if err == nil {
				n, err = done.RowsAffected()
			}
			if err != nil {
				return fmt.Errorf("sweep %s: %w", q.what, err)
			}
		}
	}
	return nil
}

// WebhookLetter is the news for a workspace's owners that an endpoint was disabled, taken for MailPause.
type WebhookLetter struct {
	Workspace uuid.UUID      `db:"workspace_id"`
	Endpoint  uuid.UUID      `db:"id"`
	Tries     int            `db:"letter_tries"` // this one included
	URL       string         `db:"url"`
	Why       string         `db:"disabled_why"`
	Name      string         `db:"name"` // of the workspace
	Emails    pq.StringArray `db:"emails"`
}

// TakeWebhookLetter takes the letter that has waited longest; nil when none is due.
func (s *System) TakeWebhookLetter(ctx context.Context) (*WebhookLetter, error) {
	var due []WebhookLetter
	err := s.db.SelectContext(ctx, &due, `WITH due AS (
			UPDATE webhook_endpoints SET letter_tries = letter_tries + 1,
				letter_at = now() + least($1 * power(2, letter_tries), $2) * interval '1 millisecond'
			WHERE (workspace_id, id) = (SELECT workspace_id, id FROM webhook_endpoints WHERE letter_at <= now() AND NOT enabled
					AND disabled_at > now() - $4 * interval '1 millisecond'
				ORDER BY letter_at LIMIT 1 FOR UPDATE SKIP LOCKED)
			RETURNING workspace_id, id, letter_tries, url, disabled_why)
		SELECT d.*, w.name, coalesce((SELECT array_agg(u.email ORDER BY u.id) FROM members m JOIN users u ON u.id = m.user_id
			WHERE m.workspace_id = d.workspace_id AND m.role = $3), '{}') AS emails
		FROM due d JOIN workspaces w ON w.id = d.workspace_id`, MailPause.Milliseconds(), MailPauseMax.Milliseconds(), RoleOwner, noticeNews.Milliseconds())
	if err != nil {
		return nil, fmt.Errorf("take webhook's letter: %w", err)
	}
	if len(due) == 0 {
		return nil, nil
	}
	return &due[0], nil
}

// BookWebhookLetter notes that a letter was sent, or never will be.
func (s *System) BookWebhookLetter(ctx context.Context, l *WebhookLetter) error {
	_, err := s.db.ExecContext(ctx, `UPDATE webhook_endpoints SET letter_at = NULL WHERE workspace_id = $1 AND id = $2 AND letter_tries = $3`,
		l.Workspace, l.Endpoint, l.Tries)
	if err != nil {
		return fmt.Errorf("book webhook's letter: %w", err)
	}
	return nil
}
