package main

import (
	"context"
	"flag"
	"fmt"
	"time"

	"github.com/generic-corp/muster/store"
)

// Operators' commands on the autoscaler: what it sees, and the switch that pauses it within one of its steps.

func runAutoscale(ctx context.Context, c *cli, args []string) error {
	return c.subcommand(ctx, "autoscale", args, map[string]func(context.Context, *cli, []string) error{
		"show": autoscaleShow, "pause": autoscalePause, "resume": autoscaleResume,
	})
}

// scalingJSON is what --json prints of the fleet, as the autoscaler sees it.
type scalingJSON struct {
	Paused   *pauseJSON `json:"paused"` // null: not by operators; AUTOSCALE_MODE is the schedulers' own
	Workers  int64      `json:"workers"`
	Slots    int64      `json:"slots"`
	Running  int        `json:"running"`
	Runnable int        `json:"runnable"`
	WaitMS   int64      `json:"oldest_wait_ms"`
}

type pauseJSON struct {
	By     string    `json:"by"`
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
}

func autoscaleShow(ctx context.Context, c *cli, args []string) error {
	set := flag.NewFlagSet("muster autoscale show", flag.ContinueOnError)
	asJSON := set.Bool("json", false, "print JSON")
	if _, err := c.flags(set, args, 0, 0); err != nil {
		return err
	}
	system, _, done, err := c.openSystem(ctx)
	if err != nil {
		return err
	}
	defer done()
	return c.showScaling(ctx, system, *asJSON)
}

func autoscalePause(ctx context.Context, c *cli, args []string) error {
	set := flag.NewFlagSet("muster autoscale pause", flag.ContinueOnError)
	reason := set.String("reason", "", "why, for those who find it paused; at most 1,000 characters")
	return c.switchAutoscale(ctx, set, args, func(s *store.System) (bool, error) {
		if len(*reason) > 1000 {
			return false, misuse("--reason has %d characters; want at most 1000", len(*reason))
		}
		return s.PauseAutoscale(ctx, *reason, operator())
	}, "it was paused before; that stays as it is")
}

func autoscaleResume(ctx context.Context, c *cli, args []string) error {
	set := flag.NewFlagSet("muster autoscale resume", flag.ContinueOnError)
	return c.switchAutoscale(ctx, set, args, func(s *store.System) (bool, error) { return s.ResumeAutoscale(ctx, operator()) }, "it was not paused")
}

func (c *cli) switchAutoscale(ctx context.Context, set *flag.FlagSet, args []string, turn func(*store.System) (bool, error), unchanged string) error {
	asJSON := set.Bool("json", false, "print JSON")
	if _, err := c.flags(set, args, 0, 0); err != nil {
		return err
	}
	system, _, done, err := c.openSystem(ctx)
	if err != nil {
		return err
	}
	defer done()
	switch changed, err := turn(system); {
	case err != nil:
		return err
	case !changed:
		fmt.Fprintln(c.stderr, "note:", unchanged)
	}
	return c.showScaling(ctx, system, *asJSON)
}

func (c *cli) showScaling(ctx context.Context, system *store.System, asJSON bool) error {
	load, err := fleetLoad(ctx, &tierLoads{system: system}, 1)
	if err != nil {
		return err
	}
	fleet, err := system.FleetLoad(ctx)
	if err != nil {
		return err
	}
	pause, err := system.AutoscalePaused(ctx)
	if err != nil {
		return err
	}
	shown := scalingJSON{Workers: fleet.Workers, Slots: fleet.Slots, Running: load.Running, Runnable: load.Runnable, WaitMS: load.OldestWait.Milliseconds()}
	if pause != nil {
		shown.Paused = &pauseJSON{By: pause.By, Reason: pause.Reason, At: pause.At.UTC()}
	}
	if asJSON {
		return printJSON(c.stdout, shown)
	}
	paused := "no"
	if p := shown.Paused; p != nil {
		paused = fmt.Sprintf("since %s by %s: %s", p.At.Format(time.RFC3339), printable(p.By), printable(p.Reason))
	}
	fmt.Fprintf(c.stdout, "paused       %s\nworkers      %d, %d slots\nrunning      %d\nrunnable     %d\noldest wait  %s\n",
		paused, shown.Workers, shown.Slots, shown.Running, shown.Runnable, load.OldestWait.Round(time.Millisecond))
	return nil
}
