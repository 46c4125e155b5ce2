-- Cancels of very many tasks, which end in batches; positions that do not count who has expired; webhooks that operators disable.
--
-- Deploy story: additive. An API or scheduler of the version before cancels in one transaction, as it did, and knows no cancels
-- under way: replace the schedulers no later than the APIs, or what an API has begun waits for the first new scheduler. A process
-- of the version before writes no requeued_at: a task that it brings back while a cancel is under way may be canceled with the rest.

-- +goose Up

-- When an ended task was last brought back by a retry; null: never. A cancel that was asked for before leaves it alone.
ALTER TABLE tasks ADD COLUMN requeued_at timestamptz;

-- Cancels that are under way (store/cancel_bulk.go). The id follows from what is chosen: the same cancel again renews the row.
CREATE TABLE task_cancels (
    workspace_id uuid NOT NULL,
    id           uuid NOT NULL,
    status       text NOT NULL CHECK (status IN ('', 'scheduled', 'queued', 'running')), -- when it was asked for; '' is any
    agent        text NOT NULL,                                                          -- '' is any
    metadata     jsonb NOT NULL CHECK (jsonb_typeof(metadata) = 'object'),               -- all of these pairs
    requested_at timestamptz NOT NULL,                                                   -- tasks that came later stay
    PRIMARY KEY (workspace_id, id)
);
ALTER TABLE task_cancels ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY api_own ON task_cancels TO muster_api USING (workspace_id = app_workspace()) WITH CHECK (workspace_id = app_workspace());
CREATE POLICY system_line ON task_cancels TO muster_system USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE (requested_at) ON task_cancels TO muster_api;
GRANT SELECT, INSERT, UPDATE (requested_at), DELETE ON task_cancels TO muster_system;

ALTER TABLE webhook_endpoints DROP CONSTRAINT webhook_endpoints_disabled_why_check;
ALTER TABLE webhook_endpoints ADD CONSTRAINT webhook_endpoints_disabled_why_check CHECK (disabled_why IN ('customer', 'operator', 'gone', 'failing'));

-- line_position counts the tasks in line that run before one that is in line too; 1001 stands for more than 1000. One that has
-- expired and is not ended yet (store/expire.go) will not run.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION line_position(ws uuid, task uuid, level smallint) RETURNS integer LANGUAGE plpgsql STABLE SECURITY INVOKER
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
BEGIN
    RETURN (SELECT count(*) FROM (
        SELECT 1 FROM (
            (SELECT t.id FROM public.tasks t WHERE t.workspace_id = ws AND t.status = 'queued' AND t.priority > level
                AND (t.expires_at IS NULL OR t.expires_at > now())
                AND NOT EXISTS (SELECT 1 FROM public.leases l WHERE l.workspace_id = ws AND l.task_id = t.id) LIMIT 1001)
            UNION ALL
            (SELECT t.id FROM public.tasks t WHERE t.workspace_id = ws AND t.status = 'queued' AND t.priority = level AND t.id < task
                AND (t.expires_at IS NULL OR t.expires_at > now())
                AND NOT EXISTS (SELECT 1 FROM public.leases l WHERE l.workspace_id = ws AND l.task_id = t.id) LIMIT 1001)) ahead
        LIMIT 1001) first);
END $$;
-- +goose StatementEnd

-- +goose Down
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION line_position(ws uuid, task uuid, level smallint) RETURNS integer LANGUAGE plpgsql STABLE SECURITY INVOKER
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
BEGIN
    RETURN (SELECT count(*) FROM (
        SELECT 1 FROM (
            (SELECT t.id FROM public.tasks t WHERE t.workspace_id = ws AND t.status = 'queued' AND t.priority > level
                AND NOT EXISTS (SELECT 1 FROM public.leases l WHERE l.workspace_id = ws AND l.task_id = t.id) LIMIT 1001)
            UNION ALL
            (SELECT t.id FROM public.tasks t WHERE t.workspace_id = ws AND t.status = 'queued' AND t.priority = level AND t.id < task
                AND NOT EXISTS (SELECT 1 FROM public.leases l WHERE l.workspace_id = ws AND l.task_id = t.id) LIMIT 1001)) ahead
        LIMIT 1001) first);
END $$;
-- +goose StatementEnd
ALTER TABLE webhook_endpoints NO FORCE ROW LEVEL SECURITY; -- FORCE binds the owner too: it would see no row to change
UPDATE webhook_endpoints SET disabled_why = 'customer' WHERE disabled_why = 'operator';
ALTER TABLE webhook_endpoints FORCE ROW LEVEL SECURITY;
ALTER TABLE webhook_endpoints DROP CONSTRAINT webhook_endpoints_disabled_why_check;
ALTER TABLE webhook_endpoints ADD CONSTRAINT webhook_endpoints_disabled_why_check CHECK (disabled_why IN ('customer', 'gone', 'failing'));
DROP TABLE task_cancels;
ALTER TABLE tasks DROP COLUMN requeued_at;
