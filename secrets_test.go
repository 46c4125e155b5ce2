package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/store/storetest"
)

// canaries gives each secret variable a value of its kind that stands nowhere else.
func canaries() map[string]string {
	vars := map[string]string{
		"REDIS_URL": "redis://:Canary-redis%2F01d9@127.0.0.1:1/0", "SMTP_URL": "smtp://user:Canary-smtp%2F7c4e@127.0.0.1:1", "MAIL_FROM": "m@example.com",
		"JWT_SIGNING_KEYS":  "c0ffee00112233445566778899aabbccddeeff0123456789abcdef0123456789, " + base64.StdEncoding.EncodeToString([]byte("canary-of-the-second-signing-key")),
		"STRIPE_SECRET_KEY": "sk_test_Canary5e11", "STRIPE_WEBHOOK_SECRET": "whsec_CanaryA1b2c3d4e5f6g7h8, whsec_CanaryB1b2c3d4e5f6g7h8",
		"ANTHROPIC_API_KEY": "sk-ant-Canary9a77", "OPENAI_API_KEY": "sk-Canary0b88openai",
		"WEBHOOK_KEYS":  "beefcafe00112233445566778899aabbccddeeff0123456789abcdef01234567, " + base64.StdEncoding.EncodeToString([]byte("canary-of-the-second-webhook-key!")),
		"FLY_API_TOKEN": "FlyV1 fm2_Canary6c21machines",
	}
	for _, v := range variables {
		if strings.HasSuffix(v.name, "DATABASE_URL") {
			vars[v.name] = "postgres://muster:Canary-" + strings.ToLower(v.name) + "%2F3e@127.0.0.1:1/muster"
		}
	}
	return vars
}

// leaks are the secrets of the variables that stand in a text, in whichever spelling.
func leaks(vars map[string]string, text string) (found []string) {
	for _, v := range variables {
		if !v.secret {
			continue
		}
		for _, secret := range secretsIn(vars[v.name]) {
			for _, spelled := range append(spellings(secret), base64.StdEncoding.EncodeToString([]byte(secret)), fmt.Sprintf("%x", secret)) {
				if secret != "" && strings.Contains(text, spelled) {
					found = append(found, v.name+" as "+spelled)
				}
			}
		}
	}
	return found
}

func TestASettingThatIsSecretIsNeverPrinted(t *testing.T) {
	t.Parallel()
	vars := canaries()
	for _, v := range variables {
		if v.secret && vars[v.name] == "" {
			t.Errorf("%s has no canary", v.name)
		}
	}
	cfg, err := loadConfig(func(k string) string { return vars[k] }, nil)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x", "%X", "%t"} {
		fmt.Fprintf(&text, verb+"\n", cfg)
		fmt.Fprintf(&text, verb+"\n", &cfg)
		fmt.Fprintf(&text, verb+"\n", []any{cfg.DatabaseURL, cfg.Redis, cfg.SigningKeys, cfg.StripeWebhookSecrets})
	}
	raw, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	text.Write(raw)
	log := zerolog.New(&text)
	log.Info().Interface("config", cfg).Any("redis", cfg.Redis).Interface("keys", cfg.SigningKeys).Msg("a careless line")
	log.Error().Err(fmt.Errorf("careless: %v %+v", cfg, cfg.DatabaseURL)).Msg("a careless error")
	if found := leaks(vars, text.String()); len(found) > 0 {
		t.Errorf("%v", found)
	}
	if !strings.Contains(text.String(), redacted) {
		t.Error("nothing was printed")
	}
	t.Run("TheCheckSeesALeak", func(t *testing.T) {
		for _, text := range []string{string(cfg.DatabaseURL), fmt.Sprint(cfg.Redis.RedisConnOpt), fmt.Sprintf("%s", [][]byte(cfg.SigningKeys))} {
			if len(leaks(vars, text)) == 0 && !strings.Contains(text, "canary-of-the-second") {
				t.Errorf("%q passes", text)
			}
		}
	})
}

