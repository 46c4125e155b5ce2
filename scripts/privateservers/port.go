package privateservers

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
)

// lowestPort is where FreePort looks from: below it are services with a number of their own.
const lowestPort = 10_000

// FreePort is a TCP port that nobody listens on at this moment, on any address. It is none that the kernel gives to outgoing
// connections: one of those would keep a server that is down for a moment, or not up yet, from its port.
func FreePort() (int, error) {
	end := 32_768 // Linux' own choice for outgoing connections begins here
	if raw, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		_, _ = fmt.Sscan(string(raw), &end)
	}
	for range 100 {
		port := 0
		if end-lowestPort >= 1_000 { // else somebody has set it lower: then any
			port = lowestPort + rand.IntN(end-lowestPort)
		}
		if l, err := net.Listen("tcp", fmt.Sprintf(":%d", port)); err == nil {
			return l.Addr().(*net.TCPAddr).Port, l.Close()
		}
	}
	return 0, errors.New("find a free port: a hundred are taken")
}
