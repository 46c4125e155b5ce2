//go:build unix && race

package main

// buildFlags: with the race detector in the test, muster's processes have it too.
var buildFlags = []string{"-race"}
