package api

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/generic-corp/muster/api/ratelimit"
	_ "github.com/generic-corp/muster/jobs" // silences the Redis client, as in the processes
	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// unreadable is a registration that counts and is refused before its password is hashed, which costs a test much.
const unreadable = "{"

// strict gives a test the limits of production.
func strict(cfg *Config) { cfg.AddressFactor = 1 }

func TestTheTableOfLimitsIsComplete(t *testing.T) {
	t.Parallel()
	known := map[string]*route{}
	for i := range routes {
		known[routes[i].pattern()] = &routes[i]
	}
	for pattern := range tighter {
		if known[pattern] == nil {
			t.Errorf("%s has limits and is no route", pattern)
		}
	}
	name := regexp.MustCompile(`^[a-z_]+$`)
	for pattern, r := range known {
		rules := r.limits()
		if rules.signed != (pattern == "POST /v1/billing/webhook") {
			t.Errorf("%s: signed is %v", pattern, rules.signed)
		}
		if r.anonymous && r.method != http.MethodGet && !rules.signed && (!rules.closed || len(rules.limits) == 0) {
			t.Errorf("%s changes something without a credential: it needs a limit of its own, and to close without Redis", pattern)
		}
		if rules.unlimited && r.method != http.MethodGet {
			t.Errorf("%s is unlimited", pattern)
		}
		for _, l := range rules.limits {
			if !name.MatchString(l.name) || l.count < 1 || l.period < time.Minute || slices.Contains([]string{"workspace", userLimit.name, anonymousLimit.name}, l.name) {
				t.Errorf("%s: %+v", pattern, l)
			}
			if l.of == perUser && !r.session {
				t.Errorf("%s: an API key is no user", pattern)
			}
		}
	}
}

// limitsOf reads RateLimit and RateLimit-Policy: of each name what is left and how many of how long.
func limitsOf(t *testing.T, r *reply) (left, size, span map[string]int) {
	t.Helper()
	left, size, span = map[string]int{}, map[string]int{}, map[string]int{}
	item := regexp.MustCompile(`^"([a-z_]+)";([rq])=(\d+);([tw])=(\d+)$`)
	for header, into := range map[string]map[string]int{headerLimits: left, headerPolicy: size} {
		for part := range strings.SplitSeq(r.header.Get(header), ", ") {
			m := item.FindStringSubmatch(part)
			if m == nil {
				t.Fatalf("%s: %q", header, r.header.Get(header))
			}
			into[m[1]], _ = strconv.Atoi(m[3])
			if header == headerPolicy {
				span[m[1]], _ = strconv.Atoi(m[5])
			}
		}
	}
	if len(left) != len(size) {
		t.Fatalf("RateLimit %q, policy %q", r.header.Get(headerLimits), r.header.Get(headerPolicy))
	}
	return left, size, span
}

