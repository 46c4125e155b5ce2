package store

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// A submit is a call of the function submit_tasks (migrations 00015 and 00022), which inserts the tasks, joins the line under the
// load row's lock, issues the turn that is due and says what the tasks wait for. Small submits that arrive together share
// one transaction (submit_together.go), a large one has a round trip and a transaction of its own; with an idempotency key
// it is a part of Work's.

// UnknownAgents refuses a submit whose tasks name agents that the workspace does not have.
type UnknownAgents []string

func (u UnknownAgents) Error() string { return "no agent is called " + strings.Join(u, ", ") }

// Submit accepts tasks (1..1000): they are durable when it returns, all or none. It refuses with BacklogFull when the
// workspace would have more tasks waiting than its plan allows, and with UnknownAgents; a used-up quota never refuses, the
// tasks wait. The views are in the order of the tasks, as they are at this moment; the turns go to Redis.
//
// When ctx ends before the submit has begun, nothing has happened; later it is not interrupted, and the answer is its own.
func (a *API) Submit(ctx context.Context, ws uuid.UUID, tasks []NewTask) ([]TaskView, []Turn, error) {
	if isSmall(tasks) {
		return a.submits.pass(ctx, ws, tasks)
	}
	return a.submitAlone(ctx, ws, newIDs(len(tasks)), tasks)
}

// submitAlone submits in a transaction of its own, which waits for the load row if somebody holds it. Tried again it is
// recognised: database/sql sends a statement anew when its connection ends, though it may have been committed.
func (a *API) submitAlone(ctx context.Context, ws uuid.UUID, ids []uuid.UUID, tasks []NewTask) (views []TaskView, turns []Turn, err error) {
	for try := 0; ; try++ {
		views, turns, err = submit(ctx, a.db, ws, ids, tasks)
		if violates(err, "tasks_pkey") {
			return a.committed(ctx, ws, ids)
		}
		if err == nil || try == 2 || !isConcurrency(err) {
			return views, turns, err
		}
	}
}

// committed reads tasks that had been submitted and only the answer got lost. The turn may be another's by now, or in line
// already: enqueueing it a second time does no harm.
func (a *API) committed(ctx context.Context, ws uuid.UUID, ids []uuid.UUID) (views []TaskView, turns []Turn, err error) {
	err = a.inWorkspace(ctx, ws, func(tx *sqlx.Tx) error {
		var rows []waitingRow
		if err := tx.SelectContext(ctx, &rows, `SELECT `+taskColumns+`, `+waitingColumns+` FROM `+taskTables+`
			WHERE t.workspace_id = $1 AND t.id = ANY($2) ORDER BY t.id`, ws, uuids(ids)); err != nil {
			return fmt.Errorf("read submitted tasks: %w", err)
		}
		if len(rows) != len(ids) {
			return fmt.Errorf("read submitted tasks: %d of %d are there", len(rows), len(ids))
		}
		views = make([]TaskView, len(rows))
		for i := range rows {
			views[i] = rows[i].view()
		}
		var out struct {
			Turn  uuid.NullUUID `db:"turn"`
			Queue string        `db:"queue"`
			At    *time.Time    `db:"turn_at"`
		}
		if err := tx.GetContext(ctx, &out, `SELECT turn, queue, turn_at FROM workspace_load WHERE workspace_id = $1`, ws); err != nil {
			return fmt.Errorf("read turn: %w", err)
		}
		turns = nil
		if out.Turn.Valid {
			turns = []Turn{{Workspace: ws, ID: out.Turn.UUID, Queue: out.Queue, IssuedAt: *out.At}}
		}
		return nil
	})
	return views, turns, err
}

// Submit is API.Submit in w's transaction.
func (w *Work) Submit(ctx context.Context, tasks []NewTask) ([]TaskView, error) {
	views, turns, err := submit(ctx, w.tx, w.Workspace, newIDs(len(tasks)), tasks)
	w.turns = append(w.turns, turns...)
	return views, err
}

// submitted is what submit_tasks answers.
type submitted struct {
	Refused string        `json:"refused"`
	Unknown []string      `json:"unknown"`
	Created time.Time     `json:"created"`
	Reason  string        `json:"reason"` // empty when none is in line
	Ahead   []int         `json:"ahead"`
	Turn    uuid.NullUUID `json:"turn"`
	Queue   string        `json:"queue"`
}

// refusal is the error that refused stands for.
func (s *submitted) refusal() error {
	switch s.Refused {
	case "agents":
		return UnknownAgents(s.Unknown)
	case "backlog":
		return errBacklogFull()
	case "leaving":
		return errGone
	case "absent":
		return refuse(NotFound, "no such workspace")
	}
	return nil
}

// submit is one statement, in a transaction of its own unless db is one.
func submit(ctx context.Context, db sqlx.QueryerContext, ws uuid.UUID, ids []uuid.UUID, tasks []NewTask) ([]TaskView, []Turn, error) {
	levels := levelsOf(tasks)
	args := append([]any{ws}, columnsOf(ids, tasks, jsonbs)...)
	var raw []byte
	err := sqlx.GetContext(ctx, db, &raw, `SELECT submit_tasks($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)`,
		append(args, texts(ownAgents(tasks)), bigints(levels))...)
	if err != nil {
		return nil, nil, fmt.Errorf("submit tasks: %w", err)
	}
	var s submitted
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, nil, fmt.Errorf("read what was submitted: %w", err)
	}
	if err := s.refusal(); err != nil {
		return nil, nil, err
	}
	return s.views(ids, tasks, levels), s.turns(ws), nil
}

