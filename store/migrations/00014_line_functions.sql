-- The statements of every claim and finish as functions, so that a connection plans each of them once.
--
-- A worker's statements go out unnamed, because behind PgBouncer in transaction mode nobody knows which prepared statements
-- a connection has. So each was parsed, rewritten and planned anew in every shared transaction, which cost Postgres more
-- than half of the time that it spent on them. What stands in a PL/pgSQL function is planned at its first call on a connection.
--
-- Invokers' rights, so row-level security and grants hold inside as outside. VOLATILE, so each statement inside has a
-- snapshot of its own under READ COMMITTED, as it had alone: line_lock (00017), then line_look in a later call, loses no wake-up.
-- Names are qualified and the callers' search_path is not asked.
--
-- Deploy story: additive; older processes do not call them. Migrate before this version's processes start.

-- +goose Up
-- +goose StatementBegin
-- Writes what the line changes in load rows.
CREATE FUNCTION line_save(workspaces uuid[], waiting bigint[], turns uuid[], turns_at timestamptz[], periods date[], used_ms bigint[],
    overage_used_ms bigint[], provider_used_microusd bigint[]) RETURNS void
LANGUAGE plpgsql VOLATILE AS
$$
#variable_conflict use_column
BEGIN
    UPDATE public.workspace_load w SET waiting = v.waiting, turn = v.turn, turn_at = v.turn_at, period = v.period, used_ms = v.used_ms,
            overage_used_ms = v.overage_used_ms, provider_used_microusd = v.provider_used_microusd
        FROM unnest($1, $2, $3, $4, $5, $6, $7, $8) AS v (id, waiting, turn, turn_at, period, used_ms, overage_used_ms, provider_used_microusd)
        WHERE w.workspace_id = v.id;
END
$$;
-- +goose StatementEnd
-- +goose StatementBegin
-- For each workspace what runs and what that reserves, by its leases, and its best tasks that could run, so many at
-- most, best first (index tasks_line, in order); one row with a null task where there is none.
CREATE FUNCTION line_look(workspaces uuid[], most bigint[]) RETURNS TABLE (workspace_id uuid, running bigint, reserved bigint, id uuid,
    timeout_ms integer, attempt integer, needs_microusd bigint)
LANGUAGE plpgsql VOLATILE AS
$$
#variable_conflict use_column
BEGIN
    RETURN QUERY SELECT w.id, r.running, r.reserved, t.id, t.timeout_ms, t.attempt, t.needs_microusd
        FROM unnest(workspaces, most) w (id, most)
        CROSS JOIN LATERAL (
            SELECT count(*) AS running, coalesce(sum(l.reserved_ms), 0)::bigint AS reserved FROM public.leases l WHERE l.workspace_id = w.id) r
        LEFT JOIN LATERAL (
            SELECT t.id, t.timeout_ms, t.attempt, t.priority, t.needs_microusd FROM public.tasks t WHERE t.workspace_id = w.id AND t.status = 'queued'
                AND (t.expires_at IS NULL OR t.expires_at > now()) -- see store/expire.go
                AND NOT EXISTS (SELECT 1 FROM public.leases l WHERE l.workspace_id = t.workspace_id AND l.task_id = t.id)
            ORDER BY t.priority DESC, t.id LIMIT w.most) t ON true
        ORDER BY w.id, t.priority DESC, t.id;
END
$$;
-- +goose StatementEnd
-- +goose StatementBegin
-- Ends leases and returns those that there were, with what the decision needs of their tasks (store/finish.go).
CREATE FUNCTION line_end(workspaces uuid[], tasks uuid[], leases uuid[]) RETURNS TABLE (workspace_id uuid, task_id uuid, id uuid, worker_id uuid,
    attempt integer, reserved_ms integer, claimed_at timestamptz, spent integer, max_attempts integer, crashes integer, asked_to_stop boolean,
    agent text, model text, api_key_id uuid)
LANGUAGE plpgsql VOLATILE AS
$$
#variable_conflict use_column
BEGIN
    RETURN QUERY DELETE FROM public.leases l
        USING unnest($1, $2, $3) AS v (workspace_id, task_id, id), public.tasks t
        WHERE l.workspace_id = v.workspace_id AND l.task_id = v.task_id AND l.id = v.id
            AND t.workspace_id = v.workspace_id AND t.id = v.task_id
        RETURNING l.workspace_id, l.task_id, l.id, l.worker_id, l.attempt, l.reserved_ms, l.claimed_at, t.attempt,
            t.max_attempts, t.crashes, t.cancel_requested_at IS NOT NULL, t.agent, t.model, t.api_key_id;
END
$$;
-- +goose StatementEnd
-- +goose StatementBegin
-- Gives leases to workers that are not dead, saves the load rows as line_save does, and returns the tasks that were won.
CREATE FUNCTION line_lease(workspaces uuid[], tasks uuid[], leases uuid[], workers uuid[], attempts bigint[], reserved bigint[],
    loads uuid[], waiting bigint[], turns uuid[], turns_at timestamptz[], periods date[], used_ms bigint[],
    overage_used_ms bigint[], provider_used_microusd bigint[])
    RETURNS TABLE (workspace_id uuid, id uuid, lease uuid, attempt integer, crashes integer, agent text, model text, prompt text, input jsonb,
        timeout_ms integer, reserved_ms integer)