func TestEverySecretMayComeFromAFile(t *testing.T) {
	t.Parallel()
	vars := canaries()
	dir, fromFiles := t.TempDir(), map[string]string{"MAIL_FROM": vars["MAIL_FROM"]}
	for _, v := range variables {
		if !v.secret {
			continue
		}
		file := filepath.Join(dir, v.name)
		if err := os.WriteFile(file, []byte(vars[v.name]+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		fromFiles[v.name+"_FILE"] = file
	}
	direct, err := loadConfig(func(k string) string { return vars[k] }, nil)
	if err != nil {
		t.Fatal(err)
	}
	read, err := loadConfig(func(k string) string { return fromFiles[k] }, nil)
	if err != nil || !reflect.DeepEqual(read, direct) {
		t.Errorf("files make another configuration: %v", err)
	}
	for _, v := range variables {
		both := func(k string) string {
			return map[string]string{v.name: vars[v.name], v.name + "_FILE": fromFiles[v.name+"_FILE"]}[k]
		}
		if _, err := loadConfig(both, nil); v.secret && (err == nil || !strings.Contains(err.Error(), "both set")) {
			t.Errorf("%s: %v", v.name, err)
		}
		if !v.secret {
			missing := func(k string) string { return map[string]string{v.name + "_FILE": dir + "/none"}[k] }
			if _, err := loadConfig(missing, nil); err != nil {
				t.Errorf("%s_FILE is read: %v", v.name, err)
			}
		}
	}
}

func TestProductionRefusesEachWeakSecret(t *testing.T) {
	t.Parallel()
	strong := map[string]string{"MUSTER_ENV": "production", "JWT_SIGNING_KEYS": randomKey, "DATABASE_URL": "postgres://u:8f1c2d3e4b5a69@h/d", "REDIS_URL": "redis://:8f1c2d3e4b5a69@h:1",
		"SMTP_URL": "smtps://u:8f1c2d3e4b5a69@h", "MAIL_FROM": "m@example.com", "STRIPE_SECRET_KEY": "sk_live_8f1c2d3e4b5a69", "STRIPE_WEBHOOK_SECRET": "whsec_8f1c2d3e4b5a69788796a5b4c3d2e1f0"}
	load := func(name, value string) error {
		_, err := loadConfig(func(k string) string {
			if k == name {
				return value
			}
			return strong[k]
		}, nil)
		return err
	}
	if err := load("", ""); err != nil {
		t.Fatalf("strong secrets: %v", err)
	}
	for _, weak := range [][2]string{
		{"JWT_SIGNING_KEYS", strings.Repeat("ab", 32)}, {"JWT_SIGNING_KEYS", randomKey + "," + strings.Repeat("00", 32)}, {"JWT_SIGNING_KEYS", "00"},
		{"DATABASE_URL", "postgres://u:short@h/d"}, {"DATABASE_URL", "postgres://u:aaaaaaaaaaaaaaa@h/d"}, {"DATABASE_URL", "postgres://u:my-Password-123@h/d"},
		{"WORKER_DATABASE_URL", "postgres://u:short@h/d"}, {"SYSTEM_DATABASE_URL", "postgres://u:changeme-please@h/d"}, {"MIGRATE_DATABASE_URL", "postgres://u:short@h/d"},
		{"REDIS_URL", "redis://:short@h:1"}, {"REDIS_URL", "redis-cluster://:short@a:1,b:2"}, {"SMTP_URL", "smtps://u:short@h"},
		{"STRIPE_SECRET_KEY", "sk_test_8f1c2d3e4b5a69"}, {"STRIPE_SECRET_KEY", "rk_test_8f1c2d3e4b5a69"}, {"STRIPE_SECRET_KEY", "pk_live_8f1c2d3e4b5a69"}, {"STRIPE_SECRET_KEY", "changeme"},
		{"WEBHOOK_KEYS", strings.Repeat("ab", 32)}, {"WEBHOOK_KEYS", randomKey + "," + strings.Repeat("00", 32)},
		{"STRIPE_WEBHOOK_SECRET", "whsec_short"}, {"STRIPE_WEBHOOK_SECRET", "whsec_" + strings.Repeat("a", 32)}, {"STRIPE_WEBHOOK_SECRET", strong["STRIPE_WEBHOOK_SECRET"] + ",whsec_test"},
	} {
		err := load(weak[0], weak[1])
		if err == nil || !strings.Contains(err.Error(), weak[0]) || strings.Count(err.Error(), "\n") != 0 || strings.Contains(err.Error(), weak[1]) {
			t.Errorf("%s = %s: %v", weak[0], weak[1], err)
		}
	}
	for _, good := range [][2]string{{"REDIS_URL", "redis://h:1"}, {"DATABASE_URL", "postgres://u@h/d"}, {"STRIPE_SECRET_KEY", "rk_live_8f1c2d3e4b5a69"}, {"STRIPE_SECRET_KEY", ""}, {"SMTP_URL", ""}} {
		if err := load(good[0], good[1]); err != nil {
			t.Errorf("%s = %s: %v", good[0], good[1], err)
		}
	}
}

func TestNoSecretIsToldByAFailingCommand(t *testing.T) {
	t.Parallel()
	env := storetest.New(t)
	var outputs atomic.Int64
	look := func(t *testing.T, vars map[string]string, args ...string) {
		t.Helper()
		code, stdout, stderr := runWith(vars, args...)
		outputs.Add(1)
		if found := leaks(vars, stdout+stderr); len(found) > 0 {
			t.Errorf("%q: %v\n%s%s", args, found, stdout, stderr)
		}
		if code == exitOK && args[len(args)-1] != "--help" {
			t.Errorf("%q: this was to fail", args)
		}
	}
	commands := [][]string{{"api"}, {"worker"}, {"scheduler"}, {"up"}, {"migrate"}, {"doctor"}, {"doctor", "--json"}, {"workspace", "list"}, {"tasks", "list", "ws_" + strings.Repeat("0a", 16)},
		{"billing", "setup"}, {"billing", "push"}, {"billing", "reconcile"}}
	t.Run("Unreadable", func(t *testing.T) {
		t.Parallel()
		for _, bend := range []func(name, value string) string{
			func(_, v string) string { return "%zz" + v },
			func(_, v string) string { return strings.Replace(v, "127.0.0.1:1", "127.0.0.1:port", 1) + "\x00" },
			func(_, v string) string { return strings.Replace(v, "://", ":/", 1) + " " + v },
		} {
			vars := canaries()
			for _, v := range variables {
				if v.secret {
					vars[v.name] = bend(v.name, vars[v.name])
				}
			}
			vars["OPENAI_BASE_URL"] = "http://127.0.0.1:1/v1"
			for _, args := range commands {
				if args[0] == "billing" && args[1] == "setup" { // any key is readable: it would call Stripe
					continue
				}
				look(t, vars, args...)
			}
		}
	})
	for _, args := range commands {
		if args[0] == "up" { // its children would start
			continue
		}
		t.Run("NobodyThere/"+strings.Join(args, " "), func(t *testing.T) {
			t.Parallel()
			vars := canaries()
			vars["OPENAI_BASE_URL"], vars["STRIPE_API_BASE"], vars["LOG_LEVEL"], vars["OPS_ADDR"] = "http://127.0.0.1:1/v1", "http://127.0.0.1:1", "debug", "127.0.0.1:0"
			look(t, vars, args...)
		})
		t.Run("WrongPassword/"+strings.Join(args, " "), func(t *testing.T) {
			t.Parallel()
			vars := canaries()
			vars["OPENAI_BASE_URL"], vars["STRIPE_API_BASE"], vars["LOG_LEVEL"], vars["OPS_ADDR"] = "http://127.0.0.1:1/v1", "http://127.0.0.1:1", "debug", "127.0.0.1:0"
			for name, right := range map[string]string{"DATABASE_URL": env.APIURL, "WORKER_DATABASE_URL": env.WorkerURL, "SYSTEM_DATABASE_URL": env.SystemURL, "MIGRATE_DATABASE_URL": env.OwnerURL, "REDIS_URL": env.RedisURL} {
				u, err := url.Parse(right)
				if err != nil {
					t.Fatal(err)
				}
				u.User = url.UserPassword(u.User.Username(), "Canary-wrong/"+strings.ToLower(name))
				vars[name] = u.String()
			}
			look(t, vars, args...)
		})
	}
	t.Run("Help", func(t *testing.T) {
		t.Parallel()
		vars := canaries()
		for _, args := range [][]string{{"--help"}, {"api", "--help"}, {"worker", "--help"}, {"up", "--help"}, {"billing", "--help"}, {"workspace", "--help"}} {
			look(t, vars, args...)
		}
	})
	t.Cleanup(func() { t.Logf("%d outputs of commands", outputs.Load()) })
}

// parrot is a server that repeats in its errors what it was sent, as careless ones do.
type parrot struct {
	mu    sync.Mutex
	heard strings.Builder
}

func (p *parrot) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	credential := r.Header.Get("Authorization") + r.Header.Get("X-Api-Key")
	p.mu.Lock()
	p.heard.WriteString(credential + "\n")
	p.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusUnauthorized)
	fmt.Fprintf(w, `{"type": "error", "error": {"type": "authentication_error", "code": "invalid_api_key", "message": "Incorrect API key provided: %s"}}`, credential)
}

