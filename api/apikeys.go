package api

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

type newKeyBody struct {
	Name      string     `json:"name" required:"true" minLength:"1" maxLength:"100"`
	Role      string     `json:"role" enum:"owner,member,viewer" description:"At most the sender's; member, or the sender's when that is less."`
	Scopes    []string   `json:"scopes" minItems:"1" maxItems:"30" items.maxLength:"32" description:"Among the role's; noun:* stands for all of a noun. All of the role's that the sender has, when absent."`
	ExpiresAt *time.Time `json:"expires_at" description:"In the future; never, when absent."`
}

type apiKeyJSON struct {
	ID         string     `json:"id"`
	Name       string     `json:"name"`
	Prefix     string     `json:"prefix" description:"How the key begins."`
	Role       string     `json:"role" enum:"owner,member,viewer"`
	Scopes     []string   `json:"scopes"`
	CreatedBy  *string    `json:"created_by" description:"The user; null when another key made it."`
	CreatedAt  time.Time  `json:"created_at"`
	ExpiresAt  *time.Time `json:"expires_at"`
	LastUsedAt *time.Time `json:"last_used_at" description:"Written in batches: some seconds late."`
}

type newKeyJSON struct {
	apiKeyJSON
	Key string `json:"key" description:"The secret; it is shown this once."`
}

func apiKeyOf(k store.APIKey) apiKeyJSON {
	j := apiKeyJSON{ID: store.FormatID(store.KeyPrefix, k.ID), Name: k.Name, Prefix: k.Prefix, Role: k.Role, Scopes: k.Scopes,
		CreatedAt: k.CreatedAt.UTC(), ExpiresAt: utc(k.ExpiresAt), LastUsedAt: utc(k.LastUsedAt)}
	if k.CreatedBy.Valid {
		by := store.FormatID(store.UserPrefix, k.CreatedBy.UUID)
		j.CreatedBy = &by
	}
	return j
}

func utc(t *time.Time) *time.Time {
	if t == nil {
		return nil
	}
	at := t.UTC()
	return &at
}

// createKey mints a key with at most the rights of whoever asks for it.
func (s *Server) createKey(q *request) (answer, error) {
	body, err := bind(q, func(b *newKeyBody, f *faults) {
		if b.Name = strings.TrimSpace(b.Name); b.Name == "" {
			f.wrong("name", "must not be empty")
		}
		if b.ExpiresAt != nil && !b.ExpiresAt.After(s.Now()) {
			f.wrong("expires_at", "must be in the future")
		}
		if b.Role == "" {
			b.Role = store.RoleMember
		}
		expanded, unknown := expandScopes(b.Scopes)
		if len(unknown) > 0 {
			f.wrong("scopes", "no scope is called %s; there are %s", clip(unknown[0]), strings.Join(scopes, ", "))
		}
		if beyond := missing(expanded, roleScopes[b.Role]); beyond != "" {
			f.wrong("scopes", "the role %s does not have %s", b.Role, beyond)
		}
		b.Scopes = expanded
	})
	if err != nil {
		return answer{}, err
	}
	if roleRank[body.Role] > roleRank[q.id.Role] {
		return answer{}, refuse(probForbidden, "a key's role is at most the sender's, "+q.id.Role)
	}
	if beyond := missing(body.Scopes, q.id.scopes); beyond != "" {
		return answer{}, refuse(probForbidden, "a key's scopes are at most the sender's, who lacks "+beyond)
	}
	if len(body.Scopes) == 0 {
		for _, scope := range roleScopes[body.Role] {
			if slices.Contains(q.id.scopes, scope) {
				body.Scopes = append(body.Scopes, scope)
			}
		}
	}
	key := newAPIKey()
	return s.work(q, false, func(w *store.Work) (answer, error) {
		if err := w.Confirm(q.ctx, q.id.Identity); err != nil {
			return answer{}, err
		}
		made, err := w.CreateKey(q.ctx, store.NewAPIKey{Name: body.Name, Prefix: key[:keyShownPrefix], Hash: hashSecret(key), Role: body.Role,
			Scopes: body.Scopes, CreatedBy: q.id.user(), Origin: q.id.person(), ExpiresAt: body.ExpiresAt})
		if err != nil {
			return answer{}, err
		}
		shown := newKeyJSON{apiKeyJSON: apiKeyOf(made), Key: key}
		return answer{status: http.StatusCreated, body: shown},
			q.audit(w, "api_key.create", shown.ID, map[string]any{"role": made.Role, "scopes": []string(made.Scopes)})
	})
}

