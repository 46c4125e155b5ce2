package api

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/generic-corp/muster/api/mail/mailtest"
	"github.com/generic-corp/muster/store"
)

// auditWalk is where each route that changes something is let succeed once.
type auditWalk struct {
	*world
	mails *mailtest.Server
	owner *client
	n     int
}

// mail is an address that nobody has had.
func (x *auditWalk) mail() string {
	x.n++
	return fmt.Sprintf("walk%d@example.com", x.n)
}

// person registers somebody with a password.
func (x *auditWalk) person() (email string, in *reply) {
	email = x.mail()
	in = x.registered(email)
	tokenTo(x.t.(*testing.T), x.mails, email, verifyPrefix)
	return email, in
}

func (x *auditWalk) key() string {
	return x.owner.post("/v1/api-keys", map[string]any{"name": "x"}).want(201).str("id")
}

func (x *auditWalk) task() string {
	return x.owner.post("/v1/tasks", map[string]any{"prompt": "x"}).want(202).str("id")
}

func (x *auditWalk) schedule() string {
	return x.owner.post("/v1/schedules", map[string]any{"name": "x", "cron": "@daily", "task": map[string]any{"prompt": "x"}}).want(201).str("id")
}

// resetToken asks for a letter and reads it.
func (x *auditWalk) resetToken(email string) string {
	x.anonymous().post("/v1/auth/password/forgot", map[string]any{"email": email}).want(202)
	return tokenTo(x.t.(*testing.T), x.mails, email, resetPrefix)
}