func TestAWorkspaceHasItsPlansRequests(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	beside := newWorldOn(t, w.env, nil) // another API process

	t.Run("AFreshOneAllAtOnceAndNoMore", func(t *testing.T) {
		c := w.owner("")
		doors := []*client{c, beside.with(c.credential)}
		var served, refused atomic.Int64
		var senders sync.WaitGroup
		for i := range 8 {
			senders.Go(func() {
				for range 20 {
					switch r := doors[i%2].get("/v1/quota"); r.status {
					case 200:
						served.Add(1)
					case 429:
						refused.Add(1)
					default:
						t.Errorf("status %d", r.status)
					}
				}
			})
		}
		senders.Wait()
		if served.Load() != 100 || refused.Load() != 60 {
			t.Errorf("%d of 160 served over two processes, %d refused; Free has 100 per hour", served.Load(), refused.Load())
		}
		r := c.get("/v1/quota").problem(probRateLimited)
		left, size, span := limitsOf(t, r)
		after, _ := strconv.Atoi(r.header.Get("Retry-After"))
		reset, _ := strconv.ParseInt(r.header.Get(headerReset), 10, 64)
		if left["workspace"] != 0 || size["workspace"] != 100 || span["workspace"] != 3600 || r.header.Get(headerLimit) != "100" || r.header.Get(headerRemaining) != "0" ||
			after < 3500 || after > 3660 || time.Until(time.Unix(reset, 0)) < 58*time.Minute {
			t.Errorf("headers of the 429: %v", r.header)
		}
		w.owner("").get("/v1/quota").want(200) // another workspace
	})
	t.Run("EveryAnswerSaysHowTheLimitsStand", func(t *testing.T) {
		c := w.owner("starter")
		for i, send := range []func() *reply{
			func() *reply { return c.get("/v1/me").want(200) },
			func() *reply { return c.get("/v1/tasks/unknown").want(404) },
			func() *reply { return c.get("/v1/tasks?limit=x").want(422) },
			func() *reply { return c.post("/v1/tasks", "{").want(400) },
			func() *reply {
				return c.colleague(store.RoleViewer).post("/v1/tasks", map[string]any{"prompt": "x"}).want(403)
			},
			func() *reply { return c.post("/v1/tasks", map[string]any{"prompt": "x"}).want(202) },
		} {
			r := send()
			left, size, _ := limitsOf(t, r)
			if left["workspace"] != 999-i || size["workspace"] != 1000 || size["user"] != 10_000 || r.header.Get(headerRemaining) != strconv.Itoa(999-i) {
				t.Errorf("answer %d: %v", i, r.header)
			}
		}
		for _, r := range []*reply{w.anonymous().get("/v1/plans").want(200), w.anonymous().get("/v1/me").want(401), w.with("mst_live_wrong").get("/v1/me").want(401)} {
			if _, size, _ := limitsOf(t, r); size["address"] != 100_000 {
				t.Errorf("%v", r.header)
			}
		}
		for _, path := range []string{"/health", "/ready"} {
			if r := w.anonymous().get(path).want(200); r.header.Get(headerLimits) != "" {
				t.Errorf("%s is limited", path)
			}
		}
	})
	t.Run("AKeyAndItsMakerShareTheWorkspaceAndAKeyIsNoUser", func(t *testing.T) {
		c := w.owner("")
		r := w.with(c.post("/v1/api-keys", map[string]any{"name": "k"}).want(201).str("key")).get("/v1/me").want(200)
		left, _, _ := limitsOf(t, r)
		if _, user := left["user"]; user || left["workspace"] != 98 {
			t.Errorf("%v", left)
		}
	})
	t.Run("AnOperatorsOverrideHoldsWithinFiveSeconds", func(t *testing.T) {
		slow := newWorldOn(t, w.env, func(cfg *Config) { cfg.CredentialMS = 3000 }) // as in production
		owner := w.owner("")
		c := slow.with(owner.credential)
		for range 100 {
			c.get("/v1/quota").want(200)
		}
		c.get("/v1/quota").problem(probRateLimited)
		began := time.Now()
		owner.mayRequest(150)
		eventually(t, 5*time.Second, func() bool { return c.get("/v1/quota").status == 200 })
		t.Logf("an override held after %s", time.Since(began).Round(time.Millisecond))
		if left, size, _ := limitsOf(t, c.get("/v1/quota").want(200)); size["workspace"] != 150 || left["workspace"] != 48 {
			t.Errorf("%v of %v", left, size)
		}
		owner.mayRequest(0)
		eventually(t, 5*time.Second, func() bool { return c.get("/v1/quota").status == 429 })
	})
}

