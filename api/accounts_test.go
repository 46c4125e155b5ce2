package api

import (
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/generic-corp/muster/store"
)

func registration(email string) map[string]any {
	return map[string]any{"email": email, "password": "correct horse battery", "workspace_name": "Acme"}
}

func TestAccounts(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	nobody := w.anonymous()
	first := nobody.post("/v1/auth/register", registration("Ada@Example.com")).want(201)

	t.Run("RegisteringMakesAnOwnerOfAFreeWorkspace", func(t *testing.T) {
		me := w.with(first.str("access_token")).get("/v1/me").want(200)
		if me.str("user.email") != "ada@example.com" || me.str("role") != "owner" || me.str("workspace.plan") != "free" || me.str("workspace.name") != "Acme" {
			t.Errorf("me: %s", me.body)
		}
		if len(me.list("scopes")) != len(scopes) {
			t.Errorf("an owner has all scopes, got %s", me.body)
		}
		if me.num("workspace.limits.concurrency") != 1 || me.num("workspace.limits.agent_ms") != 60_000_000 {
			t.Errorf("limits: %s", me.body)
		}
	})
	t.Run("ARegisteredMailIsAConflictInAnyCase", func(t *testing.T) {
		nobody.post("/v1/auth/register", registration("ADA@example.COM")).problem(probConflict)
	})
	t.Run("LoginOpensASessionOfTheSameUser", func(t *testing.T) {
		in := nobody.post("/v1/auth/login", map[string]any{"email": "ada@EXAMPLE.com", "password": "correct horse battery"}).want(200)
		if in.str("user.id") != first.str("user.id") || in.str("workspace.id") != first.str("workspace.id") {
			t.Errorf("login: %s", in.body)
		}
		if in.header.Get("Cache-Control") != "no-store" {
			t.Error("an answer with credentials may be cached")
		}
	})
	t.Run("UnknownUserAndWrongPasswordLookAlike", func(t *testing.T) {
		wrong := nobody.post("/v1/auth/login", map[string]any{"email": "ada@example.com", "password": "wrong horse battery"}).problem(probUnauthorized)
		unknown := nobody.post("/v1/auth/login", map[string]any{"email": "eve@example.com", "password": "wrong horse battery"}).problem(probUnauthorized)
		if wrong.str("detail") != unknown.str("detail") || wrong.header.Get("WWW-Authenticate") != unknown.header.Get("WWW-Authenticate") {
			t.Errorf("%s\n%s", wrong.body, unknown.body)
		}
	})
	t.Run("LoginPicksAmongTheUsersOwnWorkspaces", func(t *testing.T) {
		login := func(ws string) *reply {
			return nobody.post("/v1/auth/login", map[string]any{"email": "ada@example.com", "password": "correct horse battery", "workspace_id": ws})
		}
		other := w.owner("")
		foreign := login(store.FormatID(store.WorkspacePrefix, other.ws)).problem(probNotFound)
		unknown := login(store.FormatID(store.WorkspacePrefix, store.NewID())).problem(probNotFound)
		if foreign.str("detail") != unknown.str("detail") {
			t.Errorf("%s\n%s", foreign.body, unknown.body)
		}
		user, _ := store.ParseID(store.UserPrefix, first.str("user.id"))
		w.exec(`INSERT INTO members (workspace_id, user_id, role) VALUES ($1, $2, 'viewer')`, other.ws, user)
		in := login(store.FormatID(store.WorkspacePrefix, other.ws)).want(200)
		me := w.with(in.str("access_token")).get("/v1/me").want(200)
		if me.str("role") != "viewer" || me.str("workspace.id") != store.FormatID(store.WorkspacePrefix, other.ws) {
			t.Errorf("me: %s", me.body)
		}
		if again := nobody.post("/v1/auth/login", map[string]any{"email": "ada@example.com", "password": "correct horse battery"}).want(200); again.str("workspace.id") != first.str("workspace.id") {
			t.Errorf("without a choice it must be the oldest: %s", again.body)
		}
	})
	t.Run("EachSignInStandsInTheAuditLog", func(t *testing.T) {
		user := first.str("user.id")
		if n := w.count(`SELECT count(*) FROM audit_log WHERE actor_id = $1 AND action = 'account.register' AND ip = '127.0.0.1' AND request_id <> ''`, user); n != 1 {
			t.Errorf("%d entries of registering", n)
		}
		if n := w.count(`SELECT count(*) FROM audit_log WHERE actor_id = $1 AND action = 'session.login'`, user); n < 2 {
			t.Errorf("%d entries of logging in", n)
		}
	})
}

