package store_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// The function submit_together enters the parts of a flush together; only when that fails are they entered one by one. What is below
// holds the first way, and that it is taken.

// spyOnFlushes notes of each task, with the rights of who inserts it, whether its flush enters its parts together, and what is wrong with
// what could be seen then.
func spyOnFlushes(l *line) {
	l.env.Admin(l.t).MustExec(`CREATE TABLE spied (together boolean NOT NULL, wrong text);
		GRANT INSERT ON spied TO muster_api;
		CREATE FUNCTION spy() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE
			own text := coalesce(current_setting('app.workspace_id', true), '');
			company text[] := string_to_array(coalesce(current_setting('app.workspace_ids', true), ''), ',');
			scope uuid[] := CASE WHEN own <> '' THEN ARRAY[own] ELSE company END;
		BEGIN
			INSERT INTO spied VALUES (company <> '{}', CASE
				WHEN current_user <> 'muster_api' THEN current_user
				WHEN own <> '' AND company <> '{}' THEN 'two scopes'
				WHEN NEW.workspace_id <> ALL (scope) THEN 'a task outside the scope'
				WHEN EXISTS (SELECT FROM tasks WHERE workspace_id <> ALL (scope)) THEN 'tasks'
				WHEN EXISTS (SELECT FROM agents WHERE workspace_id <> ALL (scope)) THEN 'agents'
				WHEN EXISTS (SELECT FROM leases WHERE workspace_id <> ALL (scope)) THEN 'leases'
				WHEN EXISTS (SELECT FROM workspace_load WHERE workspace_id <> ALL (scope)) THEN 'load rows'
				WHEN own = '' AND (SELECT count(*) FROM workspaces) + (SELECT count(*) FROM members) + (SELECT count(*) FROM api_keys)
					+ (SELECT count(*) FROM attempts) + (SELECT count(*) FROM metering_rows) > 0 THEN 'what no submit reads' END);
			RETURN NEW;
		END $$;
		CREATE TRIGGER spy BEFORE INSERT ON tasks FOR EACH ROW EXECUTE FUNCTION spy()`)
}

// spied says what was seen that must not be, and how many tasks were entered in company.
func spied(l *line) (together int64) {
	l.t.Helper()
	var wrong []string
	if err := l.env.Admin(l.t).Select(&wrong, `SELECT DISTINCT wrong FROM spied WHERE wrong IS NOT NULL`); err != nil {
		l.t.Fatal(err)
	}
	if len(wrong) > 0 {
		l.t.Errorf("seen by a submit: %q", wrong)
	}
	return l.count(`SELECT count(*) FROM spied WHERE together`)
}

