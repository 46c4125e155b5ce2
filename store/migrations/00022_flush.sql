-- A flush of submits writes all its workspaces' rows in the same few statements.
--
-- submit_together (migration 00019) ran submit_tasks for one workspace after the other: a dozen statements each, whose start, row-level
-- security and CHECK constraints (read anew from the catalog by each statement that writes) cost Postgres more than the rows. In company,
-- a submit took 440 µs of Postgres, and now 180 µs at 16 workspaces a flush, 130 µs at 40.
--
-- Deploy story: additive; processes of the version before call the same functions and are answered the same.

-- +goose Up

-- app_together tells whether a workspace is one of app.workspace_ids (with commas): those whose submits share this transaction.
-- submit_together sets it and takes it away. What serves one workspace never comes to ask, as app_workspace() has said yes.
-- As text, because this is asked of each row and an array would be parsed each time.
-- +goose StatementBegin
CREATE FUNCTION app_together(ws uuid) RETURNS boolean LANGUAGE sql STABLE PARALLEL SAFE AS
$$ SELECT strpos(current_setting('app.workspace_ids', true), ws::text) > 0 $$;
-- +goose StatementEnd

CREATE POLICY api_together_read ON workspace_load FOR SELECT TO muster_api USING (app_together(workspace_id));
CREATE POLICY api_together_change ON workspace_load FOR UPDATE TO muster_api USING (app_together(workspace_id)) WITH CHECK (app_together(workspace_id));
CREATE POLICY api_together_read ON tasks FOR SELECT TO muster_api USING (app_together(workspace_id));
CREATE POLICY api_together_submit ON tasks FOR INSERT TO muster_api WITH CHECK (app_together(workspace_id));
CREATE POLICY api_together_read ON leases FOR SELECT TO muster_api USING (app_together(workspace_id));
CREATE POLICY api_together_read ON agents FOR SELECT TO muster_api USING (app_together(workspace_id));
CREATE POLICY api_together_read ON provider_calls FOR SELECT TO muster_api USING (app_together(workspace_id));

-- line_front says whether a task is in line, and why the first is not running, 'in_line' when nothing but other workspaces keeps it: then
-- the workspace is to have a turn. The words and their order are those of store/waiting.go. One row; like line_ahead it becomes a part of
-- the statement that asks.
-- +goose StatementBegin
CREATE FUNCTION line_front(w workspace_load) RETURNS TABLE (is_there boolean, reason text) LANGUAGE sql STABLE AS $$
    SELECT head.timeout_ms IS NOT NULL, CASE
            WHEN w.paused IS NOT NULL THEN 'workspace_paused'
            WHEN greatest(w.quota_ms - u.used + u.overage, 0) + greatest(w.overage_allowance_ms - u.overage, 0) - runs.reserved
                < least(head.timeout_ms, 10000) THEN 'quota_exhausted'
            WHEN w.provider_budget_microusd - u.spent - CASE WHEN head.needs > 0 THEN
                (SELECT coalesce(sum(c.cost_microusd), 0)::bigint FROM public.provider_calls c WHERE c.workspace_id = w.workspace_id AND c.outcome = 'started')
                ELSE 0 END < head.needs THEN 'provider_budget'
            WHEN runs.running >= w.cap THEN 'workspace_cap'
            ELSE 'in_line' END
        FROM (SELECT CASE WHEN p.past THEN 0 ELSE w.used_ms END AS used, CASE WHEN p.past THEN 0 ELSE w.overage_used_ms END AS overage,
            CASE WHEN p.past THEN 0 ELSE w.provider_used_microusd END AS spent
            FROM (SELECT w.period < date_trunc('month', now() AT TIME ZONE 'UTC')::date AS past) p) u
        CROSS JOIN (SELECT count(*) AS running, coalesce(sum(l.reserved_ms), 0)::bigint AS reserved FROM public.leases l WHERE l.workspace_id = w.workspace_id) runs
        LEFT JOIN (SELECT t.timeout_ms, public.line_needs(t.needs_microusd, w.provider_budget_microusd, w.max_task_cost_microusd) AS needs
            FROM public.tasks t WHERE t.workspace_id = w.workspace_id AND t.status = 'queued' AND (t.expires_at IS NULL OR t.expires_at > now())
                AND NOT EXISTS (SELECT 1 FROM public.leases l WHERE l.workspace_id = w.workspace_id AND l.task_id = t.id)
            ORDER BY t.priority DESC, t.id LIMIT 1) head ON true
