package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// What endpoints are told, written where it happens: in the transaction that ends the task, under the load row's lock,
// one row per endpoint that asked for it. Every statement that ends tasks is followed by an announce; a test reads the
// sources for those that are not. Workspaces without an endpoint pay nothing: the load row says so.

// eventID makes an event's id in SQL: a UUIDv7 of the statement's clock, since a bulk cancel may end very many tasks.
const eventID = `(SELECT (left(ms, 8) || '-' || right(ms, 4) || '-7' || substr(gen_random_uuid()::text, 16))::uuid
	FROM lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0') AS ms WHERE t.id IS NOT NULL)`

// taskFacts is a task as an event tells it, but for its result, which is read when it is sent: a result may be large,
// and a task that has succeeded stays as it is. The rest may change with a retry. The keys are TaskFacts'.
const taskFacts = `jsonb_build_object('status', t.status, 'agent', t.agent, 'model', t.model, 'priority', t.priority, 'timeout_ms', t.timeout_ms,
	'attempt', t.attempt, 'max_attempts', t.max_attempts, 'created_at', t.created_at, 'api_key', t.api_key_id, 'user', t.created_by_user, 'schedule', t.schedule_id,
	'run_at', t.run_at, 'started_at', t.started_at, 'finished_at', t.finished_at, 'cancel_requested_at', t.cancel_requested_at,
	'expires_at', t.expires_at, 'error', t.error, 'metadata', t.metadata, 'agent_ms', t.agent_ms, 'provider_calls', t.provider_calls,
	'input_tokens', t.input_tokens, 'output_tokens', t.output_tokens, 'cost_microusd', t.cost_microusd)`

// announce writes the events of tasks that this transaction has ended. The load row is locked.
func (l *load) announce(ctx context.Context, tx *sqlx.Tx, ended ...uuid.UUID) error {
	if !l.Webhooks || l.Leaving || len(ended) == 0 {
		return nil
	}
	workspaces := make([]uuid.UUID, len(ended))
	for i := range workspaces {
		workspaces[i] = l.Workspace
	}
	return announceTasks(ctx, tx, workspaces, ended)
}

// announceFinished is announce for the finishes of a batch.
func announceFinished(ctx context.Context, tx *sqlx.Tx, loads map[uuid.UUID]*load, ended []held, moves []move) error {
	var workspaces, tasks []uuid.UUID
	for i, h := range ended {
		if l := loads[h.Workspace]; l.Webhooks && !l.Leaving && Final(moves[i].status) {
			workspaces, tasks = append(workspaces, h.Workspace), append(tasks, h.Task)
		}
	}
	if len(tasks) == 0 {
		return nil
	}
	return announceTasks(ctx, tx, workspaces, tasks)
}

func announceTasks(ctx context.Context, tx *sqlx.Tx, workspaces, tasks []uuid.UUID) error {
	_, err := tx.ExecContext(ctx, `WITH ended AS MATERIALIZED (
			SELECT t.workspace_id, t.id AS task_id, 'task.' || t.status AS type, `+eventID+` AS id, `+taskFacts+` AS data
			FROM unnest($1::uuid[], $2::uuid[]) AS v (workspace_id, id) JOIN tasks t ON t.workspace_id = v.workspace_id AND t.id = v.id)
		INSERT INTO webhook_deliveries (workspace_id, endpoint_id, id, type, task_id, data)
		SELECT n.workspace_id, e.id, n.id, n.type, n.task_id, n.data FROM ended n
		JOIN webhook_endpoints e ON e.workspace_id = n.workspace_id AND e.enabled AND n.type = ANY(e.events)`, pq.Array(workspaces), pq.Array(tasks))
	if err != nil {
		return fmt.Errorf("announce ended tasks: %w", err)
	}
	return nil
}

// announceNotice writes the event of a quota notice. The load row is locked.
func (l *load) announceNotice(ctx context.Context, tx *sqlx.Tx, details map[string]any) error {
	if !l.Webhooks || l.Leaving {
		return nil
	}
	raw, err := json.Marshal(details)
	if err != nil {
		return fmt.Errorf("write notice: %w", err)
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO webhook_deliveries (workspace_id, endpoint_id, id, type, data)
		SELECT workspace_id, id, $2, $3, $4 FROM webhook_endpoints WHERE workspace_id = $1 AND enabled AND $3 = ANY(events)`,
		l.Workspace, NewID(), EventQuotaNotice, string(raw))
	if err != nil {
		return fmt.Errorf("announce notice: %w", err)
	}
	return nil
}

// TaskFacts is a task as its event tells it: as it was when it ended.
type TaskFacts struct {
	Status            string          `json:"status"`
	Agent             string          `json:"agent"`
	Model             string          `json:"model"`
	Priority          int             `json:"priority"`
	TimeoutMS         int             `json:"timeout_ms"`
	Attempt           int             `json:"attempt"`
	MaxAttempts       int             `json:"max_attempts"`
	CreatedAt         time.Time       `json:"created_at"`
	APIKeyID          uuid.NullUUID   `json:"api_key"`
	UserID            uuid.NullUUID   `json:"user"`
	ScheduleID        uuid.NullUUID   `json:"schedule"`
	RunAt             *time.Time      `json:"run_at"`
	StartedAt         *time.Time      `json:"started_at"`
	FinishedAt        *time.Time      `json:"finished_at"`
	CancelRequestedAt *time.Time      `json:"cancel_requested_at"`
	ExpiresAt         *time.Time      `json:"expires_at"`
	ErasedAt          *time.Time      `json:"erased_at"`
	Error             json.RawMessage `json:"error"`
	Metadata          json.RawMessage `json:"metadata"`
	AgentMS           int64           `json:"agent_ms"`
	ProviderCalls     int64           `json:"provider_calls"`
	InputTokens       int64           `json:"input_tokens"`
	OutputTokens      int64           `json:"output_tokens"`
	CostMicroUSD      int64           `json:"cost_microusd"`
}

// Task is the facts as a task of this id.
func (f TaskFacts) Task(id uuid.UUID) Task {
	return Task{ID: id, Status: f.Status, Agent: f.Agent, Model: f.Model, Priority: f.Priority, TimeoutMS: f.TimeoutMS, Attempt: f.Attempt,
		MaxAttempts: f.MaxAttempts, CreatedAt: f.CreatedAt, APIKeyID: f.APIKeyID, UserID: f.UserID, ScheduleID: f.ScheduleID, RunAt: f.RunAt, StartedAt: f.StartedAt,
		FinishedAt: f.FinishedAt, CancelRequestedAt: f.CancelRequestedAt, ExpiresAt: f.ExpiresAt, ErasedAt: f.ErasedAt, Error: f.Error, Metadata: f.Metadata,
		Usage: Usage{AgentMS: f.AgentMS, ProviderCalls: f.ProviderCalls, InputTokens: f.InputTokens, OutputTokens: f.OutputTokens, CostMicroUSD: f.CostMicroUSD}}
}

// erasingEvents erases the content of tasks $2 from what is kept of their events.
const erasingEvents = `UPDATE webhook_deliveries SET data = data || jsonb_build_object('metadata', '{}'::jsonb, 'erased_at', now(),
		'error', (SELECT CASE WHEN jsonb_typeof(error) = 'object' THEN ` + erasedError + ` END FROM (SELECT data->'error' AS error) e))
	WHERE workspace_id = $1 AND task_id = ANY($2)`
