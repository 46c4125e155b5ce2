package store

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// How a workspace leaves:
//
//	active    its owner asks (Work.Leave): one transaction ends all that could act for it, and all that could run
//	deleting  nobody signs in, nothing is submitted; what runs ends and is metered, what is billable is pushed.
//	          Until erasing begins an operator can undo it (System.Restore)
//	erasing   erasing_at is set (System.BeginErasing): nothing runs, all is settled, the time to undo is over. Its
//	          subscription is ended, then its content goes in batches (System.Erase)
//	deleted   what stays is listed in holdings.go
//
// Each step is decided under row locks and committed before the next, so that a process may die after any of them.

// The states of a workspace.
const (
	WorkspaceActive   = "active"
	WorkspaceDeleting = "deleting"
	WorkspaceDeleted  = "deleted"
)

// errGone is what the API's role meets in a workspace that is leaving, in the seconds in which a credential is still
// believed: to it the credential is none any more.
var errGone = &Error{Kind: Unauthorized, Message: "there is no such workspace, or it is being deleted"}

// lockLoad locks the work's load row. The API's role may not lock that of a workspace that is leaving: errGone.
func (w *Work) lockLoad(ctx context.Context) (*load, error) {
	l, err := lockLoad(ctx, w.tx, w.Workspace)
	if KindOf(err) == NotFound {
		return nil, errGone
	}
	return l, err
}

func errLeaving() error { return refuse(Conflict, "the workspace is being deleted") }

// Left is what ended with a workspace.
type Left struct {
	Workspace   Workspace // as it is then
	Sessions    int
	Keys        int
	Invitations int
	Canceled    int // tasks that were waiting; of very many some end within the next seconds
	Stopping    int // tasks that run and were asked to stop
}

// Leave begins the end of the work's workspace on behalf of its owner user, who has said its name: sessions, keys and
// open invitations end, waiting tasks are canceled, running ones are asked to stop, and nothing can be submitted or signed
// in to afterwards. Invalid when the name is another; Unauthorized when the workspace is leaving already.
//
// The members' rows are locked before anything ends: whoever signs in or mints a key at this moment holds such a row, and
// what they make is seen by the statements after it.
func (w *Work) Leave(ctx context.Context, name string, user uuid.UUID) (Left, error) {
	var left Left
	if _, err := w.lockMembers(ctx); err != nil {
		return left, err
	}
	ws, err := w.workspace(ctx)
	if err != nil {
		return left, err
	}
	if ws.Name != name {
		return left, &Error{Kind: Invalid, Field: "confirm", Message: "must be the workspace's name, as GET /v1/workspace shows it"}
	}
	if _, err := w.tx.ExecContext(ctx, `SELECT 1 FROM members WHERE workspace_id = $1 ORDER BY user_id FOR UPDATE`, w.Workspace); err != nil {
		return left, fmt.Errorf("lock members: %w", err)
	}
	for _, end := range []struct {
		what, sql string
		count     *int
	}{
		{"sessions", `UPDATE sessions SET revoked_at = now(), revoked_why = 'workspace deleted' WHERE workspace_id = $1 AND revoked_at IS NULL`, &left.Sessions},
		{"API keys", `UPDATE api_keys SET revoked_at = now() WHERE workspace_id = $1 AND revoked_at IS NULL`, &left.Keys},
		{"invitations", `UPDATE invitations SET revoked_at = now() WHERE workspace_id = $1 AND accepted_at IS NULL AND revoked_at IS NULL`, &left.Invitations},
	} {
		done, err := w.tx.ExecContext(ctx, end.sql, w.Workspace)
		if err != nil {
			return left, fmt.Errorf("end %s: %w", end.what, err)
		}
		n, err := done.RowsAffected()
		if err != nil {
			return left, fmt.Errorf("end %s: %w", end.what, err)
		}
		*end.count = int(n)
	}
	l, err := w.lockLoad(ctx)
	if err != nil {
		return left, err
	}
	l.Leaving = true // it is told of none of these ends
	chosen, err := w.choose(ctx, CancelFilter{})
	if err != nil {
		return left, err
	}
	if left.Canceled, left.Stopping, err = w.cancelChosen(ctx, l, chosen); err != nil {
		return left, err
	}
	if _, err := w.tx.ExecContext(ctx, `UPDATE workspace_load SET leaving = true, turn = NULL, turn_at = NULL WHERE workspace_id = $1`, w.Workspace); err != nil {
		return left, fmt.Errorf("take the workspace out of line: %w", err)
	}
	_, err = w.tx.ExecContext(ctx, `UPDATE workspaces SET status = 'deleting', deleting_at = now(), deleted_by = $2, updated_at = now() WHERE id = $1`,
		w.Workspace, uuid.NullUUID{UUID: user, Valid: user != uuid.Nil})
	if err != nil {
		return left, fmt.Errorf("mark the workspace as leaving: %w", err)
	}
	left.Workspace, err = w.workspace(ctx)
	return left, err
}

