package store

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
)

// Small submits of one API process that arrive together share one transaction (group commit): what arrives while a flush
// is under way is the next one. Nothing lingers: a lone submit is a flush of its own, at once. Two lanes, chosen by the
// workspace, keep Postgres busy while the other lane commits, and never wait for each other's load rows; submits of one
// workspace share its lock instead of waiting each for the commit of the one before.
//
// The function submit_together (migration 00022) writes a flush's workspaces together, and keeps each from the others'
// failures: what meets an error has it begin again with one workspace at a time. What it leaves out, because somebody holds the load row, because it met an error, or
// because not all of a workspace's submits are accepted, waits aside: a workspace at a time in a transaction of its own, for
// as long as it takes, together first and one by one when that does not go. What arrives for such a workspace meanwhile joins
// it there. So a refusal is always a submit's own, nobody waits for a row in company of others' workspaces, and whoever waits
// takes one of asideSeats connections and not one each.
//
// What dies in the middle of a flush: the process, and all of it is committed or none, none of it was answered; the
// connection, and either database/sql asks anew, then those that had been committed are recognised by their tasks' ids
// (API.committed), or all of it is answered Unavailable with an unknown end.

const (
	submitLanes  = 2
	maxTogether  = 48               // submits of a flush; below 64, see the migration
	flushTimeout = 10 * time.Second // of one flush; its members cannot interrupt it
)

// What is larger goes alone: it would keep others waiting, and gains nothing.
const (
	smallTasks = 16
	smallBytes = 32 << 10
)

func isSmall(tasks []NewTask) bool {
	bytes := 0
	for i := range tasks {
		bytes += len(tasks[i].Prompt) + len(tasks[i].Input) + len(tasks[i].Metadata)
	}
	return len(tasks) <= smallTasks && bytes <= smallBytes
}

// submits is where small submits meet.
type submits struct {
	api   *API
	lanes [submitLanes]submitLane
	aside asideRoom[*submission]
}

func newSubmits(a *API) *submits {
	return &submits{api: a, aside: newAsideRoom[*submission](maxTogether)}
}

// submitLane has one flush under way at most.
type submitLane struct {
	mu      sync.Mutex
	waiting []*submission
	running bool // somebody flushes until nobody waits
}

// submission is a submit on its way through a lane. What is below done is set before it is closed.
type submission struct {
	ws    uuid.UUID
	tasks []NewTask
	ids   []uuid.UUID // the tasks', given in the order in which submits come to the lane
	done  chan struct{}

	views []TaskView
	turns []Turn
	err   error
}

// pass brings a submission through its lane. It leaves the lane when ctx ends, unless its transaction has begun: then the end
// is awaited, because a turn that was issued has to reach the line even if the client has gone.
func (s *submits) pass(ctx context.Context, ws uuid.UUID, tasks []NewTask) ([]TaskView, []Turn, error) {
	sub := &submission{ws: ws, tasks: tasks, done: make(chan struct{})}
	lane := s.lane(ws)
	s.enter(lane, sub)
	select {
	case <-sub.done:
	case <-ctx.Done():
		if lane.withdraw(sub) || s.aside.withdraw(ws, sub) {
			return nil, nil, fmt.Errorf("submit tasks: %w", ctx.Err())
		}
		<-sub.done
	}
	return sub.views, sub.turns, sub.err
}

func (s *submits) lane(ws uuid.UUID) *submitLane { return &s.lanes[ws[15]%submitLanes] }

// enter puts a submission into its lane, or aside where its workspace waits.
func (s *submits) enter(lane *submitLane, sub *submission) {
	lane.mu.Lock()
	defer lane.mu.Unlock()
	sub.ids = newIDs(len(sub.tasks))
	if s.aside.join(sub.ws, sub) {
		return
	}
	lane.waiting = append(lane.waiting, sub)
	if !lane.running {
		lane.running = true
		go s.run(lane)
	}
}

// withdraw takes a submission out of the lane; false when it is in a flush by now, or aside.
func (l *submitLane) withdraw(sub *submission) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.Index(l.waiting, sub)
	if i < 0 {
		return false
	}
	l.waiting = slices.Delete(l.waiting, i, i+1)
	return true
}

// next takes the submissions of the next flush; with none the lane is no longer running.
func (l *submitLane) next() []*submission {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := min(len(l.waiting), maxTogether)
	batch := slices.Clone(l.waiting[:n])
	l.waiting = slices.Delete(l.waiting, 0, n)
	l.running = n > 0
	return batch
}

// run flushes until nobody waits.
func (s *submits) run(lane *submitLane) {
	for batch := lane.next(); len(batch) > 0; batch = lane.next() {
		s.flush(batch)
		runtime.Gosched() // those who were answered may come back first
	}
}

