package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/billing/stripetest"
	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

func TestBillingCommands(t *testing.T) {
	t.Parallel()
	env := storetest.New(t)
	stripe, base := stripetest.Start(t, stripetest.Options{})
	vars := whole(env)
	vars["STRIPE_API_BASE"] = base
	muster := func(wantCode int, args ...string) string {
		t.Helper()
		code, stdout, stderr := runWith(vars, append([]string{"billing"}, args...)...)
		if code != wantCode {
			t.Fatalf("billing %v: exit code %d, want %d\n%s%s", args, code, wantCode, stdout, stderr)
		}
		return stdout + stderr
	}
	wants := func(out string, parts ...string) {
		t.Helper()
		for _, part := range parts {
			if !strings.Contains(out, part) {
				t.Errorf("missing %q in:\n%s", part, out)
			}
		}
	}

	// A push before the set-up says what to do.
	ws := storetest.NewWorkspace(t, env, "pro")
	id := store.FormatID(store.WorkspacePrefix, ws)
	if code, _, stderr := runWith(vars, "workspace", "set-plan", id, "pro", "--stripe-customer", "cus_unknown"); code != exitOK {
		t.Fatal(stderr)
	}
	db, yesterday := env.Admin(t), time.Now().UTC().AddDate(0, 0, -1).Format(time.DateOnly)
	meter := func(ms int) {
		t.Helper()
		if _, err := db.Exec(`INSERT INTO metering_rows (workspace_id, attempt_id, meter, quantity, billable, day, at, task_id, agent, model)
			VALUES ($1, $2, 'agent_ms', $3, true, $4::date, $4::timestamptz, $2, 'yuki', 'auto')`, ws, uuid.New(), ms, yesterday); err != nil {
			t.Fatal(err)
		}
	}
	meter(57)
	wants(muster(exitFailure, "push", "--wait", "0s"), "run muster billing setup")

	var catalog struct{ Meters, Prices map[string]string }
	if err := json.Unmarshal([]byte(muster(exitOK, "setup", "--json")), &catalog); err != nil || len(catalog.Meters) != 2 || len(catalog.Prices) != 5 {
		t.Fatalf("catalog %+v, %v", catalog, err)
	}
	wants(muster(exitOK, "setup"), "price  pro", catalog.Prices["pro"], "meter  agent_ms", catalog.Meters["agent_ms"])

	// A customer that Stripe does not know fails this workspace's push, with its reason.
	wants(muster(exitFailure, "push"), id, "cus_unknown", "1 left to the next run")
	customer := stripeCustomerAt(t, base)
	if code, _, stderr := runWith(vars, "workspace", "set-plan", id, "pro", "--stripe-customer", customer); code != exitOK {
		t.Fatal(stderr)
	}
	wants(muster(exitOK, "push", "--dry-run"), id+"  "+yesterday+"  agent_ms  57 ms  was 0  planned", "dry run: 1 totals of 1 workspaces would change")
	if n := len(stripe.Events()); n != 0 {
		t.Errorf("the dry run sent %d events", n)
	}
	var report struct {
		Sent, Left int
		Days       []pushedJSON
	}
	if err := json.Unmarshal([]byte(muster(exitOK, "push", "--day", "yesterday", "--json")), &report); err != nil || report.Sent != 1 || len(report.Days) != 1 ||
		report.Days[0] != (pushedJSON{Workspace: id, Day: yesterday, Meter: "agent_ms", Value: 57, State: "confirmed"}) {
		t.Errorf("report %+v, %v", report, err)
	}
	if got := stripe.DayTotals(customer, "muster_agent_ms"); fmt.Sprint(got) != fmt.Sprint(map[string]int64{yesterday: 57}) {
		t.Errorf("Stripe has %v", got)
	}
	wants(muster(exitOK, "reconcile"), "0 differences over 1 workspace-days")

	// Drift is a line and an exit code.
	if _, err := db.Exec(`UPDATE push_ledger SET value = 50`); err != nil {
		t.Fatal(err)
	}
	wants(muster(exitFailure, "reconcile"), "DIFFERENCE: "+id+" "+yesterday+" agent_ms metered=57 daily=57 ledger=50 stripe=57", "1 differences over 1 workspace-days")
	var found struct {
		Found       int
		Differences []lineJSON
	}
	if err := json.Unmarshal([]byte(muster(exitFailure, "reconcile", "--json", "--from", yesterday, "--to", "yesterday")), &found); err != nil || found.Found != 1 ||
		len(found.Differences) != 1 || *found.Differences[0].Ledger != 50 {
		t.Errorf("found %+v, %v", found, err)
	}
	muster(exitOK, "push") // the next push mends it
	wants(muster(exitOK, "reconcile"), "0 differences over 1 workspace-days")

	for _, wrong := range [][]string{{}, {"pull"}, {"push", "--day", "soon"}, {"push", "--day", "2999-01-01"}, {"push", "x"}, {"reconcile", "--from", "today", "--to", "yesterday"}, {"setup", "--nope"}} {
		muster(exitUsage, wrong...)
	}
	delete(vars, "STRIPE_SECRET_KEY")
	delete(vars, "SYSTEM_DATABASE_URL")
	wants(muster(exitUsage, "push"), "STRIPE_SECRET_KEY is not set", "SYSTEM_DATABASE_URL is not set")
}

// stripeCustomerAt makes a customer at a stand-in.
func stripeCustomerAt(t *testing.T, base string) string {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, base+"/v1/customers", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer sk_test_muster")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var c struct{ ID string }
	if err := json.NewDecoder(res.Body).Decode(&c); err != nil || c.ID == "" {
		t.Fatalf("make a customer: %v", err)
	}
	return c.ID
}
