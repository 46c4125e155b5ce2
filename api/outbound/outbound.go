// Package outbound keeps requests to addresses that customers chose away from everything that is not theirs: our own
// network, the machine's, its cloud's. What decides is the address that a connection is about to be made to, whatever
// name or spelling led there and however it resolved a moment ago; the look at a URL before that only tells customers
// early. It imports nothing of ours, so that whoever calls customers' addresses can be given a client of it.
package outbound

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/net/idna"
)

// Rules say where requests may go. The zero value is production's: https on public addresses, ports 443 and 8443.
type Rules struct {
	// Loopback lets requests go to this machine over http, on any port: for development, where the customer's server
	// is a program on the developer's own machine.
	Loopback bool
	// Denied are networks that no request may go to although they are public: the service's own addresses.
	Denied []netip.Prefix
	// Resolver looks names up; nil is net.DefaultResolver.
	Resolver *net.Resolver
	// TLS is cloned for the client, at TLS 1.2 at least; nil is the default.
	TLS *tls.Config
}

// ErrRefused is at the bottom of the error when an address must not be reached.
var ErrRefused = errors.New("this address must not be reached")

// Ports that requests may go to.
var ports = []string{"443", "8443"}

// MaxURL is how many bytes a URL may have.
const MaxURL = 2048

// notPublic are the networks of IPv4 that are nobody's on the internet, and some that are somebody's and serve as a way in.
var notPublic = prefixes(
	"0.0.0.0/8",        // this host; Linux connects to loopback
	"10.0.0.0/8",       // private
	"100.64.0.0/10",    // carriers' NAT; Alibaba's metadata
	"127.0.0.0/8",      // loopback
	"168.63.129.16/32", // Azure's host
	"169.254.0.0/16",   // link-local, metadata
	"172.16.0.0/12",    // private
	"192.0.0.0/24",     // protocols, NAT64 discovery; Oracle's metadata
	"192.0.2.0/24",     // documentation
	"192.31.196.0/24",  // AS112
	"192.52.193.0/24",  // AMT
	"192.88.99.0/24",   // 6to4 relays
	"192.168.0.0/16",   // private
	"192.175.48.0/24",  // AS112
	"198.18.0.0/15",    // benchmarks
	"198.51.100.0/24",  // documentation
	"203.0.113.0/24",   // documentation
	"224.0.0.0/4",      // multicast
	"240.0.0.0/4",      // reserved, broadcast
)

// global6 is what IPv6 has given out to networks; all outside is local, mapped or translated (NAT64, ULA, link-local, …).
var global6 = netip.MustParsePrefix("2000::/3")

// notPublic6 are the exceptions inside it. Those that carry an IPv4 address are refused whole.
var notPublic6 = prefixes(
	"2001::/23",         // protocols: Teredo, ORCHID, benchmarks, AMT
	"2001:db8::/32",     // documentation
	"2002::/16",         // 6to4
	"2620:4f:8000::/48", // AS112
	"3fff::/20",         // documentation
)

