package mail

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/api/logtest"
	"github.com/generic-corp/muster/api/mail/mailtest"
)

func newMailer(t *testing.T, cfg Config) *Mailer {
	t.Helper()
	cfg.From = "Muster <muster@example.com>"
	if cfg.Backoff == nil {
		cfg.Backoff = []time.Duration{time.Millisecond, time.Millisecond}
	}
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func closeIn(t *testing.T, m *Mailer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := m.Close(ctx); err != nil {
		t.Error(err)
	}
}

func TestMailer(t *testing.T) {
	t.Parallel()
	t.Run("ALetterArrives", func(t *testing.T) {
		t.Parallel()
		server := mailtest.Start(t)
		m := newMailer(t, Config{URL: server.URL})
		m.Send("ada@example.com", "Grüße\r\nBcc: eve@example.com", "Ä line\n.\nanother\n")
		closeIn(t, m)
		got := server.Next(t)
		if got.From != "muster@example.com" || len(got.To) != 1 || got.To[0] != "ada@example.com" {
			t.Errorf("envelope %+v", got)
		}
		if strings.TrimSpace(got.Text) != "Ä line\n.\nanother" || strings.Contains(got.Header, "\nBcc:") || !strings.Contains(got.Header, "Auto-Submitted: auto-generated") {
			t.Errorf("%s\n%q", got.Header, got.Text)
		}
	})
	t.Run("APassingRefusalIsTriedAgainAndALastingOneIsNot", func(t *testing.T) {
		t.Parallel()
		server, log := mailtest.Start(t), &logtest.Log{}
		server.Refuse("451 4.3.0 later, ada@example.com", "", "550 5.1.1 no such user bob@example.com")
		m := newMailer(t, Config{URL: server.URL, Senders: 1, Log: zerolog.New(log)})
		m.Send("ada@example.com", "One", "first")
		m.Send("bob@example.com", "Two", "second")
		m.Send("cy@example.com", "Three", "third")
		if got := server.Next(t).To[0] + " " + server.Next(t).To[0]; got != "ada@example.com cy@example.com" {
			t.Errorf("arrived: %v", got)
		}
		closeIn(t, m)
		if s := log.String(); strings.Contains(s, "ada") || strings.Contains(s, "bob") || !strings.Contains(s, `"smtp_code":550`) {
			t.Errorf("log %s", s)
		}
	})
	t.Run("WithoutAServerLettersAreDroppedAndNothingBlocks", func(t *testing.T) {
		t.Parallel()
		log := &logtest.Log{}
		m := newMailer(t, Config{URL: "smtp://127.0.0.1:1", Queue: 2, Log: zerolog.New(log)})
		start := time.Now()
		for range 1000 {
			m.Send("ada@example.com", "Secret", "mst_rst_secret")
		}
		if d := time.Since(start); d > time.Second {
			t.Errorf("took %v", d)
		}
		closeIn(t, m)
		m.Send("ada@example.com", "Late", "mst_rst_secret")
		if s := log.String(); strings.Contains(s, "ada") || strings.Contains(s, "mst_") || !strings.Contains(s, "too many wait") ||
			!strings.Contains(s, "could not be sent") || !strings.Contains(s, "shutting down") {
			t.Errorf("log %s", s)
		}
	})
}

func TestTLSIsAskedForBeyondTheLoopbackInterface(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]server{
		"smtp://mail.example.com":           {host: "mail.example.com", port: 587},
		"smtps://u:p@mail.example.com":      {host: "mail.example.com", port: 465, implicit: true, user: "u", password: "p"},
		"smtp://127.0.0.1:2525":             {host: "127.0.0.1", port: 2525, plain: true},
		"smtp://mail.example.com?tls=none":  {host: "mail.example.com", port: 587, plain: true},
		"smtps://localhost":                 {host: "localhost", port: 465, implicit: true},
		"smtp://127.0.0.1.example.com:2525": {host: "127.0.0.1.example.com", port: 2525},
	} {
		if got, err := parse(text); err != nil || got != want {
			t.Errorf("%s: %+v %v", text, got, err)
		}
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	for text, good := range map[string]bool{
		"smtp://mail.example.com": true, "smtps://u:p@mail.example.com:465": true, "smtp://u:p@mail:2525?tls=none": true, "smtp://[::1]:25/": true,
		"": false, "http://mail": false, "smtp://": false, "smtp://mail:0": false, "smtp://mail/path": false, "smtp://mail?tls=maybe": false, "smtps://mail?tls=none": false, "mail:25": false,
	} {
		if err := Check(text); (err == nil) != good {
			t.Errorf("%q: %v", text, err)
		}
	}
	for text, good := range map[string]bool{"a@b.example": true, "Muster <a@b.example>": true, "": false, "nobody": false} {
		if err := CheckFrom(text); (err == nil) != good {
			t.Errorf("%q: %v", text, err)
		}
	}
}
