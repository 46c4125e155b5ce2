package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// Events are what happened in a workspace, for those who listen (GET /v1/events). Their numbers have no gaps and grow in
// the order of the commits, because they are given out under the load row's lock: whoever has seen n and finds n+2 knows
// that something is missing. They are kept for EventLife and then swept; a number is never given out twice.

// EventUsage says that a share of a quota was passed; see notices.go.
const EventUsage = "usage"

// EventLife is how long an event is kept.
const EventLife = 7 * 24 * time.Hour

// Event is one of a workspace's events.
type Event struct {
	Seq  int64           `db:"seq"` // from 1, without gaps
	Kind string          `db:"kind"`
	Task uuid.NullUUID   `db:"task_id"`
	Data json.RawMessage `db:"data"` // a JSON object
	At   time.Time       `db:"at"`
}

// addEvent appends an event. The workspace's load row is locked by this transaction.
func addEvent(ctx context.Context, tx *sqlx.Tx, ws uuid.UUID, kind string, task uuid.NullUUID, data map[string]any) error {
	raw, err := json.Marshal(data)
	if err != nil {
		return fmt.Errorf("write event: %w", err)
	}
	_, err = tx.ExecContext(ctx, `WITH number AS (UPDATE workspace_load SET event_seq = event_seq + 1 WHERE workspace_id = $1 RETURNING event_seq)
		INSERT INTO workspace_events (workspace_id, seq, kind, task_id, data) SELECT $1, event_seq, $2, $3, $4 FROM number`, ws, kind, task, string(raw))
	if err != nil {
		return fmt.Errorf("insert event %s: %w", kind, err)
	}
	return nil
}

// LastEvent is the number of the workspace's latest event, 0 before the first.
func (a *API) LastEvent(ctx context.Context, ws uuid.UUID) (int64, error) {
	var last int64
	err := a.inWorkspace(ctx, ws, func(tx *sqlx.Tx) error {
		return tx.GetContext(ctx, &last, `SELECT event_seq FROM workspace_load WHERE workspace_id = $1`, ws)
	})
	if err != nil {
		return 0, noRows(fmt.Errorf("read last event: %w", err), "workspace")
	}
	return last, nil
}

// Events are those behind a number.
type Events struct {
	List []Event // in order
	// Missing: some behind the number are no longer kept, or the number was never given out. The list then begins with
	// the oldest that is kept.
	Missing bool
	Last    int64 // the latest number given out: where to go on when the list is empty
}

// EventsAfter reads the workspace's events behind the number seen, at most limit.
func (a *API) EventsAfter(ctx context.Context, ws uuid.UUID, seen int64, limit int) (Events, error) {
	var e Events
	err := a.inWorkspace(ctx, ws, func(tx *sqlx.Tx) error {
		e = Events{}
		if err := tx.GetContext(ctx, &e.Last, `SELECT event_seq FROM workspace_load WHERE workspace_id = $1`, ws); err != nil || seen == e.Last {
			return err
		}
		from := seen
		if seen > e.Last {
			from = 0
		}
		err := tx.SelectContext(ctx, &e.List, `SELECT seq, kind, task_id, data, at FROM workspace_events WHERE workspace_id = $1 AND seq > $2 ORDER BY seq LIMIT $3`,
			ws, from, limit)
		e.Missing = seen > e.Last || len(e.List) == 0 || e.List[0].Seq != seen+1
		return err
	})
	if err != nil {
		return Events{}, noRows(fmt.Errorf("read events: %w", err), "workspace")
	}
	return e, nil
}
