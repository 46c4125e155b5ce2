package provider

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Kind says what to do after a failed call.
type Kind string

// The kinds.
const (
	Transient Kind = "transient" // the same call may work in a moment
	Outage    Kind = "outage"    // the provider cannot be reached: ask another if there is one, else as Transient
	Permanent Kind = "permanent" // the same call will fail again
)

// Codes of an Error, stable: they are stored with each call.
const (
	CodeRateLimited     = "rate_limited"           // 429
	CodeOverloaded      = "provider_overloaded"    // 503, 529
	CodeFailed          = "provider_failed"        // other 5xx, 408, 409, 425
	CodeTimeout         = "provider_timeout"       // it did not answer in time
	CodeCut             = "provider_cut"           // the connection broke after the request was on its way
	CodeUnreachable     = "provider_unreachable"   // no connection: refused, DNS, TLS
	CodeBadResponse     = "bad_response"           // 200, but not an answer
	CodeAuth            = "provider_auth"          // 401, 403: the operator's credentials
	CodeQuota           = "provider_quota"         // the operator's account has no credit left
	CodeMisconfigured   = "provider_misconfigured" // a redirect: the base URL is wrong
	CodeInvalid         = "invalid_request"        // 400, 422 and the like
	CodeTooLarge        = "request_too_large"      // 413
	CodeUnknownModel    = "unknown_model"          // 404, or nothing that is configured
	CodeModelNotAllowed = "model_not_allowed"      // the workspace may not use it
)

// Error is a failed call. Message is safe to show to the customer: bounded, without keys or account names.
type Error struct {
	Kind       Kind
	Code       string
	Status     int           // HTTP; 0: no answer came
	RetryAfter time.Duration // what the provider asked to wait; 0: nothing; at most an hour
	Message    string
}

func (e *Error) Error() string { return e.Code + ": " + e.Message }

// OperatorsFault says that neither the customer nor the provider's health is the cause, but our account there.
func (e *Error) OperatorsFault() bool {
	return e.Code == CodeAuth || e.Code == CodeQuota || e.Code == CodeMisconfigured
}

// FallsBack says that another provider may do better with the same request.
func (e *Error) FallsBack() bool { return e.Kind != Permanent || e.OperatorsFault() }

const maxRetryAfter = time.Hour

// fault names what went wrong with an exchange. sdkErr is what the SDK made of it and only tells that something did.
// secret is the key that must not appear.
func fault(ctx context.Context, name, secret string, x *exchange, sdkErr error) error {
	e := &Error{Status: x.status}
	switch {
	case x.status >= 300:
		byStatus(e, name, secret, x)
	case x.err == nil && x.status != 0:
		e.Kind, e.Code, e.Message = Transient, CodeBadResponse, name+" sent an answer that could not be read"
	case ctx.Err() != nil:
		return fmt.Errorf("call %s: %w", name, ctx.Err())
	case x.err != nil:
		byTransport(e, name, x)
	default: // the SDK refused to send it
		e.Kind, e.Code = Permanent, CodeInvalid
		e.Message = name + " cannot be asked this: " + clean(sdkErr.Error(), secret)
	}
	return e
}

func byTransport(e *Error, name string, x *exchange) {
	var netErr net.Error
	timeout := errors.As(x.err, &netErr) && netErr.Timeout() || errors.Is(x.err, context.DeadlineExceeded)
	switch {
	case errors.Is(x.err, errTooLarge):
		e.Kind, e.Code, e.Message = Transient, CodeBadResponse, name+" sent an answer that is too large"
	case unreachable(x.err) || timeout && !x.sent.Load():
		e.Kind, e.Code, e.Message = Outage, CodeUnreachable, name+" could not be reached"
	case timeout:
		e.Kind, e.Code, e.Message = Transient, CodeTimeout, name+" did not answer in time"
	default:
		e.Kind, e.Code, e.Message = Transient, CodeCut, "the connection to "+name+" broke"
	}
}