func TestABatchCountsItsTasks(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	batch := func(n int) map[string]any {
		tasks := make([]map[string]any, n)
		for i := range tasks {
			tasks[i] = map[string]any{"prompt": `a "prompt", with [brackets], {braces} and \\`, "metadata": map[string]any{"a": "1", "b": "2"}}
		}
		return map[string]any{"tasks": tasks}
	}
	c := w.owner("")
	if left, _, _ := limitsOf(t, c.post("/v1/tasks/batch", batch(60)).want(202)); left["workspace"] != 40 || left["user"] != 9_940 {
		t.Errorf("after 60 tasks: %v", left)
	}
	if left, _, _ := limitsOf(t, c.post("/v1/tasks/batch", batch(41)).problem(probRateLimited)); left["workspace"] != 40 {
		t.Errorf("a refused batch was counted: %v", left)
	}
	if n := w.count(`SELECT count(*) FROM tasks WHERE workspace_id = $1`, c.ws); n != 60 {
		t.Errorf("%d tasks", n)
	}
	c.post("/v1/tasks/batch", batch(40)).want(202)
	c.post("/v1/tasks", map[string]any{"prompt": "x"}).problem(probRateLimited)
	w.owner("").post("/v1/tasks/batch", batch(101)).problem(probPlanLimit)
	// No spelling of the list's name makes it lighter.
	sly := w.owner("")
	sly.post("/v1/tasks/batch", `{"t\u0061sks": [`+strings.Repeat(`{"prompt": "x"},`, 100)+`{"prompt": "x"}]}`).problem(probPlanLimit)
	if left, _, _ := limitsOf(t, sly.post("/v1/tasks/batch", `{"tasks": [}`).want(400)); left["workspace"] != 99 {
		t.Errorf("an unreadable batch: %v", left)
	}
}

func TestTasksIn(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]int64{
		``: 0, `{}`: 0, `{"tasks": []}`: 0, `{"tasks":[{}]}`: 1, `{"tasks":[{},{}]}`: 2, ` { "tasks" : [ 1 , 2,[3,4] ] } `: 3,
		`{"tasks":[{"a":[1,2,3],"b":{"c":[1,2]}},{"x":"],[\"}"}]}`: 2, `{"a":{"b":1,"c":2}}`: 0, `{"a":[1],"b":[1,2]}`: 3,
		`{"tasks":["\\",""]}`: 2, `[[1,2]]`: 2, `]]]]{{{`: 0, `{"tasks":["`: 0,
	} {
		if got := tasksIn([]byte(body)); got != want {
			t.Errorf("%s: %d, want %d", body, got, want)
		}
	}
}

func TestRoutesWhereAbuseCostsAreTighter(t *testing.T) {
	t.Parallel()
	w := newWorld(t, strict)

	t.Run("Registrations", func(t *testing.T) {
		w.anonymous().post("/v1/auth/register", registration("first@example.com")).want(201)
		for range 9 {
			w.anonymous().post("/v1/auth/register", unreadable).want(400)
		}
		r := w.anonymous().post("/v1/auth/register", registration("eleventh@example.com")).problem(probRateLimited)
		left, size, _ := limitsOf(t, r)
		if size["register"] != 10 || left["register"] != 0 || size["register_network"] != 50 || size["register_service"] != 1000 || left["address"] != 990 {
			t.Errorf("%v of %v", left, size)
		}
		w.anonymous().get("/v1/plans").want(200)
	})
	t.Run("KeysAndOnlyByThoseWhoMayMintThem", func(t *testing.T) {
		c := w.owner("pro")
		viewer := c.colleague(store.RoleViewer)
		for range 60 {
			viewer.post("/v1/api-keys", map[string]any{"name": "k"}).want(403) // costs the owner nothing
		}
		for range 60 {
			c.post("/v1/api-keys", map[string]any{"name": "k"}).want(201)
		}
		c.post("/v1/api-keys", map[string]any{"name": "k"}).problem(probRateLimited)
		c.get("/v1/api-keys").want(200)
		w.owner("pro").post("/v1/api-keys", map[string]any{"name": "k"}).want(201)
	})
	t.Run("StrangersWithBadCredentials", func(t *testing.T) {
		used := anonymousLimit.count - 1 // what the tests before used does not matter
		for range used {
			if w.with("mst_live_wrong").get("/v1/me").status == 429 {
				break
			}
		}
		eventually(t, 10*time.Second, func() bool { return w.with("mst_live_wrong").get("/v1/me").status == 429 })
		w.owner("").get("/v1/me").want(200) // a good credential is not held against its address
	})
}

