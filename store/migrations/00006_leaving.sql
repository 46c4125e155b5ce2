-- Leaving: a workspace that is deleted, a task whose content is erased, users who belong nowhere any more.
--
-- Deploy story: additive. Processes of the version before go on working while it runs and after: the new columns have
-- defaults, and what a leaving workspace may no longer do is refused to them by the policies below.
--
-- A workspace goes active → deleting (its owner asked, nothing can be submitted or signed in to) → deleted (erased). From
-- erasing_at on there is no way back. What is erased and what stays is told in store/holdings.go.

-- +goose Up
ALTER TABLE workspaces DROP CONSTRAINT workspaces_status_check;
ALTER TABLE workspaces ADD CONSTRAINT workspaces_status_check CHECK (status IN ('active', 'deleting', 'deleted')),
    ADD COLUMN deleting_at            timestamptz,               -- when its owner asked
    ADD COLUMN deleted_by             uuid REFERENCES users (id), -- who: what they delete counts towards their Free workspaces of the month
    ADD COLUMN erasing_at             timestamptz,               -- nothing ran, all was settled, the time to undo was over
    ADD COLUMN subscription_ended_at  timestamptz,               -- Stripe has ended stripe_subscription_id
    ADD COLUMN deleted_at             timestamptz,               -- everything is erased
    ADD CONSTRAINT workspaces_leaving_check CHECK ((status = 'active') = (deleting_at IS NULL) AND (status = 'deleted') = (deleted_at IS NOT NULL)
        AND (erasing_at IS NULL OR deleting_at IS NOT NULL) AND (deleted_at IS NULL OR erasing_at IS NOT NULL));
CREATE INDEX workspaces_leaving ON workspaces (deleting_at) WHERE status = 'deleting';
CREATE INDEX workspaces_deleted_by ON workspaces (deleted_by) WHERE deleted_by IS NOT NULL;

ALTER TABLE workspace_load ADD COLUMN leaving boolean NOT NULL DEFAULT false; -- nothing joins the line or is claimed any more
ALTER TABLE tasks ADD COLUMN erased_at timestamptz;                           -- prompt, input, metadata, result and error texts are gone
ALTER TABLE users ADD COLUMN erased_at timestamptz;                           -- the row is a tombstone: an id that others may name
ALTER TABLE idempotency_keys ADD COLUMN task_id uuid;                         -- the one task that the stored answer shows
CREATE INDEX idempotency_keys_task ON idempotency_keys (workspace_id, task_id) WHERE task_id IS NOT NULL;

-- The API asks for the end of a workspace; it cannot take that back, nor change anything of a workspace that is leaving.
CREATE POLICY api_active ON workspaces AS RESTRICTIVE FOR UPDATE TO muster_api USING (status = 'active') WITH CHECK (status IN ('active', 'deleting'));
CREATE POLICY api_staying ON workspace_load AS RESTRICTIVE FOR UPDATE TO muster_api USING (NOT leaving) WITH CHECK (true);
CREATE POLICY api_left ON workspaces FOR SELECT TO muster_api USING (deleted_by = app_user());
GRANT UPDATE (status, deleting_at, deleted_by) ON workspaces TO muster_api;
GRANT UPDATE (leaving) ON workspace_load TO muster_api;

-- A task's content stands in its attempts' errors and in stored answers too.
CREATE POLICY api_erase ON attempts FOR UPDATE TO muster_api USING (workspace_id = app_workspace()) WITH CHECK (workspace_id = app_workspace());
GRANT UPDATE (error) ON attempts TO muster_api;
GRANT UPDATE (response) ON idempotency_keys TO muster_api;

