package store

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// Workspace is a customer: limits, load and money joined.
type Workspace struct {
	ID                   uuid.UUID       `db:"id"`
	Name                 string          `db:"name"`
	Slug                 *string         `db:"slug"` // chooses the login on a host of its own; nil: none
	Plan                 string          `db:"plan"`
	Status               string          `db:"status"`
	RequestsPerHour      int             `db:"requests_per_hour"`
	MaxUsers             int             `db:"max_users"` // 0: unlimited
	MaxWebhooks          int             `db:"max_webhooks"`
	StripeCustomerID     *string         `db:"stripe_customer_id"`
	StripeSubscriptionID *string         `db:"stripe_subscription_id"`
	Settings             json.RawMessage `db:"settings"` // a JSON object
	CreatedAt            time.Time       `db:"created_at"`
	Queue                string          `db:"queue"`
	Concurrency          int             `db:"cap"`
	MaxWaiting           int             `db:"max_waiting"`
	Waiting              int             `db:"waiting"`
	Running              int             `db:"running"`
	ReservedMS           int64           `db:"reserved_ms"`
	Paused               pq.StringArray  `db:"paused"` // who paused it: operator, billing; nil for nobody
	QuotaMS              int64           `db:"quota_ms"`
	UsedMS               int64           `db:"used_ms"` // this period
	Period               time.Time       `db:"period"`  // first day of the UTC month
	Models               pq.StringArray  `db:"models"`  // patterns of provider/model that tasks may run on; empty: all
	NeedsVerifiedEmail   bool            `db:"needs_verified_email"`
	RetentionDays        int             `db:"retention_days"` // of ended tasks; 0: for ever
	MaxSchedules         int             `db:"max_schedules"`
	MinScheduleSeconds   int             `db:"min_schedule_seconds"` // between two occurrences of a schedule

	OverageEnabled     bool  `db:"overage_enabled"`
	SpendCapCents      int64 `db:"spend_cap_cents"`      // per period; the owners' own
	OverageAllowanceMS int64 `db:"overage_allowance_ms"` // what the cap buys; 0 while overage is off
	OverageMS          int64 `db:"overage_used_ms"`      // the part of UsedMS that is charged

	ProviderBudgetMicroUSD   int64 `db:"provider_budget_microusd"`
	ProviderUsedMicroUSD     int64 `db:"provider_used_microusd"`     // of the calls that ended this period
	ProviderReservedMicroUSD int64 `db:"provider_reserved_microusd"` // by calls under way
	MaxTaskCostMicroUSD      int64 `db:"max_task_cost_microusd"`
}

var workspaceQuery = `SELECT ws.id, ws.name, ws.slug, ws.plan, ws.status, ws.requests_per_hour, ws.max_users, ws.max_webhooks, ws.stripe_customer_id, ws.stripe_subscription_id,
		ws.settings, ws.created_at, ws.needs_verified_email, ws.retention_days, ws.max_schedules, ws.min_schedule_seconds, w.models, w.queue, w.cap, w.max_waiting, w.waiting, w.paused, w.quota_ms, greatest(w.period, ` + currentPeriod + `) AS period,
		` + usedNow("used_ms") + ` AS used_ms, w.overage_enabled, w.spend_cap_cents, w.overage_allowance_ms, ` + usedNow("overage_used_ms") + ` AS overage_used_ms,
		w.provider_budget_microusd, w.max_task_cost_microusd, ` + usedNow("provider_used_microusd") + ` AS provider_used_microusd,
		(` + openCost("w.workspace_id") + `) AS provider_reserved_microusd, r.running, r.reserved_ms
	FROM workspaces ws JOIN workspace_load w ON w.workspace_id = ws.id
	CROSS JOIN LATERAL (SELECT count(*) AS running, coalesce(sum(reserved_ms), 0)::bigint AS reserved_ms FROM leases x WHERE x.workspace_id = ws.id) r`

// Workspace reads one workspace.
func (s *System) Workspace(ctx context.Context, id uuid.UUID) (Workspace, error) {
	var w Workspace
	if err := s.db.GetContext(ctx, &w, workspaceQuery+` WHERE ws.id = $1`, id); err != nil {
		return w, noRows(fmt.Errorf("read workspace: %w", err), "workspace")
	}
	return w, nil
}

// Workspaces lists the workspaces that are not deleted, newest first, after the given id (uuid.Nil: from the start), at most limit.
func (s *System) Workspaces(ctx context.Context, after uuid.UUID, limit int) ([]Workspace, error) {
	list := []Workspace{}
	err := s.db.SelectContext(ctx, &list, workspaceQuery+` WHERE ws.status <> 'deleted' AND ($1::uuid = '00000000-0000-0000-0000-000000000000' OR ws.id < $1) ORDER BY ws.id DESC LIMIT $2`, after, limit)
	if err != nil {
		return nil, fmt.Errorf("list workspaces: %w", err)
	}
	return list, nil
}

// Operator is who changes a workspace from the command line, for the audit log.
type Operator struct{ Name string }

