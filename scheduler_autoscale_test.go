package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
	"github.com/generic-corp/muster/worker/autoscale"
)

// TestFleetGrowsAndShrinks: muster up begins with no worker; a task brings one, a flood brings four. The scheduler is
// killed, which no worker notices. The next one lets them go when the flood has ended, busy ones too. No task is cut.
func TestFleetGrowsAndShrinks(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	for name, value := range map[string]string{"AUTOSCALE": "local", "AUTOSCALE_MIN": "0", "AUTOSCALE_MAX": "4", "AUTOSCALE_TARGET": "8", "AUTOSCALE_STEP": "3",
		"AUTOSCALE_COOLDOWN": "5s", "WORKER_CONCURRENCY": "4", "OPS_ADDR": "127.0.0.1:0", "TMPDIR": t.TempDir()} {
		s.vars[name] = value
	}
	s.start("up", "up", "--drain-seconds", "30")
	s.await(30*time.Second, "the API to be ready", func() bool {
		res, err := s.client.Get(s.base + "/ready")
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == 200
	})
	workers := func() int { return s.count(`SELECT count(*) FROM workers WHERE dead_at IS NULL`) }
	var tenants []*tenant
	for i := range 3 {
		tenants = append(tenants, s.tenant(fmt.Sprintf("grower-%d", i), "pro", 10))
	}
	if n := s.count(`SELECT count(*) FROM workers`); n != 0 {
		t.Fatalf("%d workers before there was work", n)
	}
	sent := 0
	submit := func(tn *tenant, n int, sleep string) {
		t.Helper()
		var tasks []map[string]any
		for range n {
			tasks = append(tasks, map[string]any{"prompt": fmt.Sprintf("ws=%s sleep=%s", tn.name, sleep)})
		}
		if _, err := s.request("POST", "/v1/tasks/batch", tn.token, uuid.NewString(), map[string]any{"tasks": tasks}, nil); err != nil {
			t.Fatal(err)
		}
		sent += n
	}
	began := time.Now()
	submit(tenants[0], 1, "100ms")
	s.await(20*time.Second, "the first task to end", func() bool { return s.count(`SELECT count(*) FROM tasks WHERE status = 'succeeded'`) == 1 })
	t.Logf("from 0 workers, the first task had ended after %s", time.Since(began).Round(time.Millisecond))
	if n := s.count(`SELECT count(*) FROM workers`); n != 1 {
		t.Errorf("%d workers for one task", n)
	}
	began = time.Now()
	for i := range 30 {
		submit(tenants[i%3], 2, "2s")
	}
	s.await(30*time.Second, "four workers", func() bool { return workers() == 4 })
	t.Logf("four workers took turns after %s", time.Since(began).Round(time.Millisecond))

	leads := func() int { return strings.Count(s.log("up"), "this scheduler leads") }
	if err := syscall.Kill(s.child("scheduler"), syscall.SIGKILL); err != nil || leads() != 1 {
		t.Fatalf("kill the scheduler: %v; %d led", err, leads())
	}
	s.await(40*time.Second, "the next scheduler to lead", func() bool { return leads() == 2 })
	if n := s.count(`SELECT count(*) FROM workers WHERE dead_at IS NULL AND NOT draining`); n != 4 {
		t.Errorf("%d workers outlived the scheduler, want 4", n)
	}
	for _, tn := range tenants {
		submit(tn, 3, "12s")
	}
	s.await(30*time.Second, "all to run", func() bool { return s.count(`SELECT count(*) FROM leases`) == 9 })
	s.drainOne()
	s.await(10*time.Second, "a busy worker to drain", func() bool {
		return s.count(`SELECT count(*) FROM workers WHERE dead_at IS NULL AND draining AND running > 0`) > 0
	})
	t.Logf("a busy worker drained after %s", time.Since(began).Round(time.Millisecond))
	s.await(60*time.Second, "the fleet to be gone", func() bool { return workers() == 0 })
	t.Logf("all had gone after %s", time.Since(began).Round(time.Millisecond))
	if n := s.count(`SELECT count(*) FROM tasks WHERE status = 'succeeded' AND attempt = 1`); n != sent {
		t.Errorf("%d of %d tasks succeeded at their first attempt", n, sent)
	}
	if n := s.count(`SELECT count(*) FROM attempts`); n != sent {
		t.Errorf("%d attempts for %d tasks: some were cut or handed back", n, sent)
	}
	if n := s.count(`SELECT count(*) FROM workers`); n != 4 {
		t.Errorf("%d workers were started, want 4", n)
	}
	storetest.CheckLedger(t, s.env.Env)
	for line := range strings.Lines(s.log("up")) {
		if strings.Contains(line, `"message":"autoscale"`) {
			t.Log(strings.TrimSpace(line))
		}
	}
	up := s.procs["up"]
	if err := up.End(context.Background(), 40*time.Second, syscall.SIGTERM, syscall.SIGKILL); err != nil || up.ExitCode() != 0 {
		t.Errorf("up ended with %d, %v", up.ExitCode(), err)
	}
	if left, err := os.ReadDir(s.vars["TMPDIR"]); err != nil || len(left) != 0 {
		t.Errorf("up left %v behind, %v", left, err)
	}
}