// auditedRoutes: what each route that is no GET leaves in the audit log when it succeeds. prepare returns the request. A
// route that is missing here fails the test. Submits leave no entry: each task names who sent it (created_by) and when.
var auditedRoutes = map[string]struct {
	actions string
	prepare func(x *auditWalk) (request func())
}{
	"POST /v1/auth/register": {"account.register", func(x *auditWalk) func() { return func() { x.person() } }},
	"POST /v1/auth/login": {"session.login", func(x *auditWalk) func() {
		email, _ := x.person()
		return func() { x.login(email, "correct horse battery").want(200) }
	}},
	// A session that goes on is no sign-in. One that goes to another workspace leaves this and enters that.
	"POST /v1/auth/refresh": {"session.leave session.switch", func(x *auditWalk) func() {
		_, in := x.person()
		other := x.with(in.str("access_token")).post("/v1/workspaces", map[string]any{"name": "Other"}).want(201).str("id")
		in = x.anonymous().post("/v1/auth/refresh", map[string]any{"refresh_token": in.str("refresh_token")}).want(200)
		return func() {
			x.anonymous().post("/v1/auth/refresh", map[string]any{"refresh_token": in.str("refresh_token"), "workspace_id": other}).want(200)
		}
	}},
	"POST /v1/auth/password/forgot": {"password.reset_request", func(x *auditWalk) func() {
		email, _ := x.person()
		return func() { x.resetToken(email) }
	}},
	"POST /v1/auth/password/reset": {"password.reset", func(x *auditWalk) func() {
		email, _ := x.person()
		token := x.resetToken(email)
		return func() {
			x.anonymous().post("/v1/auth/password/reset", map[string]any{"token": token, "password": "another horse entirely"}).want(204)
			x.mails.Next(x.t) // the notice
		}
	}},
	"POST /v1/auth/email/verify": {"email.verify", func(x *auditWalk) func() {
		email := x.mail()
		x.registered(email)
		token := tokenTo(x.t.(*testing.T), x.mails, email, verifyPrefix)
		return func() { x.anonymous().post("/v1/auth/email/verify", map[string]any{"token": token}).want(204) }
	}},
	"POST /v1/auth/email/send": {"email.verify_request", func(x *auditWalk) func() {
		email, in := x.person()
		return func() {
			x.with(in.str("access_token")).post("/v1/auth/email/send", nil).want(202)
			tokenTo(x.t.(*testing.T), x.mails, email, verifyPrefix)
		}
	}},
	"POST /v1/auth/password": {"password.change", func(x *auditWalk) func() {
		_, in := x.person()
		return func() {
			x.with(in.str("access_token")).post("/v1/auth/password",
				map[string]any{"current_password": "correct horse battery", "new_password": "another horse entirely"}).want(204)
			x.mails.Next(x.t) // the notice
		}
	}},
	"POST /v1/auth/logout": {"session.logout", func(x *auditWalk) func() {
		c := x.owner.colleague(store.RoleViewer)
		return func() { c.post("/v1/auth/logout", nil).want(204) }
	}},
	"DELETE /v1/sessions/{id}": {"session.revoke", func(x *auditWalk) func() {
		c := x.owner.colleague(store.RoleViewer)
		return func() { c.do("DELETE", "/v1/sessions/"+store.FormatID(store.SessionPrefix, c.session), nil).want(204) }
	}},
	"POST /v1/workspaces": {"workspace.create", func(x *auditWalk) func() {
		c := x.owner.colleague(store.RoleViewer)
		return func() { c.post("/v1/workspaces", map[string]any{"name": "Mine"}).want(201) }
	}},
	"PATCH /v1/workspace": {"workspace.update", func(x *auditWalk) func() {
		return func() { x.owner.do("PATCH", "/v1/workspace", map[string]any{"name": "Renamed"}).want(200) }
	}},
	"PATCH /v1/members/{user_id}": {"member.update", func(x *auditWalk) func() {
		c := x.owner.colleague(store.RoleViewer)
		return func() { x.owner.do("PATCH", "/v1/members/"+userID(c.user), map[string]any{"role": "member"}).want(200) }
	}},
	"DELETE /v1/members/{user_id}": {"member.remove", func(x *auditWalk) func() {
		c := x.owner.colleague(store.RoleViewer)
		return func() { x.owner.do("DELETE", "/v1/members/"+userID(c.user), nil).want(204) }
	}},
	"POST /v1/invitations": {"invitation.create", func(x *auditWalk) func() {
		return func() {
			email := x.mail()
			x.owner.post("/v1/invitations", map[string]any{"email": email, "role": "viewer"}).want(201)
			x.mails.Next(x.t)
		}
	}},
	"DELETE /v1/invitations/{id}": {"invitation.delete", func(x *auditWalk) func() {
		id := x.owner.post("/v1/invitations", map[string]any{"email": x.mail(), "role": "viewer"}).want(201).str("id")
		x.mails.Next(x.t)
		return func() { x.owner.do("DELETE", "/v1/invitations/"+id, nil).want(204) }
	}},
	"POST /v1/invitations/accept": {"member.join session.login", func(x *auditWalk) func() {
		token := x.owner.post("/v1/invitations", map[string]any{"email": x.mail(), "role": "viewer"}).want(201).str("token")
		x.mails.Next(x.t)
		return func() {
			x.anonymous().post("/v1/invitations/accept", map[string]any{"token": token, "password": "correct horse battery"}).want(201)
			x.mails.Next(x.t)
		}
	}},
	// Stripe's events are a record of their own, as they came.
	"POST /v1/billing/webhook": {"", func(x *auditWalk) func() {
		stripe := newWorldOn(x.t, x.env, func(cfg *Config) { cfg.StripeEvents = &events{} }).anonymous()
		return func() { stripe.post("/v1/billing/webhook", "{}", headers{"Stripe-Signature": "good"}).want(200) }
	}},
	"POST /v1/api-keys": {"api_key.create", func(x *auditWalk) func() { return func() { x.key() } }},
	"DELETE /v1/api-keys/{id}": {"api_key.delete", func(x *auditWalk) func() {
		id := x.key()
		return func() { x.owner.do("DELETE", "/v1/api-keys/"+id, nil).want(204) }
	}},
	"POST /v1/api-keys/{id}/rotate": {"api_key.rotate", func(x *auditWalk) func() {
		id := x.key()
		return func() { x.owner.post("/v1/api-keys/"+id+"/rotate", map[string]any{}).want(201) }
	}},
	"POST /v1/webhooks": {"webhook.create", func(x *auditWalk) func() { return func() { x.owner.webhook() } }},
	"PATCH /v1/webhooks/{id}": {"webhook.update", func(x *auditWalk) func() {
		id := x.owner.webhook()
		return func() { x.owner.do("PATCH", "/v1/webhooks/"+id, map[string]any{"enabled": false}).want(200) }
	}},
	"DELETE /v1/webhooks/{id}": {"webhook.delete", func(x *auditWalk) func() {
		id := x.owner.webhook()
		return func() { x.owner.do("DELETE", "/v1/webhooks/"+id, nil).want(204) }
	}},
	"POST /v1/webhooks/{id}/rotate": {"webhook.rotate", func(x *auditWalk) func() {
		id := x.owner.webhook()
		return func() { x.owner.post("/v1/webhooks/"+id+"/rotate", map[string]any{}).want(201) }
	}},
	"POST /v1/webhooks/{id}/test": {"webhook.test", func(x *auditWalk) func() {
		id := x.owner.webhook()
		return func() { x.owner.post("/v1/webhooks/"+id+"/test", nil).want(202) }
	}},
	"POST /v1/webhooks/{id}/deliveries/replay": {"webhook.replay", func(x *auditWalk) func() {
		id := x.owner.webhook()
		return func() {
			x.owner.post("/v1/webhooks/"+id+"/deliveries/replay", map[string]any{"since": "2026-01-01T00:00:00Z"}).want(202)
		}
	}},
	"POST /v1/webhooks/{id}/deliveries/{delivery_id}/replay": {"webhook.replay", func(x *auditWalk) func() {
		id := x.owner.webhook()
		event := x.owner.post("/v1/webhooks/"+id+"/test", nil).want(202).str("id")
		return func() { x.owner.post("/v1/webhooks/"+id+"/deliveries/"+event+"/replay", nil).want(202) }
	}},
	"POST /v1/tasks": {"", func(x *auditWalk) func() {
		return func() {
			if by := x.owner.post("/v1/tasks", map[string]any{"prompt": "x"}).want(202).str("created_by"); by != userID(x.owner.user) {
				x.t.Errorf("created_by %q", by)
			}
		}
	}},
	"POST /v1/tasks/batch": {"", func(x *auditWalk) func() {
		key := x.owner.post("/v1/api-keys", map[string]any{"name": "x"}).want(201)
		return func() {
			r := x.with(key.str("key")).post("/v1/tasks/batch", map[string]any{"tasks": []any{map[string]any{"prompt": "x"}, map[string]any{"prompt": "y"}}}).want(202)
			if r.str("data.0.created_by") != key.str("id") || r.str("data.1.created_by") != key.str("id") {
				x.t.Errorf("created_by %s", r.body)
			}
		}
	}},
	"POST /v1/tasks/cancel": {"tasks.cancel", func(x *auditWalk) func() {
		x.task()
		return func() { x.owner.post("/v1/tasks/cancel", map[string]any{}).want(202) }
	}},
	"POST /v1/schedules": {"schedule.create", func(x *auditWalk) func() { return func() { x.schedule() } }},
	"PATCH /v1/schedules/{id}": {"schedule.update", func(x *auditWalk) func() {
		id := x.schedule()
		return func() { x.owner.do("PATCH", "/v1/schedules/"+id, map[string]any{"paused": true}).want(200) }
	}},
	"DELETE /v1/schedules/{id}": {"schedule.delete", func(x *auditWalk) func() {
		id := x.schedule()
		return func() { x.owner.do("DELETE", "/v1/schedules/"+id, nil).want(204) }
	}},
	"POST /v1/tasks/retry": {"tasks.retry", func(x *auditWalk) func() {
		id := x.task()
		x.owner.post("/v1/tasks/"+id+"/cancel", nil).want(202)
		return func() { x.owner.post("/v1/tasks/retry", map[string]any{}).want(202) }
	}},
	"POST /v1/dead-letters/replay": {"dead_letters.replay", func(x *auditWalk) func() {
		return func() { x.owner.post("/v1/dead-letters/replay", map[string]any{}).want(202) }
	}},
	"DELETE /v1/dead-letters": {"dead_letters.drop", func(x *auditWalk) func() {
		return func() { x.owner.do("DELETE", "/v1/dead-letters", map[string]any{"all": true}).want(200) }
	}},
	"POST /v1/tasks/{id}/cancel": {"task.cancel", func(x *auditWalk) func() {
		id := x.task()
		return func() { x.owner.post("/v1/tasks/"+id+"/cancel", nil).want(202) }
	}},
	"DELETE /v1/tasks/{id}": {"task.erase", func(x *auditWalk) func() {
		id := x.task()
		x.owner.post("/v1/tasks/"+id+"/cancel", nil).want(202)
		return func() { x.owner.do("DELETE", "/v1/tasks/"+id, nil).want(204) }
	}},
	"DELETE /v1/workspace": {"workspace.delete", func(x *auditWalk) func() {
		owner := x.world.owner("pro")
		return func() { owner.do("DELETE", "/v1/workspace", map[string]any{"confirm": "Test"}).want(202) }
	}},
	"POST /v1/tasks/{id}/retry": {"task.retry", func(x *auditWalk) func() {
		id := x.task()
		x.owner.post("/v1/tasks/"+id+"/cancel", nil).want(202)
		return func() { x.owner.post("/v1/tasks/"+id+"/retry", nil).want(202) }
	}},
}