// flush submits a batch as one transaction and answers everybody, or sets them aside. What the database refuses before it
// looks at the parts, such as text that is no UTF-8, has halves flushed until the culprit is by itself.
func (s *submits) flush(batch []*submission) {
	parts := partsOf(batch)
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	answers, err := submitParts(ctx, s.api.db, parts)
	cancel()
	if len(batch) > 1 && sqlCode(err) != "" && !Unavailable(err) {
		s.flush(batch[:len(batch)/2])
		s.flush(batch[len(batch)/2:])
		return
	}
	for i := range parts {
		p := &parts[i]
		switch {
		case err != nil:
			p.fail(err)
		case answers[i].Refused == refusedAlone:
			s.setAside(p)
		default:
			if err := answers[i].refusal(); err == nil {
				p.answer(answers[i].views(p.ids, p.tasks, p.levels), answers[i].turns(p.ws))
			} else if len(p.members) > 1 { // some of them may fit
				s.setAside(p)
			} else {
				p.fail(err)
			}
		}
	}
}

// setAside lets a part wait for itself.
func (s *submits) setAside(p *part) {
	if s.aside.put(p.ws, p.members...) {
		go s.aside.serve(p.ws, func(batch []*submission) { s.flushAside(&partsOf(batch)[0]) })
	}
}

// flushAside submits a part in a transaction of its own, which waits for the load row; its members one by one when they are not
// all accepted.
func (s *submits) flushAside(p *part) {
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	views, turns, err := s.api.submitAlone(ctx, p.ws, p.ids, p.tasks)
	cancel()
	if err == nil {
		p.answer(views, turns)
		return
	}
	if len(p.members) == 1 || Unavailable(err) {
		p.fail(err)
		return
	}
	for _, m := range p.members {
		s.flushAside(&partsOf([]*submission{m})[0])
	}
}

// part is what a flush has of one workspace.
type part struct {
	ws      uuid.UUID
	members []*submission
	ids     []uuid.UUID
	tasks   []NewTask // of all members, in the order they came
	own     []string  // agents that are not built in
	levels  []int64
}

// partsOf sorts submissions by workspace, each in the order they came.
func partsOf(batch []*submission) []part {
	parts := make([]part, 0, len(batch))
	at := make(map[uuid.UUID]int, len(batch))
	for _, sub := range batch {
		i, met := at[sub.ws]
		if !met {
			i = len(parts)
			at[sub.ws] = i
			parts = append(parts, part{ws: sub.ws})
		}
		parts[i].members = append(parts[i].members, sub)
		parts[i].ids = append(parts[i].ids, sub.ids...)
		parts[i].tasks = append(parts[i].tasks, sub.tasks...)
	}
	for i := range parts {
		p := &parts[i]
		p.own, p.levels = ownAgents(p.tasks), levelsOf(p.tasks)
	}
	return parts
}

// submitParts is one call of submit_together, and a transaction.
func submitParts(ctx context.Context, db *sqlx.DB, parts []part) ([]submitted, error) {
	var workspaces, ids []uuid.UUID
	var tasks []NewTask
	var own []string
	var levels, sizes, owns, levelCounts []int64
	for i := range parts {
		p := &parts[i]
		workspaces, sizes = append(workspaces, p.ws), append(sizes, int64(len(p.tasks)))
		owns, levelCounts = append(owns, int64(len(p.own))), append(levelCounts, int64(len(p.levels)))
		ids, tasks, own, levels = append(ids, p.ids...), append(tasks, p.tasks...), append(own, p.own...), append(levels, p.levels...)
	}
	args := append([]any{uuids(workspaces), bigints(sizes), bigints(owns), bigints(levelCounts)}, columnsOf(ids, tasks, bytesAsTexts)...)
	var raw []byte
	err := sqlx.GetContext(ctx, db, &raw, `SELECT submit_together($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19)`,
		append(args, texts(own), bigints(levels))...)
	if err != nil {
		return nil, fmt.Errorf("submit tasks: %w", err)
	}
	var answers []submitted
	if err := json.Unmarshal(raw, &answers); err != nil {
		return nil, fmt.Errorf("read what was submitted: %w", err)
	}
	if len(answers) != len(parts) {
		return nil, fmt.Errorf("read what was submitted: %d answers to %d parts", len(answers), len(parts))
	}
	return answers, nil
}

// answer gives each member its own of the part's views. A turn goes to the first.
func (p *part) answer(views []TaskView, turns []Turn) {
	for _, m := range p.members {
		n := len(m.tasks)
		m.views, views = views[:n:n], views[n:]
		m.turns, turns = turns, nil
		close(m.done)
	}
}

func (p *part) fail(err error) {
	for _, m := range p.members {
		m.err = err
		close(m.done)
	}
}

// refusedAlone is submit_together's for a part that it left out.
const refusedAlone = "alone"
