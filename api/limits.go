package api

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/ulule/limiter/v3"

	"github.com/generic-corp/muster/api/ratelimit"
)

// Which limits a request counts against. All of them are checked and counted together: a request is counted by each or by
// none, and one that is refused costs nothing.
//
//   - A request with a credential counts against its workspace's requests per hour, which its plan gives or an operator set;
//     with an access token also against its user's.
//   - A request without a credential, or with a bad one, counts against the address it comes from: an IPv4 address, or the
//     /64 of an IPv6 one.
//   - Routes where abuse costs more have the limits of tighter besides.

// RateLimits decides about requests and sign-ins; *ratelimit.Limiter does.
type RateLimits interface {
	Take(ctx context.Context, policy ratelimit.Policy, charges ...ratelimit.Charge) ratelimit.Decision
	BeginSignIn(ctx context.Context, account, address string) (*ratelimit.Attempt, *ratelimit.Delay)
	TrustAddress(ctx context.Context, account, address string)
}

// per says whose limit it is.
type per int

const (
	perWorkspace per = iota
	perUser
	perAddress
	perNetwork // an IPv4 /24 or an IPv6 /48
	perService // everybody together
)

// limit is one line: count requests in any span of period.
type limit struct {
	name   string // in headers and metrics
	of     per
	count  int64 // of perAddress, perNetwork and perService: times Config.AddressFactor
	period time.Duration
}

// Limits of every request.
var (
	// anonymousLimit holds for requests without a good credential.
	anonymousLimit = limit{"address", perAddress, 1_000, time.Hour}
	// userLimit bounds one person over all their workspaces. It never undercuts a workspace's own limit.
	userLimit = limit{"user", perUser, 10_000, time.Hour}
)

// routeLimits is what a route has beyond the usual.
type routeLimits struct {
	signed    bool    // nobody but the holder of a secret is served: requests that are refused count, against their address
	unlimited bool    // orchestrators ask these all the time, and a 429 would take a good process out of service
	closed    bool    // while Redis is away: this process's own limits, then 503. Otherwise its own limits, then served and counted
	byTasks   bool    // a request weighs as much as it has tasks
	limits    []limit // beside the usual
}

// tighter lists the routes that differ from the usual. Limits of one name share one count.
var tighter = map[string]routeLimits{
	"GET /health": {unlimited: true},
	"GET /ready":  {unlimited: true},

	"POST /v1/billing/webhook": {signed: true}, // Stripe sends bursts, from few addresses

	"POST /v1/auth/register": {closed: true, limits: []limit{
		{"register", perAddress, 10, time.Hour},
		{"register_network", perNetwork, 50, time.Hour},
		{"register_service", perService, 1_000, time.Hour},
	}},
	"POST /v1/auth/login":   {closed: true, limits: []limit{{"login", perAddress, 300, time.Hour}}},
	"POST /v1/auth/refresh": {closed: true, limits: []limit{{"refresh", perAddress, 600, time.Hour}}},

	"POST /v1/auth/password/forgot": {closed: true, limits: []limit{{"forgot", perAddress, 20, time.Hour}}},
	"POST /v1/auth/password/reset":  {closed: true, limits: []limit{{"reset", perAddress, 30, time.Hour}}},
	"POST /v1/auth/email/verify":    {closed: true, limits: []limit{{"verify", perAddress, 60, time.Hour}}},
	"POST /v1/invitations/accept":   {closed: true, limits: []limit{{"accept", perAddress, 30, time.Hour}}},

	"POST /v1/auth/password":   {closed: true, limits: []limit{{"password", perUser, 20, time.Hour}}},
	"POST /v1/auth/email/send": {closed: true, limits: []limit{{"email", perUser, 10, time.Hour}}},
	"POST /v1/workspaces":      {closed: true, limits: []limit{{"workspaces", perUser, 10, time.Hour}}},
	"POST /v1/invitations":     {closed: true, limits: []limit{{"invitations", perWorkspace, 50, time.Hour}}},

	"POST /v1/api-keys":             {closed: true, limits: []limit{{"keys", perWorkspace, 60, time.Hour}}},
	"POST /v1/api-keys/{id}/rotate": {closed: true, limits: []limit{{"keys", perWorkspace, 60, time.Hour}}},

	"POST /v1/webhooks":                        {closed: true, limits: []limit{{"webhooks", perWorkspace, 60, time.Hour}}},
	"PATCH /v1/webhooks/{id}":                  {closed: true, limits: []limit{{"webhooks", perWorkspace, 60, time.Hour}}},
	"POST /v1/webhooks/{id}/rotate":            {closed: true, limits: []limit{{"webhooks", perWorkspace, 60, time.Hour}}},
	"POST /v1/webhooks/{id}/test":              {limits: []limit{{"webhook_tests", perWorkspace, 60, time.Hour}}},
	"POST /v1/webhooks/{id}/deliveries/replay": {limits: []limit{{"webhook_replays", perWorkspace, 60, time.Hour}}},

	"GET /v1/workspace/export": {closed: true, limits: []limit{{"export", perWorkspace, 6, time.Hour}}},
	"DELETE /v1/workspace":     {closed: true, limits: []limit{{"delete", perUser, 20, time.Hour}}},

	"POST /v1/tasks/batch": {byTasks: true},
}

