package store

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// Claim asks for the task that a turn entitles its workspace to. This is where a task is admitted: under the load
// row's lock, within the cap and the quota, the best task of the moment.
type Claim struct {
	Workspace uuid.UUID
	Turn      uuid.UUID   // as delivered; uuid.Nil in Finish.Next, where a slot goes on without one
	Lease     uuid.UUID   // fresh and random, chosen before asking, so that a repeated claim is recognised as one's own
	More      []uuid.UUID // leases for further tasks that may start beside it: nobody else waits for these slots
	Worker    uuid.UUID
}

// ClaimOutcome says what a claim found.
type ClaimOutcome string

const (
	ClaimWon   ClaimOutcome = "won"
	ClaimStale ClaimOutcome = "stale" // the turn is not the workspace's current one: drop the delivery
	ClaimEmpty ClaimOutcome = "empty" // the turn was current, but there was nothing to run
	ClaimDead  ClaimOutcome = "dead"  // this worker has been declared dead: it may claim nothing
)

// Claimed is the answer to a Claim.
type Claimed struct {
	Outcome ClaimOutcome
	Task    ClaimedTask   // when won
	More    []ClaimedTask // what was won for Claim.More
	Turn    *Turn         // to enqueue: the workspace's next
}

// ClaimedTask is what a worker needs to run an attempt.
type ClaimedTask struct {
	Workspace  uuid.UUID       `db:"workspace_id"`
	ID         uuid.UUID       `db:"id"`
	Lease      uuid.UUID       `db:"lease"`
	Attempt    int             `db:"attempt"` // this one, from 1
	Crashes    int             `db:"crashes"`
	Agent      string          `db:"agent"`
	Model      string          `db:"model"`
	Prompt     string          `db:"prompt"`
	Input      json.RawMessage `db:"input"`
	TimeoutMS  int             `db:"timeout_ms"`
	Models     pq.StringArray  `db:"models"`      // that the workspace may use now, see AllowsModel
	ReservedMS int             `db:"reserved_ms"` // the deadline; less than TimeoutMS when the quota allowed no more
}

// Suspect reports whether the task was running in so many crashes that it may be their cause: its attempts get a process
// of their own.
func (t ClaimedTask) Suspect() bool { return t.Crashes >= suspectCrashes }

// claimAll admits tasks for the claims whose turns are current and issues the turns that are due, for every given
// load row; it is settle with claims. Load rows are locked; finishes of the same transaction are done.
func claimAll(ctx context.Context, tx *sqlx.Tx, loads []*load, claims []*Claim) (map[uuid.UUID]*Claimed, []Turn, error) {
	results := make(map[uuid.UUID]*Claimed, len(claims))
	byID := loadsByID(loads)
	var current []*Claim
	wanted := make(map[uuid.UUID]int64, len(claims)) // tasks, per workspace
	for _, c := range claims {
		l := byID[c.Workspace]
		goesOn := c.Turn == uuid.Nil
		if l == nil || !goesOn && (l.Turn == nil || *l.Turn != c.Turn) {
			results[c.Lease] = &Claimed{Outcome: ClaimStale}
			continue
		}
		results[c.Lease] = &Claimed{Outcome: ClaimEmpty}
		if !goesOn {
			l.withdraw() // the turn is used, whatever it finds
		}
		current = append(current, c)
		wanted[c.Workspace] += 1 + int64(len(c.More))
	}
	best, err := look(ctx, tx, loads, wanted) // one more than can run, to know whether to stand in line again
	if err != nil {
		return nil, nil, err
	}
	admitted := admit(byID, best, current)
	var turns []Turn
	for _, l := range loads {
		turns = append(turns, l.issueFor(best[l.Workspace])...)
	}
	dead, err := lease(ctx, tx, loads, admitted, results)
	if err != nil || len(dead) == 0 {
		return results, turns, err
	}
	for i := len(dead) - 1; i >= 0; i-- { // what the dead were not given goes back, for those who live
		a := dead[i]
		results[a.claim.Lease].Outcome = ClaimDead
		a.count(-1)
		best[a.claim.Workspace] = append([]runnable{a.task}, best[a.claim.Workspace]...)
	}
	for _, l := range loads {
		turns = append(turns, l.issueFor(best[l.Workspace])...)
	}
	return results, turns, saveLoads(ctx, tx, loads)
}

// admission is one lease about to be given.
type admission struct {
	claim *Claim
	lease uuid.UUID // one of the claim's
	load  *load
	task  runnable
	ms    int // reserved
}

