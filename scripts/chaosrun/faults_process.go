//go:build unix

package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"
)

// Faults of muster's own processes.
var processFaults = []fault{
	{"kill-api", "kill -9 of the API; started again", 4 * time.Second, func(ctx context.Context, s *stage, f *firing) error {
		return f.killMember(ctx, s.of("api")[0], s.between(100*time.Millisecond, 1500*time.Millisecond))
	}},
	{"kill-scheduler", "kill -9 of the leading scheduler; started again", 12 * time.Second, killScheduler},
	{"kill-worker", "kill -9 of a worker that runs tasks; started again", 18 * time.Second, killWorker},
	{"stop-worker", "SIGSTOP of a worker that runs tasks for 60 s, then SIGCONT", 66 * time.Second, stopWorker(60 * time.Second)},
	{"stop-worker-18", "the same for 18 s", 24 * time.Second, stopWorker(18 * time.Second)},
	{"cut-worker", "a worker that runs tasks is cut off from everything for 30 s", 36 * time.Second, cutWorker(30 * time.Second)},
	{"cut-worker-18", "the same for 18 s", 24 * time.Second, cutWorker(18 * time.Second)},
}

// killMember kills, and waits until its next process answers.
func (f *firing) killMember(ctx context.Context, m *member, absent time.Duration) error {
	p, name := m.now()
	if p == nil {
		return fmt.Errorf("%w: %s does not run", errNotFired, m.name)
	}
	f.hits(name)
	if err := m.kill(absent); err != nil {
		return err
	}
	f.say("%s (pid %d) was killed", name, p.PID())
	if err := until(ctx, 60*time.Second, m.name+" to be up again", m.isUp); err != nil {
		return err
	}
	f.lift()
	return nil
}

func killScheduler(ctx context.Context, s *stage, f *firing) error {
	var leader *member
	if err := until(ctx, 30*time.Second, "a scheduler to lead", func() bool {
		for _, m := range s.of("scheduler") {
			if m.isUp() && m.metric("muster_scheduler_leading") == 1 {
				leader = m
			}
		}
		return leader != nil
	}); err != nil {
		return err
	}
	p, name := leader.now()
	if p == nil {
		return fmt.Errorf("%w: %s has ended", errNotFired, name)
	}
	if err := leader.kill(s.between(100*time.Millisecond, 5*time.Second)); err != nil {
		return err
	}
	killed := time.Now()
	f.say("%s (pid %d), which led, was killed", name, p.PID())
	if err := until(ctx, 60*time.Second, "another scheduler to lead", func() bool {
		for _, m := range s.of("scheduler") {
			if _, now := m.now(); now != name && m.isUp() && m.metric("muster_scheduler_leading") == 1 {
				return true
			}
		}
		return false
	}); err != nil {
		return err
	}
	f.took = time.Since(killed)
	f.say("another led %.1f s later", f.took.Seconds())
	return nil
}

// busy waits until the member's process holds leases, and returns them.
func (f *firing) busy(ctx context.Context, m *member) (held []heldLease, name string, err error) {
	err = until(ctx, 30*time.Second, m.name+" to run tasks", func() bool {
		p, proc := m.now()
		if p == nil {
			return false
		}
		name = proc
		held, err = f.s.watch.heldBy(ctx, p.PID())
		return err == nil && len(held) >= 2
	})
	return held, name, err
}

// Shortly after its death a worker's tasks run again: 12 s until it is declared dead, a sweep, a turn, a claim. That holds when the
// leading scheduler dies with it, since standbys watch the beats too; not where the ledger cannot be read, or turns are lost.
const runAgainLimit = 20 * time.Second

func killWorker(ctx context.Context, s *stage, f *firing) error {
	m := f.claimWorker("")
	defer f.release(m)
	if _, _, err := f.busy(ctx, m); err != nil {
		return err
	}
	p, name := m.now()
	if p == nil {
		return fmt.Errorf("%w: %s has ended", errNotFired, name)
	}
	f.hits(name)
	if err := m.kill(s.between(100*time.Millisecond, 3*time.Second)); err != nil {
		return err
	}
	killed := time.Now()
	held, err := s.watch.heldBy(ctx, p.PID())
	for err != nil && ctx.Err() == nil { // the ledger may be away as well
		pause(ctx, 50*time.Millisecond)
		held, err = s.watch.heldBy(ctx, p.PID())
	}
	if len(held) == 0 {
		return fmt.Errorf("%w: the killed %s held nothing", errNotFired, name)
	}
	s.load.cancelOne(held)
	for left := len(held); left > 0; {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if n, err := s.watch.stillHeld(ctx, held); err == nil {
			left = n
		}
		if time.Since(killed) > recoveryLimit {
			return fmt.Errorf("%d of the %d tasks of the killed %s do not run again after %s", left, len(held), name, recoveryLimit)
		}
		pause(ctx, 20*time.Millisecond)
	}
	f.took = time.Since(killed)
	f.say("%s (pid %d) was killed with %d tasks; the last ran again %.1f s later", name, p.PID(), len(held), f.took.Seconds())
	if f.took > runAgainLimit && f.served {
		return fmt.Errorf("the tasks of the killed %s ran again after %s, want %s", name, f.took.Round(100*time.Millisecond), runAgainLimit)
	}
	return until(ctx, 60*time.Second, m.name+" to be up again", m.isUp)
}

