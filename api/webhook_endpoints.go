package api

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/api/outbound"
	"github.com/generic-corp/muster/api/webhooks"
	"github.com/generic-corp/muster/store"
)

// Webhooks is what the routes of customers' endpoints need beside the ledger.
type Webhooks struct {
	Keys  webhooks.Keys  // seal the endpoints' secrets; without one the routes that make secrets answer 503
	Rules outbound.Rules // where endpoints may be
}

type newWebhookBody struct {
	URL         string   `json:"url" required:"true" minLength:"1" maxLength:"2048" description:"https, a public address, port 443 or 8443."`
	Events      []string `json:"events" minItems:"1" maxItems:"10" items.enum:"task.succeeded,task.failed,task.canceled,quota.notice" description:"The three of tasks, when absent."`
	Description string   `json:"description" maxLength:"200"`
}

type patchWebhookBody struct {
	URL         *string  `json:"url" minLength:"1" maxLength:"2048" nullable:"false"`
	Events      []string `json:"events" minItems:"1" maxItems:"10" items.enum:"task.succeeded,task.failed,task.canceled,quota.notice" nullable:"false"`
	Description *string  `json:"description" maxLength:"200" nullable:"true" description:"null: none."`
	Enabled     *bool    `json:"enabled" nullable:"false" description:"While false nothing is recorded for it, and what waits is given up."`
}

type webhookJSON struct {
	ID           string     `json:"id"`
	URL          string     `json:"url"`
	Events       []string   `json:"events"`
	Description  string     `json:"description"`
	Enabled      bool       `json:"enabled"`
	DisabledWhy  *string    `json:"disabled_why" description:"customer, operator, gone (it answered 410) or failing (nothing arrived there for three days); null while enabled."`
	DisabledAt   *time.Time `json:"disabled_at"`
	FailingSince *time.Time `json:"failing_since" description:"Since when every attempt has failed; null when the last one arrived."`
	CreatedBy    string     `json:"created_by" description:"A user (usr_...) or an API key (key_...)."`
	CreatedAt    time.Time  `json:"created_at"`
	UpdatedAt    time.Time  `json:"updated_at"`
}

type newWebhookJSON struct {
	webhookJSON
	Secret string `json:"secret" description:"Signs what is sent, as Standard Webhooks; it is shown this once."`
}

func webhookOf(h store.Webhook) webhookJSON {
	return webhookJSON{ID: store.FormatID(store.WebhookPrefix, h.ID), URL: h.URL, Events: h.Events, Description: h.Description, Enabled: h.Enabled,
		DisabledWhy: h.DisabledWhy, DisabledAt: utc(h.DisabledAt), FailingSince: utc(h.FailingSince), CreatedBy: h.CreatedBy,
		CreatedAt: h.CreatedAt.UTC(), UpdatedAt: h.UpdatedAt.UTC()}
}

// taskEvents are what an endpoint is told of that asks for nothing in particular.
var taskEvents = []string{store.EventTaskSucceeded, store.EventTaskFailed, store.EventTaskCanceled}

// checkURL replaces a URL by how it is kept.
func (s *Server) checkURL(url *string, f *faults) {
	kept, err := s.Webhooks.Rules.CheckURL(*url)
	if err != nil {
		f.wrong("url", "%s", err)
		return
	}
	*url = kept
}

// mayBeTold refuses senders to whom the events would tell what they may not read.
func mayBeTold(q *request, events []string) error {
	for _, event := range events {
		scope := "tasks:read"
		if event == store.EventQuotaNotice {
			scope = "usage:read"
		}
		if !slices.Contains(q.id.scopes, scope) {
			return refuse(probForbidden, "to be told of "+event+" takes the scope "+scope+", which you lack")
		}
	}
	return nil
}

// mayMakeSecrets refuses while there is nothing to seal them with.
func (s *Server) mayMakeSecrets() error {
	if !s.Webhooks.Keys.Ready() {
		return refuse(probUnavailable, "webhooks are not configured on this server")
	}
	return nil
}

// distinct sorts out events that stand twice.
func distinct(events []string) []string { return slices.Compact(slices.Sorted(slices.Values(events))) }

func (s *Server) createWebhook(q *request) (answer, error) {
	body, err := bind(q, func(b *newWebhookBody, f *faults) {
		s.checkURL(&b.URL, f)
		if b.Events = distinct(b.Events); len(b.Events) == 0 {
			b.Events = taskEvents
		}
	})
	if err != nil {
		return answer{}, err
	}
	if err := mayBeTold(q, body.Events); err != nil {
		return answer{}, err
	}
	if err := s.mayMakeSecrets(); err != nil {
		return answer{}, err
	}
	_, by := q.id.actor()
	return s.work(q, false, func(w *store.Work) (answer, error) {
		if err := w.Confirm(q.ctx, q.id.Identity); err != nil {
			return answer{}, err
		}
		id, secret := store.NewID(), webhooks.NewSecret()
		made, err := w.CreateWebhook(q.ctx, store.NewWebhook{ID: id, URL: body.URL, Events: body.Events, Description: strings.TrimSpace(body.Description),
			Sealed: s.Webhooks.Keys.Seal(secret, q.id.Workspace, id), CreatedBy: by})
		if err != nil {
			return answer{}, err
		}
		shown := newWebhookJSON{webhookJSON: webhookOf(made), Secret: secret}
		return answer{status: http.StatusCreated, body: shown}, q.audit(w, "webhook.create", shown.ID, map[string]any{"host": hostOf(made.URL), "events": body.Events})
	})
}