LANGUAGE plpgsql VOLATILE AS
$$
#variable_conflict use_column
BEGIN
    PERFORM public.line_save($7, $8, $9, $10, $11, $12, $13, $14);
    RETURN QUERY WITH l AS (
            INSERT INTO public.leases (workspace_id, task_id, id, worker_id, attempt, reserved_ms)
            SELECT v.workspace_id, v.task_id, v.id, v.worker_id, v.attempt, v.reserved_ms FROM unnest($1, $2, $3, $4, $5, $6)
                AS v (workspace_id, task_id, id, worker_id, attempt, reserved_ms)
            WHERE EXISTS (SELECT 1 FROM public.workers w WHERE w.id = v.worker_id AND w.dead_at IS NULL)
            RETURNING workspace_id, task_id, id, attempt, reserved_ms)
        SELECT t.workspace_id, t.id, l.id, l.attempt, t.crashes, t.agent, t.model, t.prompt, t.input, t.timeout_ms, l.reserved_ms
            FROM l JOIN public.tasks t ON t.workspace_id = l.workspace_id AND t.id = l.task_id;
END
$$;
-- +goose StatementEnd
-- +goose StatementBegin
-- Books attempts that have ended: their tasks' new states and the attempts, by the first 23 arrays, and metering rows, by the
-- others (store/finish.go, store/metering.go).
CREATE FUNCTION line_book(workspaces uuid[], tasks uuid[], leases uuid[], workers uuid[], statuses text[], spent bigint[], crashes bigint[],
    delays_ms bigint[], started timestamptz[], results jsonb[], task_errors jsonb[], needs bigint[], attempts bigint[], outcomes text[],
    billable boolean[], errors jsonb[], agent_ms bigint[], calls bigint[], cost bigint[], input bigint[], output bigint[],
    cache_read bigint[], cache_write bigint[],
    m_workspaces uuid[], m_attempts uuid[], m_tasks uuid[], m_meters text[], m_quantities bigint[], m_billable boolean[], m_agents text[],
    m_models text[], m_keys uuid[], m_periods date[]) RETURNS void
LANGUAGE plpgsql VOLATILE AS
$$
#variable_conflict use_column
BEGIN
    UPDATE public.tasks t SET status = v.status, attempt = v.spent, crashes = v.crashes,
            run_at = CASE WHEN v.status = 'scheduled' THEN now() + v.delay_ms * interval '1 millisecond' ELSE t.run_at END,
            started_at = coalesce(t.started_at, v.started_at),
            finished_at = CASE WHEN v.status IN ('succeeded', 'failed', 'canceled') THEN now() END,
            result = v.result, error = v.task_error, agent_ms = t.agent_ms + v.agent_ms, provider_calls = t.provider_calls + v.calls,
            input_tokens = t.input_tokens + v.input, output_tokens = t.output_tokens + v.output, cost_microusd = t.cost_microusd + v.cost,
            needs_microusd = v.needs
        FROM unnest($1, $2, $5, $6, $7, $8, $9, $10, $11, $12, $17, $18, $19, $20, $21)
            AS v (workspace_id, task_id, status, spent, crashes, delay_ms, started_at, result, task_error, needs, agent_ms, calls, cost, input, output)
        WHERE t.workspace_id = v.workspace_id AND t.id = v.task_id;
    INSERT INTO public.attempts (workspace_id, id, task_id, worker_id, attempt, outcome, billable, error, started_at,
            agent_ms, provider_calls, cost_microusd, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens)
        SELECT * FROM unnest($1, $3, $2, $4, $13, $14, $15, $16, $9, $17, $18, $19, $20, $21, $22, $23);
    INSERT INTO public.metering_rows (workspace_id, attempt_id, task_id, meter, quantity, billable, agent, model, api_key_id, day)
        SELECT v.workspace_id, v.attempt_id, v.task_id, v.meter, v.quantity, v.billable, v.agent, v.model, v.api_key_id,
            greatest((now() AT TIME ZONE 'UTC')::date, v.period)
        FROM unnest($24, $25, $26, $27, $28, $29, $30, $31, $32, $33)
            AS v (workspace_id, attempt_id, task_id, meter, quantity, billable, agent, model, api_key_id, period);
END
$$;
-- +goose StatementEnd
REVOKE ALL ON FUNCTION line_save, line_look, line_end, line_lease, line_book FROM PUBLIC;
GRANT EXECUTE ON FUNCTION line_save, line_look TO muster_api, muster_worker, muster_system;
GRANT EXECUTE ON FUNCTION line_end, line_book TO muster_worker, muster_system;
GRANT EXECUTE ON FUNCTION line_lease TO muster_worker;

-- +goose Down
DROP FUNCTION line_book, line_lease, line_end, line_look, line_save;
