package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/worker/autoscale"
)

// crew is the workers of muster up. As many as it was told are kept alive; with AUTOSCALE=local the scheduler, a child
// itself, asks over a Unix socket for more and fewer. The crew outlives it, so a scheduler may crash without a worker
// noticing.
type crew struct {
	ctx  context.Context // its end drains all
	run  func(ctx context.Context, number int, started func(pid int))
	runs sync.WaitGroup

	mu      sync.Mutex
	members []*member
	made    int
	closed  bool // nobody is added any more
}

type member struct {
	autoscale.Member
	number int // the lowest that was free: for its port
	drain  context.CancelFunc
}

func newCrew(ctx context.Context, run func(ctx context.Context, number int, started func(pid int))) *crew {
	return &crew{ctx: ctx, run: run}
}

// List tells who is there.
func (c *crew) List() []autoscale.Member {
	c.mu.Lock()
	defer c.mu.Unlock()
	list := make([]autoscale.Member, len(c.members))
	for i, m := range c.members {
		list[i] = m.Member
	}
	return list
}

// Add starts one more worker and keeps it alive until it is drained.
func (c *crew) Add() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.ctx.Err() != nil {
		return errors.New("muster up is stopping")
	}
	if len(c.members) >= mostLocal {
		return fmt.Errorf("there are %d workers, draining ones included", len(c.members))
	}
	number := 0
	for slices.ContainsFunc(c.members, func(m *member) bool { return m.number == number }) {
		number++
	}
	ctx, drain := context.WithCancel(c.ctx)
	c.made++
	m := &member{Member: autoscale.Member{ID: strconv.Itoa(c.made)}, number: number, drain: drain}
	c.members = append(c.members, m)
	c.runs.Go(func() {
		defer drain()
		c.run(ctx, number, func(pid int) {
			c.mu.Lock()
			defer c.mu.Unlock()
			m.PID = pid
		})
		c.mu.Lock()
		defer c.mu.Unlock()
		c.members = slices.DeleteFunc(c.members, func(other *member) bool { return other == m })
	})
	return nil
}

// Drain lets a worker drain and end.
func (c *crew) Drain(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.members {
		if m.ID == id {
			m.Draining = true
			m.drain()
		}
	}
}

// wait returns when all have ended; none is added any more.
func (c *crew) wait() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.runs.Wait()
}

// listen serves the crew to the scheduler until close is called; nobody but our user can reach the socket.
func (c *crew) listen(log zerolog.Logger) (socket string, closeAll func(), err error) {
	dir, err := os.MkdirTemp("", "muster-up-") // 0700
	if err != nil {
		return "", nil, fmt.Errorf("make a directory for the crew's socket: %w", err)
	}
	socket = filepath.Join(dir, "crew.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		os.RemoveAll(dir)
		return "", nil, fmt.Errorf("listen for the scheduler: %w", err)
	}
	server := &http.Server{Handler: autoscale.ServeCrew(c), ReadHeaderTimeout: 5 * time.Second}
	go func() {
		if err := server.Serve(listener); err != nil && !errors.Is(err, http.ErrServerClosed) {
			log.Error().Err(err).Msg("the crew's socket stopped: the number of workers stays")
		}
	}()
	return socket, func() {
		server.Close()
		os.RemoveAll(dir)
	}, nil
}