$$;
-- +goose StatementEnd

-- line_ahead counts, for each priority, the tasks in line that run before the first new one of it; 1001 stands for more than 1000. One row,
-- with an array in the order of the levels.
-- +goose StatementBegin
CREATE FUNCTION line_ahead(w workspace_load, levels bigint[]) RETURNS TABLE (counts json) LANGUAGE sql STABLE AS $$
    SELECT json_agg(CASE
            WHEN w.waiting = 0 THEN 0
            -- All that waits is in line and at least as urgent: it is counted already.
            WHEN line.lowest >= v.level AND NOT line.has_scheduled THEN least(w.waiting, 1001)
            ELSE (SELECT count(*) FROM (SELECT 1 FROM public.tasks t WHERE t.workspace_id = w.workspace_id AND t.status = 'queued' AND t.priority >= v.level
                AND NOT EXISTS (SELECT 1 FROM public.leases l WHERE l.workspace_id = w.workspace_id AND l.task_id = t.id) LIMIT 1001) urgent)
            END ORDER BY v.i)
        FROM unnest(levels) WITH ORDINALITY v (level, i)
        LEFT JOIN (SELECT
            (SELECT t.priority FROM public.tasks t WHERE t.workspace_id = w.workspace_id AND t.status = 'queued' ORDER BY t.priority, t.id DESC LIMIT 1) AS lowest,
            EXISTS (SELECT 1 FROM public.tasks t WHERE t.workspace_id = w.workspace_id AND t.status = 'scheduled') AS has_scheduled) line ON w.waiting > 0
$$;
-- +goose StatementEnd
REVOKE ALL ON FUNCTION line_front, line_ahead FROM PUBLIC;
GRANT EXECUTE ON FUNCTION line_front, line_ahead TO muster_api;
GRANT EXECUTE ON FUNCTION line_front TO muster_system; -- operators' commands

-- waiting_reason and submit_tasks are those of migration 00021, with these.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION waiting_reason(ws uuid) RETURNS text LANGUAGE plpgsql STABLE SECURITY INVOKER
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off AS $$
BEGIN
    RETURN (SELECT f.reason FROM public.workspace_load w CROSS JOIN LATERAL public.line_front(w) f WHERE w.workspace_id = ws);
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
    load public.workspace_load; -- the load row, as it is before the lock, then under it
    unknown text[];
    refused text;
    created timestamptz := now();
    reason text;
    ahead json;
    issued uuid; -- turn
