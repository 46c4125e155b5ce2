-- What a plan allows and what is told about it: models, the proof of a mail before the first task, notices with their
-- mails, and the events of a workspace.
--
-- Deploy story: additive. The columns' defaults are the first plan's own limits, so that a workspace which a process of
-- the version before makes meanwhile is bound by them; existing workspaces of other plans are freed here. Such a process
-- can still insert a notice: it then counts as told under any limit, and nobody is mailed.

-- +goose Up
ALTER TABLE workspace_load
    ADD COLUMN models    text[] NOT NULL DEFAULT '{anthropic/claude-haiku-5-5,openai/gpt-6-luna,openai/gpt-5-nano,openai/gpt-5-mini,openai/gpt-4.1-nano,openai/gpt-4.1-mini,openai/gpt-4o-mini}', -- patterns of provider/model; empty: all
    ADD COLUMN event_seq bigint NOT NULL DEFAULT 0 CHECK (event_seq >= 0); -- the last number given out in workspace_events
ALTER TABLE workspaces
    ADD COLUMN needs_verified_email boolean NOT NULL DEFAULT true; -- an owner's, before a task is accepted
ALTER TABLE workspaces NO FORCE ROW LEVEL SECURITY; -- FORCE binds the owner too: it would see no row to change
ALTER TABLE workspace_load NO FORCE ROW LEVEL SECURITY;
UPDATE workspace_load l SET models = '{}' FROM workspaces w WHERE w.id = l.workspace_id AND w.plan <> 'free';
UPDATE workspaces SET needs_verified_email = false WHERE plan <> 'free';
ALTER TABLE workspace_load FORCE ROW LEVEL SECURITY;
ALTER TABLE workspaces FORCE ROW LEVEL SECURITY;
GRANT UPDATE (event_seq) ON workspace_load TO muster_worker;

-- A share of agent time or provider budget that was passed: told once per period, and again only under a larger limit.
-- The row is also the outbox of its mails.
ALTER TABLE quota_notices
    ADD COLUMN id       uuid NOT NULL DEFAULT gen_random_uuid(),
    ADD COLUMN kind     text NOT NULL DEFAULT 'agent_time' CHECK (kind IN ('agent_time', 'provider_budget')),
    ADD COLUMN used     bigint NOT NULL DEFAULT 0,                    -- when it was told: ms or micro-dollars
    ADD COLUMN quota    bigint NOT NULL DEFAULT 9223372036854775807,  -- the limit then
    ADD COLUMN mails_at timestamptz DEFAULT now();                    -- its mails were written to notice_mails; null: not yet
ALTER TABLE quota_notices ALTER COLUMN mails_at DROP DEFAULT, DROP CONSTRAINT quota_notices_pkey, ADD PRIMARY KEY (workspace_id, id);
CREATE UNIQUE INDEX quota_notices_once ON quota_notices (workspace_id, period, kind, percent, quota);
CREATE INDEX quota_notices_outbox ON quota_notices (at) WHERE mails_at IS NULL;
GRANT UPDATE (mails_at) ON quota_notices TO muster_system;

-- One mail of a notice to one owner. No address: it is the user's of the moment.
CREATE TABLE notice_mails (
    workspace_id uuid NOT NULL,
    notice_id    uuid NOT NULL,
    user_id      uuid NOT NULL,
    attempts     integer NOT NULL DEFAULT 0,
    next_try     timestamptz NOT NULL DEFAULT now(),
    mailed_at    timestamptz,
    gave_up_at   timestamptz,
    PRIMARY KEY (workspace_id, notice_id, user_id)
);
CREATE INDEX notice_mails_due ON notice_mails (next_try) WHERE mailed_at IS NULL AND gave_up_at IS NULL;

-- What happened in a workspace, for those who listen. seq has no gaps: it is given out under the load row's lock.
CREATE TABLE workspace_events (
    workspace_id uuid NOT NULL,
    seq          bigint NOT NULL CHECK (seq > 0),
    kind         text NOT NULL CHECK (kind IN ('usage', 'status', 'done')),
    task_id      uuid, -- null: of the workspace
    data         jsonb NOT NULL,
    at           timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (workspace_id, seq)
);
CREATE INDEX workspace_events_age ON workspace_events (at);

ALTER TABLE notice_mails     ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE workspace_events ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;

CREATE POLICY system_line ON notice_mails TO muster_system USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, DELETE, UPDATE (attempts, next_try, mailed_at, gave_up_at) ON notice_mails TO muster_system;

CREATE POLICY api_own ON workspace_events FOR SELECT TO muster_api USING (workspace_id = app_workspace());
CREATE POLICY worker_line ON workspace_events FOR INSERT TO muster_worker WITH CHECK (true);
CREATE POLICY system_line ON workspace_events TO muster_system USING (true) WITH CHECK (true);
GRANT SELECT ON workspace_events TO muster_api;
GRANT INSERT ON workspace_events TO muster_worker;
GRANT SELECT, INSERT, DELETE ON workspace_events TO muster_system;

-- +goose Down
DROP TABLE workspace_events, notice_mails;
REVOKE UPDATE (mails_at) ON quota_notices FROM muster_system;
DROP INDEX quota_notices_outbox, quota_notices_once;
ALTER TABLE quota_notices NO FORCE ROW LEVEL SECURITY;
DELETE FROM quota_notices a USING quota_notices b WHERE a.workspace_id = b.workspace_id AND a.period = b.period AND a.percent = b.percent
    AND (a.kind <> 'agent_time' OR (b.kind = 'agent_time' AND a.id < b.id));
ALTER TABLE quota_notices FORCE ROW LEVEL SECURITY;
ALTER TABLE quota_notices DROP CONSTRAINT quota_notices_pkey, DROP COLUMN id, DROP COLUMN kind, DROP COLUMN used, DROP COLUMN quota, DROP COLUMN mails_at,
    ADD PRIMARY KEY (workspace_id, period, percent);
REVOKE UPDATE (event_seq) ON workspace_load FROM muster_worker;
ALTER TABLE workspaces DROP COLUMN needs_verified_email;
ALTER TABLE workspace_load DROP COLUMN models, DROP COLUMN event_seq;
