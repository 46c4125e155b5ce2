// Package mail sends Muster's letters over SMTP, with go-mail. Package api hands letters over (api.Mailer), root makes
// the Mailer from SMTP_URL and MAIL_FROM.
//
// It promises that Send never blocks and that letters are bounded: those that do not fit in the queue, and those that
// the server refuses for good or for longer than the tries last, are dropped. Its log says that a letter was lost and
// why in the server's codes, never to whom or what it said: letters hold tokens.
package mail

import (
	"context"
	"errors"
	"fmt"
	"net"
	netmail "net/mail"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/rs/zerolog"
	gomail "github.com/wneessen/go-mail"
)

// Config says where letters go. URL and From are required; zero values of the others are the defaults.
type Config struct {
	URL  string         // smtp://user:password@host:587 or smtps://user:password@host:465; see Check
	From string         // the sender: an address, with a name or without
	Log  zerolog.Logger // zero: nothing is logged

	Queue   int             // letters that wait; further ones are dropped; 1,000
	Senders int             // connections at once; 2
	Timeout time.Duration   // of one try, connection and all; 30 s
	Backoff []time.Duration // between the tries of a letter, one more try than pauses; 1 s, 10 s, 60 s
}

// Check says what is wrong with a server's URL. smtp:// asks for STARTTLS, except on the loopback interface or with
// ?tls=none; smtps:// is TLS from the start. Without a port it is 587 and 465.
func Check(text string) error {
	_, err := parse(text)
	return err
}

// CheckFrom says what is wrong with a sender's address.
func CheckFrom(text string) error {
	if _, err := netmail.ParseAddress(text); err != nil {
		return errors.New("not an email address")
	}
	return nil
}

// server is a parsed URL.
type server struct {
	host           string
	port           int
	implicit       bool // TLS from the start
	plain          bool // no TLS asked for
	user, password string
}

func parse(text string) (server, error) {
	u, err := url.Parse(text)
	if err != nil || (u.Scheme != "smtp" && u.Scheme != "smtps") || u.Hostname() == "" || (u.Path != "" && u.Path != "/") {
		return server{}, errors.New("not smtp://user:password@host:587 or smtps://user:password@host:465") // never echo it: it holds a password
	}
	s := server{host: u.Hostname(), port: 587, implicit: u.Scheme == "smtps", user: u.User.Username()}
	s.password, _ = u.User.Password()
	if s.implicit {
		s.port = 465
	}
	if p := u.Port(); p != "" {
		if s.port, err = strconv.Atoi(p); err != nil || s.port < 1 || s.port > 65535 {
			return server{}, errors.New("the port is not from 1 to 65535")
		}
	}
	ip := net.ParseIP(s.host)
	loopback := s.host == "localhost" || (ip != nil && ip.IsLoopback())
	switch tls := u.Query().Get("tls"); tls {
	case "":
		s.plain = loopback && !s.implicit
	case "none":
		s.plain = true
		if s.implicit {
			return server{}, errors.New("smtps:// is TLS; use smtp:// with tls=none")
		}
	default:
		return server{}, errors.New("tls is not none")
	}
	return s, nil
}

type letter struct{ to, subject, text string }

// Mailer queues and sends letters.
type Mailer struct {
	cfg     Config
	client  *gomail.Client
	queue   chan letter
	closing chan struct{}
	close   sync.Once
	done    sync.WaitGroup

	mu     sync.RWMutex // Send against Close
	closed bool
}

