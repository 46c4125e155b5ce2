package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// runWith runs a command with exactly these variables.
func runWith(vars map[string]string, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	code = run(ctx, args, func(k string) string { return vars[k] }, &out, &errs)
	return code, out.String(), errs.String()
}

// randomKey is what openssl rand -hex 32 would print.
const randomKey = "8f1c2d3e4b5a69788796a5b4c3d2e1f00112233445566778899aabbccddeeff0"

// whole is a configuration of every process on a test's servers.
func whole(env *storetest.Env) map[string]string {
	return map[string]string{"DATABASE_URL": env.APIURL, "WORKER_DATABASE_URL": env.WorkerURL, "SYSTEM_DATABASE_URL": env.SystemURL,
		"MIGRATE_DATABASE_URL": env.OwnerURL, "REDIS_URL": env.RedisURL, "JWT_SIGNING_KEYS": strings.Repeat("ab", 32), "OPS_ADDR": "127.0.0.1:0",
		"OPENAI_BASE_URL": "http://127.0.0.1:1/v1", "STRIPE_SECRET_KEY": "sk_test_muster"}
}

func TestConfiguration(t *testing.T) {
	t.Parallel()

	t.Run("WithoutAnythingEachProcessSaysAllThatIsMissing", func(t *testing.T) {
		t.Parallel()
		for process, wants := range map[string][]string{
			"api":       {"DATABASE_URL", "REDIS_URL", "JWT_SIGNING_KEYS"},
			"worker":    {"WORKER_DATABASE_URL", "REDIS_URL"},
			"scheduler": {"SYSTEM_DATABASE_URL", "REDIS_URL"},
			"up":        {"DATABASE_URL", "WORKER_DATABASE_URL", "SYSTEM_DATABASE_URL", "REDIS_URL", "JWT_SIGNING_KEYS"},
			"migrate":   {"MIGRATE_DATABASE_URL"},
		} {
			code, _, stderr := runWith(nil, process)
			if code != exitUsage {
				t.Errorf("%s: exit code %d, want %d", process, code, exitUsage)
			}
			for _, name := range wants {
				if !strings.Contains(stderr, "- "+name+" is not set; want ") {
					t.Errorf("%s does not ask for %s:\n%s", process, name, stderr)
				}
			}
		}
	})

	t.Run("ThreeWrongVariablesAreToldAtOnceAndSecretsAreNotShown", func(t *testing.T) {
		t.Parallel()
		code, _, stderr := runWith(map[string]string{"PORT": "70000", "DRAIN_SECONDS": "soon", "DATABASE_URL": "mysql://me:hush@host/x",
			"REDIS_URL": "redis://:hush@localhost:6379", "JWT_SIGNING_KEYS": "hush"}, "api")
		if code != exitUsage {
			t.Errorf("exit code %d", code)
		}
		for _, want := range []string{`PORT is "70000"; want a port number`, `DRAIN_SECONDS is "soon"; want a number`, "DATABASE_URL is set (not shown); want postgres://",
			"JWT_SIGNING_KEYS is set (not shown); want hex or base64"} {
			if !strings.Contains(stderr, want) {
				t.Errorf("missing %q in:\n%s", want, stderr)
			}
		}
		if strings.Contains(stderr, "hush") {
			t.Errorf("a secret is shown:\n%s", stderr)
		}
	})

	t.Run("EveryVariableRefusesNonsenseAndTakesWhatItWants", func(t *testing.T) {
		t.Parallel()
		good := map[string]string{"MUSTER_ENV": "production", "PORT": "80", "OPS_ADDR": "[::1]:0", "REDIS_URL": "redis-cluster://u:long-and-random@a:1,b:2",
			"JWT_SIGNING_KEYS": randomKey + "," + randomKey, "STRIPE_SECRET_KEY": "rk_live_8f1c2d3e4b5a", "STRIPE_API_BASE": "https://x/", "ANTHROPIC_BASE_URL": "http://x",
			"OPENAI_BASE_URL": "http://x/v1", "WORKER_CONCURRENCY": "1000", "WORKER_PROCESSES": "0", "AUTOSCALE": "fly", "AUTOSCALE_MODE": "paused", "AUTOSCALE_BUDGET": "200", "FLY_APP_NAME": "muster-eu", "DRAIN_SECONDS": "0", "WORKER_STRICT_TIERS": "true",
			"WORKER_POLL_INTERVAL": "1s", "DELETION_GRACE": "1m", "LOG_LEVEL": "debug", "SMTP_URL": "smtps://u:long-and-random@mail:465", "MAIL_FROM": "Muster <m@example.com>", "TRUSTED_PROXIES": "10.0.0.0/8, ::1",
			"APP_DOMAIN": "example.com", "STRIPE_WEBHOOK_SECRET": "whsec_8f1c2d3e4b5a69788796a5b4c3d2e1f0, whsec_0f1c2d3e4b5a69788796a5b4c3d2e1f0", "CORS_ORIGINS": "https://app.example.com, https://x.example:8443"}
		for _, v := range variables {
			if strings.HasSuffix(v.name, "DATABASE_URL") {
				good[v.name] = "postgres://u:long-and-random@h:5432/d"
			}
		}
		if _, err := loadConfig(func(k string) string { return good[k] }, nil); err != nil {
			t.Errorf("good values: %v", err)
		}
		free := map[string]bool{"STRIPE_SECRET_KEY": true, "ANTHROPIC_API_KEY": true, "OPENAI_API_KEY": true, "ANTHROPIC_MODEL": true, "OPENAI_MODEL": true, "MODEL_PRICES_FILE": true, "AUDIT_HEADS_DIR": true, "FLY_API_TOKEN": true}
		for _, v := range variables {
			if _, err := loadConfig(func(k string) string {
				if k == v.name {
					return "%&!"
				}
				return ""
			}, nil); (err == nil) != free[v.name] {
				t.Errorf("%s = %%&!: %v", v.name, err)
			}
		}
	})

	t.Run("AMailServerNeedsASender", func(t *testing.T) {
		t.Parallel()
		vars := map[string]string{"SMTP_URL": "smtp://user:hush@mail.example.com"}
		if _, err := loadConfig(func(k string) string { return vars[k] }, nil); err == nil || !strings.Contains(err.Error(), "MAIL_FROM") || strings.Contains(err.Error(), "hush") {
			t.Errorf("%v", err)
		}
		vars["MAIL_FROM"] = "Muster <muster@example.com>"
		if _, err := loadConfig(func(k string) string { return vars[k] }, nil); err != nil {
			t.Error(err)
		}
	})

	t.Run("ProductionRefusesWeakSecrets", func(t *testing.T) {
		t.Parallel()
		vars := map[string]string{"DATABASE_URL": "postgres://u:muster@h/d", "REDIS_URL": "redis://h:1", "JWT_SIGNING_KEYS": randomKey + "," + strings.Repeat("ab", 32), "STRIPE_SECRET_KEY": "sk_test_1"}
		if _, err := loadConfig(func(k string) string { return vars[k] }, nil); err != nil {
			t.Errorf("in development: %v", err)
		}
		vars["MUSTER_ENV"] = "production"
		_, err := loadConfig(func(k string) string { return vars[k] }, nil)
		if err == nil || !strings.Contains(err.Error(), "key 2 is not random") || strings.Contains(err.Error(), "key 1") || !strings.Contains(err.Error(), "DATABASE_URL has a password") ||
			!strings.Contains(err.Error(), "STRIPE_SECRET_KEY is a test key") {
			t.Errorf("in production: %v", err)
		}
		vars["DATABASE_URL"], vars["JWT_SIGNING_KEYS"], vars["STRIPE_SECRET_KEY"] = "postgres://u:long-and-random@h/d", randomKey, "sk_live_1"
		if _, err := loadConfig(func(k string) string { return vars[k] }, nil); err != nil {
			t.Errorf("strong secrets in production: %v", err)
		}
	})

	t.Run("ASecretComesFromAFileAndNeverFromBoth", func(t *testing.T) {
		t.Parallel()
		file := filepath.Join(t.TempDir(), "secret")
		if err := os.WriteFile(file, []byte("sk_from_file\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		vars := map[string]string{"STRIPE_SECRET_KEY_FILE": file}
		cfg, err := loadConfig(func(k string) string { return vars[k] }, nil)
		if err != nil || cfg.StripeSecretKey != "sk_from_file" {
			t.Errorf("%q, %v", cfg.StripeSecretKey, err)
		}
		vars["STRIPE_SECRET_KEY"] = "sk_other"
		if _, err := loadConfig(func(k string) string { return vars[k] }, nil); err == nil {
			t.Error("both were taken")
		}
		if _, err := loadConfig(func(k string) string { return map[string]string{"JWT_SIGNING_KEYS_FILE": file + "x"}[k] }, nil); err == nil {
			t.Error("a missing file was taken")
		}
	})

	t.Run("AFlagOverridesTheEnvironment", func(t *testing.T) {
		t.Parallel()
		code, _, stderr := runWith(map[string]string{"PORT": "80"}, "api", "--port", "none")
		if code != exitUsage || !strings.Contains(stderr, `PORT is "none"`) {
			t.Errorf("%d %s", code, stderr)
		}
		if code, _, _ := runWith(nil, "api", "--no-such-flag"); code != exitUsage {
			t.Errorf("an unknown flag: %d", code)
		}
		if code, _, _ := runWith(nil, "api", "--help"); code != exitOK {
			t.Errorf("--help: %d", code)
		}
	})

	t.Run("NoProviderIsRefusedAtStart", func(t *testing.T) {
		t.Parallel()
		vars := whole(storetest.New(t))
		delete(vars, "OPENAI_BASE_URL")
		for _, process := range []string{"worker", "up"} {
			code, _, stderr := runWith(vars, process)
			if code != exitFailure || !strings.Contains(stderr, "no model provider is configured: set ANTHROPIC_API_KEY") {
				t.Errorf("%s: %d %s", process, code, stderr)
			}
		}
	})

	t.Run("WithTheDatabaseDownEachProcessSaysWhatToLookAt", func(t *testing.T) {
		t.Parallel()
		env := storetest.New(t)
		for process, variable := range map[string]string{"api": "DATABASE_URL", "worker": "WORKER_DATABASE_URL", "scheduler": "SYSTEM_DATABASE_URL", "migrate": "MIGRATE_DATABASE_URL"} {
			t.Run(process, func(t *testing.T) {
				t.Parallel()
				vars := whole(env)
				vars[variable] = "postgres://muster:hush@127.0.0.1:1/muster"
				code, _, stderr := runWith(vars, process)
				last := stderr[strings.LastIndex(strings.TrimRight(stderr, "\n"), "\n")+1:]
				if code != exitFailure || !strings.Contains(last, "cannot reach the database") || !strings.Contains(last, "is "+variable+" right?") || strings.Contains(stderr, "hush") {
					t.Errorf("%d %s", code, stderr)
				}
			})
		}
	})
}

func TestSchemaIsCheckedAtStart(t *testing.T) {
	t.Parallel()
	env := storetest.New(t)
	vars := whole(env)
	processes := map[string]string{"api": "DATABASE_URL", "worker": "WORKER_DATABASE_URL", "scheduler": "SYSTEM_DATABASE_URL"}
	refused := func(want string) {
		t.Helper()
		for process := range processes {
			if code, _, stderr := runWith(vars, process); code != exitFailure || !strings.Contains(stderr, want) {
				t.Errorf("%s: %d %s", process, code, stderr)
			}
		}
	}
	db := env.Admin(t)
	db.MustExec(`DELETE FROM goose_db_version WHERE version_id = (SELECT max(version_id) FROM goose_db_version)`)
	refused("this version needs")
	db.MustExec(`DROP TABLE goose_db_version`)
	refused("the database has no schema yet: run muster migrate")
}

func TestCommands(t *testing.T) {
	t.Parallel()

	t.Run("WrongUsageIsTwo", func(t *testing.T) {
		t.Parallel()
		vars := whole(storetest.New(t))
		for _, args := range [][]string{{}, {"nonsense"}, {"workspace"}, {"workspace", "nonsense"}, {"workspace", "show"}, {"workspace", "show", "task_1"},
			{"workspace", "set-plan", "ws_" + strings.Repeat("0a", 16), "gold"}, {"workspace", "set-limit", "ws_" + strings.Repeat("0a", 16), "concurrency=many"},
			{"workspace", "set-limit", "ws_" + strings.Repeat("0a", 16), "nonsense=1"}, {"tasks", "show", "ws_" + strings.Repeat("0a", 16)}, {"version", "extra"},
			{"tasks", "list", "ws_" + strings.Repeat("0a", 16), "--status", "odd"}} {
			if code, _, stderr := runWith(vars, args...); code != exitUsage || stderr == "" {
				t.Errorf("%q: %d %q", args, code, stderr)
			}
		}
		unknown := "ws_" + strings.Repeat("0a", 16)
		if code, _, stderr := runWith(vars, "workspace", "show", unknown); code != exitFailure || !strings.Contains(stderr, "no such workspace") {
			t.Errorf("an unknown workspace: %d %s", code, stderr)
		}
	})

	t.Run("WorkspacesAreShownAndChangedWithAnAuditEntry", func(t *testing.T) {
		t.Parallel()
		env := storetest.New(t)
		vars := whole(env)
		ws := store.FormatID(store.WorkspacePrefix, storetest.NewWorkspace(t, env, "free"))
		show := func(args ...string) (w workspaceJSON) {
			t.Helper()
			code, stdout, stderr := runWith(vars, append(args, "--json")...)
			if code != exitOK {
				t.Fatalf("%q: %d %s", args, code, stderr)
			}
			if err := json.Unmarshal([]byte(stdout), &w); err != nil {
				t.Fatal(err)
			}
			return w
		}
		if w := show("workspace", "set-plan", ws, "pro", "--stripe-customer", "cus_1", "--stripe-subscription", "sub_1"); w.Plan != "pro" || w.Queue != "pro" ||
			w.Concurrency != 10 || *w.StripeCustomer != "cus_1" || *w.StripeSubscription != "sub_1" {
			t.Errorf("set-plan: %+v", w)
		}
		if w := show("workspace", "set-limit", ws, "concurrency=4", "agent_ms=5000", "requests_per_hour=7"); w.Concurrency != 4 || w.QuotaMS != 5000 || w.RequestsPerHour != 7 {
			t.Errorf("set-limit: %+v", w)
		}
		if w := show("workspace", "pause", ws); w.Paused == nil || *w.Paused != "operator" {
			t.Errorf("pause: %+v", w)
		}
		if w := show("workspace", "resume", ws); w.Paused != nil {
			t.Errorf("resume: %+v", w)
		}
		other := store.FormatID(store.WorkspacePrefix, storetest.NewWorkspace(t, env, "free"))
		if code, _, stderr := runWith(vars, "workspace", "set-plan", other, "pro", "--stripe-customer", "cus_1"); code != exitFailure || !strings.Contains(stderr, "another workspace") {
			t.Errorf("a second workspace on one customer: %d %s", code, stderr)
		}
		code, stdout, _ := runWith(vars, "workspace", "list")
		if code != exitOK || !strings.Contains(stdout, ws) || !strings.Contains(stdout, other) {
			t.Errorf("list: %d %s", code, stdout)
		}
		var entries int
		if err := env.Admin(t).Get(&entries, `SELECT count(*) FROM audit_log WHERE actor_type = 'operator' AND target = $1 AND action LIKE 'workspace.%'`, ws); err != nil {
			t.Fatal(err)
		}
		if entries != 5 { // the test's own set-plan is the first
			t.Errorf("%d audit entries, want 5", entries)
		}
	})

	t.Run("TasksAreListedCanceledAndRetried", func(t *testing.T) {
		t.Parallel()
		env := storetest.New(t)
		vars := whole(env)
		id := storetest.NewWorkspace(t, env, "pro")
		ws := store.FormatID(store.WorkspacePrefix, id)
		var task store.TaskView
		_, err := store.NewAPI(env.API(t)).Do(context.Background(), store.Scope{Workspace: id}, nil, func(w *store.Work) (store.Answer, error) {
			created, err := w.Submit(context.Background(), []store.NewTask{{Agent: "yuki", Model: "auto", Prompt: "secret words", TimeoutMS: 1000, MaxAttempts: 1}})
			task = created[0]
			return store.Answer{}, err
		})
		if err != nil {
			t.Fatal(err)
		}
		name := store.FormatID(store.TaskPrefix, task.ID)
		step := func(want string, args ...string) {
			t.Helper()
			code, stdout, stderr := runWith(vars, args...)
			if code != exitOK || !strings.Contains(stdout, name) || !strings.Contains(stdout, want) {
				t.Errorf("%q: %d %s %s", args, code, stdout, stderr)
			}
			if strings.Contains(stdout, "secret words") {
				t.Errorf("%q shows the customer's prompt", args)
			}
		}
		step("queued", "tasks", "list", ws, "--status", "queued")
		step("queued", "tasks", "show", ws, name, "--json")
		step("canceled", "tasks", "cancel", ws, name)
		step("queued", "tasks", "retry", ws, name)
		if code, _, stderr := runWith(vars, "tasks", "retry", ws, name); code != exitFailure || !strings.Contains(stderr, "only a failed or canceled task") {
			t.Errorf("a second retry: %d %s", code, stderr)
		}
		storetest.CheckLedger(t, env)
	})
}

func TestDoctor(t *testing.T) {
	t.Parallel()

	t.Run("FindsNothingOnASoundInstallation", func(t *testing.T) {
		t.Parallel()
		code, stdout, stderr := runWith(whole(storetest.New(t)), "doctor")
		// The tests' database runs without fsync, which is the one thing to find.
		if code != exitFailure || strings.Count(stdout, "WRONG") != 1 || !strings.Contains(stdout, "durability") {
			t.Errorf("%d %s %s", code, stdout, stderr)
		}
		for _, want := range []string{"signs in as muster_api", "signs in as muster_worker", "signs in as muster_system", "row-level security is forced",
			"noeviction", "clock: the database agrees", "clock: redis agrees", "schema: "} {
			if !strings.Contains(stdout, want) {
				t.Errorf("did not look at %q:\n%s", want, stdout)
			}
		}
	})

	t.Run("FindsEachBrokenRuleWithItsFix", func(t *testing.T) {
		t.Parallel()
		for name, broken := range map[string]struct{ sql, want string }{
			"no FORCE":           {`ALTER TABLE tasks NO FORCE ROW LEVEL SECURITY`, "ALTER TABLE tasks ENABLE ROW LEVEL SECURITY, FORCE"},
			"no RLS":             {`ALTER TABLE users DISABLE ROW LEVEL SECURITY`, "ALTER TABLE users ENABLE"},
			"a leaking view":     {`CREATE VIEW peek AS SELECT * FROM tasks`, "peek: a view must be a security invoker"},
			"a definer function": {`CREATE FUNCTION leak() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS 'SELECT count(*) FROM tasks'`, "ALTER FUNCTION leak SECURITY INVOKER"},
			"a global unique":    {`CREATE UNIQUE INDEX tell ON tasks (agent, id)`, "tasks.tell: a unique constraint"},
			"an open log":        {`GRANT DELETE ON audit_log TO muster_api`, "audit_log by muster_api: audit_log and metering_rows must be append-only"},
			"truncate":           {`GRANT TRUNCATE ON tasks TO muster_worker`, "tasks by muster_worker: no login role may truncate"},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				env := storetest.New(t)
				env.Admin(t).MustExec(broken.sql)
				code, stdout, _ := runWith(whole(env), "doctor")
				if code != exitFailure || !strings.Contains(stdout, broken.want) {
					t.Errorf("%d\n%s", code, stdout)
				}
			})
		}
	})

	t.Run("FindsWrongRolesAndMissingServers", func(t *testing.T) {
		t.Parallel()
		vars := whole(storetest.New(t))
		vars["DATABASE_URL"] = vars["SYSTEM_DATABASE_URL"]
		vars["REDIS_URL"] = "redis://:hush@127.0.0.1:1"
		delete(vars, "JWT_SIGNING_KEYS")
		code, stdout, stderr := runWith(vars, "doctor", "--json")
		var d diagnosis
		if err := json.Unmarshal([]byte(stdout), &d); err != nil || code != exitFailure {
			t.Fatalf("%d %v %s", code, err, stderr)
		}
		var all strings.Builder
		for _, f := range d.Findings {
			all.WriteString(f.What + "\n")
		}
		for _, want := range []string{"DATABASE_URL signs in as muster_system", "redis: cannot reach redis", "JWT_SIGNING_KEYS is not set"} {
			if !strings.Contains(all.String(), want) {
				t.Errorf("did not find %q in:\n%s", want, all.String())
			}
		}
		if strings.Contains(stdout, "hush") {
			t.Error("shows a secret")
		}
	})
}
