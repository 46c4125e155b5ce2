package main

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/generic-corp/muster/api/mail"
	"github.com/generic-corp/muster/api/mail/mailtest"
	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// postRoom is a scheduler that only mails.
type postRoom struct {
	*scheduler
	t   *testing.T
	env *storetest.Env
	ws  uuid.UUID
}

func newPostRoom(t *testing.T, postman postman) *postRoom {
	t.Helper()
	env := storetest.New(t)
	s := &scheduler{system: store.NewSystem(env.System(t)), mail: postman, metrics: newSchedulerMetrics(prometheus.NewRegistry())}
	return &postRoom{scheduler: s, t: t, env: env, ws: storetest.NewWorkspace(t, env, "pro")}
}

func (p *postRoom) exec(sql string, args ...any) {
	p.t.Helper()
	if _, err := p.env.Admin(p.t).Exec(sql, args...); err != nil {
		p.t.Fatal(err)
	}
}

// notice lets the workspace pass 100 % of its agent time.
func (p *postRoom) notice() {
	p.t.Helper()
	p.exec(`UPDATE workspace_load SET used_ms = 90000 WHERE workspace_id = $1`, p.ws)
	if _, err := p.system.SetLimits(p.t.Context(), p.ws, map[string]int64{"agent_ms": 80_000}, store.Operator{Name: "test"}); err != nil {
		p.t.Fatal(err)
	}
}

func (p *postRoom) owner(email string) uuid.UUID {
	p.t.Helper()
	user := store.NewID()
	p.exec(`INSERT INTO users (id, email, password_hash) VALUES ($1, $2, 'none')`, user, email)
	p.exec(`INSERT INTO members (workspace_id, user_id, role) VALUES ($1, $2, 'owner')`, p.ws, user)
	return user
}

func (p *postRoom) round() {
	p.t.Helper()
	if err := p.mailNotices(p.t.Context()); err != nil {
		p.t.Fatal(err)
	}
}

// later lets the pauses between tries pass.
func (p *postRoom) later() {
	p.exec(`UPDATE notice_mails SET next_try = now() WHERE mailed_at IS NULL`)
}

func (p *postRoom) count(query string) (n int) {
	p.t.Helper()
	if err := p.env.Admin(p.t).Get(&n, query); err != nil {
		p.t.Fatal(err)
	}
	return n
}

func smtp(t *testing.T) (*mailtest.Server, *mail.Mailer) {
	t.Helper()
	server := mailtest.Start(t)
	m, err := mail.New(mail.Config{URL: server.URL, From: "muster@example.com"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close(context.Background()) })
	return server, m
}

func TestEachOwnerIsMailedOncePerNotice(t *testing.T) {
	t.Parallel()
	server, mailer := smtp(t)
	p := newPostRoom(t, mailer)
	p.owner("second@example.com")
	gone := p.owner("gone@example.com")
	p.exec(`INSERT INTO users (id, email, password_hash) VALUES (gen_random_uuid(), 'member@example.com', 'none')`)
	p.exec(`INSERT INTO members (workspace_id, user_id, role) SELECT $1, id, 'member' FROM users WHERE email = 'member@example.com'`, p.ws)
	p.exec(`UPDATE workspaces SET name = $2 WHERE id = $1`, p.ws, "Ada\r\nBcc: all@example.com")
	p.notice()
	if n, err := p.system.AddressNotices(t.Context()); err != nil || n != 3 {
		t.Fatalf("%d letters, %v", n, err)
	}
	p.exec(`UPDATE members SET role = 'member' WHERE user_id = $1`, gone) // is no owner any more: is not told
	for range 3 {
		p.round()
		p.later()
	}
	seen := map[string]bool{}
	for range 2 {
		l := server.Next(t)
		seen[l.To[0]] = true
		if !strings.Contains(l.Text, "1.5 minutes of the 1.3 minutes of agent time") || !strings.Contains(l.Text, `"Ada  Bcc: all@example.com"`) || strings.Contains(l.Header, "Bcc") {
			t.Errorf("%s\n\n%s", l.Header, l.Text)
		}
	}
	if !server.Empty() || !seen["second@example.com"] || len(seen) != 2 || seen["gone@example.com"] {
		t.Errorf("letters to %v", seen)
	}
	if got := testutil.ToFloat64(p.metrics.mails.WithLabelValues("sent")); got != 2 {
		t.Errorf("%v are counted as sent", got)
	}
}