// New makes a Mailer, which connects when the first letter comes. Close ends it.
func New(cfg Config) (*Mailer, error) {
	s, err := parse(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("mail server: %w", err)
	}
	if err := CheckFrom(cfg.From); err != nil {
		return nil, fmt.Errorf("mail sender: %w", err)
	}
	if cfg.Queue == 0 {
		cfg.Queue = 1_000
	}
	if cfg.Senders == 0 {
		cfg.Senders = 2
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 30 * time.Second
	}
	if cfg.Backoff == nil {
		cfg.Backoff = []time.Duration{time.Second, 10 * time.Second, time.Minute}
	}
	options := []gomail.Option{gomail.WithPort(s.port), gomail.WithTimeout(cfg.Timeout)}
	switch {
	case s.implicit:
		options = append(options, gomail.WithSSL())
	case s.plain:
		options = append(options, gomail.WithTLSPolicy(gomail.TLSOpportunistic))
	default:
		options = append(options, gomail.WithTLSPolicy(gomail.TLSMandatory))
	}
	if s.user != "" {
		options = append(options, gomail.WithSMTPAuth(gomail.SMTPAuthAutoDiscover), gomail.WithUsername(s.user), gomail.WithPassword(s.password))
	}
	client, err := gomail.NewClient(s.host, options...)
	if err != nil {
		return nil, fmt.Errorf("mail server: %w", err)
	}
	m := &Mailer{cfg: cfg, client: client, queue: make(chan letter, cfg.Queue), closing: make(chan struct{})}
	for range cfg.Senders {
		m.done.Go(func() {
			for l := range m.queue {
				m.deliver(l)
			}
		})
	}
	return m, nil
}

// Send queues a letter of plain text.
func (m *Mailer) Send(to, subject, text string) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		m.cfg.Log.Warn().Msg("a letter was dropped: shutting down")
		return
	}
	select {
	case m.queue <- letter{to, subject, text}:
	default:
		m.cfg.Log.Warn().Msg("a letter was dropped: too many wait")
	}
}

// Close lets the queued letters go, each with one try from now on, until ctx ends.
func (m *Mailer) Close(ctx context.Context) error {
	m.close.Do(func() {
		close(m.closing)
		m.mu.Lock()
		defer m.mu.Unlock()
		m.closed = true
		close(m.queue)
	})
	ended := make(chan struct{})
	go func() { m.done.Wait(); close(ended) }()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("send the last letters: %w", ctx.Err())
	}
}

// deliver tries until the letter is sent, refused for good, or out of tries.
func (m *Mailer) deliver(l letter) {
	for try := 0; ; try++ {
		err := m.try(context.Background(), l)
		if err == nil {
			return
		}
		var refused *gomail.SendError
		errors.As(err, &refused)
		if Permanent(err) || try == len(m.cfg.Backoff) || !m.pause(m.cfg.Backoff[try]) {
			event := m.cfg.Log.Error().Int("tries", try+1)
			if refused != nil {
				event = event.Int("smtp_code", refused.ErrorCode()).Str("status", refused.EnhancedStatusCode())
			} else {
				event = event.Str("reason", Reason(err))
			}
			event.Msg("a letter could not be sent")
			return
		}
	}
}

// pause waits; false when the Mailer closes meanwhile.
func (m *Mailer) pause(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-m.closing:
		return false
	}
}

// Deliver tries once to send a letter of plain text, beside the queue, for a caller who keeps the letter and tries again
// by itself. nil means that the server took it. The error's text may quote the letter: log Reason of it, not the error.
func (m *Mailer) Deliver(ctx context.Context, to, subject, text string) error {
	return m.try(ctx, letter{to, subject, text})
}

// Permanent reports whether the server will refuse the same letter again.
func Permanent(err error) bool {
	var refused *gomail.SendError
	return errors.As(err, &refused) && !refused.IsTemp() && refused.ErrorCode() >= 500
}

func (m *Mailer) try(ctx context.Context, l letter) error {
	msg := gomail.NewMsg()
	if err := msg.From(m.cfg.From); err != nil {
		return err
	}
	if err := msg.To(l.to); err != nil {
		return err
	}
	msg.Subject(l.subject)
	msg.SetGenHeader("Auto-Submitted", "auto-generated") // RFC 3834: no out-of-office answers
	msg.SetBodyString(gomail.TypeTextPlain, l.text)
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Timeout)
	defer cancel()
	return m.client.DialAndSendWithContext(ctx, msg)
}

// Reason names an error without its text, which may quote the letter.
func Reason(err error) string {
	var netErr net.Error
	var refused *gomail.SendError
	switch {
	case errors.As(err, &refused) && refused.ErrorCode() != 0:
		return fmt.Sprintf("refused with %d", refused.ErrorCode())
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &netErr) && netErr.Timeout():
		return "timeout"
	case errors.As(err, &netErr):
		return "connection"
	}
	return "conversation with the server"
}