-- The scheduler erases, and removes what has served; an operator makes a token that resets a password. Hashes stay hidden.
CREATE POLICY system_erase ON members FOR DELETE TO muster_system USING (true);
CREATE POLICY system_erase ON agents FOR DELETE TO muster_system USING (true);
CREATE POLICY system_read ON api_keys FOR SELECT TO muster_system USING (true);
CREATE POLICY system_erase ON api_keys FOR DELETE TO muster_system USING (true);
CREATE POLICY system_read ON invitations FOR SELECT TO muster_system USING (true);
CREATE POLICY system_erase ON invitations FOR DELETE TO muster_system USING (true);
CREATE POLICY system_erase ON users FOR UPDATE TO muster_system USING (true) WITH CHECK (erased_at IS NOT NULL AND password_hash = '' AND email_verified_at IS NULL);
CREATE POLICY system_read ON user_tokens FOR SELECT TO muster_system USING (true);
CREATE POLICY system_erase ON user_tokens FOR DELETE TO muster_system USING (true);
CREATE POLICY system_reset ON user_tokens FOR INSERT TO muster_system WITH CHECK (purpose = 'reset');
GRANT DELETE ON tasks, members, agents TO muster_system;
GRANT SELECT (workspace_id, id), DELETE ON api_keys TO muster_system;
GRANT SELECT (workspace_id, id, accepted_at, revoked_at, expires_at), DELETE ON invitations TO muster_system;
GRANT SELECT (user_id, purpose, created_at, expires_at), INSERT, DELETE ON user_tokens TO muster_system;
GRANT SELECT (email_verified_at, erased_at), UPDATE (email, password_hash, email_verified_at, erased_at) ON users TO muster_system;
GRANT UPDATE (error) ON attempts TO muster_system;

-- +goose Down
REVOKE UPDATE (error) ON attempts FROM muster_system;
REVOKE SELECT (email_verified_at, erased_at), UPDATE (email, password_hash, email_verified_at, erased_at) ON users FROM muster_system;
REVOKE SELECT (user_id, purpose, created_at, expires_at), INSERT, DELETE ON user_tokens FROM muster_system;
REVOKE SELECT (workspace_id, id, accepted_at, revoked_at, expires_at), DELETE ON invitations FROM muster_system;
REVOKE SELECT (workspace_id, id), DELETE ON api_keys FROM muster_system;
REVOKE DELETE ON tasks, members, agents FROM muster_system;
DROP POLICY system_reset ON user_tokens;
DROP POLICY system_erase ON user_tokens;
DROP POLICY system_read ON user_tokens;
DROP POLICY system_erase ON users;
DROP POLICY system_erase ON invitations;
DROP POLICY system_read ON invitations;
DROP POLICY system_erase ON api_keys;
DROP POLICY system_read ON api_keys;
DROP POLICY system_erase ON agents;
DROP POLICY system_erase ON members;
REVOKE UPDATE (response) ON idempotency_keys FROM muster_api;
REVOKE UPDATE (error) ON attempts FROM muster_api;
DROP POLICY api_erase ON attempts;
REVOKE UPDATE (leaving) ON workspace_load FROM muster_api;
DROP POLICY api_left ON workspaces;
DROP POLICY api_staying ON workspace_load;
DROP POLICY api_active ON workspaces;
REVOKE UPDATE (status, deleting_at, deleted_by) ON workspaces FROM muster_api;
ALTER TABLE idempotency_keys DROP COLUMN task_id;
ALTER TABLE users DROP COLUMN erased_at;
ALTER TABLE tasks DROP COLUMN erased_at;
ALTER TABLE workspace_load DROP COLUMN leaving;
ALTER TABLE workspaces NO FORCE ROW LEVEL SECURITY; -- FORCE binds the owner too: it would see no row to change
UPDATE workspaces SET status = 'deleting' WHERE status = 'deleted';
ALTER TABLE workspaces FORCE ROW LEVEL SECURITY;
ALTER TABLE workspaces DROP CONSTRAINT workspaces_leaving_check, DROP CONSTRAINT workspaces_status_check,
    DROP COLUMN deleting_at, DROP COLUMN deleted_by, DROP COLUMN erasing_at, DROP COLUMN subscription_ended_at, DROP COLUMN deleted_at;
ALTER TABLE workspaces ADD CONSTRAINT workspaces_status_check CHECK (status IN ('active', 'deleting'));
