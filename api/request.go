package api

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/gin-gonic/gin"

	"github.com/generic-corp/muster/store"
)

// request is what a handler gets: who sends what. Its context ends with Config.WorkTimeout, except where a route waits.
type request struct {
	ctx   context.Context
	route *route
	id    *identity // nil on anonymous routes
	body  []byte    // read and within its limit, not yet decoded
	gin   *gin.Context
}

// answer is what a handler returns: body is marshalled, or sent as it is when it is raw JSON; nil is no body. A body that
// is made while it is sent is written by stream, and media names its type.
type answer struct {
	status  int
	headers map[string]string
	body    any
	media   string // of stream
	stream  func(http.ResponseWriter)
}

// serve runs a route: credential, role and scope, body, handler, answer.
func (s *Server) serve(r *route) gin.HandlerFunc {
	return func(c *gin.Context) {
		q := &request{route: r, gin: c}
		var err error
		if !r.anonymous {
			if q.id, err = s.authenticate(c); err != nil {
				fail(c, s.limitStranger(c, err))
				return
			}
			c.Set(keyWorkspace, q.id.Workspace)
		}
		if err := s.admit(q); err != nil {
			fail(c, err)
			return
		}
		q.ctx = c.Request.Context()
		if !r.waits {
			ctx, cancel := context.WithTimeout(q.ctx, s.WorkTimeout)
			defer cancel()
			q.ctx = ctx
		}
		a, err := r.handle(s, q)
		if err == nil {
			err = a.write(c)
		}
		if err != nil {
			fail(c, err)
		}
	}
}

// admit counts the request against its limits, checks role and scope, and reads the body. A body that says how much the
// request weighs is read first. Who may not use the route counts against its usual limits only: the route's own are
// for those who may.
func (s *Server) admit(q *request) (err error) {
	if q.id != nil {
		if forbidden := authorize(q.route, q.id); forbidden != nil && !(q.route.self && q.isSelf()) {
			return cmp.Or(s.limit(q, false), forbidden)
		}
	}
	weighsBody := q.route.limits().byTasks
	if !weighsBody {
		if err := s.limit(q, true); err != nil {
			return err
		}
	}
	if q.body, err = readBody(q.gin, q.route); weighsBody {
		return cmp.Or(s.limit(q, true), err)
	}
	return err
}

func (a answer) write(c *gin.Context) error {
	raw, err := a.marshal()
	if err != nil {
		return err
	}
	for name, value := range a.headers {
		c.Header(name, value)
	}
	if a.body != nil {
		c.Header("Content-Type", "application/json")
	}
	if a.stream != nil {
		c.Header("Content-Type", a.media)
	}
	c.Status(a.status)
	c.Writer.WriteHeaderNow()
	if a.stream != nil {
		a.stream(c.Writer)
		return nil
	}
	_, _ = c.Writer.Write(raw) // the client may be gone
	return nil
}

