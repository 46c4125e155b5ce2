package store

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// Outcome is how an attempt ended.
type Outcome string

const (
	Succeeded  Outcome = "succeeded"
	Failed     Outcome = "failed"      // for good: another attempt would end the same
	Retry      Outcome = "retry"       // passing: again after a delay while attempts are left
	Timeout    Outcome = "timeout"     // the task's own timeout; final, and billable
	Canceled   Outcome = "canceled"    // the customer asked
	HandedBack Outcome = "handed_back" // the worker is leaving: no attempt spent, nothing billed
	QuotaCut   Outcome = "quota_cut"   // the quota ran out under it: no attempt spent, its time metered
	BudgetCut  Outcome = "budget_cut"  // the provider budget did, likewise
	Crashed    Outcome = "crashed"     // its worker died, as the scheduler says; or its own process, see Finish.Apart
)

// Finish ends an attempt. Lease is the token it was claimed with; when the task is no longer held under it, nothing
// changes and the finish is refused.
type Finish struct {
	Workspace uuid.UUID
	Task      uuid.UUID
	Lease     uuid.UUID
	Outcome   Outcome
	Result    json.RawMessage // {output, data}, when it succeeded
	Error     *TaskError      // why not, otherwise
	Usage     AttemptUsage

	// Next, when not nil, asks for the workspace's next task in the same transaction: the slot goes on with it, without a
	// turn. It is answered when the finish is accepted.
	Next *Claim

	// CustomerFault: a Failed attempt is billable only when the customer's own input was at fault.
	CustomerFault bool

	// Apart: a Crashed attempt had a process of its own, and that died. Otherwise its worker did, with all that it ran, or
	// could not start that process.
	Apart bool

	// NeedsMicroUSD is the call that did not fit, of a BudgetCut: the task is not tried again before it does.
	NeedsMicroUSD int64
}

// The errors of Crashed attempts.
const (
	CodeWorkerCrashed = "worker_crashed"    // the worker died: the scheduler says so, the others are what a worker says itself
	CodeAgentCrashed  = "agent_crashed"     // the attempt's own process died
	CodeNotStarted    = "agent_not_started" // the attempt's own process could not be started
)

// AttemptUsage is what one attempt used. The four token counts are disjoint.
type AttemptUsage struct {
	AgentMS          int64 // the worker's monotonic clock; metered up to the reservation
	ProviderCalls    int64 `db:"provider_calls"`
	InputTokens      int64 `db:"input_tokens"`
	OutputTokens     int64 `db:"output_tokens"`
	CacheReadTokens  int64 `db:"cache_read_tokens"`
	CacheWriteTokens int64 `db:"cache_write_tokens"`
	CostMicroUSD     int64 `db:"cost_microusd"`
}

// Finished is what became of a Finish.
type Finished struct {
	Accepted bool     // false: refused (fenced), the lease had been taken away
	Status   string   // the task's status afterwards, when accepted
	Next     *Claimed // the answer to Finish.Next
	Turn     *Turn    // to enqueue
	Notice   int      // 80 or 100: that share of the quota was passed by this finish, for the first time this period
}

// Crash limits. Of the tasks that a dying worker ran, any may be the cause, so each bears the crash. With the second one
// a task is a suspect: from then on it waits before it runs, and runs in a process of its own. There only the death of that
// process counts against it, and the third one fails it. A worker that dies all the same, or cannot start that process, proves
// nothing against a suspect and is a loss (tasks.losses): only when that goes on and on does the task end, so that it ends at all.
const (
	suspectCrashes = 2
	maxCrashes     = suspectCrashes + 3
	maxLosses      = 10
	crashDelay     = 5 * time.Second // doubles with each crash from the second on
	firstRetry     = 1 * time.Second // doubles with each attempt
	longestRetry   = 5 * time.Minute
	retryJitterPct = 20
)

func backoff(first time.Duration, doublings int) time.Duration {
	d := first << min(doublings, 20)
	if d > longestRetry {
		d = longestRetry
	}
	return d + time.Duration(rand.Int64N(int64(d)*retryJitterPct/100+1))
}

