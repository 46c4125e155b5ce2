package api

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
)

// seen is what the server takes a request for.
type seen struct{ addr, scheme, host string }

func resolved(t testing.TB, trusted []string, peer string, h http.Header) seen {
	t.Helper()
	p, err := parseProxies(trusted)
	if err != nil {
		t.Fatal(err)
	}
	var got seen
	req := httptest.NewRequest("GET", "/", nil)
	req.RemoteAddr, req.Host, req.Header = peer, "api.example.com", h
	p.resolve(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		addr, _ := hostAddr(r.RemoteAddr)
		got = seen{addr.String(), r.URL.Scheme, r.Host}
	})).ServeHTTP(httptest.NewRecorder(), req)
	return got
}

func TestProxiesAreBelievedByConfigurationOnly(t *testing.T) {
	t.Parallel()
	balancer := []string{"10.0.0.0/8", "2001:db8::/32", "127.0.0.1"}
	for name, c := range map[string]struct {
		trusted []string
		peer    string
		header  http.Header
		want    seen
	}{
		"NoProxy":            {nil, "198.51.100.1:5", nil, seen{"198.51.100.1", "http", "api.example.com"}},
		"ForgedByAClient":    {balancer, "198.51.100.1:5", http.Header{"X-Forwarded-For": {"203.0.113.9"}, "X-Forwarded-Proto": {"https"}, "X-Forwarded-Host": {"x"}}, seen{"198.51.100.1", "http", "api.example.com"}},
		"NobodyIsTrusted":    {nil, "10.0.0.1:5", http.Header{"X-Forwarded-For": {"203.0.113.9"}}, seen{"10.0.0.1", "http", "api.example.com"}},
		"OneProxy":           {balancer, "10.0.0.1:5", http.Header{"X-Forwarded-For": {"203.0.113.9"}, "X-Forwarded-Proto": {"https"}, "X-Forwarded-Host": {"acme.example.com"}}, seen{"203.0.113.9", "https", "acme.example.com"}},
		"ForgedBeforeProxy":  {balancer, "10.0.0.1:5", http.Header{"X-Forwarded-For": {"1.1.1.1, 203.0.113.9"}}, seen{"203.0.113.9", "http", "api.example.com"}},
		"ForgedProxyBefore":  {balancer, "10.0.0.1:5", http.Header{"X-Forwarded-For": {"1.1.1.1, 10.0.0.7, 203.0.113.9"}}, seen{"203.0.113.9", "http", "api.example.com"}},
		"Chain":              {balancer, "10.0.0.1:5", http.Header{"X-Forwarded-For": {"203.0.113.9, 10.0.0.3 ,10.0.0.2"}}, seen{"203.0.113.9", "http", "api.example.com"}},
		"ChainOverLines":     {balancer, "10.0.0.1:5", http.Header{"X-Forwarded-For": {"1.1.1.1", "203.0.113.9", "10.0.0.2"}}, seen{"203.0.113.9", "http", "api.example.com"}},
		"AllOfItTrusted":     {balancer, "10.0.0.1:5", http.Header{"X-Forwarded-For": {"10.0.0.9, 10.0.0.2"}}, seen{"10.0.0.9", "http", "api.example.com"}},
		"Garbage":            {balancer, "10.0.0.1:5", http.Header{"X-Forwarded-For": {"203.0.113.9, unknown"}}, seen{"10.0.0.1", "http", "api.example.com"}},
		"GarbageBefore":      {balancer, "10.0.0.1:5", http.Header{"X-Forwarded-For": {"<script>, 203.0.113.9"}}, seen{"203.0.113.9", "http", "api.example.com"}},
		"EmptyEntry":         {balancer, "10.0.0.1:5", http.Header{"X-Forwarded-For": {"203.0.113.9,"}}, seen{"10.0.0.1", "http", "api.example.com"}},
		"RealIPIsNoWord":     {balancer, "10.0.0.1:5", http.Header{"X-Real-Ip": {"203.0.113.9"}, "Forwarded": {"for=203.0.113.9"}, "Cf-Connecting-Ip": {"203.0.113.9"}}, seen{"10.0.0.1", "http", "api.example.com"}},
		"WithPorts":          {balancer, "10.0.0.1:5", http.Header{"X-Forwarded-For": {"203.0.113.9:4711"}}, seen{"203.0.113.9", "http", "api.example.com"}},
		"IPv6":               {balancer, "[2001:db8::1]:5", http.Header{"X-Forwarded-For": {"2606:4700::1111"}}, seen{"2606:4700::1111", "http", "api.example.com"}},
		"IPv6WithPort":       {balancer, "[2001:db8::1]:5", http.Header{"X-Forwarded-For": {"[2606:4700::1111]:443"}}, seen{"2606:4700::1111", "http", "api.example.com"}},
		"IPv4InIPv6Peer":     {balancer, "[::ffff:10.0.0.1]:5", http.Header{"X-Forwarded-For": {"::ffff:203.0.113.9"}}, seen{"203.0.113.9", "http", "api.example.com"}},
		"Zone":               {balancer, "127.0.0.1:5", http.Header{"X-Forwarded-For": {"fe80::1%eth0"}}, seen{"fe80::1", "http", "api.example.com"}},
		"UnknownScheme":      {balancer, "10.0.0.1:5", http.Header{"X-Forwarded-Proto": {"javascript"}}, seen{"10.0.0.1", "http", "api.example.com"}},
		"TheNearestsScheme":  {balancer, "10.0.0.1:5", http.Header{"X-Forwarded-Proto": {"https, http"}}, seen{"10.0.0.1", "http", "api.example.com"}},
		"SchemeOverLines":    {balancer, "10.0.0.1:5", http.Header{"X-Forwarded-Proto": {"http", "HTTPS"}}, seen{"10.0.0.1", "https", "api.example.com"}},
		"TheNearestsHost":    {balancer, "10.0.0.1:5", http.Header{"X-Forwarded-Host": {"evil.example.com, acme.example.com"}}, seen{"10.0.0.1", "http", "acme.example.com"}},
		"PeerWithoutAddress": {balancer, "@", http.Header{"X-Forwarded-For": {"203.0.113.9"}}, seen{"invalid IP", "http", "api.example.com"}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := resolved(t, c.trusted, c.peer, c.header); got != c.want {
				t.Errorf("%+v, want %+v", got, c.want)
			}
		})
	}
	if _, err := parseProxies([]string{"10.0.0.1/8"}); err != nil {
		t.Errorf("host bits in a network: %v", err)
	}
}