// SetPlan gives the workspace a plan: its limits are copied, its turn moves to the plan's queue. customer and
// subscription attach Stripe's ids; empty keeps what is there. It returns the turns to enqueue.
func (s *System) SetPlan(ctx context.Context, ws uuid.UUID, p Plan, customer, subscription string, by Operator) ([]Turn, error) {
	return s.change(ctx, ws, by, "workspace.set_plan", map[string]any{"plan": p.ID, "stripe_customer": customer, "stripe_subscription": subscription},
		func(tx *sqlx.Tx, l *load) error {
			if err := l.setModels(ctx, tx, p.Models); err != nil {
				return err
			}
			_, err := tx.ExecContext(ctx, `UPDATE workspaces SET plan = $2, requests_per_hour = $3, max_users = $4, needs_verified_email = $7,
					max_schedules = $8, min_schedule_seconds = $9, retention_days = $10, max_webhooks = $11,
					stripe_customer_since = CASE WHEN $5 IN ('', coalesce(stripe_customer_id, '')) THEN stripe_customer_since ELSE now() END,
					stripe_customer_id = coalesce(nullif($5, ''), stripe_customer_id),
					stripe_subscription_id = coalesce(nullif($6, ''), stripe_subscription_id), updated_at = now()
				WHERE id = $1`, ws, p.ID, p.RequestsPerHour, p.MaxUsers, customer, subscription, p.NeedsVerifiedEmail,
				p.MaxSchedules, p.MinScheduleSeconds, p.RetentionDays, p.MaxWebhooks)
			if violates(err, "workspaces_stripe_customer_key") {
				return refuse(Conflict, "another workspace has Stripe customer %s: totals are kept per customer", customer)
			}
			if err != nil {
				return fmt.Errorf("set plan: %w", err)
			}
			if l.Queue != p.Queue {
				l.withdraw() // the turn that is out stands in the wrong queue; settle issues one in the right one
			}
			l.Queue, l.Cap, l.MaxWaiting, l.QuotaMS = p.Queue, p.Concurrency, p.MaxWaiting, p.AgentMS
			l.BudgetMicroUSD, l.MaxTaskCost = p.ProviderBudgetMicroUSD, p.MaxTaskCostMicroUSD
			l.setOverage(l.Overage, l.SpendCapCents, p)
			return nil
		})
}

// limits that an operator may set, by the name used on the command line.
var limits = map[string]func(l *load, w *Workspace, v int64){
	"concurrency":              func(l *load, _ *Workspace, v int64) { l.Cap = int(v) },
	"max_waiting":              func(l *load, _ *Workspace, v int64) { l.MaxWaiting = int(v) },
	"agent_ms":                 func(l *load, _ *Workspace, v int64) { l.QuotaMS = v },
	"requests_per_hour":        func(_ *load, w *Workspace, v int64) { w.RequestsPerHour = int(v) },
	"max_users":                func(_ *load, w *Workspace, v int64) { w.MaxUsers = int(v) },
	"max_webhooks":             func(_ *load, w *Workspace, v int64) { w.MaxWebhooks = int(v) },
	"provider_budget_microusd": func(l *load, _ *Workspace, v int64) { l.BudgetMicroUSD = v },
	"max_task_cost_microusd":   func(l *load, _ *Workspace, v int64) { l.MaxTaskCost = v },
	"retention_days":           func(_ *load, w *Workspace, v int64) { w.RetentionDays = int(v) },
	"max_schedules":            func(_ *load, w *Workspace, v int64) { w.MaxSchedules = int(v) },
	"min_schedule_seconds":     func(_ *load, w *Workspace, v int64) { w.MinScheduleSeconds = int(v) },
	"needs_verified_email":     func(_ *load, w *Workspace, v int64) { w.NeedsVerifiedEmail = v != 0 },
}

// maxLimit keeps a limit within what its column holds; time and money may be larger.
const (
	maxLimit         = 2_000_000_000
	maxLargeLimit    = 1_000_000_000_000_000
	maxRetentionDays = 36_500
)

// highest is the most that a limit may be.
func highest(name string) int64 {
	switch {
	case name == "agent_ms", strings.HasSuffix(name, "_microusd"):
		return maxLargeLimit
	case name == "needs_verified_email":
		return 1
	case name == "retention_days":
		return maxRetentionDays
	}
	return maxLimit
}