// admit takes the best tasks of each claim's workspace off best. Claims with a turn come before slots that go on, which would
// else leave it nothing.
func admit(loads map[uuid.UUID]*load, best map[uuid.UUID][]runnable, claims []*Claim) (admitted []admission) {
	var turns, goOn []*Claim
	for _, c := range claims {
		if c.Turn == uuid.Nil {
			goOn = append(goOn, c)
		} else {
			turns = append(turns, c)
		}
	}
	for _, c := range append(turns, goOn...) {
		for _, id := range append([]uuid.UUID{c.Lease}, c.More...) {
			a, ok := loads[c.Workspace].next(best)
			if !ok {
				break
			}
			a.claim, a.lease = c, id
			admitted = append(admitted, a)
		}
	}
	return admitted
}

// next admits the best task of the workspace, if it has one, room, quota and budget. The last task is left to a turn that is out.
func (l *load) next(best map[uuid.UUID][]runnable) (a admission, ok bool) {
	candidates := best[l.Workspace]
	if len(candidates) == 0 || l.Turn != nil && len(candidates) == 1 || !l.hasRoom() {
		return a, false
	}
	ms := l.admits(candidates[0])
	if ms == 0 {
		return a, false
	}
	a = admission{load: l, task: candidates[0], ms: ms}
	best[l.Workspace] = candidates[1:]
	a.count(1)
	return a, true
}

func (a admission) count(n int) {
	a.load.running += n
	a.load.reserved += int64(n * a.ms)
	a.load.Waiting -= n
}

// lease inserts the leases, saves the load rows in the same statement, and fills in what was won. A worker that has been
// declared dead gets nothing: its admissions come back.
func lease(ctx context.Context, tx *sqlx.Tx, loads []*load, admitted []admission, results map[uuid.UUID]*Claimed) (dead []admission, err error) {
	if len(admitted) == 0 {
		return nil, saveLoads(ctx, tx, loads)
	}
	n := len(admitted)
	workspaces, tasks, leases, workers := make([]uuid.UUID, n), make([]uuid.UUID, n), make([]uuid.UUID, n), make([]uuid.UUID, n)
	attempts, reserved := make([]int64, n), make([]int64, n)
	for i, a := range admitted {
		workspaces[i], tasks[i], leases[i], workers[i] = a.load.Workspace, a.task.Task, a.lease, a.claim.Worker
		attempts[i], reserved[i] = int64(a.task.Attempt+1), int64(a.ms)
	}
	args := append([]any{uuids(workspaces), uuids(tasks), uuids(leases), uuids(workers), bigints(attempts), bigints(reserved)}, loadsArgs(loads)...)
	var rows []ClaimedTask
	err = tx.SelectContext(ctx, &rows, `SELECT * FROM line_lease($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)`, args...)
	if err != nil {
		return nil, fmt.Errorf("insert leases: %w", err)
	}
	won := make(map[uuid.UUID]ClaimedTask, len(rows))
	for _, t := range rows {
		won[t.Lease] = t
	}
	for _, a := range admitted {
		r := results[a.claim.Lease]
		t, ok := won[a.lease]
		t.Models = a.load.Models
		switch {
		case !ok:
			dead = append(dead, a)
		case a.lease == a.claim.Lease:
			r.Outcome, r.Task = ClaimWon, t
		default:
			r.More = append(r.More, t)
		}
	}
	return dead, nil
}

// ownClaims finds the claims that were committed before and only their answer got lost.
func ownClaims(ctx context.Context, tx *sqlx.Tx, claims []*Claim) (map[uuid.UUID]*Claimed, error) {
	var workspaces, leases []uuid.UUID
	for _, c := range claims {
		workspaces, leases = append(workspaces, c.Workspace), append(append(leases, c.Lease), c.More...)
	}
	var rows []ClaimedTask
	err := tx.SelectContext(ctx, &rows, `SELECT t.workspace_id, t.id, l.id AS lease, l.attempt, t.crashes, t.agent, t.model, t.prompt, t.input, t.timeout_ms, l.reserved_ms, w.models
		FROM leases l JOIN tasks t ON t.workspace_id = l.workspace_id AND t.id = l.task_id JOIN workspace_load w ON w.workspace_id = l.workspace_id
		WHERE l.workspace_id = ANY($1) AND l.id = ANY($2)`, uuids(workspaces), uuids(leases))
	if err != nil {
		return nil, fmt.Errorf("recognise repeated claims: %w", err)
	}
	own := make(map[uuid.UUID]ClaimedTask, len(rows))
	for _, t := range rows {
		own[t.Lease] = t
	}
	found := make(map[uuid.UUID]*Claimed, len(own))
	for _, c := range claims {
		first, ok := own[c.Lease]
		if !ok {
			continue // the first is given before the others
		}
		r := &Claimed{Outcome: ClaimWon, Task: first}
		for _, lease := range c.More {
			if t, ok := own[lease]; ok {
				r.More = append(r.More, t)
			}
		}
		found[c.Lease] = r
	}
	return found, nil
}