func TestAnAddressCannotBeForged(t *testing.T) {
	t.Parallel()
	register := func(w *world, h headers) *reply { return w.anonymous().post("/v1/auth/register", unreadable, h) }
	t.Run("RotatingHeadersOfAStrangerChangeNothing", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, strict)
		served := 0
		for i := range 30 {
			ip := fmt.Sprintf("203.0.113.%d", i)
			if register(w, headers{"X-Forwarded-For": ip, "X-Real-IP": ip, "Forwarded": "for=" + ip, "CF-Connecting-IP": ip, "True-Client-IP": ip}).status != 429 {
				served++
			}
		}
		if served != 10 {
			t.Errorf("%d of 30 registrations served, the limit is 10", served)
		}
	})
	t.Run("AConfiguredProxyIsBelievedAndOnlyItsOwnWord", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, func(cfg *Config) { strict(cfg); cfg.TrustedProxies = []string{"127.0.0.1/32"} })
		for i := range 12 {
			register(w, headers{"X-Forwarded-For": fmt.Sprintf("203.0.%d.9", i)}).want(400)
		}
		served := 0
		for i := range 30 { // the client's own line comes first, the proxy's word last
			if register(w, headers{"X-Forwarded-For": fmt.Sprintf("8.8.8.%d, 198.51.100.7", i)}).status != 429 {
				served++
			}
		}
		if served != 10 {
			t.Errorf("%d of 30 registrations served, the limit is 10", served)
		}
	})
	t.Run("AnIPv6CustomerIsA64AndTheirNetworkA48", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, func(cfg *Config) { strict(cfg); cfg.TrustedProxies = []string{"127.0.0.1/32"} })
		served := 0
		for i := range 30 {
			if register(w, headers{"X-Forwarded-For": fmt.Sprintf("2001:db8:1:1::%x", i+1)}).status != 429 {
				served++
			}
		}
		for i := range 60 {
			if register(w, headers{"X-Forwarded-For": fmt.Sprintf("2001:db8:1:%x::1", i+2)}).status != 429 {
				served++
			}
		}
		if served != 50 {
			t.Errorf("%d registrations served from one /48, its limit is 50 and a /64's 10", served)
		}
		register(w, headers{"X-Forwarded-For": "2001:db8:2::1"}).want(400)
	})
}

func TestAddressOf(t *testing.T) {
	t.Parallel()
	for ip, want := range map[string]string{"203.0.113.9": "203.0.113.9/32", "::ffff:203.0.113.9": "203.0.113.9/32", "2001:db8::1": "2001:db8::/64",
		"2001:db8:0:0:ffff::": "2001:db8::/64", "2001:db8:0:1::": "2001:db8:0:1::/64", "fe80::1%eth0": "fe80::/64", "": "unknown", "x": "unknown"} {
		if got := addressOf(ip, 32, 64); got != want {
			t.Errorf("%s: %s, want %s", ip, got, want)
		}
	}
}

