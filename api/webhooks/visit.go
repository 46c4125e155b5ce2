package webhooks

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/generic-corp/muster/api/outbound"
	"github.com/generic-corp/muster/store"
)

// A visit to a lane: what is due there is sent, a few at once, each attempt booked as it ends. It ends early when the
// endpoint turns out slow, asks for a pause, is gone or fails again and again, so that others get its place.

// schedule is how long after a failed attempt the next one comes: as Standard Webhooks has it, 27 and a half hours in all.
var schedule = []time.Duration{5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour, 10 * time.Hour, 10 * time.Hour}

// Tries is how often a delivery is tried.
var Tries = len(schedule) + 1

// retryAfterMax bounds what an endpoint may ask for by Retry-After.
const retryAfterMax = time.Hour

// jitterPct is how much later than planned an attempt may be, so that what failed together does not come back together.
const jitterPct = 20

// again is how long to wait after so many attempts, 0 when that was the last.
func again(attempts int, retryAfter time.Duration) time.Duration {
	if attempts > len(schedule) {
		return 0
	}
	wait := schedule[attempts-1]
	return max(wait+time.Duration(rand.Int64N(int64(wait)*jitterPct/100+1)), retryAfter)
}

// outcome is what one attempt came to.
type outcome struct {
	status     int
	wrong      string // store.Delivery…; empty: it arrived
	took       time.Duration
	retryAfter time.Duration // asked for, bounded
}

// tally is a visit's state, shared by its requests.
type tally struct {
	mu    sync.Mutex
	out   store.Visited
	tried bool
	end   bool // start nothing more
}

func (t *tally) ended() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.end
}

// note takes an attempt into account.
func (t *tally) note(l store.Lane, o outcome) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.tried {
		t.tried, t.out.Slow = true, false // it shows itself anew
	}
	if o.took > slowAnswer {
		t.out.Slow, t.end = true, !l.Slow || t.end
	}
	if o.wrong == "" {
		t.out.Succeeded, t.out.Failed = true, 0
		return
	}
	t.out.Failed++
	t.out.Gone = t.out.Gone || o.status == http.StatusGone
	t.out.Pause = max(t.out.Pause, o.retryAfter)
	if t.out.Failed >= givenUpAfter || l.Failures > 0 && !t.out.Succeeded {
		t.out.Pause = max(t.out.Pause, min(firstPause<<min(l.Failures, 20), longestPause))
	}
	t.end = t.end || t.out.Gone || t.out.Pause > 0
}

// visit serves a lane whose lease was asked for at taken. It outlives ctx, which only keeps it from starting more.
func (s *Sender) visit(ctx context.Context, l store.Lane, taken time.Time) {
	stop := taken.Add(visitTime)
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), visitTime+sendTimeout+bookTimeout)
	defer cancel()
	t := &tally{out: store.Visited{Slow: l.Slow}}
	if err := s.serve(ctx, work, l, t, stop); err != nil {
		s.Log.Warn().Err(err).Stringer("webhook", l.Endpoint).Msg("a visit to a webhook was cut short; it is visited again")
		t.out.Pause = max(t.out.Pause, firstPause) // our own trouble, not the endpoint's
	}
	disabled, err := s.Ledger.LeaveLane(work, l, t.out)
	if err != nil {
		s.Log.Warn().Err(err).Stringer("webhook", l.Endpoint).Msg("a webhook's lease could not be given back; it ends by itself")
		return
	}
	if disabled != "" {
		s.Metrics.disabled.WithLabelValues(disabled).Inc()
		s.Log.Info().Stringer("webhook", l.Endpoint).Stringer("workspace", l.Workspace).Str("why", disabled).Msg("a webhook was disabled")
	}
}

// serve sends what is due. It returns what kept it from sending; what endpoints do is in t.
func (s *Sender) serve(ctx, work context.Context, l store.Lane, t *tally, stop time.Time) error {
	sealed, err := s.Ledger.LaneSecrets(work, l)
	if err != nil {
		return err
	}
	var secrets []string
	for _, one := range sealed {
		secret, err := s.Keys.Open(one, l.Workspace, l.Endpoint)
		if err != nil {
			return err
		}
		secrets = append(secrets, secret)
	}
	limit := laneBatch
	if l.Failures > 0 {
		limit = 1
	}
	due, err := s.Ledger.Due(work, l, limit)
	if err != nil {
		return err
	}
	var senders sync.WaitGroup
	var trouble error
	next := make(chan store.DueDelivery)
	for range min(perLane, len(due)) {
		senders.Go(func() {
			for d := range next {
				if err := s.deliver(work, l, d, secrets, t, stop.Add(visitSlack)); err != nil {
					t.mu.Lock()
					trouble, t.end = errors.Join(trouble, err), true
					t.mu.Unlock()
				}
			}
		})
	}
	for _, d := range due {
		if t.ended() || ctx.Err() != nil || time.Now().After(stop) {
			break
		}
		next <- d
	}
	close(next)
	senders.Wait()
	return trouble
}

