-- Completion webhooks: the endpoints that customers register, the secrets they are signed with, and the ledger of
-- deliveries, which is the outbox too. A delivery is written in the transaction of what it tells of.
--
-- Deploy story: additive. Endpoints can be made only through an API of this version; a worker of the version before
-- does not know them and writes no deliveries, so replace the workers before customers are told of webhooks.

-- +goose Up
ALTER TABLE workspaces ADD COLUMN max_webhooks integer NOT NULL DEFAULT 1 CHECK (max_webhooks >= 0); -- endpoints; the default is the Free plan's
ALTER TABLE workspaces NO FORCE ROW LEVEL SECURITY; -- FORCE binds the owner too: it would see no row to change
UPDATE workspaces SET max_webhooks = CASE plan WHEN 'pro' THEN 20 WHEN 'growth' THEN 10 WHEN 'starter' THEN 3 ELSE 1 END;
ALTER TABLE workspaces FORCE ROW LEVEL SECURITY;

-- Whether the workspace has an endpoint that is enabled: who ends a task holds this row anyway, and looks no further
-- where it is false.
ALTER TABLE workspace_load ADD COLUMN webhooks boolean NOT NULL DEFAULT false;
GRANT UPDATE (webhooks) ON workspace_load TO muster_api;
-- +goose StatementBegin
-- Locks the load rows of workspaces in id order and returns them (store/load.go). A period that has passed reads as a
-- fresh one. Unknown workspaces are left out.
CREATE FUNCTION line_lock(workspaces uuid[]) RETURNS TABLE (workspace_id uuid, queue text, cap integer, max_waiting integer, waiting integer,
    paused text[], turn uuid, turn_at timestamptz, quota_ms bigint, leaving boolean, now timestamptz, models text[], webhooks boolean,
    overage_enabled boolean, spend_cap_cents bigint, overage_allowance_ms bigint, provider_budget_microusd bigint, max_task_cost_microusd bigint,
    period date, used_ms bigint, overage_used_ms bigint, provider_used_microusd bigint)
LANGUAGE plpgsql VOLATILE AS
$$
#variable_conflict use_column
DECLARE
    month date := date_trunc('month', now() AT TIME ZONE 'UTC')::date;
BEGIN
    RETURN QUERY SELECT w.workspace_id, w.queue, w.cap, w.max_waiting, w.waiting, w.paused, w.turn, w.turn_at, w.quota_ms, w.leaving, now(), w.models, w.webhooks,
            w.overage_enabled, w.spend_cap_cents, w.overage_allowance_ms, w.provider_budget_microusd, w.max_task_cost_microusd,
            greatest(w.period, month), CASE WHEN w.period < month THEN 0 ELSE w.used_ms END,
            CASE WHEN w.period < month THEN 0 ELSE w.overage_used_ms END, CASE WHEN w.period < month THEN 0 ELSE w.provider_used_microusd END
        FROM public.workspace_load w WHERE w.workspace_id = ANY (workspaces) ORDER BY w.workspace_id FOR NO KEY UPDATE;
END
$$;
-- +goose StatementEnd
REVOKE ALL ON FUNCTION line_lock FROM PUBLIC;
GRANT EXECUTE ON FUNCTION line_lock TO muster_api, muster_worker, muster_system;

CREATE TABLE webhook_endpoints (
    workspace_id   uuid NOT NULL,
    id             uuid NOT NULL,
    url            text NOT NULL CHECK (length(url) BETWEEN 1 AND 2048),
    events         text[] NOT NULL CHECK (cardinality(events) > 0 AND events <@ ARRAY['task.succeeded', 'task.failed', 'task.canceled', 'quota.notice']),
    description    text NOT NULL DEFAULT '' CHECK (length(description) <= 200),
    enabled        boolean NOT NULL DEFAULT true,
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now(),
    created_by     text NOT NULL,                        -- usr_… or key_…
    disabled_why   text CHECK (disabled_why IN ('customer', 'gone', 'failing')),
    disabled_at    timestamptz,
    -- What the sender keeps.
    lease          uuid,                                 -- of the scheduler that sends to it
    leased_until   timestamptz,
    slow           boolean NOT NULL DEFAULT false,       -- served apart from the others
    failures       integer NOT NULL DEFAULT 0 CHECK (failures >= 0), -- visits in a row that ended with one
    failing_since  timestamptz,
    not_before     timestamptz,                          -- nothing is sent to it before
    letter_tries   integer NOT NULL DEFAULT 0,           -- the owners' letter that it was disabled
    letter_at      timestamptz,                          -- its next try; null: there is nothing to tell
    PRIMARY KEY (workspace_id, id),
    CHECK (enabled = (disabled_at IS NULL) AND enabled = (disabled_why IS NULL)),
    CHECK ((lease IS NULL) = (leased_until IS NULL))
) WITH (fillfactor = 50);
CREATE INDEX webhook_endpoints_letters ON webhook_endpoints (letter_at) WHERE letter_at IS NOT NULL;

