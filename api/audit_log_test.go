package api

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

// actions are those of a page, newest first.
func (r *reply) actions() []string {
	r.t.Helper()
	names := []string{}
	for i := range r.list("data") {
		names = append(names, r.str(fmt.Sprintf("data.%d.action", i)))
	}
	return names
}

func TestAuditLog(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)

	t.Run("AnOwnerReadsWhoDidWhatWhenFromWhere", func(t *testing.T) {
		owner := w.owner("pro")
		key := owner.post("/v1/api-keys", map[string]any{"name": "x"}, headers{"X-Request-ID": "made-here"}).want(201).str("id")
		r := owner.get("/v1/audit-log").want(200)
		e := r.at("data.0").(map[string]any)
		actor := e["actor"].(map[string]any)
		if e["action"] != "api_key.create" || e["target"] != key || actor["type"] != "user" || actor["id"] != userID(owner.user) || e["ip"] != "127.0.0.1" ||
			e["request_id"] != "made-here" || len(e["hash"].(string)) != 64 || e["details"].(map[string]any)["role"] != "member" || e["seq"] != 3.0 {
			t.Errorf("%v", e)
		}
		if got := strings.Join(r.actions(), " "); got != "api_key.create workspace.set_plan account.register" {
			t.Errorf("the whole log is %q", got)
		}
		if r.at("next_cursor") != nil {
			t.Error("there is a page behind the last")
		}
	})
	t.Run("PagesAndFiltersFindEachEntryOnce", func(t *testing.T) {
		owner := w.owner("pro")
		var keys []string
		for range 5 {
			keys = append(keys, owner.post("/v1/api-keys", map[string]any{"name": "x"}).want(201).str("id"))
		}
		middle := time.Now().UTC()
		owner.do("DELETE", "/v1/api-keys/"+keys[0], nil).want(204)
		collect := func(query string) (targets []string) {
			t.Helper()
			for path := "/v1/audit-log?limit=2&" + query; path != ""; {
				page := owner.get(path).want(200)
				for i := range page.list("data") {
					targets = append(targets, page.str(fmt.Sprintf("data.%d.target", i)))
				}
				if path = ""; page.at("next_cursor") != nil {
					path = "/v1/audit-log?limit=2&" + query + "&cursor=" + page.str("next_cursor")
				}
			}
			return targets
		}
		at := "=" + middle.Format("2006-01-02T15:04:05.999999999Z")
		for query, want := range map[string][]string{
			"action=api_key.create":                           {keys[4], keys[3], keys[2], keys[1], keys[0]},
			"action=api_key.*":                                {keys[0], keys[4], keys[3], keys[2], keys[1], keys[0]},
			"target=" + keys[0]:                               {keys[0], keys[0]},
			"action=api_key.*&created_after" + at:             {keys[0]},
			"action=api_key.*&created_before" + at:            {keys[4], keys[3], keys[2], keys[1], keys[0]},
			"action=api_key.*&actor=" + userID(owner.user):    {keys[0], keys[4], keys[3], keys[2], keys[1], keys[0]},
			"action=api_key.*&actor=" + userID(store.NewID()): nil,
		} {
			if got := collect(query); strings.Join(got, " ") != strings.Join(want, " ") {
				t.Errorf("%s: %v, want %v", query, got, want)
			}
		}
		cursor := owner.get("/v1/audit-log?limit=2").want(200).str("next_cursor")
		owner.get("/v1/audit-log?limit=2&action=api_key.create&cursor=" + cursor).problem(probBadRequest)
		w.owner("pro").get("/v1/audit-log?limit=2&cursor=" + cursor).problem(probBadRequest)
	})
	t.Run("ReadingItAndAnothersRecordIsNotedAndOnesOwnIsNot", func(t *testing.T) {
		owner := w.owner("pro")
		other := owner.colleague(store.RoleMember)
		owner.get("/v1/members/" + userID(owner.user)).want(200)
		owner.get("/v1/members/" + userID(other.user)).want(200)
		owner.get("/v1/members/" + userID(store.NewID())).problem(probNotFound)
		owner.get("/v1/audit-log?actor=" + userID(other.user)).want(200)
		r := owner.get("/v1/audit-log").want(200)
		if got := strings.Join(r.actions(), " "); got != "audit_log.read member.read workspace.set_plan account.register" ||
			r.str("data.0.details.actor") != userID(other.user) || r.str("data.1.target") != userID(other.user) {
			t.Errorf("%s", r.body)
		}
	})
	t.Run("NothingOfAnotherWorkspaceOrTheSystemIsShown", func(t *testing.T) {
		owner, other := w.owner("pro"), w.owner("pro")
		w.exec(`INSERT INTO audit_log (workspace_id, actor_type, actor_id, action) VALUES ($1, 'system', '', 'canary.system'), ($2, 'system', '', 'canary.other')`, store.SystemChain, other.ws)
		for _, path := range []string{"/v1/audit-log", "/v1/audit-log/export", "/v1/audit-log/export?format=csv"} {
			if r := owner.get(path).want(200); strings.Contains(string(r.body), "canary") {
				t.Errorf("%s shows %s", path, r.body)
			}
		}
		if r := other.get("/v1/audit-log").want(200); !strings.Contains(string(r.body), "canary.other") {
			t.Errorf("its own entry is not shown: %s", r.body)
		}
	})
	t.Run("AnExportIsTheWholeLogAndIsNoted", func(t *testing.T) {
		owner := w.owner("pro")
		w.exec(`INSERT INTO audit_log (workspace_id, actor_type, actor_id, action, target) SELECT $1, 'operator', '=cmd', 'bulk.entry', '+1' FROM generate_series(1, 2500)`, owner.ws)
		lines := strings.Split(strings.TrimSpace(string(owner.get("/v1/audit-log/export?action=bulk.*").want(200).body)), "\n")
		var first, last auditEntryJSON
		if json.Unmarshal([]byte(lines[0]), &first) != nil || json.Unmarshal([]byte(lines[len(lines)-1]), &last) != nil || len(lines) != 2500 ||
			first.Seq != 2502 || last.Seq != 3 || first.Actor.ID != "=cmd" {
			t.Errorf("%d lines, %+v to %+v", len(lines), first, last)
		}
		r := owner.get("/v1/audit-log/export?format=csv").want(200)
		if !strings.HasPrefix(r.header.Get("Content-Disposition"), "attachment; filename=audit-log-") || r.header.Get("Content-Type") != mediaCSV {
			t.Errorf("%v", r.header)
		}
		rows, err := csv.NewReader(strings.NewReader(string(r.body))).ReadAll()
		if err != nil || len(rows) != 1+2503 || rows[0][0] != "seq" || rows[1][4] != "audit_log.export" || rows[2][3] != "'=cmd" || rows[2][5] != "'+1" {
			t.Errorf("%d rows, %v, %v", len(rows), rows[:3], err)
		}
		if got := owner.get("/v1/audit-log?action=audit_log.export").want(200); len(got.list("data")) != 2 || got.str("data.0.details.format") != "csv" {
			t.Errorf("%s", got.body)
		}
		owner.get("/v1/audit-log/export?format=xml").problem(probInvalid)
	})
	t.Run("AnExportThatCannotGoOnIsCutOff", func(t *testing.T) {
		owner := w.owner("pro")
		w.exec(`INSERT INTO audit_log (workspace_id, actor_type, actor_id, action) SELECT $1, 'operator', repeat('x', 4000), 'bulk.entry' FROM generate_series(1, 3000)`, owner.ws)
		req, err := http.NewRequest("GET", w.url+"/v1/audit-log/export", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+owner.credential)
		resp, err := testTransport.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		w.exec(`REVOKE SELECT ON audit_log FROM muster_api`) // the server is not ahead of us by 12 MB
		defer w.exec(`GRANT SELECT ON audit_log TO muster_api`)
		var all strings.Builder
		buf := make([]byte, 1<<16)
		for err == nil {
			var n int
			n, err = resp.Body.Read(buf)
			all.Write(buf[:n])
		}
		if n := strings.Count(all.String(), "\n"); err.Error() != "unexpected EOF" || n >= 3000 {
			t.Errorf("%d lines, then %v", n, err)
		}
	})
}

