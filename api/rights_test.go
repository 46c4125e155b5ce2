package api

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

// rights is who may use each route: the least role and the scope, or what else it asks for. A route that is missing
// here, or stands here with other rights than in the table, fails the test.
var rights = map[string]string{
	"GET /health":                   "anonymous",
	"GET /ready":                    "anonymous",
	"GET /openapi.json":             "anonymous",
	"GET /v1/plans":                 "anonymous",
	"POST /v1/auth/register":        "anonymous",
	"POST /v1/auth/login":           "anonymous",
	"POST /v1/auth/refresh":         "anonymous",
	"POST /v1/auth/password/forgot": "anonymous",
	"POST /v1/auth/password/reset":  "anonymous",
	"POST /v1/auth/email/verify":    "anonymous",
	"POST /v1/invitations/accept":   "anonymous",
	"POST /v1/billing/webhook":      "anonymous",
	"POST /v1/auth/logout":          "viewer session",
	"POST /v1/auth/password":        "viewer session",
	"POST /v1/auth/email/send":      "viewer session",
	"GET /v1/sessions":              "viewer session",
	"DELETE /v1/sessions/{id}":      "viewer session",
	"GET /v1/workspaces":            "viewer session",
	"POST /v1/workspaces":           "viewer session",
	"GET /v1/me":                    "viewer",
	"GET /v1/workspace":             "viewer",
	"PATCH /v1/workspace":           "owner billing:write|members:write",
	"DELETE /v1/workspace":          "owner session",
	"GET /v1/workspace/export":      "owner session",
	"GET /v1/members":               "viewer members:read",
	"GET /v1/members/{user_id}":     "viewer members:read",
	"PATCH /v1/members/{user_id}":   "owner members:write",
	"DELETE /v1/members/{user_id}":  "owner members:write",
	"GET /v1/audit-log":             "owner members:read",
	"GET /v1/audit-log/export":      "owner session",
	"GET /v1/invitations":           "owner members:read",
	"POST /v1/invitations":          "owner members:write",
	"DELETE /v1/invitations/{id}":   "owner members:write",
	"GET /v1/tasks":                 "viewer tasks:read",
	"POST /v1/tasks":                "member tasks:write",
	"POST /v1/tasks/batch":          "member tasks:write",
	"POST /v1/tasks/cancel":         "member tasks:write",
	"POST /v1/tasks/retry":          "member tasks:write",
	"GET /v1/dead-letters":          "viewer tasks:read",
	"GET /v1/schedules":             "viewer tasks:read",
	"GET /v1/schedules/{id}":        "viewer tasks:read",
	"GET /v1/schedules/{id}/runs":   "viewer tasks:read",
	"POST /v1/schedules":            "member tasks:write",
	"PATCH /v1/schedules/{id}":      "member tasks:write",
	"DELETE /v1/schedules/{id}":     "member tasks:write",
	"POST /v1/dead-letters/replay":  "member tasks:write",
	"DELETE /v1/dead-letters":       "member tasks:write",
	"GET /v1/tasks/{id}":            "viewer tasks:read",
	"DELETE /v1/tasks/{id}":         "member tasks:write",
	"POST /v1/tasks/{id}/cancel":    "member tasks:write",
	"POST /v1/tasks/{id}/retry":     "member tasks:write",
	"GET /v1/tasks/{id}/attempts":   "viewer tasks:read",
	"GET /v1/agents":                "viewer agents:read",
	"GET /v1/agents/{id}":           "viewer agents:read",
	"GET /v1/usage":                 "viewer usage:read",
	"GET /v1/quota":                 "viewer usage:read",
	"GET /v1/events":                "viewer tasks:read",
	"GET /v1/api-keys":              "member keys:read",
	"POST /v1/api-keys":             "member keys:write",
	"DELETE /v1/api-keys/{id}":      "member keys:write",
	"POST /v1/api-keys/{id}/rotate": "member keys:write",

	"GET /v1/webhooks":                                       "member webhooks:read",
	"POST /v1/webhooks":                                      "member webhooks:write",
	"GET /v1/webhooks/{id}":                                  "member webhooks:read",
	"PATCH /v1/webhooks/{id}":                                "member webhooks:write",
	"DELETE /v1/webhooks/{id}":                               "member webhooks:write",
	"POST /v1/webhooks/{id}/rotate":                          "member webhooks:write",
	"POST /v1/webhooks/{id}/test":                            "member webhooks:write",
	"GET /v1/webhooks/{id}/deliveries":                       "member webhooks:read",
	"POST /v1/webhooks/{id}/deliveries/replay":               "member webhooks:write",
	"POST /v1/webhooks/{id}/deliveries/{delivery_id}/replay": "member webhooks:write",
}