-- Sealed by the API, opened by the scheduler; no role of the database can read what is in it. One secret of an endpoint
-- has no end; those before it work on until theirs.
CREATE TABLE webhook_secrets (
    workspace_id uuid NOT NULL,
    endpoint_id  uuid NOT NULL,
    id           uuid NOT NULL,
    sealed       bytea NOT NULL CHECK (length(sealed) BETWEEN 40 AND 200),
    created_at   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz,
    PRIMARY KEY (workspace_id, endpoint_id, id)
);

CREATE TABLE webhook_deliveries (
    workspace_id uuid NOT NULL,
    endpoint_id  uuid NOT NULL,
    id           uuid NOT NULL,                          -- the event's, the same at every endpoint; goes out as webhook-id
    type         text NOT NULL CHECK (type IN ('task.succeeded', 'task.failed', 'task.canceled', 'quota.notice', 'webhook.test')),
    task_id      uuid,
    data         jsonb NOT NULL,                         -- what is told, without the task's result
    status       text NOT NULL DEFAULT 'waiting' CHECK (status IN ('waiting', 'succeeded', 'dead')),
    attempts     integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    next_at      timestamptz NOT NULL DEFAULT now(),     -- while waiting
    created_at   timestamptz NOT NULL DEFAULT now(),
    last_at      timestamptz,                            -- of the last attempt: when it ended,
    last_status  integer,                                -- what HTTP status came,
    last_error   text,                                   -- else or why that was none of the good ones,
    last_ms      integer,                                -- and how long it took
    delivered_at timestamptz,
    PRIMARY KEY (workspace_id, endpoint_id, id),
    CHECK ((status = 'succeeded') = (delivered_at IS NOT NULL))
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (workspace_id, endpoint_id, next_at) WHERE status = 'waiting';
CREATE INDEX webhook_deliveries_task ON webhook_deliveries (workspace_id, task_id) WHERE task_id IS NOT NULL; -- for a task's erasure
CREATE INDEX webhook_deliveries_age ON webhook_deliveries (created_at);                                        -- for the sweep

ALTER TABLE webhook_endpoints  ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE webhook_secrets    ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE webhook_deliveries ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;

CREATE POLICY api_own ON webhook_endpoints TO muster_api USING (workspace_id = app_workspace()) WITH CHECK (workspace_id = app_workspace());
CREATE POLICY api_own ON webhook_secrets TO muster_api USING (workspace_id = app_workspace()) WITH CHECK (workspace_id = app_workspace());
CREATE POLICY api_own ON webhook_deliveries TO muster_api USING (workspace_id = app_workspace()) WITH CHECK (workspace_id = app_workspace());
GRANT SELECT, INSERT, DELETE, UPDATE (url, events, description, enabled, updated_at, disabled_why, disabled_at, failures, failing_since, not_before,
    slow, letter_at) ON webhook_endpoints TO muster_api;
GRANT SELECT (workspace_id, endpoint_id, id, created_at, expires_at), INSERT, DELETE, UPDATE (expires_at) ON webhook_secrets TO muster_api;
GRANT SELECT, INSERT, UPDATE (data, status, attempts, next_at, delivered_at) ON webhook_deliveries TO muster_api;

-- The worker writes deliveries as it ends tasks.
CREATE POLICY worker_line ON webhook_endpoints FOR SELECT TO muster_worker USING (true);
CREATE POLICY worker_line ON webhook_deliveries FOR INSERT TO muster_worker WITH CHECK (true);
GRANT SELECT (workspace_id, id, events, enabled) ON webhook_endpoints TO muster_worker;
GRANT INSERT ON webhook_deliveries TO muster_worker;

CREATE POLICY system_line ON webhook_endpoints TO muster_system USING (true) WITH CHECK (true);
CREATE POLICY system_line ON webhook_secrets TO muster_system USING (true) WITH CHECK (true);
CREATE POLICY system_line ON webhook_deliveries TO muster_system USING (true) WITH CHECK (true);
GRANT SELECT, DELETE, UPDATE (enabled, disabled_why, disabled_at, lease, leased_until, slow, failures, failing_since, not_before, letter_tries, letter_at,
    updated_at) ON webhook_endpoints TO muster_system;
GRANT SELECT, DELETE ON webhook_secrets TO muster_system;
GRANT SELECT, INSERT, DELETE, UPDATE (data, status, attempts, next_at, last_at, last_status, last_error, last_ms, delivered_at) ON webhook_deliveries TO muster_system;

-- +goose Down
DROP TABLE webhook_deliveries, webhook_secrets, webhook_endpoints;
DROP FUNCTION line_lock;
REVOKE UPDATE (webhooks) ON workspace_load FROM muster_api;
ALTER TABLE workspace_load DROP COLUMN webhooks;
ALTER TABLE workspaces DROP COLUMN max_webhooks;
