package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// How deliveries are handed to the processes that send them. What waits for one endpoint is its lane, and a lane is
// leased whole, so that an endpoint is served by one process at a time: that bounds what it gets at once, and no two
// processes send the same thing. A process that dies holds its lanes until their leases end, and what it had sent and
// not booked by then is sent again under the same id. The database's clock decides when leases end; a process stops
// starting anything well before (see api/webhooks).

// LaneLease is how long a lane is leased.
const LaneLease = 40 * time.Second

// LanesPerWorkspace is how many lanes of a workspace are served at once; two processes that look at the same moment may
// each find room for the last one.
const LanesPerWorkspace = 4

// lanes walks along webhook_deliveries_due from lane to lane, however much waits in each.
const lanes = `lanes AS (
	(SELECT workspace_id, endpoint_id FROM webhook_deliveries WHERE status = 'waiting' ORDER BY workspace_id, endpoint_id LIMIT 1)
	UNION ALL
	SELECT n.workspace_id, n.endpoint_id FROM lanes l CROSS JOIN LATERAL (
		SELECT d.workspace_id, d.endpoint_id FROM webhook_deliveries d
		WHERE d.status = 'waiting' AND (d.workspace_id, d.endpoint_id) > (l.workspace_id, l.endpoint_id)
		ORDER BY d.workspace_id, d.endpoint_id LIMIT 1) n)`

// dueLanes are those with something to send now, and since when. A workspace that is leaving is told nothing.
const dueLanes = lanes + `, due AS (
	SELECT e.workspace_id, e.id, e.slow, e.leased_until, f.next_at FROM lanes l
	JOIN webhook_endpoints e ON e.workspace_id = l.workspace_id AND e.id = l.endpoint_id AND e.enabled AND coalesce(e.not_before <= now(), true)
	JOIN workspaces w ON w.id = l.workspace_id AND w.status = 'active'
	CROSS JOIN LATERAL (SELECT d.next_at FROM webhook_deliveries d WHERE d.workspace_id = l.workspace_id AND d.endpoint_id = l.endpoint_id
		AND d.status = 'waiting' ORDER BY d.next_at LIMIT 1) f
	WHERE f.next_at <= now())`

// Lane is a leased lane.
type Lane struct {
	Workspace uuid.UUID `db:"workspace_id"`
	Endpoint  uuid.UUID `db:"id"`
	Lease     uuid.UUID `db:"lease"`
	URL       string    `db:"url"`
	Slow      bool      `db:"slow"`
	Failures  int       `db:"failures"`   // visits in a row that ended with one
	ChangedAt time.Time `db:"updated_at"` // by its owners or an operator
}

// TakeLanes leases up to limit lanes, slow ones or the others, that have waited longest and that nobody serves.
func (s *System) TakeLanes(ctx context.Context, slow bool, limit int) ([]Lane, error) {
	var taken []Lane
	err := s.db.SelectContext(ctx, &taken, `WITH RECURSIVE `+dueLanes+`,
		ranked AS (
			SELECT d.*, row_number() OVER (PARTITION BY d.workspace_id ORDER BY d.next_at) + (
				SELECT count(*) FROM webhook_endpoints x WHERE x.workspace_id = d.workspace_id AND x.leased_until > now()) AS place
			FROM due d WHERE d.slow = $1 AND coalesce(d.leased_until <= now(), true))
		UPDATE webhook_endpoints e SET lease = gen_random_uuid(), leased_until = now() + $3 * interval '1 millisecond'
		FROM (SELECT workspace_id, id FROM ranked WHERE place <= $4 ORDER BY next_at LIMIT $2) p
		WHERE e.workspace_id = p.workspace_id AND e.id = p.id AND e.enabled AND coalesce(e.leased_until <= now(), true)
		RETURNING e.workspace_id, e.id, e.lease, e.url, e.slow, e.failures, e.updated_at`, slow, limit, LaneLease.Milliseconds(), LanesPerWorkspace)
	if err != nil {
		return nil, fmt.Errorf("take webhook lanes: %w", err)
	}
	return taken, nil
}

// DueDelivery is a delivery to try.
type DueDelivery struct {
	ID       uuid.UUID `db:"id"`
	Attempts int       `db:"attempts"` // before this one
}

// Due lists what is due in a lane, longest first.
func (s *System) Due(ctx context.Context, l Lane, limit int) ([]DueDelivery, error) {
	var due []DueDelivery
	err := s.db.SelectContext(ctx, &due, `SELECT id, attempts FROM webhook_deliveries WHERE workspace_id = $1 AND endpoint_id = $2 AND status = 'waiting'
		AND next_at <= now() ORDER BY next_at LIMIT $3`, l.Workspace, l.Endpoint, limit)
	if err != nil {
		return nil, fmt.Errorf("list due deliveries: %w", err)
	}
	return due, nil
}

