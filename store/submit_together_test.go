package store_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// What submits that share a transaction may do to each other: nothing.

// sent is one submit and what became of it.
type sent struct {
	ws    uuid.UUID
	tasks []store.NewTask
	views []store.TaskView
	turns []store.Turn
	err   error
}

// together submits all in one flush of each lane, and returns when the returned function is called.
func together(t *testing.T, api *store.API, all []*sent) (wait func()) {
	t.Helper()
	waiting, release := api.HoldSubmits()
	var wg sync.WaitGroup
	for i, s := range all {
		wg.Go(func() { s.views, s.turns, s.err = api.Submit(t.Context(), s.ws, s.tasks) })
		eventually(t, "the submit to wait", func() bool { return waiting() == i+1 }) // in this order
	}
	release()
	return wg.Wait
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestSubmitsTogether(t *testing.T) {
	t.Parallel()
	ctx := context.Background()

	t.Run("SeeAndWriteNothingOfEachOther", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		spyOnFlushes(l)
		bystander := storetest.NewWorkspace(t, l.env, "pro")
		l.submit(bystander, task("nobody's business"))
		db := l.env.API(t)
		db.SetMaxOpenConns(1)
		var all []*sent
		for i := range 20 {
			s := &sent{ws: storetest.NewWorkspace(t, l.env, "pro"), tasks: []store.NewTask{task(fmt.Sprint("first of ", i)), task(fmt.Sprint("second of ", i))}}
			all = append(all, s, &sent{ws: s.ws, tasks: []store.NewTask{task(fmt.Sprint("third of ", i))}})
		}
		// One has an agent of its own, which is nobody else's.
		l.env.Admin(t).MustExec(`INSERT INTO agents (workspace_id, id, name) VALUES ($1, $2, 'own')`, all[0].ws, uuid.New())
		all[0].tasks[0].Agent, all[4].tasks[0].Agent = "own", "own"
		together(t, l.api, all)()
		for i, s := range all {
			var unknown store.UnknownAgents
			if i == 4 {
				if !errors.As(s.err, &unknown) {
					t.Errorf("another's agent was served: %v", s.err)
				}
				continue
			}
			if s.err != nil {
				t.Fatalf("%d: %v", i, s.err)
			}
			for j, v := range s.views {
				if n := l.count(`SELECT count(*) FROM tasks WHERE workspace_id = $1 AND id = $2 AND prompt = $3`, s.ws, v.ID, s.tasks[j].Prompt); n != 1 {
					t.Errorf("%d: task %d is stored %d times", i, j, n)
				}
			}
		}
		if n := l.count(`SELECT count(*) FROM tasks WHERE workspace_id <> $1`, bystander); n != 58 {
			t.Errorf("%d tasks, want 58", n)
		}
		if n := spied(l); n != 57 { // the task beside the unknown agent's went alone
			t.Errorf("%d tasks were entered in company, want 57", n)
		}
		var seen int
		if err := db.Get(&seen, `SELECT (SELECT count(*) FROM tasks) + (SELECT count(*) FROM workspace_load)`); err != nil || seen != 0 {
			t.Errorf("behind the flush %d rows are seen (%v)", seen, err)
		}
	})

	t.Run("FailAlone", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		admin := l.env.Admin(t)
		admin.MustExec(`CREATE FUNCTION break() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
				IF NEW.prompt = 'broken function' THEN RAISE EXCEPTION 'broken'; END IF; RETURN NEW; END $$;
			CREATE TRIGGER break BEFORE INSERT ON tasks FOR EACH ROW EXECUTE FUNCTION break()`)
		one := func(change func(n *store.NewTask)) *sent {
			s := &sent{ws: storetest.NewWorkspace(t, l.env, "pro"), tasks: []store.NewTask{task("x")}}
			if change != nil {
				change(&s.tasks[0])
			}
			return s
		}
		bad := one(func(n *store.NewTask) { n.Input = json.RawMessage(`{"x": "\u0000"}`) }) // valid JSON that jsonb refuses
		text := one(func(n *store.NewTask) { n.Prompt = "no \xff UTF-8" })
		broken := one(func(n *store.NewTask) { n.Prompt = "broken function" })
		unknown := one(func(n *store.NewTask) { n.Agent = "nobody" })
		full, leaving, held, absent := one(nil), one(nil), one(nil), &sent{ws: uuid.New(), tasks: []store.NewTask{task("x")}}
		admin.MustExec(`UPDATE workspace_load SET max_waiting = 2 WHERE workspace_id = $1`, full.ws)
		admin.MustExec(`UPDATE workspace_load SET leaving = true WHERE workspace_id = $1`, leaving.ws)
		fits := []*sent{full, {ws: full.ws, tasks: full.tasks}, {ws: full.ws, tasks: full.tasks}} // two of three
		release := l.hold(store.ClaimedTask{Workspace: held.ws})
		defer release()

		var all, good []*sent
		for _, culprit := range []*sent{bad, text, broken, unknown, leaving, held, absent, fits[0], fits[1], fits[2]} {
			neighbour := one(nil)
			good, all = append(good, neighbour), append(all, culprit, neighbour)
		}
		wait := together(t, l.api, all)
		for _, s := range good { // while held is held
			eventually(t, "a neighbour's task", func() bool { return l.count(`SELECT count(*) FROM tasks WHERE workspace_id = $1`, s.ws) == 1 })
		}
		if n := l.count(`SELECT count(*) FROM tasks WHERE workspace_id = $1`, held.ws); n != 0 {
			t.Errorf("%d tasks behind a held row", n)
		}
		release()
		wait()
		for i, s := range append(good, held) {
			if s.err != nil || len(s.views) != 1 || len(s.turns) != 1 || s.turns[0].Workspace != s.ws {
				t.Errorf("neighbour %d: %d views, turns %v, %v", i, len(s.views), s.turns, s.err)
			}
		}
		if !store.BadData(bad.err) || !store.BadData(text.err) {
			t.Errorf("refused values: %v, %v", bad.err, text.err)
		}
		if broken.err == nil || !strings.Contains(broken.err.Error(), "broken") {
			t.Errorf("another error: %v", broken.err)
		}
		var names store.UnknownAgents
		if !errors.As(unknown.err, &names) {
			t.Errorf("an unknown agent: %v", unknown.err)
		}
		if store.KindOf(leaving.err) != store.Unauthorized || store.KindOf(absent.err) != store.NotFound {
			t.Errorf("who leaves: %v; who is not there: %v", leaving.err, absent.err)
		}
		refused := 0
		for _, s := range fits {
			if store.KindOf(s.err) == store.BacklogFull {
				refused++
			} else if s.err != nil {
				t.Error(s.err)
			}
		}
		if n := l.count(`SELECT count(*) FROM tasks WHERE workspace_id = $1`, full.ws); n != 2 || refused != 1 {
			t.Errorf("%d tasks where two fit, %d of three submits refused", n, refused)
		}
	})

	t.Run("OfOneWorkspaceStandInTheOrderTheyCame", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "pro")
		var all []*sent
		for i := range 12 {
			s := &sent{ws: ws, tasks: []store.NewTask{task(fmt.Sprint(i)), task(fmt.Sprint(i))}}
			s.tasks[1].Priority = i % 3
			all = append(all, s)
		}
		together(t, l.api, all)()
		turns := 0
		for i, s := range all {
			if s.err != nil {
				t.Fatal(s.err)
			}
			turns += len(s.turns)
			for j, v := range s.views {
				read, err := l.api.Task(ctx, ws, v.ID)
				if err != nil || *read.Waiting != *v.Waiting || read.Prompt != fmt.Sprint(i) || read.Priority != s.tasks[j].Priority {
					t.Errorf("submit %d, task %d: told %+v, read %+v (%v)", i, j, v.Waiting, read.Waiting, err)
				}
			}
			if i > 0 && all[i-1].views[0].Waiting.Position >= s.views[0].Waiting.Position {
				t.Errorf("submit %d stands at %d, the one before at %d", i, s.views[0].Waiting.Position, all[i-1].views[0].Waiting.Position)
			}
		}
		if turns != 1 || len(all[0].turns) != 1 {
			t.Errorf("%d turns; the first of them has %d", turns, len(all[0].turns))
		}
	})

	t.Run("LeaveWhenTheirContextEndsAndNotInTheMiddle", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		l.env.Admin(t).MustExec(`CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
				IF NEW.prompt = 'slow' THEN PERFORM pg_sleep(0.3); END IF; RETURN NEW; END $$;
			CREATE TRIGGER slow BEFORE INSERT ON tasks FOR EACH ROW EXECUTE FUNCTION slow()`)
		slow, gone, waits := storetest.NewWorkspace(t, l.env, "pro"), storetest.NewWorkspace(t, l.env, "pro"), storetest.NewWorkspace(t, l.env, "pro")
		waiting, release := l.api.HoldSubmits()
		before, leaveBefore := context.WithCancel(ctx)
		during, leaveDuring := context.WithCancel(ctx)
		s := make([]sent, 3)
		var wg sync.WaitGroup
		left := make(chan struct{})
		go func() {
			defer close(left)
			s[0].views, s[0].turns, s[0].err = l.api.Submit(before, gone, []store.NewTask{task("x")})
		}()
		wg.Go(func() { s[1].views, s[1].turns, s[1].err = l.api.Submit(during, slow, []store.NewTask{task("slow")}) })
		wg.Go(func() { s[2].views, s[2].turns, s[2].err = l.api.Submit(ctx, waits, []store.NewTask{task("x")}) })
		eventually(t, "all to wait", func() bool { return waiting() == 3 })
		leaveBefore()
		<-left
		if !errors.Is(s[0].err, context.Canceled) {
			t.Errorf("who left before the flush: %v", s[0].err)
		}
		release()
		eventually(t, "the flush", func() bool { return waiting() == 0 })
		leaveDuring()
		wg.Wait()
		for _, s := range s[1:] { // a turn was issued: it has to reach the line
			if s.err != nil || len(s.views) != 1 || len(s.turns) != 1 {
				t.Errorf("%d views, %d turns, %v", len(s.views), len(s.turns), s.err)
			}
		}
		if n := l.count(`SELECT count(*) FROM tasks WHERE workspace_id = $1`, gone); n != 0 {
			t.Errorf("%d tasks of who left before the flush", n)
		}
	})

	t.Run("WaitForNobodyWhoIsHeld", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		held := storetest.NewWorkspace(t, l.env, "pro")
		release := l.hold(store.ClaimedTask{Workspace: held})
		defer release()
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if _, _, err := l.api.Submit(ctx, held, []store.NewTask{task("x")}); err != nil {
					t.Errorf("behind the held row: %v", err)
				}
			})
		}
		for range 20 { // on both lanes, while the row is held
			if _, _, err := l.api.Submit(ctx, storetest.NewWorkspace(t, l.env, "free"), []store.NewTask{task("x")}); err != nil {
				t.Error(err)
			}
		}
		if n := l.count(`SELECT count(*) FROM tasks WHERE workspace_id = $1`, held); n != 0 {
			t.Errorf("%d tasks behind a held row", n)
		}
		release()
		wg.Wait()
		if n := l.count(`SELECT count(*) FROM tasks WHERE workspace_id = $1`, held); n != 4 {
			t.Errorf("%d of 4 tasks when the row was let go", n)
		}
	})

	t.Run("ThroughPgBouncerOnOneConnection", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		db, err := store.Open(ctx, l.env.ThroughPgBouncer(t, 1).APIURL, 8)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		l.api = store.NewAPI(db)
		submitMixed(t, l, 100)
	})

	t.Run("FiveHundredMixedAgreeWithAModelWhileWorkersClaimAndFinish", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		submitMixed(t, l, 500)
	})
}

