package outbound

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
)

func TestURLsAreReadOneWay(t *testing.T) {
	t.Parallel()
	for _, row := range []struct{ given, kept string }{ // kept "" is refused
		{"https://example.com/hook", "https://example.com/hook"},
		{"https://EXAMPLE.com./hook?a=b", "https://example.com/hook?a=b"},
		{"https://example.com:443/", "https://example.com:443/"},
		{"https://example.com:8443", "https://example.com:8443"},
		{"https://bücher.example.com/ü", "https://xn--bcher-kva.example.com/%C3%BC"},
		{"https://xn--bcher-kva.example.com", "https://xn--bcher-kva.example.com"},
		{"https://ｅｘａｍｐｌｅ.com", "https://example.com"},
		{"https://8.8.8.8/", "https://8.8.8.8/"},
		{"https://[2606:4700::1111]/", "https://[2606:4700::1111]/"},
		{"https://3com.example.org/", "https://3com.example.org/"},
		{"https://127.0.0.1.nip.example/", "https://127.0.0.1.nip.example/"}, // a name: what it resolves to is checked when it is dialled

		{"http://example.com/", ""}, {"ftp://example.com/", ""}, {"file:///etc/passwd", ""}, {"javascript:alert(1)", ""}, {"//example.com/", ""},
		{"example.com", ""}, {"https://", ""}, {"https:example.com", ""}, {"https:///x", ""}, {"", ""},
		{"https://user@example.com/", ""}, {"https://user:pw@example.com/", ""}, {"https://example.com@127.0.0.1/", ""}, {"https://127.0.0.1#@example.com/", ""},
		{"https://example.com/#f", ""}, {"https://exa mple.com/", ""}, {"https://example.com\\@127.0.0.1/", ""}, {"https://example.com/\r\nX: y", ""},
		{"https://example.com:22/", ""}, {"https://example.com:6379/", ""}, {"https://example.com:80/", ""}, {"https://example.com:/", ""}, {"https://example.com:0443/", ""},
		{"https://localhost/", ""}, {"https://LOCALHOST./", ""}, {"https://a.localhost/", ""}, {"https://metadata/", ""}, {"https://db.internal/", ""},
		{"https://printer.local/", ""}, {"https://metadata.google.internal/", ""}, {"https://x.home.arpa/", ""}, {"https://x.lan./", ""},
		{"https://127.0.0.1/", ""}, {"https://127.0.0.1./", ""}, {"https://127.1/", ""}, {"https://127.0.1/", ""}, {"https://2130706433/", ""}, {"https://0177.0.0.1/", ""},
		{"https://0x7f.0.0.1/", ""}, {"https://0x7f000001/", ""}, {"https://017700000001/", ""}, {"https://127.0.0.0x1/", ""}, {"https://0/", ""}, {"https://0.0.0.0/", ""},
		{"https://１２７.０.０.１/", ""}, {"https://127。0。0。1/", ""}, {"https://①②⑦.⓪.⓪.①/", ""}, {"https://%31%32%37.0.0.1/", ""},
		{"https://10.1.2.3/", ""}, {"https://172.16.0.1/", ""}, {"https://192.168.0.1/", ""}, {"https://169.254.169.254/latest/meta-data", ""}, {"https://100.100.100.200/", ""},
		{"https://168.63.129.16/", ""}, {"https://255.255.255.255/", ""}, {"https://224.0.0.1/", ""}, {"https://198.18.0.1/", ""},
		{"https://[::1]/", ""}, {"https://[::]/", ""}, {"https://[::ffff:127.0.0.1]/", ""}, {"https://[::ffff:7f00:1]/", ""}, {"https://[0:0:0:0:0:ffff:a00:1]/", ""},
		{"https://[64:ff9b::7f00:1]/", ""}, {"https://[2002:7f00:1::]/", ""}, {"https://[2001:0:1::1]/", ""}, {"https://[fe80::1]/", ""}, {"https://[fe80::1%25eth0]/", ""},
		{"https://[fd00:ec2::254]/", ""}, {"https://[ff02::1]/", ""}, {"https://[2606:4700::1111%25lo]/", ""},
		{"https://" + strings.Repeat("a", 64) + ".com/", ""}, {"https://example.com/" + strings.Repeat("a", MaxURL), ""},
	} {
		kept, err := Rules{}.CheckURL(row.given)
		if kept != row.kept || (err == nil) != (row.kept != "") {
			t.Errorf("%q is kept as %q, %v; want %q", row.given, kept, err, row.kept)
		}
	}
	dev := Rules{Loopback: true}
	for given, kept := range map[string]string{"http://localhost:3000/x": "http://localhost:3000/x", "http://127.0.0.1:9/": "http://127.0.0.1:9/", "http://[::1]:9/": "http://[::1]:9/",
		"https://example.com/": "https://example.com/", "http://example.com/": "", "http://10.0.0.1/": "", "https://169.254.169.254/": "", "http://[::ffff:10.0.0.1]/": ""} {
		if got, err := dev.CheckURL(given); got != kept {
			t.Errorf("in development %q is kept as %q, %v", given, got, err)
		}
	}
}