// LimitNames lists what SetLimits takes.
func LimitNames() []string {
	names := make([]string, 0, len(limits))
	for name := range limits {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// SetLimits overrides limits of a workspace until its plan is set anew. Names are LimitNames, values whole numbers from
// 0 to 2,000,000,000 (agent_ms and those in micro-dollars to 10^15, needs_verified_email to 1, retention_days to 36,500). It returns the turns to
// enqueue.
func (s *System) SetLimits(ctx context.Context, ws uuid.UUID, values map[string]int64, by Operator) ([]Turn, error) {
	return s.Override(ctx, ws, values, nil, by)
}

// Override is SetLimits with the models that tasks may run on (nil: as they are; empty: all), see Plan.Models.
func (s *System) Override(ctx context.Context, ws uuid.UUID, values map[string]int64, models *[]string, by Operator) ([]Turn, error) {
	details := make(map[string]any, len(values))
	if models != nil {
		if err := CheckModels(*models); err != nil {
			return nil, err
		}
		details["models"] = *models
	}
	for name, v := range values {
		highest := highest(name)
		if _, known := limits[name]; !known {
			return nil, &Error{Kind: Invalid, Field: name, Message: fmt.Sprintf("no limit is called %q; there are %s", name, strings.Join(LimitNames(), ", "))}
		}
		if v < 0 || v > highest {
			return nil, &Error{Kind: Invalid, Field: name, Message: fmt.Sprintf("%s must be from 0 to %d, not %d", name, highest, v)}
		}
		details[name] = v
	}
	return s.change(ctx, ws, by, "workspace.set_limit", details, func(tx *sqlx.Tx, l *load) error {
		var w Workspace
		err := tx.GetContext(ctx, &w, `SELECT requests_per_hour, max_users, needs_verified_email, max_schedules, min_schedule_seconds, retention_days, max_webhooks FROM workspaces WHERE id = $1 FOR UPDATE`, ws)
		if err != nil {
			return fmt.Errorf("read limits: %w", err)
		}
		for name, v := range values {
			limits[name](l, &w, v)
		}
		_, err = tx.ExecContext(ctx, `UPDATE workspaces SET requests_per_hour = $2, max_users = $3, needs_verified_email = $4,
			max_schedules = $5, min_schedule_seconds = $6, retention_days = $7, max_webhooks = $8, updated_at = now() WHERE id = $1`, ws, w.RequestsPerHour, w.MaxUsers, w.NeedsVerifiedEmail,
			w.MaxSchedules, w.MinScheduleSeconds, w.RetentionDays, w.MaxWebhooks)
		if err != nil {
			return fmt.Errorf("set limits: %w", err)
		}
		if models != nil {
			return l.setModels(ctx, tx, *models)
		}
		return nil
	})
}

// pausedByOperator is an operator's reason in the set of those who paused a workspace. Each lifts their own only.
const pausedByOperator = "operator"

// Pause stops a workspace from starting tasks; what runs ends, what waits keeps its place.
func (s *System) Pause(ctx context.Context, ws uuid.UUID, by Operator) error {
	_, err := s.change(ctx, ws, by, "workspace.pause", nil, func(_ *sqlx.Tx, l *load) error {
		if !slices.Contains(l.Paused, pausedByOperator) {
			l.Paused = append(l.Paused, pausedByOperator)
		}
		l.withdraw()
		return nil
	})
	return err
}

// Resume lifts an operator's pause; one for another reason stays. It returns the turns to enqueue.
func (s *System) Resume(ctx context.Context, ws uuid.UUID, by Operator) ([]Turn, error) {
	return s.change(ctx, ws, by, "workspace.resume", nil, func(_ *sqlx.Tx, l *load) error {
		l.Paused = slices.DeleteFunc(l.Paused, func(reason string) bool { return reason == pausedByOperator })
		if len(l.Paused) == 0 {
			l.Paused = nil
		}
		return nil
	})
}

// change runs fn under the load row's lock, writes the limits and the audit entry, and settles. A workspace that is being
// deleted is a Conflict.
func (s *System) change(ctx context.Context, ws uuid.UUID, by Operator, action string, details map[string]any, fn func(*sqlx.Tx, *load) error) ([]Turn, error) {
	var turns []Turn
	err := s.inAudited(ctx, func(tx *sqlx.Tx, n *notes) error {
		l, err := lockLoad(ctx, tx, ws)
		if err != nil {
			return err
		}
		if l.Leaving {
			return errLeaving()
		}
		agentTime, budget := l.agentTime(), l.providerBudget()
		if err := fn(tx, l); err != nil {
			return err
		}
		if err := l.tellPassed(ctx, tx, n, agentTime, budget); err != nil { // by a lowered limit
			return err
		}
		_, err = tx.ExecContext(ctx, `UPDATE workspace_load SET queue = $2, cap = $3, max_waiting = $4, paused = $5, quota_ms = $6, overage_enabled = $7,
				overage_allowance_ms = $8, provider_budget_microusd = $9, max_task_cost_microusd = $10 WHERE workspace_id = $1`,
			ws, l.Queue, l.Cap, l.MaxWaiting, l.Paused, l.QuotaMS, l.Overage, l.AllowanceMS, l.BudgetMicroUSD, l.MaxTaskCost)
		if err != nil {
			return fmt.Errorf("write limits: %w", err)
		}
		if err := n.add(ws, AuditEntry{ActorType: ActorOperator, ActorID: by.Name, Action: action, Target: FormatID(WorkspacePrefix, ws), Details: details}); err != nil {
			return err
		}
		turns, err = settle(ctx, tx, l)
		return err
	})
	return turns, err
}