func TestFailedSignInsAreDelayed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(cfg *Config) { cfg.TrustedProxies = []string{"127.0.0.1/32"} })
	login := func(email, password, ip string) *reply {
		return w.anonymous().post("/v1/auth/login", map[string]any{"email": email, "password": password}, headers{"X-Forwarded-For": ip})
	}
	const right, wrong = "correct horse battery", "wrong horse battery"
	w.anonymous().post("/v1/auth/register", registration("Victim@example.com"), headers{"X-Forwarded-For": "192.0.2.1"}).want(201)
	login("victim@example.com", right, "192.0.2.1").want(200)

	t.Run("KnownAndUnknownMailsAlike", func(t *testing.T) {
		for i, email := range []string{"victim@example.com", "nobody@example.com"} {
			ip := fmt.Sprintf("198.51.100.%d", i+1)
			var took time.Duration
			for range 4 {
				asked := time.Now()
				login(email, wrong, ip).problem(probUnauthorized)
				took = time.Since(asked)
			}
			slow := took > 200*time.Millisecond // the delay of a second might be over before the next is read; each further one doubles it
			for tries := 0; slow && tries < 6 && login(email, wrong, ip).status != 429; tries++ {
			}
			r := login(strings.ToUpper(email), right, ip).problem(probSignInDelayed) // not even the right one is looked at
			after := r.header.Get("Retry-After")
			if seconds, err := strconv.Atoi(after); err != nil || seconds < 1 || seconds > 1 && !slow {
				t.Errorf("%s: Retry-After %s", email, after)
			}
		}
	})
	t.Run("TheVictimStillGetsIn", func(t *testing.T) {
		for i := range 30 {
			login("victim@example.com", wrong, fmt.Sprintf("203.0.113.%d", i))
		}
		login("victim@example.com", right, "203.0.113.200").problem(probSignInDelayed) // from anywhere
		login("victim@example.com", right, "192.0.2.1").want(200)                      // from home
	})
	t.Run("ADelayEnds", func(t *testing.T) {
		w.anonymous().post("/v1/auth/register", registration("patient@example.com"), headers{"X-Forwarded-For": "192.0.2.9"}).want(201)
		for range 4 {
			login("patient@example.com", wrong, "192.0.2.77").problem(probUnauthorized)
		}
		login("patient@example.com", right, "192.0.2.77").problem(probSignInDelayed)
		eventually(t, 5*time.Second, func() bool { return login("patient@example.com", right, "192.0.2.77").status == 200 })
	})
	t.Run("AStolenSessionGuessesNoFaster", func(t *testing.T) {
		in := w.anonymous().post("/v1/auth/register", registration("stolen@example.com"), headers{"X-Forwarded-For": "192.0.2.20"}).want(201)
		thief := w.with(in.str("access_token"))
		for range 4 {
			thief.post("/v1/auth/password", map[string]any{"current_password": wrong, "new_password": "another horse battery"}, headers{"X-Forwarded-For": "198.51.100.66"}).problem(probInvalid)
		}
		thief.post("/v1/auth/password", map[string]any{"current_password": right, "new_password": "another horse battery"},
			headers{"X-Forwarded-For": "198.51.100.66"}).problem(probSignInDelayed)
		w.with(in.str("access_token")).post("/v1/auth/password", map[string]any{"current_password": right, "new_password": "another horse battery"},
			headers{"X-Forwarded-For": "192.0.2.20"}).want(204)
	})
}

func TestWithoutRedis(t *testing.T) {
	t.Parallel()
	own := storetest.OwnServers(t)
	rdb := own.Redis(t)
	w := newWorldOn(t, own.Env, func(cfg *Config) {
		limits, err := ratelimit.New(ratelimit.Config{Redis: rdb})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { limits.Close() })
		cfg.RateLimits = limits
		strict(cfg)
	})
	c := w.owner("")
	c.get("/v1/quota").want(200)
	if err := own.RedisServer.Kill(); err != nil {
		t.Fatal(err)
	}
	var slowest time.Duration
	for i := range 150 { // 100 are Free's hour
		began := time.Now()
		if i%2 == 0 {
			c.get("/v1/quota").want(200)
		} else {
			c.post("/v1/tasks", map[string]any{"prompt": "x"}).want(202)
		}
		slowest = max(slowest, time.Since(began))
	}
	t.Logf("150 reads and submits without Redis, the slowest took %s", slowest)
	if slowest > 2*time.Second {
		t.Errorf("an answer took %s", slowest)
	}
	if left, _, _ := limitsOf(t, c.get("/v1/quota").want(200)); left["workspace"] != 0 {
		t.Errorf("%v left", left)
	}
	w.anonymous().post("/v1/auth/register", registration("dark@example.com")).want(201)
	for range 9 {
		w.anonymous().post("/v1/auth/register", unreadable).want(400)
	}
	r := w.anonymous().post("/v1/auth/register", unreadable).problem(probUnavailable)
	if r.header.Get("Retry-After") == "" || r.header.Get(headerPolicy) == "" {
		t.Errorf("%v", r.header)
	}
	if err := own.RedisServer.Restart(context.Background()); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, func() bool { return c.get("/v1/quota").status == 429 }) // what was served meanwhile counts
}
