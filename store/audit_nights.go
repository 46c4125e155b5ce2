package store

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// The heads of all chains are written down each night, in a place that whoever may change the database should not reach:
// a chain that was cut off at its end, or written anew from some entry on, is not the one of that night any more. Each
// night's file begins with the digest of the one before, so that an old file cannot be replaced unseen either.
//
// The file is text, a line each, in the order of the chains' ids:
//
//	muster audit heads 1
//	night 2026-11-23            (not in a list that an operator asked for)
//	at 2026-11-23T02:20:00Z
//	previous HEX                (or none)
//	system 17 HEX               (chain, number of its last entry, that entry's hash)
//	ws_… 4 HEX
//	digest HEX                  (SHA-256 of all lines before)

const (
	headsTitle = "muster audit heads 1"
	headsPage  = 5000
)

// Heads sums up a list of heads.
type Heads struct {
	Night    string // YYYY-MM-DD; empty: an operator asked for it
	At       time.Time
	Chains   int64
	Digest   []byte
	Previous []byte // of the night before; nil: there was none
}

// NightBefore reports whether h is of the night right before the other's.
func (h Heads) NightBefore(other Heads) bool {
	day, err := time.Parse(time.DateOnly, h.Night)
	return err == nil && day.AddDate(0, 0, 1).Format(time.DateOnly) == other.Night
}

// WriteHeads writes the heads of all chains as they are now to w.
func (s *System) WriteHeads(ctx context.Context, w io.Writer) (Heads, error) {
	return writeHeads(ctx, s.db, w, "")
}

