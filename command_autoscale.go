package main

import (
	"context"
	"flag"
	"fmt"
	"time"
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
	d, err := c.open(ctx, "autoscale show", args, nil, nil)
	if err != nil {
		return err
	}
	defer d.done()
	return d.showScaling(ctx)
}

func autoscalePause(ctx context.Context, c *cli, args []string) error {
	var reason string
	d, err := c.open(ctx, "autoscale pause", args, func(set *flag.FlagSet) {
		set.StringVar(&reason, "reason", "", "why, for those who find it paused; at most 1,000 characters")
	}, func(*desk) error {
		if len(reason) > 1000 {
			return misuse("--reason has %d characters; want at most 1000", len(reason))
		}
		return nil
	})
	if err != nil {
		return err
	}
	defer d.done()
	changed, err := d.system.PauseAutoscale(ctx, reason, operator())
	return d.switched(ctx, changed, err, "it was paused before; that stays as it is")
}

func autoscaleResume(ctx context.Context, c *cli, args []string) error {
	d, err := c.open(ctx, "autoscale resume", args, nil, nil)
	if err != nil {
		return err
	}
	defer d.done()
	changed, err := d.system.ResumeAutoscale(ctx, operator())
	return d.switched(ctx, changed, err, "it was not paused")
}

// switched tells what came of the switch.
func (d *desk) switched(ctx context.Context, changed bool, err error, unchanged string) error {
	if err != nil {
		return err
	}
	if !changed {
		fmt.Fprintln(d.stderr, "note:", unchanged)
	}
	return d.showScaling(ctx)
}

func (d *desk) showScaling(ctx context.Context) error {
	load, err := fleetLoad(ctx, &tierLoads{system: d.system}, 1)
	if err != nil {
		return err
	}
	fleet, err := d.system.FleetLoad(ctx)
	if err != nil {
		return err
	}
	pause, err := d.system.AutoscalePaused(ctx)
	if err != nil {
		return err
	}
	shown := scalingJSON{Workers: fleet.Workers, Slots: fleet.Slots, Running: load.Running, Runnable: load.Runnable, WaitMS: load.OldestWait.Milliseconds()}
	if pause != nil {
		shown.Paused = &pauseJSON{By: pause.By, Reason: pause.Reason, At: pause.At.UTC()}
	}
	if d.json {
		return printJSON(d.stdout, shown)
	}
	paused := "no"
	if p := shown.Paused; p != nil {
		paused = fmt.Sprintf("since %s by %s: %s", p.At.Format(time.RFC3339), printable(p.By), printable(p.Reason))
	}
	fmt.Fprintf(d.stdout, "paused       %s\nworkers      %d, %d slots\nrunning      %d\nrunnable     %d\noldest wait  %s\n",
		paused, shown.Workers, shown.Slots, shown.Running, shown.Runnable, load.OldestWait.Round(time.Millisecond))
	return nil
}