// Restore undoes Leave as long as nothing is erased; Conflict otherwise. Sessions, keys and invitations stay ended and
// canceled tasks canceled: its members sign in again.
func (s *System) Restore(ctx context.Context, ws uuid.UUID, by Operator) error {
	return s.inAudited(ctx, func(tx *sqlx.Tx, n *notes) error {
		if _, err := lockLoad(ctx, tx, ws); err != nil {
			return err
		}
		done, err := tx.ExecContext(ctx, `UPDATE workspaces SET status = 'active', deleting_at = NULL, deleted_by = NULL, updated_at = now()
			WHERE id = $1 AND status = 'deleting' AND erasing_at IS NULL`, ws)
		if err != nil {
			return fmt.Errorf("restore workspace: %w", err)
		}
		if changed, err := done.RowsAffected(); err != nil {
			return fmt.Errorf("restore workspace: %w", err)
		} else if changed == 0 {
			return refuse(Conflict, "the workspace is not being deleted, or its erasing has begun")
		}
		if _, err := tx.ExecContext(ctx, `UPDATE workspace_load SET leaving = false WHERE workspace_id = $1`, ws); err != nil {
			return fmt.Errorf("restore workspace's load row: %w", err)
		}
		return n.add(ws, AuditEntry{ActorType: ActorOperator, ActorID: by.Name, Action: "workspace.restore", Target: FormatID(WorkspacePrefix, ws)})
	})
}

// Leaver is a workspace on its way out.
type Leaver struct {
	Workspace         uuid.UUID  `db:"id"`
	Since             time.Time  `db:"deleting_at"`
	For               float64    `db:"leaving_s"` // seconds since then, by the database's clock
	ErasingAt         *time.Time `db:"erasing_at"`
	Customer          *string    `db:"stripe_customer_id"`
	Subscription      *string    `db:"stripe_subscription_id"`
	SubscriptionEnded *time.Time `db:"subscription_ended_at"`
	Running           int        `db:"running"`   // leases
	Unsettled         int        `db:"unsettled"` // UTC days whose billable agent time Stripe was not seen to have
}

// unsettledDays counts the days of workspace w that the push is not done with. Days before yesterday are read from their
// sums, which every nightly run makes equal to the rows. A day that ended before the customer was there, and that Stripe
// takes no more, is nobody's to pay.
const unsettledDays = `SELECT count(*) FROM (
		SELECT coalesce(t.day, l.day) AS day FROM (
			SELECT day, billable AS total FROM daily_usage d WHERE d.workspace_id = w.id AND d.meter = 'agent_ms' AND d.day < ` + currentDay + ` - 1
			UNION ALL
			SELECT day, coalesce(sum(quantity) FILTER (WHERE billable), 0) AS total FROM metering_rows m
			WHERE m.workspace_id = w.id AND m.meter = 'agent_ms' AND m.day >= ` + currentDay + ` - 1 GROUP BY day) t
		FULL JOIN (SELECT day, max(value) FILTER (WHERE status = 'confirmed' AND stripe_customer_id = w.stripe_customer_id) AS confirmed,
				max(value) FILTER (WHERE status = 'carried') AS carried, bool_or(status = 'pending') AS pending
			FROM push_ledger p WHERE p.workspace_id = w.id AND p.meter = 'agent_ms' AND p.status IN ('pending', 'confirmed', 'carried') GROUP BY day) l
			ON l.day = t.day
		WHERE w.stripe_customer_id IS NOT NULL AND (coalesce(l.pending, false)
			OR (coalesce(l.confirmed, 0) <> greatest(coalesce(t.total, 0), 0) AND l.carried IS DISTINCT FROM t.total
				AND NOT (coalesce(t.day, l.day) < w.stripe_customer_since::date AND coalesce(t.day, l.day) < ` + currentDay + ` - 36)))) u`

// Leavers lists the workspaces that are being deleted, who asked first goes first.
func (s *System) Leavers(ctx context.Context) ([]Leaver, error) {
	var list []Leaver
	err := s.db.SelectContext(ctx, &list, `SELECT w.id, w.deleting_at, extract(epoch FROM now() - w.deleting_at)::float8 AS leaving_s, w.erasing_at,
			w.stripe_customer_id, w.stripe_subscription_id, w.subscription_ended_at,
			(SELECT count(*) FROM leases l WHERE l.workspace_id = w.id) AS running,
			CASE WHEN w.erasing_at IS NULL THEN (`+unsettledDays+`) ELSE 0 END AS unsettled
		FROM workspaces w WHERE w.status = 'deleting' ORDER BY w.deleting_at LIMIT 1000`)
	if err != nil {
		return nil, fmt.Errorf("list leaving workspaces: %w", err)
	}
	return list, nil
}

// BeginErasing commits that the workspace will be erased; from then on it cannot be restored. It reports false, and does
// nothing, when something runs, its tasks are still being canceled, or the workspace was restored meanwhile.
func (s *System) BeginErasing(ctx context.Context, ws uuid.UUID) (begun bool, err error) {
	err = inTx(ctx, s.db, func(tx *sqlx.Tx) error {
		begun = false
		if _, err := lockLoad(ctx, tx, ws); err != nil {
			return err
		}
		done, err := tx.ExecContext(ctx, `UPDATE workspaces w SET erasing_at = now() WHERE w.id = $1 AND w.status = 'deleting' AND w.erasing_at IS NULL
			AND NOT EXISTS (SELECT 1 FROM leases l WHERE l.workspace_id = w.id) AND NOT EXISTS (SELECT 1 FROM task_cancels c WHERE c.workspace_id = w.id)`, ws)
		if err != nil {
			return fmt.Errorf("begin erasing workspace: %w", err)
		}
		n, err := done.RowsAffected()
		begun = n == 1
		return err
	})
	return begun, err
}

// SubscriptionEnded notes that Stripe has ended the subscription of a workspace that is being erased.
func (s *System) SubscriptionEnded(ctx context.Context, ws uuid.UUID) error {
	_, err := s.db.ExecContext(ctx, `UPDATE workspaces SET subscription_ended_at = now() WHERE id = $1 AND erasing_at IS NOT NULL AND subscription_ended_at IS NULL`, ws)
	if err != nil {
		return fmt.Errorf("note the subscription's end: %w", err)
	}
	return nil
}