// strangersOf reads the system's entries of an action.
func (w *world) strangersOf(action string) (entries, counted int) {
	return w.count(`SELECT count(*) FROM audit_log WHERE workspace_id = $1 AND action = $2`, store.SystemChain, action),
		w.count(`SELECT coalesce(sum((details->>'count')::int), 0) FROM audit_log WHERE workspace_id = $1 AND action = $2`, store.SystemChain, action)
}

// eventually waits for what is written in the background.
func (w *world) eventually(what string, holds func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func TestStrangersAreNoted(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	nobody := w.anonymous()
	noted := func(action string) func() bool {
		return func() bool { n, _ := w.strangersOf(action); return n == 1 }
	}

	t.Run("AFailedSignInOfAKnownUserIsShownToTheirOwnersToo", func(t *testing.T) {
		in := w.registered("known@example.com")
		w.login("known@example.com", "wrong password").problem(probUnauthorized)
		w.eventually("it is noted", noted("session.login_failed"))
		r := w.with(in.str("access_token")).get("/v1/audit-log?action=session.login_failed").want(200)
		if r.str("data.0.target") != in.str("user.id") || r.str("data.0.actor.type") != "anonymous" || r.str("data.0.ip") != "127.0.0.1" || r.num("data.0.details.count") != 1 {
			t.Errorf("%s", r.body)
		}
		if n := w.count(`SELECT count(*) FROM audit_log a WHERE a::text ~ 'known@|wrong password'`); n != 0 {
			t.Errorf("%d entries", n)
		}
	})
	t.Run("EachRefusalHasItsAction", func(t *testing.T) {
		owner := w.owner("pro")
		made := owner.post("/v1/api-keys", map[string]any{"name": "x"}).want(201)
		w.registered("twice@example.com")
		owner.do("DELETE", "/v1/api-keys/"+made.str("id"), nil).want(204)
		spent := w.registered("spent@example.com")
		refresh := map[string]any{"refresh_token": spent.str("refresh_token")}
		nobody.post("/v1/auth/refresh", refresh).want(200)

		nobody.post("/v1/auth/refresh", refresh).problem(probUnauthorized)
		nobody.post("/v1/auth/password/reset", map[string]any{"token": "mst_rst_made_up", "password": "another horse entirely"}).problem(probUnauthorized)
		nobody.post("/v1/auth/email/verify", map[string]any{"token": "mst_vfy_made_up"}).problem(probUnauthorized)
		nobody.post("/v1/invitations/accept", map[string]any{"token": "mst_inv_made_up", "password": "another horse entirely"}).problem(probNotFound)
		nobody.post("/v1/auth/register", registration("twice@example.com")).problem(probConflict)
		for range 5 {
			w.login("nobody@example.com", "wrong password")
		}
		for _, action := range []string{"session.refresh_failed", "password.reset_failed", "email.verify_failed", "invitation.accept_failed", "account.register_refused", "session.login_delayed"} {
			w.eventually(action+" is noted", noted(action))
		}
		w.with(made.str("key")).get("/v1/me").problem(probUnauthorized)
		w.eventually("the revoked key is noted in its workspace", func() bool {
			r := owner.get("/v1/audit-log?action=api_key.refused").want(200)
			return len(r.list("data")) == 1 && r.str("data.0.target") == made.str("id")
		})
		if n := w.count(`SELECT count(*) FROM audit_log WHERE workspace_id = $1 AND action = 'session.reuse_detected'`, workspaceID(t, spent)); n != 1 {
			t.Errorf("%d entries of the family that ended", n)
		}
		if n := w.count(`SELECT count(*) FROM audit_log a WHERE a::text ~ 'mst_|@example|horse'`); n != 0 {
			t.Errorf("%d entries hold a secret or an address", n)
		}
	})
}

func workspaceID(t *testing.T, in *reply) uuid.UUID {
	t.Helper()
	ws, ok := store.ParseID(store.WorkspacePrefix, in.str("workspace.id"))
	if !ok {
		t.Fatalf("no workspace: %s", in.body)
	}
	return ws
}

func TestAFloodOfStrangersIsBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(cfg *Config) { cfg.NoteInterval = time.Hour })
	clock := time.Now()
	s := newStrangers(testKeys, func() time.Time { return clock })
	flush := func(last bool) {
		t.Helper()
		if err := s.write(context.Background(), w.store, last); err != nil {
			t.Fatal(err)
		}
	}
	const flood = 100_000
	for i := range flood {
		s.count(stranger{action: "session.login_failed", account: fmt.Sprint(i), address: "192.0.2.1"}, "r")
	}
	if len(s.seen) > strangersKept {
		t.Errorf("%d kinds are kept", len(s.seen))
	}
	flush(false)
	n, counted := w.strangersOf("session.login_failed")
	if n > strangersBurst || n < strangersBurst/2 || counted > flood {
		t.Errorf("%d entries for %d", n, counted)
	}
	for range 60 { // an hour of it
		clock = clock.Add(time.Minute)
		for i := range 5000 {
			s.count(stranger{action: "session.login_failed", account: fmt.Sprint(clock.Unix(), i), address: "192.0.2.1"}, "r")
		}
		flush(false)
	}
	flush(true)
	n, counted = w.strangersOf("session.login_failed")
	if most := strangersBurst + int(time.Hour/strangersPace) + 1; n > most || counted != flood+60*5000 {
		t.Errorf("%d entries, at most %d wanted; they tell of %d, want %d", n, most, counted, flood+60*5000)
	}

	// One that comes again and again is told at once, then every few minutes with its number.
	clock = clock.Add(time.Hour)
	for range 600 { // ten minutes
		clock = clock.Add(time.Second)
		s.count(stranger{action: "session.refresh_failed", address: "192.0.2.1"}, "r")
		flush(false)
	}
	flush(true)
	if n, counted := w.strangersOf("session.refresh_failed"); n > 4 || counted != 600 {
		t.Errorf("%d entries for %d", n, counted)
	}

	// While the ledger is away everything is counted on.
	w.exec(`REVOKE INSERT ON audit_log FROM muster_api`)
	s.count(stranger{action: "email.verify_failed"}, "r")
	if err := s.write(context.Background(), w.store, false); err == nil {
		t.Error("it was written")
	}
	w.exec(`GRANT INSERT ON audit_log TO muster_api`)
	s.count(stranger{action: "email.verify_failed"}, "r")
	flush(false)
	if n, counted := w.strangersOf("email.verify_failed"); n != 1 || counted != 2 {
		t.Errorf("%d entries for %d", n, counted)
	}
}
