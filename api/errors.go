package api

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"

	"github.com/gin-gonic/gin"
	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/store"
)

// This file is the only one that knows which HTTP status an error is. Handlers return errors; fail answers them as
// application/problem+json (RFC 9457). A problem's type is stable; an error of unknown kind is logged and answered
// without its text.

// problemBase is where the types live; each is problemBase + slug.
const problemBase = "https://muster.dev/problems/"

// problemContentType is the media type of every error.
const problemContentType = "application/problem+json"

// problem is one kind of error answer.
type problem struct {
	status int
	slug   string
	title  string
}

// The problems, one type each. Clients may rely on type and status; detail is for people.
var (
	probBadRequest       = problem{http.StatusBadRequest, "bad_request", "The request could not be read"}
	probUnauthorized     = problem{http.StatusUnauthorized, "unauthorized", "No or bad credential"}
	probPlanLimit        = problem{http.StatusPaymentRequired, "plan_limit", "The plan does not include this"}
	probEmailUnverified  = problem{http.StatusForbidden, "email_unverified", "No owner has proved their address"}
	probForbidden        = problem{http.StatusForbidden, "forbidden", "The role or scope is too small"}
	probNotFound         = problem{http.StatusNotFound, "not_found", "Not found"}
	probMethodNotAllowed = problem{http.StatusMethodNotAllowed, "method_not_allowed", "Method not allowed"}
	probTimeout          = problem{http.StatusRequestTimeout, "request_timeout", "The request took too long to arrive"}
	probConflict         = problem{http.StatusConflict, "conflict", "The state forbids this"}
	probInFlight         = problem{http.StatusConflict, "idempotency_in_flight", "The first request with this key is still running"}
	probTooLarge         = problem{http.StatusRequestEntityTooLarge, "too_large", "The body is too large"}
	probMediaType        = problem{http.StatusUnsupportedMediaType, "unsupported_media_type", "The body must be application/json"}
	probInvalid          = problem{http.StatusUnprocessableEntity, "invalid", "The request is not valid"}
	probKeyReused        = problem{http.StatusUnprocessableEntity, "idempotency_key_reused", "The key was used with another body"}
	probRateLimited      = problem{http.StatusTooManyRequests, "rate_limited", "Too many requests"}
	probSignInDelayed    = problem{http.StatusTooManyRequests, "sign_in_delayed", "Sign-ins are slowed down"}
	probTooManyStreams   = problem{http.StatusTooManyRequests, "too_many_streams", "Too many event streams are open"}
	probBacklogFull      = problem{http.StatusTooManyRequests, "backlog_full", "Too many tasks are waiting"}
	probInternal         = problem{http.StatusInternalServerError, "internal", "Something went wrong"}
	probUnavailable      = problem{http.StatusServiceUnavailable, "unavailable", "A part of the service is down"}
)

// problemOf is what an expected refusal of the ledger is answered.
var problemOf = map[store.Kind]problem{
	store.NotFound:     probNotFound,
	store.Conflict:     probConflict,
	store.Invalid:      probInvalid,
	store.BacklogFull:  probBacklogFull,
	store.PlanLimit:    probPlanLimit,
	store.Unauthorized: probUnauthorized,
	store.InFlight:     probInFlight,
	store.KeyReused:    probKeyReused,
}

// Seconds after which a refused client may try again.
const (
	retryAfterUnavailable = 2
	retryAfterBacklog     = 10
)

// problemJSON is a problem's body.
type problemJSON struct {
	Type      string       `json:"type" description:"Stable; says what kind of problem this is." format:"uri"`
	Title     string       `json:"title"`
	Status    int          `json:"status"`
	Detail    string       `json:"detail" description:"For people; may change."`
	RequestID string       `json:"request_id"`
	Errors    []fieldError `json:"errors,omitempty" nullable:"false" description:"Of a 422: each field that is wrong."`
}

// fieldError names one wrong input: a JSON path (tasks[3].prompt), a query parameter or a header.
type fieldError struct {
	Field  string `json:"field"`
	Detail string `json:"detail"`
}

// apiError is a refusal that this package decides on itself.
type apiError struct {
	problem
	detail string
	fields []fieldError
	scope  string // of a 403: the scope that is missing

	retryAfter int // seconds, of a 429 or a 503; 0: the usual
}

func (e *apiError) Error() string { return e.slug + ": " + e.detail }

func refuse(p problem, detail string) error { return &apiError{problem: p, detail: detail} }

// invalid is a 422 about fields.
func invalid(fields ...fieldError) error {
	return &apiError{problem: probInvalid, detail: "some fields are wrong; see errors", fields: fields}
}

// classify says how err is answered. expected is false when it must be logged.
func classify(err error) (e *apiError, expected bool) {
	var own *apiError
	var refused *store.Error
	switch {
	case errors.As(err, &own):
		return own, true
	case errors.As(err, &refused):
		p, known := problemOf[refused.Kind]
		if !known {
			return &apiError{problem: probInternal}, false
		}
		e := &apiError{problem: p, detail: refused.Message}
		if refused.Field != "" {
			e.fields = []fieldError{{Field: refused.Field, Detail: refused.Message}}
		}
		return e, true
	case errors.Is(err, context.Canceled):
		return &apiError{problem: probUnavailable, detail: "the request was given up"}, true
	case store.Unavailable(err), errors.Is(err, context.DeadlineExceeded):
		return &apiError{problem: probUnavailable, detail: "the ledger cannot be reached; try again"}, false
	}
	return &apiError{problem: probInternal, detail: "the error was noted under this request id"}, false
}

// fail answers err as a problem and ends the request.
func fail(c *gin.Context, err error) {
	e, expected := classify(err)
	if !expected {
		zerolog.Ctx(c.Request.Context()).Error().Err(err).Int("status", e.status).Msg("request failed")
	}
	writeProblem(c.Writer, requestID(c), e)
	c.Abort()
}

// writeProblem writes the answer; it needs no gin, so that what stands before the router can use it.
func writeProblem(w http.ResponseWriter, requestID string, e *apiError) {
	h := w.Header()
	switch e.status {
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", e.challenge())
	case http.StatusForbidden:
		if e.scope != "" {
			h.Set("WWW-Authenticate", `Bearer realm="muster", error="insufficient_scope", scope="`+e.scope+`"`)
		}
	case http.StatusServiceUnavailable:
		h.Set("Retry-After", strconv.Itoa(cmp.Or(e.retryAfter, retryAfterUnavailable)))
	case http.StatusTooManyRequests:
		h.Set("Retry-After", strconv.Itoa(cmp.Or(e.retryAfter, retryAfterBacklog)))
	}
	body, _ := json.Marshal(problemJSON{ // strings and numbers only: cannot fail
		Type: problemBase + e.slug, Title: e.title, Status: e.status, Detail: e.detail, RequestID: requestID, Errors: e.fields,
	})
	h.Set("Content-Type", problemContentType)
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(e.status)
	_, _ = w.Write(body) // the client may be gone
}

// challenge is RFC 6750's: error is said only of a credential that was presented.
func (e *apiError) challenge() string {
	if e.detail == noCredential {
		return `Bearer realm="muster"`
	}
	return `Bearer realm="muster", error="invalid_token"`
}
