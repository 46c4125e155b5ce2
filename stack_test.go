package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/generic-corp/muster/billing/stripetest"
	"github.com/generic-corp/muster/scripts/privateservers"
	"github.com/generic-corp/muster/store/storetest"
	"github.com/generic-corp/muster/worker/childprocess"
	"github.com/generic-corp/muster/worker/isolate"
	"github.com/generic-corp/muster/worker/provider/providertest"
)

// TestMain lets the test binary be muster itself: the end-to-end tests start it as the real processes, with the race
// detector in them when the tests have it.
func TestMain(m *testing.M) {
	if os.Getenv(asMuster) != "" || len(os.Args) == 2 && os.Args[1] == isolate.Command {
		main()
		return
	}
	os.Exit(storetest.Main(m))
}

const asMuster = "MUSTER_TEST_IS_MUSTER"

// stack is a whole Muster of one test: servers of its own, stand-ins, and processes.
type stack struct {
	t      *testing.T
	env    *storetest.Servers
	models *providertest.Server
	stripe *stripetest.Server
	vars   map[string]string // of every process
	base   string            // of the API
	client *http.Client

	mu    sync.Mutex
	procs map[string]*process
}

// process is a running muster.
type process struct {
	*childprocess.Process
	ops string // its operators' listener
	log string // file
}

func newStack(t *testing.T) *stack {
	t.Helper()
	s := &stack{t: t, env: storetest.OwnServers(t), models: providertest.New(), procs: map[string]*process{},
		client: &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 64}}}
	models := httptest.NewServer(s.models)
	t.Cleanup(models.Close)
	var stripeURL string
	s.stripe, stripeURL = stripetest.Start(t, stripetest.Options{})
	port := freePort(t)
	s.base = "http://127.0.0.1:" + port
	s.vars = map[string]string{
		asMuster: "1", "PORT": port, "DATABASE_URL": s.env.APIURL, "WORKER_DATABASE_URL": s.env.WorkerURL, "SYSTEM_DATABASE_URL": s.env.SystemURL,
		"MIGRATE_DATABASE_URL": s.env.OwnerURL, "REDIS_URL": s.env.RedisURL, "JWT_SIGNING_KEYS": strings.Repeat("ab", 32),
		"STRIPE_SECRET_KEY": "sk_test_muster", "STRIPE_API_BASE": stripeURL, "OPENAI_BASE_URL": models.URL + "/v1", "OPENAI_API_KEY": "sk-test",
		"WEBHOOK_KEYS": strings.Repeat("cd", 32), "WEBHOOK_ALLOW_LOOPBACK": "true", "DRAIN_SECONDS": "20", "LOG_LEVEL": "info",
	}
	t.Cleanup(func() { s.stopAll() })
	return s
}

func freePort(t testing.TB) string {
	t.Helper()
	port, err := privateservers.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return strconv.Itoa(port)
}

// start runs a muster process under a name of the test's; its log is kept and shown when the test fails.
func (s *stack) start(name string, args ...string) *process {
	s.t.Helper()
	file, err := os.OpenFile(filepath.Join(s.t.TempDir(), name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	p := &process{ops: "127.0.0.1:" + freePort(s.t), log: file.Name()}
	env := []string{"PATH=" + os.Getenv("PATH"), "OPS_ADDR=" + p.ops}
	for k, v := range s.vars {
		env = append(env, k+"="+v)
	}
	if p.Process, err = childprocess.Start(childprocess.Config{Argv: append([]string{os.Args[0]}, args...), Env: env, Output: file}); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		file.Close()
		raw, _ := os.ReadFile(file.Name())
		if bytes.Contains(raw, []byte("DATA RACE")) || bytes.Contains(raw, []byte("panic:")) {
			s.t.Errorf("%s raced or panicked:\n%s", name, tail(raw, 20_000))
		} else if s.t.Failed() {
			s.t.Logf("log of %s:\n%s", name, tail(raw, 3_000))
		}
	})
	s.mu.Lock()
	s.procs[name] = p
	s.mu.Unlock()
	if len(args) == 1 { // a long-running process answers on its operators' listener once it is wired
		s.await(20*time.Second, name+" to be up", func() bool {
			if !p.Alive() {
				raw, _ := os.ReadFile(file.Name())
				s.t.Fatalf("%s ended at start with code %d:\n%s", name, p.ExitCode(), tail(raw, 3_000))
			}
			res, err := s.client.Get("http://" + p.ops + "/health")
			if err != nil {
				return false
			}
			res.Body.Close()
			return res.StatusCode == http.StatusOK
		})
	}
	if name == "api" {
		s.await(20*time.Second, "the API to be ready", func() bool {
			res, err := s.client.Get(s.base + "/ready")
			if err != nil {
				return false
			}
			res.Body.Close()
			return res.StatusCode == http.StatusOK
		})
	}
	return p
}

