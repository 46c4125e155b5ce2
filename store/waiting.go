package store

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/lib/pq"
)

// Waiting says why a task is not running.
type Waiting struct {
	Reason   string // one of the reasons below
	Position int    // queued tasks of the workspace that would run before it
	More     bool   // Position is only the least it can be
	InLine   bool   // it has a position
}

// The reasons, in the order in which they are given when several hold; those of a task in line come from the function
// waiting_reason (migration 00022), by the rules of load.hasRoom and load.admits.
const (
	WaitScheduled    = "scheduled"        // its time has not come
	WaitIsolated     = "isolated"         // it was running in crashes: it waits, and then runs in a process of its own
	WaitRetryBackoff = "retry_backoff"    // an attempt failed or crashed; the next waits
	WaitPaused       = "workspace_paused" // by an operator or by billing
	WaitQuota        = "quota_exhausted"  // too little agent time is left in this period for the first in line
	WaitBudget       = "provider_budget"  // too little provider budget is left for the first in line
	WaitCap          = "workspace_cap"    // the workspace runs as many as its plan allows
	WaitInLine       = "in_line"          // other workspaces are served before it
)

// exactPositions is up to where a position is exact; beyond, it is only said to be at least this.
const exactPositions = 1000

// readLoad reads the load row without locking it, with what runs: good enough to tell a reader, never to decide.
func (w *Work) readLoad(ctx context.Context) (*load, error) {
	var row struct {
		load
		Running  int   `db:"now_running"`
		Reserved int64 `db:"now_reserved"`
		Open     int64 `db:"now_open"`
	}
	err := w.tx.GetContext(ctx, &row, `SELECT `+loadColumns+`, r.running AS now_running, r.reserved AS now_reserved, (`+openCost("w.workspace_id")+`) AS now_open
		FROM workspace_load w
		CROSS JOIN LATERAL (SELECT count(*) AS running, coalesce(sum(reserved_ms), 0)::bigint AS reserved
			FROM leases l WHERE l.workspace_id = w.workspace_id) r
		WHERE w.workspace_id = $1`, w.Workspace)
	if err != nil {
		return nil, noRows(fmt.Errorf("read load row: %w", err), "workspace")
	}
	row.running, row.reserved, row.open = row.Running, row.Reserved, row.Open
	return &row.load, nil
}

// waitingColumns are why a task in line is not running and how many run before it, of tasks t LEFT JOIN leases l; NULL
// unless it is in line. The functions are those of migrations 00022 and 00020.
const waitingColumns = `CASE WHEN l.id IS NULL AND t.status = 'queued' THEN waiting_reason(t.workspace_id) END AS waiting_reason,
	CASE WHEN l.id IS NULL AND t.status = 'queued' THEN line_position(t.workspace_id, t.id, t.priority) END AS waiting_position`

// waitingRow is a task with waitingColumns.
type waitingRow struct {
	Task
	Reason   sql.NullString `db:"waiting_reason"`
	Position sql.NullInt64  `db:"waiting_position"`
}

func (r *waitingRow) view() TaskView {
	v := TaskView{Task: r.Task, Waiting: r.waitsForTime()}
	if r.Reason.Valid {
		v.Waiting = &Waiting{Reason: r.Reason.String}
		v.Waiting.at(int(r.Position.Int64), r.Position.Int64 <= exactPositions)
	}
	return v
}

// waitsForTime is the Waiting of a scheduled task, nil for others.
func (t *Task) waitsForTime() *Waiting {
	switch {
	case t.Status != StatusScheduled:
		return nil
	case t.Crashes >= suspectCrashes:
		return &Waiting{Reason: WaitIsolated}
	case t.Attempt+t.Crashes > 0:
		return &Waiting{Reason: WaitRetryBackoff}
	}
	return &Waiting{Reason: WaitScheduled}
}

// explain fills in Waiting of those tasks of a list that wait: one look at the line for all of them.
func (w *Work) explain(ctx context.Context, views []TaskView) error {
	var line struct {
		Reason sql.NullString `db:"reason"`
		IDs    pq.StringArray `db:"ids"` // of the first in line, as many as have exact positions
	}
	var positions map[string]int
	for i := range views {
		t := &views[i]
		t.Waiting = t.waitsForTime()
		if t.Status != StatusQueued {
			continue
		}
		if positions == nil {
			err := w.tx.GetContext(ctx, &line, `SELECT waiting_reason($1) AS reason, ARRAY(SELECT t.id FROM tasks t WHERE t.workspace_id = $1
				AND t.status = 'queued' AND `+unexpired+` AND NOT EXISTS (SELECT 1 FROM leases l WHERE l.workspace_id = $1 AND l.task_id = t.id)
				ORDER BY t.priority DESC, t.id LIMIT 1001) AS ids`, w.Workspace)
			if err != nil {
				return fmt.Errorf("read head of line: %w", err)
			}
			positions = make(map[string]int, len(line.IDs))
			for position, id := range line.IDs {
				positions[id] = position
			}
		}
		t.Waiting = &Waiting{Reason: line.Reason.String}
		position, exact := positions[t.ID.String()]
		t.Waiting.at(position, exact)
	}
	return nil
}

// at sets the position, or that it lies beyond the exact ones.
func (w *Waiting) at(position int, exact bool) {
	w.InLine, w.Position, w.More = true, position, !exact
	if !exact {
		w.Position = exactPositions
	}
}
