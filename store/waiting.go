package store

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/google/uuid"
)

// Waiting says why a task is not running.
type Waiting struct {
	Reason   string // one of the reasons below
	Position int    // queued tasks of the workspace that would run before it
	More     bool   // Position is only the least it can be
	InLine   bool   // it has a position
}

// The reasons, in the order in which they are given when several hold.
const (
	WaitScheduled    = "scheduled"        // its time has not come
	WaitIsolated     = "isolated"         // it was running in crashes: it waits, and then runs in a process of its own
	WaitRetryBackoff = "retry_backoff"    // an attempt failed or crashed; the next waits
	WaitPaused       = "workspace_paused" // by an operator or by billing
	WaitQuota        = "quota_exhausted"  // too little agent time is left in this period for the first in line
	WaitBudget       = "provider_budget"  // too little provider budget is left for the first in line
	WaitCap          = "workspace_cap"    // the workspace runs as many as its plan allows
	WaitInLine       = "in_line"          // other workspaces are served before it
)

// exactPositions is up to where a position is exact; beyond, it is only said to be at least this.
const exactPositions = 1000

// headLimit stands in the statements as a literal: as a parameter the planner would not know that it is small.
const headLimit = `LIMIT 1001`

// loadReading is the load row and what its workspace runs, in one statement.
var loadReading = `SELECT ` + loadColumns + `, r.running AS now_running, r.reserved AS now_reserved, (` + openCost("w.workspace_id") + `) AS now_open
	FROM workspace_load w
	CROSS JOIN LATERAL (SELECT count(*) AS running, coalesce(sum(reserved_ms), 0)::bigint AS reserved
		FROM leases l WHERE l.workspace_id = w.workspace_id) r`

// loadRow is scanned from loadReading.
type loadRow struct {
	load
	Running  int   `db:"now_running"`
	Reserved int64 `db:"now_reserved"`
	Open     int64 `db:"now_open"`

	// Of Outlook alone.
	Head           string `db:"head"`
	FirstPriority  int    `db:"first_priority"`
	FirstTimeoutMS int    `db:"first_timeout_ms"`
	FirstNeeds     int64  `db:"first_needs_microusd"`
}

func (r *loadRow) with() *load {
	r.running, r.reserved, r.open = r.Running, r.Reserved, r.Open
	return &r.load
}

// readLoad reads the load row without locking it, with what runs: good enough to tell a reader, never to decide.
func (w *Work) readLoad(ctx context.Context) (*load, error) {
	var row loadRow
	err := w.tx.GetContext(ctx, &row, loadReading+` WHERE w.workspace_id = $1`, w.Workspace)
	if err != nil {
		return nil, noRows(fmt.Errorf("read load row: %w", err), "workspace")
	}
	return row.with(), nil
}

// explain fills in Waiting of those tasks that wait. l is read when it is nil and needed.
func (w *Work) explain(ctx context.Context, l *load, views []TaskView) (err error) {
	var positions map[uuid.UUID]int
	var head *runnable
	for i := range views {
		t := &views[i]
		if t.Status != StatusQueued && t.Status != StatusScheduled {
			continue
		}
		if l == nil {
			if l, err = w.readLoad(ctx); err != nil {
				return err
			}
		}
		if t.Status == StatusQueued && positions == nil {
			if positions, head, err = w.headOfLine(ctx); err != nil {
				return err
			}
		}
		t.Waiting = l.waitingOf(t.Status, head, t.Attempt+t.Crashes > 0)
		if t.Status == StatusScheduled && t.Crashes >= suspectCrashes {
			t.Waiting = &Waiting{Reason: WaitIsolated}
		}
		if t.Status == StatusQueued {
			position, exact := positions[t.ID]
			t.Waiting.at(position, exact)
		}
	}
	return nil
}

// waitingOf names the reason why a task waits. What keeps the first in line from running keeps all behind it too; nil:
// there is none any more.
func (l *load) waitingOf(status string, head *runnable, tried bool) *Waiting {
	switch {
	case status == StatusScheduled && tried:
		return &Waiting{Reason: WaitRetryBackoff}
	case status == StatusScheduled:
		return &Waiting{Reason: WaitScheduled}
	case l.Paused != nil:
		return &Waiting{Reason: WaitPaused}
	case head != nil && l.reservation(head.TimeoutMS) == 0:
		return &Waiting{Reason: WaitQuota}
	case head != nil && !l.affords(head.Needs):
		return &Waiting{Reason: WaitBudget}
	case l.running >= l.Cap:
		return &Waiting{Reason: WaitCap}
	}
	return &Waiting{Reason: WaitInLine}
}

// at sets the position, or that it lies beyond the exact ones.
func (w *Waiting) at(position int, exact bool) {
	w.InLine, w.Position, w.More = true, position, !exact
	if !exact {
		w.Position = exactPositions
	}
}