func prefixes(texts ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

// CheckAddr refuses an address that must not be reached, with ErrRefused.
func (r Rules) CheckAddr(addr netip.Addr) error {
	zone := addr.Zone()
	addr = addr.WithZone("").Unmap()
	if slices.ContainsFunc(r.Denied, func(p netip.Prefix) bool { return p.Contains(addr) }) {
		return ErrRefused
	}
	if r.Loopback && addr.IsLoopback() {
		return nil
	}
	in := func(p netip.Prefix) bool { return p.Contains(addr) }
	switch {
	case !addr.IsValid(), zone != "":
	case addr.Is4() && !slices.ContainsFunc(notPublic, in):
		return nil
	case addr.Is6() && global6.Contains(addr) && !slices.ContainsFunc(notPublic6, in):
		return nil
	}
	return ErrRefused
}

// control is asked with the very address that a socket is about to connect to.
func (r Rules) control(_ context.Context, network, address string, _ syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil || (network != "tcp4" && network != "tcp6") {
		return ErrRefused
	}
	if !slices.Contains(ports, strconv.Itoa(int(to.Port()))) && !(r.Loopback && to.Addr().Unmap().IsLoopback()) {
		return ErrRefused
	}
	return r.CheckAddr(to.Addr())
}

// CheckURL reads a URL that a customer gives, and returns how it is kept: the host in ASCII and lower case, without a
// fragment. What is wrong is said in words for the customer. It looks nothing up.
func (r Rules) CheckURL(text string) (string, error) {
	if len(text) > MaxURL {
		return "", fmt.Errorf("must have at most %d bytes", MaxURL)
	}
	u, err := url.Parse(text)
	if err != nil || u.Opaque != "" || u.Host == "" || strings.ContainsFunc(text, func(c rune) bool { return c <= ' ' || c == 0x7f || c == '\\' }) {
		return "", errors.New("must be a URL such as https://example.com/muster")
	}
	if u.User != nil {
		return "", errors.New("must not hold a user name or password")
	}
	if u.Fragment != "" {
		return "", errors.New("must not have a fragment")
	}
	host, local, err := r.checkHost(u.Hostname())
	if err != nil {
		return "", err
	}
	switch {
	case u.Scheme == "https":
	case u.Scheme == "http" && local:
	default:
		return "", errors.New("must begin with https://")
	}
	if port := u.Port(); port != "" || strings.HasSuffix(u.Host, ":") {
		if !slices.Contains(ports, port) && !local {
			return "", fmt.Errorf("must have the port %s", strings.Join(ports, " or "))
		}
		host += ":" + port
	}
	u.Host = host
	return u.String(), nil
}

var errNotPublic = errors.New("must be a public address")

// checkHost returns a host as it is kept; local is true for this machine where that is allowed.
func (r Rules) checkHost(host string) (kept string, local bool, err error) {
	if addr, err := netip.ParseAddr(host); err == nil {
		if r.CheckAddr(addr) != nil {
			return "", false, errNotPublic
		}
		if addr.Is6() {
			return "[" + addr.String() + "]", addr.Unmap().IsLoopback(), nil
		}
		return addr.String(), addr.IsLoopback(), nil
	}
	ascii, err := idna.Lookup.ToASCII(strings.TrimSuffix(host, "."))
	if err != nil || len(ascii) > 253 || ascii == "" {
		return "", false, errors.New("must have a host name that can be looked up")
	}
	if addr, err := netip.ParseAddr(ascii); err == nil { // digits of another script
		return r.checkHost(addr.String())
	}
	labels := strings.Split(ascii, ".")
	if slices.ContainsFunc(labels, func(l string) bool { return l == "" || len(l) > 63 }) {
		return "", false, errors.New("must have a host name that can be looked up")
	}
	last := labels[len(labels)-1]
	if r.Loopback && last == "localhost" {
		return ascii, true, nil
	}
	// A last label that is a number makes some resolvers read an IPv4 address of another spelling. Names without a dot and
	// these endings are never on the internet.
	if last[0] >= '0' && last[0] <= '9' || len(labels) == 1 || slices.Contains([]string{"localhost", "local", "internal", "localdomain", "home", "lan", "corp"}, last) ||
		strings.HasSuffix(ascii, ".home.arpa") {
		return "", false, errNotPublic
	}
	return ascii, false, nil
}

// Limits of a client.
const (
	dialTimeout       = 5 * time.Second
	handshakeTimeout  = 5 * time.Second
	maxResponseHeader = 16 << 10
	idleTimeout       = 30 * time.Second
)

// Client returns a client bound by the rules: no proxy, no redirects followed, no cookies, nothing unpacked, TLS 1.2 at
// least. Its callers set the deadline of a request and limit what they read of its answer.
func (r Rules) Client() *http.Client {
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: idleTimeout, Resolver: r.Resolver, ControlContext: r.control}
	config := r.TLS.Clone()
	if config == nil {
		config = &tls.Config{}
	}
	config.MinVersion = tls.VersionTLS12
	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy: nil,
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				host, port, err := net.SplitHostPort(address)
				if err != nil {
					return nil, err
				}
				if _, err := netip.ParseAddr(host); err != nil && !strings.HasSuffix(host, ".") && strings.Contains(host, ".") {
					address = net.JoinHostPort(host+".", port) // as it stands: no search list of the machine's
				}
				return dialer.DialContext(ctx, network, address)
			},
			TLSClientConfig: config, TLSHandshakeTimeout: handshakeTimeout, ForceAttemptHTTP2: true, DisableCompression: true,
			MaxResponseHeaderBytes: maxResponseHeader, MaxIdleConns: 128, MaxIdleConnsPerHost: 4, IdleConnTimeout: idleTimeout,
		},
	}
}
