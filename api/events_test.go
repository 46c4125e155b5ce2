package api

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

// listener reads one event stream.
type listener struct {
	t      *testing.T
	resp   *http.Response
	lines  chan string // blocks, without their last line break; closed when the stream ends
	hangUp context.CancelFunc
}

// listen opens a stream behind an id ("": from now); it must be let in.
func (c *client) listen(t *testing.T, lastID string) *listener {
	t.Helper()
	ctx, hangUp := context.WithCancel(context.Background())
	t.Cleanup(hangUp)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url+"/v1/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+c.credential)
	if lastID != "" {
		req.Header.Set("Last-Event-ID", lastID)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" || resp.Header.Get("Cache-Control") != "no-store" {
		t.Fatalf("%d %v", resp.StatusCode, resp.Header)
	}
	l := &listener{t: t, resp: resp, lines: make(chan string, 100), hangUp: hangUp}
	go func() {
		defer close(l.lines)
		defer resp.Body.Close()
		var block []string
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			if line := lines.Text(); line != "" {
				block = append(block, line)
				continue
			}
			l.lines <- strings.Join(block, "\n")
			block = nil
		}
	}()
	return l
}

// next waits for the next block that is no heartbeat.
func (l *listener) next() string {
	l.t.Helper()
	for {
		select {
		case block, open := <-l.lines:
			if !open {
				l.t.Fatal("the stream has ended")
			}
			if !strings.HasPrefix(block, ":") {
				return block
			}
		case <-time.After(10 * time.Second):
			l.t.Fatal("nothing comes")
		}
	}
}

// ends waits for the end and says how long it took.
func (l *listener) ends() time.Duration {
	l.t.Helper()
	start := time.Now()
	for timeout := time.After(20 * time.Second); ; {
		select {
		case _, open := <-l.lines:
			if !open {
				return time.Since(start)
			}
		case <-timeout:
			l.t.Fatal("the stream does not end")
		}
	}
}

// happen lets n usage events happen: the workspace's limit grows and shrinks under what it has used.
func (c *client) happen(n int) {
	c.t.Helper()
	system := store.NewSystem(c.env.System(c.t))
	for range n {
		c.exec(`UPDATE workspace_load SET used_ms = used_ms + 1000000 WHERE workspace_id = $1`, c.ws)
		var used int64
		if err := c.admin.Get(&used, `SELECT used_ms FROM workspace_load WHERE workspace_id = $1`, c.ws); err != nil {
			c.t.Fatal(err)
		}
		for _, ms := range []int64{used * 2, used} {
			if _, err := system.SetLimits(c.t.Context(), c.ws, map[string]int64{"agent_ms": ms}, store.Operator{Name: "test"}); err != nil {
				c.t.Fatal(err)
			}
		}
	}
}

