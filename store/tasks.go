package store

import (
	"encoding/json"
	"time"

	"github.com/google/uuid"
)

// The states of a task, and who moves it where. Every move is made under the lock of its workspace's load row.
//
//	submit    ─► scheduled | queued            API       (Work.Submit)
//	due       scheduled ─► queued              scheduler (System.PromoteDue)
//	claim     queued ─► running                worker    (Fleet.Apply; the row gets a lease, its status stays queued)
//	finish    running ─► succeeded | failed | canceled | scheduled (retry) | queued (handed back, cut by quota)
//	crash     running ─► queued | scheduled | failed     scheduler (System.RecoverDeadWorkers)
//	cancel    scheduled | queued ─► canceled; running ─► asked to stop     API (Work.Cancel)
//	expire    scheduled | queued ─► failed    scheduler (System.ExpireDue)
//	retry     succeeded never; failed | canceled ─► queued                 API (Work.Retry)
const (
	StatusScheduled = "scheduled"
	StatusQueued    = "queued"
	StatusRunning   = "running" // never stored: a queued task with a lease
	StatusSucceeded = "succeeded"
	StatusFailed    = "failed"
	StatusCanceled  = "canceled"
)

// Limits on what a task may ask for.
const (
	MaxTimeoutMS     = 300_000 // per attempt
	DefaultTimeoutMS = 300_000
	MaxAttemptsLimit = 20 // the most a submit may ask for
	DefaultAttempts  = 3
	MaxPriority      = 100 // and -100 the least
)

// NewTask is a task as a customer sends it, already validated (see api).
type NewTask struct {
	Agent       string
	Model       string
	Prompt      string
	Input       json.RawMessage // a JSON object; nil is {}
	Metadata    json.RawMessage // a JSON object of strings; nil is {}
	Priority    int             // -100..100, higher runs first within its workspace
	TimeoutMS   int             // 1..MaxTimeoutMS, agent wall clock per attempt
	MaxAttempts int             // 1..MaxAttemptsLimit
	RunAt       *time.Time      // not before; nil or past is now
	ExpiresAt   *time.Time      // not started from then on (see expire.go); nil: never
	APIKeyID    uuid.NullUUID   // who sent it, when it was an API key
	UserID      uuid.NullUUID   // who sent it, when it was a user
}

// Task is a task as the ledger has it, its lease joined.
type Task struct {
	ID                uuid.UUID       `db:"id"`
	Status            string          `db:"status"` // StatusRunning when it has a lease
	Agent             string          `db:"agent"`
	Model             string          `db:"model"`
	Prompt            string          `db:"prompt"`          // empty in lists
	Input             json.RawMessage `db:"input"`           // null in lists
	Metadata          json.RawMessage `db:"metadata"`        // a JSON object of strings
	APIKeyID          uuid.NullUUID   `db:"api_key_id"`      // who sent it: a key,
	UserID            uuid.NullUUID   `db:"created_by_user"` // or a user
	ScheduleID        uuid.NullUUID   `db:"schedule_id"`     // the schedule that sent it for them
	Priority          int             `db:"priority"`
	TimeoutMS         int             `db:"timeout_ms"`
	Attempt           int             `db:"attempt"` // attempts spent, the running one included
	MaxAttempts       int             `db:"max_attempts"`
	Crashes           int             `db:"crashes"`
	RunAt             *time.Time      `db:"run_at"`
	CreatedAt         time.Time       `db:"created_at"`
	StartedAt         *time.Time      `db:"started_at"` // first start
	FinishedAt        *time.Time      `db:"finished_at"`
	CancelRequestedAt *time.Time      `db:"cancel_requested_at"`
	ExpiresAt         *time.Time      `db:"expires_at"`
	ErasedAt          *time.Time      `db:"erased_at"` // its content is gone: prompt, input, metadata, result, error texts (erasure.go)
	Result            json.RawMessage `db:"result"`    // {output, data}; null until succeeded, and in lists
	Error             json.RawMessage `db:"error"`     // {code, message, retryable}; null unless the last attempt failed
	Usage
}

// Usage is what attempts have used, summed.
type Usage struct {
	AgentMS       int64 `db:"agent_ms"`
	ProviderCalls int64 `db:"provider_calls"`
	InputTokens   int64 `db:"input_tokens"`
	OutputTokens  int64 `db:"output_tokens"`
	CostMicroUSD  int64 `db:"cost_microusd"`
}

// TaskError is why an attempt failed, as customers see it.
type TaskError struct {
	Code      string `json:"code"`    // timeout, canceled, provider_error, worker_crashed, …
	Message   string `json:"message"` // safe to show to the workspace
	Retryable bool   `json:"retryable"`
}

// Final reports whether status is one a task never leaves by itself.
func Final(status string) bool {
	return status == StatusSucceeded || status == StatusFailed || status == StatusCanceled
}

// taskColumns select a Task from tasks t LEFT JOIN leases l; lists replace the three bodies by listColumns. An absent
// JSON value is read as JSON's null, because a RawMessage cannot be scanned from SQL's.
const (
	taskHead = `t.id, CASE WHEN l.id IS NULL THEN t.status ELSE 'running' END AS status, t.agent, t.model, t.metadata,
		t.priority, t.timeout_ms, coalesce(l.attempt, t.attempt) AS attempt, t.max_attempts, t.crashes, t.run_at, t.created_at,
		coalesce(t.started_at, l.claimed_at) AS started_at, t.finished_at, t.cancel_requested_at, t.expires_at, t.erased_at, coalesce(t.error, 'null') AS error,
		t.api_key_id, t.created_by_user, t.schedule_id, t.agent_ms, t.provider_calls, t.input_tokens, t.output_tokens, t.cost_microusd`
	taskColumns = taskHead + `, t.prompt, t.input, coalesce(t.result, 'null') AS result`
	listColumns = taskHead + `, '' AS prompt, 'null'::jsonb AS input, 'null'::jsonb AS result`
	taskTables  = `tasks t ` + withLease
	withLease   = `LEFT JOIN leases l ON l.workspace_id = t.workspace_id AND l.task_id = t.id`
)