// LaneSecrets are the sealed secrets that sign for an endpoint now, the current one first.
func (s *System) LaneSecrets(ctx context.Context, l Lane) ([][]byte, error) {
	var sealed [][]byte
	err := s.db.SelectContext(ctx, &sealed, `SELECT sealed FROM webhook_secrets WHERE workspace_id = $1 AND endpoint_id = $2
		AND coalesce(expires_at > now(), true) ORDER BY expires_at IS NOT NULL, id DESC`, l.Workspace, l.Endpoint)
	if err != nil {
		return nil, fmt.Errorf("read webhook's secrets: %w", err)
	}
	return sealed, nil
}

// DeliveryEvent is what a delivery tells.
type DeliveryEvent struct {
	ID        uuid.UUID       `db:"id"`
	Type      string          `db:"type"`
	Task      uuid.NullUUID   `db:"task_id"`
	Data      json.RawMessage `db:"data"` // TaskFacts of a task's events
	CreatedAt time.Time       `db:"created_at"`
	Result    json.RawMessage `db:"result"`  // of a task that succeeded, unless it is larger than asked for; null otherwise
	Omitted   bool            `db:"omitted"` // there is a result, and it is larger; or the task is not kept any more
}

// DeliveryEvent reads what a delivery tells now: a result that was erased meanwhile is not told. ok is false when the
// delivery is gone or waits no more.
func (s *System) DeliveryEvent(ctx context.Context, l Lane, id uuid.UUID, maxResult int) (e DeliveryEvent, ok bool, err error) {
	var found []DeliveryEvent
	err = s.db.SelectContext(ctx, &found, `SELECT d.id, d.type, d.task_id, d.data, d.created_at,
			CASE WHEN r.bytes <= $4 THEN coalesce(t.result, 'null') ELSE 'null' END AS result,
			d.type = $5 AND (t.id IS NULL OR coalesce(r.bytes, 0) > $4) AS omitted
		FROM webhook_deliveries d LEFT JOIN tasks t ON t.workspace_id = d.workspace_id AND t.id = d.task_id AND d.type = $5
		CROSS JOIN LATERAL (SELECT octet_length(t.result::text) AS bytes) r
		WHERE d.workspace_id = $1 AND d.endpoint_id = $2 AND d.id = $3 AND d.status = 'waiting'`, l.Workspace, l.Endpoint, id, maxResult, EventTaskSucceeded)
	if err != nil {
		return e, false, fmt.Errorf("read event: %w", err)
	}
	if len(found) == 0 {
		return e, false, nil
	}
	return found[0], true, nil
}

// What was wrong with an attempt. They tell nothing of the network between: what cannot be reached and what must not be
// are the same.
const (
	DeliveryUnreachable = "unreachable" // no address, no connection, or an address that nobody may be sent to
	DeliveryTimeout     = "timeout"
	DeliveryTLS         = "tls"
	DeliveryRedirect    = "redirect" // 3xx: redirects are not followed
	DeliveryStatus      = "status"   // any other status than 2xx
	DeliveryBroken      = "broken"   // what came was not HTTP, or ended too early
	DeliveryDisabled    = "disabled" // the webhook was disabled before it arrived
)

// Attempted is how an attempt ended.
type Attempted struct {
	Delivery DueDelivery
	Status   int           // HTTP; 0: none came
	Error    string        // what was wrong; empty: it arrived
	Took     time.Duration // all of it
	Again    time.Duration // when to try again, from now; 0: never
}

// BookDelivery notes how an attempt ended. It reports false, and changes nothing, when the delivery was tried, replayed
// or given up by somebody else meanwhile.
func (s *System) BookDelivery(ctx context.Context, l Lane, a Attempted) (bool, error) {
	done, err := s.db.ExecContext(ctx, `UPDATE webhook_deliveries SET attempts = attempts + 1, last_at = now(), last_status = nullif($5, 0),
			last_error = nullif($6, ''), last_ms = $7, delivered_at = CASE WHEN $6 = '' THEN now() END,
			status = CASE WHEN $6 = '' THEN 'succeeded' WHEN $8 = 0 THEN 'dead' ELSE 'waiting' END, next_at = now() + $8 * interval '1 millisecond'
		WHERE workspace_id = $1 AND endpoint_id = $2 AND id = $3 AND status = 'waiting' AND attempts = $4`,
		l.Workspace, l.Endpoint, a.Delivery.ID, a.Delivery.Attempts, a.Status, a.Error, a.Took.Milliseconds(), a.Again.Milliseconds())
	if err != nil {
		return false, fmt.Errorf("book delivery: %w", err)
	}
	n, err := done.RowsAffected()
	return n == 1, err
}