func (p *parrot) hear(t *testing.T, what string) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if !strings.Contains(p.heard.String(), what) {
		t.Errorf("the parrot never heard %s", what)
	}
}

func TestNoSecretIsToldByARunningInstallation(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	bird := &parrot{}
	server := httptest.NewServer(bird)
	t.Cleanup(server.Close)
	secrets := canaries()
	for _, name := range []string{"JWT_SIGNING_KEYS", "STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET", "ANTHROPIC_API_KEY", "OPENAI_API_KEY", "SMTP_URL", "MAIL_FROM", "WEBHOOK_KEYS"} {
		s.vars[name] = secrets[name]
	}
	s.vars["STRIPE_API_BASE"], s.vars["ANTHROPIC_BASE_URL"], s.vars["OPENAI_BASE_URL"], s.vars["LOG_LEVEL"] = server.URL, server.URL, server.URL+"/v1", "debug"
	var bodies bytes.Buffer
	ask := func(method, base, path, credential, body string, header ...string) string {
		req, err := http.NewRequest(method, base+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if body != "" {
			req.Header.Set("Content-Type", "application/json")
		}
		if credential != "" {
			req.Header.Set("Authorization", "Bearer "+credential)
		}
		for i := 0; i+1 < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		res, err := s.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		raw, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		for name, values := range res.Header {
			fmt.Fprintln(&bodies, name, values)
		}
		bodies.Write(raw)
		return string(raw)
	}
	processes := []string{"api", "worker", "scheduler"}
	for _, name := range processes {
		s.start(name, name)
	}
	var in struct {
		AccessToken string                 `json:"access_token"`
		Workspace   struct{ ID string }    `json:"workspace"`
		User        struct{ Email string } `json:"user"`
	}
	if err := json.Unmarshal([]byte(ask("POST", s.base, "/v1/auth/register", "", `{"email": "canary@example.com", "password": "correct horse battery", "workspace_name": "x"}`)), &in); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := s.muster("workspace", "set-plan", in.Workspace.ID, "pro"); code != exitOK { // Free would need a proved address
		t.Fatal(stderr)
	}
	ask("POST", s.base, "/v1/auth/password/forgot", "", `{"email": "canary@example.com"}`)
	for i := range 3 {
		ask("POST", s.base, "/v1/auth/login", "", fmt.Sprintf(`{"email": "canary@example.com", "password": "wrong password %d"}`, i))
	}
	ask("POST", s.base, "/v1/billing/webhook", "", `{"id": "evt_1"}`, "Stripe-Signature", "t=1,v1=00")
	ask("GET", s.base, "/v1/me", secrets["STRIPE_SECRET_KEY"][:4]+"nonsense", "")
	ask("GET", s.base, "/v1/tasks?cursor=forged", in.AccessToken, "")
	ask("GET", s.base, "/openapi.json", "", "")
	var tasks []string
	for _, model := range []string{"openai", "anthropic", "auto"} {
		var task struct{ ID string }
		if err := json.Unmarshal([]byte(ask("POST", s.base, "/v1/tasks", in.AccessToken, `{"prompt": "x", "max_attempts": 1, "model": "`+model+`"}`)), &task); err != nil || task.ID == "" {
			t.Fatal(err)
		}
		tasks = append(tasks, task.ID)
	}
	for _, id := range tasks {
		s.await(40*time.Second, "the task to end", func() bool {
			return strings.Contains(ask("GET", s.base, "/v1/tasks/"+id, in.AccessToken, "", "Prefer", "wait=5"), `"status":"failed"`)
		})
		ask("GET", s.base, "/v1/tasks/"+id+"/attempts", in.AccessToken, "")
	}
	s.muster("workspace", "set-plan", in.Workspace.ID, "pro", "--stripe-customer", "cus_1")
	for _, args := range [][]string{{"billing", "setup"}, {"billing", "push", "--day", "today", "--wait", "1s"}, {"billing", "reconcile"}, {"doctor"}, {"tasks", "show", in.Workspace.ID, tasks[0]},
		{"workspace", "show", in.Workspace.ID}, {"workspace", "list", "--json"}} {
		_, stdout, stderr := s.muster(args...)
		fmt.Fprintln(&bodies, stdout, stderr)
	}
	for _, name := range processes {
		for _, page := range []string{"/metrics", "/debug/pprof/", "/debug/pprof/cmdline", "/debug/pprof/goroutine?debug=2"} {
			ask("GET", "http://"+s.procs[name].ops, page, "", "")
		}
	}
	ask("GET", "http://"+s.procs["scheduler"].ops, "/ops/asynqmon/api/redis_info", "", "")
	ask("GET", "http://"+s.procs["scheduler"].ops, "/ops/asynqmon/", "", "")
	bird.hear(t, secrets["STRIPE_SECRET_KEY"])
	bird.hear(t, secrets["OPENAI_API_KEY"])
	bird.hear(t, secrets["ANTHROPIC_API_KEY"])
	if err := s.procs["api"].End(t.Context(), 20*time.Second, syscall.SIGTERM, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(s.log("api"), `"message":"a letter could not be sent"`) {
		t.Error("no letter failed")
	}
	told := map[string]string{"answers and commands": bodies.String()}
	for _, name := range processes {
		told[name+"'s log"] = s.log(name)
	}
	if !strings.Contains(bodies.String(), redacted) {
		t.Error("nothing had to be redacted: no command repeated what the parrot said")
	}
	seen := maps.Clone(s.vars)
	seen["DATABASE_URL"] = s.env.APIURL
	for where, text := range told {
		if found := leaks(seen, text); len(found) > 0 {
			t.Errorf("%s: %v", where, slices.Compact(found))
		}
		if len(text) < 100 {
			t.Errorf("%s says nothing", where)
		}
	}
	for _, own := range []string{in.AccessToken, "correct horse battery", "wrong password"} {
		for _, name := range processes {
			if strings.Contains(s.log(name), own) {
				t.Errorf("%s logs %q", name, own)
			}
		}
	}
}
