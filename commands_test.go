package main

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// desks is an operator's console on one workspace with a schedule and a webhook of its customer's.
type desks struct {
	t         *testing.T
	env       *storetest.Env
	vars      map[string]string
	id        uuid.UUID
	ws        string
	schedule  string
	webhook   string
	customers func(func(w *store.Work) error) error // makes a change as the customer
}

func newDesks(t *testing.T) *desks {
	env := storetest.New(t)
	d := &desks{t: t, env: env, vars: whole(env), id: storetest.NewWorkspace(t, env, "pro")}
	d.ws = store.FormatID(store.WorkspacePrefix, d.id)
	ledger := store.NewAPI(env.API(t))
	d.customers = func(change func(w *store.Work) error) error {
		_, err := ledger.Do(t.Context(), store.Scope{Workspace: d.id}, nil, func(w *store.Work) (store.Answer, error) { return store.Answer{}, change(w) })
		return err
	}
	if err := d.customers(func(w *store.Work) error {
		s, err := w.CreateSchedule(t.Context(), store.ScheduleSpec{Name: "night\x1b[31m", Cron: "30 2 * * *", Timezone: "UTC", MissedRuns: store.MissedRunOnce, Overlap: store.OverlapAllow,
			Agent: "yuki", Model: "auto", Prompt: "secret words", TimeoutMS: 1000, MaxAttempts: 1})
		if err != nil {
			return err
		}
		d.schedule = store.FormatID(store.SchedulePrefix, s.ID)
		h, err := w.CreateWebhook(t.Context(), store.NewWebhook{ID: store.NewID(), URL: "https://example.com/secret-path", Events: []string{store.EventTaskFailed},
			Sealed: make([]byte, 60), CreatedBy: "usr_1"})
		d.webhook = store.FormatID(store.WebhookPrefix, h.ID)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return d
}

// run is a command that must succeed; what it prints holds nothing of the customer's own.
func (d *desks) run(args ...string) string {
	d.t.Helper()
	code, stdout, stderr := runWith(d.vars, args...)
	if code != exitOK || strings.Contains(stdout, "secret") || strings.Contains(stdout, "\x1b") {
		d.t.Fatalf("%q: %d %s%s", args, code, stdout, stderr)
	}
	return stdout
}

// refused is a command that must fail with this exit code and one line that says why.
func (d *desks) refused(want int, says string, args ...string) {
	d.t.Helper()
	code, _, stderr := runWith(d.vars, args...)
	if code != want || !strings.Contains(stderr, says) {
		d.t.Errorf("%q: %d %q, want %d and %q", args, code, stderr, want, says)
	}
}

// noted lists what operators did in the workspace, by the audit log.
func (d *desks) noted() (actions string) {
	d.t.Helper()
	err := d.env.Admin(d.t).GetContext(context.Background(), &actions, `SELECT string_agg(action, ' ' ORDER BY seq) FROM audit_log
		WHERE workspace_id = $1 AND actor_type = 'operator' AND action <> 'workspace.set_plan'`, d.id)
	if err != nil {
		d.t.Fatal(err)
	}
	return actions
}

func TestSchedulesOnTheCommandLine(t *testing.T) {
	t.Parallel()
	d := newDesks(t)
	if out := d.run("schedules", "list", d.ws); !strings.Contains(out, d.schedule) || !strings.Contains(out, "active") {
		t.Errorf("%s", out)
	}
	var s scheduleJSON
	status := func(args ...string) string {
		t.Helper()
		s = scheduleJSON{}
		if err := json.Unmarshal([]byte(d.run(append(args, "--json")...)), &s); err != nil {
			t.Fatal(err)
		}
		return s.Status
	}
	if status("schedules", "pause", d.ws, d.schedule) != "paused" || s.NextAt != nil {
		t.Errorf("%+v", s)
	}
	if status("schedules", "resume", d.ws, d.schedule) != "active" || s.NextAt == nil || !s.NextAt.After(time.Now()) {
		t.Errorf("%+v", s)
	}
	d.env.Admin(t).MustExec(`UPDATE schedules SET next_at = now() - interval '10 seconds'`)
	if _, err := store.NewSystem(d.env.System(t)).FireSchedules(t.Context()); err != nil {
		t.Fatal(err)
	}
	if out := d.run("schedules", "show", d.ws, d.schedule); strings.Count(out, "sent") != 1 || strings.Count(out, "task_") != 1 {
		t.Errorf("its run: %s", out)
	}
	if out := d.run("schedules", "delete", d.ws, d.schedule); !strings.Contains(out, d.schedule) {
		t.Errorf("%s", out)
	}
	d.run("schedules", "delete", d.ws, d.schedule, "--yes")
	d.refused(exitFailure, "no such schedule", "schedules", "show", d.ws, d.schedule)
	d.refused(exitUsage, `"task_1" is no schedule; want an id such as sched_`, "schedules", "pause", d.ws, "task_1")
	d.refused(exitUsage, "1 arguments, want 2", "schedules", "resume", d.ws)
	d.refused(exitUsage, "--limit is 0; want 1 to 1000", "schedules", "list", d.ws, "--limit", "0")
	d.refused(exitUsage, "is no workspace", "schedules", "list", "mine")
	d.refused(exitUsage, "want one of delete, list, pause, resume, show", "schedules")
	if got, want := d.noted(), "schedules.read schedule.update schedule.update schedule.read schedule.read schedule.delete schedule.read"; got != want {
		t.Errorf("the audit log has %s; want %s", got, want)
	}
}

func TestWebhooksOnTheCommandLine(t *testing.T) {
	t.Parallel()
	d := newDesks(t)
	if out := d.run("webhooks", "list", d.ws); !strings.Contains(out, d.webhook) || !strings.Contains(out, "example.com") {
		t.Errorf("%s", out)
	}
	event := strings.Fields(strings.Split(d.run("webhooks", "test", d.ws, d.webhook), "\n")[1])[0]
	deliveries := func(args ...string) (list []deliveredJSON) {
		t.Helper()
		if err := json.Unmarshal([]byte(d.run(append(args, "--json")...)), &list); err != nil {
			t.Fatal(err)
		}
		return list
	}
	d.env.Admin(t).MustExec(`UPDATE webhook_deliveries SET status = 'dead', attempts = 9, last_at = now(), last_status = 500, last_error = 'status'`)
	if list := deliveries("webhooks", "deliveries", d.ws, d.webhook, "--status", "dead"); len(list) != 1 || list[0].ID != event || *list[0].LastStatus != 500 || list[0].NextAt != nil {
		t.Errorf("%+v", list)
	}
	if list := deliveries("webhooks", "replay", d.ws, d.webhook, event); len(list) != 1 || list[0].Status != "waiting" || list[0].Attempts != 0 {
		t.Errorf("%+v", list)
	}
	d.env.Admin(t).MustExec(`UPDATE webhook_deliveries SET status = 'dead', created_at = now() - interval '33 hours', last_at = now() - interval '20 hours'`)
	if out := d.run("webhooks", "replay-all", d.ws, d.webhook, "--since", "24h"); !strings.HasPrefix(out, "1 deliveries") {
		t.Errorf("%s", out)
	}
	if out := d.run("webhooks", "disable", d.ws, d.webhook); !strings.Contains(out, "no: operator") {
		t.Errorf("%s", out)
	}
	d.refused(exitFailure, "is disabled", "webhooks", "test", d.ws, d.webhook)
	enable := func(w *store.Work) error {
		id, _ := store.ParseID(store.WebhookPrefix, d.webhook)
		_, err := w.ChangeWebhook(t.Context(), id, store.WebhookPatch{Enabled: ptr(true)})
		return err
	}
	if err := d.customers(enable); store.KindOf(err) != store.Conflict {
		t.Errorf("its customer enables what an operator has disabled: %v", err)
	}
	if out := d.run("webhooks", "enable", d.ws, d.webhook); !strings.Contains(out, " yes ") {
		t.Errorf("%s", out)
	}
	if err := d.customers(enable); err != nil {
		t.Error(err)
	}
	d.refused(exitUsage, "--since is 0s", "webhooks", "replay-all", d.ws, d.webhook)
	d.refused(exitUsage, `--status is "lost"; want waiting, succeeded or dead`, "webhooks", "deliveries", d.ws, d.webhook, "--status", "lost")
	d.refused(exitUsage, `is no event; want an id such as evt_`, "webhooks", "replay", d.ws, d.webhook, "x")
	d.refused(exitUsage, "is no webhook", "webhooks", "enable", d.ws, d.schedule)
	d.refused(exitFailure, "no such webhook", "webhooks", "enable", d.ws, store.FormatID(store.WebhookPrefix, store.NewID()))
	if got, want := d.noted(), "webhooks.read webhook.test webhook.deliveries_read webhook.replay webhook.replay webhook.update webhook.update"; got != want {
		t.Errorf("the audit log has %s; want %s", got, want)
	}
}
