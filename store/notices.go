package store

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// A notice says that a workspace has used 80 % or 100 % of something that it has per UTC month. It is written under the
// load row's lock, in the transaction that passes the share, together with an audit entry and an event; the scheduler
// mails it to the owners afterwards (notice_mails.go).
//
// A share is told once per period, and again only when the limit has grown since it was told: who doubles their limit
// wants to know when that runs out too, who went down and up again has heard it. A raised limit itself tells nothing. A
// lowered one tells what it has put the workspace past, because its tasks wait from then on.

// The kinds of notices, by what is used up.
const (
	NoticeAgentTime      = "agent_time"      // milliseconds
	NoticeProviderBudget = "provider_budget" // micro-dollars
)

// noticeMeters name the meter that each kind counts.
var noticeMeters = map[string]string{NoticeAgentTime: MeterAgentMS, NoticeProviderBudget: MeterProviderCost}

// share is how much of a limit was used.
type share struct{ used, limit int64 }

// crossed returns 100 or 80 when usage went from below that share of the limit to it or past it, else 0.
func crossed(before, after share) int {
	for _, percent := range []int64{100, 80} {
		if after.limit > 0 && before.used*100 < before.limit*percent && after.used*100 >= after.limit*percent {
			return int(percent)
		}
	}
	return 0
}

// tell books that a share was passed, unless it has been told in this period under as large a limit; told is false then.
// The load row is locked.
func (l *load) tell(ctx context.Context, tx *sqlx.Tx, n *notes, kind string, percent int, now share) (told bool, err error) {
	period := l.Period.Format(time.DateOnly)
	done, err := tx.ExecContext(ctx, `INSERT INTO quota_notices (workspace_id, id, period, kind, percent, used, quota)
		SELECT $1, $2, $3, $4, $5, $6, $7 WHERE NOT EXISTS (SELECT 1 FROM quota_notices
			WHERE workspace_id = $1 AND period = $3 AND kind = $4 AND percent = $5 AND quota >= $7)`,
		l.Workspace, NewID(), period, kind, percent, now.used, now.limit)
	if err != nil {
		return false, fmt.Errorf("insert quota notice: %w", err)
	}
	if added, err := done.RowsAffected(); err != nil || added == 0 {
		return false, err
	}
	details := map[string]any{"meter": noticeMeters[kind], "percent": percent, "used": now.used, "limit": now.limit, "period": l.Period.Format("2006-01")}
	if err := addEvent(ctx, tx, l.Workspace, EventUsage, uuid.NullUUID{}, details); err != nil {
		return false, err
	}
	if err := l.announceNotice(ctx, tx, details); err != nil {
		return false, err
	}
	return true, n.add(l.Workspace, AuditEntry{ActorType: ActorSystem, ActorID: "metering", Action: "quota.notice",
		Target: FormatID(WorkspacePrefix, l.Workspace), Details: details})
}
