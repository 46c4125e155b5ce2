//go:build unix

package childprocess

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"syscall"
	"testing"
	"time"
)

func sh(t *testing.T, script string, out io.Writer) *Process {
	t.Helper()
	p, err := Start(Config{Argv: []string{"/bin/sh", "-c", script}, Output: out})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.End(context.Background(), 0, syscall.SIGKILL) })
	return p
}

func TestAChildThatEndsItselfTellsHow(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	p := sh(t, "echo said; exit 7", &out)
	<-p.Exited()
	if p.ExitCode() != 7 || out.String() != "said\n" || p.Alive() {
		t.Errorf("code %d, output %q, alive %v", p.ExitCode(), &out, p.Alive())
	}
	if err := p.Signal(syscall.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("a signal to a gone child: %v", err)
	}
}

func TestAStubbornChildIsKilled(t *testing.T) {
	t.Parallel()
	ready, out := make(chan struct{}), &firstWrite{}
	out.seen = ready
	p, err := Start(Config{Argv: []string{"/bin/sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"}, Stdout: out})
	if err != nil {
		t.Fatal(err)
	}
	<-ready
	if err := p.End(context.Background(), 100*time.Millisecond, syscall.SIGTERM, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if p.Alive() || p.ExitCode() != -1 {
		t.Errorf("alive %v, code %d", p.Alive(), p.ExitCode())
	}
}

// firstWrite closes seen at the first output.
type firstWrite struct{ seen chan struct{} }

func (w *firstWrite) Write(b []byte) (int, error) {
	if w.seen != nil {
		close(w.seen)
		w.seen = nil
	}
	return len(b), nil
}

func TestAChildHasAProcessGroupOfItsOwn(t *testing.T) {
	t.Parallel()
	p := sh(t, "sleep 60", nil)
	group, err := syscall.Getpgid(p.PID())
	if err != nil || group != p.PID() {
		t.Errorf("group %d, %v; want its own, %d", group, err, p.PID())
	}
}

func TestAMissingProgramIsAnError(t *testing.T) {
	t.Parallel()
	if _, err := Start(Config{Argv: []string{"/nonexistent/program"}}); err == nil {
		t.Error("a program that does not exist was started")
	}
}
