package store_test

import "github.com/generic-corp/muster/store"

// What keeps workspaces apart, table by table: the one place to extend when a migration adds a table, a column grant or a
// CHECK. Everything else (columns, keys, policies) is read from the catalog. The probes that follow from it stand in
// walls_test.go; mutation_test.go takes each wall away in turn and wants a probe to notice.
//
// A new table of a workspace needs a seed and the grants of the three roles, and a bad and a good value for each of its
// CHECKs. It needs more only where its policies are not the usual ones. A table that belongs to no workspace needs
// shared and the grants.

// walls of one table. Grants are written as in "s i u(name,title) d": select, insert, update, delete, each on the whole
// table or on the columns listed; "" is none.
type walls struct {
	seed                string // as superuser: inserts one row of the workspace $1 and its owner $2, using both; in unique indexes its values are its own
	key                 string // the column that says whose a row is; "" is workspace_id
	ofUser              bool   // key names the user, not the workspace
	shared              bool   // belongs to no workspace: no row-level security, only the grants are tried; a seed where it has CHECKs
	api, worker, system string // what is granted to the login roles

	// What the policies alone let through, were everything granted.
	//
	// opens, for muster_api: which setting opens A's row to which operations, as in "workspace:siud user:su credential:s"; company is app.workspace_ids.
	// "" is "workspace:s" where nothing but s is granted, "" where nothing is, else "workspace:siud".
	opens string
	// workerSees and systemSees: operations on all workspaces' rows. "" is siud where anything is granted; "-" is none.
	workerSees, systemSees string
	systemRefuses          string // operations that show the rows to the system's role, whose policies refuse the new row as it is seeded

	checks map[string]check // by constraint name
	more   []probe          // what none of this says: a role's statements, without a setting or under A's (scope.name: workspace, user, …); table, kind and name are filled in
}

// check is a CHECK constraint's bad value and its good twin, as the SET clause of an UPDATE of the seeded row.
type check struct{ bad, good string }

// hash32 makes 32 random bytes in SQL.
const hash32 = `sha256(gen_random_uuid()::text::bytea)`

// An entry and the head of the audit log's chain of the system, which belongs to no workspace.
const (
	systemEntry = `INSERT INTO audit_log (workspace_id, seq, hash, actor_type, actor_id, action) SELECT '00000000-0000-0000-0000-000000000000', 1, ` + hash32 + `, 'anonymous', '', 'test'`
	systemHead  = `INSERT INTO audit_heads (workspace_id, seq, at, hash) SELECT '00000000-0000-0000-0000-000000000000', 0, 'epoch', ` + hash32
)

// allLeave lets both workspaces leave, by their own users.
const allLeave = `UPDATE workspaces SET status = 'deleting', deleting_at = now(), deleted_by = name::uuid`

// stripeEvent lacks its last value, handled_at.
const stripeEvent = `INSERT INTO stripe_events (id, type, livemode, created_at, payload, handled_at) SELECT 'evt', 't', true, now(), 'x', `