func TestRegistrationRefusesWhatItCannotKeep(t *testing.T) {
	t.Parallel()
	nobody := newWorld(t, nil).anonymous()
	for name, c := range map[string]struct {
		change map[string]any
		fields string
	}{
		"NoAt":            {map[string]any{"email": "ada"}, "email"},
		"DisplayName":     {map[string]any{"email": "Ada <ada@example.com>"}, "email"},
		"NotASCII":        {map[string]any{"email": "ädä@example.com"}, "email"},
		"TooLongMail":     {map[string]any{"email": strings.Repeat("a", 250) + "@example.com"}, "email"},
		"ShortPassword":   {map[string]any{"password": "short12"}, "password"},
		"CommonPassword":  {map[string]any{"password": "Password123"}, "password"},
		"OneCharacter":    {map[string]any{"password": "zzzzzzzzzzzz"}, "password"},
		"MailAsPassword":  {map[string]any{"password": "new@example.com"}, "password"},
		"LongPassword":    {map[string]any{"password": strings.Repeat("long", 300)}, "password"},
		"ManyBytes":       {map[string]any{"password": strings.Repeat("密", 400)}, "password"},
		"BlankName":       {map[string]any{"workspace_name": "   "}, "workspace_name"},
		"LongName":        {map[string]any{"workspace_name": strings.Repeat("n", 101)}, "workspace_name"},
		"AllAtOnce":       {map[string]any{"email": "x", "password": nil, "workspace_name": 7}, "email password workspace_name"},
		"WhatItMayNotSet": {map[string]any{"plan": "pro", "role": "owner"}, "plan role"},
	} {
		t.Run(name, func(t *testing.T) {
			body := registration("new@example.com")
			for k, v := range c.change {
				body[k] = v
			}
			if got := strings.Join(nobody.post("/v1/auth/register", body).problem(probInvalid).fields(), " "); got != c.fields {
				t.Errorf("fields %q, want %q", got, c.fields)
			}
		})
	}
	t.Run("AMegabyteOfPasswordIsRefusedFast", func(t *testing.T) {
		body := registration("new@example.com")
		body["password"] = strings.Repeat("x1", 450_000)
		start := time.Now()
		nobody.post("/v1/auth/register", body).problem(probInvalid)
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("took %v", d)
		}
	})
	t.Run("SixtyFourCharactersOfAnyScriptWork", func(t *testing.T) {
		body := registration("chi@example.com")
		password := strings.Repeat("密码正确马电池钉", 8)
		body["password"] = password
		nobody.post("/v1/auth/register", body).want(201)
		nobody.post("/v1/auth/login", map[string]any{"email": "chi@example.com", "password": password}).want(200)
		nobody.post("/v1/auth/login", map[string]any{"email": "chi@example.com", "password": password[:len(password)-len("钉")]}).problem(probUnauthorized)
	})
	t.Run("ComposedAndDecomposedCharactersAreTheSame", func(t *testing.T) {
		body := registration("nfc@example.com")
		body["password"] = "café crème brûlée"
		nobody.post("/v1/auth/register", body).want(201)
		nobody.post("/v1/auth/login", map[string]any{"email": "nfc@example.com", "password": "cafe\u0301 cre\u0300me bru\u0302le\u0301e"}).want(200)
	})
}

