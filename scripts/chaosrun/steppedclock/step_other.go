//go:build !linux || !amd64

package steppedclock

// Supported says whether clocks of this system's processes can be stepped.
const Supported = false
