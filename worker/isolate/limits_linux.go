//go:build linux && !race

package isolate

import (
	"os"
	"syscall"
)

// bound limits what this process may allocate, and lets it write no core. RLIMIT_DATA counts what is writable and
// private, which is Go's heap and stacks as they are used; RLIMIT_AS would count the address space that Go only reserves.
func bound(memoryBytes uint64) error {
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		return err
	}
	if memoryBytes == 0 {
		return nil
	}
	return syscall.Setrlimit(syscall.RLIMIT_DATA, &syscall.Rlimit{Cur: memoryBytes, Max: memoryBytes})
}

// firstToDie lets the kernel prefer this process to its worker when memory runs out. Where it may not be said, the worker
// may be chosen: no worse than without a child.
func firstToDie() { _ = os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0o644) }