func TestRefreshTokens(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	nobody := w.anonymous()
	refresh := func(token string) *reply {
		return nobody.post("/v1/auth/refresh", map[string]any{"refresh_token": token})
	}

	t.Run("ARefreshTokenWorksOnceAndItsReuseRevokesTheFamily", func(t *testing.T) {
		first := nobody.post("/v1/auth/register", registration("once@example.com")).want(201)
		second := refresh(first.str("refresh_token")).want(200)
		third := refresh(second.str("refresh_token")).want(200)
		w.with(third.str("access_token")).get("/v1/me").want(200)

		refresh(second.str("refresh_token")).problem(probUnauthorized)
		refresh(third.str("refresh_token")).problem(probUnauthorized) // never used, but of the same family
		eventually(t, 5*time.Second, func() bool { return w.with(third.str("access_token")).get("/v1/me").status == 401 })
		if n := w.count(`SELECT count(*) FROM audit_log WHERE action = 'session.reuse_detected' AND actor_id = $1`, first.str("user.id")); n != 1 {
			t.Errorf("%d entries of the reuse", n)
		}
		nobody.post("/v1/auth/login", map[string]any{"email": "once@example.com", "password": "correct horse battery"}).want(200)
	})
	t.Run("OfTwentyRefreshesAtOnceAtMostOneWins", func(t *testing.T) {
		first := nobody.post("/v1/auth/register", registration("race@example.com")).want(201)
		statuses := make(chan int, 20)
		var wg sync.WaitGroup
		for range cap(statuses) {
			wg.Go(func() { statuses <- refresh(first.str("refresh_token")).status })
		}
		wg.Wait()
		close(statuses)
		won := 0
		for s := range statuses {
			switch s {
			case 200:
				won++
			case 401:
			default:
				t.Errorf("status %d", s)
			}
		}
		if won != 1 {
			t.Errorf("%d won", won)
		}
	})
	t.Run("AnExpiredSessionIsNotRefreshed", func(t *testing.T) {
		first := nobody.post("/v1/auth/register", registration("late@example.com")).want(201)
		w.exec(`UPDATE sessions SET expires_at = now() - interval '1 second' WHERE user_id = (SELECT id FROM users WHERE email = 'late@example.com')`)
		refresh(first.str("refresh_token")).problem(probUnauthorized)
	})
	t.Run("ARemovedMemberIsNotRefreshed", func(t *testing.T) {
		first := nobody.post("/v1/auth/register", registration("gone@example.com")).want(201)
		w.exec(`DELETE FROM members WHERE user_id = (SELECT id FROM users WHERE email = 'gone@example.com')`)
		refresh(first.str("refresh_token")).problem(probUnauthorized)
	})
	t.Run("NeitherTokenPassesForTheOther", func(t *testing.T) {
		first := nobody.post("/v1/auth/register", registration("mix@example.com")).want(201)
		refresh(first.str("access_token")).want(422) // far too long for one
		refresh("mst_rt_" + strings.Repeat("A", 43)).problem(probUnauthorized)
		w.with(first.str("refresh_token")).get("/v1/me").problem(probUnauthorized)
		refresh(first.str("refresh_token")).want(200)
	})
	t.Run("LogoutRevokesAtOnce", func(t *testing.T) {
		first := nobody.post("/v1/auth/register", registration("out@example.com")).want(201)
		me := w.with(first.str("access_token"))
		me.get("/v1/me").want(200)
		me.post("/v1/auth/logout", nil).want(204)
		me.get("/v1/me").problem(probUnauthorized)
		refresh(first.str("refresh_token")).problem(probUnauthorized)
	})
	t.Run("SecretsAreStoredAsHashes", func(t *testing.T) {
		first := nobody.post("/v1/auth/register", registration("hash@example.com")).want(201)
		if n := w.count(`SELECT count(*) FROM refresh_tokens WHERE token_hash = $1`, hashSecret(first.str("refresh_token"))); n != 1 {
			t.Errorf("%d rows", n)
		}
		if n := w.count(`SELECT count(*) FROM users WHERE email = 'hash@example.com' AND password_hash LIKE '$argon2id$v=19$m=19456,t=2,p=1$%'`); n != 1 {
			t.Errorf("%d rows", n)
		}
	})
}

