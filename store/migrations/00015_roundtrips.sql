-- What customers ask for most, in one round trip each: a submit, one task, a credential, what a workspace may ask for.
--
-- Planning these statements under row-level security cost more than running them, each time anew, because behind PgBouncer no
-- statement keeps its plan between transactions. A PL/pgSQL function keeps the plans of its statements per connection, and each
-- statement of a VOLATILE one sees what was committed before it began, which the rule of the load row (store/load.go) needs. All
-- run with their caller's rights, so the policies hold inside, and qualify their names, so that no search_path is asked. Those that
-- come first in their transaction set its scope, as store.Scope does. Plans are made once and for tables of any size: without
-- sequential scans, which fit only while a table is small.
--
-- Deploy story: additive. Processes of the version before know nothing of them.

-- +goose Up

-- waiting_reason says why the first task in line of the workspace is not running, 'in_line' when nothing but other workspaces
-- keeps it: then the workspace is to have a turn. The words and their order are those of store/waiting.go. NULL: no such workspace.
-- +goose StatementBegin
CREATE FUNCTION waiting_reason(ws uuid) RETURNS text LANGUAGE plpgsql STABLE SECURITY INVOKER
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
BEGIN
    RETURN (SELECT CASE
            WHEN w.paused IS NOT NULL THEN 'workspace_paused'
            WHEN greatest(w.quota_ms - u.used + u.overage, 0) + greatest(w.overage_allowance_ms - u.overage, 0) - r.reserved
                < least(head.timeout_ms, 10000) THEN 'quota_exhausted'
            WHEN w.provider_budget_microusd - u.spent - CASE WHEN head.needs_microusd > 0 THEN
                (SELECT coalesce(sum(c.cost_microusd), 0)::bigint FROM public.provider_calls c WHERE c.workspace_id = ws AND c.outcome = 'started')
                ELSE 0 END < head.needs_microusd THEN 'provider_budget'
            WHEN r.running >= w.cap THEN 'workspace_cap'
            ELSE 'in_line' END
        FROM public.workspace_load w
        CROSS JOIN LATERAL (SELECT CASE WHEN p.past THEN 0 ELSE w.used_ms END AS used, CASE WHEN p.past THEN 0 ELSE w.overage_used_ms END AS overage,
            CASE WHEN p.past THEN 0 ELSE w.provider_used_microusd END AS spent
            FROM (SELECT w.period < date_trunc('month', now() AT TIME ZONE 'UTC')::date AS past) p) u
        CROSS JOIN LATERAL (SELECT count(*) AS running, coalesce(sum(l.reserved_ms), 0)::bigint AS reserved FROM public.leases l WHERE l.workspace_id = ws) r
        LEFT JOIN LATERAL (SELECT t.timeout_ms, t.needs_microusd FROM public.tasks t WHERE t.workspace_id = ws AND t.status = 'queued'
                AND (t.expires_at IS NULL OR t.expires_at > now()) AND NOT EXISTS (SELECT 1 FROM public.leases l WHERE l.workspace_id = ws AND l.task_id = t.id)
            ORDER BY t.priority DESC, t.id LIMIT 1) head ON true
        WHERE w.workspace_id = ws);
END $$;
-- +goose StatementEnd

-- line_position counts the tasks in line that run before one that is in line too; 1001 stands for more than 1000.
-- +goose StatementBegin
CREATE FUNCTION line_position(ws uuid, task uuid, level smallint) RETURNS integer LANGUAGE plpgsql STABLE SECURITY INVOKER
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

-- submit_tasks accepts tasks, all or none (arrays in parallel), as one workspace's API transaction or a part of it.
--
-- In:   own_agents   agents among those of the tasks that are not built in; levels   the priorities of the tasks, each once
-- Out:  an object of   refused   'agents' (unknown: which), 'backlog', 'leaving', 'absent': then nothing was stored; or
--       created   the tasks' time; reason   what the first in line waits for (waiting_reason), null when none is in line;
--       ahead   of each level, how many older tasks in line run before the first of these, 1001 for more than 1000;
--       turn, queue   to enqueue, when a turn was issued
--
-- Errors: MU001, the backlog filled up, or the workspace left, after it was looked at: the transaction has done nothing, ask again.
-- The insert comes before the lock, which keeps the lock short; what decides about the turn is read after it, in statements of
-- their own, so no wake-up is lost.
-- +goose StatementBegin
CREATE FUNCTION submit_tasks(ws uuid, ids uuid[], agents text[], models text[], prompts text[], inputs jsonb[], metadata jsonb[],
    priorities bigint[], timeouts bigint[], attempts bigint[], run_ats timestamptz[], expires timestamptz[], api_keys uuid[],
    users uuid[], own_agents text[], levels bigint[]) RETURNS json