func (a answer) marshal() ([]byte, error) {
	switch body := a.body.(type) {
	case nil:
		return nil, nil
	case json.RawMessage:
		return body, nil
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(a.body); err != nil {
		return nil, fmt.Errorf("write answer: %w", err)
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

// readBody reads what was sent, up to the route's limit. An absent body is empty.
func readBody(c *gin.Context, r *route) ([]byte, error) {
	if c.Request.Method == http.MethodGet {
		return nil, nil // a GET's body means nothing; net/http discards it
	}
	limit := r.maxBody
	if limit == 0 {
		limit = maxBodyBytes
	}
	if c.Request.ContentLength > limit {
		return nil, refuse(probTooLarge, fmt.Sprintf("the body may have at most %d bytes", limit))
	}
	if encoding := strings.Join(c.Request.Header.Values("Content-Encoding"), ","); encoding != "" && !strings.EqualFold(encoding, "identity") {
		return nil, refuse(probMediaType, "send the body without Content-Encoding")
	}
	raw, err := io.ReadAll(http.MaxBytesReader(c.Writer, c.Request.Body, limit))
	var tooLarge *http.MaxBytesError
	var netErr net.Error
	switch {
	case errors.As(err, &tooLarge):
		return nil, refuse(probTooLarge, fmt.Sprintf("the body may have at most %d bytes", limit))
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &netErr) && netErr.Timeout():
		c.Header("Connection", "close")
		return nil, refuse(probTimeout, "the body did not arrive in time")
	case err != nil:
		return nil, refuse(probBadRequest, "the body could not be read")
	}
	if len(raw) > 0 && !isJSON(c.GetHeader("Content-Type")) {
		return nil, refuse(probMediaType, "send Content-Type: application/json")
	}
	return raw, nil
}

func isJSON(contentType string) bool {
	media, params, err := mime.ParseMediaType(contentType)
	if err != nil || media != "application/json" {
		return false
	}
	charset, given := params["charset"]
	return !given || strings.EqualFold(charset, "utf-8")
}

// faults collects what is wrong with a request; the first word about a field stands.
type faults struct{ fields []fieldError }

func (f *faults) wrong(field, format string, args ...any) {
	told := slices.ContainsFunc(f.fields, func(e fieldError) bool { return e.Field == field })
	if !told && len(f.fields) < maxFieldErrors {
		f.fields = append(f.fields, fieldError{Field: field, Detail: fmt.Sprintf(format, args...)})
	}
}

func (f *faults) err() error {
	if len(f.fields) == 0 {
		return nil
	}
	return invalid(f.fields...)
}

// bind decodes the body into a request struct. check (nil: nothing) adds what struct tags cannot say.
func bind[T any](q *request, check func(body *T, f *faults)) (T, error) {
	var body T
	if len(q.body) == 0 {
		return body, refuse(probBadRequest, "the body is missing; send a JSON object")
	}
	fields, err := decodeStrict(q.body, &body)
	if err != nil {
		return body, err
	}
	f := &faults{fields: fields}
	if check != nil {
		check(&body, f)
	}
	return body, f.err()
}

// noBody refuses a body on a route that takes none; {} is let pass.
func (q *request) noBody() error {
	if len(q.body) == 0 {
		return nil
	}
	_, err := bind[struct{}](q, nil)
	return err
}

// params reads the query parameters into a struct: fields of string, int or *time.Time with the tags query, default and
// those of a body. check (nil: nothing) adds what tags cannot say. Unknown parameters mean nothing.
func params[T any](q *request, check func(p *T, f *faults)) (T, error) {
	var p T
	f := &faults{}
	query, err := url.ParseQuery(q.gin.Request.URL.RawQuery)
	if err != nil {
		return p, refuse(probBadRequest, "the query of the URL cannot be read")
	}
	v := reflect.ValueOf(&p).Elem()
	for _, field := range reflect.VisibleFields(v.Type()) {
		name := field.Tag.Get("query")
		if name == "" || strings.Contains(name, "{") {
			continue
		}
		values := query[name]
		if len(values) > 1 {
			f.wrong(name, "stands more than once")
			continue
		}
		text := field.Tag.Get("default")
		if len(values) == 1 {
			text = values[0]
		} else if text == "" {
			continue
		}
		setParam(v.FieldByIndex(field.Index), name, text, rulesOf(field.Tag), f)
	}
	if check != nil {
		check(&p, f)
	}
	return p, f.err()
}

func setParam(v reflect.Value, name, text string, r rules, f *faults) {
	if fault := textFault(text); fault != "" {
		f.wrong(name, "%s", fault)
		return
	}
	switch v.Interface().(type) {
	case string:
		r.checkText(f, name, text)
		v.SetString(text)
	case int:
		n, err := strconv.Atoi(text)
		if err != nil {
			f.wrong(name, "must be a whole number")
			return
		}
		r.checkInt(f, name, int64(n))
		v.SetInt(int64(n))
	case *time.Time:
		if at, ok := r.checkTime(f, name, text); ok {
			v.Set(reflect.ValueOf(&at))
		}
	}
}

// textFault says what the ledger could not store of a text that did not come as JSON.
func textFault(text string) string {
	switch {
	case !utf8.ValidString(text):
		return "is not valid UTF-8"
	case strings.ContainsRune(text, 0):
		return "must not contain NUL characters"
	}
	return ""
}

// idempotencyKey reads the request's key; nil when there is none. The body's hash covers the path too, so that one key
// cannot stand for two tasks.
func (q *request) idempotencyKey() (*store.IdempotencyKey, error) {
	values := q.gin.Request.Header.Values("Idempotency-Key")
	if len(values) == 0 {
		return nil, nil
	}
	key := values[0]
	printable := !strings.ContainsFunc(key, func(r rune) bool { return r < 0x20 || r > 0x7e })
	if len(values) > 1 || len(key) < 1 || len(key) > 255 || !printable {
		return nil, invalid(fieldError{Field: "Idempotency-Key", Detail: "must be one value of 1 to 255 printable ASCII characters"})
	}
	hash := sha256.New()
	hash.Write([]byte(q.gin.Request.URL.Path))
	hash.Write([]byte{0})
	hash.Write(q.body)
	k := &store.IdempotencyKey{Route: q.route.pattern(), Key: key}
	hash.Sum(k.BodyHash[:0])
	return k, nil
}

// work runs fn in one transaction of the sender's workspace, under the request's Idempotency-Key if it has one, and
// hands over what was committed. keepAnswer is false where the answer holds a credential.
func (s *Server) work(q *request, keepAnswer bool, fn func(w *store.Work) (answer, error)) (answer, error) {
	return s.workIn(q, store.Scope{Workspace: q.id.Workspace}, keepAnswer, fn)
}

// workIn is work for the few routes that see more than the workspace: what is the user's own elsewhere.
func (s *Server) workIn(q *request, scope store.Scope, keepAnswer bool, fn func(w *store.Work) (answer, error)) (answer, error) {
	key, err := q.idempotencyKey()
	if err != nil {
		return answer{}, err
	}
	var fresh answer
	done, err := s.Store.Do(q.ctx, scope, key, func(w *store.Work) (store.Answer, error) {
		if fresh, err = fn(w); err != nil {
			return store.Answer{}, err
		}
		kept := store.Answer{Status: fresh.status, Headers: fresh.headers}
		if key == nil || !keepAnswer {
			return kept, nil
		}
		kept.Body, err = fresh.marshal()
		if fresh.body != nil {
			fresh.body = json.RawMessage(kept.Body)
		} else {
			kept.Body = []byte{} // nil would mean that it was not kept
		}
		return kept, err
	})
	if err != nil {
		return answer{}, err
	}
	if len(done.Turns) > 0 {
		s.Enqueuer.Enqueue(done.Turns...)
	}
	if len(done.Cancels) > 0 {
		s.Canceler.Cancel(done.Cancels...)
	}
	if !done.Replayed {
		return fresh, nil
	}
	replay := answer{status: done.Answer.Status, headers: map[string]string{"Idempotent-Replayed": "true"}}
	for name, value := range done.Answer.Headers {
		replay.headers[name] = value
	}
	if len(done.Answer.Body) > 0 {
		replay.body = json.RawMessage(done.Answer.Body)
	}
	return replay, nil
}

// audit notes what the sender did, in the work's transaction.
func (q *request) audit(w *store.Work, action, target string, details map[string]any) error {
	return w.Audit(q.auditEntry(action, target, details))
}

func (q *request) auditEntry(action, target string, details map[string]any) store.AuditEntry {
	kind, name := q.id.actor()
	return store.AuditEntry{ActorType: kind, ActorID: name, Action: action, Target: target, Details: details,
		IP: q.gin.ClientIP(), RequestID: requestID(q.gin)}
}
