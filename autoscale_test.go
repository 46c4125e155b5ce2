package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// TestFleetGrowsAndShrinks: muster up begins with no worker; a task brings one, a flood brings four, and when it ends
// they go, busy ones too. No task is cut.
func TestFleetGrowsAndShrinks(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	for name, value := range map[string]string{"AUTOSCALE": "local", "AUTOSCALE_MIN": "0", "AUTOSCALE_MAX": "4", "AUTOSCALE_TARGET": "8", "AUTOSCALE_STEP": "3",
		"AUTOSCALE_COOLDOWN": "5s", "WORKER_CONCURRENCY": "4", "OPS_ADDR": "127.0.0.1:0"} {
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
	for i := range 30 { // four tasks last until the fleet shrinks: workers have to go while they run
		submit(tenants[i%3], 1, map[bool]string{true: "28s", false: "1s"}[i < 4])
		submit(tenants[i%3], 1, "1s")
	}
	s.await(30*time.Second, "four workers", func() bool { return workers() == 4 })
	t.Logf("four workers took turns after %s", time.Since(began).Round(time.Millisecond))
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
	drainedBusy := false
	for line := range strings.Lines(s.log("up")) {
		if strings.Contains(line, `"message":"autoscale"`) {
			t.Log(strings.TrimSpace(line))
			var d struct {
				Want, Have, Running int
			}
			if err := json.Unmarshal([]byte(line), &d); err != nil {
				t.Fatal(err)
			}
			drainedBusy = drainedBusy || (d.Want < d.Have && d.Running > 0)
		}
	}
	if !drainedBusy {
		t.Error("no worker went while tasks ran: the test did not see a drain")
	}
	up := s.procs["up"]
	if err := up.End(context.Background(), 40*time.Second, syscall.SIGTERM, syscall.SIGKILL); err != nil || up.ExitCode() != 0 {
		t.Errorf("up ended with %d, %v", up.ExitCode(), err)
	}
}

// TestFleetLoadIsWhatTheScalerGoesBy: slots of the workers that take turns, running tasks as each worker said.
func TestFleetLoadIsWhatTheScalerGoesBy(t *testing.T) {
	t.Parallel()
	env := storetest.New(t)
	fleet := store.NewFleet(env.Worker(t))
	t.Cleanup(fleet.Close)
	ctx := context.Background()
	system := store.NewSystem(env.System(t))
	load, err := fleetLoad(ctx, system, 20)
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
	load, err = fleetLoad(ctx, system, 20)
	if err != nil || load.Slots != 8 || load.Busy["a/1"] != 3 || load.Busy["b/1"] != 3 {
		t.Errorf("of two workers: %+v, %v", load, err)
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
		"ABudgetForNobody": {map[string]string{"AUTOSCALE_BUDGET": "19"}, `AUTOSCALE_BUDGET is "19"; want 0, or a number from 20 to 60000`},
		"NoBudget":         {map[string]string{"AUTOSCALE_BUDGET": "0"}, ""},
		"AnUnknownMode":    {map[string]string{"AUTOSCALE_MODE": "off"}, `AUTOSCALE_MODE is "off"; want on, dry-run or paused`},
	} {
		_, err := loadConfig(env(c.vars), nil)
		if (c.want == "") != (err == nil) || (err != nil && !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
	}
	cfg, err := loadConfig(env(map[string]string{"AUTOSCALE": "fly", "AUTOSCALE_MODE": "dry-run", "AUTOSCALE_COOLDOWN": "90s"}), nil)
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