LANGUAGE plpgsql VOLATILE SECURITY INVOKER SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    scope text := set_config('app.workspace_id', ws::text, true);
    n integer := cardinality(ids);
    line record; -- before the lock
    load record; -- the load row, under it
    runs record; -- what runs, and the first in line, under it
    past boolean; -- the load row counts a period that is over
    level bigint;
    unknown text[];
    refused text;
    created timestamptz := now();
    reason text;
    ahead integer[];
    issued uuid; -- turn
BEGIN
    IF own_agents <> '{}' THEN
        unknown := ARRAY(SELECT a.name FROM unnest(own_agents) a (name) WHERE NOT EXISTS
            (SELECT 1 FROM public.agents g WHERE g.workspace_id = ws AND g.name = a.name));
        IF unknown <> '{}' THEN
            RETURN json_build_object('refused', 'agents', 'unknown', unknown);
        END IF;
    END IF;
    SELECT w.leaving, w.waiting, w.waiting + n > w.max_waiting AS is_full,
            (SELECT t.priority FROM public.tasks t WHERE t.workspace_id = ws AND t.status = 'queued' ORDER BY t.priority, t.id DESC LIMIT 1) AS lowest,
            EXISTS (SELECT 1 FROM public.tasks t WHERE t.workspace_id = ws AND t.status = 'scheduled') AS has_scheduled
        INTO line FROM public.workspace_load w WHERE w.workspace_id = ws;
    refused := CASE WHEN line.leaving IS NULL THEN 'absent' WHEN line.leaving THEN 'leaving' WHEN line.is_full THEN 'backlog' END;
    IF refused IS NOT NULL THEN
        RETURN json_build_object('refused', refused);
    END IF;
    FOREACH level IN ARRAY levels LOOP
        ahead := ahead || CASE
            WHEN line.waiting = 0 THEN 0
            -- All that waits is in line and at least as urgent: it is counted already.
            WHEN line.lowest >= level AND NOT line.has_scheduled THEN least(line.waiting, 1001)
            ELSE (SELECT count(*) FROM (SELECT 1 FROM public.tasks t WHERE t.workspace_id = ws AND t.status = 'queued' AND t.priority >= level
                AND NOT EXISTS (SELECT 1 FROM public.leases l WHERE l.workspace_id = ws AND l.task_id = t.id) LIMIT 1001) urgent)
            END::integer;
    END LOOP;

    INSERT INTO public.tasks (workspace_id, id, status, agent, model, prompt, input, metadata, priority, timeout_ms, max_attempts,
            first_max_attempts, run_at, expires_at, api_key_id, created_by_user)
        SELECT ws, v.id, CASE WHEN v.run_at > created THEN 'scheduled' ELSE 'queued' END, v.agent, v.model, v.prompt, v.input, v.metadata,
            v.priority, v.timeout_ms, v.attempts, v.attempts, v.run_at, v.expires_at, v.api_key, v.created_by
        FROM unnest(ids, agents, models, prompts, inputs, metadata, priorities, timeouts, attempts, run_ats, expires, api_keys, users)
            v (id, agent, model, prompt, input, metadata, priority, timeout_ms, attempts, run_at, expires_at, api_key, created_by);

    UPDATE public.workspace_load w SET waiting = w.waiting + n WHERE w.workspace_id = ws AND w.waiting + n <= w.max_waiting
        RETURNING w.turn, w.queue, w.paused, w.cap, w.period, w.quota_ms, w.used_ms, w.overage_allowance_ms, w.overage_used_ms,
            w.provider_budget_microusd, w.provider_used_microusd INTO load;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the backlog filled up, or the workspace left, meanwhile' USING ERRCODE = 'MU001';
    END IF;

    past := load.period < date_trunc('month', created AT TIME ZONE 'UTC')::date;
    IF past THEN
        load.used_ms := 0;
        load.overage_used_ms := 0;
        load.provider_used_microusd := 0;
    END IF;
    SELECT count(*) AS running, coalesce(sum(l.reserved_ms), 0)::bigint AS reserved,
            (SELECT ARRAY[t.timeout_ms, t.needs_microusd] FROM public.tasks t WHERE t.workspace_id = ws AND t.status = 'queued'
                AND (t.expires_at IS NULL OR t.expires_at > created) AND NOT EXISTS (SELECT 1 FROM public.leases h WHERE h.workspace_id = ws AND h.task_id = t.id) ORDER BY t.priority DESC, t.id LIMIT 1) AS head
        INTO runs FROM public.leases l WHERE l.workspace_id = ws;
    reason := CASE
        WHEN runs.head IS NULL THEN NULL
        WHEN load.paused IS NOT NULL THEN 'workspace_paused'
        WHEN greatest(load.quota_ms - load.used_ms + load.overage_used_ms, 0) + greatest(load.overage_allowance_ms - load.overage_used_ms, 0)
            - runs.reserved < least((runs.head)[1], 10000) THEN 'quota_exhausted'
        WHEN load.provider_budget_microusd - load.provider_used_microusd - CASE WHEN (runs.head)[2] > 0 THEN
            (SELECT coalesce(sum(c.cost_microusd), 0)::bigint FROM public.provider_calls c WHERE c.workspace_id = ws AND c.outcome = 'started')
            ELSE 0 END < (runs.head)[2] THEN 'provider_budget'
        WHEN runs.running >= load.cap THEN 'workspace_cap'
        ELSE 'in_line' END;
    IF load.turn IS NULL AND reason = 'in_line' THEN
        issued := gen_random_uuid();
        UPDATE public.workspace_load w SET turn = issued, turn_at = created WHERE w.workspace_id = ws;
    END IF;
    RETURN json_build_object('created', created, 'reason', reason, 'ahead', ahead, 'turn', issued, 'queue', load.queue);