BEGIN
    IF own_agents <> '{}' THEN
        unknown := ARRAY(SELECT a.name FROM unnest(own_agents) a (name) WHERE NOT EXISTS
            (SELECT 1 FROM public.agents g WHERE g.workspace_id = ws AND g.name = a.name));
        IF unknown <> '{}' THEN
            RETURN json_build_object('refused', 'agents', 'unknown', unknown);
        END IF;
    END IF;
    SELECT w.* INTO load FROM public.workspace_load w WHERE w.workspace_id = ws;
    refused := CASE WHEN NOT FOUND THEN 'absent' WHEN load.leaving THEN 'leaving' WHEN load.waiting + n > load.max_waiting THEN 'backlog' END;
    IF refused IS NOT NULL THEN
        RETURN json_build_object('refused', refused);
    END IF;
    ahead := (SELECT a.counts FROM public.line_ahead(load, levels) a);

    INSERT INTO public.tasks (workspace_id, id, status, agent, model, prompt, input, metadata, priority, timeout_ms, max_attempts,
            first_max_attempts, run_at, expires_at, api_key_id, created_by_user)
        SELECT ws, v.id, CASE WHEN v.run_at > created THEN 'scheduled' ELSE 'queued' END, v.agent, v.model, v.prompt, v.input, v.metadata,
            v.priority, v.timeout_ms, v.attempts, v.attempts, v.run_at, v.expires_at, v.api_key, v.created_by
        FROM unnest(ids, agents, models, prompts, inputs, metadata, priorities, timeouts, attempts, run_ats, expires, api_keys, users)
            v (id, agent, model, prompt, input, metadata, priority, timeout_ms, attempts, run_at, expires_at, api_key, created_by);

    UPDATE public.workspace_load w SET waiting = w.waiting + n WHERE w.workspace_id = ws AND w.waiting + n <= w.max_waiting RETURNING w.* INTO load;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the backlog filled up, or the workspace left, meanwhile' USING ERRCODE = 'MU001';
    END IF;

    reason := (SELECT f.reason FROM public.line_front(load) f WHERE f.is_there);
    IF load.turn IS NULL AND reason = 'in_line' THEN
        issued := gen_random_uuid();
        UPDATE public.workspace_load w SET turn = issued, turn_at = created WHERE w.workspace_id = ws;
    END IF;
    RETURN json_build_object('created', created, 'reason', reason, 'ahead', ahead, 'turn', issued, 'queue', load.queue);
END $$;
-- +goose StatementEnd

-- submit_together submits parts, one of each workspace, as one transaction.
--
-- In:   workspaces   each once; parts, own_counts, level_counts   of each workspace, how many elements it has of ids to users, of
--       own_agents, and of levels, which are submit_tasks's arguments one workspace behind the other; JSON is text
-- Out:  an array with an object for each workspace: what submit_tasks answers, or refused 'alone': nothing of it was stored and it is to
--       be submitted by itself, because somebody holds its load row, or it met an error.
--
-- The parts are entered together: locked, looked at, inserted and turned in one statement each, whose rules are submit_tasks's; each is
-- under locks, so that it sees what the last holder did. When that meets an error it is rolled back, and they are entered one by one,
-- each by submit_tasks in a savepoint of its own, under its own workspace's scope alone; so are one or two, which that costs less. So no
-- part can harm another. A load row that somebody holds is left out and not waited for:
-- this takes part in no deadlock over load rows; anything else that is held is waited for 100 ms at most. With fewer than 64 parts
-- their savepoints stay in the part of a snapshot that is cheap to look at.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION submit_together(workspaces uuid[], parts bigint[], own_counts bigint[], level_counts bigint[], ids uuid[], agents text[],
    models text[], prompts text[], inputs text[], metadata text[], priorities bigint[], timeouts bigint[], attempts bigint[],
    run_ats timestamptz[], expires timestamptz[], api_keys uuid[], users uuid[], own_agents text[], levels bigint[]) RETURNS json
LANGUAGE plpgsql VOLATILE SECURITY INVOKER SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET lock_timeout = '100ms' AS $$
#variable_conflict use_column
DECLARE
    created timestamptz := now();
    part_of bigint[]; -- of each task
    held uuid[];      -- the load rows that are locked
    refused text[];   -- of each part, and so below
    ahead json[];
    answers json[];
    answer json;
    ws uuid;
    a integer; z integer := 0; -- of ids to users, this part's first and last
    b integer; y integer := 0; -- of own_agents
    c integer; x integer := 0; -- of levels