func TestAccessTokens(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	owner := w.owner("")
	sign := func(method jwt.SigningMethod, key any, change func(header map[string]any, c *claims)) string {
		now := time.Now()
		c := claims{RegisteredClaims: jwt.RegisteredClaims{Issuer: tokenIssuer, Audience: jwt.ClaimStrings{tokenAudience},
			Subject: store.FormatID(store.UserPrefix, owner.user), NotBefore: jwt.NewNumericDate(now.Add(-time.Minute)), ExpiresAt: jwt.NewNumericDate(now.Add(time.Minute))},
			Workspace: store.FormatID(store.WorkspacePrefix, owner.ws), Session: store.FormatID(store.SessionPrefix, owner.session)}
		token := jwt.NewWithClaims(method, nil)
		token.Header["kid"], token.Header["typ"] = w.api.tokens.current, tokenType
		if change != nil {
			change(token.Header, &c)
		}
		token.Claims = c
		text, err := token.SignedString(key)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	hs := jwt.SigningMethodHS256
	other := w.owner("")
	for name, c := range map[string]struct {
		token string
		good  bool
	}{
		"AsIssued":        {owner.credential, true},
		"SignedByHand":    {sign(hs, testKeys[0], nil), true},
		"AnEarlierKey":    {sign(hs, testKeys[1], func(h map[string]any, _ *claims) { h["kid"] = keyID(t, testKeys[1]) }), true},
		"WrongKey":        {sign(hs, []byte("some other key of at least 32 bytes"), nil), false},
		"UnknownKeyID":    {sign(hs, testKeys[0], func(h map[string]any, _ *claims) { h["kid"] = "nope" }), false},
		"NoKeyID":         {sign(hs, testKeys[0], func(h map[string]any, _ *claims) { delete(h, "kid") }), false},
		"HS512":           {sign(jwt.SigningMethodHS512, testKeys[0], nil), false},
		"AlgorithmNone":   {sign(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, nil), false},
		"AnotherType":     {sign(hs, testKeys[0], func(h map[string]any, _ *claims) { h["typ"] = "JWT" }), false},
		"Expired":         {sign(hs, testKeys[0], func(_ map[string]any, c *claims) { c.ExpiresAt = jwt.NewNumericDate(time.Now().Add(-time.Second)) }), false},
		"NoExpiry":        {sign(hs, testKeys[0], func(_ map[string]any, c *claims) { c.ExpiresAt = nil }), false},
		"NotYet":          {sign(hs, testKeys[0], func(_ map[string]any, c *claims) { c.NotBefore = jwt.NewNumericDate(time.Now().Add(time.Minute)) }), false},
		"NoNotBefore":     {sign(hs, testKeys[0], func(_ map[string]any, c *claims) { c.NotBefore = nil }), false},
		"AnotherIssuer":   {sign(hs, testKeys[0], func(_ map[string]any, c *claims) { c.Issuer = "x" }), false},
		"AnotherAudience": {sign(hs, testKeys[0], func(_ map[string]any, c *claims) { c.Audience = jwt.ClaimStrings{"x"} }), false},
		"UnknownSession":  {sign(hs, testKeys[0], func(_ map[string]any, c *claims) { c.Session = store.FormatID(store.SessionPrefix, store.NewID()) }), false},
		"AnothersSession": {sign(hs, testKeys[0], func(_ map[string]any, c *claims) { c.Session = store.FormatID(store.SessionPrefix, other.session) }), false},
		"AnothersWorkspace": {sign(hs, testKeys[0], func(_ map[string]any, c *claims) {
			c.Workspace = store.FormatID(store.WorkspacePrefix, other.ws)
		}), false},
		"AnotherUser": {sign(hs, testKeys[0], func(_ map[string]any, c *claims) { c.Subject = store.FormatID(store.UserPrefix, other.user) }), false},
		"Garbage":     {"a.b.c", false},
		"Huge":        {strings.Repeat("a", 5000), false},
	} {
		t.Run(name, func(t *testing.T) {
			r := w.with(c.token).get("/v1/me")
			if c.good {
				r.want(200)
			} else {
				r.problem(probUnauthorized)
			}
		})
	}
	t.Run("NoCredentialIsToldWhatToSend", func(t *testing.T) {
		if r := w.anonymous().get("/v1/me").problem(probUnauthorized); strings.Contains(r.header.Get("WWW-Authenticate"), "error") {
			t.Errorf("challenge %q", r.header.Get("WWW-Authenticate"))
		}
		w.anonymous().get("/v1/me", headers{"Authorization": "Basic dXNlcjpwYXNz"}).problem(probUnauthorized)
		w.anonymous().get("/v1/me", headers{"Authorization": "bearer " + owner.credential}).want(200)
	})
	t.Run("AChangedRoleAndARemovedMemberTakeEffectWithinFiveSeconds", func(t *testing.T) {
		member := owner.colleague(store.RoleMember)
		if r := member.get("/v1/me").want(200); r.str("role") != "member" {
			t.Fatalf("%s", r.body)
		}
		w.exec(`UPDATE members SET role = 'viewer' WHERE user_id = $1`, member.user)
		eventually(t, 5*time.Second, func() bool { return member.get("/v1/me").want(200).str("role") == "viewer" })
		w.exec(`DELETE FROM members WHERE user_id = $1`, member.user)
		eventually(t, 5*time.Second, func() bool { return member.get("/v1/me").status == http.StatusUnauthorized })
	})
}

func keyID(t *testing.T, key []byte) string {
	t.Helper()
	tokens, err := newTokens([][]byte{key}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	return tokens.current
}

// eventually waits for a condition that must come true within a stated time.
func eventually(t *testing.T, within time.Duration, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !holds(); {
		if time.Now().After(end) {
			t.Fatalf("not within %v", within)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestWorkspace(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	owner := w.owner("growth")
	t.Run("ItShowsPlanAndLimits", func(t *testing.T) {
		r := owner.get("/v1/workspace").want(200)
		if r.str("plan") != "growth" || r.num("limits.concurrency") != 5 || r.num("limits.max_users") != 20 || r.str("status") != "active" {
			t.Errorf("%s", r.body)
		}
	})
	t.Run("AnOwnerRenamesItAndTheChangeIsAudited", func(t *testing.T) {
		owner.do("PATCH", "/v1/workspace", map[string]any{"name": "  Renamed "}).want(200)
		if r := owner.get("/v1/workspace").want(200); r.str("name") != "Renamed" {
			t.Errorf("%s", r.body)
		}
		if n := w.count(`SELECT count(*) FROM audit_log WHERE workspace_id = $1 AND action = 'workspace.update' AND details->'changed' ? 'name'`, owner.ws); n != 1 {
			t.Errorf("%d entries", n)
		}
	})
	t.Run("WhatTheServerOwnsCannotBeSet", func(t *testing.T) {
		r := owner.do("PATCH", "/v1/workspace", map[string]any{"name": "x", "plan": "pro", "limits": map[string]any{"concurrency": 99}}).problem(probInvalid)
		if got := strings.Join(r.fields(), " "); got != "limits plan" {
			t.Errorf("fields %q", got)
		}
	})
	t.Run("APausedOneSaysSo", func(t *testing.T) {
		paused := w.owner("")
		if err := store.NewSystem(w.env.System(t)).Pause(t.Context(), paused.ws, store.Operator{Name: "test"}); err != nil {
			t.Fatal(err)
		}
		if r := paused.get("/v1/workspace").want(200); r.str("status") != "paused" {
			t.Errorf("%s", r.body)
		}
	})
	t.Run("ProHasNoLimitOfUsers", func(t *testing.T) {
		if r := w.owner("pro").get("/v1/workspace").want(200); r.at("limits.max_users") != nil {
			t.Errorf("%s", r.body)
		}
	})
}
