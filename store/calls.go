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

// A provider call's row is committed as started before the call goes out and closed after it, both under the load row's
// lock. While it is open it reserves its ceiling of the workspace's provider budget (budget.go); what it cost is added to
// the period in which it is closed. A crash, or a worker that cannot write the end, leaves it open: then a sweep closes it
// at its ceiling, and a later end changes nothing.

// CallStart is a provider call about to be made.
type CallStart struct {
	ID                     uuid.UUID // fresh, chosen before asking, so that a repeated Begin is recognised as one's own
	Workspace, Task, Lease uuid.UUID
	Provider, Model        string
	Step, Try              int   // of the agent's loop, and of the step, from 1
	CeilingMicroUSD        int64 // the most it can cost: what it counts as if its end is never known
}

// CallEnd is how a provider call ended. The four token counts are disjoint.
type CallEnd struct {
	Outcome          string // ok, transient, permanent, canceled, cut
	ErrorCode        string
	HTTPStatus       int // 0: none came
	LatencyMS        int64
	InputTokens      int64
	OutputTokens     int64
	CacheReadTokens  int64
	CacheWriteTokens int64
	CostMicroUSD     int64
	Estimated        bool // the provider did not say; computed from what was sent and received
}

// CallEnded is what became of a CallEnd.
type CallEnded struct {
	Turn            *Turn // to enqueue: what the call held may be what other work waited for
	OverrunMicroUSD int64 // what it cost beyond its ceiling; 0 as long as ceilings are right
}

// ErrLeaseLost: the task is no longer held under this lease; start no further call for it.
var ErrLeaseLost = errors.New("the lease has been taken away")

// callTries is how often a call's transaction waits for a load row that others hold, the role's lock timeout each time.
const callTries = 10

// inCall is inTx under the workspace's load row, for what is noted.
func (f *Fleet) inCall(ctx context.Context, ws uuid.UUID, fn func(tx *sqlx.Tx, l *load, n *notes) error) error {
	for try := 1; ; try++ {
		err := inTx(ctx, f.db, func(tx *sqlx.Tx) error {
			l, err := lockLoad(ctx, tx, ws)
			if err != nil {
				return err
			}
			n := &notes{}
			if err := fn(tx, l, n); err != nil {
				return err
			}
			return n.append(ctx, tx, nil)
		})
		if err == nil || try == callTries || !isConcurrency(err) {
			return err
		}
	}
}