// held is a lease that a finish has just ended, with what the decision needs of its task.
type held struct {
	Workspace   uuid.UUID     `db:"workspace_id"`
	Task        uuid.UUID     `db:"task_id"`
	Lease       uuid.UUID     `db:"id"`
	Worker      uuid.UUID     `db:"worker_id"`
	Attempt     int           `db:"attempt"`
	ReservedMS  int64         `db:"reserved_ms"`
	ClaimedAt   time.Time     `db:"claimed_at"`
	Spent       int           `db:"spent"`
	MaxAttempts int           `db:"max_attempts"`
	Crashes     int           `db:"crashes"`
	AskedToStop bool          `db:"asked_to_stop"`
	Agent       string        `db:"agent"`
	Model       string        `db:"model"`
	APIKeyID    uuid.NullUUID `db:"api_key_id"`

	losses int // of the task so far, when this attempt is one (countLosses); 0 otherwise
}

// lost reports whether an attempt that crashed is a loss: a suspect's, and not by its own process.
func (h held) lost(f *Finish) bool {
	return f.Outcome == Crashed && h.Crashes >= suspectCrashes && !f.Apart
}

// move is what a finish does to its task.
type move struct {
	status  string
	attempt int           // attempts spent afterwards
	crashes int           // crashes afterwards
	delay   time.Duration // when status is scheduled
	err     *TaskError
	needs   int64 // micro-dollars of the provider budget, before it is tried again
	overage int64 // milliseconds of it that are charged
}

// decide is the whole rule of what follows an attempt.
func decide(f *Finish, h held) move {
	m := move{attempt: h.Attempt, crashes: h.Crashes, err: f.Error}
	switch f.Outcome {
	case Succeeded:
		m.status, m.err = StatusSucceeded, nil
	case Canceled:
		m.status = StatusCanceled
	case Failed, Timeout:
		m.status = StatusFailed
	case Retry:
		m.status, m.delay = StatusScheduled, backoff(firstRetry, h.Attempt-1)
		if h.Attempt >= h.MaxAttempts {
			m.status = StatusFailed
		}
	case HandedBack, QuotaCut:
		m.status, m.attempt, m.err = StatusQueued, h.Spent, nil
	case BudgetCut:
		m.status, m.attempt, m.err, m.needs = StatusQueued, h.Spent, nil, f.NeedsMicroUSD
	case Crashed:
		m.status, m.attempt, m.err, m.crashes = StatusQueued, h.Spent, nil, h.Crashes+1
		if h.lost(f) {
			m.crashes = h.Crashes
		}
		if m.crashes >= suspectCrashes {
			m.status, m.delay = StatusScheduled, backoff(crashDelay, m.crashes-suspectCrashes+h.losses)
		}
		switch {
		case m.crashes >= maxCrashes:
			m.status = StatusFailed
			m.err = &TaskError{Code: CodeWorkerCrashed, Message: fmt.Sprintf("%d processes died while running this task, %d of them on its own account",
				m.crashes, m.crashes-suspectCrashes)}
		case h.losses >= maxLosses:
			m.status = StatusFailed
			m.err = &TaskError{Code: CodeWorkerCrashed, Message: fmt.Sprintf("%d workers died while running this task, or could not start a process for it",
				m.crashes+h.losses)}
		}
	}
	if h.AskedToStop && !Final(m.status) { // a cancelled task is never run again
		m.status = StatusCanceled
		m.err = &TaskError{Code: "canceled", Message: "canceled on request"}
	}
	return m
}

// billable: succeeded, timed out, cancelled by the customer, cut by quota or budget, and the customer's own mistakes. Not:
// crashed workers, hand-backs, provider outages.
func (f *Finish) billable() bool {
	switch f.Outcome {
	case Succeeded, Timeout, Canceled, QuotaCut, BudgetCut:
		return true
	case Failed:
		return f.CustomerFault
	}
	return false
}

