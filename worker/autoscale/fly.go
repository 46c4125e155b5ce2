package autoscale

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"time"
)

// Fly Machines. The rules relied on, as Fly documents them:
//
//   - GET /v1/apps/{app}/machines?metadata.KEY=VALUE lists the machines with that metadata; machines of fly deploy have
//     their process group in fly_process_group, and a machine that is made from another's config belongs to the same
//     group, so that the next deploy updates it (fly.io/docs/machines/api/machines-resource,
//     fly.io/docs/machines/guides-examples/managing-machines-with-the-api).
//   - POST …/machines {"region", "config"} makes a machine and boots it; it can fail for want of capacity. POST
//     …/machines/{id}/start starts a stopped one, …/stop {"signal", "timeout"} stops it: SIGINT unless told otherwise,
//     SIGKILL after the timeout, of at most 300 s (machines-resource; fly.io/docs/reference/configuration, kill_timeout).
//   - The states, which of them last, and that a machine in "starting" for 5 minutes is stuck
//     (fly.io/docs/machines/machine-states).
//   - 1 request/s for each action, 3 in a burst, then 429 (fly.io/docs/machines/api/working-with-machines-api).
//   - The restart policy on-failure, fly deploy's own, leaves a machine stopped whose worker has drained
//     (fly.io/docs/machines/guides-examples/machine-restart-policy).
//   - FLY_MACHINE_ID is set in each machine; workers name themselves by it (fly.io/docs/machines/runtime-environment).
//
// A machine that is stopped is kept for the next start, which is much faster than a new one; none is ever destroyed.

const (
	flyGroup   = "metadata.fly_process_group"
	flyStuck   = 5 * time.Minute
	flyLaunch  = 2 * time.Minute // a machine that is "created" for longer was not launched: start it
	flyBurst   = 3               // machines made in one go
	flyMaxKill = 300 * time.Second
	flyAnswer  = 16 << 20 // bytes read of an answer, at most
)

// FlyConfig makes a Fly driver; all fields are required.
type FlyConfig struct {
	BaseURL string        // https://api.machines.dev, or http://_api.internal:4280 inside
	App     string        // its name
	Token   string        // a deploy token of the app
	Group   string        // the workers' process group
	Drain   time.Duration // what a worker needs between SIGTERM and its end
	Now     func() time.Time
}

// Fly is the driver of an app's worker machines.
type Fly struct {
	cfg    FlyConfig
	client *http.Client
}

// NewFly makes the driver.
func NewFly(cfg FlyConfig) *Fly {
	return &Fly{cfg: cfg, client: &http.Client{Timeout: 10 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}} // the token goes nowhere else
}

type flyMachine struct {
	ID        string          `json:"id"`
	State     string          `json:"state"`
	Region    string          `json:"region"`
	Config    json.RawMessage `json:"config"`
	CreatedAt time.Time       `json:"created_at"`
	UpdatedAt time.Time       `json:"updated_at"`
}

// What a machine is to us.
type flyUse int

const (
	flyUseless   flyUse = iota // going, or stuck
	flyAlive                   // works, or will soon
	flyStopping                // drains
	flyStartable               // may be started
)

func (f *Fly) use(m flyMachine) flyUse {
	now := f.cfg.Now()
	switch m.State {
	case "started":
		return flyAlive
	case "starting", "restarting", "creating", "updating", "replacing":
		if now.Sub(m.UpdatedAt) > flyStuck {
			return flyUseless
		}
		return flyAlive
	case "created":
		if now.Sub(m.CreatedAt) > flyLaunch {
			return flyStartable
		}
		return flyAlive
	case "stopping", "suspending":
		return flyStopping
	case "stopped", "suspended", "failed":
		return flyStartable
	}
	return flyUseless
}

func (f *Fly) list(ctx context.Context) ([]flyMachine, error) {
	var machines []flyMachine
	err := f.ask(ctx, "GET", "?"+url.Values{flyGroup: {f.cfg.Group}}.Encode(), nil, &machines)
	return machines, err
}

