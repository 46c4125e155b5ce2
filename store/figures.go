package store

import (
	"context"
	"fmt"
)

// quotaLeft is the agent time that workspace w may still reserve, with r.reserved of it reserved now: load.leftMS in SQL.
var quotaLeft = `greatest(w.quota_ms - ` + usedNow("used_ms") + ` + ` + usedNow("overage_used_ms") + `, 0)
	+ greatest(w.overage_allowance_ms - ` + usedNow("overage_used_ms") + `, 0) - r.reserved`

// TierFigures is the load of one tier's queue.
type TierFigures struct {
	Queue      string  `db:"queue"`
	Workspaces int64   `db:"workspaces"` // with work in line
	Waiting    int64   `db:"waiting"`    // tasks in line or scheduled
	Runnable   int64   `db:"runnable"`   // the sum over workspaces of min(in line, cap - running): what more workers could use; 0 where quota or budget is used up
	Running    int64   `db:"running"`
	Turns      int64   `db:"turns"`          // out
	OldestTurn float64 `db:"oldest_turn_ms"` // how long the oldest turn has been out, milliseconds
}

// TierLoad reads the load of the tiers that have work. It costs one look at each workspace with work. Whether quota
// or provider budget is used up shows at the head of the line, as it does to a claim.
func (s *System) TierLoad(ctx context.Context) ([]TierFigures, error) {
	var tiers []TierFigures
	err := s.db.SelectContext(ctx, &tiers, `SELECT w.queue, count(*) FILTER (WHERE w.waiting > 0) AS workspaces, coalesce(sum(w.waiting), 0)::bigint AS waiting,
			coalesce(sum(r.running), 0)::bigint AS running, coalesce(sum(b.runnable), 0)::bigint AS runnable, count(w.turn) AS turns,
			coalesce(extract(epoch FROM now() - min(w.turn_at)) * 1000, 0)::float8 AS oldest_turn_ms
		FROM workspace_load w
		CROSS JOIN LATERAL (SELECT count(*) AS running, coalesce(sum(reserved_ms), 0) AS reserved FROM leases l WHERE l.workspace_id = w.workspace_id) r
		CROSS JOIN LATERAL (SELECT CASE WHEN `+quotaLeft+` >= least(min(x.timeout_ms) FILTER (WHERE x.place = 1), $1)
			AND `+affordsSQL(`coalesce(min(x.needs_microusd) FILTER (WHERE x.place = 1), 0)`)+` THEN count(*) ELSE 0 END AS runnable FROM (
			SELECT t.timeout_ms, t.needs_microusd, row_number() OVER (ORDER BY t.priority DESC, t.id) AS place
			FROM tasks t WHERE w.waiting > 0 AND w.paused IS NULL AND t.workspace_id = w.workspace_id AND t.status = 'queued'
				AND NOT EXISTS (SELECT 1 FROM leases l WHERE l.workspace_id = t.workspace_id AND l.task_id = t.id)
			ORDER BY t.priority DESC, t.id LIMIT greatest(w.cap - r.running, 0)) x) b
		GROUP BY w.queue`, minReservationMS)
	if err != nil {
		return nil, fmt.Errorf("read tier load: %w", err)
	}
	return tiers, nil
}

// FleetFigures is what the workers say of themselves.
type FleetFigures struct {
	Workers int64 `db:"workers"`
	Slots   int64 `db:"slots"` // of workers that take turns
	Running int64 `db:"running"`
}

// FleetLoad sums up the living workers.
func (s *System) FleetLoad(ctx context.Context) (FleetFigures, error) {
	var f FleetFigures
	err := s.db.GetContext(ctx, &f, `SELECT count(*) AS workers, coalesce(sum(slots) FILTER (WHERE NOT draining), 0)::bigint AS slots,
		(SELECT count(*) FROM leases) AS running FROM workers WHERE dead_at IS NULL`)
	if err != nil {
		return f, fmt.Errorf("read fleet load: %w", err)
	}
	return f, nil
}

// PushAge is how many seconds ago the last nightly push finished; ok is false when none has.
func (s *System) PushAge(ctx context.Context) (seconds float64, ok bool, err error) {
	var age *float64
	err = s.db.GetContext(ctx, &age, `SELECT extract(epoch FROM now() - max(finished_at))::float8 FROM push_runs`)
	if err != nil {
		return 0, false, fmt.Errorf("read push age: %w", err)
	}
	if age == nil {
		return 0, false, nil
	}
	return *age, true, nil
}
