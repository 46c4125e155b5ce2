package api

import (
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/gin-gonic/gin"
)

// Pages of other origins may use the API from a browser only when their origin is listed (CORS_ORIGINS), letter by letter:
// no wildcard, no suffix, never "null". A listed origin gets CORS headers on every answer, refusals included; any other
// gets none, so that its browser keeps the answer from it. Requests without Origin (programs) and of the same origin
// notice nothing. Credentials of the browser's own (cookies) are never allowed: there are none, and Authorization is a
// header that the page sets itself.
//
// Written here because the middlewares at hand answer 403 to a foreign Origin, which would refuse programs that send one.

// headers that a listed origin may send and read.
const (
	corsMethods = "GET, HEAD, POST, PATCH, DELETE"
	corsAllowed = "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, Prefer, X-Request-ID"
	corsExposed = "Content-Disposition, Idempotent-Replayed, Link, Location, Preference-Applied, RateLimit, RateLimit-Policy, Retry-After, " +
		"WWW-Authenticate, X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset, X-Request-ID"
	corsMaxAge = "600" // seconds that a browser may remember the answer to a preflight
)

// CheckOrigin refuses what no browser sends as its Origin: it must be scheme://host or scheme://host:port, lower case,
// ASCII (an international name in its xn-- form), without a path and without the scheme's own port.
func CheckOrigin(origin string) error {
	wrong := errors.New("an origin is https://host or https://host:port, in lower case and without a path")
	u, err := url.Parse(origin)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Scheme+"://"+u.Host != origin {
		return wrong
	}
	port := u.Port()
	if (port == "80" && u.Scheme == "http") || (port == "443" && u.Scheme == "https") || strings.HasSuffix(u.Host, ":") {
		return errors.New("a browser leaves out the port that is the scheme's own")
	}
	if addr, err := netip.ParseAddr(u.Hostname()); err == nil && addr.Zone() == "" {
		return nil
	}
	for label := range strings.SplitSeq(u.Hostname(), ".") {
		if !dnsLabel(label) {
			return wrong
		}
	}
	return nil
}

// dnsLabel: 1 to 63 lower-case letters, digits and dashes, a dash at neither end.
func dnsLabel(s string) bool {
	return len(s) >= 1 && len(s) <= 63 && s[0] != '-' && s[len(s)-1] != '-' && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// allowOrigins is the middleware.
func (s *Server) allowOrigins(c *gin.Context) {
	if len(s.CORSOrigins) == 0 {
		return
	}
	h := c.Writer.Header()
	h.Add("Vary", "Origin") // also where there is none: a cache must not give its answer to a listed origin
	origins := c.Request.Header.Values("Origin")
	if len(origins) != 1 || !slices.Contains(s.CORSOrigins, origins[0]) {
		return
	}
	h.Set("Access-Control-Allow-Origin", origins[0])
	h.Set("Access-Control-Expose-Headers", corsExposed)
	if c.Request.Method != http.MethodOptions || c.GetHeader("Access-Control-Request-Method") == "" {
		return
	}
	h.Add("Vary", "Access-Control-Request-Method")
	h.Add("Vary", "Access-Control-Request-Headers")
	h.Set("Access-Control-Allow-Methods", corsMethods)
	h.Set("Access-Control-Allow-Headers", corsAllowed)
	h.Set("Access-Control-Max-Age", corsMaxAge)
	c.AbortWithStatus(http.StatusNoContent)
}
