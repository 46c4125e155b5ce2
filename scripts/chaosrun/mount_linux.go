package main

import "syscall"

func mountTmpfs(dir, options string) error {
	return syscall.Mount("tmpfs", dir, "tmpfs", 0, options+",mode=755")
}

func unmount(dir string) error { return syscall.Unmount(dir, 0) }