// BeginCall commits a call as started, which is the permission to make it. It is refused with ErrLeaseLost when the task
// is not held under the lease any more, with ErrTaskCost, ErrBudgetUsed or ErrBudgetHeld when its ceiling does not fit.
// After any other error it may have been committed: ask again with the same ID.
func (f *Fleet) BeginCall(ctx context.Context, c CallStart) error {
	err := f.inCall(ctx, c.Workspace, func(tx *sqlx.Tx, l *load, _ *notes) error {
		var now struct {
			Held  bool    `db:"held"`
			Begun *string `db:"begun"` // outcome, when it was asked for before
			Open  int64   `db:"open"`
			Task  int64   `db:"task"` // what the task has cost, its open calls included
		}
		// A statement of its own behind the lock: its snapshot has what the last holder of the row committed.
		err := tx.GetContext(ctx, &now, `SELECT EXISTS (SELECT 1 FROM leases WHERE workspace_id = $1 AND task_id = $2 AND id = $3) AS held,
			(SELECT outcome FROM provider_calls WHERE workspace_id = $1 AND id = $4) AS begun, (`+openCost("$1")+`) AS open,
			coalesce((SELECT cost_microusd FROM tasks WHERE workspace_id = $1 AND id = $2), 0)
				+ (SELECT coalesce(sum(cost_microusd), 0)::bigint FROM provider_calls WHERE workspace_id = $1 AND attempt_id = $3) AS task`,
			c.Workspace, c.Task, c.Lease, c.ID)
		if err != nil {
			return fmt.Errorf("read what is reserved: %w", err)
		}
		switch {
		case !now.Held, now.Begun != nil && *now.Begun != "started":
			return ErrLeaseLost
		case now.Begun != nil:
			return nil
		case now.Task+c.CeilingMicroUSD > l.MaxTaskCost, l.hopeless(c.CeilingMicroUSD):
			return ErrTaskCost
		case l.SpentMicroUSD+c.CeilingMicroUSD > l.BudgetMicroUSD:
			return ErrBudgetUsed
		case l.SpentMicroUSD+now.Open+c.CeilingMicroUSD > l.BudgetMicroUSD:
			return ErrBudgetHeld
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO provider_calls (workspace_id, id, task_id, attempt_id, provider, model, step, try, cost_microusd, estimated)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, true)`,
			c.Workspace, c.ID, c.Task, c.Lease, c.Provider, c.Model, c.Step, c.Try, c.CeilingMicroUSD)
		if err != nil {
			return fmt.Errorf("insert call: %w", err)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("begin provider call: %w", err)
	}
	return nil
}

// EndCall closes a call at what it cost. A call that was closed before (by a sweep, or by the same EndCall whose answer
// got lost) keeps its first end.
func (f *Fleet) EndCall(ctx context.Context, ws, call uuid.UUID, e CallEnd) (ended CallEnded, err error) {
	err = f.inCall(ctx, ws, func(tx *sqlx.Tx, l *load, n *notes) error {
		ended = CallEnded{}
		var ceiling int64
		err := tx.GetContext(ctx, &ceiling, `UPDATE provider_calls c SET outcome = $3, error_code = $4, http_status = $5, latency_ms = $6,
				input_tokens = $7, output_tokens = $8, cache_read_tokens = $9, cache_write_tokens = $10, cost_microusd = $11, estimated = $12,
				finished_at = `+closedAt("$13")+`
			FROM (SELECT cost_microusd FROM provider_calls WHERE workspace_id = $1 AND id = $2) before
			WHERE c.workspace_id = $1 AND c.id = $2 AND c.outcome = 'started' RETURNING before.cost_microusd`,
			ws, call, e.Outcome, e.ErrorCode, e.HTTPStatus, e.LatencyMS, e.InputTokens, e.OutputTokens, e.CacheReadTokens, e.CacheWriteTokens,
			e.CostMicroUSD, e.Estimated, l.Period.Format(time.DateOnly))
		if errors.Is(err, sql.ErrNoRows) {
			if l.Turn != nil { // perhaps the lost answer's: enqueueing it a second time does no harm
				ended.Turn = &Turn{Workspace: ws, ID: *l.Turn, Queue: l.Queue, IssuedAt: *l.TurnAt}
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("close call: %w", err)
		}
		if err := l.spend(ctx, tx, n, e.CostMicroUSD); err != nil {
			return err
		}
		ended.OverrunMicroUSD = max(e.CostMicroUSD-ceiling, 0)
		if l.Turn != nil || l.Waiting == 0 || l.Paused != nil {
			return saveLoads(ctx, tx, []*load{l})
		}
		turns, err := settle(ctx, tx, l)
		for _, t := range turns {
			ended.Turn = &t
		}
		return err
	})
	if err != nil {
		return CallEnded{}, fmt.Errorf("end provider call: %w", err)
	}
	return ended, nil
}

// closedAt dates a call's end, in a transaction that holds the load row: never before the row's period, as with metering.
func closedAt(period string) string {
	return `greatest(now(), ` + period + `::date::timestamp AT TIME ZONE 'UTC')`
}

// closeCalls closes what a crashed attempt left open, at its ceiling, and sums what the attempt has used. The load row is
// locked; the caller saves it.
func closeCalls(ctx context.Context, tx *sqlx.Tx, n *notes, l *load, attempt uuid.UUID) (u AttemptUsage, err error) {
	if _, err := closeOrphans(ctx, tx, n, l, `c.attempt_id = $3`, attempt); err != nil {
		return u, err
	}
	err = tx.GetContext(ctx, &u, `SELECT count(*) AS provider_calls, coalesce(sum(input_tokens), 0)::bigint AS input_tokens,
			coalesce(sum(output_tokens), 0)::bigint AS output_tokens, coalesce(sum(cache_read_tokens), 0)::bigint AS cache_read_tokens,
			coalesce(sum(cache_write_tokens), 0)::bigint AS cache_write_tokens, coalesce(sum(cost_microusd), 0)::bigint AS cost_microusd
		FROM provider_calls WHERE workspace_id = $1 AND attempt_id = $2`, l.Workspace, attempt)
	if err != nil {
		return u, fmt.Errorf("sum crashed attempt's calls: %w", err)
	}
	return u, nil
}

// closeOrphans closes the open calls of a locked workspace that the condition ($3) chooses, at their ceilings.
func closeOrphans(ctx context.Context, tx *sqlx.Tx, n *notes, l *load, condition string, arg any) (closed int64, err error) {
	var costs []int64
	err = tx.SelectContext(ctx, &costs, `UPDATE provider_calls c SET outcome = 'orphaned', finished_at = `+closedAt("$2")+`
		WHERE c.workspace_id = $1 AND c.outcome = 'started' AND `+condition+` RETURNING c.cost_microusd`,
		l.Workspace, l.Period.Format(time.DateOnly), arg)
	if err != nil {
		return 0, fmt.Errorf("close orphaned calls: %w", err)
	}
	var sum int64
	for _, cost := range costs {
		sum += cost
	}
	return int64(len(costs)), l.spend(ctx, tx, n, sum)
}

// noLease: call c belongs to no attempt that runs.
const noLease = `NOT EXISTS (SELECT 1 FROM leases l WHERE l.workspace_id = c.workspace_id AND l.task_id = c.task_id AND l.id = c.attempt_id)`

// CloseOrphanedCalls closes calls that have stood open for longer than age with no lease behind them: their worker could
// not write the end. They count at their ceiling. It returns how many, and the turns to enqueue. One workspace's trouble
// delays nobody.
func (s *System) CloseOrphanedCalls(ctx context.Context, age time.Duration) (closed int64, turns []Turn, err error) {
	var workspaces []uuid.UUID
	const old = `c.started_at < now() - $3 * interval '1 millisecond' AND ` + noLease
	err = s.db.SelectContext(ctx, &workspaces, `SELECT DISTINCT c.workspace_id FROM provider_calls c
		WHERE c.outcome = 'started' AND c.started_at < now() - $1 * interval '1 millisecond' AND `+noLease+` LIMIT 1000`, age.Milliseconds())
	if err != nil {
		return 0, nil, fmt.Errorf("look for orphaned calls: %w", err)
	}
	var failures []error
	for _, ws := range workspaces {
		var orphans int64
		var issued []Turn
		err := s.inAudited(ctx, func(tx *sqlx.Tx, n *notes) error {
			if err := impatient(ctx, tx); err != nil {
				return err
			}
			l, err := lockLoad(ctx, tx, ws)
			if err != nil {
				return err
			}
			if orphans, err = closeOrphans(ctx, tx, n, l, old, age.Milliseconds()); err != nil {
				return err
			}
			issued, err = settle(ctx, tx, l)
			return err
		})
		if err != nil {
			failures = append(failures, fmt.Errorf("workspace %s: %w", ws, err))
			continue
		}
		closed, turns = closed+orphans, append(turns, issued...)
	}
	return closed, turns, errors.Join(failures...)
}
