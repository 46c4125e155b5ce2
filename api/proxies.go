package api

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// TLS usually ends at a proxy, which tells in headers whom it speaks for. Anybody can write such headers, so they are
// read only when the connection comes from a configured address (TRUSTED_PROXIES), and only as far as configured
// proxies have written them:
//
//   - X-Forwarded-For, all lines of it as one list, from its end: what stands before the last untrusted address was
//     written by that client. An entry that is no address ends the list. No other header tells an address.
//   - X-Forwarded-Proto and X-Forwarded-Host: the last value, which is the nearest proxy's word.
//
// What is found replaces RemoteAddr, URL.Scheme and Host of the request before anything else looks at it; the headers
// themselves mean nothing afterwards. Nothing but login pages (tenant.go) depends on the host, and only the security
// headers on the scheme.

// proxies are the networks whose word counts.
type proxies []netip.Prefix

// parseProxies reads addresses and CIDRs.
func parseProxies(texts []string) (proxies, error) {
	var all proxies
	for _, text := range texts {
		prefix, err := netip.ParsePrefix(text)
		if addr, addrErr := netip.ParseAddr(text); err != nil && addrErr == nil {
			prefix, err = addr.Prefix(addr.BitLen())
		}
		if err != nil {
			return nil, fmt.Errorf("trusted proxy %q is no address and no network", text)
		}
		all = append(all, prefix.Masked())
	}
	return all, nil
}

func (p proxies) trust(addr netip.Addr) bool {
	return slices.ContainsFunc(p, func(prefix netip.Prefix) bool { return prefix.Contains(addr) })
}

// resolve writes into every request whom it comes from, over which scheme and to which host.
func (p proxies) resolve(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		told := *r
		url := *r.URL
		told.URL = &url
		url.Scheme = "http"
		if r.TLS != nil {
			url.Scheme = "https"
		}
		if peer, ok := hostAddr(r.RemoteAddr); ok && p.trust(peer) {
			told.RemoteAddr = net.JoinHostPort(p.client(peer, r.Header.Values("X-Forwarded-For")).String(), "0")
			switch scheme := strings.ToLower(lastValue(r.Header.Values("X-Forwarded-Proto"))); scheme {
			case "http", "https":
				url.Scheme = scheme
			}
			if host := lastValue(r.Header.Values("X-Forwarded-Host")); host != "" {
				told.Host = host
			}
		}
		next.ServeHTTP(w, &told)
	})
}

// client walks the list from its end to the first address that is no proxy of ours.
func (p proxies) client(peer netip.Addr, lines []string) netip.Addr {
	entries := strings.Split(strings.Join(lines, ","), ",")
	for _, entry := range slices.Backward(entries) {
		addr, ok := hostAddr(strings.TrimSpace(entry))
		if !ok {
			break
		}
		if peer = addr; !p.trust(addr) {
			break
		}
	}
	return peer
}

// hostAddr reads an address with or without a port, IPv6 in brackets or not; never with a zone, and IPv4 as such.
func hostAddr(text string) (netip.Addr, bool) {
	if host, _, err := net.SplitHostPort(text); err == nil {
		text = host
	}
	addr, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(text, "["), "]"))
	return addr.Unmap().WithZone(""), err == nil
}

// lastValue is the last element of a header that lists values, over all its lines.
func lastValue(lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	last := lines[len(lines)-1]
	return strings.TrimSpace(last[strings.LastIndexByte(last, ',')+1:])
}
