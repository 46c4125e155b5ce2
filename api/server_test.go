package api

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/generic-corp/muster/store"
)

type ping struct{ err error }

func (p ping) Ping(context.Context) error { return p.err }

func TestServer(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(cfg *Config) { cfg.Redis = ping{} })
	nobody, owner := w.anonymous(), w.owner("")

	t.Run("UnknownRoutesAndMethodsAreProblems", func(t *testing.T) {
		nobody.get("/").problem(probNotFound)
		nobody.get("/v1/nothing").problem(probNotFound)
		nobody.get("/v1/me/").problem(probNotFound) // never a redirect
		nobody.get("/V1/me").problem(probNotFound)
		nobody.get("/v1/tasks/../me").problem(probNotFound)
		owner.get("/v1/tasks/a/b/c").problem(probNotFound)
		r := nobody.do("DELETE", "/v1/me", nil).problem(probMethodNotAllowed)
		if r.header.Get("Allow") != "GET" {
			t.Errorf("Allow %q", r.header.Get("Allow"))
		}
		nobody.do("PUT", "/v1/tasks", nil).problem(probMethodNotAllowed)
		nobody.do("OPTIONS", "/v1/tasks", nil).problem(probMethodNotAllowed)
		nobody.do("BREW", "/health", nil).problem(probMethodNotAllowed)
	})
	t.Run("HEADIsServedLikeGET", func(t *testing.T) {
		if r := nobody.do("HEAD", "/health", nil).want(200); len(r.body) != 0 || r.header.Get("Content-Length") == "0" {
			t.Errorf("%v %q", r.header, r.body)
		}
		nobody.do("HEAD", "/v1/me", nil).want(401)
	})
	t.Run("HealthAndReady", func(t *testing.T) {
		nobody.get("/health").want(200)
		if r := nobody.get("/ready").want(200); r.str("status") != "ready" || r.str("redis") != "up" {
			t.Errorf("%s", r.body)
		}
		down := newWorld(t, func(cfg *Config) { cfg.Redis = ping{errors.New("redis is down")} })
		if r := down.anonymous().get("/ready").want(200); r.str("status") != "degraded" || r.str("redis") != "down" || strings.Contains(string(r.body), "redis is down") {
			t.Errorf("%s", r.body)
		}
		db, err := store.Open(t.Context(), "postgres://muster_api:x@127.0.0.1:1/none", 1)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		cut := newWorld(t, func(cfg *Config) { cfg.Store = store.NewAPI(db) })
		cut.anonymous().get("/ready").problem(probUnavailable)
		cut.anonymous().get("/health").want(200)
		if r := cut.with(newAPIKey()).get("/v1/me").problem(probUnavailable); strings.Contains(string(r.body), "127.0.0.1") || strings.Contains(string(r.body), "connect") {
			t.Errorf("the answer tells too much: %s", r.body)
		}
	})
	t.Run("TheClientsRequestIDIsKeptWhenItIsSafe", func(t *testing.T) {
		for id, kept := range map[string]bool{
			"abc-DEF_1.2": true, strings.Repeat("x", 128): true, strings.Repeat("x", 129): false, "a b": false, "a\"b": false, "ä": false, "<script>": false, "": false,
		} {
			r := nobody.get("/health", headers{"X-Request-ID": id}).want(200)
			if got := r.header.Get("X-Request-ID"); (got == id) != kept || got == "" {
				t.Errorf("%q became %q", id, got)
			}
		}
	})
	t.Run("AForgedForwardedForChangesNothing", func(t *testing.T) {
		nobody.post("/v1/auth/register", registration("fwd@example.com"), headers{"X-Forwarded-For": "203.0.113.9", "X-Real-IP": "203.0.113.9", "CF-Connecting-IP": "203.0.113.9"}).want(201)
		if n := w.count(`SELECT count(*) FROM sessions s JOIN users u ON u.id = s.user_id WHERE u.email = 'fwd@example.com' AND s.ip = '127.0.0.1'`); n != 1 {
			t.Error("the forged address was believed")
		}
		proxied := newWorld(t, func(cfg *Config) { cfg.TrustedProxies = []string{"127.0.0.1/32"} })
		proxied.anonymous().post("/v1/auth/register", registration("fwd@example.com"), headers{"X-Forwarded-For": "203.0.113.9"}).want(201)
		if n := proxied.count(`SELECT count(*) FROM sessions WHERE ip = '203.0.113.9'`); n != 1 {
			t.Error("the configured proxy was not believed")
		}
	})
	t.Run("TheLogHoldsNoSecretQueryOrBody", func(t *testing.T) {
		nobody.post("/v1/auth/login", map[string]any{"email": "log@example.com", "password": "hunter2hunter2"}).want(401)
		task := owner.post("/v1/tasks", map[string]any{"prompt": "prompt-in-the-log?"}, headers{"X-Request-ID": "find-me"}).want(202).str("id")
		owner.get("/v1/tasks/" + task + "?agent=query-in-the-log").want(200)
		eventually(t, 5*time.Second, func() bool { return strings.Contains(w.log.String(), "find-me") })
		log := w.log.String()
		for _, secret := range []string{"hunter2", "log@example.com", "prompt-in-the-log", "query-in-the-log", owner.credential, task} {
			if strings.Contains(log, secret) {
				t.Errorf("%q stands in the log", secret)
			}
		}
		for _, want := range []string{`"route":"/v1/tasks"`, `"status":202`, store.FormatID(store.WorkspacePrefix, owner.ws)} {
			if !strings.Contains(log, want) {
				t.Errorf("%s is missing in the log", want)
			}
		}
	})
}

