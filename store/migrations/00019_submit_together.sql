-- Submits that arrive together share one transaction.
--
-- Each had a round trip, a transaction and a flush of the log of its own, and one of a workspace waited for the commit of the one before
-- it. submit_together accepts those of many workspaces in one call, each workspace's by submit_tasks (migration 00015), whose every
-- rule holds: the policies see one workspace at a time, because each part sets the scope before it touches a row and the next
-- part sets its own.
--
-- Deploy story: additive. Processes of the version before know nothing of it.

-- +goose Up

-- submit_together submits parts, one of each workspace, as one transaction.
--
-- In:   workspaces   each once; parts, own_counts, level_counts   of each workspace, how many elements it has of ids to users, of
--       own_agents, and of levels, which are submit_tasks's arguments one workspace behind the other; JSON is text, so that what
--       jsonb refuses fails within its part
-- Out:  an array with an object for each workspace: what submit_tasks answers, or refused 'alone': nothing of it was stored and it is to
--       be submitted by itself, because somebody holds its load row, or it met an error.
--
-- No part can harm another. A load row that somebody holds is left out and not waited for, so this takes part in no deadlock over load
-- rows; anything else that is held is waited for 100 ms at most. What fails is rolled back to its own savepoint. With fewer than 64
-- parts their savepoints stay in the part of a snapshot that is cheap to look at.
-- +goose StatementBegin
CREATE FUNCTION submit_together(workspaces uuid[], parts bigint[], own_counts bigint[], level_counts bigint[], ids uuid[], agents text[],
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

REVOKE EXECUTE ON FUNCTION submit_together FROM PUBLIC;
GRANT EXECUTE ON FUNCTION submit_together TO muster_api;

-- +goose Down
DROP FUNCTION submit_together;
