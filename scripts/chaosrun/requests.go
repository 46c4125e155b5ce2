//go:build unix

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"
)

// answer is what a request brought.
type answer struct {
	status   int // 0: none came
	replayed bool
	inFlight bool // a 409, because the first request with the key is still under way
}

// final says that no repeat brings another answer.
func (a answer) final() bool {
	return a.status >= 200 && a.status < 500 && a.status != http.StatusTooManyRequests && !a.inFlight
}

// request sends JSON and decodes the answer.
func (l *load) request(ctx context.Context, method, path, token, key string, body, into any) (a answer, err error) {
	var reader io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return a, err
		}
		reader = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, l.s.api+path, reader)
	if err != nil {
		return a, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	res, err := l.client.Do(req)
	if err != nil {
		return a, err
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		return a, err
	}
	a = answer{status: res.StatusCode, replayed: res.Header.Get("Idempotent-Replayed") == "true",
		inFlight: res.StatusCode == http.StatusConflict && bytes.Contains(raw, []byte("idempotency_in_flight"))}
	if a.status >= 400 {
		return a, fmt.Errorf("%s %s: %d %s", method, path, a.status, raw)
	}
	if into == nil {
		return a, nil
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return answer{}, fmt.Errorf("%s %s: %w", method, path, err) // not all of it came
	}
	return a, nil
}

// insist posts JSON under the key until there is a final answer, or the run ends, and records each answer.
func (l *load) insist(t *tenant, key, path string, body, into any) (a answer, err error) {
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		if a, err = l.ask(t, key, path, body, into); a.final() || l.ctx.Err() != nil {
			return a, err
		}
		pause(l.ctx, wait)
	}
}

func (l *load) ask(t *tenant, key, path string, body, into any) (a answer, err error) {
	l.seats <- struct{}{}
	defer func() { <-l.seats }()
	asked := time.Now()
	a, err = l.request(l.ctx, "POST", path, t.key, key, body, into)
	e := event{What: answered, Key: key, Status: fmt.Sprint(a.status), Took: time.Since(asked).Milliseconds(), Replayed: a.replayed}
	e.At = l.s.hist.add(e)
	l.mu.Lock()
	l.answers = append(l.answers, e)
	l.mu.Unlock()
	return a, err
}

// since counts the answers since then, by status, and their slowest acknowledgement.
func (l *load) since(at int64) (byStatus map[string]int, slowest time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	byStatus = map[string]int{}
	for _, e := range l.answers {
		if e.At >= at {
			byStatus[e.Status]++
			slowest = max(slowest, time.Duration(e.Took)*time.Millisecond)
			if e.Replayed {
				byStatus["replayed"]++
			}
		}
	}
	return byStatus, slowest
}
