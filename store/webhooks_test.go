package store_test

import (
	"context"
	"fmt"
	"go/parser"
	"go/token"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// hooks is a line with endpoints.
type hooks struct{ *line }

// work runs one API transaction of the workspace.
func (h hooks) work(ws uuid.UUID, fn func(w *store.Work) error) error {
	_, err := h.api.Do(context.Background(), store.Scope{Workspace: ws}, nil, func(w *store.Work) (store.Answer, error) { return store.Answer{}, fn(w) })
	return err
}

func (h hooks) must(ws uuid.UUID, fn func(w *store.Work) error) {
	h.t.Helper()
	if err := h.work(ws, fn); err != nil {
		h.t.Fatal(err)
	}
}

var sealed = make([]byte, 60)

func (h hooks) endpoint(ws uuid.UUID, events ...string) uuid.UUID {
	h.t.Helper()
	if events == nil {
		events = store.WebhookEvents
	}
	id := store.NewID()
	h.must(ws, func(w *store.Work) error {
		_, err := w.CreateWebhook(context.Background(), store.NewWebhook{ID: id, URL: "https://example.com/" + id.String(), Events: events, Sealed: sealed, CreatedBy: "usr_test"})
		return err
	})
	return id
}

// told lists what is written for an endpoint, as types in the order of the events.
func (h hooks) told(endpoint uuid.UUID) []string {
	h.t.Helper()
	types := []string{}
	if err := h.env.Admin(h.t).Select(&types, `SELECT type FROM webhook_deliveries WHERE endpoint_id = $1 ORDER BY created_at, id`, endpoint); err != nil {
		h.t.Fatal(err)
	}
	return types
}

func (h hooks) exec(sql string, args ...any) {
	h.t.Helper()
	if _, err := h.env.Admin(h.t).Exec(sql, args...); err != nil {
		h.t.Fatal(err)
	}
}

func (h hooks) finish(task store.ClaimedTask, o store.Outcome) store.Finished {
	h.t.Helper()
	done, err := h.fleet.Finish(context.Background(), finishOf(task, o, 10), false)
	if err != nil || !done.Accepted {
		h.t.Fatalf("finish: %+v %v", done, err)
	}
	return done
}

func TestWebhookEvents(t *testing.T) {
	t.Parallel()
	ctx := context.Background()

	t.Run("EveryEndOfATaskIsToldOnceInItsTransaction", func(t *testing.T) {
		t.Parallel()
		h := hooks{newLine(t)}
		ws, other := storetest.NewWorkspace(t, h.env, "pro"), storetest.NewWorkspace(t, h.env, "pro")
		all, failures, foreign := h.endpoint(ws), h.endpoint(ws, store.EventTaskFailed), h.endpoint(other)
		want := []string{}
		expect := func(what string, types ...string) {
			t.Helper()
			want = append(want, types...)
			if got := h.told(all); !slices.Equal(got, want) {
				t.Fatalf("%s: told %v, want %v", what, got, want)
			}
		}
		ids, turn := h.submit(ws, task("a"))
		won := h.won(turn)
		expect("a task that runs")
		h.finish(won.Task, store.Retry)
		expect("a retry")
		h.exec(`UPDATE tasks SET run_at = now() WHERE id = $1`, ids[0])
		_, _, turns, err := h.system.PromoteDue(ctx)
		if err != nil {
			t.Fatal(err)
		}
		h.finish(h.won(one(t, turns)).Task, store.Failed)
		expect("a failure", store.EventTaskFailed)
		done, err := h.api.Do(ctx, store.Scope{Workspace: ws}, nil, func(w *store.Work) (store.Answer, error) { return store.Answer{}, w.Retry(ctx, ids[0]) })
		if err != nil {
			t.Fatal(err)
		}
		second := h.won(one(t, done.Turns))
		f := finishOf(second.Task, store.Succeeded, 5)
		for range 2 { // the answer to the first is lost
			if done, err := h.fleet.Finish(ctx, f, false); err != nil || !done.Accepted {
				t.Fatal(done, err)
			}
		}
		expect("a success, asked twice", store.EventTaskSucceeded)
		_, turn = h.submit(ws, task("b"))
		h.finish(h.won(turn).Task, store.Timeout)
		expect("a timeout", store.EventTaskFailed)
		_, turn = h.submit(ws, task("c"))
		h.finish(h.won(turn).Task, store.Canceled)
		expect("a task that was running when it was canceled", store.EventTaskCanceled)
		ids, turn = h.submit(ws, task("d"), task("e"), task("f"))
		running := h.won(turn)
		h.must(ws, func(w *store.Work) error { _, err := w.Cancel(ctx, ids[1]); return err })
		expect("a waiting task that was canceled", store.EventTaskCanceled)
		h.must(ws, func(w *store.Work) error { _, err := w.CancelMatching(ctx, store.CancelFilter{}); return err })
		expect("a cancel in bulk", store.EventTaskCanceled)
		h.finish(running.Task, store.HandedBack) // it was asked to stop
		expect("what ran meanwhile", store.EventTaskCanceled)
		expires := task("late")
		in := time.Now().Add(time.Hour)
		expires.ExpiresAt = &in
		ids, _ = h.submit(ws, expires)
		h.exec(`UPDATE tasks SET expires_at = now() WHERE id = $1`, ids[0])
		if n, _, _, err := h.system.ExpireDue(ctx); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		expect("a task that expired", store.EventTaskFailed)
		ids, turn = h.submit(ws, task("g"))
		h.won(turn)
		h.exec(`UPDATE tasks SET crashes = 4, losses = 9 WHERE id = $1`, ids[0])
		h.exec(`UPDATE workers SET dead_at = now() WHERE id = $1`, h.worker)
		if n, _, err := h.system.RecoverDeadWorkers(ctx); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		expect("the last crash", store.EventTaskFailed)
		h.worker = h.register()
		h.exec(`UPDATE workspace_load SET used_ms = 90000 WHERE workspace_id = $1`, ws)
		if _, err := h.system.SetLimits(ctx, ws, map[string]int64{"agent_ms": 80_000}, store.Operator{Name: "test"}); err != nil {
			t.Fatal(err)
		}
		expect("a quota that is used up", store.EventQuotaNotice)
		h.exec(`UPDATE workspace_load SET used_ms = (SELECT sum(quantity) FROM metering_rows WHERE meter = 'agent_ms' AND billable) WHERE workspace_id = $1`, ws)

		if got := h.told(failures); !slices.Equal(got, []string{store.EventTaskFailed, store.EventTaskFailed, store.EventTaskFailed, store.EventTaskFailed}) {
			t.Errorf("who asked for failures is told %v", got)
		}
		if got := h.told(foreign); len(got) != 0 {
			t.Errorf("another workspace's endpoint is told %v", got)
		}
		var ids2, shared int
		if err := h.env.Admin(t).QueryRow(`SELECT count(DISTINCT id), count(*) - count(DISTINCT id) FROM webhook_deliveries`).Scan(&ids2, &shared); err != nil || ids2 != len(want) || shared != 4 {
			t.Errorf("%d events, %d of them at two endpoints, %v", ids2, shared, err)
		}
	})

	t.Run("WhatIsUndoneIsNotTold", func(t *testing.T) {
		t.Parallel()
		h := hooks{newLine(t)}
		ws := storetest.NewWorkspace(t, h.env, "pro")
		endpoint := h.endpoint(ws)
		ids, _ := h.submit(ws, task("a"))
		err := h.work(ws, func(w *store.Work) error {
			if _, err := w.Cancel(ctx, ids[0]); err != nil {
				return err
			}
			return fmt.Errorf("changed our mind")
		})
		if err == nil || len(h.told(endpoint)) != 0 {
			t.Errorf("told %v, %v", h.told(endpoint), err)
		}
	})

	t.Run("NobodyIsToldWhoIsDisabledOrGone", func(t *testing.T) {
		t.Parallel()
		h := hooks{newLine(t)}
		ws := storetest.NewWorkspace(t, h.env, "pro")
		off, gone := h.endpoint(ws), h.endpoint(ws)
		end := func() {
			ids, _ := h.submit(ws, task("x"))
			h.must(ws, func(w *store.Work) error { _, err := w.Cancel(ctx, ids[0]); return err })
		}
		no, yes := false, true
		h.must(ws, func(w *store.Work) error {
			_, err := w.ChangeWebhook(ctx, off, store.WebhookPatch{Enabled: &no})
			return err
		})
		end()
		h.must(ws, func(w *store.Work) error { return w.DeleteWebhook(ctx, gone) })
		end()
		if err := h.work(ws, func(w *store.Work) error { return w.DeleteWebhook(ctx, gone) }); store.KindOf(err) != store.NotFound {
			t.Errorf("removed twice: %v", err)
		}
		h.must(ws, func(w *store.Work) error {
			_, err := w.ChangeWebhook(ctx, off, store.WebhookPatch{Enabled: &yes})
			return err
		})
		end()
		if a, b := h.told(off), h.told(gone); len(a) != 1 || len(b) != 1 {
			t.Errorf("told %v and %v", a, b)
		}
	})

	t.Run("AnErasedTaskIsErasedFromItsEvents", func(t *testing.T) {
		t.Parallel()
		h := hooks{newLine(t)}
		ws := storetest.NewWorkspace(t, h.env, "pro")
		h.endpoint(ws)
		secret := task("a")
		secret.Metadata = []byte(`{"name": "lovelace"}`)
		ids, turn := h.submit(ws, secret)
		h.finish(h.won(turn).Task, store.Failed)
		h.must(ws, func(w *store.Work) error { _, err := w.EraseTask(ctx, ids[0]); return err })
		var data string
		if err := h.env.Admin(t).Get(&data, `SELECT data FROM webhook_deliveries`); err != nil {
			t.Fatal(err)
		}
		for _, gone := range []string{"lovelace", "no answer"} {
			if strings.Contains(data, gone) {
				t.Errorf("%q is left: %s", gone, data)
			}
		}
		for _, kept := range []string{"provider_error", `"erased_at": "2`, "yuki"} {
			if !strings.Contains(data, kept) {
				t.Errorf("%q is gone: %s", kept, data)
			}
		}
	})
}

// Statements that end tasks must be followed by an announce: this reads the sources for them.
func TestEveryStatementThatEndsTasksIsAnnounced(t *testing.T) {
	t.Parallel()
	files, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	endings := 0
	for _, file := range files {
		if !strings.HasSuffix(file.Name(), ".go") || strings.HasSuffix(file.Name(), "_test.go") {
			continue
		}
		source, err := os.ReadFile(file.Name())
		if err != nil {
			t.Fatal(err)
		}
		set := token.NewFileSet()
		parsed, err := parser.ParseFile(set, file.Name(), source, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range parsed.Decls {
			text := string(source[set.Position(d.Pos()).Offset:set.Position(d.End()).Offset])
			ends := strings.Contains(text, "UPDATE tasks") && strings.Contains(text, "finished_at = ") &&
				strings.Count(text, "finished_at = ") > strings.Count(text, "finished_at = NULL")
			if !ends {
				continue
			}
			endings++
			if !strings.Contains(text, "announce(") {
				t.Errorf("%s: tasks end here and nobody is told:\n%s", set.Position(d.Pos()), text[:min(len(text), 300)])
			}
		}
		if file.Name() == "finish.go" && !strings.Contains(string(source), "announceFinished(ctx, tx, loads, ended, moves)") {
			t.Error("finishAll tells nobody")
		}
	}
	migrations, err := os.ReadDir("migrations")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range migrations { // functions of the database
		source, err := os.ReadFile("migrations/" + file.Name())
		if err != nil {
			t.Fatal(err)
		}
		for _, function := range strings.Split(string(source), "CREATE FUNCTION ")[1:] {
			function, _, _ = strings.Cut(function, "-- +goose StatementEnd")
			if !strings.Contains(function, "finished_at = ") {
				continue
			}
			endings++
			if name, _, _ := strings.Cut(function, "("); name != "line_book" { // finishAll calls it, and announces
				t.Errorf("%s of %s ends tasks and nobody is told", name, file.Name())
			}
		}
	}
	if endings < 3 {
		t.Errorf("%d statements that end tasks were found: this test reads the wrong words", endings)
	}
}