func TestAddressesThatAreNobodysAreRefused(t *testing.T) {
	t.Parallel()
	r := Rules{Denied: []netip.Prefix{netip.MustParsePrefix("5.9.0.0/16"), netip.MustParsePrefix("2a01:4f8::/32")}}
	for _, ok := range []string{"1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0", "169.253.255.255", "172.15.255.255",
		"172.32.0.0", "192.0.1.0", "192.167.255.255", "198.17.255.255", "198.20.0.0", "223.255.255.255", "168.63.129.15", "5.10.0.1", "2606:4700::1111", "2a00:1450::1", "2400::1",
		"2001:200::1", "2001:4860:4860::8888", "2a01:4f9::1", "::ffff:8.8.8.8"} {
		if err := r.CheckAddr(netip.MustParseAddr(ok)); err != nil {
			t.Errorf("%s: %v", ok, err)
		}
	}
	for _, bad := range []string{"0.0.0.0", "0.1.2.3", "10.0.0.0", "10.255.255.255", "100.64.0.0", "100.100.100.200", "100.127.255.255", "127.0.0.1", "127.255.255.255", "168.63.129.16",
		"169.254.0.0", "169.254.169.254", "172.16.0.0", "172.31.255.255", "192.0.0.170", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.255.255", "198.18.0.0", "198.19.255.255",
		"198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "5.9.1.1",
		"::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:5.9.1.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::1", "100::1", "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2",
		"2001:2::1", "2001:10::1", "2001:20::1", "2001:db8::1", "2002:7f00:1::", "2002:808:808::", "2620:4f:8000::1", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1",
		"2a01:4f8::1", "2606:4700::1111%eth0", "8.8.8.8%x"} {
		addr, err := netip.ParseAddr(bad)
		if err != nil { // an IPv4 address with a zone cannot even be written
			continue
		}
		if !errors.Is(r.CheckAddr(addr), ErrRefused) {
			t.Errorf("%s is reached", bad)
		}
	}
	if !errors.Is(r.CheckAddr(netip.Addr{}), ErrRefused) {
		t.Error("no address is reached")
	}
	dev := Rules{Loopback: true, Denied: []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}}
	for text, ok := range map[string]bool{"127.0.0.1": true, "::1": true, "::ffff:127.0.0.1": true, "127.0.0.2": false, "10.0.0.1": false, "169.254.169.254": false, "0.0.0.0": false} {
		if err := dev.CheckAddr(netip.MustParseAddr(text)); (err == nil) != ok {
			t.Errorf("in development %s: %v", text, err)
		}
	}
}

