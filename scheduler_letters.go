package main

import (
	"context"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/generic-corp/muster/api/mail"
	"github.com/generic-corp/muster/store"
)

// The letters about used-up quotas. The ledger is their outbox (store/notice_mails.go): the leader takes a letter, sends
// it and books it, with no transaction open meanwhile. Each owner gets one letter per notice; only a scheduler that dies
// after the mail server's yes and before the booking sends one twice.

// postman tries once to send a letter; *mail.Mailer is one.
type postman interface {
	Deliver(ctx context.Context, to, subject, text string) error
}

// bookingTime is how long the booking of a letter may take, also when the scheduler is told to stop meanwhile.
const bookingTime = 5 * time.Second

// mailOnce sends what is due.
func (s *scheduler) mailOnce(ctx context.Context) {
	s.part(ctx, "notice_mails", s.mailNotices)
	s.part(ctx, "webhook_letters", s.mailWebhookLetters)
}

// mailNotices ends at the first letter that may pass later: the server is in trouble, and each letter has its own backoff.
func (s *scheduler) mailNotices(ctx context.Context) error {
	if _, err := s.system.AddressNotices(ctx); err != nil {
		return err
	}
	for {
		m, ok, err := s.system.TakeNoticeMail(ctx)
		if err != nil || !ok {
			return err
		}
		again, err := s.mailNotice(ctx, m)
		if err != nil || again {
			return err
		}
	}
}

// mailNotice sends one letter and books what became of it; again is true when it will be tried once more.
func (s *scheduler) mailNotice(ctx context.Context, m store.NoticeMail) (again bool, err error) {
	sent, outcome := false, "given_up"
	if m.Email != nil {
		subject, text := noticeLetter(m)
		failure := s.mail.Deliver(ctx, *m.Email, subject, text)
		switch {
		case failure == nil:
			sent, outcome = true, "sent"
		case !mail.Permanent(failure) && m.Attempts < store.MailTries:
			s.metrics.mails.WithLabelValues("failed").Inc()
			s.log.Warn().Str("reason", mail.Reason(failure)).Int("try", m.Attempts).Msg("a notice's letter could not be sent; it will be tried again")
			return true, nil
		default:
			s.log.Error().Str("reason", mail.Reason(failure)).Int("tries", m.Attempts).Msg("a notice's letter is given up")
		}
	}
	s.metrics.mails.WithLabelValues(outcome).Inc()
	book, cancel := context.WithTimeout(context.WithoutCancel(ctx), bookingTime)
	defer cancel()
	return false, s.system.BookNoticeMail(book, m, sent)
}

// noticeLetter writes a notice's letter.
func noticeLetter(m store.NoticeMail) (subject, text string) {
	what, amount := "agent time", func(v int64) string { return fmt.Sprintf("%.1f minutes", float64(v)/60_000) }
	if m.Kind == store.NoticeProviderBudget {
		what, amount = "model budget", func(v int64) string { return fmt.Sprintf("$%.2f", float64(v)/1e6) }
	}
	name := strings.Map(func(r rune) rune { // a customer's words make no lines of their own
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, m.Name)
	next := "New tasks go on running until it is used up."
	if m.Percent >= 100 {
		next = "Tasks that you send are accepted and wait, in their places, until the month turns or your plan grows."
	}
	return fmt.Sprintf("%d %% of this month's %s is used on Muster", m.Percent, what),
		strings.Join([]string{
			fmt.Sprintf("The workspace %q has used %s of the %s of %s that it has in %s (UTC).", name, amount(m.Used), amount(m.Quota), what, m.Period.Format("January 2006")),
			next, "GET /v1/quota shows how it stands. You get this letter because you own the workspace."}, "\n\n") + "\n"
}
