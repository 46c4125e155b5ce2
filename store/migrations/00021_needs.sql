-- A task whose next call can begin in no month waits no more: it is tried, and that call fails it.
--
-- A task whose call did not fit the provider budget waits until as much is left. Under a smaller plan, or a limit that an operator
-- has lowered, that could be more than any month brings, and all that stood behind it waited with it, for ever.
--
-- Deploy story: additive. While workers of the version before run, they leave such a task where it is, and the turns that this
-- version's functions and schedulers issue for it find nothing.

-- +goose Up

-- line_needs is what must be left of the provider budget before a task is tried whose last refused call needs so much: nothing
-- where such a call can begin in no month (load.hopeless, store/budget.go).
-- +goose StatementBegin
CREATE FUNCTION line_needs(needs bigint, budget bigint, task_cost bigint) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN budget > 0 AND needs > least(budget, task_cost) THEN 0 ELSE needs END
$$;
-- +goose StatementEnd
REVOKE ALL ON FUNCTION line_needs FROM PUBLIC;
GRANT EXECUTE ON FUNCTION line_needs TO muster_api, muster_system;

-- waiting_reason and submit_tasks are those of migration 00015, with line_needs.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION waiting_reason(ws uuid) RETURNS text LANGUAGE plpgsql STABLE SECURITY INVOKER
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
BEGIN
    RETURN (SELECT CASE
            WHEN w.paused IS NOT NULL THEN 'workspace_paused'
            WHEN greatest(w.quota_ms - u.used + u.overage, 0) + greatest(w.overage_allowance_ms - u.overage, 0) - r.reserved
                < least(head.timeout_ms, 10000) THEN 'quota_exhausted'
            WHEN w.provider_budget_microusd - u.spent - CASE WHEN head.needs > 0 THEN
                (SELECT coalesce(sum(c.cost_microusd), 0)::bigint FROM public.provider_calls c WHERE c.workspace_id = ws AND c.outcome = 'started')
                ELSE 0 END < head.needs THEN 'provider_budget'
            WHEN r.running >= w.cap THEN 'workspace_cap'
            ELSE 'in_line' END
        FROM public.workspace_load w
        CROSS JOIN LATERAL (SELECT CASE WHEN p.past THEN 0 ELSE w.used_ms END AS used, CASE WHEN p.past THEN 0 ELSE w.overage_used_ms END AS overage,
            CASE WHEN p.past THEN 0 ELSE w.provider_used_microusd END AS spent
            FROM (SELECT w.period < date_trunc('month', now() AT TIME ZONE 'UTC')::date AS past) p) u
        CROSS JOIN LATERAL (SELECT count(*) AS running, coalesce(sum(l.reserved_ms), 0)::bigint AS reserved FROM public.leases l WHERE l.workspace_id = ws) r
        LEFT JOIN LATERAL (SELECT t.timeout_ms, public.line_needs(t.needs_microusd, w.provider_budget_microusd, w.max_task_cost_microusd) AS needs
            FROM public.tasks t WHERE t.workspace_id = ws AND t.status = 'queued'
                AND (t.expires_at IS NULL OR t.expires_at > now()) AND NOT EXISTS (SELECT 1 FROM public.leases l WHERE l.workspace_id = ws AND l.task_id = t.id)
            ORDER BY t.priority DESC, t.id LIMIT 1) head ON true
        WHERE w.workspace_id = ws);
END $$;
-- +goose StatementEnd

-- +goose StatementBegin
CREATE OR REPLACE FUNCTION submit_tasks(ws uuid, ids uuid[], agents text[], models text[], prompts text[], inputs jsonb[], metadata jsonb[],
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
            w.provider_budget_microusd, w.provider_used_microusd, w.max_task_cost_microusd INTO load;
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
            (SELECT ARRAY[t.timeout_ms, public.line_needs(t.needs_microusd, load.provider_budget_microusd, load.max_task_cost_microusd)]
                FROM public.tasks t WHERE t.workspace_id = ws AND t.status = 'queued'
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

-- +goose Down
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION waiting_reason(ws uuid) RETURNS text LANGUAGE plpgsql STABLE SECURITY INVOKER
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

-- +goose StatementBegin
CREATE OR REPLACE FUNCTION submit_tasks(ws uuid, ids uuid[], agents text[], models text[], prompts text[], inputs jsonb[], metadata jsonb[],
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

DROP FUNCTION line_needs;
