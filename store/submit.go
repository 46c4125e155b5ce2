package store

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/lib/pq"
)

// Submit accepts tasks (1..1000): they are durable when the transaction commits, all or none. It refuses with
// BacklogFull when the workspace would have more tasks waiting than its plan allows; a used-up quota never refuses,
// the tasks wait.
func (w *Work) Submit(ctx context.Context, tasks []NewTask) ([]Task, error) {
	n := len(tasks)
	ids, agents, models, prompts := make([]uuid.UUID, n), make([]string, n), make([]string, n), make([]string, n)
	inputs, metadata := make([]string, n), make([]string, n)
	runAts, expireAts := make([]*string, n), make([]*string, n)
	keys, users := make([]*string, n), make([]*string, n)
	priorities, timeouts, attempts := make([]int64, n), make([]int64, n), make([]int64, n)
	for i, t := range tasks {
		ids[i], agents[i], models[i], prompts[i] = NewID(), t.Agent, t.Model, t.Prompt
		inputs[i], metadata[i] = objectOr(t.Input), objectOr(t.Metadata)
		priorities[i], timeouts[i], attempts[i] = int64(t.Priority), int64(t.TimeoutMS), int64(t.MaxAttempts)
		runAts[i], expireAts[i] = textOfTime(t.RunAt), textOfTime(t.ExpiresAt)
		keys[i], users[i] = textOf(t.APIKeyID), textOf(t.UserID)
	}
	var created []Task
	// A run_at that has passed is now. The insert comes before the lock, which keeps the lock short; the lock's
	// statement comes before settle looks for work, so no wake-up is lost.
	err := w.tx.SelectContext(ctx, &created, `INSERT INTO tasks AS t (workspace_id, id, status, agent, model, prompt, input, metadata,
			priority, timeout_ms, max_attempts, first_max_attempts, run_at, expires_at, api_key_id, created_by_user)
		SELECT $1, v.id, CASE WHEN v.run_at > now() THEN 'scheduled' ELSE 'queued' END, v.agent, v.model, v.prompt,
			v.input, v.metadata, v.priority, v.timeout_ms, v.max_attempts, v.max_attempts, v.run_at, v.expires_at, v.api_key_id, v.created_by_user
		FROM unnest($2::uuid[], $3::text[], $4::text[], $5::text[], $6::jsonb[], $7::jsonb[], $8::smallint[], $9::int[], $10::int[],
			$11::timestamptz[], $12::timestamptz[], $13::uuid[], $14::uuid[])
			AS v (id, agent, model, prompt, input, metadata, priority, timeout_ms, max_attempts, run_at, expires_at, api_key_id, created_by_user)
		RETURNING t.id, t.status, t.agent, t.model, t.prompt, t.input, t.metadata, t.priority, t.timeout_ms, t.max_attempts,
			t.run_at, t.expires_at, t.created_at, t.api_key_id, t.created_by_user`,
		w.Workspace, pq.Array(ids), pq.Array(agents), pq.Array(models), pq.Array(prompts), pq.Array(inputs), pq.Array(metadata),
		pq.Array(priorities), pq.Array(timeouts), pq.Array(attempts), pq.Array(runAts), pq.Array(expireAts), pq.Array(keys), pq.Array(users))
	if err != nil {
		return nil, fmt.Errorf("insert tasks: %w", err)
	}
	slices.SortFunc(created, func(a, b Task) int { return bytes.Compare(a.ID[:], b.ID[:]) }) // the order they were sent in
	runnable := false
	for _, t := range created {
		runnable = runnable || t.Status == StatusQueued
	}
	return created, w.join(ctx, n, runnable)
}

// join adds n tasks to those waiting and puts the workspace in line when it may run one.
func (w *Work) join(ctx context.Context, n int, runnable bool) error {
	var l load
	err := w.tx.GetContext(ctx, &l, `UPDATE workspace_load w SET waiting = waiting + $2
		WHERE workspace_id = $1 AND waiting + $2 <= max_waiting RETURNING `+loadColumns, w.Workspace, n)
	if err != nil {
		if errors.Is(err, sql.ErrNoRows) {
			return w.notJoined(ctx)
		}
		return fmt.Errorf("join the line: %w", err)
	}
	if !runnable || l.Turn != nil || l.Paused != nil {
		return nil
	}
	return w.settle(ctx, &l)
}

// notJoined says why tasks may not join the line. A workspace that is leaving lets the API's role change nothing (see
// migration 00006).
func (w *Work) notJoined(ctx context.Context) error {
	var leaving bool
	if err := w.tx.GetContext(ctx, &leaving, `SELECT leaving FROM workspace_load WHERE workspace_id = $1`, w.Workspace); err != nil {
		return noRows(fmt.Errorf("read load row: %w", err), "workspace")
	}
	if leaving {
		return errGone
	}
	return errBacklogFull()
}

func errBacklogFull() error {
	return refuse(BacklogFull, "the workspace has as many tasks waiting as its plan allows")
}

// textOf writes an id for an array parameter, nil for none.
func textOf(id uuid.NullUUID) *string {
	if !id.Valid {
		return nil
	}
	text := id.UUID.String()
	return &text
}

// textOfTime writes a time for an array parameter, nil for none.
func textOfTime(at *time.Time) *string {
	if at == nil {
		return nil
	}
	text := at.UTC().Format(time.RFC3339Nano)
	return &text
}

func objectOr(raw json.RawMessage) string {
	if len(raw) == 0 {
		return "{}"
	}
	return string(raw)
}

// settle settles a load row that this transaction has locked and keeps the turns for after the commit.
func (w *Work) settle(ctx context.Context, l *load) error {
	turns, err := settle(ctx, w.tx, l)
	w.turns = append(w.turns, turns...)
	return err
}