// operation is one of the published ones, with what it takes to try it.
type operation struct{ method, path string }

func (o operation) pattern() string { return o.method + " " + o.path }

// noun is the collection whose id the path takes, "" when it takes none.
func (o operation) noun() string {
	before, _, found := strings.Cut(o.path, "/{")
	if !found {
		return ""
	}
	return before[strings.LastIndex(before, "/")+1:]
}

// with puts ids into the path: one, or several with spaces between; the last stands for all further ones.
func (o operation) with(ids string) string {
	path := o.path
	for {
		before, rest, found := strings.Cut(path, "{")
		if !found {
			return path
		}
		id, more, several := strings.Cut(ids, " ")
		if several {
			ids = more
		}
		_, after, _ := strings.Cut(rest, "}")
		path = before + id + after
	}
}

// published are the operations of OpenAPI as the server gives it out.
func (w *world) published() []operation {
	w.t.Helper()
	var document struct {
		Paths map[string]map[string]json.RawMessage `json:"paths"`
	}
	if err := json.Unmarshal(w.anonymous().get("/openapi.json").want(200).body, &document); err != nil {
		w.t.Fatal(err)
	}
	var all []operation
	for path, methods := range document.Paths {
		for method := range methods {
			all = append(all, operation{strings.ToUpper(method), path})
		}
	}
	slices.SortFunc(all, func(a, b operation) int { return strings.Compare(a.pattern(), b.pattern()) })
	return all
}

// idPrefixes are those of each collection's ids.
var idPrefixes = map[string]string{"tasks": store.TaskPrefix, "api-keys": store.KeyPrefix, "agents": store.AgentPrefix, "members": store.UserPrefix,
	"invitations": store.InvitationPrefix, "sessions": store.SessionPrefix, "schedules": store.SchedulePrefix, "webhooks": store.WebhookPrefix}

// unknownID is well formed and nobody's.
func (o operation) unknownID(t *testing.T) string {
	t.Helper()
	if o.noun() == "" {
		return ""
	}
	prefix, known := idPrefixes[o.noun()]
	if !known {
		t.Fatalf("no test knows the ids of %s", o.noun())
	}
	nobodys := uuid.MustParse("01900000-0000-7000-8000-00000000abcd")
	if o.noun() == "webhooks" {
		return store.FormatID(prefix, nobodys) + " " + store.FormatID(store.EventPrefix, nobodys) // and of one of its deliveries
	}
	return store.FormatID(prefix, nobodys)
}

func TestEveryRouteServesWhoeverMayAndNobodyElse(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(cfg *Config) { cfg.RateLimits = nil }) // one owner mints more keys here than an hour allows
	owner := w.owner("pro")
	roles := []string{store.RoleViewer, store.RoleMember, store.RoleOwner}
	byRole := map[string]*client{store.RoleOwner: owner, store.RoleMember: owner.colleague(store.RoleMember), store.RoleViewer: owner.colleague(store.RoleViewer)}
	keyWith := func(role string, scopes ...string) *client {
		return w.with(owner.post("/v1/api-keys", map[string]any{"name": "x", "role": role, "scopes": scopes}).want(201).str("key"))
	}
	only, without, all := map[string]*client{}, map[string]*client{}, map[string]*client{}
	for _, scope := range scopes {
		only[scope] = keyWith(store.RoleOwner, scope)
		without[scope] = keyWith(store.RoleOwner, slices.DeleteFunc(slices.Clone(scopes), func(s string) bool { return s == scope })...)
	}
	for _, role := range roles {
		all[role] = keyWith(role, roleScopes[role]...)
	}
	routesWalked, requests := 0, 0
	for _, o := range w.published() {
		t.Run(o.pattern(), func(t *testing.T) {
			want, listed := rights[o.pattern()]
			if !listed {
				t.Fatal("this route is not in the table of rights")
			}
			routesWalked++
			path := o.with(o.unknownID(t))
			ask := func(c *client) *reply {
				requests++
				return c.do(o.method, path, nil, headers{"Last-Event-ID": "none"}) // an event stream would not end otherwise
			}
			refused := func(who string, r *reply, want bool) {
				t.Helper()
				if (r.status == 403) != want || r.status == 401 {
					t.Errorf("%s is answered %d", who, r.status)
				}
			}
			if want == "anonymous" {
				if got := ask(w.anonymous()); got.status == 401 || got.status == 403 {
					t.Errorf("nobody is answered %d", got.status)
				}
				for _, role := range roles {
					refused("the role "+role, ask(byRole[role]), false)
				}
				return
			}
			ask(w.anonymous()).problem(probUnauthorized)
			ask(w.with("mst_live_made_up")).problem(probUnauthorized)
			parts := strings.Fields(want)
			least, rest := parts[0], strings.Join(parts[1:], "")
			for _, role := range roles {
				c := byRole[role]
				if rest == "session" {
					c = c.colleague(role) // its session may end here
				}
				refused("the role "+role, ask(c), roleRank[role] < roleRank[least])
				refused("a key of the role "+role, ask(all[role]), roleRank[role] < roleRank[least] || rest == "session")
			}
			needs := strings.Split(rest, "|") // one of them; each field of the body its own
			for _, scope := range scopes {
				refused("the scope "+scope, ask(only[scope]), rest != "" && !slices.Contains(needs, scope))
				refused("all but the scope "+scope, ask(without[scope]), rest == "session" || scope == rest)
			}
		})
	}
	for pattern := range rights {
		if !slices.ContainsFunc(routes, func(r route) bool { return r.pattern() == pattern }) {
			t.Errorf("%s has rights and no route", pattern)
		}
	}
	t.Logf("walked %d routes x %d senders: %d requests", routesWalked, 2+2*len(roles)+2*len(scopes), requests)
}