// headOfLine reads the positions of the first tasks in line, as many as are told exactly (index tasks_line, in order), and
// the very first.
func (w *Work) headOfLine(ctx context.Context) (positions map[uuid.UUID]int, head *runnable, err error) {
	var line []runnable
	err = w.tx.SelectContext(ctx, &line, `SELECT t.id, t.timeout_ms, t.needs_microusd FROM tasks t WHERE t.workspace_id = $1 AND t.status = 'queued'
			AND NOT EXISTS (SELECT 1 FROM leases l WHERE l.workspace_id = $1 AND l.task_id = t.id)
		ORDER BY t.priority DESC, t.id `+headLimit, w.Workspace)
	if err != nil {
		return nil, nil, fmt.Errorf("read head of line: %w", err)
	}
	positions = make(map[uuid.UUID]int, len(line))
	for i, r := range line {
		positions[r.Task] = i
	}
	if len(line) > 0 {
		head = &line[0]
	}
	return positions, head, nil
}

// Outlook foresees what tasks that are about to be submitted will wait for. It is read before the submit, because
// after it the load row is locked and every further statement would hold up the workspace's other requests.
type Outlook struct {
	load          *load
	first         *runnable // in line; nil for none
	firstPriority int
	byPriority    map[int]int // queued tasks at the head of the line
	beyond        bool        // there are more than byPriority counts
	lowest        int         // priority that byPriority reaches down to, when beyond
}

// Outlook reads the workspace's line, in one statement.
func (w *Work) Outlook(ctx context.Context) (*Outlook, error) {
	var row loadRow
	const inLine = `FROM tasks t WHERE t.workspace_id = $1 AND t.status = 'queued'
		AND NOT EXISTS (SELECT 1 FROM leases l WHERE l.workspace_id = $1 AND l.task_id = t.id) ORDER BY t.priority DESC, t.id `
	err := w.tx.GetContext(ctx, &row, `SELECT reading.*, head.counts AS head, coalesce(first.priority, 0) AS first_priority,
			coalesce(first.timeout_ms, 0) AS first_timeout_ms, coalesce(first.needs_microusd, 0) AS first_needs_microusd
		FROM (`+loadReading+` WHERE w.workspace_id = $1) reading
		CROSS JOIN LATERAL (SELECT coalesce(json_object_agg(priority, n), '{}')::text AS counts FROM (
			SELECT priority, count(*) AS n FROM (SELECT t.priority `+inLine+headLimit+`) first GROUP BY priority) grouped) head
		LEFT JOIN LATERAL (SELECT t.priority, t.timeout_ms, t.needs_microusd `+inLine+`LIMIT 1) first ON true`, w.Workspace)
	if err != nil {
		return nil, noRows(fmt.Errorf("read line: %w", err), "workspace")
	}
	o := &Outlook{load: row.with(), lowest: MaxPriority}
	if err := json.Unmarshal([]byte(row.Head), &o.byPriority); err != nil {
		return nil, fmt.Errorf("read line: %w", err)
	}
	if len(o.byPriority) > 0 {
		o.first, o.firstPriority = &runnable{TimeoutMS: row.FirstTimeoutMS, Needs: row.FirstNeeds}, row.FirstPriority
	}
	total := 0
	for priority, n := range o.byPriority {
		total, o.lowest = total+n, min(o.lowest, priority)
	}
	o.beyond = total > exactPositions
	return o, nil
}

// ExplainAll says what the tasks of one submit (in its order) wait for, each after its elders of the same priority.
func (o *Outlook) ExplainAll(created []Task) []TaskView {
	views := make([]TaskView, len(created))
	mine := make(map[int]int, 1) // of this batch, by priority
	head, priority := o.first, o.firstPriority
	for _, t := range created {
		if t.Status == StatusQueued {
			mine[t.Priority]++
			if head == nil || t.Priority > priority {
				head, priority = &runnable{TimeoutMS: t.TimeoutMS}, t.Priority
			}
		}
	}
	before := make(map[int]int, len(mine)) // of this batch, same priority, earlier
	for i, t := range created {
		views[i] = TaskView{Task: t, Waiting: o.load.waitingOf(t.Status, head, false)}
		if t.Status != StatusQueued {
			continue
		}
		ahead := before[t.Priority]
		for priority, n := range mine {
			if priority > t.Priority {
				ahead += n
			}
		}
		for priority, n := range o.byPriority {
			if priority >= t.Priority {
				ahead += n
			}
		}
		before[t.Priority]++
		views[i].Waiting.at(ahead, ahead <= exactPositions && (!o.beyond || t.Priority > o.lowest))
	}
	return views
}
