-- Retention: how long a workspace's tasks stay once they have ended, in days.
--
-- Deploy story: additive; existing workspaces get their plan's. The scheduler of this version removes what is older from its
-- first round on: whoever is to keep more gets muster workspace set-limit WS retention_days=N between migration and start.
-- Attempts and provider calls go with their task. Metering rows, daily usage and the push ledger stay.

-- +goose Up
ALTER TABLE workspaces NO FORCE ROW LEVEL SECURITY; -- FORCE binds the owner too: it would see no rows to fill in
ALTER TABLE workspaces ADD COLUMN retention_days integer NOT NULL DEFAULT 30 CHECK (retention_days >= 0); -- 0: for ever
UPDATE workspaces SET retention_days = CASE plan WHEN 'pro' THEN 365 WHEN 'growth' THEN 180 WHEN 'starter' THEN 90 ELSE 30 END;
ALTER TABLE workspaces FORCE ROW LEVEL SECURITY;
GRANT DELETE ON attempts, provider_calls TO muster_system;

-- +goose Down
REVOKE DELETE ON attempts, provider_calls FROM muster_system;
ALTER TABLE workspaces DROP COLUMN retention_days;
