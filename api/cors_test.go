package api

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/gin-gonic/gin"

	"github.com/generic-corp/muster/store"
)

const listed, foreign = "https://app.example.com", "https://evil.example.com"

// corsHeaders are those of an answer that let a page of another origin read it.
func corsHeaders(h http.Header) (names []string) {
	for name := range h {
		if strings.HasPrefix(name, "Access-Control-") {
			names = append(names, name)
		}
	}
	return names
}

func TestOnlyListedOriginsMayReadAnswers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(cfg *Config) { cfg.CORSOrigins = []string{"http://localhost:3000", listed} })
	owner := w.owner("")
	w.api.engine.GET("/panics", func(*gin.Context) { panic("on purpose") })
	down := newWorld(t, func(cfg *Config) {
		db, err := store.Open(t.Context(), "postgres://muster_api:x@127.0.0.1:1/none", 1)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		cfg.Store, cfg.CORSOrigins = store.NewAPI(db), []string{listed}
	})
	limited := w.owner("")
	limited.mayRequest(0)
	for name, ask := range map[string]func(origin headers) *reply{
		"200": func(o headers) *reply { return owner.get("/v1/me", o).want(200) },
		"400": func(o headers) *reply { return owner.post("/v1/tasks", "{", o).want(400) },
		"401": func(o headers) *reply { return w.anonymous().get("/v1/me", o).want(401) },
		"403": func(o headers) *reply {
			return owner.colleague(store.RoleViewer).post("/v1/tasks", map[string]any{"prompt": "x"}, o).want(403)
		},
		"404":           func(o headers) *reply { return owner.get("/v1/tasks/task_x", o).want(404) },
		"404 of routes": func(o headers) *reply { return owner.get("/v1/nothing", o).want(404) },
		"405":           func(o headers) *reply { return owner.do("DELETE", "/v1/me", nil, o).want(405) },
		"413":           func(o headers) *reply { return owner.post("/v1/tasks", strings.Repeat(" ", 2<<20), o).want(413) },
		"415": func(o headers) *reply {
			return owner.post("/v1/tasks", "{}", o, headers{"Content-Type": "text/plain"}).want(415)
		},
		"422": func(o headers) *reply { return owner.post("/v1/tasks", "{}", o).want(422) },
		"429": func(o headers) *reply { return limited.get("/v1/me", o).want(429) },
		"500": func(o headers) *reply {
			req, err := http.NewRequest("GET", w.url+"/panics", nil)
			if err != nil {
				t.Fatal(err)
			}
			for k, v := range o {
				req.Header.Set(k, v)
			}
			resp, err := testTransport.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			return (&reply{t: t, status: resp.StatusCode, header: resp.Header}).want(500)
		},
		"503": func(o headers) *reply { return down.with(newAPIKey()).get("/v1/me", o).want(503) },
	} {
		t.Run(name, func(t *testing.T) {
			r := ask(headers{"Origin": listed})
			if got := r.header.Get("Access-Control-Allow-Origin"); got != listed {
				t.Errorf("the listed origin is answered %q", got)
			}
			exposed := strings.Split(r.header.Get("Access-Control-Expose-Headers"), ", ")
			for name := range r.header {
				if strings.HasPrefix(name, "Ratelimit") || strings.HasPrefix(name, "X-Rate") || slices.Contains([]string{"X-Request-Id", "Location", "Retry-After", "Www-Authenticate"}, name) {
					if !slices.ContainsFunc(exposed, func(e string) bool { return strings.EqualFold(e, name) }) {
						t.Errorf("%s is not exposed", name)
					}
				}
			}
			if r.header.Get("Access-Control-Allow-Credentials") != "" {
				t.Error("credentials are allowed")
			}
			for _, origin := range []string{foreign, "null", "*", listed + ".evil.com", strings.ToUpper(listed), "http://app.example.com", listed + ":8443", listed + "/"} {
				r := ask(headers{"Origin": origin})
				if got := corsHeaders(r.header); len(got) != 0 {
					t.Errorf("%q is answered with %v", origin, got)
				}
				if r.header.Get("Vary") != "Origin" {
					t.Errorf("Vary is %q", r.header.Get("Vary"))
				}
			}
			if r := ask(nil); len(corsHeaders(r.header)) != 0 || r.header.Get("Vary") != "Origin" {
				t.Errorf("without an origin: %v", r.header)
			}
		})
	}
	t.Run("APreflightIsAnsweredToListedOriginsOnly", func(t *testing.T) {
		preflight := func(origin, path string) *http.Response {
			t.Helper()
			req, err := http.NewRequest("OPTIONS", w.url+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Origin", origin)
			req.Header.Set("Access-Control-Request-Method", "POST")
			req.Header.Set("Access-Control-Request-Headers", "authorization,idempotency-key")
			resp, err := testTransport.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			return resp
		}
		for i := range routes {
			r := preflight(listed, strings.NewReplacer("{id}", "x", "{user_id}", "x").Replace(routes[i].path))
			if r.StatusCode != 204 || r.Header.Get("Access-Control-Allow-Origin") != listed || r.Header.Get("Access-Control-Max-Age") == "" ||
				!strings.Contains(r.Header.Get("Access-Control-Allow-Methods"), routes[i].method) {
				t.Errorf("%s: %d %v", routes[i].pattern(), r.StatusCode, r.Header)
			}
			for _, name := range []string{"Authorization", "Content-Type", "Idempotency-Key", "Prefer", "Last-Event-ID", "X-Request-ID"} {
				if !slices.Contains(strings.Split(r.Header.Get("Access-Control-Allow-Headers"), ", "), name) {
					t.Errorf("%s may not be sent", name)
				}
			}
			if vary := strings.Join(r.Header.Values("Vary"), ", "); vary != "Origin, Access-Control-Request-Method, Access-Control-Request-Headers" {
				t.Errorf("Vary: %s", vary)
			}
		}
		if r := preflight(foreign, "/v1/tasks"); r.StatusCode != 405 || len(corsHeaders(r.Header)) != 0 {
			t.Errorf("another origin: %d %v", r.StatusCode, r.Header)
		}
		w.anonymous().do("OPTIONS", "/v1/tasks", nil, headers{"Origin": listed}).problem(probMethodNotAllowed) // no preflight
	})
	t.Run("TwoOriginsAreNone", func(t *testing.T) {
		req, err := http.NewRequest("GET", w.url+"/health", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header["Origin"] = []string{listed, foreign}
		resp, err := testTransport.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if len(corsHeaders(resp.Header)) != 0 {
			t.Errorf("%v", resp.Header)
		}
	})
}

func TestOriginsAreCheckedAtStart(t *testing.T) {
	t.Parallel()
	for origin, good := range map[string]bool{
		"https://app.example.com": true, "http://localhost:3000": true, "https://xn--mller-kva.example": true, "http://127.0.0.1:8080": true, "http://[::1]:8080": true,
		"*": false, "null": false, "": false, "https://*.example.com": false, "https://example.com/": false, "https://example.com/x": false, "HTTPS://example.com": false,
		"https://Example.com": false, "https://example.com:443": false, "http://example.com:80": false, "https://user@example.com": false, "example.com": false,
		"https://": false, "ftp://example.com": false, "https://example.com?": false, "https://example.com#": false, "https://exa mple.com": false, "https://müller.example": false,
		"https://example.com:": false, "https://example..com": false, "https://example.com:99999999": true, // nothing serves that port
	} {
		if err := CheckOrigin(origin); (err == nil) != good {
			t.Errorf("%q: %v", origin, err)
		}
	}
	if _, err := New(Config{Store: store.NewAPI(nil), Enqueuer: &outbox{}, Canceler: &outbox{}, SigningKeys: testKeys, CORSOrigins: []string{"*"}}); err == nil {
		t.Error("a wildcard is accepted")
	}
}

func TestSecurityHeadersStandOnEveryAnswer(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(cfg *Config) { cfg.RateLimits = nil; cfg.Redis = ping{errors.New("away")} })
	owner := w.owner("pro")
	public := map[string]bool{} // what everybody may read and keep
	for _, path := range []string{"/openapi.json", "/v1/plans"} {
		for _, what := range []string{"GET " + path, "HEAD " + path, "GET " + path + " anonymously", "GET " + path + " with nonsense"} {
			public[what] = true
		}
	}
	answers := 0
	check := func(t *testing.T, what string, r *reply) {
		t.Helper()
		answers++
		for name, want := range map[string]string{"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
			"Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'", "Cross-Origin-Resource-Policy": "same-origin", "Server": "", "X-Powered-By": "",
			"Access-Control-Allow-Origin": "", "Strict-Transport-Security": "", "Set-Cookie": ""} {
			if name == "Cache-Control" && r.status == 200 && public[what] {
				continue
			}
			if got := strings.Join(r.header.Values(name), " and "); got != want {
				t.Errorf("%s: %d: %s is %q", what, r.status, name, got)
			}
		}
		if len(r.header.Values("X-Request-ID")) != 1 {
			t.Errorf("%s: X-Request-ID %q", what, r.header.Values("X-Request-ID"))
		}
	}
	endless := headers{"Last-Event-ID": "none"} // refused by the event stream, which would not end otherwise
	for _, o := range w.published() {
		path := o.with(o.unknownID(t))
		check(t, o.pattern()+" anonymously", w.anonymous().do(o.method, path, nil))
		check(t, o.pattern()+" with nonsense", w.with("nonsense").do(o.method, path, "nonsense"))
		check(t, o.pattern(), owner.colleague(store.RoleOwner).do(o.method, path, nil, endless))
		check(t, "PUT "+o.path, owner.do("PUT", path, nil))
		if o.method == "GET" {
			check(t, "HEAD "+o.path, owner.do("HEAD", path, nil))
		}
	}
	check(t, "an unknown path", owner.get("/v1/nothing"))
	check(t, "a served task", owner.post("/v1/tasks", map[string]any{"prompt": "x"}).want(202))
	t.Logf("%d answers", answers)
	t.Run("TransportSecurityIsAskedForInProductionAndBehindTLS", func(t *testing.T) {
		const header = "Strict-Transport-Security"
		production := newWorld(t, func(cfg *Config) { cfg.Production = true })
		if production.anonymous().get("/health").header.Get(header) == "" {
			t.Error("production does not ask")
		}
		proxied := newWorld(t, func(cfg *Config) { cfg.TrustedProxies = []string{"127.0.0.1"} })
		if proxied.anonymous().get("/health", headers{"X-Forwarded-Proto": "https"}).header.Get(header) == "" {
			t.Error("not behind TLS")
		}
		if proxied.anonymous().get("/health", headers{"X-Forwarded-Proto": "http"}).header.Get(header) != "" ||
			w.anonymous().get("/health", headers{"X-Forwarded-Proto": "https"}).header.Get(header) != "" {
			t.Error("asked without TLS, or on a stranger's word")
		}
	})
}