// unreachable: the error comes from looking up, connecting or the TLS handshake.
func unreachable(err error) bool {
	var (
		dns    *net.DNSError
		op     *net.OpError
		cert   *tls.CertificateVerificationError
		record tls.RecordHeaderError
		alert  tls.AlertError
	)
	return errors.As(err, &dns) || errors.As(err, &op) && op.Op == "dial" || errors.As(err, &cert) ||
		errors.As(err, &record) || errors.As(err, &alert) || errors.Is(err, http.ErrSchemeMismatch)
}

func byStatus(e *Error, name, secret string, x *exchange) {
	detail, kind, code := explain(x.body)
	e.RetryAfter = retryAfter(x.header, time.Now())
	switch s := x.status; {
	case s < 400:
		e.Kind, e.Code, e.Message = Permanent, CodeMisconfigured, name+" answered with a redirect"
	case s == 401 || s == 403:
		e.Kind, e.Code, e.Message = Permanent, CodeAuth, name+" did not accept the operator's credentials"
	case s == 402 || code == "insufficient_quota" || kind == "insufficient_quota" || kind == "billing_error" ||
		strings.Contains(detail, "credit balance is too low"):
		e.Kind, e.Code, e.Message = Permanent, CodeQuota, "the operator's account at "+name+" has no credit left"
	case s == 429:
		e.Kind, e.Code, e.Message = Transient, CodeRateLimited, name+" limits the rate of requests"
	case s == 503 || s == 529:
		e.Kind, e.Code, e.Message = Transient, CodeOverloaded, name+" is overloaded"
	case s >= 500 || s == 408 || s == 409 || s == 425:
		e.Kind, e.Code, e.Message = Transient, CodeFailed, fmt.Sprintf("%s failed with status %d", name, s)
	case s == 404:
		e.Kind, e.Code, e.Message = Permanent, CodeUnknownModel, name+" does not know the model"
	case s == 413:
		e.Kind, e.Code, e.Message = Permanent, CodeTooLarge, name+" finds the request too large"
	default:
		e.Kind, e.Code, e.Message = Permanent, CodeInvalid, name+" refused the request"
		if detail = clean(detail, secret); detail != "" {
			e.Message += ": " + detail
		}
	}
}

// explain reads an error body; both services wrap {type, code, message} in "error".
func explain(body []byte) (message, kind, code string) {
	var b struct {
		Error struct {
			Message, Type string
			Code          any
		}
	}
	if json.Unmarshal(body, &b) != nil {
		return "", "", ""
	}
	code, _ = b.Error.Code.(string)
	return b.Error.Message, b.Error.Type, code
}

// retryAfter reads retry-after-ms (which both services' own clients prefer) or Retry-After, in seconds or as a date.
func retryAfter(h http.Header, now time.Time) time.Duration {
	bound := func(d time.Duration) time.Duration { return min(max(d, 0), maxRetryAfter) }
	if ms, err := strconv.ParseFloat(h.Get("retry-after-ms"), 64); err == nil {
		return bound(time.Duration(min(ms, float64(maxRetryAfter.Milliseconds())) * float64(time.Millisecond)))
	}
	v := h.Get("Retry-After")
	if s, err := strconv.ParseFloat(v, 64); err == nil {
		return bound(time.Duration(min(s, maxRetryAfter.Seconds()) * float64(time.Second)))
	}
	if t, err := http.ParseTime(v); err == nil {
		return bound(t.Sub(now))
	}
	return 0
}

const maxDetail = 300 // bytes of a provider's own words

// identifiers are keys and account names as the services write them.
var identifiers = regexp.MustCompile(`(?i)\b(sk|pk|org|proj)[-_][A-Za-z0-9*_-]{6,}|Bearer\s+\S+`)

// clean makes a provider's words fit for an error: one line, valid text, no secrets, bounded.
func clean(s, secret string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if secret != "" {
		s = strings.ReplaceAll(s, secret, "[redacted]")
	}
	s = identifiers.ReplaceAllString(s, "[redacted]")
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }), " ")
	if len(s) <= maxDetail {
		return s
	}
	cut := maxDetail
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}