func TestPanicsNeverReachAClient(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	w.api.engine.GET("/panics", func(*gin.Context) { panic("secret of the panic") })
	w.api.engine.GET("/panics-late", func(c *gin.Context) {
		c.String(200, "half an ans")
		c.Writer.Flush()
		panic("secret of the panic")
	})
	resp, err := http.Get(w.url + "/panics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := bufio.NewReader(resp.Body).ReadString('\n')
	if resp.StatusCode != 500 || resp.Header.Get("Content-Type") != problemContentType || strings.Contains(body, "secret") {
		t.Errorf("%d %v %q %v", resp.StatusCode, resp.Header, body, err)
	}
	if !strings.Contains(w.log.String(), "secret of the panic") {
		t.Error("the panic is not in the log")
	}
	t.Run("AHalfAnswerIsCutNotCompleted", func(t *testing.T) {
		resp, err := http.Get(w.url + "/panics-late")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if _, err := bufio.NewReader(resp.Body).ReadString('\n'); err == nil || strings.Contains(err.Error(), "EOF") && !strings.Contains(err.Error(), "unexpected") {
			t.Errorf("the answer looks whole: %v", err)
		}
	})
}

func TestSlowClientsAreCutOff(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(cfg *Config) { cfg.ReadHeaderTimeout, cfg.ReadTimeout = 300*time.Millisecond, 600*time.Millisecond })
	c := w.owner("")
	head := fmt.Sprintf("POST /v1/tasks HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAuthorization: Bearer %s\r\nContent-Length: 15\r\n", c.credential)
	for name, tc := range map[string]struct {
		send string
		want string // how the answer begins
	}{
		"AWholeRequestIsServed": {head + "\r\n" + `{"prompt": "x"}`, "HTTP/1.1 202"},
		"AHeaderThatNeverEnds":  {head, ""},
		"ABodyThatNeverEnds":    {head + "\r\n" + `{"prompt"`, "HTTP/1.1 408"},
		"ASilentConnection":     {"", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := conn.Write([]byte(tc.send)); err != nil {
				t.Fatal(err)
			}
			if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			answer, err := bufio.NewReader(conn).ReadString('\n')
			var netErr net.Error
			if errors.As(err, &netErr) && netErr.Timeout() {
				t.Fatal("the connection is still open")
			}
			if !strings.HasPrefix(answer, tc.want) {
				t.Errorf("answered %q", answer)
			}
		})
	}
	t.Run("AHugeHeaderIsRefused", func(t *testing.T) {
		req, err := http.NewRequest("GET", w.url+"/health", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Padding", strings.Repeat("x", 64<<10))
		resp, err := testTransport.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("status %d", resp.StatusCode)
		}
	})
}

func TestConfigurationMistakesAreToldAtOnce(t *testing.T) {
	t.Parallel()
	_, err := New(Config{SigningKeys: testKeys})
	for _, name := range []string{"Store", "Enqueuer", "Canceler"} {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s is not named: %v", name, err)
		}
	}
	good := Config{Store: store.NewAPI(nil), Enqueuer: &outbox{}, Canceler: &outbox{}, SigningKeys: testKeys}
	if _, err := New(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"NoKey":    func(c *Config) { c.SigningKeys = nil },
		"ShortKey": func(c *Config) { c.SigningKeys = [][]byte{[]byte("short")} },
		"BadProxy": func(c *Config) { c.TrustedProxies = []string{"not an address"} },
	} {
		cfg := good
		change(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}