type rotateKeyBody struct {
	OverlapSeconds int `json:"overlap_seconds" minimum:"0" maximum:"86400" description:"How long the old key goes on working; 0 when absent: it ends at once."`
}

// rotateKey gives a key's rights to a new secret. Whoever asks must have these rights: the answer holds them.
func (s *Server) rotateKey(q *request) (answer, error) {
	body, err := bind[rotateKeyBody](q, nil)
	if err != nil {
		return answer{}, err
	}
	id, err := q.pathID(store.KeyPrefix, "API key")
	if err != nil {
		return answer{}, err
	}
	secret := newAPIKey()
	a, err := s.work(q, false, func(w *store.Work) (answer, error) {
		if err := w.Confirm(q.ctx, q.id.Identity); err != nil {
			return answer{}, err
		}
		old, err := w.Key(q.ctx, id)
		if err != nil {
			return answer{}, err
		}
		if roleRank[old.Role] > roleRank[q.id.Role] {
			return answer{}, refuse(probForbidden, "the key's role is more than yours")
		}
		if beyond := missing(old.Scopes, q.id.scopes); beyond != "" {
			return answer{}, refuse(probForbidden, "the key has the scope "+beyond+", which you lack")
		}
		// The new key goes back to whoever learns it now, not to the old one's person, who does not.
		made, err := w.ReplaceKey(q.ctx, old, store.NewAPIKey{Name: old.Name, Prefix: secret[:keyShownPrefix], Hash: hashSecret(secret), Role: old.Role,
			Scopes: old.Scopes, CreatedBy: q.id.user(), Origin: q.id.person(), ExpiresAt: old.ExpiresAt}, time.Duration(body.OverlapSeconds)*time.Second)
		if err != nil {
			return answer{}, err
		}
		shown := newKeyJSON{apiKeyJSON: apiKeyOf(made), Key: secret}
		return answer{status: http.StatusCreated, body: shown}, q.audit(w, "api_key.rotate", store.FormatID(store.KeyPrefix, id),
			map[string]any{"name": old.Name, "new_key": shown.ID, "overlap_seconds": body.OverlapSeconds})
	})
	if err == nil {
		s.believed.forgetAll(func(known identity) bool { return known.Key == id })
	}
	return a, err
}

// missing is the first of wanted that is not among held, "" when all are.
func missing(wanted, held []string) string {
	for _, w := range wanted {
		if !slices.Contains(held, w) {
			return w
		}
	}
	return ""
}

func (s *Server) listKeys(q *request) (answer, error) {
	p, err := params[pageParams](q, nil)
	if err != nil {
		return answer{}, err
	}
	return listPage(s, q, "api-keys", p, func(before uuid.UUID, n int) ([]store.APIKey, error) {
		return s.Store.Keys(q.ctx, q.id.Workspace, before, n)
	}, func(k store.APIKey) uuid.UUID { return k.ID }, apiKeyOf)
}

// deleteKey revokes a key. Whoever has a smaller role than the key may not.
func (s *Server) deleteKey(q *request) (answer, error) {
	id, err := q.bareID(store.KeyPrefix, "API key")
	if err != nil {
		return answer{}, err
	}
	a, err := s.work(q, true, func(w *store.Work) (answer, error) {
		key, err := w.Key(q.ctx, id)
		if err != nil {
			return answer{}, err
		}
		if roleRank[key.Role] > roleRank[q.id.Role] {
			return answer{}, refuse(probForbidden, "the key's role is more than yours")
		}
		if err := w.RevokeKey(q.ctx, id); err != nil {
			return answer{}, err
		}
		return answer{status: http.StatusNoContent}, q.audit(w, "api_key.delete", store.FormatID(store.KeyPrefix, id), map[string]any{"role": key.Role})
	})
	if err == nil {
		s.believed.forgetAll(func(known identity) bool { return known.Key == id })
	}
	return a, err
}
