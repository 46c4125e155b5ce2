//go:build unix && !linux

package main

import "errors"

var errNoTmpfs = errors.New("only Linux is known here")

func mountTmpfs(string, string) error { return errNoTmpfs }

func unmount(string) error { return errNoTmpfs }