// Workers lists the machines that work, start or drain.
func (f *Fly) Workers(ctx context.Context) ([]Worker, error) {
	machines, err := f.list(ctx)
	if err != nil {
		return nil, err
	}
	var workers []Worker
	for _, m := range machines {
		if use := f.use(m); use == flyAlive || use == flyStopping {
			workers = append(workers, Worker{ID: m.ID, Name: m.ID, Stopping: use == flyStopping})
		}
	}
	return workers, nil
}

// Start starts stopped machines first, then makes copies of the newest one. A machine whose start was not answered is
// in the next list all the same.
func (f *Fly) Start(ctx context.Context, n int) error {
	machines, err := f.list(ctx)
	if err != nil {
		return err
	}
	for _, m := range machines {
		if n == 0 {
			return nil
		}
		if f.use(m) != flyStartable {
			continue
		}
		err := f.ask(ctx, "POST", "/"+url.PathEscape(m.ID)+"/start", nil, nil)
		var refused *flyError
		switch {
		case err == nil:
			n--
		case errors.As(err, &refused) && slices.Contains([]int{http.StatusNotFound, http.StatusConflict, http.StatusPreconditionFailed}, refused.status):
			// It has vanished, or somebody else works on it: another one will do.
		default:
			return err
		}
	}
	if n == 0 {
		return nil
	}
	machines = slices.DeleteFunc(machines, func(m flyMachine) bool { return len(m.Config) == 0 })
	if len(machines) == 0 {
		return fmt.Errorf("no machine of the process group %q is there to copy; make the first with fly deploy or fly scale count", f.cfg.Group)
	}
	newest := slices.MaxFunc(machines, func(a, b flyMachine) int { return cmp.Compare(a.UpdatedAt.UnixNano(), b.UpdatedAt.UnixNano()) })
	for range min(n, flyBurst) {
		body := map[string]any{"region": newest.Region, "config": newest.Config}
		if err := f.ask(ctx, "POST", "", body, nil); err != nil {
			return err
		}
	}
	return nil
}

// Stop lets a machine's worker drain. One that has vanished is stopped.
func (f *Fly) Stop(ctx context.Context, id string) error {
	patience := min(f.cfg.Drain, flyMaxKill)
	err := f.ask(ctx, "POST", "/"+url.PathEscape(id)+"/stop", map[string]string{"signal": "SIGTERM", "timeout": fmt.Sprintf("%ds", int(patience.Seconds()))}, nil)
	var refused *flyError
	if errors.As(err, &refused) && refused.status == http.StatusNotFound {
		return nil
	}
	return err
}

// flyError is an answer that is no success.
type flyError struct {
	deed   string
	status int
	said   string // Fly's words, shortened
}

func (e *flyError) Error() string { return fmt.Sprintf("fly: %s: %d %s", e.deed, e.status, e.said) }

func (f *Fly) ask(ctx context.Context, method, path string, body, answer any) error {
	var reader io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return err
		}
		reader = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, f.cfg.BaseURL+"/v1/apps/"+url.PathEscape(f.cfg.App)+"/machines"+path, reader)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+f.cfg.Token)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := f.client.Do(req)
	if err != nil {
		return fmt.Errorf("fly: %w", err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(res.Body, flyAnswer))
	if err != nil {
		return fmt.Errorf("fly: read the answer: %w", err)
	}
	if res.StatusCode/100 != 2 {
		var problem struct{ Error string }
		_ = json.Unmarshal(raw, &problem) // no JSON: the status says enough
		return &flyError{deed: method + " machines" + path, status: res.StatusCode, said: problem.Error[:min(len(problem.Error), 200)]}
	}
	if answer == nil {
		return nil
	}
	if err := json.Unmarshal(raw, answer); err != nil {
		return fmt.Errorf("fly: read the answer: %w", err)
	}
	return nil
}