END $$;
-- +goose StatementEnd

-- check_session gives the role of a session's user; NULL when it has ended or is not theirs.
-- +goose StatementBegin
CREATE FUNCTION check_session(ws uuid, person uuid, session uuid) RETURNS text LANGUAGE plpgsql VOLATILE SECURITY INVOKER
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE scope text := set_config('app.workspace_id', ws::text, true);
BEGIN
    RETURN (SELECT m.role FROM public.sessions s JOIN public.members m ON m.workspace_id = s.workspace_id AND m.user_id = s.user_id
        WHERE s.workspace_id = ws AND s.id = session AND s.user_id = person AND s.revoked_at IS NULL AND s.expires_at > now());
END $$;
-- +goose StatementEnd

-- check_key finds the API key with a SHA-256; no row when there is none.
-- +goose StatementBegin
CREATE FUNCTION check_key(hash bytea)
RETURNS TABLE (workspace_id uuid, id uuid, role text, scopes text[], origin_user uuid, alive boolean)
LANGUAGE plpgsql VOLATILE SECURITY INVOKER ROWS 1 SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE scope text := set_config('app.credential', encode(hash, 'hex'), true);
BEGIN
    RETURN QUERY SELECT k.workspace_id, k.id, k.role, k.scopes, k.origin_user,
            k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())
        FROM public.api_keys k WHERE k.key_hash = hash;
END $$;
-- +goose StatementEnd

-- allowance is what the workspace may ask for (store.Allowance); no row when it is gone.
-- +goose StatementBegin
CREATE FUNCTION allowance(ws uuid) RETURNS TABLE (requests_per_hour integer, models text[], unproved boolean)
LANGUAGE plpgsql VOLATILE SECURITY INVOKER ROWS 1 SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
DECLARE scope text := set_config('app.workspace_id', ws::text, true);
BEGIN
    RETURN QUERY SELECT w.requests_per_hour, l.models, w.needs_verified_email AND NOT EXISTS (SELECT 1 FROM public.members m JOIN public.users u ON u.id = m.user_id
            WHERE m.workspace_id = ws AND m.role = 'owner' AND u.email_verified_at IS NOT NULL)
        FROM public.workspaces w JOIN public.workspace_load l ON l.workspace_id = w.id WHERE w.id = ws;
END $$;
-- +goose StatementEnd

-- claim_key takes an idempotency key for this transaction, if it is free (somebody else's request with it is under way otherwise),
-- and then finds the answer that was stored for it; status is NULL when there is none. The look is a statement of its own: it sees
-- what was committed before the key became free.
-- +goose StatementBegin
CREATE FUNCTION claim_key(ws uuid, on_route text, name text)
RETURNS TABLE (free boolean, body_hash bytea, status integer, headers jsonb, response bytea)
LANGUAGE plpgsql VOLATILE SECURITY INVOKER ROWS 1 SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
BEGIN
    free := pg_try_advisory_xact_lock(hashtextextended(format('idempotency %s %s %s', ws, on_route, name), 0));
    IF free THEN
        SELECT k.body_hash, k.status, k.headers, k.response INTO body_hash, status, headers, response
            FROM public.idempotency_keys k WHERE k.workspace_id = ws AND k.route = on_route AND k.key = name;
    END IF;
    RETURN NEXT;
END $$;
-- +goose StatementEnd

REVOKE EXECUTE ON FUNCTION waiting_reason, line_position, submit_tasks, check_session, check_key, allowance, claim_key FROM PUBLIC;
GRANT EXECUTE ON FUNCTION waiting_reason, line_position, submit_tasks, check_session, check_key, allowance, claim_key TO muster_api;
GRANT EXECUTE ON FUNCTION waiting_reason, line_position, allowance TO muster_system; -- operators' commands

-- +goose Down
DROP FUNCTION claim_key, allowance, check_key, check_session, submit_tasks, line_position, waiting_reason;