// finishAll ends the attempts and books them. The load rows of all workspaces concerned are locked and given; the
// caller settles them and writes the notes afterwards. The same finish twice counts once.
func finishAll(ctx context.Context, tx *sqlx.Tx, n *notes, loads map[uuid.UUID]*load, finishes []*Finish) (map[uuid.UUID]*Finished, error) {
	results := make(map[uuid.UUID]*Finished, len(finishes))
	if len(finishes) == 0 {
		return results, nil
	}
	byLease := make(map[uuid.UUID]*Finish, len(finishes))
	workspaces, tasks, leases := make([]uuid.UUID, 0, len(finishes)), make([]uuid.UUID, 0, len(finishes)), make([]uuid.UUID, 0, len(finishes))
	for _, f := range finishes {
		if byLease[f.Lease] == nil && loads[f.Workspace] != nil {
			workspaces, tasks, leases = append(workspaces, f.Workspace), append(tasks, f.Task), append(leases, f.Lease)
		}
		byLease[f.Lease] = f
		results[f.Lease] = &Finished{}
	}
	var ended []held
	err := tx.SelectContext(ctx, &ended, `SELECT * FROM line_end($1, $2, $3)`, uuids(workspaces), uuids(tasks), uuids(leases))
	if err != nil {
		return nil, fmt.Errorf("end leases: %w", err)
	}
	if err := countLosses(ctx, tx, byLease, ended); err != nil {
		return nil, err
	}
	moves := make([]move, len(ended))
	for i, h := range ended {
		f, l := byLease[h.Lease], loads[h.Workspace]
		f.Usage.AgentMS = min(max(f.Usage.AgentMS, 0), h.ReservedMS) // what overshot the deadline is ours
		moves[i] = decide(f, h)
		r := results[h.Lease]
		r.Accepted, r.Status = true, moves[i].status
		if !Final(moves[i].status) {
			l.Waiting++
		}
		if f.billable() {
			before := l.agentTime()
			moves[i].overage = l.charge(f.Usage.AgentMS)
			r.Notice = crossed(before, l.agentTime())
		}
	}
	if err := book(ctx, tx, loads, byLease, ended, moves); err != nil {
		return nil, err
	}
	if err := announceFinished(ctx, tx, loads, ended, moves); err != nil {
		return nil, err
	}
	for _, h := range ended {
		if r := results[h.Lease]; r.Notice != 0 {
			l := loads[h.Workspace]
			told, err := l.tell(ctx, tx, n, NoticeAgentTime, r.Notice, l.agentTime())
			if err != nil {
				return nil, err
			}
			if !told {
				r.Notice = 0
			}
		}
	}
	if len(ended) < len(leases) {
		return results, recognise(ctx, tx, results, workspaces, leases)
	}
	return results, nil
}

// countLosses counts those attempts that were a loss with their tasks, and fills in how many there have been. Few finishes
// are: the others cost no statement.
func countLosses(ctx context.Context, tx *sqlx.Tx, byLease map[uuid.UUID]*Finish, ended []held) error {
	lost := map[uuid.UUID]*held{} // by task
	var workspaces, tasks []uuid.UUID
	for i := range ended {
		if h := &ended[i]; h.lost(byLease[h.Lease]) {
			lost[h.Task] = h
			workspaces, tasks = append(workspaces, h.Workspace), append(tasks, h.Task)
		}
	}
	if len(tasks) == 0 {
		return nil
	}
	var counted []struct {
		Task   uuid.UUID `db:"id"`
		Losses int       `db:"losses"`
	}
	err := tx.SelectContext(ctx, &counted, `UPDATE tasks t SET losses = t.losses + 1 FROM unnest($1::uuid[], $2::uuid[]) AS v (workspace_id, id)
		WHERE t.workspace_id = v.workspace_id AND t.id = v.id RETURNING t.id, t.losses`, uuids(workspaces), uuids(tasks))
	if err != nil {
		return fmt.Errorf("count losses of suspects: %w", err)
	}
	for _, c := range counted {
		lost[c.Task].losses = c.Losses
	}
	return nil
}

