package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/google/uuid"
)

// An audit chain is checked apart from the database that wrote it: every hash is computed here from what the rows say.
// Who changes a row, removes one or puts one in has to write all hashes behind it anew, and the head; that shows against
// the heads that were written down elsewhere (audit_nights.go). Reading goes page by page and holds no snapshot: a chain
// only grows, so what is read of it up to its head is one state, and millions of entries need no memory.

// ChainFault is one place where a chain is not what was written.
type ChainFault struct {
	Chain uuid.UUID // a workspace, or SystemChain
	Seq   int64     // the entry; 0: the chain as a whole
	Kind  string
	What  string // for people
}

// The kinds of faults.
const (
	ChainChanged   = "changed"   // an entry or its hash is another; entries that were swapped or put between others show so too
	ChainRemoved   = "removed"   // entries are missing, with others behind them
	ChainInserted  = "inserted"  // entries stand behind the head
	ChainTruncated = "truncated" // the last entries are missing
)

// ChainCheck is what VerifyChain found.
type ChainCheck struct {
	Chain   uuid.UUID
	Entries int64        // read
	Faults  []ChainFault // at most maxChainFaults
}

const (
	chainPage      = 2000
	maxChainFaults = 20 // of one chain: what comes after is seldom news
)

// ChainName writes a chain for the outside: its workspace's id, or system.
func ChainName(chain uuid.UUID) string {
	if chain == SystemChain {
		return "system"
	}
	return FormatID(WorkspacePrefix, chain)
}

// ParseChain reads what ChainName wrote.
func ParseChain(name string) (chain uuid.UUID, ok bool) {
	if name == "system" {
		return SystemChain, true
	}
	return ParseID(WorkspacePrefix, name)
}

// chained is an entry as it is hashed.
type chained struct {
	Seq       int64     `db:"seq"`
	At        time.Time `db:"at"`
	ActorType string    `db:"actor_type"`
	ActorID   string    `db:"actor_id"`
	Action    string    `db:"action"`
	Target    string    `db:"target"`
	Details   string    `db:"details"` // as Postgres writes jsonb
	IP        string    `db:"ip"`
	RequestID string    `db:"request_id"`
	Hash      []byte    `db:"hash"`
}

const chainedColumns = `seq, at, actor_type, actor_id, action, target, details::text AS details, ip, request_id, hash`

// hash is what audit_hash of migration 00005 computes: SHA-256 of a tag, the hash before, chain, number, time in
// microseconds since 1970, and each text behind its length in bytes.
func (e *chained) hash(chain uuid.UUID, previous []byte) []byte {
	h := sha256.New()
	number := func(n int64) {
		var raw [8]byte
		binary.BigEndian.PutUint64(raw[:], uint64(n))
		h.Write(raw[:])
	}
	h.Write([]byte("muster audit 1"))
	h.Write(previous)
	h.Write(chain[:])
	number(e.Seq)
	number(e.At.UnixMicro())
	for _, text := range []string{e.ActorType, e.ActorID, e.Action, e.Target, e.Details, e.IP, e.RequestID} {
		var length [4]byte
		binary.BigEndian.PutUint32(length[:], uint32(len(text)))
		h.Write(length[:])
		h.Write([]byte(text))
	}
	return h.Sum(nil)
}

// Chains lists, in the order of their ids, at most limit chains from the id from on: of every workspace, and every other
// that has a head or entries. A chain that should be there and is not is so found by VerifyChain.
func (s *System) Chains(ctx context.Context, from uuid.UUID, limit int) ([]uuid.UUID, error) {
	chains := []uuid.UUID{}
	// The entries of a chain without head and workspace are found by jumping from chain to chain along the key.
	err := s.db.SelectContext(ctx, &chains, `WITH RECURSIVE jump (id) AS (
			(SELECT workspace_id FROM audit_log WHERE workspace_id >= $1 ORDER BY workspace_id LIMIT 1)
			UNION ALL
			SELECT (SELECT a.workspace_id FROM audit_log a WHERE a.workspace_id > j.id ORDER BY a.workspace_id LIMIT 1) FROM jump j WHERE j.id IS NOT NULL)
		SELECT id FROM (
			(SELECT id FROM jump WHERE id IS NOT NULL LIMIT $2)
			UNION (SELECT workspace_id FROM audit_heads WHERE workspace_id >= $1 ORDER BY workspace_id LIMIT $2)
			UNION (SELECT id FROM workspaces WHERE id >= $1 ORDER BY id LIMIT $2)) c
		ORDER BY id LIMIT $2`, from, limit)
	if err != nil {
		return nil, fmt.Errorf("list audit chains: %w", err)
	}
	return chains, nil
}

