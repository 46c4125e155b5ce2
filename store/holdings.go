package store

// What the ledger holds of a workspace, table by table: what becomes of it when the workspace leaves, and what its owner
// gets of it in an export. A table that stands in the catalog and not here fails a test, and so does a column that is
// neither exported nor withheld.

// Fate is what becomes of a table's rows when their workspace has left.
type Fate string

// The fates.
const (
	FateDeleted Fate = "deleted" // the rows go
	FateErased  Fate = "erased"  // the rows stay, what people wrote in them goes
	FateKept    Fate = "kept"    // the rows stay as they are
)

// Holding is one table.
type Holding struct {
	Table  string
	Fate   Fate
	Why    string   // what stays, and why; empty when nothing does
	Export []string // the exported columns; see exporter for the notation
	Left   string   // why nothing of the table is exported; empty when something is

	Withheld []string // columns of an exported table that are not: secrets, and what only the machinery needs

	key   []string // unique within a workspace: the order of the export, and of an erasing by keys
	erase string   // of workspace $1: the rows of the keys $2, or (LIMIT $2) so many at a time; empty: by hand, in erase.go
	join  string   // for the export, beside the table, which is t
}

// Holdings is the whole table. Erasing goes through it from top to bottom, so what refers to a row stands above it.
var Holdings = []Holding{
	{Table: "idempotency_keys", Fate: FateDeleted, Left: "answers kept 48 h for repeated requests; what they show stands in its own tables",
		erase: `DELETE FROM idempotency_keys WHERE workspace_id = $1 AND (route, key) IN (SELECT route, key FROM idempotency_keys WHERE workspace_id = $1 LIMIT $2)`},
	{Table: "task_cancels", Fate: FateDeleted, Why: "none are left when erasing begins", Left: "cancels under way, for seconds; the tasks tell it once they have ended"},
	{Table: "tasks", Fate: FateDeleted, key: []string{"id:uuid"},
		Export: []string{"id>task_", "status", "agent", "model", "prompt", "input", "metadata", "priority", "timeout_ms", "attempt", "max_attempts", "crashes",
			"api_key_id>key_", "created_by_user>usr_", "schedule_id>sched_", "run_at", "created_at", "started_at", "finished_at", "cancel_requested_at", "expires_at", "erased_at", "result", "error",
			"agent_ms", "provider_calls", "input_tokens", "output_tokens", "cost_microusd"},
		Withheld: []string{"first_max_attempts", "needs_microusd", "losses", "requeued_at"},
		erase:    `DELETE FROM tasks WHERE workspace_id = $1 AND id = ANY($2)`},
	{Table: "schedule_runs", Fate: FateDeleted, key: []string{"schedule_id:uuid", "occurrence:timestamptz"},
		Export: []string{"schedule_id>sched_", "occurrence", "until", "occurrences", "outcome", "reason", "task_id>task_", "at"},
		erase: `DELETE FROM schedule_runs WHERE workspace_id = $1 AND (schedule_id, occurrence) IN (SELECT schedule_id, occurrence FROM schedule_runs
			WHERE workspace_id = $1 LIMIT $2)`},
	{Table: "schedules", Fate: FateDeleted, key: []string{"id:uuid"},
		Export: []string{"id>sched_", "name", "cron", "timezone", "missed_runs", "overlap", "paused", "starts_at", "ends_at", "expires_after_ms", "next_at", "last_at",
			"last_task_id>task_", "agent", "model", "prompt", "input", "metadata", "priority", "timeout_ms", "max_attempts", "api_key_id>key_",
			"created_by_user>usr_", "created_at", "updated_at"},
		Withheld: []string{"version"},
		erase:    `DELETE FROM schedules WHERE workspace_id = $1 AND id = ANY($2)`},
	{Table: "attempts", Fate: FateErased, Why: "the figures that metering rows stand on; error texts go", key: []string{"id:uuid"},
		Export: []string{"id>att_", "task_id>task_", "attempt", "outcome", "billable", "error", "started_at", "finished_at", "agent_ms", "provider_calls",
			"input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "cost_microusd"},
		Withheld: []string{"worker_id"},
		erase:    `UPDATE attempts SET error = ` + erasedError + ` WHERE workspace_id = $1 AND id = ANY($2) AND error IS NOT NULL`},
	{Table: "workspace_events", Fate: FateDeleted, key: []string{"seq:bigint"},
		Export: []string{"seq", "kind", "task_id>task_", "data", "at"},
		erase:  `DELETE FROM workspace_events WHERE workspace_id = $1 AND seq IN (SELECT seq FROM workspace_events WHERE workspace_id = $1 LIMIT $2)`},
	{Table: "notice_mails", Fate: FateDeleted, Left: "who was mailed which notice: the machinery's",
		erase: `DELETE FROM notice_mails WHERE workspace_id = $1 AND (notice_id, user_id) IN (SELECT notice_id, user_id FROM notice_mails WHERE workspace_id = $1 LIMIT $2)`},
	{Table: "webhook_deliveries", Fate: FateDeleted, key: []string{"endpoint_id:uuid", "id:uuid"},
		Export: []string{"endpoint_id>wh_", "id>evt_", "type", "task_id>task_", "data", "status", "attempts", "next_at", "created_at", "last_at", "last_status", "last_error",
			"last_ms", "delivered_at"},
		erase: `DELETE FROM webhook_deliveries WHERE workspace_id = $1 AND (endpoint_id, id) IN (SELECT endpoint_id, id FROM webhook_deliveries WHERE workspace_id = $1 LIMIT $2)`},
	{Table: "webhook_secrets", Fate: FateDeleted, Left: "sealed secrets",
		erase: `DELETE FROM webhook_secrets WHERE workspace_id = $1 AND (endpoint_id, id) IN (SELECT endpoint_id, id FROM webhook_secrets WHERE workspace_id = $1 LIMIT $2)`},
	{Table: "webhook_endpoints", Fate: FateDeleted, key: []string{"id:uuid"},
		Export:   []string{"id>wh_", "url", "events", "description", "enabled", "disabled_why", "disabled_at", "failing_since", "created_by", "created_at", "updated_at"},
		Withheld: []string{"lease", "leased_until", "slow", "failures", "not_before", "letter_tries", "letter_at"},
		erase:    `DELETE FROM webhook_endpoints WHERE workspace_id = $1 AND id = ANY($2)`},
	{Table: "agents", Fate: FateDeleted, key: []string{"id:uuid"},
		Export: []string{"id>agt_", "name", "title", "instructions", "model", "tools", "created_at", "updated_at"},
		erase:  `DELETE FROM agents WHERE workspace_id = $1 AND id = ANY($2)`},
	{Table: "api_keys", Fate: FateDeleted, key: []string{"id:uuid"},
		Export:   []string{"id>key_", "name", "prefix", "role", "scopes", "created_by>usr_", "origin_user>usr_", "created_at", "expires_at", "last_used_at", "revoked_at"},
		Withheld: []string{"key_hash"},
		erase:    `DELETE FROM api_keys WHERE workspace_id = $1 AND id = ANY($2)`},
	{Table: "invitations", Fate: FateDeleted, key: []string{"id:uuid"},
		Export:   []string{"id>inv_", "email", "role", "invited_by>usr_", "created_at", "expires_at", "accepted_at", "revoked_at"},
		Withheld: []string{"token_hash"},
		erase:    `DELETE FROM invitations WHERE workspace_id = $1 AND id = ANY($2)`},
	{Table: "refresh_tokens", Fate: FateDeleted, Left: "hashes of secrets",
		erase: `DELETE FROM refresh_tokens WHERE workspace_id = $1 AND session_id IN (SELECT session_id FROM refresh_tokens WHERE workspace_id = $1 LIMIT $2)`},
	{Table: "sessions", Fate: FateDeleted, Left: "each user's own: GET /v1/sessions", key: []string{"id:uuid"},
		erase: `DELETE FROM sessions WHERE workspace_id = $1 AND id = ANY($2)`},
	{Table: "members", Fate: FateDeleted, key: []string{"user_id:uuid"}, join: `JOIN users u ON u.id = t.user_id`,
		Export: []string{"user_id>usr_", "u.email", "role", "created_at"}},
	{Table: "users", Fate: FateErased, Why: "of those who are in no other workspace: the id and its dates, since audit logs name it; address and password go",
		Left: "ids and addresses stand in members"},
	{Table: "user_tokens", Fate: FateDeleted, Left: "hashes of secrets"},
	{Table: "workspaces", Fate: FateErased, Why: "id, plan, limits, dates and Stripe's ids: who was billed for what; name, slug and settings go", key: []string{"id:uuid"},
		Export: []string{"id>ws_", "name", "slug", "plan", "status", "requests_per_hour", "max_users", "max_webhooks", "retention_days", "max_schedules", "min_schedule_seconds", "stripe_customer_id",
			"stripe_customer_since", "stripe_subscription_id", "settings", "created_at", "updated_at"},
		Withheld: []string{"needs_verified_email", "deleting_at", "deleted_by", "erasing_at", "subscription_ended_at", "deleted_at"}},
	{Table: "workspace_load", Fate: FateKept, Why: "limits and what the month has used; nothing waits or runs", key: []string{"workspace_id:uuid"},
		Export: []string{"queue", "cap", "max_waiting", "waiting", "paused", "quota_ms", "period", "used_ms", "models", "overage_enabled", "spend_cap_cents",
			"overage_used_ms", "provider_budget_microusd", "provider_used_microusd", "max_task_cost_microusd"},
		Withheld: []string{"turn", "turn_at", "leaving", "webhooks", "event_seq", "overage_allowance_ms"}},
	{Table: "leases", Fate: FateDeleted, Why: "none are left when erasing begins", Left: "what runs at this moment; tasks and attempts tell it once it has ended"},
	{Table: "metering_rows", Fate: FateKept, Why: "what invoices stand on (tax law); ids, figures, agent and model names", key: []string{"attempt_id:uuid", "meter:text"},
		Export: []string{"attempt_id>att_", "meter", "quantity", "billable", "day", "at", "task_id>task_", "agent", "model", "api_key_id>key_"}},
	{Table: "provider_calls", Fate: FateKept, Why: "what a model call cost (tax law); figures and codes", key: []string{"id:uuid"},
		Export: []string{"id>call_", "task_id>task_", "attempt_id>att_", "step", "try", "provider", "model", "outcome", "error_code", "http_status", "latency_ms",
			"input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "cost_microusd", "estimated", "started_at", "finished_at"}},
	{Table: "daily_usage", Fate: FateKept, Why: "what invoices stand on (tax law)", key: []string{"day:date", "meter:text"},
		Export: []string{"day", "meter", "quantity", "billable", "updated_at"}},
	{Table: "push_ledger", Fate: FateKept, Why: "what Stripe was told (tax law)", key: []string{"id:uuid"},
		Export:   []string{"meter", "day", "value", "status", "stripe_customer_id", "event_at", "created_at", "sent_at", "confirmed_at"},
		Withheld: []string{"id", "sends", "answer", "last_error"}},
	{Table: "push_progress", Fate: FateKept, Why: "who pushes its last days", Left: "a lock of the nightly push"},
	{Table: "quota_notices", Fate: FateKept, Why: "that 80 % and 100 % were told", key: []string{"id:uuid"},
		Export:   []string{"period", "kind", "percent", "used", "quota", "at"},
		Withheld: []string{"id", "mails_at"}},
	{Table: "audit_log", Fate: FateKept, Why: "who did what, by ids; append-only, and a chain", key: []string{"seq:bigint"},
		Export:   []string{"seq", "at", "actor_type", "actor_id", "action", "target", "details", "ip", "request_id"},
		Withheld: []string{"id", "hash"}},
	{Table: "audit_heads", Fate: FateKept, Why: "the end of that chain", Left: "the log's last entry says the same"},
}