BEGIN
    IF cardinality(workspaces) > 2 THEN
        BEGIN
            PERFORM set_config('app.workspace_ids', array_to_string(workspaces, ','), true);
            part_of := ARRAY(SELECT p.i FROM unnest(parts) WITH ORDINALITY p (n, i), generate_series(1, p.n) ORDER BY p.i);
            held := ARRAY(SELECT w.workspace_id FROM public.workspace_load w WHERE w.workspace_id = ANY (workspaces) FOR NO KEY UPDATE SKIP LOCKED);

            SELECT array_agg(p.refused ORDER BY p.i),
                    array_agg(CASE WHEN p.refused IS NULL THEN
                        (SELECT a.counts FROM public.line_ahead(p.load, levels[p.last_level - p.n_levels + 1 : p.last_level]) a) END ORDER BY p.i)
                INTO refused, ahead
                FROM (SELECT v.*, w AS load, CASE
                        WHEN w.leaving IS NULL OR v.n_own > 0 AND EXISTS (SELECT 1 FROM unnest(own_agents[v.last_own - v.n_own + 1 : v.last_own]) a (name)
                            WHERE NOT EXISTS (SELECT 1 FROM public.agents g WHERE g.workspace_id = v.ws AND g.name = a.name)) THEN 'alone'
                        WHEN w.leaving THEN 'leaving'
                        WHEN w.waiting + v.n > w.max_waiting THEN 'backlog' END AS refused
                    FROM (SELECT u.*, sum(u.n_own) OVER (ORDER BY u.i)::integer AS last_own, sum(u.n_levels) OVER (ORDER BY u.i)::integer AS last_level
                        FROM unnest(workspaces, parts, own_counts, level_counts) WITH ORDINALITY u (ws, n, n_own, n_levels, i)) v
                    LEFT JOIN public.workspace_load w ON w.workspace_id = v.ws AND v.ws = ANY (held)) p;

            INSERT INTO public.tasks (workspace_id, id, status, agent, model, prompt, input, metadata, priority, timeout_ms, max_attempts,
                    first_max_attempts, run_at, expires_at, api_key_id, created_by_user)
                SELECT workspaces[v.part], v.id, CASE WHEN v.run_at > created THEN 'scheduled' ELSE 'queued' END, v.agent, v.model, v.prompt, v.input::jsonb,
                    v.metadata::jsonb, v.priority, v.timeout_ms, v.attempts, v.attempts, v.run_at, v.expires_at, v.api_key, v.created_by
                FROM unnest(part_of, ids, agents, models, prompts, inputs, metadata, priorities, timeouts, attempts, run_ats, expires, api_keys, users)
                    v (part, id, agent, model, prompt, input, metadata, priority, timeout_ms, attempts, run_at, expires_at, api_key, created_by)
                WHERE refused[v.part] IS NULL;

            -- OFFSET 0: the reason is found out once and used twice.
            WITH entered AS (
                UPDATE public.workspace_load w SET waiting = w.waiting + d.n, turn = coalesce(d.issued, w.turn),
                        turn_at = CASE WHEN d.issued IS NULL THEN w.turn_at ELSE created END
                    FROM (SELECT r.*, CASE WHEN r.turn IS NULL AND r.reason = 'in_line' THEN gen_random_uuid() END AS issued
                        FROM (SELECT p.i, p.ws, p.n, w.turn, CASE WHEN f.is_there THEN f.reason END AS reason
                            FROM unnest(workspaces, parts, refused) WITH ORDINALITY p (ws, n, refused, i)
                            JOIN public.workspace_load w ON w.workspace_id = p.ws
                            CROSS JOIN LATERAL public.line_front(w) f
                            WHERE p.refused IS NULL OFFSET 0) r OFFSET 0) d
                    WHERE w.workspace_id = d.ws
                    RETURNING d.i, d.reason, d.issued, w.queue)
                SELECT array_agg(CASE WHEN e.i IS NULL THEN json_build_object('refused', refused[p.i]) ELSE json_build_object('created', created,
                        'reason', e.reason, 'ahead', ahead[p.i], 'turn', e.issued, 'queue', e.queue) END ORDER BY p.i)
                    INTO answers FROM unnest(workspaces) WITH ORDINALITY p (ws, i) LEFT JOIN entered e ON e.i = p.i;
            PERFORM set_config('app.workspace_ids', '', true);
            RETURN array_to_json(answers);
        EXCEPTION WHEN OTHERS THEN
            answers := NULL; -- somebody's part is at fault: one by one, then
        END;
    END IF;

    FOR i IN 1 .. cardinality(workspaces) LOOP
        ws := workspaces[i];
        a := z + 1; z := z + parts[i];
        b := y + 1; y := y + own_counts[i];
        c := x + 1; x := x + level_counts[i];
        answer := json_build_object('refused', 'alone');
        BEGIN
            PERFORM set_config('app.workspace_id', ws::text, true);
            PERFORM FROM public.workspace_load w WHERE w.workspace_id = ws FOR NO KEY UPDATE SKIP LOCKED;
            IF FOUND THEN
                answer := public.submit_tasks(ws, ids[a:z], agents[a:z], models[a:z], prompts[a:z], inputs[a:z]::jsonb[], metadata[a:z]::jsonb[],
                    priorities[a:z], timeouts[a:z], attempts[a:z], run_ats[a:z], expires[a:z], api_keys[a:z], users[a:z],
                    own_agents[b:y], levels[c:x]);
            END IF;
        EXCEPTION WHEN OTHERS THEN
            NULL; -- by itself it meets the same error, and its sender is told
        END;
        answers := answers || answer;
    END LOOP;
    RETURN array_to_json(answers);
