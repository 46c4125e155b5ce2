-- A task's life: expiry while it waits, what ended badly found quickly, and cron schedules with their runs.
--
-- Deploy story: additive. The columns have defaults, and a process of the version before goes on: it starts tasks that have
-- expired (none do before a process of this version takes one), and neither makes nor fires schedules. The three indexes on
-- tasks are partial and built under a lock against writes, some seconds per million failed and canceled tasks. The new
-- limits' defaults are the first plan's; workspaces of other plans are given theirs here, an operator's overrides are not
-- touched because none exist.

-- +goose Up
-- expires_at has stood in tasks from the beginning, unused. A task that still waits then fails with the code "expired".
CREATE INDEX tasks_expiring ON tasks (expires_at) WHERE expires_at IS NOT NULL AND (status = 'queued' OR status = 'scheduled');
-- Dead letters (failed and not erased), and what can be retried in bulk.
CREATE INDEX tasks_ended_badly ON tasks (workspace_id, status, finished_at, id) WHERE (status = 'failed' OR status = 'canceled') AND erased_at IS NULL;

ALTER TABLE tasks ADD COLUMN schedule_id uuid; -- the schedule that sent it
CREATE INDEX tasks_schedule ON tasks (workspace_id, schedule_id, id) WHERE schedule_id IS NOT NULL;

ALTER TABLE workspaces
    ADD COLUMN max_schedules        integer NOT NULL DEFAULT 5 CHECK (max_schedules >= 0),
    ADD COLUMN min_schedule_seconds integer NOT NULL DEFAULT 900 CHECK (min_schedule_seconds >= 0); -- between two occurrences of a schedule
ALTER TABLE workspaces NO FORCE ROW LEVEL SECURITY; -- FORCE binds the owner too: it would see no row to change
UPDATE workspaces SET max_schedules = p.schedules, min_schedule_seconds = 60
    FROM (VALUES ('starter', 50), ('growth', 200), ('pro', 1000)) AS p (plan, schedules) WHERE workspaces.plan = p.plan;
ALTER TABLE workspaces FORCE ROW LEVEL SECURITY;

-- A schedule sends a task, made after its own columns, at each occurrence of its cron expression.
CREATE TABLE schedules (
    workspace_id     uuid NOT NULL,
    id               uuid NOT NULL,
    name             text NOT NULL CHECK (length(name) BETWEEN 1 AND 100),
    cron             text NOT NULL CHECK (length(cron) BETWEEN 1 AND 100),
    timezone         text NOT NULL CHECK (length(timezone) BETWEEN 1 AND 64),
    missed_runs      text NOT NULL CHECK (missed_runs IN ('skip', 'run_once', 'run_all')),
    overlap          text NOT NULL CHECK (overlap IN ('allow', 'skip')),
    paused           boolean NOT NULL DEFAULT false,
    starts_at        timestamptz,            -- no occurrence before
    ends_at          timestamptz,            -- no occurrence after
    expires_after_ms bigint CHECK (expires_after_ms > 0), -- its tasks expire so long after their occurrence
    next_at          timestamptz,            -- the first occurrence that is not decided; null while paused and after the last
    version          bigint NOT NULL DEFAULT 1, -- grows with each change by its owners
    last_at          timestamptz,            -- the last occurrence that was decided
    last_task_id     uuid,
    agent            text NOT NULL,
    model            text NOT NULL,
    prompt           text NOT NULL,
    input            jsonb NOT NULL DEFAULT '{}',
    metadata         jsonb NOT NULL DEFAULT '{}',
    priority         smallint NOT NULL CHECK (priority BETWEEN -100 AND 100),
    timeout_ms       integer NOT NULL CHECK (timeout_ms BETWEEN 1 AND 300000),
    max_attempts     integer NOT NULL CHECK (max_attempts BETWEEN 1 AND 100),
    api_key_id       uuid,                   -- who made it: a key,
    created_by_user  uuid,                   -- or a user
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (workspace_id, id)
) WITH (fillfactor = 70);
CREATE INDEX schedules_due ON schedules (next_at) WHERE next_at IS NOT NULL;

-- What became of each occurrence. A missed span is one row: from occurrence to until, so many of them.
CREATE TABLE schedule_runs (
    workspace_id uuid NOT NULL,
    schedule_id  uuid NOT NULL,
    occurrence   timestamptz NOT NULL,
    until        timestamptz NOT NULL CHECK (until >= occurrence),
    occurrences  integer NOT NULL CHECK (occurrences >= 1),
    outcome      text NOT NULL CHECK (outcome IN ('sent', 'missed')),
    reason       text NOT NULL CHECK (reason IN ('', 'late', 'overlap', 'backlog_full', 'unknown_agent', 'model_not_allowed')), -- of a missed one
    task_id      uuid,
    at           timestamptz NOT NULL DEFAULT now(), -- when it was decided
    PRIMARY KEY (workspace_id, schedule_id, occurrence), -- one task per schedule and occurrence, whoever fires it how often
    CHECK ((outcome = 'sent') = (task_id IS NOT NULL)),
    CHECK ((outcome = 'missed') = (reason <> ''))
);
CREATE INDEX schedule_runs_age ON schedule_runs (at);

ALTER TABLE schedules     ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE schedule_runs ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;

CREATE POLICY api_own ON schedules TO muster_api USING (workspace_id = app_workspace()) WITH CHECK (workspace_id = app_workspace());
CREATE POLICY api_own ON schedule_runs TO muster_api USING (workspace_id = app_workspace()) WITH CHECK (workspace_id = app_workspace());
GRANT SELECT, INSERT, DELETE, UPDATE (name, cron, timezone, missed_runs, overlap, paused, starts_at, ends_at, expires_after_ms, next_at, version,
    agent, model, prompt, input, metadata, priority, timeout_ms, max_attempts, updated_at) ON schedules TO muster_api;
GRANT SELECT, DELETE ON schedule_runs TO muster_api;

-- The scheduler fires: it sends tasks, notes the occurrence and moves the schedule on, in one transaction.
CREATE POLICY system_line ON schedules TO muster_system USING (true) WITH CHECK (true);
CREATE POLICY system_line ON schedule_runs TO muster_system USING (true) WITH CHECK (true);
GRANT SELECT, DELETE, UPDATE (paused, next_at, version, last_at, last_task_id, updated_at) ON schedules TO muster_system; -- operators pause and resume
GRANT SELECT, INSERT, DELETE ON schedule_runs TO muster_system;
GRANT INSERT ON tasks TO muster_system;

-- An operator drops dead letters: what stored answers show of them goes too.
GRANT SELECT (task_id), UPDATE (response) ON idempotency_keys TO muster_system;

-- +goose Down
REVOKE SELECT (task_id), UPDATE (response) ON idempotency_keys FROM muster_system;
REVOKE INSERT ON tasks FROM muster_system;
DROP TABLE schedule_runs, schedules;
ALTER TABLE workspaces DROP COLUMN max_schedules, DROP COLUMN min_schedule_seconds;
ALTER TABLE tasks DROP COLUMN schedule_id;
DROP INDEX tasks_ended_badly, tasks_expiring;