// newIDs are of tasks, growing: the order they were sent in.
func newIDs(n int) []uuid.UUID {
	ids := make([]uuid.UUID, n)
	for i := range ids {
		ids[i] = NewID()
	}
	return ids
}

// levelsOf lists the priorities of tasks, each once.
func levelsOf(tasks []NewTask) []int64 {
	levels := make([]int64, 0, 1)
	for _, t := range tasks {
		if !slices.Contains(levels, int64(t.Priority)) {
			levels = append(levels, int64(t.Priority))
		}
	}
	return levels
}

// ownAgents lists the agents of tasks that are not built in, each once.
func ownAgents(tasks []NewTask) []string {
	var own []string
	for i := range tasks {
		if _, builtin := BuiltinAgent(tasks[i].Agent); !builtin && !slices.Contains(own, tasks[i].Agent) {
			own = append(own, tasks[i].Agent)
		}
	}
	return own
}

// columnsOf are the arguments ids to users of submit_tasks, one array for each of a task's values; objects makes that of JSON.
func columnsOf(ids []uuid.UUID, tasks []NewTask, objects func([][]byte) array) []any {
	n := len(tasks)
	agents, models, prompts := make([]string, n), make([]string, n), make([]string, n)
	inputs, metadata := make([][]byte, n), make([][]byte, n)
	priorities, timeouts, attempts := make([]int64, n), make([]int64, n), make([]int64, n)
	runAts, expires := make([]*time.Time, n), make([]*time.Time, n)
	keys, users := make([]*uuid.UUID, n), make([]*uuid.UUID, n)
	for i := range tasks {
		t := &tasks[i]
		agents[i], models[i], prompts[i], inputs[i], metadata[i] = t.Agent, t.Model, t.Prompt, []byte(objectOr(t.Input)), []byte(objectOr(t.Metadata))
		priorities[i], timeouts[i], attempts[i] = int64(t.Priority), int64(t.TimeoutMS), int64(t.MaxAttempts)
		runAts[i], expires[i] = t.RunAt, t.ExpiresAt
		if t.APIKeyID.Valid {
			keys[i] = &t.APIKeyID.UUID
		}
		if t.UserID.Valid {
			users[i] = &t.UserID.UUID
		}
	}
	return []any{uuids(ids), texts(agents), texts(models), texts(prompts), objects(inputs), objects(metadata), bigints(priorities),
		bigints(timeouts), bigints(attempts), times(runAts), times(expires), nullUUIDs(keys), nullUUIDs(users)}
}

// views are the tasks as they were accepted, with what they wait for: each after its elders of the same priority.
func (s *submitted) views(ids []uuid.UUID, tasks []NewTask, levels []int64) []TaskView {
	views := make([]TaskView, len(tasks))
	mine := make(map[int]int, len(levels)) // in line, by priority
	for i, t := range tasks {
		v := &views[i]
		v.Task = Task{ID: ids[i], Status: StatusQueued, Agent: t.Agent, Model: t.Model, Prompt: t.Prompt, Input: json.RawMessage(objectOr(t.Input)),
			Metadata: json.RawMessage(objectOr(t.Metadata)), APIKeyID: t.APIKeyID, UserID: t.UserID, Priority: t.Priority, TimeoutMS: t.TimeoutMS,
			MaxAttempts: t.MaxAttempts, RunAt: microseconds(t.RunAt), CreatedAt: s.Created, ExpiresAt: microseconds(t.ExpiresAt)}
		if v.RunAt != nil && v.RunAt.After(s.Created) {
			v.Status, v.Waiting = StatusScheduled, &Waiting{Reason: WaitScheduled}
			continue
		}
		mine[t.Priority]++
	}
	before := make(map[int]int, len(levels)) // of these, same priority, earlier
	for i := range views {
		v := &views[i]
		if v.Status != StatusQueued {
			continue
		}
		ahead := s.Ahead[slices.Index(levels, int64(v.Priority))]
		exact := ahead <= exactPositions
		ahead += before[v.Priority]
		for priority, n := range mine {
			if priority > v.Priority {
				ahead += n
			}
		}
		before[v.Priority]++
		v.Waiting = &Waiting{Reason: s.Reason}
		v.Waiting.at(ahead, exact && ahead <= exactPositions)
	}
	return views
}

// turns are those to enqueue: one or none.
func (s *submitted) turns(ws uuid.UUID) []Turn {
	if !s.Turn.Valid {
		return nil
	}
	return []Turn{{Workspace: ws, ID: s.Turn.UUID, Queue: s.Queue, IssuedAt: s.Created}}
}

func errBacklogFull() error {
	return refuse(BacklogFull, "the workspace has as many tasks waiting as its plan allows")
}

// microseconds cuts a time to what the ledger keeps.
func microseconds(at *time.Time) *time.Time {
	if at == nil {
		return nil
	}
	cut := at.UTC().Truncate(time.Microsecond)
	return &cut
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