// ratePeriod is that of a workspace's limit.
const ratePeriod = time.Hour

func (r *route) limits() routeLimits { return tighter[r.pattern()] }

// policy is what the route does while Redis is away.
func (l routeLimits) policy() ratelimit.Policy {
	if l.closed {
		return ratelimit.Closed
	}
	return ratelimit.Open
}

// limitStranger counts a request whose credential is missing or bad against its address, and returns what it is answered:
// refusal, or that there are too many.
func (s *Server) limitStranger(c *gin.Context, refusal error) error {
	if e, _ := classify(refusal); e.status != http.StatusUnauthorized {
		return refusal
	}
	return s.limitSender(c, refusal)
}

// limitSender counts a refused request against its address, and returns what it is answered: refusal, or that there are too
// many.
func (s *Server) limitSender(c *gin.Context, refusal error) error {
	if s.RateLimits == nil {
		return refusal
	}
	charge := s.charge(anonymousLimit, addressOf(c.ClientIP(), 32, 64))
	if err := s.take(c, ratelimit.Open, charge); err != nil {
		return err
	}
	return refusal
}

// limit counts the request against its limits, before anything else is done for it. whole is false for one that the route
// refuses by role or scope: it counts against the usual limits.
func (s *Server) limit(q *request, whole bool) error {
	rules := q.route.limits()
	if s.RateLimits == nil || rules.unlimited || rules.signed {
		return nil
	}
	var charges []ratelimit.Charge
	if q.id == nil {
		charges = append(charges, s.charge(anonymousLimit, addressOf(q.gin.ClientIP(), 32, 64)))
	} else {
		allowance, err := s.allowance(q.gin.Request.Context(), q.id.Workspace)
		if err != nil {
			return err
		}
		hourly := int64(allowance.RequestsPerHour)
		weight := int64(1)
		if rules.byTasks {
			weight = max(1, tasksIn(q.body))
		}
		rate := limiter.Rate{Period: ratePeriod, Limit: hourly}
		charges = append(charges, ratelimit.Charge{Name: "workspace", Key: q.id.Workspace.String(), Rate: rate, Weight: weight})
		if q.id.isSession() {
			rate.Limit = max(hourly, userLimit.count)
			charges = append(charges, ratelimit.Charge{Name: userLimit.name, Key: q.id.User.String(), Rate: rate, Weight: weight})
		}
	}
	if whole {
		for _, l := range rules.limits {
			charges = append(charges, s.charge(l, q.whose(l.of)))
		}
	}
	return s.take(q.gin, rules.policy(), charges...)
}

// charge is one request against a limit of this file.
func (s *Server) charge(l limit, key string) ratelimit.Charge {
	rate := limiter.Rate{Period: l.period, Limit: l.count}
	if l.of == perAddress || l.of == perNetwork || l.of == perService {
		rate.Limit *= int64(s.AddressFactor)
	}
	return ratelimit.Charge{Name: l.name, Key: key, Rate: rate, Weight: 1}
}

// whose is the key of a limit for this request.
func (q *request) whose(of per) string {
	switch {
	case of == perWorkspace && q.id != nil:
		return q.id.Workspace.String()
	case of == perUser && q.id != nil && q.id.isSession():
		return q.id.User.String()
	case of == perNetwork:
		return addressOf(q.gin.ClientIP(), 24, 48)
	case of == perService:
		return "all"
	}
	return addressOf(q.gin.ClientIP(), 32, 64)
}

// addressOf cuts an address to its first bits, since one customer has all addresses of an IPv6 /64.
func addressOf(ip string, bits4, bits6 int) string {
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return "unknown" // a Unix socket; never a client's choice
	}
	bits := bits6
	if addr = addr.Unmap().WithZone(""); addr.Is4() {
		bits = bits4
	}
	prefix, _ := addr.Prefix(bits) // fails only for bits out of range
	return prefix.String()
}

