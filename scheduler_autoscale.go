package main

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/worker/autoscale"
)

// The autoscaler, introduced to the ledger and to its platform. It runs in the scheduler that leads.

// newScaler makes the scaler that the settings ask for; nil when they ask for none.
func newScaler(cfg Config, loads *tierLoads, reg prometheus.Registerer, log zerolog.Logger) (*autoscale.Scaler, error) {
	driver, err := newDriver(cfg)
	if driver == nil {
		return nil, err
	}
	log.Info().Str("driver", cfg.Autoscale.Driver).Bool("dry_run", cfg.Autoscale.DryRun).Bool("paused", cfg.Autoscale.Paused).
		Int("min", cfg.Autoscale.Min).Int("max", cfg.Autoscale.Max).Msg("this scheduler scales the workers while it leads")
	return autoscale.New(autoscale.Config{Policy: cfg.autoscalePolicy(), Driver: driver, Now: time.Now, Metrics: autoscale.NewMetrics(reg), Log: log,
		Load: func(ctx context.Context) (autoscale.Load, error) {
			return fleetLoad(ctx, loads, cfg.WorkerConcurrency)
		}}), nil
}

func newDriver(cfg Config) (autoscale.Driver, error) {
	a := cfg.Autoscale
	var mistakes configError
	switch a.Driver {
	case "local":
		if a.CrewSocket == "" {
			return nil, configError{"AUTOSCALE is local in a scheduler that muster up did not start; want off, fly, or muster up"}
		}
		return autoscale.NewLocal(a.CrewSocket), nil
	case "fly":
		if a.FlyAPIToken == "" {
			mistakes = append(mistakes, "FLY_API_TOKEN is not set; want a deploy token of the app, because AUTOSCALE is fly")
		}
		if a.FlyAppName == "" {
			mistakes = append(mistakes, "FLY_APP_NAME is not set; want the app's name, because AUTOSCALE is fly")
		}
		if len(mistakes) > 0 {
			return nil, mistakes
		}
		return autoscale.NewFly(autoscale.FlyConfig{BaseURL: a.FlyAPIBase, App: a.FlyAppName, Token: string(a.FlyAPIToken), Group: a.FlyGroup,
			Drain: cfg.Drain + drainGrace, Now: time.Now}), nil
	}
	return nil, nil
}

// drainGrace is what a worker needs beyond DRAIN_SECONDS to hand back and leave.
const drainGrace = 20 * time.Second

// fleetLoad reads what the scaler goes by. usualSlots is how many slots a worker is taken to have while there is none.
func fleetLoad(ctx context.Context, loads *tierLoads, usualSlots int) (autoscale.Load, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	tiers, at, err := loads.load(ctx)
	if err != nil {
		return autoscale.Load{}, err
	}
	load := autoscale.Load{Figures: autoscale.Figures{At: at, Slots: usualSlots}, Busy: map[string]int{}}
	for _, t := range tiers {
		load.Runnable += int(t.Runnable)
		load.Running += int(t.Running)
		if t.Runnable > 0 {
			load.OldestWait = max(load.OldestWait, time.Duration(t.OldestTurn*float64(time.Millisecond)))
		}
	}
	pause, err := loads.system.AutoscalePaused(ctx)
	if err != nil {
		return autoscale.Load{}, err
	}
	load.Paused = pause != nil
	workers, err := loads.system.LiveWorkers(ctx)
	if err != nil {
		return autoscale.Load{}, err
	}
	slots, taking := 0, 0
	for _, w := range workers {
		load.Busy[w.Name] += w.Running
		if !w.Draining {
			slots, taking = slots+w.Slots, taking+1
		}
	}
	if taking > 0 {
		load.Slots = slots / taking
	}
	return load, nil
}

// scale lets the scaler step while this process leads. A step whose lead ends starts and stops nothing further.
func (s *scheduler) scale(ctx context.Context, leading *leadership) {
	ticker := time.NewTicker(autoscale.Interval)
	defer ticker.Stop()
	for led := false; ; {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		switch leads := leading.now(); {
		case leads:
			lead, done := leading.during(ctx)
			s.scaler.Step(lead)
			done()
			led = true
		case led:
			s.scaler.Forget()
			led = false
		}
	}
}
