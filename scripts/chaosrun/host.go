//go:build unix

package main

import (
	"errors"
	"fmt"
	"sync"
	"testing"
)

// host stands in for a test where storetest and the stand-ins want one: Fatal ends the run, errors are kept, cleanups run
// at its end.
type host struct {
	testing.TB // nil: what is not below is never called

	mu       sync.Mutex
	cleanups []func()
	errors   []string
}

type failure string

func (h *host) Helper()                   {}
func (h *host) Fatal(args ...any)         { panic(failure(fmt.Sprint(args...))) }
func (h *host) Fatalf(f string, a ...any) { panic(failure(fmt.Sprintf(f, a...))) }
func (h *host) Error(args ...any)         { h.Errorf("%s", fmt.Sprint(args...)) }
func (h *host) Log(...any)                {}
func (h *host) Logf(string, ...any)       {}

func (h *host) Errorf(f string, a ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.errors = append(h.errors, fmt.Sprintf(f, a...))
}

func (h *host) Cleanup(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cleanups = append(h.cleanups, f)
}

// close runs the cleanups, the last first.
func (h *host) close() {
	h.mu.Lock()
	cleanups := h.cleanups
	h.cleanups = nil
	h.mu.Unlock()
	for i := len(cleanups) - 1; i >= 0; i-- {
		cleanups[i]()
	}
}

// within runs fn and turns a Fatal of its into an error.
func (h *host) within(fn func()) (err error) {
	defer func() {
		if p := recover(); p != nil {
			f, ok := p.(failure)
			if !ok {
				panic(p)
			}
			err = errors.New(string(f))
		}
	}()
	fn()
	return nil
}
