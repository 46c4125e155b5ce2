//go:build unix

// Package childprocess starts programs that must not outlive the one that started them, and ends them politely first.
//
// muster up runs its processes through it, a worker those of suspects; privateservers, devrun and the tests run servers. It
// promises: a child stands in a process group of its own, so that a terminal's Ctrl-C reaches only our program, which
// then decides the order in which things end; and on Linux a child gets a signal when our program dies, however it dies.
package childprocess

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// Config describes a child.
type Config struct {
	Argv          []string            // the program's path and its arguments
	Dir           string              // where it runs; "" is our own directory
	Env           []string            // its whole environment; nil is our own
	Output        io.Writer           // standard output and error; an *os.File is handed over as it is; nil discards
	Stdout        io.Writer           // standard output alone, when it goes elsewhere than Output
	Stdin         *os.File            // nil is empty
	Files         []*os.File          // further ones, from descriptor 3 on
	Credential    *syscall.Credential // as whom it runs; nil is ourselves
	OnParentDeath syscall.Signal      // what it gets when our process dies (Linux only); 0 means SIGTERM
}

// Process is a started child.
type Process struct {
	cmd    *exec.Cmd
	exited chan struct{}
}

// Start starts a child.
func Start(cfg Config) (*Process, error) {
	cmd := exec.Command(cfg.Argv[0], cfg.Argv[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = cfg.Dir, cfg.Env, cfg.Output, cfg.Output
	if cfg.Stdout != nil {
		cmd.Stdout = cfg.Stdout
	}
	if cfg.Stdin != nil {
		cmd.Stdin = cfg.Stdin
	}
	cmd.ExtraFiles = cfg.Files
	cmd.WaitDelay = time.Second // a grandchild that keeps our pipe open does not keep the child from being gone
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: cfg.Credential}
	if cfg.OnParentDeath == 0 {
		cfg.OnParentDeath = syscall.SIGTERM
	}
	dieWithParent(cmd.SysProcAttr, cfg.OnParentDeath)
	p := &Process{cmd: cmd, exited: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		// The kernel sends the parent-death signal when the *thread* that forked ends. This goroutine keeps its
		// thread for as long as the child lives.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		_ = cmd.Wait() // how it ended: ExitCode, and the child's own words
		close(p.exited)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// PID is the child's process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Exited is closed when the child is gone and reaped.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Alive reports whether the child still runs. A nil Process does not.
func (p *Process) Alive() bool {
	if p == nil {
		return false
	}
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// ExitCode is the code of an exited child, -1 while it runs or when a signal ended it.
func (p *Process) ExitCode() int {
	if p.Alive() {
		return -1
	}
	return p.cmd.ProcessState.ExitCode()
}

// How tells in words how an exited child ended: "exit status 2", "signal: killed".
func (p *Process) How() string {
	if p.Alive() {
		return "running"
	}
	return p.cmd.ProcessState.String()
}

// KillGroup kills the child and whatever it has started that stayed in its process group, and waits until the child is
// gone. It may be called again, and after the child's end, for what it left behind.
func (p *Process) KillGroup() {
	_ = syscall.Kill(-p.PID(), syscall.SIGKILL) // an error means that nobody is left
	<-p.exited
}

// Signal sends sig and does not wait. It returns os.ErrProcessDone when the child is gone.
func (p *Process) Signal(sig syscall.Signal) error {
	if !p.Alive() {
		return os.ErrProcessDone
	}
	return p.cmd.Process.Signal(sig)
}

// End sends each signal in turn until the child is gone, waiting up to grace after each but the last, which should be
// SIGKILL and is waited for. When ctx ends, the remaining signals follow at once.
func (p *Process) End(ctx context.Context, grace time.Duration, signals ...syscall.Signal) error {
	for i, sig := range signals {
		if err := p.Signal(sig); errors.Is(err, os.ErrProcessDone) {
			return nil
		} else if err != nil {
			return fmt.Errorf("send %s: %w", sig, err)
		}
		if i == len(signals)-1 {
			<-p.exited
			return nil
		}
		timer := time.NewTimer(grace)
		select {
		case <-p.exited:
			timer.Stop()
			return nil
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
	return nil
}