// Visited is what a visit to a lane has shown.
type Visited struct {
	Succeeded bool // something arrived
	Failed    int  // attempts that failed, after the last that succeeded
	Slow      bool
	Pause     time.Duration // nothing is sent there for so long
	Gone      bool          // it answered 410
}

// LeaveLane ends a lane's lease and keeps what the visit has shown, unless the endpoint was changed meanwhile: it may have
// another URL, or was enabled anew, and what was seen is not its own. An endpoint that is gone, or to which nothing came through
// for WebhookPatience, is disabled; disabled says why, empty when it is not.
func (s *System) LeaveLane(ctx context.Context, l Lane, v Visited) (disabled string, err error) {
	var failing []bool
	err = s.db.SelectContext(ctx, &failing, `UPDATE webhook_endpoints SET lease = NULL, leased_until = NULL, slow = $4,
			failures = CASE WHEN $5 THEN 0 ELSE least(failures, 1000000) END + CASE WHEN $6 > 0 THEN 1 ELSE 0 END,
			failing_since = CASE WHEN $6 > 0 THEN CASE WHEN $5 THEN now() ELSE coalesce(failing_since, now()) END WHEN $5 THEN NULL ELSE failing_since END,
			not_before = CASE WHEN $7 > 0 THEN now() + $7 * interval '1 millisecond' END
		WHERE workspace_id = $1 AND id = $2 AND lease = $3 AND updated_at = $9
		RETURNING enabled AND coalesce(failing_since < now() - $8 * interval '1 millisecond', false)`,
		l.Workspace, l.Endpoint, l.Lease, v.Slow, v.Succeeded, v.Failed, v.Pause.Milliseconds(), WebhookPatience.Milliseconds(), l.ChangedAt)
	if err != nil {
		return "", fmt.Errorf("leave webhook lane: %w", err)
	}
	switch {
	case len(failing) == 0: // changed, or the lease is another's by now
		_, err = s.db.ExecContext(ctx, `UPDATE webhook_endpoints SET lease = NULL, leased_until = NULL WHERE workspace_id = $1 AND id = $2 AND lease = $3`,
			l.Workspace, l.Endpoint, l.Lease)
		if err != nil {
			return "", fmt.Errorf("leave changed webhook's lane: %w", err)
		}
	case v.Gone:
		return s.disableWebhook(ctx, l, DisabledGone)
	case failing[0]:
		return s.disableWebhook(ctx, l, DisabledFailing)
	}
	return "", nil
}

// disableWebhook disables an endpoint unless it was changed since its lane was taken; why comes back when it was done.
func (s *System) disableWebhook(ctx context.Context, l Lane, why string) (disabled string, err error) {
	err = s.inAudited(ctx, func(tx *sqlx.Tx, n *notes) error {
		disabled = ""
		if _, err := lockLoad(ctx, tx, l.Workspace); err != nil {
			return err
		}
		done, err := tx.ExecContext(ctx, `UPDATE webhook_endpoints SET enabled = false, disabled_why = $4, disabled_at = now(), updated_at = now(),
				letter_at = now(), letter_tries = 0 WHERE workspace_id = $1 AND id = $2 AND updated_at = $3 AND enabled`, l.Workspace, l.Endpoint, l.ChangedAt, why)
		if err != nil {
			return fmt.Errorf("disable webhook: %w", err)
		}
		if changed, err := done.RowsAffected(); err != nil || changed == 0 {
			return err
		}
		if err := flagWebhooks(ctx, tx, l.Workspace); err != nil {
			return err
		}
		disabled = why
		return n.add(l.Workspace, AuditEntry{ActorType: ActorSystem, ActorID: "webhooks", Action: "webhook.disable",
			Target: FormatID(WebhookPrefix, l.Endpoint), Details: map[string]any{"why": why}})
	})
	return disabled, err
}

// WebhookBacklog is what waits to be sent.
type WebhookBacklog struct {
	Lanes      int     `db:"lanes"`       // endpoints with something due
	DueSeconds float64 `db:"due_seconds"` // how long the oldest of it has been due, 0 without
}

// WebhookBacklog reads it.
func (s *System) WebhookBacklog(ctx context.Context) (WebhookBacklog, error) {
	var b WebhookBacklog
	err := s.db.GetContext(ctx, &b, `WITH RECURSIVE `+dueLanes+`
		SELECT count(*) AS lanes, coalesce(extract(epoch FROM now() - min(next_at)), 0)::float8 AS due_seconds FROM due`)
	if err != nil {
		return b, fmt.Errorf("read webhook backlog: %w", err)
	}
	return b, nil
}
