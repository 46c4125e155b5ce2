package main

import (
	"fmt"
	"path/filepath"
	"regexp"
	"time"

	"github.com/generic-corp/muster/worker/autoscale"
)

// Autoscale is the settings of the autoscaler, which the leading scheduler runs.
type Autoscale struct {
	Driver string // off, local or fly
	autoscale.Policy

	FlyAPIBase, FlyAppName, FlyGroup string
	FlyAPIToken                      Secret

	CrewSocket string // of the muster up that this scheduler is a child of
}

// mostLocal is how many worker processes muster up starts at most.
const mostLocal = 64

var autoscaleVariables = []variable{
	{"AUTOSCALE", "off", "off, local or fly", false, "which workers the scheduler starts and stops by itself", oneOf(func(c *Config) *string { return &c.Autoscale.Driver }, "off", "local", "fly")},
	{"AUTOSCALE_MODE", "on", "on, dry-run or paused", false, "whether decisions are carried out, only logged, or not made", func(c *Config, v string) error {
		switch v {
		case "on", "dry-run", "paused":
			c.Autoscale.DryRun, c.Autoscale.Paused = v == "dry-run", v == "paused"
			return nil
		}
		return errWrong
	}},
	{"AUTOSCALE_MIN", "1", "a number from 0 to 1000", false, "workers that there always are", number(func(c *Config) *int { return &c.Autoscale.Min }, 0, 1000)},
	{"AUTOSCALE_MAX", "4", "a number from 1 to 1000", false, "workers at most", number(func(c *Config) *int { return &c.Autoscale.Max }, 1, 1000)},
	{"AUTOSCALE_TARGET", "50", "a number from 1 to 10000", false, "each worker should have fewer runnable tasks than this", number(func(c *Config) *int { return &c.Autoscale.Target }, 1, 10_000)},
	{"AUTOSCALE_MAX_WAIT", "30s", "a duration from 1s to 1h", false, "when work has waited for so long in line with all slots in use, more workers come", duration(func(c *Config) *time.Duration { return &c.Autoscale.MaxWait }, time.Second, time.Hour)},
	{"AUTOSCALE_STEP", "4", "a number from 1 to 100", false, "workers started at a time, 10 s between two", number(func(c *Config) *int { return &c.Autoscale.MaxStep }, 1, 100)},
	{"AUTOSCALE_COOLDOWN", "5m", "a duration from 1s to 6h", false, "how long fewer workers must have been enough before the first goes", duration(func(c *Config) *time.Duration { return &c.Autoscale.Cooldown }, time.Second, 6*time.Hour)},
	{"AUTOSCALE_WARM", "0", "a number from 0 to 1000", false, "workers kept while anything was active within AUTOSCALE_WARM_FOR", number(func(c *Config) *int { return &c.Autoscale.Warm }, 0, 1000)},
	{"AUTOSCALE_WARM_FOR", "15m", "a duration from 1s to 24h", false, "how long they are kept", duration(func(c *Config) *time.Duration { return &c.Autoscale.WarmFor }, time.Second, 24*time.Hour)},
	{"AUTOSCALE_BUDGET", "0", "a number from 0 to 60000", false, "worker-minutes in any hour, draining workers' too; 0 is no limit", number(func(c *Config) *int { return &c.Autoscale.Budget }, 0, 60_000)},
	{"FLY_API_TOKEN", "", "a deploy token of the app", true, "starts and stops the app's machines", text(func(c *Config) *Secret { return &c.Autoscale.FlyAPIToken })},
	{"FLY_APP_NAME", "", "an app's name", false, "whose machines the workers are; Fly sets it", named(func(c *Config) *string { return &c.Autoscale.FlyAppName })},
	{"FLY_WORKER_GROUP", "worker", "a process group of fly.toml", false, "whose machines run muster worker", named(func(c *Config) *string { return &c.Autoscale.FlyGroup })},
	{"FLY_API_BASE", "https://api.machines.dev", "an http or https URL", false, "another address of Fly's Machines API", httpURL(func(c *Config) *string { return &c.Autoscale.FlyAPIBase })},
	{"CREW_SOCKET", "", "an absolute path", false, "where the muster up listens that starts and stops workers for this scheduler; it sets it itself", func(c *Config, v string) error {
		if !filepath.IsAbs(v) {
			return errWrong
		}
		c.Autoscale.CrewSocket = v
		return nil
	}},
}

// named takes what Fly takes for names of apps and process groups.
func named(field func(*Config) *string) func(*Config, string) error {
	form := regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$`)
	return func(c *Config, v string) error {
		if !form.MatchString(v) {
			return errWrong
		}
		*field(c) = v
		return nil
	}
}

// autoscalePolicy is the scaler's, which also knows how long a worker takes to leave.
func (c Config) autoscalePolicy() autoscale.Policy {
	p := c.Autoscale.Policy
	p.Drain = c.Drain + drainGrace
	return p
}

// autoscaleMistakes are settings that do not fit each other.
func (c Config) autoscaleMistakes() (mistakes []string) {
	a := c.Autoscale
	if a.Driver == "off" {
		return nil
	}
	if a.Min > a.Max {
		mistakes = append(mistakes, fmt.Sprintf("AUTOSCALE_MIN is %d, more than AUTOSCALE_MAX, which is %d", a.Min, a.Max))
	}
	if a.Driver == "local" && a.Max > mostLocal {
		mistakes = append(mistakes, fmt.Sprintf("AUTOSCALE_MAX is %d; want at most %d worker processes on one server", a.Max, mostLocal))
	}
	if least := c.autoscalePolicy().LeastBudget(); a.Budget > 0 && a.Budget < least {
		mistakes = append(mistakes, fmt.Sprintf("AUTOSCALE_BUDGET is %d; want 0, or at least %d: 60 for each of AUTOSCALE_MIN, and what one more worker takes to work and drain", a.Budget, least))
	}
	return mistakes
}