// deliver makes one attempt, unless it is later than latest, and books it.
func (s *Sender) deliver(ctx context.Context, l store.Lane, d store.DueDelivery, secrets []string, t *tally, latest time.Time) error {
	event, ok, err := s.Ledger.DeliveryEvent(ctx, l, d.ID, maxPayload)
	if err != nil || !ok || time.Now().After(latest) {
		return err
	}
	body, err := s.Render(event)
	if err == nil && len(body) > maxPayload && len(event.Result) > 0 {
		event.Result, event.Omitted = nil, true
		body, err = s.Render(event)
	}
	if err != nil {
		return fmt.Errorf("render event %s: %w", d.ID, err)
	}
	o := s.send(ctx, l.URL, store.FormatID(store.EventPrefix, d.ID), body, secrets)
	a := store.Attempted{Delivery: d, Status: o.status, Error: o.wrong, Took: o.took}
	if o.wrong != "" && o.status != http.StatusGone {
		a.Again = again(d.Attempts+1, o.retryAfter)
	}
	t.note(l, o)
	label := o.wrong
	if label == "" {
		label = "succeeded"
	}
	s.Metrics.attempts.WithLabelValues(label).Inc()
	s.Metrics.seconds.Observe(o.took.Seconds())
	book, cancel := context.WithTimeout(context.WithoutCancel(ctx), bookTimeout)
	defer cancel()
	booked, err := s.Ledger.BookDelivery(book, l, a)
	if err == nil && booked && o.wrong != "" && a.Again == 0 {
		s.Metrics.dead.Inc()
	}
	return err
}

// send posts a body once. All that the endpoint answers but its status is thrown away.
func (s *Sender) send(ctx context.Context, url, id string, body []byte, secrets []string) (o outcome) {
	start := time.Now()
	defer func() { o.took = time.Since(start) }()
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return outcome{wrong: store.DeliveryUnreachable}
	}
	var signatures []string
	for _, secret := range secrets {
		signature, err := Sign(secret, id, start, body)
		if err != nil {
			return outcome{wrong: store.DeliveryBroken}
		}
		signatures = append(signatures, signature)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", strings.TrimSuffix("Muster-Webhooks/"+s.Version, "/"))
	req.Header.Set("Webhook-Id", id)
	req.Header.Set("Webhook-Timestamp", strconv.FormatInt(start.Unix(), 10))
	req.Header.Set("Webhook-Signature", strings.Join(signatures, " "))
	res, err := s.Client.Do(req)
	if err != nil {
		return outcome{wrong: whatFailed(err)}
	}
	finish(res.Body, res.ContentLength)
	o = outcome{status: res.StatusCode}
	switch {
	case o.status >= 200 && o.status < 300:
	case o.status >= 300 && o.status < 400:
		o.wrong = store.DeliveryRedirect
	default:
		o.wrong = store.DeliveryStatus
		if o.status == http.StatusTooManyRequests || o.status == http.StatusServiceUnavailable {
			o.retryAfter = retryAfter(res.Header.Get("Retry-After"), time.Now())
		}
	}
	return o
}

// finish reads a short answer, so that its connection can be used again, and cuts any other off.
func finish(body io.ReadCloser, length int64) {
	const short, patience = 4 << 10, time.Second
	if length >= 0 && length <= short {
		cut := time.AfterFunc(patience, func() { body.Close() })
		_, _ = io.CopyN(io.Discard, body, length+1)
		cut.Stop()
	}
	body.Close()
}

// retryAfter reads the header: seconds or a date, at most retryAfterMax; 0 when it says nothing.
func retryAfter(text string, now time.Time) time.Duration {
	var wait time.Duration
	if seconds, err := strconv.ParseUint(strings.TrimSpace(text), 10, 31); err == nil {
		wait = time.Duration(seconds) * time.Second
	} else if at, err := http.ParseTime(text); err == nil {
		wait = at.Sub(now)
	}
	return min(max(wait, 0), retryAfterMax)
}

// whatFailed names why there was no answer.
func whatFailed(err error) string {
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var name x509.HostnameError
	var alert tls.AlertError
	var record tls.RecordHeaderError
	var verify *tls.CertificateVerificationError
	var dial *net.OpError
	switch {
	case errors.Is(err, outbound.ErrRefused):
		return store.DeliveryUnreachable
	case errors.As(err, &verify), errors.As(err, &unknown), errors.As(err, &invalid), errors.As(err, &name), errors.As(err, &alert), errors.As(err, &record),
		errors.Is(err, http.ErrSchemeMismatch):
		return store.DeliveryTLS
	case errors.As(err, &dial) && dial.Op == "dial":
		return store.DeliveryUnreachable
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return store.DeliveryTimeout
	}
	return store.DeliveryBroken
}
