package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// The mails of notices. A notice's row waits until the scheduler has written one row per owner (AddressNotices), in the
// transaction that marks the notice; each of those waits until it is mailed or given up. A mail is taken before it is
// sent and booked after it: a process that dies between the server's yes and the booking leaves it to be sent a second
// time, after MailPause; nothing else can.

const (
	// MailPause is how long a taken mail is left to whoever took it, and the pause before the second try; it doubles
	// with each further try up to MailPauseMax.
	MailPause    = 2 * time.Minute
	MailPauseMax = 6 * time.Hour
	// MailTries is after how many a mail is given up: about two days.
	MailTries = 15
	// noticeNews is how old a notice may be that is still worth a mail: longer, and no mail server was configured.
	noticeNews = 3 * 24 * time.Hour
	// toldLife is how long the row of a mail that was sent or given up is kept.
	toldLife = 30 * 24 * time.Hour
)

// AddressNotices writes the mails of new notices, one to each owner, and returns how many. Notices without owners have none.
func (s *System) AddressNotices(ctx context.Context) (int, error) {
	var n int
	err := s.db.GetContext(ctx, &n, `WITH fresh AS (
			UPDATE quota_notices SET mails_at = now() WHERE (workspace_id, id) IN (
				SELECT workspace_id, id FROM quota_notices WHERE mails_at IS NULL ORDER BY at LIMIT 1000 FOR UPDATE SKIP LOCKED)
			RETURNING workspace_id, id, at),
		mails AS (
			INSERT INTO notice_mails (workspace_id, notice_id, user_id)
			SELECT f.workspace_id, f.id, m.user_id FROM fresh f JOIN members m ON m.workspace_id = f.workspace_id AND m.role = $1
			WHERE f.at > now() - $2 * interval '1 millisecond'
			ON CONFLICT DO NOTHING RETURNING 1)
		SELECT count(*) FROM mails`, RoleOwner, noticeNews.Milliseconds())
	if err != nil {
		return 0, fmt.Errorf("address notices: %w", err)
	}
	return n, nil
}

// NoticeMail is one letter to send, taken for MailPause.
type NoticeMail struct {
	Workspace uuid.UUID `db:"workspace_id"`
	Notice    uuid.UUID `db:"notice_id"`
	User      uuid.UUID `db:"user_id"`
	Attempts  int       `db:"attempts"` // this one included
	Email     *string   `db:"email"`    // nil: the user is no owner any more, there is nobody to tell
	Name      string    `db:"name"`     // of the workspace, as its owner wrote it
	Kind      string    `db:"kind"`
	Percent   int       `db:"percent"`
	Used      int64     `db:"used"`
	Quota     int64     `db:"quota"`
	Period    time.Time `db:"period"`
}

// TakeNoticeMail takes the mail that has waited longest; ok is false when none is due.
func (s *System) TakeNoticeMail(ctx context.Context) (m NoticeMail, ok bool, err error) {
	err = s.db.GetContext(ctx, &m, `WITH due AS (
			UPDATE notice_mails SET attempts = attempts + 1,
				next_try = now() + least($1 * power(2, attempts), $2) * interval '1 millisecond'
			WHERE (workspace_id, notice_id, user_id) = (
				SELECT workspace_id, notice_id, user_id FROM notice_mails WHERE mailed_at IS NULL AND gave_up_at IS NULL AND next_try <= now()
				ORDER BY next_try LIMIT 1 FOR UPDATE SKIP LOCKED)
			RETURNING workspace_id, notice_id, user_id, attempts)
		SELECT d.*, n.kind, n.percent, n.used, n.quota, n.period, w.name, u.email FROM due d
		JOIN quota_notices n ON n.workspace_id = d.workspace_id AND n.id = d.notice_id
		JOIN workspaces w ON w.id = d.workspace_id
		LEFT JOIN members m ON m.workspace_id = d.workspace_id AND m.user_id = d.user_id AND m.role = $3
		LEFT JOIN users u ON u.id = m.user_id`, MailPause.Milliseconds(), MailPauseMax.Milliseconds(), RoleOwner)
	if errors.Is(err, sql.ErrNoRows) {
		return m, false, nil
	}
	if err != nil {
		return m, false, fmt.Errorf("take notice's mail: %w", err)
	}
	return m, true, nil
}

// BookNoticeMail notes that a mail went out, or (sent is false) that it never will.
func (s *System) BookNoticeMail(ctx context.Context, m NoticeMail, sent bool) error {
	_, err := s.db.ExecContext(ctx, `UPDATE notice_mails SET mailed_at = CASE WHEN $4 THEN now() END, gave_up_at = CASE WHEN $4 THEN NULL ELSE now() END
		WHERE workspace_id = $1 AND notice_id = $2 AND user_id = $3 AND mailed_at IS NULL`, m.Workspace, m.Notice, m.User, sent)
	if err != nil {
		return fmt.Errorf("book notice's mail: %w", err)
	}
	return nil
}

// SweepTold removes events older than EventLife, and the rows of mails that ended a month ago, batch by batch.
func (s *System) SweepTold(ctx context.Context) error {
	for _, q := range []struct {
		what, sql string
		life      time.Duration
	}{
		{"old events", `DELETE FROM workspace_events WHERE (workspace_id, seq) IN (SELECT workspace_id, seq FROM workspace_events
			WHERE at < now() - $1 * interval '1 millisecond' LIMIT $2)`, EventLife},
		{"old mails", `DELETE FROM notice_mails WHERE (workspace_id, notice_id, user_id) IN (SELECT workspace_id, notice_id, user_id FROM notice_mails
			WHERE coalesce(mailed_at, gave_up_at) < now() - $1 * interval '1 millisecond' LIMIT $2)`, toldLife},
	} {
		for n := int64(1); n > 0; {
			done, err := s.db.ExecContext(ctx, q.sql, q.life.Milliseconds(), sweepBatch)
			if err == nil {
				n, err = done.RowsAffected()
			}
			if err != nil {
				return fmt.Errorf("sweep %s: %w", q.what, err)
			}
		}
	}
	return nil
}