// drainOne has the driver stop a worker that runs tasks, although idle ones would go first.
func (s *stack) drainOne() {
	s.t.Helper()
	var busy string
	if err := s.env.Admin(s.t).Get(&busy, `SELECT w.name FROM workers w JOIN leases l ON l.worker_id = w.id LIMIT 1`); err != nil {
		s.t.Fatal(err)
	}
	sockets, err := filepath.Glob(s.vars["TMPDIR"] + "/muster-up-*/crew.sock")
	if err != nil || len(sockets) != 1 {
		s.t.Fatalf("the crew's sockets: %v %v", sockets, err)
	}
	crew := autoscale.NewLocal(sockets[0])
	workers, err := crew.Workers(context.Background())
	if err != nil {
		s.t.Fatal(err)
	}
	i := slices.IndexFunc(workers, func(w autoscale.Worker) bool { return w.Name == busy })
	if i < 0 {
		s.t.Fatalf("the ledger's %s is none of %v", busy, workers)
	}
	if err := crew.Stop(context.Background(), workers[i].ID); err != nil {
		s.t.Fatal(err)
	}
}

// child is the process id of the last child that muster up started under a name.
func (s *stack) child(name string) (pid int) {
	s.t.Helper()
	for line := range strings.Lines(s.log("up")) {
		var told struct {
			Child, Message string
			PID            int
		}
		if json.Unmarshal([]byte(line), &told) == nil && told.Child == name && told.Message == "child started" {
			pid = told.PID
		}
	}
	if pid == 0 {
		s.t.Fatalf("muster up started no %s", name)
	}
	return pid
}

// TestFleetLoadIsWhatTheScalerGoesBy: slots of the workers that take turns, running tasks as each worker said.
func TestFleetLoadIsWhatTheScalerGoesBy(t *testing.T) {
	t.Parallel()
	env := storetest.New(t)
	fleet := store.NewFleet(env.Worker(t))
	t.Cleanup(fleet.Close)
	ctx := context.Background()
	system := store.NewSystem(env.System(t))
	load, err := fleetLoad(ctx, &tierLoads{system: system}, 20)
	if err != nil || load.Slots != 20 || load.Runnable != 0 || load.At.IsZero() {
		t.Errorf("of an empty fleet: %+v, %v", load, err)
	}
	for _, w := range []store.Worker{{ID: store.NewID(), Name: "a/1", Slots: 8}, {ID: store.NewID(), Name: "b/1", Slots: 8}} {
		if err := fleet.Register(ctx, w); err != nil {
			t.Fatal(err)
		}
		if _, err := fleet.Beat(ctx, w.ID, 3, w.Name == "b/1"); err != nil {
			t.Fatal(err)
		}
	}
	load, err = fleetLoad(ctx, &tierLoads{system: system}, 20)
	if err != nil || load.Slots != 8 || load.Busy["a/1"] != 3 || load.Busy["b/1"] != 3 {
		t.Errorf("of two workers: %+v, %v", load, err)
	}
}

