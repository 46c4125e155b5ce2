package api

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/generic-corp/muster/store"
)

// layer is one way of serving the same two routes.
type layer struct {
	name   string
	handle http.Handler
	token  string
}

// withoutAuth serves the routes as this sender without looking at a credential.
func (s *Server) withoutAuth(id *identity) http.Handler {
	engine := gin.New()
	engine.Use(s.identify, s.logAccess, s.recoverPanics, s.setSecurityHeaders, s.allowOrigins)
	for i := range routes {
		r := &routes[i]
		engine.Handle(r.method, r.ginPath(), func(c *gin.Context) {
			q := &request{route: r, gin: c, id: id}
			err := s.admit(q)
			if err == nil {
				q.ctx = c.Request.Context()
				var a answer
				if a, err = r.handle(s, q); err == nil {
					err = a.write(c)
				}
			}
			if err != nil {
				fail(c, err)
			}
		})
	}
	return engine
}

// cpu is what this process has used: it hardly depends on what else the machine does.
func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // fails only for another argument
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkLayers measures GET /v1/me and POST /v1/tasks whole and with one layer absent, in rounds by turns, so that what else the
// machine does meets all alike. It prints the median round of each. Eight clients, no network; "no RLS" runs the same
// statements as a superuser, whom no policy binds. Run it with -benchtime 1x.
func BenchmarkLayers(b *testing.B) {
	const rounds, clients = 5, 8
	w := newWorld(b, func(cfg *Config) { cfg.CredentialMS = 3000 })
	c := w.owner("pro")
	c.mayRequest(1_000_000_000)
	key := c.post("/v1/api-keys", map[string]any{"name": "bench"}).want(201).str("key")
	free := newWorldOn(b, w.env, func(cfg *Config) { cfg.CredentialMS, cfg.RateLimits = 3000, nil })
	unbound := newWorldOn(b, w.env, func(cfg *Config) { cfg.CredentialMS, cfg.Store = 3000, store.NewAPI(w.env.Admin(b)) })
	id := &identity{Identity: store.Identity{Workspace: c.ws, User: c.user, Session: c.session, Role: store.RoleOwner}, scopes: scopes}
	layers := []layer{
		{"whole, access token", w.api.Handler(), c.credential}, {"whole, API key", w.api.Handler(), key}, {"no auth", w.api.withoutAuth(id), ""},
		{"no limiter", free.api.Handler(), c.credential}, {"no RLS", unbound.api.Handler(), c.credential}, {"no auth, no limiter", free.api.withoutAuth(id), ""},
	}
	for b.Loop() {
		for _, route := range []struct {
			method, path, body string
			want, requests     int
		}{{"GET", "/v1/me", "", 200, 1500}, {"POST", "/v1/tasks", `{"prompt": "x", "agent": "yuki"}`, 202, 200}} {
			took, burnt := make([][]time.Duration, len(layers)), make([][]time.Duration, len(layers))
			for round := range rounds + 1 { // the first warms up
				for i, l := range layers {
					start, used := time.Now(), cpu()
					var wg sync.WaitGroup
					for range clients {
						wg.Go(func() {
							for range route.requests / clients {
								req := httptest.NewRequest(route.method, route.path, strings.NewReader(route.body))
								req.Header.Set("Content-Type", "application/json")
								if l.token != "" {
									req.Header.Set("Authorization", "Bearer "+l.token)
								}
								rec := httptest.NewRecorder()
								if l.handle.ServeHTTP(rec, req); rec.Code != route.want {
									b.Errorf("%s: %d %s", l.name, rec.Code, rec.Body)
								}
							}
						})
					}
					wg.Wait()
					if round > 0 {
						took[i], burnt[i] = append(took[i], time.Since(start)), append(burnt[i], cpu()-used)
					}
				}
			}
			median := func(of []time.Duration) float64 {
				slices.Sort(of)
				return of[len(of)/2].Seconds() / float64(route.requests)
			}
			table := fmt.Sprintf("%s %s\n", route.method, route.path)
			for i, l := range layers {
				table += fmt.Sprintf("  %-20s %6.0f requests/s, %4.2f of the whole's time; %5.0f µs of this process' CPU, %4.2f of the whole's\n", l.name,
					1/median(took[i]), median(took[i])/median(took[0]), 1e6*median(burnt[i]), median(burnt[i])/median(burnt[0]))
			}
			fmt.Print("\n", table) // b.Log cuts it after ten lines
		}
	}
}
