package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/generic-corp/muster/scripts/privateservers"
	"github.com/generic-corp/muster/store/storetest"
)

// host stands in for a test where storetest wants one. The first failure, on any goroutine, ends the bout; what its other
// goroutines do then no longer counts, and each ends when it fails itself. Cleanups run at the bout's end, however it ends.
type host struct {
	testing.TB                 // nil: what is not below is never called
	ctx        context.Context // ends with the bout
	dir        string
	failed     chan struct{}  // closed at the first failure
	inners     sync.WaitGroup // parts with servers of their own
	starting   sync.Mutex     // held while servers start: none may come up behind the cleanups

	mu       sync.Mutex
	err      error // the first failure
	cleanups []func()
	over     bool
}

func (h *host) Helper()                   {}
func (h *host) Fatal(args ...any)         { h.fail(errors.New(fmt.Sprint(args...))) }
func (h *host) Fatalf(f string, a ...any) { h.fail(fmt.Errorf(f, a...)) }
func (h *host) Error(args ...any)         { h.Fatal(args...) }
func (h *host) Errorf(f string, a ...any) { h.Fatalf(f, a...) }
func (h *host) Log(...any)                {}
func (h *host) Logf(string, ...any)       {}

// fail notes the first failure and ends the goroutine.
func (h *host) fail(err error) {
	h.mu.Lock()
	if h.err == nil {
		h.err = err
		close(h.failed)
	}
	h.mu.Unlock()
	runtime.Goexit()
}

func (h *host) must(err error) {
	if err != nil {
		h.fail(err)
	}
}

// Cleanup runs f at the bout's end, or now when that is over.
func (h *host) Cleanup(f func()) {
	h.mu.Lock()
	if !h.over {
		h.cleanups = append(h.cleanups, f)
		h.mu.Unlock()
		return
	}
	h.mu.Unlock()
	f()
	runtime.Goexit()
}

// end runs the cleanups, last come first.
func (h *host) end() {
	h.starting.Lock()
	defer h.starting.Unlock()
	h.mu.Lock()
	h.over = true
	h.mu.Unlock()
	for i := len(h.cleanups) - 1; i >= 0; i-- {
		h.cleanups[i]()
	}
	_ = os.RemoveAll(h.dir)
}

// servers starts a PostgreSQL that keeps its commits (fsync on) and a Redis for this bout alone.
func (h *host) servers() *privateservers.Servers {
	h.starting.Lock()
	defer h.starting.Unlock()
	if h.isOver() {
		runtime.Goexit()
	}
	pair, err := privateservers.Start(context.Background(), privateservers.Config{Dir: filepath.Join(h.dir, "servers"),
		Postgres: privateservers.PostgresConfig{Fsync: true}})
	h.must(err)
	h.Cleanup(func() { _ = pair.Remove() })
	return pair
}

func (h *host) isOver() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.over
}

func (h *host) ledger() *storetest.Env { return storetest.On(h, h.servers()) }

// boutLimit: a bout that takes longer hangs.
const boutLimit = 10 * time.Minute

// within runs fn on a host of its own, until it returns, fails or ctx ends, and leaves nothing behind.
func within(ctx context.Context, fn func(h *host) []figure) ([]figure, error) {
	dir, err := os.MkdirTemp("", "muster-bench-")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o711); err != nil { // PostgreSQL's system user has to pass
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, boutLimit, fmt.Errorf("not over after %s", boutLimit))
	h := &host{ctx: ctx, dir: dir, failed: make(chan struct{})}
	defer h.end()
	defer h.inners.Wait()
	defer cancel()
	var figures []figure
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		figures = fn(h)
	}()
	select {
	case <-returned:
	case <-h.failed:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err != nil {
		return nil, h.err
	}
	return figures, nil
}

// inner runs a part of a bout on servers of its own, gone at its end.
func (h *host) inner(part func(h *host)) {
	h.inners.Add(1)
	defer h.inners.Done()
	_, err := within(h.ctx, func(h *host) []figure { part(h); return nil })
	h.must(err)
}