// log is what a process has said so far.
func (s *stack) log(name string) string {
	s.t.Helper()
	raw, err := os.ReadFile(s.procs[name].log)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(raw)
}

func tail(raw []byte, n int) []byte { return raw[max(0, len(raw)-n):] }

// kill ends a process as a crash would.
func (s *stack) kill(name string) {
	s.t.Helper()
	p := s.procs[name]
	if !p.Alive() {
		s.t.Fatalf("%s is not running: the fault would not fire", name)
	}
	if err := p.End(context.Background(), 0, syscall.SIGKILL); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stack) stopAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, p := range s.procs {
		if err := p.End(context.Background(), 40*time.Second, syscall.SIGTERM, syscall.SIGKILL); err != nil {
			s.t.Errorf("stop %s: %v", name, err)
		}
	}
}

// await polls a condition of another process; there is no signal across processes to wait for.
func (s *stack) await(limit time.Duration, what string, done func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(limit); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("waited %s for %s", limit, what)
		}
	}
}

// muster runs a command in this process and returns its exit code and output.
func (s *stack) muster(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(context.Background(), args, func(k string) string { return s.vars[k] }, &out, &errs)
	return code, out.String(), errs.String()
}

// metric sums a metric of a process over its labels.
func (s *stack) metric(name, metric string) float64 {
	s.t.Helper()
	res, err := s.client.Get("http://" + s.procs[name].ops + "/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	sum, found := 0.0, false
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, metric); ok && (rest[0] == ' ' || rest[0] == '{') {
			v, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndexByte(line, ' '):]), 64)
			if err != nil {
				s.t.Fatalf("metric %q: %v", line, err)
			}
			sum, found = sum+v, true
		}
	}
	if !found {
		s.t.Fatalf("%s exports no %s", name, metric)
	}
	return sum
}

// tenant is a workspace as its customer uses it.
type tenant struct {
	s     *stack
	id    string
	name  string // the word that its prompts carry to the model server
	token string
	cap   int64
}

// request sends JSON and decodes the answer; idempotency is the Idempotency-Key or "".
func (s *stack) request(method, path, token, idempotency string, body, answer any) (status int, err error) {
	var reader io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return 0, err
		}
		reader = bytes.NewReader(raw)
	}
	req, err := http.NewRequest(method, s.base+path, reader)
	if err != nil {
		return 0, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if idempotency != "" {
		req.Header.Set("Idempotency-Key", idempotency)
	}
	res, err := s.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err
	}
	if res.StatusCode >= 400 {
		return res.StatusCode, fmt.Errorf("%s %s: %d %s", method, path, res.StatusCode, raw)
	}
	if answer != nil {
		return res.StatusCode, json.Unmarshal(raw, answer)
	}
	return res.StatusCode, nil
}

// tenant registers a workspace over HTTP, puts it on a plan, and mints it a key, which outlives any access token.
func (s *stack) tenant(name, plan string, capacity int64) *tenant {
	s.t.Helper()
	var reg struct {
		Workspace   struct{ ID string }
		AccessToken string `json:"access_token"`
	}
	if _, err := s.request("POST", "/v1/auth/register", "", "", map[string]string{"email": name + "@example.com", "password": "correct horse battery",
		"workspace_name": name}, &reg); err != nil {
		s.t.Fatal(err)
	}
	if code, _, stderr := s.muster("workspace", "set-plan", reg.Workspace.ID, plan, "--stripe-customer", s.stripeCustomer(name)); code != 0 {
		s.t.Fatalf("set-plan: %d %s", code, stderr)
	}
	var key struct{ Key string }
	if _, err := s.request("POST", "/v1/api-keys", reg.AccessToken, "", map[string]any{"name": "e2e"}, &key); err != nil {
		s.t.Fatal(err)
	}
	return &tenant{s: s, id: reg.Workspace.ID, name: name, token: key.Key, cap: capacity}
}

// stripeCustomer makes a customer at the stand-in.
func (s *stack) stripeCustomer(name string) string {
	s.t.Helper()
	req, err := http.NewRequest("POST", s.vars["STRIPE_API_BASE"]+"/v1/customers", strings.NewReader("name="+name))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.vars["STRIPE_SECRET_KEY"])
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	res, err := s.client.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	var customer struct{ ID string }
	if err := json.NewDecoder(res.Body).Decode(&customer); err != nil || customer.ID == "" {
		s.t.Fatalf("create customer: %d %v", res.StatusCode, err)
	}
	return customer.ID
}