// bodyFor are what the routes with an id must be sent to come as far as looking for it.
var bodyFor = map[string]any{
	"PATCH /v1/members/{user_id}":   map[string]any{"role": "member"},
	"POST /v1/api-keys/{id}/rotate": map[string]any{},
	"PATCH /v1/schedules/{id}":      map[string]any{"paused": true},

	"PATCH /v1/webhooks/{id}":                  map[string]any{"description": "x"},
	"POST /v1/webhooks/{id}/rotate":            map[string]any{},
	"POST /v1/webhooks/{id}/deliveries/replay": map[string]any{"since": "2026-01-01T00:00:00Z"},
}

func TestEveryRouteAnswersAnothersIDLikeAnUnknownOne(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	a, b := w.owner("pro"), w.owner("pro")
	fleet := w.fleet()
	n := 0
	fresh := map[string]func() string{ // a thing of b's
		"tasks": func() string {
			id := b.post("/v1/tasks", map[string]any{"prompt": "x"}).want(202).str("id")
			fleet.finish(fleet.start(b.ws), store.Failed, store.AttemptUsage{})
			return id
		},
		"api-keys": func() string { return b.post("/v1/api-keys", map[string]any{"name": "x"}).want(201).str("id") },
		"agents": func() string {
			n++
			id := store.NewID()
			w.exec(`INSERT INTO agents (workspace_id, id, name) VALUES ($1, $2, $3)`, b.ws, id, fmt.Sprint("agent-", n))
			return store.FormatID(store.AgentPrefix, id)
		},
		"members": func() string { return store.FormatID(store.UserPrefix, b.colleague(store.RoleViewer).user) },
		"invitations": func() string {
			n++
			return b.post("/v1/invitations", map[string]any{"email": fmt.Sprintf("i%d@example.com", n), "role": "viewer"}).want(201).str("id")
		},
		"schedules": func() string {
			return b.post("/v1/schedules", map[string]any{"name": "x", "cron": "@daily", "task": map[string]any{"prompt": "x"}}).want(201).str("id")
		},
		"webhooks": func() string {
			b.exec(`DELETE FROM webhook_endpoints`)
			id := b.webhook()
			return id + " " + b.post("/v1/webhooks/"+id+"/test", nil).want(202).str("id")
		},
		"sessions": func() string {
			id := store.NewID()
			w.exec(`INSERT INTO sessions (workspace_id, id, user_id, expires_at) VALUES ($1, $2, $3, now() + interval '1 day')`, b.ws, id, b.user)
			return store.FormatID(store.SessionPrefix, id)
		},
	}
	walked := 0
	for _, o := range w.published() {
		if o.noun() == "" {
			continue
		}
		t.Run(o.pattern(), func(t *testing.T) {
			create := fresh[o.noun()]
			if create == nil {
				t.Fatalf("no test makes %s", o.noun())
			}
			walked++
			foreign := create()
			var answers []string
			for _, id := range []string{foreign, o.unknownID(t), idPrefixes[o.noun()] + "x", "%27"} {
				r := a.do(o.method, o.with(id), bodyFor[o.pattern()], headers{"X-Request-ID": "same"}).problem(probNotFound)
				answers = append(answers, string(r.body))
			}
			if len(slices.Compact(slices.Clone(answers))) != 1 {
				t.Errorf("foreign, unknown and malformed differ:\n%s", strings.Join(answers, "\n"))
			}
			if r := b.do(o.method, o.with(foreign), bodyFor[o.pattern()]); r.status >= 400 && r.status != 409 {
				t.Errorf("its own workspace is answered %d: %s", r.status, r.body)
			}
		})
	}
	t.Logf("walked %d routes with another workspace's ids", walked)
}
