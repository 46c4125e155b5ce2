-- The inbox of Stripe's events, and the name under which a workspace's login page is found (slug).
--
-- Deploy story: additive. Processes of the version before neither read nor write what is new here. stripe_events belongs to
-- no workspace: an event names a customer, and which workspace that is is for whoever handles it to find out. The API only
-- adds to it, and can neither read nor change what it has added.

-- +goose Up
CREATE TABLE stripe_events (
    id          text PRIMARY KEY CHECK (length(id) BETWEEN 1 AND 255), -- Stripe's; a repeated delivery is the same row
    type        text NOT NULL CHECK (length(type) BETWEEN 1 AND 255),
    livemode    boolean NOT NULL,
    api_version text NOT NULL DEFAULT '',
    created_at  timestamptz NOT NULL,  -- by Stripe's clock; says nothing about the order of delivery
    payload     bytea NOT NULL CHECK (length(payload) <= 1048576), -- as it was signed
    received_at timestamptz NOT NULL DEFAULT now(),
    handled_at  timestamptz -- NULL: nobody has acted on it
);
CREATE INDEX stripe_events_unhandled ON stripe_events (received_at) WHERE handled_at IS NULL;
CREATE INDEX stripe_events_age ON stripe_events (received_at);

ALTER TABLE stripe_events ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY api_add ON stripe_events FOR INSERT TO muster_api WITH CHECK (handled_at IS NULL);
CREATE POLICY system_all ON stripe_events TO muster_system USING (true);
GRANT INSERT (id, type, livemode, api_version, created_at, payload) ON stripe_events TO muster_api;
GRANT SELECT, UPDATE (handled_at), DELETE ON stripe_events TO muster_system;

-- A slug is a DNS label and therefore everybody's: unique over all workspaces, and no secret.
ALTER TABLE workspaces ADD COLUMN slug text CHECK (slug ~ '^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$');
CREATE UNIQUE INDEX workspaces_slug_key ON workspaces (slug) WHERE slug IS NOT NULL;
GRANT UPDATE (slug) ON workspaces TO muster_api;

-- +goose Down
ALTER TABLE workspaces DROP COLUMN slug;
DROP TABLE stripe_events;
