package privateservers

import (
	"fmt"
	"net"
	"os"
	"testing"
)

// A server's port must not be one that an outgoing connection may take while the server is down.
//
// Not parallel: another test's child would hold the socket by which a port was tried, from its fork to its exec.
func TestFreePortIsNoneOfOutgoingConnections(t *testing.T) {
	from := 32_768
	if raw, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		_, _ = fmt.Sscan(string(raw), &from)
	}
	seen := map[int]bool{}
	for range 50 {
		port, err := FreePort()
		if err != nil {
			t.Fatal(err)
		}
		if port >= from && from >= lowestPort+1_000 {
			t.Errorf("%d is for outgoing connections, from %d on", port, from)
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Errorf("it is not free: %v", err)
			continue
		}
		defer l.Close() // and so it is not given again
		if seen[port] {
			t.Errorf("%d is given although somebody listens there", port)
		}
		seen[port] = true
	}
}