// claimLasting claims a worker that runs an agent which takes longer than the fault: its call is still on its way when its
// task is run again elsewhere. Beside another fault, which may keep agents from starting, it takes any.
func (f *firing) claimLasting(ctx context.Context, fault time.Duration) (*member, error) {
	if !f.alone {
		return f.claimWorker(""), nil
	}
	running, err := f.s.load.lasting(ctx, 2, fault+5*time.Second)
	if err != nil {
		return nil, err
	}
	for _, e := range running() {
		name, _, _ := strings.Cut(e.Proc, ".")
		return f.claimWorker(name), nil
	}
	return f.claimWorker(""), nil
}

// stopWorker pauses a worker for longer than it takes to be declared dead. When it goes on it believes in its leases for
// a moment, and what it writes then must be refused.
func stopWorker(length time.Duration) func(context.Context, *stage, *firing) error {
	return func(ctx context.Context, s *stage, f *firing) error {
		m, err := f.claimLasting(ctx, length)
		if err != nil {
			return err
		}
		defer f.release(m)
		if _, _, err := f.busy(ctx, m); err != nil {
			return err
		}
		p, name := m.now()
		if p == nil {
			return fmt.Errorf("%w: %s has ended", errNotFired, name)
		}
		refused, declared := m.metric("muster_refused_writes_total"), m.said("declared dead")
		f.hits(name)
		if err := p.Signal(syscall.SIGSTOP); err != nil {
			return err
		}
		if err := until(ctx, 5*time.Second, name+" to stand still", func() bool { return stopped(p.PID()) }); err != nil {
			return err
		}
		held, err := s.watch.heldBy(ctx, p.PID())
		if err != nil || len(held) == 0 {
			_ = p.Signal(syscall.SIGCONT)
			return fmt.Errorf("%w: the stopped %s held nothing (%v)", errNotFired, name, err)
		}
		s.load.cancelOne(held)
		pause(ctx, length)
		still := stopped(p.PID())
		if err := p.Signal(syscall.SIGCONT); err != nil {
			return err
		}
		if !still {
			return fmt.Errorf("%w: %s did not stand still to the end", errNotFired, name)
		}
		f.lift()
		return f.refusals(ctx, m, name, len(held), refused, declared)
	}
}

// refusals shows that a worker that was away for too long was declared dead and that its writes were refused.
func (f *firing) refusals(ctx context.Context, m *member, name string, held int, refused float64, declared int) error {
	if err := until(ctx, 30*time.Second, "the refusal of what "+name+" writes", func() bool {
		return m.metric("muster_refused_writes_total") > refused && m.said("declared dead") > declared
	}); err != nil {
		return err
	}
	f.say("%s held %d tasks, was declared dead, %.0f writes of it were refused", name, held, m.metric("muster_refused_writes_total")-refused)
	return nil
}

// stopped says whether a process stands still after SIGSTOP.
func stopped(pid int) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true // not Linux: nobody can tell
	}
	_, rest, _ := strings.Cut(string(raw), ") ")
	return strings.HasPrefix(rest, "T")
}

// cutWorker cuts a worker off for longer than it takes to be declared dead.
func cutWorker(length time.Duration) func(context.Context, *stage, *firing) error {
	return func(ctx context.Context, s *stage, f *firing) error {
		m, err := f.claimLasting(ctx, length)
		if err != nil {
			return err
		}
		defer f.release(m)
		held, name, err := f.busy(ctx, m)
		if err != nil {
			return err
		}
		refused, declared := m.metric("muster_refused_writes_total"), m.said("declared dead")
		f.hits(name)
		how := []string{refusing, silent}[s.pick(2)]
		mend, err := cutAll(s.wires.find(m.name, ""), how)
		if err != nil {
			return err
		}
		s.load.cancelOne(held)
		pause(ctx, length)
		left, heldErr := s.watch.stillHeld(ctx, held)
		if err := mend(); err != nil {
			return err
		}
		f.lift()
		f.say("%s, %d of its %d tasks had not begun again elsewhere by then", how, left, len(held))
		if heldErr == nil && left == len(held) && f.alone {
			return fmt.Errorf("none of the tasks of the cut %s runs again after %s", name, length)
		}
		return f.refusals(ctx, m, name, len(held), refused, declared)
	}
}