// VerifyChain reads a chain from its first entry to its head. NotFound when there is neither a chain nor a workspace.
func (s *System) VerifyChain(ctx context.Context, chain uuid.UUID) (ChainCheck, error) {
	check := ChainCheck{Chain: chain}
	var ends struct { // of one moment
		Head  sql.NullInt64 `db:"head"`
		Hash  []byte        `db:"hash"`
		Last  sql.NullInt64 `db:"last"`
		Known bool          `db:"known"`
	}
	err := s.db.GetContext(ctx, &ends, `SELECT h.seq AS head, h.hash, (SELECT max(seq) FROM audit_log WHERE workspace_id = $1) AS last,
			EXISTS (SELECT 1 FROM workspaces WHERE id = $1) AS known
		FROM (SELECT 1) one LEFT JOIN audit_heads h ON h.workspace_id = $1`, chain)
	if err != nil {
		return check, fmt.Errorf("read audit head: %w", err)
	}
	end := ends.Head.Int64
	switch {
	case !ends.Head.Valid && !ends.Last.Valid && chain == SystemChain:
		return check, nil // nothing has happened yet
	case !ends.Head.Valid && !ends.Last.Valid && ends.Known:
		check.fault(0, ChainRemoved, "the workspace has no chain at all")
	case !ends.Head.Valid && !ends.Last.Valid:
		return check, refuse(NotFound, "no such workspace")
	case !ends.Head.Valid:
		check.fault(0, ChainRemoved, "the chain has no head")
		end = ends.Last.Int64
	case ends.Last.Int64 > end:
		check.fault(end+1, ChainInserted, "the head knows of %d entries, entries up to %d are there", end, ends.Last.Int64)
	}
	last, err := s.verifyEntries(ctx, &check, end)
	switch {
	case err != nil:
		return check, err
	case last.Seq < end:
		check.fault(last.Seq+1, ChainTruncated, "the head knows of %d entries, the chain ends at %d", end, last.Seq)
	case ends.Head.Valid && !bytes.Equal(last.Hash, ends.Hash):
		check.fault(end, ChainChanged, "the head has another hash than the last entry")
	}
	return check, nil
}

// verifyEntries checks the entries up to end and returns the last of them; of an empty chain one numbered 0.
func (s *System) verifyEntries(ctx context.Context, check *ChainCheck, end int64) (chained, error) {
	last := chained{Hash: make([]byte, sha256.Size)}
	for len(check.Faults) < maxChainFaults {
		var page []chained
		err := s.db.SelectContext(ctx, &page, `SELECT `+chainedColumns+` FROM audit_log
			WHERE workspace_id = $1 AND seq > $2 AND seq <= $3 ORDER BY seq LIMIT $4`, check.Chain, last.Seq, end, chainPage)
		if err != nil {
			return last, fmt.Errorf("read audit entries: %w", err)
		}
		for _, e := range page {
			check.Entries++
			switch {
			case e.Seq != last.Seq+1: // what it was linked to is gone, so its own hash cannot be checked
				check.fault(last.Seq+1, ChainRemoved, "entries %d to %d are missing", last.Seq+1, e.Seq-1)
			case !bytes.Equal(e.hash(check.Chain, last.Hash), e.Hash):
				check.fault(e.Seq, ChainChanged, "the entry, or the one before it, is not what was written")
			}
			last = e
		}
		if len(page) < chainPage {
			return last, nil
		}
	}
	return last, nil
}

func (c *ChainCheck) fault(seq int64, kind, format string, args ...any) {
	if len(c.Faults) < maxChainFaults {
		c.Faults = append(c.Faults, ChainFault{Chain: c.Chain, Seq: seq, Kind: kind, What: fmt.Sprintf(format, args...)})
	}
}

// LooseHeads looks at some chains, at most limit, and finds those whose head is not their last entry: a cheap look, which
// sees what was cut off and not what was changed further back.
func (s *System) LooseHeads(ctx context.Context, limit int) ([]uuid.UUID, error) {
	var loose []uuid.UUID
	err := s.db.SelectContext(ctx, &loose, `SELECT h.workspace_id FROM (SELECT * FROM audit_heads LIMIT $1) h
		LEFT JOIN LATERAL (SELECT seq, hash FROM audit_log a WHERE a.workspace_id = h.workspace_id ORDER BY seq DESC LIMIT 1) a ON true
		WHERE h.seq > 0 AND (a.seq IS DISTINCT FROM h.seq OR a.hash IS DISTINCT FROM h.hash)`, limit)
	if err != nil {
		return nil, fmt.Errorf("compare audit heads: %w", err)
	}
	return loose, nil
}
