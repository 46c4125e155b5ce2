-- The audit log as chains: every entry has a number without gaps in its workspace's chain and a hash over itself and the
-- hash before it, so that an entry that was changed, removed or put in by hand shows. The heads are written down elsewhere
-- each night, so that a chain that was cut off at its end shows too.
--
-- Deploy story: additive. A trigger numbers and hashes, so the entries of processes of the version before, which know of
-- neither, are chained as well while they go on. It runs with the rights of whoever inserts: row-level security binds it,
-- and a role that may not see a chain cannot lengthen it. The entries that are there are chained here, in the order of their
-- time, with the table locked: about 30 s for a million.
--
-- A dump restores as it is: pg_dump loads rows before it makes triggers (with --data-only, use --disable-triggers).

-- +goose Up
CREATE TABLE audit_heads (
    workspace_id uuid PRIMARY KEY, -- 0: the system's own chain
    seq          bigint NOT NULL CHECK (seq >= 0),
    at           timestamptz NOT NULL,
    hash         bytea NOT NULL CHECK (length(hash) = 32)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);

-- The nights whose heads were written down; digest is over the whole file, which begins with the digest of the one before.
CREATE TABLE audit_nights (
    day      date PRIMARY KEY,
    at       timestamptz NOT NULL DEFAULT now(),
    chains   bigint NOT NULL CHECK (chains >= 0),
    digest   bytea NOT NULL CHECK (length(digest) = 32),
    previous bytea CHECK (length(previous) = 32)
);

-- +goose StatementBegin
-- One text of an entry, so that no two lists of texts are written alike.
CREATE FUNCTION audit_text(t text) RETURNS bytea LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$$ SELECT int4send(length(convert_to(t, 'UTF8'))) || convert_to(t, 'UTF8') $$;
-- +goose StatementEnd
-- +goose StatementBegin
-- An entry's hash. store/audit_chain.go computes the same to check it.
CREATE FUNCTION audit_hash(previous bytea, e audit_log, seq bigint, at timestamptz) RETURNS bytea LANGUAGE sql STABLE PARALLEL SAFE AS
$$ SELECT sha256('muster audit 1' || previous || uuid_send(e.workspace_id) || int8send(seq) || int8send((extract(epoch FROM at) * 1000000)::bigint)
    || public.audit_text(e.actor_type) || public.audit_text(e.actor_id) || public.audit_text(e.action) || public.audit_text(e.target)
    || public.audit_text(e.details::text) || public.audit_text(e.ip) || public.audit_text(e.request_id)) $$;
-- +goose StatementEnd

ALTER TABLE audit_log DROP CONSTRAINT audit_log_pkey;
ALTER TABLE audit_log ALTER COLUMN id DROP NOT NULL; -- the version before gives one; nothing reads it
ALTER TABLE audit_log ADD COLUMN seq bigint CHECK (seq > 0), ADD COLUMN hash bytea CHECK (length(hash) = 32);
ALTER TABLE audit_log DROP CONSTRAINT audit_log_actor_type_check;
ALTER TABLE audit_log ADD CONSTRAINT audit_log_actor_type_check CHECK (actor_type IN ('user', 'api_key', 'operator', 'system', 'anonymous'));

ALTER TABLE audit_log NO FORCE ROW LEVEL SECURITY; -- FORCE binds the owner too: it would see no entry to chain
-- +goose StatementBegin
DO $$
DECLARE
    r record;
    chain uuid;
    n bigint;
    h bytea;
BEGIN
    FOR r IN SELECT a AS e, a.ctid AS place FROM audit_log a ORDER BY a.workspace_id, a.at, a.id LOOP
        IF chain IS DISTINCT FROM (r.e).workspace_id THEN
            chain := (r.e).workspace_id;
            n := 0;
            h := decode(repeat('00', 32), 'hex');
        END IF;
        n := n + 1;
        h := audit_hash(h, r.e, n, (r.e).at);
        UPDATE audit_log SET seq = n, hash = h WHERE ctid = r.place;
    END LOOP;