// names answers every look-up of an address with the current one.
func names(t *testing.T, current *atomic.Value, asked *atomic.Value) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		for buf := make([]byte, 512); ; {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			q := append([]byte{}, buf[:n]...)
			end, name := 12, ""
			for q[end] != 0 {
				name += string(q[end+1:end+1+int(q[end])]) + "."
				end += int(q[end]) + 1
			}
			asked.Store(name)
			end += 5
			a := append([]byte{}, q[:end]...)
			a[2], a[3] = 0x81, 0x80
			binary.BigEndian.PutUint16(a[8:], 0)
			binary.BigEndian.PutUint16(a[10:], 0)
			if binary.BigEndian.Uint16(q[end-4:]) == 1 {
				binary.BigEndian.PutUint16(a[6:], 1)
				ip := current.Load().(netip.Addr).As4()
				a = append(a, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4)
				a = append(a, ip[:]...)
			}
			_, _ = conn.WriteTo(a, from)
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

// A name may resolve to something else by the time it is used: what counts is where the connection goes.
func TestANameThatMovesIsCheckedWhenItIsDialled(t *testing.T) {
	t.Parallel()
	var hits atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hits.Add(1) }))
	t.Cleanup(server.Close)
	port := server.Listener.Addr().(*net.TCPAddr).Port
	other, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2), Port: port}) // it would answer
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	var address, asked atomic.Value
	address.Store(netip.MustParseAddr("127.0.0.1"))
	r := Rules{Loopback: true, Denied: []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}, Resolver: names(t, &address, &asked)}
	client := r.Client()
	client.Transport.(*http.Transport).DisableKeepAlives = true
	u := url.URL{Scheme: "http", Host: net.JoinHostPort("hook.example.com", server.URL[strings.LastIndex(server.URL, ":")+1:])}
	res, err := client.Get(u.String())
	if err != nil || hits.Load() != 1 {
		t.Fatal("a name that resolves to where one may go: ", err)
	}
	res.Body.Close()
	if asked.Load() != "hook.example.com." {
		t.Errorf("%q was looked up", asked.Load())
	}
	for _, moved := range []string{"127.0.0.2", "10.0.0.1", "169.254.169.254", "0.0.0.0"} {
		address.Store(netip.MustParseAddr(moved))
		if _, err := client.Get(u.String()); !errors.Is(err, ErrRefused) {
			t.Errorf("moved to %s: %v", moved, err)
		}
	}
	address.Store(netip.MustParseAddr("127.0.0.1"))
	if res, err := client.Get(u.String()); err != nil || hits.Load() != 2 {
		t.Error("back again: ", err)
	} else {
		res.Body.Close()
	}
	production := Rules{Resolver: r.Resolver}.Client()
	if _, err := production.Get(u.String()); !errors.Is(err, ErrRefused) {
		t.Errorf("in production this machine is reached: %v", err)
	}
}

// However an address is spelled, the client refuses it: nothing here was looked at by CheckURL.
func TestTheClientRefusesEverySpelling(t *testing.T) {
	t.Parallel()
	client := Rules{}.Client()
	for _, host := range []string{"127.0.0.1", "127.0.0.1.", "localhost", "LOCALHOST", "localhost.", "[::1]", "[::]", "0.0.0.0", "[::ffff:127.0.0.1]", "127.1", "2130706433", "0x7f.1", "0177.0.0.1", "0"} {
		for _, scheme := range []string{"http://", "https://"} {
			res, err := client.Get(scheme + host + ":443/")
			if err == nil {
				res.Body.Close()
				t.Errorf("%s%s was reached", scheme, host)
				continue
			}
			var dns *net.DNSError
			if !errors.Is(err, ErrRefused) && !errors.As(err, &dns) { // some resolvers know none of the odd spellings
				t.Errorf("%s%s: %v", scheme, host, err)
			}
		}
	}
}

func TestTheClientFollowsNothingAndTakesNothingAlong(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1")
	var inside atomic.Int32
	internal := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { inside.Add(1) }))
	t.Cleanup(internal.Close)
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Cookie") != "" || r.Header.Get("Accept-Encoding") != "" {
			t.Errorf("sent along: %v", r.Header)
		}
		http.SetCookie(w, &http.Cookie{Name: "c", Value: "1"})
		if r.URL.Path == "/redirect" {
			http.Redirect(w, r, internal.URL, http.StatusTemporaryRedirect)
		}
	}))
	t.Cleanup(server.Close)
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	client := Rules{Loopback: true, TLS: &tls.Config{RootCAs: roots}}.Client()
	for path, status := range map[string]int{"/redirect": 307, "/": 200} {
		for range 2 {
			res, err := client.Post(server.URL+path, "application/json", strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, res.Body)
			res.Body.Close()
			if res.StatusCode != status {
				t.Errorf("%s: %d", path, res.StatusCode)
			}
		}
	}
	if inside.Load() != 0 {
		t.Error("a redirect was followed")
	}
	if _, err := (Rules{Loopback: true}).Client().Get(server.URL); err == nil {
		t.Error("an unknown certificate is accepted")
	}
	old := httptest.NewUnstartedServer(http.NotFoundHandler())
	old.TLS = &tls.Config{MaxVersion: tls.VersionTLS11}
	old.StartTLS()
	t.Cleanup(old.Close)
	roots.AddCert(old.Certificate())
	if _, err := client.Get(old.URL); err == nil {
		t.Error("TLS 1.1 is spoken")
	}
}