func (s *Server) listWebhooks(q *request) (answer, error) {
	p, err := params[pageParams](q, nil)
	if err != nil {
		return answer{}, err
	}
	return listPage(s, q, "webhooks", p, func(before uuid.UUID, n int) ([]store.Webhook, error) {
		return s.Store.Webhooks(q.ctx, q.id.Workspace, before, n)
	}, func(h store.Webhook) uuid.UUID { return h.ID }, webhookOf)
}

func (s *Server) getWebhook(q *request) (answer, error) {
	id, err := q.pathID(store.WebhookPrefix, "webhook")
	if err != nil {
		return answer{}, err
	}
	hook, err := s.Store.Webhook(q.ctx, q.id.Workspace, id)
	if err != nil {
		return answer{}, err
	}
	return answer{status: http.StatusOK, body: webhookOf(hook)}, nil
}

func (s *Server) patchWebhook(q *request) (answer, error) {
	body, err := bind(q, func(b *patchWebhookBody, f *faults) {
		if b.URL != nil {
			s.checkURL(b.URL, f)
		}
		if b.Description != nil {
			*b.Description = strings.TrimSpace(*b.Description)
		}
		b.Events = distinct(b.Events)
	})
	if err != nil {
		return answer{}, err
	}
	id, err := q.pathID(store.WebhookPrefix, "webhook")
	if err != nil {
		return answer{}, err
	}
	return s.work(q, true, func(w *store.Work) (answer, error) {
		if err := w.Confirm(q.ctx, q.id.Identity); err != nil {
			return answer{}, err
		}
		changed, err := w.ChangeWebhook(q.ctx, id, store.WebhookPatch{URL: body.URL, Events: body.Events, Description: body.Description, Enabled: body.Enabled})
		if err != nil {
			return answer{}, err
		}
		if body.URL != nil || body.Events != nil { // whoever turns it to another address is told of all that it is told of
			if err := mayBeTold(q, changed.Events); err != nil {
				return answer{}, err
			}
		}
		details := map[string]any{}
		if body.URL != nil {
			details["host"] = hostOf(changed.URL)
		}
		if body.Events != nil {
			details["events"] = body.Events
		}
		if body.Enabled != nil {
			details["enabled"] = *body.Enabled
		}
		shown := webhookOf(changed)
		return answer{status: http.StatusOK, body: shown}, q.audit(w, "webhook.update", shown.ID, details)
	})
}

func (s *Server) deleteWebhook(q *request) (answer, error) {
	id, err := q.bareID(store.WebhookPrefix, "webhook")
	if err != nil {
		return answer{}, err
	}
	return s.work(q, true, func(w *store.Work) (answer, error) {
		if err := w.DeleteWebhook(q.ctx, id); err != nil {
			return answer{}, err
		}
		return answer{status: http.StatusNoContent}, q.audit(w, "webhook.delete", store.FormatID(store.WebhookPrefix, id), nil)
	})
}

type rotateWebhookBody struct {
	OverlapSeconds *int `json:"overlap_seconds" minimum:"0" maximum:"604800" default:"86400" description:"How long the secret before signs beside the new one; a day when absent."`
}

// defaultOverlap is the seconds that two secrets sign when nothing is said.
const defaultOverlap = 86_400

func (s *Server) rotateWebhook(q *request) (answer, error) {
	body, err := bind[rotateWebhookBody](q, nil)
	if err != nil {
		return answer{}, err
	}
	id, err := q.pathID(store.WebhookPrefix, "webhook")
	if err != nil {
		return answer{}, err
	}
	if err := s.mayMakeSecrets(); err != nil {
		return answer{}, err
	}
	overlap := defaultOverlap
	if body.OverlapSeconds != nil {
		overlap = *body.OverlapSeconds
	}
	return s.work(q, false, func(w *store.Work) (answer, error) {
		if err := w.Confirm(q.ctx, q.id.Identity); err != nil {
			return answer{}, err
		}
		secret := webhooks.NewSecret()
		hook, err := w.RotateWebhook(q.ctx, id, s.Webhooks.Keys.Seal(secret, q.id.Workspace, id), time.Duration(overlap)*time.Second)
		if err != nil {
			return answer{}, err
		}
		shown := newWebhookJSON{webhookJSON: webhookOf(hook), Secret: secret}
		return answer{status: http.StatusCreated, body: shown}, q.audit(w, "webhook.rotate", shown.ID, map[string]any{"overlap_seconds": overlap})
	})
}