END $$;
-- +goose StatementEnd
ALTER TABLE audit_log ADD PRIMARY KEY (workspace_id, seq);
ALTER TABLE audit_log ALTER COLUMN hash SET NOT NULL;
INSERT INTO audit_heads (workspace_id, seq, at, hash)
    SELECT DISTINCT ON (workspace_id) workspace_id, seq, at, hash FROM audit_log ORDER BY workspace_id, seq DESC;
ALTER TABLE audit_log FORCE ROW LEVEL SECURITY;
ALTER TABLE audit_heads ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;

-- +goose StatementBegin
-- Numbers, dates and hashes an entry, whatever its writer says of these, and moves the head. The head's row is locked until
-- the transaction ends: entries are the last thing that a transaction writes. Times in a chain never go back.
CREATE FUNCTION audit_chain() RETURNS trigger LANGUAGE plpgsql AS
$$
DECLARE
    head public.audit_heads;
BEGIN
    LOOP
        SELECT * INTO head FROM public.audit_heads h WHERE h.workspace_id = NEW.workspace_id FOR NO KEY UPDATE;
        EXIT WHEN FOUND;
        INSERT INTO public.audit_heads (workspace_id, seq, at, hash) VALUES (NEW.workspace_id, 0, 'epoch', decode(repeat('00', 32), 'hex'))
            ON CONFLICT DO NOTHING;
    END LOOP;
    NEW.seq := head.seq + 1;
    NEW.at := greatest(clock_timestamp(), head.at);
    NEW.hash := public.audit_hash(head.hash, NEW, NEW.seq, NEW.at);
    UPDATE public.audit_heads h SET seq = NEW.seq, at = NEW.at, hash = NEW.hash WHERE h.workspace_id = NEW.workspace_id;
    RETURN NEW;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER audit_chain BEFORE INSERT ON audit_log FOR EACH ROW EXECUTE FUNCTION audit_chain();

CREATE POLICY api_own ON audit_heads TO muster_api USING (workspace_id = app_workspace()) WITH CHECK (workspace_id = app_workspace());
CREATE POLICY worker_note ON audit_heads TO muster_worker USING (true) WITH CHECK (true);
CREATE POLICY system_append ON audit_heads TO muster_system USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE (seq, at, hash) ON audit_heads TO muster_api, muster_worker, muster_system;
GRANT SELECT, INSERT ON audit_nights TO muster_system;

-- What nobody in particular did (a failed sign-in) stands in the system's chain: the API adds to it and cannot read it.
CREATE POLICY api_system ON audit_log FOR INSERT TO muster_api WITH CHECK (workspace_id = '00000000-0000-0000-0000-000000000000');
CREATE POLICY api_system ON audit_heads TO muster_api USING (workspace_id = '00000000-0000-0000-0000-000000000000')
    WITH CHECK (workspace_id = '00000000-0000-0000-0000-000000000000');

-- A task's row is the record of who sent it and when; until now it named keys only.
ALTER TABLE tasks ADD COLUMN created_by_user uuid;

-- +goose Down
ALTER TABLE tasks DROP COLUMN created_by_user;
DROP TRIGGER audit_chain ON audit_log;
DROP FUNCTION audit_chain();
DROP FUNCTION audit_hash(bytea, audit_log, bigint, timestamptz);
DROP FUNCTION audit_text(text);
DROP POLICY api_system ON audit_log;
ALTER TABLE audit_log DROP CONSTRAINT audit_log_pkey;
ALTER TABLE audit_log DROP COLUMN seq, DROP COLUMN hash;
ALTER TABLE audit_log NO FORCE ROW LEVEL SECURITY;
UPDATE audit_log SET id = gen_random_uuid() WHERE id IS NULL;
UPDATE audit_log SET actor_type = 'system' WHERE actor_type = 'anonymous';
ALTER TABLE audit_log FORCE ROW LEVEL SECURITY;
ALTER TABLE audit_log DROP CONSTRAINT audit_log_actor_type_check;
ALTER TABLE audit_log ADD CONSTRAINT audit_log_actor_type_check CHECK (actor_type IN ('user', 'api_key', 'operator', 'system'));
ALTER TABLE audit_log ADD PRIMARY KEY (workspace_id, id);
DROP TABLE audit_nights, audit_heads;
