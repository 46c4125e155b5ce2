//go:build unix && !linux

package childprocess

import "syscall"

// Only Linux tells a child that its parent died.
func dieWithParent(*syscall.SysProcAttr, syscall.Signal) {}