// slowPlatform has its starts wait until their context ends.
type slowPlatform struct {
	starting, ended chan struct{}
}

func (p *slowPlatform) Workers(context.Context) ([]autoscale.Worker, error) { return nil, nil }
func (p *slowPlatform) Stop(context.Context, string) error                  { return nil }
func (p *slowPlatform) Start(ctx context.Context, _ int) error {
	close(p.starting) // a second start panics
	<-ctx.Done()
	close(p.ended)
	return ctx.Err()
}

// TestAStepEndsWithItsLead: what a scheduler starts or stops ends when its lead does, and not while it is renewed.
func TestAStepEndsWithItsLead(t *testing.T) {
	t.Parallel()
	platform := &slowPlatform{starting: make(chan struct{}), ended: make(chan struct{})}
	s := &scheduler{scaler: autoscale.New(autoscale.Config{Driver: platform, Now: time.Now, Metrics: autoscale.NewMetrics(prometheus.NewRegistry()), Log: zerolog.Nop(),
		Policy: autoscale.Policy{Max: 4, Target: 50, MaxWait: time.Minute, MaxStep: 4, Cooldown: time.Minute},
		Load: func(context.Context) (autoscale.Load, error) {
			return autoscale.Load{Figures: autoscale.Figures{At: time.Now(), Runnable: 1, Slots: 1}}, nil
		}})}
	leading := newLeadership()
	lapses := time.Now().Add(autoscale.Interval + time.Second)
	leading.set(lapses)
	ctx, stop := context.WithCancel(context.Background())
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		s.scale(ctx, leading)
	}()
	<-platform.starting
	lapses = lapses.Add(300 * time.Millisecond) // renewed in time
	leading.set(lapses)
	<-platform.ended
	switch late := time.Since(lapses); {
	case late < 0:
		t.Error("a step ended although its lead had been renewed")
	case late > 10*time.Second: // by its own patience
		t.Errorf("a step went on for %s after its lead", late)
	}
	stop()
	<-stopped
	without, done := leading.during(context.Background())
	defer done()
	if without.Err() == nil {
		t.Error("without a lead there is a context to act under")
	}
}

func TestOperatorsPauseTheAutoscaler(t *testing.T) {
	t.Parallel()
	env := storetest.New(t)
	ctx := context.Background()
	system := store.NewSystem(env.System(t))
	vars := whole(env)
	paused := func() bool {
		t.Helper()
		load, err := fleetLoad(ctx, &tierLoads{system: system}, 20)
		if err != nil {
			t.Fatal(err)
		}
		return load.Paused
	}
	for i, step := range []struct {
		args    []string
		code    int
		paused  bool
		out     string
		note    string
		entries int // on the system's chain
	}{
		{[]string{"show"}, exitOK, false, "paused       no", "", 0},
		{[]string{"resume"}, exitOK, false, "paused       no", "it was not paused", 0},
		{[]string{"pause", "--reason", strings.Repeat("x", 1001)}, exitUsage, false, "", "want at most 1000", 0},
		{[]string{"pause", "--reason", "black friday"}, exitOK, true, ": black friday", "", 1},
		{[]string{"pause", "--reason", "another"}, exitOK, true, ": black friday", "it was paused before", 1},
		{[]string{"show", "--json"}, exitOK, true, `"reason": "black friday"`, "", 1},
		{[]string{"resume", "--json"}, exitOK, false, `"paused": null`, "", 2},
	} {
		code, out, stderr := runWith(vars, append([]string{"autoscale"}, step.args...)...)
		if code != step.code || !strings.Contains(out, step.out) || !strings.Contains(stderr, step.note) || step.note == "" && stderr != "" || paused() != step.paused {
			t.Errorf("step %d: %d, paused %v\n%s%s", i, code, paused(), out, stderr)
		}
		var n int
		if err := env.Admin(t).Get(&n, `SELECT count(*) FROM audit_log WHERE workspace_id = $1 AND action LIKE 'autoscale.%'`, store.SystemChain); err != nil || n != step.entries {
			t.Errorf("step %d: %d entries, %v", i, n, err)
		}
	}
}

