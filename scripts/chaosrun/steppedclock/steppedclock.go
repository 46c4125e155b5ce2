// Package steppedclock lets the wall clock of a whole Go process be set ahead or back while it runs, as an administrator or
// a bad time server would. A program that imports it, and finds Variable in its environment, adds the number of seconds in
// that file to all it takes for the time of day; it looks into the file every 20 ms. The monotonic clock, by which Go
// measures and sleeps, goes on undisturbed, as it does in life.
//
// scripts/chaos builds its muster with it, by an overlay (overlay.json beside it), so that no file of the product knows of it.
//
// How: a Go program on Linux asks the kernel's vDSO for the time, through a variable of the runtime. That variable may be
// linked to by name (runtime/badlinkname_linux.go says so). Here it is made to point to a few instructions that ask
// the kernel and add to the answer. They are written for amd64; elsewhere Supported is false and nothing is done.
package steppedclock

// Variable is the environment variable that names the file: a decimal number of whole seconds, which may be negative.
const Variable = "STEPPED_CLOCK_FILE"