var tables = map[string]walls{
	"users": {key: "id", ofUser: true, seed: `INSERT INTO users (id, email, password_hash) SELECT $2::uuid, $2::uuid::text || '@' || $1::uuid::text, 'none'`,
		api: "s i u(password_hash,email_verified_at)", system: "s(id,email,created_at,email_verified_at,erased_at) u(email,password_hash,email_verified_at,erased_at)", opens: "user:siu workspace:s email:s",
		systemSees: "su", systemRefuses: "u", // it erases: no other change passes
		checks: map[string]check{"users_email_check": {`email = 'A@EXAMPLE.COM'`, `email = 'a@example.com'`}},
		more: []probe{{role: store.RoleSystem, do: `UPDATE users SET erased_at = now(), password_hash = ''`, want: []string{"ok 2"}},
			{role: store.RoleSystem, do: `UPDATE users SET erased_at = now(), password_hash = 'known'`, want: []string{"policy"}}}},
	"workspaces": {key: "id", seed: `INSERT INTO workspaces (id, name, plan, requests_per_hour, max_users, stripe_customer_id, slug)
		SELECT $1::uuid, $2::uuid::text, 'free', 100, 1, gen_random_uuid()::text, 's' || md5($1::text)`,
		api: "s i u(name,settings,slug,updated_at,status,deleting_at,deleted_by)", system: "s u", opens: "workspace:siu user:s",
		checks: map[string]check{
			"workspaces_name_check":                 {`name = ''`, `name = 'x'`},
			"workspaces_slug_check":                 {`slug = '-a'`, `slug = 'abc'`},
			"workspaces_status_check":               {`status = 'gone', deleting_at = now()`, `status = 'deleting', deleting_at = now()`},
			"workspaces_leaving_check":              {`deleting_at = now()`, `status = 'deleting', deleting_at = now()`},
			"workspaces_requests_per_hour_check":    {`requests_per_hour = -1`, `requests_per_hour = 0`},
			"workspaces_max_users_check":            {`max_users = -1`, `max_users = 0`},
			"workspaces_retention_days_check":       {`retention_days = -1`, `retention_days = 0`},
			"workspaces_max_webhooks_check":         {`max_webhooks = -1`, `max_webhooks = 0`},
			"workspaces_max_schedules_check":        {`max_schedules = -1`, `max_schedules = 0`},
			"workspaces_min_schedule_seconds_check": {`min_schedule_seconds = -1`, `min_schedule_seconds = 0`},
		},
		more: []probe{ // one that is leaving: the API changes nothing of it, and shows who deleted it that it was theirs
			{role: store.RoleAPI, scope: scope{name: "workspace"}, before: allLeave, do: `UPDATE workspaces SET name = 'x'`, want: []string{"ok 0"}},
			{role: store.RoleSystem, before: allLeave, do: `UPDATE workspaces SET name = 'x'`, want: []string{"ok 2"}},
			{role: store.RoleAPI, scope: scope{name: "workspace"}, do: `UPDATE workspaces SET status = 'deleting', deleting_at = now()`, want: []string{"ok 1"}},
			{role: store.RoleAPI, scope: scope{name: "workspace"}, do: `UPDATE workspaces SET status = 'deleted'`, want: []string{"policy"}},
			{role: store.RoleAPI, scope: scope{name: "user"}, before: allLeave + `; DELETE FROM members`, do: `SELECT count(*) FROM workspaces`, want: []string{"ok 1"}},
			{role: store.RoleAPI, before: allLeave + `; DELETE FROM members`, do: `SELECT count(*) FROM workspaces`, want: []string{"ok 0"}},
			{role: roleOwner, scope: scope{name: "user"}, before: allLeave, do: `SELECT count(*) FROM workspaces`, want: []string{"ok 0"}}}},
	"workspace_load": {seed: `INSERT INTO workspace_load (workspace_id, queue, cap, max_waiting, quota_ms, period, provider_budget_microusd, max_task_cost_microusd)
		SELECT $1::uuid, 'free', 1, 10, 0, date_trunc('month', now())::date, 0, 0 WHERE $2::uuid IS NOT NULL`,
		api:    "s i u(webhooks,waiting,turn,turn_at,period,used_ms,overage_used_ms,provider_used_microusd,overage_enabled,spend_cap_cents,overage_allowance_ms,leaving)",
		worker: "s u(waiting,turn,turn_at,period,used_ms,overage_used_ms,provider_used_microusd,event_seq)", system: "s u",
		opens: "workspace:siud company:su",
		checks: map[string]check{
			"workspace_load_queue_check":                    {`queue = 'vip'`, `queue = 'pro'`},
			"workspace_load_cap_check":                      {`cap = -1`, `cap = 0`},
			"workspace_load_max_waiting_check":              {`max_waiting = -1`, `max_waiting = 0`},
			"workspace_load_waiting_check":                  {`waiting = -1`, `waiting = 1`},
			"workspace_load_paused_check":                   {`paused = '{operator,whim}'`, `paused = '{operator,billing}'`},
			"workspace_load_provider_budget_microusd_check": {`provider_budget_microusd = -1`, `provider_budget_microusd = 1`},
			"workspace_load_provider_used_microusd_check":   {`provider_used_microusd = -1`, `provider_used_microusd = 1`},
			"workspace_load_max_task_cost_microusd_check":   {`max_task_cost_microusd = -1`, `max_task_cost_microusd = 1`},
			"workspace_load_spend_cap_cents_check":          {`spend_cap_cents = 5000001`, `spend_cap_cents = 5000000`},
			"workspace_load_overage_allowance_ms_check":     {`overage_enabled = true, overage_allowance_ms = -1`, `overage_enabled = true, overage_allowance_ms = 1`},
			"workspace_load_overage_used_ms_check":          {`overage_used_ms = -1`, `overage_used_ms = 1`},
			"workspace_load_overage_check":                  {`overage_allowance_ms = 1`, `overage_enabled = true, overage_allowance_ms = 1`},
			"workspace_load_quota_ms_check":                 {`quota_ms = -1`, `quota_ms = 1`},
			"workspace_load_used_ms_check":                  {`used_ms = -1`, `used_ms = 1`},
			"workspace_load_event_seq_check":                {`event_seq = -1`, `event_seq = 1`},
			"workspace_load_period_check":                   {`period = '2026-11-02'`, `period = '2026-11-01'`},
			"workspace_load_check":                          {`turn_at = now()`, `turn = gen_random_uuid(), turn_at = now()`}},
		more: []probe{ // one that is leaving: nothing joins its line through the API
			{role: store.RoleAPI, scope: scope{name: "workspace"}, before: `UPDATE workspace_load SET leaving = true`, do: `UPDATE workspace_load SET waiting = 1`, want: []string{"ok 0"}},
			{role: store.RoleAPI, scope: scope{name: "workspace"}, do: `UPDATE workspace_load SET leaving = true`, want: []string{"ok 1"}},
			{role: store.RoleWorker, before: `UPDATE workspace_load SET leaving = true`, do: `UPDATE workspace_load SET waiting = 1`, want: []string{"ok 2"}}}},
	"task_cancels": {seed: `INSERT INTO task_cancels (workspace_id, id, status, agent, metadata, requested_at) SELECT $1::uuid, $2::uuid, '', '', '{}', now()`,
		api: "s i u(requested_at)", system: "s i u(requested_at) d",
		checks: map[string]check{
			"task_cancels_status_check":   {`status = 'failed'`, `status = 'queued'`},
			"task_cancels_metadata_check": {`metadata = '[]'`, `metadata = '{"a": "b"}'`}}},
	"members": {seed: `INSERT INTO members (workspace_id, user_id, role) VALUES ($1, $2, 'owner')`,
		api: "s i u(role) d", system: "s d", opens: "workspace:siud user:s", systemSees: "sd",
		checks: map[string]check{"members_role_check": {`role = 'god'`, `role = 'viewer'`}}},
	"sessions": {seed: `INSERT INTO sessions (workspace_id, id, user_id, expires_at) VALUES ($1, $1, $2, now() + interval '1 day')`,
		api: "s i u(expires_at,revoked_at,revoked_why)", system: "s(workspace_id,id,user_id,expires_at,revoked_at) d", opens: "workspace:siud user:su"},
	"refresh_tokens": {seed: `INSERT INTO refresh_tokens (workspace_id, session_id, token_hash)
		SELECT $1::uuid, $1::uuid, ` + hash32 + ` WHERE $2::uuid IS NOT NULL`,
		api: "s i u(used_at)", system: "s(workspace_id,session_id,created_at,used_at) d", opens: "workspace:siud credential:s",
		checks: map[string]check{"refresh_tokens_token_hash_check": {`token_hash = 'short'`, `token_hash = ` + hash32}}},
	"invitations": {seed: `INSERT INTO invitations (workspace_id, id, email, role, token_hash, invited_by, expires_at)
		VALUES ($1, gen_random_uuid(), gen_random_uuid()::text, 'viewer', ` + hash32 + `, $2, now() + interval '1 day')`,
		api: "s i u(accepted_at,revoked_at)", system: "s(workspace_id,id,accepted_at,revoked_at,expires_at) d", opens: "workspace:siud credential:s", systemSees: "sd",
		checks: map[string]check{
			"invitations_email_check":      {`email = 'A@EXAMPLE.COM'`, `email = 'a@example.com'`},
			"invitations_role_check":       {`role = 'god'`, `role = 'owner'`},
			"invitations_token_hash_check": {`token_hash = 'short'`, `token_hash = ` + hash32}}},
	"user_tokens": {key: "user_id", ofUser: true, seed: `INSERT INTO user_tokens (user_id, token_hash, purpose, expires_at)
		SELECT $2::uuid, ` + hash32 + `, 'reset', now() + interval '1 hour' WHERE $1::uuid IS NOT NULL`,
		api: "s i u(used_at)", system: "s(user_id,purpose,created_at,expires_at) i d", opens: "user:siud credential:s", systemSees: "sid",
		checks: map[string]check{
			"user_tokens_purpose_check":    {`purpose = 'fun'`, `purpose = 'verify'`},
			"user_tokens_token_hash_check": {`token_hash = 'short'`, `token_hash = ` + hash32}},
		more: []probe{{role: store.RoleSystem, want: []string{"policy"}, // an operator's tokens reset passwords, and prove nothing
			do: `INSERT INTO user_tokens (user_id, token_hash, purpose, expires_at) SELECT id, ` + hash32 + `, 'verify', now() FROM users`}}},
	"api_keys": {seed: `INSERT INTO api_keys (workspace_id, id, name, prefix, key_hash, role, scopes, created_by)
		VALUES ($1, gen_random_uuid(), 'k', 'mst', ` + hash32 + `, 'viewer', '{}', $2)`,
		api: "s i u(expires_at,last_used_at,revoked_at)", system: "s(workspace_id,id) d", opens: "workspace:siud credential:s", systemSees: "sd",
		checks: map[string]check{
			"api_keys_name_check":     {`name = ''`, `name = 'x'`},
			"api_keys_role_check":     {`role = 'god'`, `role = 'owner'`},
			"api_keys_key_hash_check": {`key_hash = 'short'`, `key_hash = ` + hash32}}},
	"agents": {seed: `INSERT INTO agents (workspace_id, id, name) SELECT $1::uuid, gen_random_uuid(), gen_random_uuid()::text WHERE $2::uuid IS NOT NULL`,
		api: "s i u d", worker: "s", system: "s d", workerSees: "s", systemSees: "sd", opens: "workspace:siud company:s",
		checks: map[string]check{"agents_name_check": {`name = ''`, `name = 'x'`}}},
	"audit_heads": {seed: `INSERT INTO audit_heads (workspace_id, seq, at, hash) SELECT $1::uuid, 0, 'epoch', ` + hash32 + ` WHERE $2::uuid IS NOT NULL`,
		api: "s i u(seq,at,hash)", worker: "s i u(seq,at,hash)", system: "s i u(seq,at,hash)",
		checks: map[string]check{
			"audit_heads_seq_check":  {`seq = -1`, `seq = 1`},
			"audit_heads_hash_check": {`hash = 'short'`, `hash = ` + hash32}},
		more: []probe{ // the system's chain: the API lengthens it under any setting, the owner does not see it
			{role: store.RoleAPI, before: systemHead, do: `SELECT count(*) FROM audit_heads`, want: []string{"ok 1"}},
			{role: store.RoleAPI, before: systemHead, do: `UPDATE audit_heads SET seq = seq + 1`, want: []string{"ok 1"}},
			{role: roleOwner, before: systemHead, do: `SELECT count(*) FROM audit_heads`, want: []string{"ok 0"}},
			{role: store.RoleAPI, do: systemHead, want: []string{"ok 1"}},
			{role: roleOwner, do: systemHead, want: []string{"policy"}}}},
	"audit_log": {seed: `INSERT INTO audit_log (workspace_id, seq, hash, actor_type, actor_id, action)
		SELECT $1::uuid, (random() * 1e15)::bigint + 1, ` + hash32 + `, 'user', $2::uuid::text, 'test'`,
		api: "s i", worker: "i", system: "s i", workerSees: "i", systemSees: "si",
		checks: map[string]check{
			"audit_log_actor_type_check": {`actor_type = 'ghost'`, `actor_type = 'system'`},
			"audit_log_seq_check":        {`seq = 0`, `seq = 1e9`},
			"audit_log_hash_check":       {`hash = 'short'`, `hash = ` + hash32}},
		more: []probe{ // the API adds to the system's chain and cannot read it
			{role: store.RoleAPI, do: systemEntry, want: []string{"ok 1"}},
			{role: store.RoleAPI, before: systemEntry, do: `SELECT count(*) FROM audit_log`, want: []string{"ok 0"}},
			{role: roleOwner, before: `ALTER TABLE audit_log DISABLE TRIGGER USER`, do: systemEntry, want: []string{"policy"}}}},
	"idempotency_keys": {seed: `INSERT INTO idempotency_keys (workspace_id, route, key, body_hash, status)
		SELECT $1::uuid, 'r', gen_random_uuid()::text, ` + hash32 + `, 200 WHERE $2::uuid IS NOT NULL`,
		api: "s i u(response)", system: "s(workspace_id,route,key,created_at,task_id) u(response) d",
		checks: map[string]check{
			"idempotency_keys_key_check":       {`key = ''`, `key = 'x'`},
			"idempotency_keys_body_hash_check": {`body_hash = 'short'`, `body_hash = ` + hash32}}},
	"tasks": {seed: `INSERT INTO tasks (workspace_id, id, status, agent, model, prompt, timeout_ms, max_attempts, first_max_attempts)
		SELECT $1::uuid, gen_random_uuid(), 'queued', 'a', 'auto', 'p', 1000, 1, 1 WHERE $2::uuid IS NOT NULL`,
		api: "s i u", worker: "s u", system: "s i u d", opens: "workspace:siud company:si",
		checks: map[string]check{
			"tasks_status_check":             {`status = 'running'`, `status = 'queued'`},
			"tasks_check":                    {`finished_at = now()`, `finished_at = now(), status = 'failed'`},
			"tasks_check1":                   {`status = 'scheduled'`, `status = 'scheduled', run_at = now()`},
			"tasks_priority_check":           {`priority = 101`, `priority = 100`},
			"tasks_timeout_ms_check":         {`timeout_ms = 300001`, `timeout_ms = 300000`},
			"tasks_needs_microusd_check":     {`needs_microusd = -1`, `needs_microusd = 1`},
			"tasks_losses_check":             {`losses = -1`, `losses = 1`},
			"tasks_max_attempts_check":       {`max_attempts = 0`, `max_attempts = 2`},
			"tasks_first_max_attempts_check": {`first_max_attempts = 101`, `first_max_attempts = 100`}}},
	"schedules": {seed: `INSERT INTO schedules (workspace_id, id, name, cron, timezone, missed_runs, overlap, agent, model, prompt, priority, timeout_ms, max_attempts)
		SELECT $1::uuid, gen_random_uuid(), 's', '@daily', 'UTC', 'skip', 'allow', 'a', 'auto', 'p', 0, 1000, 1 WHERE $2::uuid IS NOT NULL`,
		api:    "s i d u(name,cron,timezone,missed_runs,overlap,paused,starts_at,ends_at,expires_after_ms,next_at,version,agent,model,prompt,input,metadata,priority,timeout_ms,max_attempts,updated_at)",
		system: "s d u(paused,next_at,version,last_at,last_task_id,updated_at)",
		checks: map[string]check{
			"schedules_name_check":             {`name = ''`, `name = 'x'`},
			"schedules_cron_check":             {`cron = ''`, `cron = '* * * * *'`},
			"schedules_timezone_check":         {`timezone = ''`, `timezone = 'Asia/Tokyo'`},
			"schedules_missed_runs_check":      {`missed_runs = 'cry'`, `missed_runs = 'run_all'`},
			"schedules_overlap_check":          {`overlap = 'queue'`, `overlap = 'skip'`},
			"schedules_expires_after_ms_check": {`expires_after_ms = 0`, `expires_after_ms = 1`},
			"schedules_priority_check":         {`priority = 101`, `priority = 100`},
			"schedules_timeout_ms_check":       {`timeout_ms = 300001`, `timeout_ms = 300000`},
			"schedules_max_attempts_check":     {`max_attempts = 101`, `max_attempts = 100`}}},
	"schedule_runs": {seed: `INSERT INTO schedule_runs (workspace_id, schedule_id, occurrence, until, occurrences, outcome, reason)
		SELECT $1::uuid, gen_random_uuid(), now(), now(), 1, 'missed', 'late' WHERE $2::uuid IS NOT NULL`,
		api: "s d", system: "s i d",
		checks: map[string]check{
			"schedule_runs_check":             {`until = occurrence - interval '1 second'`, `until = occurrence + interval '1 second'`},
			"schedule_runs_occurrences_check": {`occurrences = 0`, `occurrences = 2`},
			"schedule_runs_outcome_check":     {`outcome = 'lost', reason = ''`, `outcome = 'sent', reason = '', task_id = gen_random_uuid()`},
			"schedule_runs_reason_check":      {`reason = 'mood'`, `reason = 'overlap'`},
			"schedule_runs_check1":            {`task_id = gen_random_uuid()`, `outcome = 'sent', reason = '', task_id = gen_random_uuid()`},
			"schedule_runs_check2":            {`reason = ''`, `reason = 'backlog_full'`}}},
	"leases": {seed: `INSERT INTO leases (workspace_id, task_id, id, worker_id, attempt, reserved_ms)
		SELECT $1::uuid, gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 1, 1000 WHERE $2::uuid IS NOT NULL`,
		api: "s", worker: "s i d", system: "s d", opens: "workspace:s company:s",
		checks: map[string]check{"leases_reserved_ms_check": {`reserved_ms = 0`, `reserved_ms = 1`}}},
	"attempts": {seed: `INSERT INTO attempts (workspace_id, id, task_id, attempt, worker_id, outcome, billable, started_at, agent_ms)
		SELECT $1::uuid, gen_random_uuid(), gen_random_uuid(), 1, gen_random_uuid(), 'succeeded', true, now(), 1 WHERE $2::uuid IS NOT NULL`,
		api: "s u(error)", worker: "s i", system: "s i u(error) d", opens: "workspace:su",
		checks: map[string]check{
			"attempts_outcome_check":  {`outcome = 'lucky'`, `outcome = 'crashed'`},
			"attempts_agent_ms_check": {`agent_ms = -1`, `agent_ms = 0`}}},
	"metering_rows": {seed: `INSERT INTO metering_rows (workspace_id, attempt_id, meter, quantity, billable, day, task_id, agent, model)
		SELECT $1::uuid, gen_random_uuid(), 'agent_ms', 1, true, now()::date, gen_random_uuid(), 'a', 'm' WHERE $2::uuid IS NOT NULL`,
		api: "s", worker: "s i", system: "s i",
		checks: map[string]check{"metering_rows_meter_check": {`meter = 'wishes'`, `meter = 'tasks'`}}},
	"provider_calls": {seed: `INSERT INTO provider_calls (workspace_id, id, task_id, attempt_id, step, try, provider, model)
		SELECT $1::uuid, gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 1, 1, 'p', 'm' WHERE $2::uuid IS NOT NULL`,
		api: "s", worker: "s i u", system: "s u d", opens: "workspace:s company:s",
		checks: map[string]check{"provider_calls_outcome_check": {`outcome = 'fine'`, `outcome = 'ok'`}}},
	"daily_usage": {seed: `INSERT INTO daily_usage (workspace_id, day, meter, quantity, billable)
		SELECT $1::uuid, now()::date, gen_random_uuid()::text, 1, 1 WHERE $2::uuid IS NOT NULL`,
		api: "s", system: "s i u"},
	"push_ledger": {seed: `INSERT INTO push_ledger (workspace_id, id, meter, day, value, status, stripe_customer_id, event_at)
		SELECT $1::uuid, gen_random_uuid(), 'agent_ms', now()::date - (random() * 1e5)::integer, 1, 'confirmed', 'cus', now() WHERE $2::uuid IS NOT NULL`,
		api: "s", system: "s i u",
		checks: map[string]check{
			"push_ledger_status_check": {`status = 'lost'`, `status = 'not_billable'`},
			"push_ledger_answer_check": {`answer = 'maybe'`, `answer = 'accepted'`},
			"push_ledger_check":        {`value = -1`, `value = -1, status = 'carried'`}}},
	"push_progress": {seed: `INSERT INTO push_progress (workspace_id, holder, held_until) SELECT $1::uuid, gen_random_uuid(), now() WHERE $2::uuid IS NOT NULL`,
		system: "s i u"},
	"quota_notices": {seed: `INSERT INTO quota_notices (workspace_id, period, percent, quota) SELECT $1::uuid, date_trunc('month', now())::date, 80, (random() * 1e15)::bigint WHERE $2::uuid IS NOT NULL`,
		api: "s", worker: "s i", system: "s i u(mails_at)",
		checks: map[string]check{
			"quota_notices_percent_check": {`percent = 90`, `percent = 100`},
			"quota_notices_kind_check":    {`kind = 'mood'`, `kind = 'provider_budget'`}}},
	"notice_mails": {seed: `INSERT INTO notice_mails (workspace_id, notice_id, user_id) VALUES ($1, gen_random_uuid(), $2)`,
		system: "s i d u(attempts,next_try,mailed_at,gave_up_at)"},
	"webhook_endpoints": {seed: `INSERT INTO webhook_endpoints (workspace_id, id, url, events, created_by)
		SELECT $1::uuid, gen_random_uuid(), 'https://example.com', '{task.failed}', $2::uuid::text`,
		api:    "s i d u(url,events,description,enabled,updated_at,disabled_why,disabled_at,failures,failing_since,not_before,slow,letter_at)",
		worker: "s(workspace_id,id,events,enabled)", workerSees: "s",
		system: "s d u(enabled,disabled_why,disabled_at,lease,leased_until,slow,failures,failing_since,not_before,letter_tries,letter_at,updated_at)",
		checks: map[string]check{
			"webhook_endpoints_url_check":          {`url = ''`, `url = 'x'`},
			"webhook_endpoints_events_check":       {`events = '{task.dreamt}'`, `events = '{task.failed,quota.notice}'`},
			"webhook_endpoints_description_check":  {`description = repeat('x', 201)`, `description = repeat('x', 200)`},
			"webhook_endpoints_disabled_why_check": {`enabled = false, disabled_at = now(), disabled_why = 'mood'`, `enabled = false, disabled_at = now(), disabled_why = 'gone'`},
			"webhook_endpoints_failures_check":     {`failures = -1`, `failures = 1`},
			"webhook_endpoints_check":              {`enabled = false`, `enabled = false, disabled_at = now(), disabled_why = 'customer'`},
			"webhook_endpoints_check1":             {`lease = gen_random_uuid()`, `lease = gen_random_uuid(), leased_until = now()`}}},
	"webhook_secrets": {seed: `INSERT INTO webhook_secrets (workspace_id, endpoint_id, id, sealed)
		SELECT $1::uuid, gen_random_uuid(), gen_random_uuid(), ` + hash32 + ` || ` + hash32 + ` WHERE $2::uuid IS NOT NULL`,
		api: "s(workspace_id,endpoint_id,id,created_at,expires_at) i d u(expires_at)", system: "s d",
		checks: map[string]check{"webhook_secrets_sealed_check": {`sealed = 'short'`, `sealed = ` + hash32 + ` || ` + hash32}}},
	"webhook_deliveries": {seed: `INSERT INTO webhook_deliveries (workspace_id, endpoint_id, id, type, data)
		SELECT $1::uuid, gen_random_uuid(), gen_random_uuid(), 'task.failed', '{}' WHERE $2::uuid IS NOT NULL`,
		api: "s i u(data,status,attempts,next_at,delivered_at)", worker: "i", workerSees: "i",
		system: "s i d u(data,status,attempts,next_at,last_at,last_status,last_error,last_ms,delivered_at)",
		checks: map[string]check{
			"webhook_deliveries_type_check":     {`type = 'task.dreamt'`, `type = 'webhook.test'`},
			"webhook_deliveries_status_check":   {`status = 'lost'`, `status = 'dead'`},
			"webhook_deliveries_attempts_check": {`attempts = -1`, `attempts = 1`},
			"webhook_deliveries_check":          {`status = 'succeeded'`, `status = 'succeeded', delivered_at = now()`}}},
	"workspace_events": {seed: `INSERT INTO workspace_events (workspace_id, seq, kind, data)
		SELECT $1::uuid, (random() * 1e15)::bigint + 1, 'usage', '{}' WHERE $2::uuid IS NOT NULL`,
		api: "s", worker: "i", system: "s i d", workerSees: "i",
		checks: map[string]check{
			"workspace_events_seq_check":  {`seq = 0`, `seq = 1`},
			"workspace_events_kind_check": {`kind = 'rumour'`, `kind = 'done'`}}},

	"audit_nights": {shared: true, system: "s i", seed: `INSERT INTO audit_nights (day, chains, digest)
		SELECT now()::date - (random() * 1e5)::integer, 1, ` + hash32 + ` WHERE $1::uuid <> $2::uuid`,
		checks: map[string]check{
			"audit_nights_chains_check":   {`chains = -1`, `chains = 0`},
			"audit_nights_digest_check":   {`digest = 'short'`, `digest = ` + hash32},
			"audit_nights_previous_check": {`previous = 'short'`, `previous = ` + hash32}}},
	"goose_db_version": {shared: true, api: "s", worker: "s", system: "s"},
	"leaders":          {shared: true, system: "s i u d"},
	"push_runs":        {shared: true, system: "s i u"},
	"stripe_events": {shared: true, api: "i(id,type,livemode,api_version,created_at,payload)", system: "s u(handled_at) d",
		seed: `INSERT INTO stripe_events (id, type, livemode, created_at, payload) SELECT gen_random_uuid()::text, 't', true, now(), 'x' WHERE $1::uuid <> $2::uuid`,
		checks: map[string]check{
			"stripe_events_id_check":      {`id = ''`, `id = 'x'`},
			"stripe_events_type_check":    {`type = ''`, `type = 'x'`},
			"stripe_events_payload_check": {`payload = repeat('x', 1048577)::bytea`, `payload = repeat('x', 1048576)::bytea`}},
		more: []probe{ // the API adds what nobody has handled, and reads nothing
			{role: store.RoleAPI, do: `INSERT INTO stripe_events (id, type, livemode, created_at, payload) SELECT 'evt', 't', true, now(), 'x'`, want: []string{"ok 1"}},
			{role: store.RoleAPI, before: everything("stripe_events", store.RoleAPI), do: stripeEvent + `now()`, want: []string{"policy"}},
			{role: store.RoleAPI, before: everything("stripe_events", store.RoleAPI), do: `SELECT count(*) FROM stripe_events`, want: []string{"ok 0"}},
			{role: store.RoleWorker, before: everything("stripe_events", store.RoleWorker), do: `SELECT count(*) FROM stripe_events`, want: []string{"ok 0"}},
			{role: store.RoleSystem, do: `SELECT count(*) FROM stripe_events`, want: []string{"ok 2"}},
			{role: store.RoleSystem, do: `UPDATE stripe_events SET handled_at = now()`, want: []string{"ok 2"}},
			{role: store.RoleSystem, do: `DELETE FROM stripe_events`, want: []string{"ok 2"}},
			{role: roleOwner, do: `SELECT count(*) FROM stripe_events`, want: []string{"ok 0"}},
			{role: roleOwner, do: stripeEvent + `null`, want: []string{"policy"}}}},
	"switches": {shared: true, system: "s i d", seed: `INSERT INTO switches (name, by) SELECT gen_random_uuid()::text, 'x' WHERE $1::uuid <> $2::uuid`,
		checks: map[string]check{
			"switches_name_check":   {`name = ''`, `name = 'y'`},
			"switches_by_check":     {`by = ''`, `by = 'y'`},
			"switches_reason_check": {`reason = repeat('x', 1001)`, `reason = repeat('x', 1000)`}}},
	"workers": {shared: true, worker: "s i u", system: "s u d"},
}

// globallyUnique are the unique indexes that may tell that a value exists anywhere: names of people, of
// customers at Stripe and of login pages, that must not be taken twice. All others begin with the workspace.
var globallyUnique = []string{"users_pkey", "users_email_key", "workspaces_pkey", "workspaces_stripe_customer_key", "workspaces_slug_key"}