END $$;
-- +goose StatementEnd

-- +goose Down
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION submit_together(workspaces uuid[], parts bigint[], own_counts bigint[], level_counts bigint[], ids uuid[], agents text[],
    models text[], prompts text[], inputs text[], metadata text[], priorities bigint[], timeouts bigint[], attempts bigint[],
    run_ats timestamptz[], expires timestamptz[], api_keys uuid[], users uuid[], own_agents text[], levels bigint[]) RETURNS json
LANGUAGE plpgsql VOLATILE SECURITY INVOKER SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET lock_timeout = '100ms' AS $$
DECLARE
    answers json[];
    answer json;
    ws uuid;
    a integer; z integer := 0; -- of ids to users, this part's first and last
    b integer; y integer := 0; -- of own_agents
    c integer; x integer := 0; -- of levels
BEGIN
    FOR i IN 1 .. cardinality(workspaces) LOOP
        ws := workspaces[i];
        a := z + 1; z := z + parts[i];
        b := y + 1; y := y + own_counts[i];
        c := x + 1; x := x + level_counts[i];
        answer := json_build_object('refused', 'alone');
        BEGIN
            PERFORM set_config('app.workspace_id', ws::text, true);
            PERFORM FROM public.workspace_load w WHERE w.workspace_id = ws FOR NO KEY UPDATE SKIP LOCKED;
            IF FOUND THEN
                answer := public.submit_tasks(ws, ids[a:z], agents[a:z], models[a:z], prompts[a:z], inputs[a:z]::jsonb[], metadata[a:z]::jsonb[],
                    priorities[a:z], timeouts[a:z], attempts[a:z], run_ats[a:z], expires[a:z], api_keys[a:z], users[a:z],
                    own_agents[b:y], levels[c:x]);
            END IF;
        EXCEPTION WHEN OTHERS THEN
            NULL; -- by itself it meets the same error, and its sender is told
        END;
        answers := answers || answer;
    END LOOP;
    RETURN array_to_json(answers);
END $$;
-- +goose StatementEnd
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
DROP FUNCTION line_front, line_ahead;
DROP POLICY api_together_read ON workspace_load;
DROP POLICY api_together_change ON workspace_load;
DROP POLICY api_together_read ON tasks;
DROP POLICY api_together_submit ON tasks;
DROP POLICY api_together_read ON leases;
DROP POLICY api_together_read ON agents;
DROP POLICY api_together_read ON provider_calls;
DROP FUNCTION app_together;