// Twins in the same state: one submits by itself, with submit_tasks, and one in company. They are told the same.
func TestAFlushDecidesAsEachSubmitByItself(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	l := newLineOn(t, storetest.New(t))
	admin := l.env.Admin(t)
	random := rand.New(rand.NewPCG(11, 4))
	pick := func(of ...int) int { return of[random.IntN(len(of))] }
	later, soon := time.Now().Add(time.Hour), time.Now().Add(time.Minute)

	const pairs = 80
	var alone, company []*sent
	for range pairs {
		a, b := &sent{ws: storetest.NewWorkspace(t, l.env, "pro")}, &sent{ws: storetest.NewWorkspace(t, l.env, "pro")}
		alone, company = append(alone, a), append(company, b)
		figures := []any{pick(0, 1, 2, 10, 10), pick(5_000, 1_000_000, 1_000_000), pick(0, 0, 4_000, 95_000), pick(0, 8_000), pick(0, 3_000), pick(0, 100, 160, 10_000),
			pick(0, 0, 200), pick(0, 0, 0, 1) == 1, pick(0, 0, 1) == 1, pick(120, 1_000, 1_000)}
		maxWaiting, leaving := pick(3, 4, 1_000, 1_000, 1_000), pick(0, 0, 0, 0, 0, 0, 0, 1) == 1
		earlier := make([]store.NewTask, pick(0, 1, 3))
		claims, needs, expired := pick(0, 0, 1, 2), pick(0, 0, 150), pick(0, 0, 0, 1) == 1
		turnOut := pick(0, 1) == 1
		for i := range earlier {
			earlier[i] = task("earlier")
			earlier[i].TimeoutMS, earlier[i].Priority = pick(2_000, 60_000), pick(-5, 0, 5)
			if pick(0, 0, 0, 1) == 1 {
				earlier[i].RunAt = &later
			}
			if expired {
				earlier[i].ExpiresAt = &soon
			}
		}
		sends := make([]store.NewTask, pick(1, 1, 2, 3))
		for i := range sends {
			sends[i] = task(fmt.Sprint("new ", i))
			sends[i].Input = json.RawMessage(`{"a": [1, "ü"]}`)
			sends[i].TimeoutMS, sends[i].Priority = pick(2_000, 60_000), pick(0, 0, 10, -10)
			sends[i].Agent = []string{"yuki", "yuki", "own", "nobody"}[pick(0, 0, 0, 0, 1, 2, 2, 3)]
			if pick(0, 0, 0, 0, 1) == 1 {
				sends[i].RunAt = &later
			}
		}
		for _, s := range []*sent{a, b} {
			s.tasks = sends
			admin.MustExec(`INSERT INTO agents (workspace_id, id, name) VALUES ($1, $2, 'own')`, s.ws, uuid.New())
			for i, n := range earlier {
				if _, turn := l.submit(s.ws, n); turn != nil && i < claims {
					l.won(turn)
				}
			}
			admin.MustExec(`UPDATE tasks SET needs_microusd = $2, expires_at = CASE WHEN expires_at IS NOT NULL THEN now() END WHERE workspace_id = $1`, s.ws, needs)
			if !turnOut {
				admin.MustExec(`UPDATE workspace_load SET turn = NULL, turn_at = NULL WHERE workspace_id = $1`, s.ws)
			}
			l.makeUp(s.ws, figures...)
			admin.MustExec(`UPDATE workspace_load SET max_waiting = $2, leaving = $3 WHERE workspace_id = $1`, s.ws, maxWaiting, leaving)
		}
	}
	spyOnFlushes(l)

	for _, s := range alone {
		var done store.Done
		done, s.err = l.api.Do(ctx, store.Scope{Workspace: s.ws}, nil, func(w *store.Work) (_ store.Answer, err error) {
			s.views, err = w.Submit(ctx, s.tasks)
			return store.Answer{}, err
		})
		s.turns = done.Turns
	}
	if n := spied(l); n != 0 {
		t.Fatalf("%d tasks of submits by themselves were entered in company", n)
	}
	together(t, l.api, company)()

	told := func(s *sent) string {
		var unknown store.UnknownAgents
		if errors.As(s.err, &unknown) {
			return fmt.Sprint("unknown ", unknown)
		} else if s.err != nil {
			return fmt.Sprint("refused ", store.KindOf(s.err))
		}
		text := fmt.Sprint(len(s.turns), " turns:")
		for _, turn := range s.turns {
			row := l.count(`SELECT count(*) FROM workspace_load WHERE workspace_id = $1 AND turn = $2 AND turn_at = $3 AND queue = $4`, s.ws, turn.ID, turn.IssuedAt, turn.Queue)
			text += fmt.Sprint(" ", row)
		}
		for i, v := range s.views {
			stored := l.count(`SELECT count(*) FROM tasks WHERE workspace_id = $1 AND id = $2 AND status = $3 AND prompt = $4 AND agent = $5 AND priority = $6 AND input = $7
				AND created_at = $8 AND timeout_ms = $9`, s.ws, v.ID, v.Status, s.tasks[i].Prompt, s.tasks[i].Agent, s.tasks[i].Priority, string(s.tasks[i].Input), v.CreatedAt, s.tasks[i].TimeoutMS)
			text += fmt.Sprintf(", %s %+v stored %d", v.Status, v.Waiting, stored)
		}
		return text + fmt.Sprint(", waiting ", l.count(`SELECT waiting FROM workspace_load WHERE workspace_id = $1`, s.ws), " of ", l.count(`SELECT count(*) FROM tasks t WHERE workspace_id = $1
			AND status IN ('queued', 'scheduled') AND NOT EXISTS (SELECT FROM leases l WHERE l.task_id = t.id)`, s.ws))
	}
	reached, accepted := map[string]int{}, int64(0)
	for i := range pairs {
		want, got := told(alone[i]), told(company[i])
		if got != want {
			t.Errorf("pair %d: by itself %s\nin company %s", i, want, got)
		}
		if company[i].err != nil {
			reached[want]++
			continue
		}
		accepted += int64(len(company[i].tasks))
		for _, v := range company[i].views {
			reached[v.Waiting.Reason]++
		}
	}
	if n := spied(l); n != accepted {
		t.Errorf("of %d tasks that were accepted in company, %d were entered together", accepted, n)
	}
	for _, reason := range []string{store.WaitInLine, store.WaitCap, store.WaitQuota, store.WaitBudget, store.WaitPaused, store.WaitScheduled, "unknown no agent is called nobody",
		fmt.Sprint("refused ", store.BacklogFull), fmt.Sprint("refused ", store.Unauthorized)} {
		if reached[reason] == 0 {
			t.Errorf("no state led to %q: %v", reason, reached)
		}
	}
}
