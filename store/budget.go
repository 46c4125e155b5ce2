package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// Two budgets bound what a workspace's model calls cost: one per UTC month, one per task. A call reserves the most that
// it can cost before it goes out and is settled at what it did cost (calls.go); its row is the reservation. Under the
// load row's lock, at every commit,
//
//	cost of the calls that ended in the period + ceilings of the open ones <= the period's budget
//
// unless a call cost more than its ceiling (booked as it is, and counted as overrun) or the budget was lowered below what
// was used: then no call starts until it holds again.
//
// Which task may be tried: its attempt went back to the line because a call of so many micro-dollars did not fit, and it
// is the head of the line again only once that fits. So a used-up budget costs each task one attempt, not one per turn.
// A call that no month's budget would fit, or that costs more than a task may, is no reason to wait: the limits were lowered
// since it was refused. Its task is tried as if none had been, and fails, instead of keeping all behind it waiting for ever.

// Why a call is refused for its cost.
var (
	// ErrBudgetUsed: too little is left of the period's budget.
	ErrBudgetUsed = errors.New("the workspace's provider budget is used up")
	// ErrBudgetHeld: it would fit, but calls under way hold what is left; it may fit when they have ended.
	ErrBudgetHeld = errors.New("the workspace's provider budget is reserved by calls under way")
	// ErrTaskCost: the task would cost more than a task may, or this call more than a month's whole budget.
	ErrTaskCost = errors.New("the task would cost more than a task may")
)

// hopeless reports whether a call that may cost so much can begin in no month. A budget of 0 lets no call begin, which is
// to stop tasks and not to fail them: they wait.
func (l *load) hopeless(microUSD int64) bool {
	return l.BudgetMicroUSD > 0 && microUSD > min(l.BudgetMicroUSD, l.MaxTaskCost)
}

// affords reports whether a task whose last refused call needs so much (0: none was refused) may be tried. Reservations
// are looked at only for its sake: what no call was refused to is simply tried.
func (l *load) affords(needs int64) bool {
	if l.hopeless(needs) {
		needs = 0
	}
	left := l.BudgetMicroUSD - l.SpentMicroUSD
	if needs > 0 {
		left -= l.open
	}
	return left >= needs
}

// affordsSQL is load.affords of workspace w for a task that needs an expression of micro-dollars. The functions of migration
// 00021 that explain and submit tasks say the same.
func affordsSQL(needs string) string {
	needs = `line_needs(` + needs + `, w.provider_budget_microusd, w.max_task_cost_microusd)`
	return `w.provider_budget_microusd - ` + usedNow("provider_used_microusd") + ` - CASE WHEN ` + needs + ` > 0 THEN (` + openCost("w.workspace_id") + `) ELSE 0 END >= ` + needs
}

// openCost sums what a workspace's open calls reserve: index provider_calls_reserved.
func openCost(workspace string) string {
	return `SELECT coalesce(sum(c.cost_microusd), 0)::bigint FROM provider_calls c WHERE c.workspace_id = ` + workspace + ` AND c.outcome = 'started'`
}

// usedNow reads a column of workspace_load w that counts the period: a period that has passed counts nothing.
func usedNow(column string) string {
	return `CASE WHEN w.period < ` + currentPeriod + ` THEN 0 ELSE w.` + column + ` END`
}

// deriveOpen reads what open calls reserve, if the head of some workspace's line was refused a call before.
func deriveOpen(ctx context.Context, tx *sqlx.Tx, loads []*load, best map[uuid.UUID][]runnable) error {
	refused := false
	for _, line := range best {
		for _, r := range line {
			refused = refused || r.Needs > 0
		}
	}
	if !refused {
		return nil
	}
	var rows []struct {
		Workspace uuid.UUID `db:"workspace_id"`
		Open      int64     `db:"open"`
	}
	err := tx.SelectContext(ctx, &rows, `SELECT w.id AS workspace_id, (`+openCost("w.id")+`) AS open FROM unnest($1::uuid[]) w (id)`,
		pq.Array(workspacesOf(loads)))
	if err != nil {
		return fmt.Errorf("derive open calls: %w", err)
	}
	open := make(map[uuid.UUID]int64, len(rows))
	for _, r := range rows {
		open[r.Workspace] = r.Open
	}
	for _, l := range loads {
		l.open = open[l.Workspace]
	}
	return nil
}

// spend adds what a call cost and tells when a share of the budget is passed.
func (l *load) spend(ctx context.Context, tx *sqlx.Tx, n *notes, microUSD int64) error {
	agentTime, budget := l.agentTime(), l.providerBudget()
	l.SpentMicroUSD += microUSD
	return l.tellPassed(ctx, tx, n, agentTime, budget)
}

func (l *load) agentTime() share      { return share{l.UsedMS, l.QuotaMS} }
func (l *load) providerBudget() share { return share{l.SpentMicroUSD, l.BudgetMicroUSD} }

// tellPassed tells the shares that were passed since the given ones.
func (l *load) tellPassed(ctx context.Context, tx *sqlx.Tx, n *notes, agentTime, budget share) error {
	for _, passed := range []struct {
		kind          string
		before, after share
	}{{NoticeAgentTime, agentTime, l.agentTime()}, {NoticeProviderBudget, budget, l.providerBudget()}} {
		if percent := crossed(passed.before, passed.after); percent != 0 {
			if _, err := l.tell(ctx, tx, n, passed.kind, percent, passed.after); err != nil {
				return err
			}
		}
	}
	return nil
}
