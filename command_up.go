package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/worker/childprocess"
)

// One server: muster up runs the API, the scheduler and a few workers (command_up_crew.go) as processes of their own, so that
// each can crash, drain and be replaced alone, exactly as on many servers. A child that ends by itself is started again.

// child is one process that up keeps alive.
type child struct {
	name    string
	opsPort int // added to the port of OPS_ADDR
}

// Restart delays: at once after a run of restartCalm, else growing to restartMax.
const (
	restartMin  = 500 * time.Millisecond
	restartMax  = 15 * time.Second
	restartCalm = 30 * time.Second
)

func runUp(ctx context.Context, c *cli, args []string) error {
	cfg, err := c.process("up", args, "DATABASE_URL", "WORKER_DATABASE_URL", "SYSTEM_DATABASE_URL", "REDIS_URL", "JWT_SIGNING_KEYS")
	if err != nil {
		return err
	}
	workers, scaled := cfg.WorkerProcesses, cfg.Autoscale.Driver == "local"
	if scaled {
		workers = cfg.Autoscale.Min
	}
	if workers > 0 || scaled {
		if _, err := providers(cfg); err != nil {
			return err
		}
	}
	log := c.logger(cfg, "up")
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program's file: %w", err)
	}
	// The scheduler has OPS_ADDR itself: Asynqmon and the figures of the fleet. The API and the workers follow.
	run := func(ctx context.Context, ch child, extra []string, started func(pid int)) {
		env := append(os.Environ(), "OPS_ADDR="+nextPort(cfg.OpsAddr, ch.opsPort))
		keep(ctx, append([]string{self, ch.name}, args...), append(env, extra...), c, cfg.Drain, started, log.With().Str("child", ch.name).Logger())
	}
	team := newCrew(ctx, func(ctx context.Context, number int, started func(pid int)) {
		run(ctx, child{"worker", 2 + number}, nil, started)
	})
	var socket []string
	if scaled {
		path, closeAll, err := team.listen(log)
		if err != nil {
			return err
		}
		defer closeAll()
		socket = []string{"CREW_SOCKET=" + path}
	}
	for range workers {
		if err := team.Add(); err != nil {
			return err
		}
	}
	var kept sync.WaitGroup
	kept.Go(func() { run(ctx, child{"scheduler", 0}, socket, func(int) {}) })
	kept.Go(func() { run(ctx, child{"api", 1}, nil, func(int) {}) })
	kept.Wait()
	team.wait()
	return nil
}

// nextPort adds n to the port of addr; a port of 0 (any free one) stays.
func nextPort(addr string, n int) string {
	host, port, err := net.SplitHostPort(addr)
	p, convErr := strconv.Atoi(port)
	if err != nil || convErr != nil || p == 0 {
		return addr
	}
	return net.JoinHostPort(host, strconv.Itoa(p+n))
}

// keep runs a child until ctx ends, then lets it drain. started hears of each process.
func keep(ctx context.Context, argv, env []string, c *cli, drain time.Duration, started func(pid int), log zerolog.Logger) {
	delay := restartMin
	for ctx.Err() == nil {
		began := time.Now()
		p, err := childprocess.Start(childprocess.Config{Argv: argv, Env: env, Output: c.children})
		if err != nil {
			log.Error().Err(err).Msg("starting child")
		} else {
			log.Info().Int("pid", p.PID()).Msg("child started")
			started(p.PID())
			select {
			case <-p.Exited():
				log.Error().Int("code", p.ExitCode()).Msg("child ended by itself; it is started again")
			case <-ctx.Done():
				patient, cancel := context.WithTimeout(context.Background(), drain+30*time.Second)
				defer cancel()
				if err := p.End(patient, drain+drainGrace, syscall.SIGTERM, syscall.SIGKILL); err != nil {
					log.Error().Err(err).Msg("ending child")
				}
				return
			}
		}
		if time.Since(began) > restartCalm {
			delay = restartMin
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(delay):
		}
		delay = min(2*delay, restartMax)
	}
}