func TestEvents(t *testing.T) {
	t.Parallel()
	quick := func(cfg *Config) { cfg.Heartbeat, cfg.MaxStreams = 50*time.Millisecond, 3 }

	t.Run("TheyComeInOrderToTheirOwnWorkspaceAndResume", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, quick)
		a, b := w.owner("pro"), w.owner("pro")
		mine, foreign := a.listen(t, ""), b.listen(t, "")
		if got := mine.next(); got != "retry: 3000\nid: 0" {
			t.Fatalf("%q", got)
		}
		foreign.next()
		a.happen(2)
		for seq := 1; seq <= 2; seq++ {
			got := mine.next()
			if !strings.HasPrefix(got, fmt.Sprintf("id: %d\nevent: usage\ndata: {", seq)) || !strings.Contains(got, `"percent":100`) || !strings.Contains(got, `"meter":"agent_ms"`) {
				t.Errorf("%q", got)
			}
		}
		again := a.listen(t, "1")
		again.next()
		if got := again.next(); !strings.HasPrefix(got, "id: 2\nevent: usage\n") {
			t.Errorf("resumed with %q", got)
		}
		b.happen(1)
		if got := foreign.next(); !strings.HasPrefix(got, "id: 1\nevent: usage\n") {
			t.Errorf("%q", got)
		}
		a.do(http.MethodHead, "/v1/events", nil).want(200)
	})

	t.Run("WhatIsNoLongerKeptIsAnnounced", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, quick)
		a := w.owner("pro")
		a.happen(3)
		w.exec(`UPDATE workspace_events SET at = now() - interval '8 days' WHERE seq <= 2`)
		if err := store.NewSystem(w.env.System(t)).SweepTold(t.Context()); err != nil {
			t.Fatal(err)
		}
		l := a.listen(t, "0")
		l.next()
		if got := l.next(); got != "id: 2\nevent: reset\ndata: {\"resumes_after\":2}" {
			t.Errorf("%q", got)
		}
		if got := l.next(); !strings.HasPrefix(got, "id: 3\nevent: usage\n") {
			t.Errorf("%q", got)
		}
		w.exec(`DELETE FROM workspace_events`)
		l = a.listen(t, "1")
		l.next()
		if got := l.next(); got != "id: 3\nevent: reset\ndata: {\"resumes_after\":3}" {
			t.Errorf("%q", got)
		}
		a.happen(1)
		if got := l.next(); !strings.HasPrefix(got, "id: 4\nevent: usage\n") {
			t.Errorf("%q", got)
		}
		for _, bad := range []string{"x", "-1", "1.5", strings.Repeat("9", 30)} {
			a.get("/v1/events", headers{"Last-Event-ID": bad}).problem(probInvalid)
		}
	})

	t.Run("AnIdleStreamBeatsAndHoldsNoConnection", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, quick)
		a := w.owner("pro")
		l := a.listen(t, "")
		for beats := 0; beats < 2; {
			select {
			case block := <-l.lines:
				if block == ": heartbeat" {
					beats++
				}
			case <-time.After(10 * time.Second):
				t.Fatal("no heartbeat")
			}
		}
		free := 0
		for range 20 { // a look takes a millisecond of each second
			free += w.count(`SELECT (count(*) = 0)::int FROM pg_stat_activity WHERE datname = current_database() AND usename = 'muster_api' AND state <> 'idle'`)
			time.Sleep(20 * time.Millisecond)
		}
		if free < 10 {
			t.Errorf("no connection was busy at %d of 20 looks", free)
		}
	})

	t.Run("AWorkspaceHasSoManyAndAClosedOneMakesRoom", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, quick)
		a, b := w.owner("pro"), w.owner("pro")
		open := []*listener{a.listen(t, ""), a.listen(t, ""), a.listen(t, "")}
		a.get("/v1/events").problem(probTooManyStreams)
		b.listen(t, "")
		open[0].hangUp()
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			w.api.streams.mu.Lock()
			n := w.api.streams.byWorkspace[a.ws]
			w.api.streams.mu.Unlock()
			if n == 2 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d streams are counted", n)
			}
		}
		a.listen(t, "")
	})

	t.Run("ItEndsWithItsCredential", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, func(cfg *Config) { cfg.CredentialMS = 3000 }) // as in production
		a := w.owner("pro")
		made := a.post("/v1/api-keys", map[string]any{"name": "x"}).want(201)
		key := w.with(made.str("key"))
		key.world, key.ws = w, a.ws
		other := newWorldOn(t, w.env, nil) // the change is made at another process
		byKey, bySession, member := key.listen(t, ""), a.listen(t, ""), a.colleague(store.RoleViewer)
		byMember := member.listen(t, "")
		admin := a.colleague(store.RoleOwner)
		other.with(admin.credential).do(http.MethodDelete, "/v1/api-keys/"+made.str("id"), nil).want(204)
		other.with(a.credential).post("/v1/auth/logout", nil).want(204)
		other.with(admin.credential).do(http.MethodDelete, "/v1/members/"+store.FormatID(store.UserPrefix, member.user), nil).want(204)
		for who, l := range map[string]*listener{"a key's": byKey, "a session's": bySession, "a removed member's": byMember} {
			if took := l.ends(); took > 5*time.Second {
				t.Errorf("%s stream ended after %v", who, took)
			}
		}
	})

	t.Run("AShutdownEndsItAtOnce", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, nil)
		l := w.owner("pro").listen(t, "")
		l.next()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := w.api.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		l.ends()
	})

	t.Run("ItOutlivesTheServersTimeouts", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, func(cfg *Config) {
			cfg.ReadTimeout, cfg.WriteTimeout, cfg.WorkTimeout = 500*time.Millisecond, 500*time.Millisecond, 500*time.Millisecond
		})
		a := w.owner("pro")
		l := a.listen(t, "")
		l.next()
		time.Sleep(1500 * time.Millisecond) // beyond all three
		a.happen(1)
		if got := l.next(); !strings.HasPrefix(got, "id: 1\n") {
			t.Errorf("%q", got)
		}
	})
}

func TestStreamsAreCountedOutAgain(t *testing.T) {
	t.Parallel()
	s := &streams{each: 2, all: 3, byWorkspace: map[uuid.UUID]int{}}
	a, b := uuid.New(), uuid.New()
	var leave []func()
	for _, ws := range []uuid.UUID{a, a, b} {
		l, err := s.enter(ws)
		if err != nil {
			t.Fatal(err)
		}
		leave = append(leave, l)
	}
	for _, ws := range []uuid.UUID{a, b} {
		if _, err := s.enter(ws); err == nil {
			t.Error("one too many")
		}
	}
	for _, l := range leave {
		l()
	}
	if s.openTogether != 0 || len(s.byWorkspace) != 0 {
		t.Errorf("%d open, %v", s.openTogether, s.byWorkspace)
	}
}