// take asks, tells the client how its limits stand, and makes a refusal of one.
func (s *Server) take(c *gin.Context, policy ratelimit.Policy, charges ...ratelimit.Charge) error {
	d := s.RateLimits.Take(c.Request.Context(), policy, charges...)
	showLimits(c.Writer.Header(), d.Standings, s.Now())
	switch {
	case d.Allowed:
		return nil
	case d.Unavailable():
		return &apiError{problem: probUnavailable, detail: "too many requests while the shared limits cannot be read; try again", retryAfter: seconds(d.RetryAfter)}
	case d.RetryAfter != ratelimit.Never:
		wait := seconds(d.RetryAfter)
		return &apiError{problem: probRateLimited, retryAfter: wait,
			detail: fmt.Sprintf("the limit %q is used up; there is room again in %d seconds", d.Refused, wait)}
	}
	for _, charge := range charges {
		if charge.Name == d.Refused && charge.Rate.Limit > 0 {
			return &apiError{problem: probPlanLimit, detail: fmt.Sprintf("a batch counts as many requests as it has tasks: this one has %d, the limit of requests per hour is %d",
				charge.Weight, charge.Rate.Limit)}
		}
	}
	return &apiError{problem: probRateLimited, retryAfter: int(ratePeriod.Seconds()), detail: "this workspace may send no requests"}
}

// seconds rounds up, and is never 0.
func seconds(d time.Duration) int { return max(1, int(math.Ceil(d.Seconds()))) }

// The headers of limits: those of draft-ietf-httpapi-ratelimit-headers with every limit that applied, and the older
// ones with the limit that has least left.
const (
	headerPolicy    = "RateLimit-Policy"
	headerLimits    = "RateLimit"
	headerLimit     = "X-RateLimit-Limit"
	headerRemaining = "X-RateLimit-Remaining"
	headerReset     = "X-RateLimit-Reset"
)

func showLimits(h http.Header, standings []ratelimit.Standing, now time.Time) {
	if len(standings) == 0 {
		return
	}
	var policies, limits strings.Builder
	least := standings[0]
	for i, st := range standings {
		if i > 0 {
			policies.WriteString(", ")
			limits.WriteString(", ")
		}
		fmt.Fprintf(&policies, `"%s";q=%d;w=%d`, st.Name, st.Rate.Limit, int64(st.Rate.Period.Seconds()))
		fmt.Fprintf(&limits, `"%s";r=%d;t=%d`, st.Name, st.Remaining, int64(math.Ceil(st.Reset.Seconds())))
		if st.Remaining < least.Remaining {
			least = st
		}
	}
	h.Set(headerPolicy, policies.String())
	h.Set(headerLimits, limits.String())
	h.Set(headerLimit, strconv.FormatInt(least.Rate.Limit, 10))
	h.Set(headerRemaining, strconv.FormatInt(least.Remaining, 10))
	h.Set(headerReset, strconv.FormatInt(now.Add(least.Reset+time.Second-1).Unix(), 10))
}

// beginSignIn lets a sign-in on to the look at its password, or says how long failures before it delay it. account is
// the mail in lower case. The Attempt is nil-safe, and nil when nothing is limited.
func (s *Server) beginSignIn(q *request, account string) (*ratelimit.Attempt, error) {
	if s.RateLimits == nil {
		return nil, nil
	}
	attempt, delay := s.RateLimits.BeginSignIn(q.ctx, account, addressOf(q.gin.ClientIP(), 32, 64))
	if delay == nil {
		return attempt, nil
	}
	wait := seconds(delay.Wait)
	return nil, &apiError{problem: probSignInDelayed, retryAfter: wait,
		detail: fmt.Sprintf("sign-ins have failed before this one; try again in %d seconds", wait)}
}

// trustAddress lets the account sign in from this address whatever others do to it.
func (s *Server) trustAddress(q *request, account string) {
	if s.RateLimits != nil {
		s.RateLimits.TrustAddress(q.ctx, account, addressOf(q.gin.ClientIP(), 32, 64))
	}
}

// tasksIn counts what a batch asks for: the elements of all lists directly inside the outermost object. Names are not looked
// at, so that no spelling of one hides a list; bodies that are not JSON are refused later and create nothing.
func tasksIn(body []byte) int64 {
	var n int64
	depth, text, list, filled := 0, false, false, false // list: what is open at depth 2 is one
	for i := 0; i < len(body); i++ {
		b := body[i]
		if text {
			switch b {
			case '\\':
				i++
			case '"':
				text = false
			}
			continue
		}
		switch b {
		case ' ', '\t', '\r', '\n':
			continue
		case ']', '}':
			if depth == 2 && list && filled {
				n++
			}
			depth--
			continue
		case ',':
			if depth == 2 && list {
				n++
			}
			continue
		}
		if depth == 2 {
			filled = true
		}
		switch b {
		case '"':
			text = true
		case '[', '{':
			if depth++; depth == 2 {
				list, filled = b == '[', false
			}
		}
	}
	return n
}