func TestAutoscaleSettings(t *testing.T) {
	t.Parallel()
	env := func(more map[string]string) func(string) string {
		return func(name string) string { return more[name] }
	}
	for name, c := range map[string]struct {
		vars map[string]string
		want string // "" is right
	}{
		"Off":              {map[string]string{"AUTOSCALE_MIN": "9"}, ""},
		"MinAboveMax":      {map[string]string{"AUTOSCALE": "local", "AUTOSCALE_MIN": "9"}, "AUTOSCALE_MIN is 9, more than AUTOSCALE_MAX, which is 4"},
		"TooManyLocal":     {map[string]string{"AUTOSCALE": "local", "AUTOSCALE_MAX": "65"}, "at most 64 worker processes"},
		"ManyOnFly":        {map[string]string{"AUTOSCALE": "fly", "AUTOSCALE_MAX": "65"}, ""},
		"ABudgetForNobody": {map[string]string{"AUTOSCALE": "local", "AUTOSCALE_MIN": "0", "AUTOSCALE_BUDGET": "34"}, "AUTOSCALE_BUDGET is 34; want 0, or at least 35"},
		"OneForTheMinimum": {map[string]string{"AUTOSCALE": "local", "AUTOSCALE_MIN": "2", "AUTOSCALE_BUDGET": "120"}, "AUTOSCALE_BUDGET is 120; want 0, or at least 155"},
		"AShortDrainCosts": {map[string]string{"AUTOSCALE": "local", "AUTOSCALE_MIN": "0", "AUTOSCALE_BUDGET": "34", "DRAIN_SECONDS": "200"}, ""},
		"NoBudget":         {map[string]string{"AUTOSCALE_BUDGET": "0"}, ""},
		"AnUnknownMode":    {map[string]string{"AUTOSCALE_MODE": "off"}, `AUTOSCALE_MODE is "off"; want on, dry-run or paused`},
	} {
		_, err := loadConfig(env(c.vars), nil)
		if (c.want == "") != (err == nil) || (err != nil && !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
	}
	cfg, err := loadConfig(env(map[string]string{"AUTOSCALE": "fly", "AUTOSCALE_MODE": "dry-run", "AUTOSCALE_COOLDOWN": "90s"}), nil)
	if drain := cfg.autoscalePolicy().Drain; drain != 300*time.Second {
		t.Errorf("a worker is taken to drain for %s", drain)
	}
	if err != nil || !cfg.Autoscale.DryRun || cfg.Autoscale.Paused || cfg.Autoscale.Cooldown != 90*time.Second || cfg.Autoscale.Target != 50 {
		t.Errorf("%+v, %v", cfg.Autoscale, err)
	}
	if _, err := newDriver(cfg); err == nil || !strings.Contains(err.Error(), "FLY_API_TOKEN is not set") || !strings.Contains(err.Error(), "FLY_APP_NAME is not set") {
		t.Errorf("fly without token and app: %v", err)
	}
	cfg.Autoscale.Driver = "local"
	if _, err := newDriver(cfg); err == nil || !strings.Contains(err.Error(), "muster up") {
		t.Errorf("local without muster up: %v", err)
	}
	file := t.TempDir() + "/token"
	if err := os.WriteFile(file, []byte("fm2_of-the-app\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err = loadConfig(env(map[string]string{"AUTOSCALE": "fly", "FLY_API_TOKEN_FILE": file, "FLY_APP_NAME": "muster"}), nil)
	if err != nil {
		t.Fatal(err)
	}
	if driver, err := newDriver(cfg); driver == nil || err != nil {
		t.Errorf("fly with token and app: %v", err)
	}
	var shown bytes.Buffer
	fmt.Fprintf(&shown, "%v %+v %#v", cfg, cfg.Autoscale, cfg.Autoscale.FlyAPIToken)
	if strings.Contains(shown.String(), "fm2_of") {
		t.Error("the token shows")
	}
}