// written lists the entries of all chains, as chain and number, with their action and whether they say where from.
func (w *world) written() map[string]string {
	w.t.Helper()
	var rows []struct {
		Place  string `db:"place"`
		Action string `db:"action"`
	}
	if err := w.admin.Select(&rows, `SELECT workspace_id || ' ' || seq AS place, CASE WHEN actor_type = 'user' AND (ip = '' OR request_id = '' OR actor_id NOT LIKE 'usr_%')
		THEN 'incomplete ' ELSE '' END || action AS action FROM audit_log`); err != nil {
		w.t.Fatal(err)
	}
	all := map[string]string{}
	for _, r := range rows {
		all[r.Place] = r.Action
	}
	return all
}

func TestEveryChangeLeavesItsEntries(t *testing.T) {
	t.Parallel()
	w, mails := newWorldWithMail(t)
	x := &auditWalk{world: w, mails: mails, owner: w.owner("pro")}
	walked := 0
	for i := range routes {
		r := &routes[i]
		if r.method == "GET" {
			continue
		}
		t.Run(r.pattern(), func(t *testing.T) {
			row, listed := auditedRoutes[r.pattern()]
			if !listed {
				t.Fatal("this route is not in the table of what is noted")
			}
			walked++
			x.t, x.world.t = t, t
			request := row.prepare(x)
			before := x.written()
			request()
			var got []string
			for place, action := range x.written() {
				if _, known := before[place]; !known {
					got = append(got, action)
				}
			}
			slices.Sort(got)
			if strings.Join(got, " ") != row.actions {
				t.Errorf("entries %q, want %q", got, row.actions)
			}
		})
	}
	w.t, x.t = t, t
	for pattern := range auditedRoutes {
		if !slices.ContainsFunc(routes, func(r route) bool { return r.pattern() == pattern }) {
			t.Errorf("%s stands in the table and is no route", pattern)
		}
	}
	system := store.NewSystem(w.env.System(t))
	if check, err := system.VerifyChain(t.Context(), x.owner.ws); err != nil || len(check.Faults) > 0 || check.Entries < 20 {
		t.Errorf("the chain afterwards: %+v %v", check, err)
	}
	t.Logf("%d routes that change something", walked)
}
