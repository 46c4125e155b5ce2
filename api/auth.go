package api

import (
	"context"
	"crypto/sha256"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

// Who may do what: a route asks for a role and a scope (routes.go). A session has all scopes of its member's role; an
// API key has its own scopes, as far as its role has them. Both are read from the ledger, through a cache of seconds.

// scopes lists every scope, in the order in which they are shown.
var scopes = []string{"tasks:read", "tasks:write", "agents:read", "agents:write", "usage:read", "billing:read", "billing:write",
	"members:read", "members:write", "keys:read", "keys:write", "webhooks:read", "webhooks:write"}

// roleRank orders the roles.
var roleRank = map[string]int{store.RoleViewer: 1, store.RoleMember: 2, store.RoleOwner: 3}

// roleScopes are the scopes of each role.
var roleScopes = map[string][]string{
	store.RoleOwner:  scopes,
	store.RoleMember: {"tasks:read", "tasks:write", "agents:read", "agents:write", "usage:read", "billing:read", "members:read", "keys:read", "keys:write", "webhooks:read", "webhooks:write"},
	store.RoleViewer: {"tasks:read", "agents:read", "usage:read", "members:read"},
}

// expandScopes writes out x:* and drops repeats, in the order of scopes; unknown ones are returned apart.
func expandScopes(asked []string) (expanded, unknown []string) {
	wanted := map[string]bool{}
	for _, a := range asked {
		found := false
		for _, s := range scopes {
			noun, _, _ := strings.Cut(s, ":")
			if a == s || a == noun+":*" {
				wanted[s], found = true, true
			}
		}
		if !found {
			unknown = append(unknown, a)
		}
	}
	for _, s := range scopes {
		if wanted[s] {
			expanded = append(expanded, s)
		}
	}
	return expanded, unknown
}

// identity is who sends a request and what they may do.
type identity struct {
	store.Identity
	scopes   []string // effective
	cacheKey [32]byte
}

func (id *identity) isSession() bool { return id.Session != uuid.Nil }

// actor names the sender for the audit log.
func (id *identity) actor() (kind, name string) {
	if id.isSession() {
		return store.ActorUser, store.FormatID(store.UserPrefix, id.User)
	}
	return store.ActorAPIKey, store.FormatID(store.KeyPrefix, id.Key)
}

// noCredential is the 401's detail when none was sent.
const noCredential = "send Authorization: Bearer <access token or API key>"

var errBadCredential = refuse(probUnauthorized, "the credential is malformed, unknown, expired or revoked")

// checkTimeout bounds the look-up of a credential.
const checkTimeout = 5 * time.Second

// authenticate finds out who sends the request.
func (s *Server) authenticate(c *gin.Context) (*identity, error) {
	headers := c.Request.Header.Values("Authorization")
	if len(headers) == 0 {
		return nil, refuse(probUnauthorized, noCredential)
	}
	scheme, credential, _ := strings.Cut(headers[0], " ")
	if len(headers) > 1 || !strings.EqualFold(scheme, "Bearer") || len(credential) > 4096 {
		return nil, errBadCredential
	}
	if queryHoldsCredential(c.Request) {
		return nil, refuse(probBadRequest, "a credential does not belong in a URL, where logs keep it; revoke it and send Authorization")
	}
	ctx, cancel := context.WithTimeout(c.Request.Context(), checkTimeout)
	defer cancel()
	if looksLikeKey(credential) {
		if !validKey(credential) {
			return nil, errBadCredential
		}
		hash := sha256.Sum256([]byte(credential))
		id, err := s.believe(ctx, hash, func(ctx context.Context) (store.Identity, error) {
			known, err := s.Store.CheckKey(ctx, hash[:])
			if known.Key != uuid.Nil && err != nil { // revoked or expired: somebody still has it
				s.refused(c, stranger{action: "api_key.refused", chain: known.Workspace, key: known.Key})
			}
			return known, err
		})
		if err == nil {
			s.backstage.used(id.Identity, s.Now())
		}
		return id, err
	}
	ws, user, session, ok := s.tokens.verify(credential)
	if !ok {
		return nil, errBadCredential
	}
	key := sha256.Sum256(slices.Concat(ws[:], user[:], session[:]))
	return s.believe(ctx, key, func(ctx context.Context) (store.Identity, error) { return s.Store.CheckSession(ctx, ws, user, session) })
}

// believe asks the ledger about a credential unless it did so a moment ago.
func (s *Server) believe(ctx context.Context, key [32]byte, check func(context.Context) (store.Identity, error)) (*identity, error) {
	id, err := s.believed.get(ctx, key, func(ctx context.Context) (identity, error) {
		checked, err := check(ctx)
		if err != nil {
			return identity{}, err
		}
		id := identity{Identity: checked, scopes: roleScopes[checked.Role], cacheKey: key}
		if checked.Scopes != nil {
			id.scopes = nil
			for _, scope := range roleScopes[checked.Role] {
				if slices.Contains(checked.Scopes, scope) {
					id.scopes = append(id.scopes, scope)
				}
			}
		}
		return id, nil
	})
	if store.KindOf(err) == store.Unauthorized {
		return nil, errBadCredential
	}
	if err != nil {
		return nil, err
	}
	return &id, nil
}

// authorize refuses what the route asks for and the identity lacks.
func authorize(r *route, id *identity) error {
	if r.session && !id.isSession() {
		return &apiError{problem: probForbidden, detail: "this needs an access token; an API key has no session"}
	}
	if roleRank[id.Role] < roleRank[r.role] {
		return &apiError{problem: probForbidden, detail: "this needs the role " + r.role + "; you have " + id.Role}
	}
	if r.scope != "" && !slices.Contains(id.scopes, r.scope) {
		return lacksScope(r.scope)
	}
	if held := func(scope string) bool { return slices.Contains(id.scopes, scope) }; len(r.fieldScopes) > 0 && !slices.ContainsFunc(r.anyScope(), held) {
		return lacksScope(strings.Join(r.anyScope(), " or "))
	}
	return nil
}

// mayChange refuses a field of the body whose scope the credential lacks.
func (q *request) mayChange(field string) error {
	if scope := q.route.fieldScopes[field]; !slices.Contains(q.id.scopes, scope) {
		return lacksScope(scope)
	}
	return nil
}

func lacksScope(scope string) *apiError {
	return &apiError{problem: probForbidden, detail: "this needs the scope " + scope, scope: scope}
}

// queryHoldsCredential: somebody put a key or a token into the URL.
func queryHoldsCredential(r *http.Request) bool {
	if r.URL.RawQuery == "" {
		return false
	}
	for name, values := range r.URL.Query() {
		switch strings.ToLower(name) {
		case "access_token", "api_key", "apikey", "authorization", "refresh_token":
			return true
		}
		for _, v := range values {
			if strings.HasPrefix(v, "mst_") { // how all our secrets begin
				return true
			}
		}
	}
	return false
}