// submitMixed sends n submits of all kinds at once into a few workspaces, while others claim, finish and cancel there, and
// compares the ledger with what was answered.
func submitMixed(t *testing.T, l *line, n int) {
	ctx, seed := context.Background(), uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	workspaces := make([]uuid.UUID, 9)
	for i := range workspaces {
		workspaces[i] = storetest.NewWorkspace(t, l.env, "pro")
	}
	tight := workspaces[0]
	l.env.Admin(t).MustExec(`UPDATE workspace_load SET max_waiting = 20, cap = 0 WHERE workspace_id = $1`, tight)

	var mu sync.Mutex
	accepted := map[uuid.UUID]map[uuid.UUID]string{} // workspace → task → prompt
	unsure := map[string]bool{}                      // prompts whose client left
	took := map[string]int{}
	turns := make(chan store.Turn, n+10_000)
	var workers, clients sync.WaitGroup
	for range 4 {
		workers.Go(func() {
			for turn := range turns {
				for next := &turn; next != nil; {
					c, err := l.fleet.Claim(ctx, &store.Claim{Workspace: next.Workspace, Turn: next.ID, Lease: uuid.New(), Worker: l.worker}, false)
					if err != nil {
						t.Errorf("claim: %v", err)
						return
					}
					next = c.Turn
					if c.Outcome != store.ClaimWon {
						continue
					}
					f, err := l.fleet.Finish(ctx, finishOf(c.Task, store.Succeeded, 5), false)
					if err != nil || !f.Accepted {
						t.Errorf("finish: %v %v", f.Accepted, err)
					}
					if f.Turn != nil {
						next = f.Turn
					}
				}
			}
		})
	}
	for i := range n {
		ws, kind, size := workspaces[random.IntN(len(workspaces))], random.IntN(10), 1+random.IntN(3)
		clients.Go(func() {
			tasks := make([]store.NewTask, size)
			for j := range tasks {
				tasks[j] = task(fmt.Sprintf("%d.%d", i, j))
			}
			sender, leave := context.WithCancel(ctx)
			defer leave()
			var want string
			switch kind {
			case 0:
				tasks[0].Agent, want = "nobody", "unknown agent"
			case 1:
				tasks[0].Metadata, want = json.RawMessage(`{"x": "\u0000"}`), "bad data"
			case 2:
				want = "left"
				go leave()
			case 3:
				tasks[0].Prompt += strings.Repeat("x", 40<<10) // goes alone
			}
			var views []store.TaskView
			var issued []store.Turn
			var err error
			if kind == 4 { // in a transaction with its key
				key := &store.IdempotencyKey{Route: "POST /v1/tasks", Key: fmt.Sprint(i)}
				var done store.Done
				done, err = l.api.Do(ctx, store.Scope{Workspace: ws}, key, func(w *store.Work) (a store.Answer, err error) {
					views, err = w.Submit(ctx, tasks)
					return store.Answer{Status: 202}, err
				})
				issued = done.Turns
			} else {
				views, issued, err = l.api.Submit(sender, ws, tasks)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, turn := range issued {
				turns <- turn
			}
			var unknown store.UnknownAgents
			got := ""
			switch {
			case errors.As(err, &unknown):
				got = "unknown agent"
			case store.BadData(err):
				got = "bad data"
			case store.KindOf(err) == store.BacklogFull && ws == tight:
				got = "full"
			case want == "left" && err != nil:
				got = "left"
				unsure[tasks[0].Prompt] = true
			case err != nil:
				t.Errorf("submit %d of kind %d: %v", i, kind, err)
				return
			default:
				got = "accepted"
				if accepted[ws] == nil {
					accepted[ws] = map[uuid.UUID]string{}
				}
				for j, v := range views {
					accepted[ws][v.ID] = tasks[j].Prompt
				}
			}
			took[got]++
			if (want == "unknown agent" || want == "bad data") != (got == want && got != "left") && got != "full" {
				t.Errorf("submit %d of kind %d was %s", i, kind, got)
			}
		})
	}
	clients.Wait()
	close(turns)
	workers.Wait()
	t.Log(took)
	var rows []struct {
		Workspace uuid.UUID `db:"workspace_id"`
		ID        uuid.UUID `db:"id"`
		Prompt    string    `db:"prompt"`
	}
	if err := l.env.Admin(t).Select(&rows, `SELECT workspace_id, id, prompt FROM tasks`); err != nil {
		t.Fatal(err)
	}
	stored, prompts := 0, []string{}
	for _, r := range rows {
		prompts = append(prompts, r.Prompt)
		if prompt, ok := accepted[r.Workspace][r.ID]; ok {
			stored++
			if prompt != r.Prompt {
				t.Errorf("task %s of %s holds another's prompt", r.ID, r.Workspace)
			}
		} else if first, _, _ := strings.Cut(r.Prompt, "."); !unsure[first+".0"] {
			t.Errorf("task %q was stored and not accepted", r.Prompt)
		}
	}
	slices.Sort(prompts)
	if len(slices.Compact(prompts)) != len(rows) {
		t.Error("a task is stored twice")
	}
	all := 0
	for _, tasks := range accepted {
		all += len(tasks)
	}
	if stored != all {
		t.Errorf("%d of %d accepted tasks are stored", stored, all)
	}
	if n := l.count(`SELECT count(*) FROM tasks WHERE workspace_id = $1`, tight); n > 20 {
		t.Errorf("%d tasks where 20 fit", n)
	}
	if n := l.count(`SELECT count(*) FROM tasks WHERE workspace_id <> $1 AND finished_at IS NULL`, tight); len(unsure) == 0 && n != 0 {
		t.Errorf("%d tasks were not run: a turn is lost", n)
	}
	if n := l.count(`SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()`); n != 0 {
		t.Errorf("%d deadlocks", n)
	}
}