// WriteNight writes the heads down for a night, once: place calls write with where the list goes, and has
// it in safety when it returns nil. It reports false when the night has been written already. Should the process die after place and before
// the commit, the night is written again.
func (s *System) WriteNight(ctx context.Context, day time.Time, place func(write func(io.Writer) (Heads, error)) error) (heads Heads, written bool, err error) {
	night := day.Format(time.DateOnly)
	err = inTx(ctx, s.db, func(tx *sqlx.Tx) error {
		if _, err := tx.ExecContext(ctx, `SELECT pg_advisory_xact_lock(hashtextextended('audit night', 0))`); err != nil {
			return fmt.Errorf("lock audit night: %w", err)
		}
		var done bool
		if err := tx.GetContext(ctx, &done, `SELECT EXISTS (SELECT 1 FROM audit_nights WHERE day = $1)`, night); err != nil || done {
			return err
		}
		err := place(func(w io.Writer) (_ Heads, err error) {
			heads, err = writeHeads(ctx, tx, w, night)
			return heads, err
		})
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO audit_nights (day, chains, digest, previous) VALUES ($1, $2, $3, $4)`, night, heads.Chains, heads.Digest, heads.Previous)
		written = err == nil
		return err
	})
	if err != nil {
		return Heads{}, false, fmt.Errorf("write down audit heads: %w", err)
	}
	return heads, written, nil
}

func writeHeads(ctx context.Context, db sqlx.QueryerContext, w io.Writer, night string) (Heads, error) {
	heads := Heads{Night: night}
	if err := sqlx.GetContext(ctx, db, &heads.At, `SELECT now()`); err != nil {
		return heads, fmt.Errorf("read the database's clock: %w", err)
	}
	err := sqlx.GetContext(ctx, db, &heads.Previous, `SELECT digest FROM audit_nights ORDER BY day DESC LIMIT 1`)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return heads, fmt.Errorf("read the night before: %w", err)
	}
	sum := sha256.New()
	out := bufio.NewWriter(io.MultiWriter(sum, w))
	fmt.Fprintln(out, headsTitle)
	if night != "" {
		fmt.Fprintln(out, "night", night)
	}
	fmt.Fprintln(out, "at", heads.At.UTC().Format(time.RFC3339))
	fmt.Fprintln(out, "previous", hexOrNone(heads.Previous))
	for from, more := uuid.Nil, true; more; {
		var page []struct {
			Chain uuid.UUID `db:"workspace_id"`
			Seq   int64     `db:"seq"`
			Hash  []byte    `db:"hash"`
		}
		err := sqlx.SelectContext(ctx, db, &page, `SELECT workspace_id, seq, hash FROM audit_heads
			WHERE workspace_id >= $1 AND seq > 0 ORDER BY workspace_id LIMIT $2`, from, headsPage)
		if err != nil {
			return heads, fmt.Errorf("read audit heads: %w", err)
		}
		for _, h := range page {
			fmt.Fprintf(out, "%s %d %x\n", ChainName(h.Chain), h.Seq, h.Hash)
		}
		heads.Chains += int64(len(page))
		if more = len(page) == headsPage; more {
			from = NextChain(page[headsPage-1].Chain)
		}
	}
	if err := out.Flush(); err != nil {
		return heads, fmt.Errorf("write audit heads: %w", err)
	}
	heads.Digest = sum.Sum(nil)
	if _, err := fmt.Fprintf(w, "digest %x\n", heads.Digest); err != nil {
		return heads, fmt.Errorf("write audit heads: %w", err)
	}
	return heads, nil
}

// NextChain is the id right behind a chain's: where a list of chains goes on.
func NextChain(id uuid.UUID) uuid.UUID {
	for i := len(id) - 1; i >= 0; i-- {
		if id[i]++; id[i] != 0 {
			break
		}
	}
	return id
}

func hexOrNone(raw []byte) string {
	if raw == nil {
		return "none"
	}
	return hex.EncodeToString(raw)
}

// ErrNoHeads: the text is no list of heads.
var ErrNoHeads = errors.New("this is no list of audit heads, or only a part of one")

// VerifyHeads compares the chains with a list of heads that was written down: each named entry must be there, with its
// hash; at most the first 1,000 faults are told. A list that is not whole, or was changed, is an error.
func (s *System) VerifyHeads(ctx context.Context, list io.Reader) (Heads, []ChainFault, error) {
	var heads Heads
	var faults []ChainFault
	var page headPage
	sum := sha256.New()
	lines := bufio.NewScanner(list)
	for lines.Scan() {
		line := lines.Text()
		name, value, _ := strings.Cut(line, " ")
		if name == "digest" {
			if heads.Digest = sum.Sum(nil); lines.Scan() || hex.EncodeToString(heads.Digest) != value {
				return heads, nil, errors.Join(ErrNoHeads, errors.New("its digest does not fit"))
			}
			more, err := s.compareHeads(ctx, page)
			return heads, tellable(append(faults, more...)), err
		}
		sum.Write(append([]byte(line), '\n'))
		var err error
		switch name {
		case "muster":
			if line != headsTitle {
				err = errors.New("its first line is another")
			}
		case "night":
			heads.Night = value
		case "at":
			heads.At, err = time.Parse(time.RFC3339, value)
		case "previous":
			if value != "none" {
				heads.Previous, err = hex.DecodeString(value)
			}
		default:
			err = page.add(name, value)
			heads.Chains++
		}
		if err != nil {
			return heads, nil, errors.Join(ErrNoHeads, err)
		}
		if len(page.chains) == headsPage {
			more, err := s.compareHeads(ctx, page)
			if faults = tellable(append(faults, more...)); err != nil {
				return heads, faults, err
			}
			page = headPage{}
		}
	}
	return heads, nil, errors.Join(ErrNoHeads, lines.Err())
}

// tellable keeps memory bounded when everything is gone.
func tellable(faults []ChainFault) []ChainFault { return faults[:min(len(faults), 1000)] }

// headPage is a part of a list, in parallel.
type headPage struct {
	chains []uuid.UUID
	seqs   []int64
	hashes [][]byte
}

func (p *headPage) add(name, value string) error {
	chain, ok := ParseChain(name)
	seq, hash, _ := strings.Cut(value, " ")
	n, err := strconv.ParseInt(seq, 10, 64)
	raw, hexErr := hex.DecodeString(hash)
	if !ok || err != nil || hexErr != nil || n < 1 || len(raw) != sha256.Size {
		return fmt.Errorf("%q is no head", name)
	}
	p.chains, p.seqs, p.hashes = append(p.chains, chain), append(p.seqs, n), append(p.hashes, raw)
	return nil
}

func (s *System) compareHeads(ctx context.Context, p headPage) ([]ChainFault, error) {
	var found [][]byte
	err := s.db.SelectContext(ctx, &found, `SELECT a.hash FROM unnest($1::uuid[], $2::bigint[]) WITH ORDINALITY AS v (workspace_id, seq, place)
		LEFT JOIN audit_log a ON a.workspace_id = v.workspace_id AND a.seq = v.seq ORDER BY v.place`, pq.Array(p.chains), pq.Array(p.seqs))
	if err != nil {
		return nil, fmt.Errorf("compare audit heads: %w", err)
	}
	var faults []ChainFault
	for i, hash := range found {
		f := ChainFault{Chain: p.chains[i], Seq: p.seqs[i]}
		switch {
		case hash == nil:
			f.Kind, f.What = ChainTruncated, "this entry was the chain's last when the list was written, and is gone"
		case !bytes.Equal(hash, p.hashes[i]):
			f.Kind, f.What = ChainChanged, "this entry had another hash when the list was written: the chain was written anew"
		default:
			continue
		}
		faults = append(faults, f)
	}
	return faults, nil
}

// Night reads what is known of a night's list; false when nothing is.
func (s *System) Night(ctx context.Context, night string) (digest []byte, known bool, err error) {
	err = s.db.GetContext(ctx, &digest, `SELECT digest FROM audit_nights WHERE day = $1::date`, night)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("read audit night: %w", err)
	}
	return digest, true, nil
}
