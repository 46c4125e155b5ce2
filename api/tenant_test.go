package api

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/generic-corp/muster/store"
)

// on sends a request to a host.
func (c *client) on(host, method, path string, body any) *reply {
	c.t.Helper()
	return c.do(method, path, body, headers{"X-Forwarded-Host": host})
}

func TestAHostChoosesTheLoginAndGivesNoAuthority(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(cfg *Config) { cfg.AppDomain, cfg.TrustedProxies = "example.com", []string{"127.0.0.1"} })
	nobody := w.anonymous()
	first := w.registered("ada@example.com")
	ada := w.with(first.str("access_token"))
	second := ada.post("/v1/workspaces", map[string]any{"name": "Second"}).want(201)
	foreign := w.owner("")
	foreign.do("PATCH", "/v1/workspace", map[string]any{"slug": "foreign"}).want(200)
	there := nobody.post("/v1/auth/login", map[string]any{"email": "ada@example.com", "password": "correct horse battery", "workspace_id": second.str("id")}).want(200)
	if r := w.with(there.str("access_token")).do("PATCH", "/v1/workspace", map[string]any{"slug": "second"}).want(200); r.str("slug") != "second" || r.str("name") != "Second" {
		t.Errorf("%s", r.body)
	}
	login := map[string]any{"email": "ada@example.com", "password": "correct horse battery"}

	t.Run("LoginGoesToTheHostsWorkspace", func(t *testing.T) {
		for host, want := range map[string]string{"second.example.com": second.str("id"), "SECOND.Example.com:8443": second.str("id"), "second.example.com.": second.str("id"),
			"example.com": first.str("workspace.id"), "www.example.com": first.str("workspace.id"), "api.example.com": first.str("workspace.id"),
			"second.example.org": first.str("workspace.id"), "a.second.example.com": first.str("workspace.id"), "secondexample.com": first.str("workspace.id"),
			"127.0.0.1": first.str("workspace.id")} {
			if r := nobody.on(host, "POST", "/v1/auth/login", login).want(200); r.str("workspace.id") != want {
				t.Errorf("%s: %s, want %s", host, r.str("workspace.id"), want)
			}
		}
	})
	t.Run("TheBodyGoesBeforeTheHost", func(t *testing.T) {
		chosen := map[string]any{"email": "ada@example.com", "password": "correct horse battery", "workspace_id": first.str("workspace.id")}
		if r := nobody.on("second.example.com", "POST", "/v1/auth/login", chosen).want(200); r.str("workspace.id") != first.str("workspace.id") {
			t.Errorf("%s", r.body)
		}
	})
	t.Run("RefreshGoesThereToo", func(t *testing.T) {
		in := nobody.on("example.com", "POST", "/v1/auth/login", login).want(200)
		moved := nobody.on("second.example.com", "POST", "/v1/auth/refresh", map[string]any{"refresh_token": in.str("refresh_token")}).want(200)
		if moved.str("workspace.id") != second.str("id") {
			t.Errorf("%s", moved.body)
		}
		stays := nobody.on("second.example.com", "POST", "/v1/auth/refresh", map[string]any{"refresh_token": moved.str("refresh_token")}).want(200)
		home := nobody.on("example.com", "POST", "/v1/auth/refresh", map[string]any{"refresh_token": stays.str("refresh_token")}).want(200)
		if stays.str("workspace.id") != second.str("id") || home.str("workspace.id") != second.str("id") {
			t.Errorf("%s %s", stays.body, home.body)
		}
	})
	t.Run("AForeignHostIsLikeAnUnknownOneAndSpendsNothing", func(t *testing.T) {
		in := nobody.on("example.com", "POST", "/v1/auth/login", login).want(200)
		var answers []string
		for _, host := range []string{"foreign.example.com", "unknown.example.com", "xn--unknown.example.com"} {
			for path, body := range map[string]any{"/v1/auth/login": login, "/v1/auth/refresh": map[string]any{"refresh_token": in.str("refresh_token")}} {
				r := nobody.do("POST", path, body, headers{"X-Forwarded-Host": host, "X-Request-ID": "same"}).problem(probNotFound)
				answers = append(answers, string(r.body))
			}
		}
		for _, a := range answers {
			if a != answers[0] {
				t.Errorf("%s differs from %s", a, answers[0])
			}
		}
		nobody.post("/v1/auth/refresh", map[string]any{"refresh_token": in.str("refresh_token")}).want(200)
		wrong := map[string]any{"email": "ada@example.com", "password": "another password"}
		nobody.on("foreign.example.com", "POST", "/v1/auth/login", wrong).problem(probUnauthorized) // the host tells nothing before that
	})
	t.Run("ACredentialActsOnItsOwnWorkspaceOnAnyHost", func(t *testing.T) {
		key := w.with(foreign.post("/v1/api-keys", map[string]any{"name": "x"}).want(201).str("key"))
		task := foreign.post("/v1/tasks", map[string]any{"prompt": "x"}).want(202).str("id")
		for _, host := range []string{"foreign.example.com", "second.example.com", "unknown.example.com", "example.com", "", "nonsense\"host"} {
			for _, c := range []*client{foreign, key} {
				if r := c.on(host, "GET", "/v1/me", nil).want(200); r.str("workspace.id") != store.FormatID(store.WorkspacePrefix, foreign.ws) {
					t.Errorf("%s: %s", host, r.body)
				}
				c.on(host, "GET", "/v1/tasks/"+task, nil).want(200)
			}
			w.with(there.str("access_token")).on(host, "GET", "/v1/tasks/"+task, nil).problem(probNotFound)
		}
	})
	t.Run("AStrangerDoesNotNameTheHost", func(t *testing.T) {
		direct := newWorldOn(t, w.env, func(cfg *Config) { cfg.AppDomain = "example.com" })
		if r := direct.anonymous().on("second.example.com", "POST", "/v1/auth/login", login).want(200); r.str("workspace.id") != first.str("workspace.id") {
			t.Error("a client's X-Forwarded-Host was read")
		}
		req, err := http.NewRequest("POST", direct.url+"/v1/auth/login", strings.NewReader(`{"email": "ada@example.com", "password": "correct horse battery"}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Host = "second.example.com"
		req.Header.Set("Content-Type", "application/json")
		resp, err := testTransport.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var in signInJSON
		if err := json.NewDecoder(resp.Body).Decode(&in); err != nil || in.Workspace.ID != second.str("id") {
			t.Errorf("%d %v %+v", resp.StatusCode, err, in.Workspace)
		}
	})
	t.Run("RegistrationMakesItsOwnWorkspaceOnAnyHost", func(t *testing.T) {
		r := nobody.on("second.example.com", "POST", "/v1/auth/register", registration("new@example.com")).want(201)
		if r.str("workspace.id") == second.str("id") || r.at("workspace.slug") != nil {
			t.Errorf("%s", r.body)
		}
	})
}

func TestSlugs(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	a, b := w.owner(""), w.owner("")
	set := func(c *client, slug any) *reply {
		return c.do("PATCH", "/v1/workspace", map[string]any{"slug": slug})
	}
	for _, slug := range []string{"acme", "a-b", "123", strings.Repeat("x", 63)} {
		if r := set(a, slug).want(200); r.str("slug") != slug {
			t.Errorf("%s", r.body)
		}
	}
	for _, slug := range []string{"ab", "Acme", "-ab", "ab-", "a.b", "a_b", "a b", "xn--acme", "ac--me", "müller", "www", "api", "admin", "login", strings.Repeat("x", 64), "a\u0000b", "abc\n"} {
		if r := set(a, slug).problem(probInvalid); r.fields()[0] != "slug" {
			t.Errorf("%q: %s", slug, r.body)
		}
	}
	set(a, "acme").want(200)
	set(a, "acme").want(200) // its own
	set(b, "acme").problem(probConflict)
	a.colleague(store.RoleMember).do("PATCH", "/v1/workspace", map[string]any{"slug": "theirs"}).problem(probForbidden)
	if r := a.do("PATCH", "/v1/workspace", map[string]any{"name": "Only the name"}).want(200); r.str("slug") != "acme" {
		t.Errorf("%s", r.body)
	}
	a.do("PATCH", "/v1/workspace", map[string]any{}).problem(probInvalid)
	a.do("PATCH", "/v1/workspace", map[string]any{"name": nil, "slug": nil}).problem(probInvalid)
	if r := set(a, "").want(200); r.at("slug") != nil {
		t.Errorf("%s", r.body)
	}
	set(a, "acme").want(200)
	if r := set(a, nil).want(200); r.at("slug") != nil {
		t.Errorf("%s", r.body)
	}
	set(b, "acme").want(200)
	if n := w.count(`SELECT count(*) FROM audit_log WHERE workspace_id = $1 AND action = 'workspace.update' AND details->'changed' ? 'slug'`, b.ws); n != 1 {
		t.Errorf("%d audit entries", n)
	}
	if fault := CheckDomain("example.com"); fault != nil {
		t.Error(fault)
	}
	for _, domain := range []string{"", "Example.com", "example.com:80", "https://example.com", ".example.com", "example..com", "*.example.com", strings.Repeat("a.", 100) + "com"} {
		if CheckDomain(domain) == nil {
			t.Errorf("%q is accepted", domain)
		}
	}
}