// FuzzForwardedFor: whatever stands in the list, the answer is the peer or an address of the list, and an untrusted peer is
// always itself.
func FuzzForwardedFor(f *testing.F) {
	for _, list := range []string{"", "203.0.113.9", "1.1.1.1, 10.0.0.2", "[::1]:5, unknown", ",,,", "10.0.0.1:99999, ::ffff:10.1.1.1", "fe80::1%eth0"} {
		f.Add(list, "10.0.0.1:5", "https")
		f.Add(list, "198.51.100.1:5", "gopher")
	}
	p, err := parseProxies([]string{"10.0.0.0/8"})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, list, peer, scheme string) {
		got := resolved(t, []string{"10.0.0.0/8"}, peer, http.Header{"X-Forwarded-For": {list}, "X-Forwarded-Proto": {scheme}})
		if got.scheme != "http" && got.scheme != "https" {
			t.Errorf("scheme %q", got.scheme)
		}
		addr, ok := hostAddr(peer)
		if (!ok || !p.trust(addr)) && got.addr != addr.String() {
			t.Errorf("%q became %q by %q", peer, got.addr, list)
		}
		if client, err := netip.ParseAddr(got.addr); err == nil && client.Zone() != "" {
			t.Errorf("a zone: %s", got.addr)
		}
	})
}