func TestALetterIsTriedAgainUntilItIsTakenOrRefused(t *testing.T) {
	t.Parallel()
	server, mailer := smtp(t)
	p := newPostRoom(t, mailer)
	p.notice()
	server.Refuse("451 4.3.0 later", "451 4.3.0 later")
	p.round()
	p.round() // too early: its pause has not passed
	if n := p.count(`SELECT attempts FROM notice_mails`); n != 1 {
		t.Fatalf("%d tries", n)
	}
	p.later()
	p.round()
	p.later()
	p.round()
	server.Next(t)
	if n := p.count(`SELECT count(*) FROM notice_mails WHERE mailed_at IS NOT NULL AND attempts = 3`); n != 1 {
		t.Error("the letter is not booked")
	}

	// Refused for good: given up, and the next notice's letter goes out all the same.
	server.Refuse("550 5.1.1 nobody")
	p.exec(`UPDATE workspace_load SET used_ms = 200000`)
	for _, ms := range []int64{250_000, 150_000} {
		if _, err := p.system.SetLimits(t.Context(), p.ws, map[string]int64{"agent_ms": ms}, store.Operator{Name: "test"}); err != nil {
			t.Fatal(err)
		}
	}
	p.round()
	p.later()
	p.round()
	if n := p.count(`SELECT count(*) FROM notice_mails WHERE gave_up_at IS NOT NULL`); n != 1 || !server.Empty() {
		t.Errorf("%d given up", n)
	}
}

// counting is a mail server that takes every letter.
type counting struct {
	mu    sync.Mutex
	taken map[string]int
}

func (c *counting) Deliver(_ context.Context, to, _, _ string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.taken == nil {
		c.taken = map[string]int{}
	}
	c.taken[to]++
	return nil
}

func TestTwoSchedulersMailNothingTwice(t *testing.T) {
	t.Parallel()
	post := &counting{}
	p := newPostRoom(t, post)
	for i := range 20 {
		p.owner(string(rune('a'+i)) + "@example.com")
	}
	p.notice()
	rival := &scheduler{system: p.system, mail: post, metrics: newSchedulerMetrics(prometheus.NewRegistry())}
	var both sync.WaitGroup
	for _, s := range []*scheduler{p.scheduler, rival, p.scheduler, rival} {
		both.Go(func() {
			if err := s.mailNotices(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	both.Wait()
	p.round()
	if len(post.taken) != 21 {
		t.Errorf("%d owners were mailed", len(post.taken))
	}
	for to, n := range post.taken {
		if n != 1 {
			t.Errorf("%s got %d letters", to, n)
		}
	}
}

func TestAHangingMailServerDelaysNoSweep(t *testing.T) {
	t.Parallel()
	hangs := make(chan struct{})
	p := newPostRoom(t, hanging(hangs))
	p.notice()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); p.mailOnce(ctx) }()
	<-hangs // the mail server holds a letter, and no transaction is open:
	free, stop := context.WithTimeout(t.Context(), 10*time.Second)
	defer stop()
	if _, err := p.system.SetLimits(free, p.ws, map[string]int64{"agent_ms": 1_000_000}, store.Operator{Name: "test"}); err != nil {
		t.Error(err)
	}
	if n := p.count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename = 'muster_system' AND state LIKE 'idle in transaction%'`); n != 0 {
		t.Errorf("%d transactions are open", n)
	}
	cancel()
	<-ended
}

// hanging is a mail server that never answers; the channel tells that it was asked.
type hanging chan struct{}

func (h hanging) Deliver(ctx context.Context, _, _, _ string) error {
	close(h)
	<-ctx.Done()
	return errors.Join(errors.New("hangs"), ctx.Err())
}