// recognise finds, among finishes whose lease is gone, those that were committed before and only their answer got
// lost: they have an attempt that their own worker ended. The rest stays refused.
func recognise(ctx context.Context, tx *sqlx.Tx, results map[uuid.UUID]*Finished, workspaces, leases []uuid.UUID) error {
	var own []struct {
		ID     uuid.UUID `db:"id"`
		Status string    `db:"status"`
	}
	err := tx.SelectContext(ctx, &own, `SELECT a.id, t.status FROM unnest($1::uuid[], $2::uuid[]) AS v (workspace_id, id)
		JOIN attempts a ON a.workspace_id = v.workspace_id AND a.id = v.id AND (a.outcome <> 'crashed' OR a.error->>'code' <> '`+CodeWorkerCrashed+`')
		JOIN tasks t ON t.workspace_id = a.workspace_id AND t.id = a.task_id`, uuids(workspaces), uuids(leases))
	if err != nil {
		return fmt.Errorf("recognise repeated finishes: %w", err)
	}
	for _, o := range own {
		r := results[o.ID]
		r.Accepted, r.Status = true, o.Status
	}
	return nil
}

// book writes tasks, attempts and metering rows of the attempts that have ended, in one statement: it is part of every
// finish.
func book(ctx context.Context, tx *sqlx.Tx, loads map[uuid.UUID]*load, byLease map[uuid.UUID]*Finish, ended []held, moves []move) error {
	n := len(ended)
	if n == 0 {
		return nil
	}
	workspaces, ids, leases, workers := make([]uuid.UUID, n), make([]uuid.UUID, n), make([]uuid.UUID, n), make([]uuid.UUID, n)
	statuses, spent, crashes, delays := make([]string, n), make([]int64, n), make([]int64, n), make([]int64, n)
	started, results, taskErrs, needs := make([]*time.Time, n), make([][]byte, n), make([][]byte, n), make([]int64, n)
	attempts, outcomes, billable, errs := make([]int64, n), make([]string, n), make([]bool, n), make([][]byte, n)
	agentMS, calls, cost := make([]int64, n), make([]int64, n), make([]int64, n)
	in, out, read, write := make([]int64, n), make([]int64, n), make([]int64, n), make([]int64, n)
	for i := range ended {
		h := &ended[i]
		f, m := byLease[h.Lease], moves[i]
		workspaces[i], ids[i], leases[i], workers[i] = h.Workspace, h.Task, h.Lease, h.Worker
		statuses[i], spent[i], crashes[i], delays[i] = m.status, int64(m.attempt), int64(m.crashes), m.delay.Milliseconds()
		started[i], taskErrs[i], needs[i] = &h.ClaimedAt, m.err.json(), m.needs
		if m.status == StatusSucceeded && len(f.Result) > 0 {
			results[i] = f.Result
		}
		attempts[i], outcomes[i], billable[i], errs[i] = int64(h.Attempt), string(f.Outcome), f.billable(), f.Error.json()
		u := f.Usage
		agentMS[i], calls[i], cost[i] = u.AgentMS, u.ProviderCalls, u.CostMicroUSD
		in[i], out[i], read[i], write[i] = u.InputTokens, u.OutputTokens, u.CacheReadTokens, u.CacheWriteTokens
	}
	args := append([]any{uuids(workspaces), uuids(ids), uuids(leases), uuids(workers), texts(statuses), bigints(spent), bigints(crashes),
		bigints(delays), times(started), jsonbs(results), jsonbs(taskErrs), bigints(needs), bigints(attempts), texts(outcomes),
		bools(billable), jsonbs(errs), bigints(agentMS), bigints(calls), bigints(cost), bigints(in), bigints(out), bigints(read), bigints(write)},
		meteringArgs(loads, byLease, ended, moves)...)
	_, err := tx.ExecContext(ctx, `SELECT line_book($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20,
		$21, $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33)`, args...)
	if err != nil {
		return fmt.Errorf("book finished attempts: %w", err)
	}
	return nil
}

// json renders e for a jsonb parameter, nil for none.
func (e *TaskError) json() []byte {
	if e == nil {
		return nil
	}
	raw, _ := json.Marshal(e) // two strings and a bool: cannot fail
	return raw
}
