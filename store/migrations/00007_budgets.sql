-- Money that is bounded: what a workspace's model calls may cost per month and per task, what its owners let agent time
-- cost past the plan, and who paused it. All of it stands in the load row, under whose lock it is decided.
--
-- Deploy story: stop all processes of the version before, migrate, start this one. An older worker would neither reserve
-- nor count what its calls cost, so the figures that are filled in here would be wrong by that from the start.

-- +goose Up
ALTER TABLE workspaces NO FORCE ROW LEVEL SECURITY; -- FORCE binds the owner too: it would see no rows to fill in from
ALTER TABLE workspace_load NO FORCE ROW LEVEL SECURITY;
ALTER TABLE provider_calls NO FORCE ROW LEVEL SECURITY;

ALTER TABLE workspace_load
    ADD COLUMN provider_budget_microusd bigint CHECK (provider_budget_microusd >= 0),                -- model cost per period
    ADD COLUMN provider_used_microusd   bigint NOT NULL DEFAULT 0 CHECK (provider_used_microusd >= 0), -- of calls that ended in period
    ADD COLUMN max_task_cost_microusd   bigint CHECK (max_task_cost_microusd >= 0),                  -- model cost per task, all attempts
    ADD COLUMN overage_enabled          boolean NOT NULL DEFAULT false,
    ADD COLUMN spend_cap_cents          bigint NOT NULL DEFAULT 0 CHECK (spend_cap_cents BETWEEN 0 AND 5000000), -- per period, the owners' own
    ADD COLUMN overage_allowance_ms     bigint NOT NULL DEFAULT 0 CHECK (overage_allowance_ms >= 0), -- what the cap buys; 0 while overage is off
    ADD COLUMN overage_used_ms          bigint NOT NULL DEFAULT 0 CHECK (overage_used_ms >= 0),      -- the part of used_ms that is charged
    ADD CONSTRAINT workspace_load_overage_check CHECK (overage_enabled OR overage_allowance_ms = 0);

UPDATE workspace_load l SET provider_budget_microusd = w.provider_budget_microusd,
    max_task_cost_microusd = CASE w.plan WHEN 'pro' THEN 10000000 WHEN 'growth' THEN 5000000 WHEN 'starter' THEN 3000000 ELSE 500000 END,
    provider_used_microusd = CASE WHEN l.period < date_trunc('month', now() AT TIME ZONE 'UTC')::date THEN 0 ELSE
        (SELECT coalesce(sum(c.cost_microusd), 0) FROM provider_calls c WHERE c.workspace_id = l.workspace_id AND c.outcome <> 'started'
            AND c.finished_at >= l.period::timestamp AT TIME ZONE 'UTC') END
    FROM workspaces w WHERE w.id = l.workspace_id;
ALTER TABLE workspace_load ALTER COLUMN provider_budget_microusd SET NOT NULL, ALTER COLUMN max_task_cost_microusd SET NOT NULL;
ALTER TABLE workspaces DROP COLUMN provider_budget_microusd;

-- Each reason for a pause is lifted by who gave it: a set, NULL when it is empty.
ALTER TABLE workspace_load DROP CONSTRAINT workspace_load_paused_check;
ALTER TABLE workspace_load ALTER COLUMN paused TYPE text[] USING CASE WHEN paused IS NOT NULL THEN ARRAY[paused] END;
ALTER TABLE workspace_load ADD CONSTRAINT workspace_load_paused_check
    CHECK (paused <@ ARRAY['operator', 'billing'] AND cardinality(paused) > 0);

ALTER TABLE workspaces FORCE ROW LEVEL SECURITY;
ALTER TABLE workspace_load FORCE ROW LEVEL SECURITY;
ALTER TABLE provider_calls FORCE ROW LEVEL SECURITY;

