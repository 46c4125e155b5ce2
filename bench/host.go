package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/generic-corp/muster/scripts/privateservers"
	"github.com/generic-corp/muster/store/storetest"
)

// host stands in for a test where storetest wants one: a failure ends the case, cleanups run at its end.
type host struct {
	testing.TB // nil: what is not below is never called
	dir        string
	cleanups   []func()
}

type failure string

func (h *host) Helper()                   {}
func (h *host) Fatal(args ...any)         { panic(failure(fmt.Sprint(args...))) }
func (h *host) Fatalf(f string, a ...any) { panic(failure(fmt.Sprintf(f, a...))) }
func (h *host) Error(args ...any)         { h.Fatal(args...) }
func (h *host) Errorf(f string, a ...any) { h.Fatalf(f, a...) }
func (h *host) Log(...any)                {}
func (h *host) Logf(string, ...any)       {}
func (h *host) Cleanup(f func())          { h.cleanups = append(h.cleanups, f) }

func (h *host) must(err error) {
	if err != nil {
		h.Fatal(err)
	}
}

// servers starts a PostgreSQL that keeps its commits (fsync on) and a Redis for this case alone.
func (h *host) servers() *privateservers.Servers {
	pair, err := privateservers.Start(context.Background(), privateservers.Config{Dir: filepath.Join(h.dir, "servers"),
		Postgres: privateservers.PostgresConfig{Fsync: true}})
	h.must(err)
	h.Cleanup(func() { _ = pair.Remove() })
	return pair
}

func (h *host) ledger() *storetest.Env { return storetest.On(h, h.servers()) }

// within runs fn on a host of its own and turns its failure into an error.
func within(fn func(h *host) []figure) (figures []figure, err error) {
	dir, err := os.MkdirTemp("", "muster-bench-")
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o711); err != nil { // PostgreSQL's system user has to pass
		return nil, err
	}
	h := &host{dir: dir}
	defer func() {
		if p := recover(); p != nil {
			f, ok := p.(failure)
			if !ok {
				panic(p)
			}
			err = fmt.Errorf("%s", f)
		}
		for i := len(h.cleanups) - 1; i >= 0; i-- {
			h.cleanups[i]()
		}
		_ = os.RemoveAll(dir)
	}()
	return fn(h), nil
}