-- The call that did not fit into the provider budget when the task was last tried: it is not tried again before that fits.
ALTER TABLE tasks ADD COLUMN needs_microusd bigint NOT NULL DEFAULT 0 CHECK (needs_microusd >= 0);
-- Open calls are the reservations of a workspace's provider budget.
CREATE INDEX provider_calls_reserved ON provider_calls (workspace_id) WHERE outcome = 'started';

ALTER TABLE attempts DROP CONSTRAINT attempts_outcome_check, ADD CONSTRAINT attempts_outcome_check
    CHECK (outcome IN ('succeeded', 'failed', 'retry', 'timeout', 'canceled', 'handed_back', 'quota_cut', 'budget_cut', 'crashed'));
ALTER TABLE metering_rows DROP CONSTRAINT metering_rows_meter_check, ADD CONSTRAINT metering_rows_meter_check
    CHECK (meter IN ('agent_ms', 'overage_ms', 'tasks', 'input_tokens', 'output_tokens', 'cache_read_tokens', 'cache_write_tokens',
        'provider_cost_microusd'));

-- What the line changes. The last three are a customer's own to set; the plan and its limits stay out of the API's reach.
GRANT UPDATE (provider_used_microusd, overage_used_ms) ON workspace_load TO muster_api, muster_worker;
GRANT UPDATE (overage_enabled, spend_cap_cents, overage_allowance_ms) ON workspace_load TO muster_api;

-- +goose Down
ALTER TABLE workspaces NO FORCE ROW LEVEL SECURITY;
ALTER TABLE workspace_load NO FORCE ROW LEVEL SECURITY;
ALTER TABLE attempts NO FORCE ROW LEVEL SECURITY;
ALTER TABLE metering_rows NO FORCE ROW LEVEL SECURITY;

DELETE FROM metering_rows WHERE meter = 'overage_ms';
ALTER TABLE metering_rows DROP CONSTRAINT metering_rows_meter_check, ADD CONSTRAINT metering_rows_meter_check
    CHECK (meter IN ('agent_ms', 'tasks', 'input_tokens', 'output_tokens', 'cache_read_tokens', 'cache_write_tokens', 'provider_cost_microusd'));
UPDATE attempts SET outcome = 'quota_cut' WHERE outcome = 'budget_cut';
ALTER TABLE attempts DROP CONSTRAINT attempts_outcome_check, ADD CONSTRAINT attempts_outcome_check
    CHECK (outcome IN ('succeeded', 'failed', 'retry', 'timeout', 'canceled', 'handed_back', 'quota_cut', 'crashed'));
DROP INDEX provider_calls_reserved;
ALTER TABLE tasks DROP COLUMN needs_microusd;
ALTER TABLE workspace_load DROP CONSTRAINT workspace_load_paused_check;
ALTER TABLE workspace_load ALTER COLUMN paused TYPE text USING paused[1];
ALTER TABLE workspace_load ADD CONSTRAINT workspace_load_paused_check CHECK (paused IN ('operator', 'billing'));
ALTER TABLE workspaces ADD COLUMN provider_budget_microusd bigint CHECK (provider_budget_microusd >= 0);
UPDATE workspaces w SET provider_budget_microusd = l.provider_budget_microusd FROM workspace_load l WHERE l.workspace_id = w.id;
ALTER TABLE workspaces ALTER COLUMN provider_budget_microusd SET NOT NULL;
ALTER TABLE workspace_load DROP COLUMN provider_budget_microusd, DROP COLUMN provider_used_microusd, DROP COLUMN max_task_cost_microusd,
    DROP COLUMN overage_enabled, DROP COLUMN spend_cap_cents, DROP COLUMN overage_allowance_ms, DROP COLUMN overage_used_ms;

ALTER TABLE workspaces FORCE ROW LEVEL SECURITY;
ALTER TABLE workspace_load FORCE ROW LEVEL SECURITY;
ALTER TABLE attempts FORCE ROW LEVEL SECURITY;
ALTER TABLE metering_rows FORCE ROW LEVEL SECURITY;
