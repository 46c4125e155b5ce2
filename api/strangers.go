package api

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

// What is refused to somebody without a good credential (a failed sign-in, a used refresh token) goes to the audit log too,
// but never at once: whoever sends such requests must fill neither the disk nor a line in front of a chain's head. They
// are counted in memory by what, whose and from where, and written every few seconds, together:
//
//   - The first of a kind is written with the next batch, its repeats every strangersRepeat with their number.
//   - At most strangersKept kinds are told apart, and a process writes strangersBurst entries at once and one more each
//     strangersPace in the long run. What goes beyond is told as one number per action.
//
// A process that dies loses what it has counted since the last batch, and repeats of what it has told already. Passwords
// and tokens never get here; an address that signs in is kept as a keyed hash.
type strangers struct {
	now func() time.Time
	key []byte // of the hashes of accounts

	mu     sync.Mutex
	seen   map[stranger]*strangerCount
	rest   map[string]int64 // by action
	tokens float64
	filled time.Time
}

const (
	strangersKept   = 4096
	strangersBurst  = 200
	strangersPace   = 2 * time.Second
	strangersRepeat = 5 * time.Minute
)

// stranger is what is counted together. Everything in it is bounded by its makers.
type stranger struct {
	action  string
	chain   uuid.UUID // of the workspace that it concerns; else the system's
	user    uuid.UUID // whom it concerns, if they are known: their workspaces are told as well
	key     uuid.UUID // the API key that was refused
	account string    // hash of the address that was given
	address string    // an IPv4 address, or the /64 of an IPv6 one
}

type strangerCount struct {
	count     int64
	due       time.Time
	requestID string // of the latest
}

func newStrangers(signingKeys [][]byte, now func() time.Time) *strangers {
	s := &strangers{now: now, seen: map[stranger]*strangerCount{}, rest: map[string]int64{}, tokens: strangersBurst, filled: now()}
	if len(signingKeys) > 0 {
		mac := hmac.New(sha256.New, signingKeys[0])
		mac.Write([]byte("muster audited account"))
		s.key = mac.Sum(nil)
	}
	return s
}

// account is a short keyed hash: it tells whether two attempts were at one address, and nobody which.
func (s *strangers) account(email string) string {
	mac := hmac.New(sha256.New, s.key)
	mac.Write([]byte(email))
	return hex.EncodeToString(mac.Sum(nil)[:8])
}

// count takes one note.
func (s *strangers) count(who stranger, requestID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.seen[who]
	if c == nil {
		if len(s.seen) >= strangersKept {
			s.rest[who.action]++
			return
		}
		c = &strangerCount{due: s.now()}
		s.seen[who] = c
	}
	c.count++
	c.requestID = requestID
}

// refused notes that the request got nothing, for a reason that is worth keeping.
func (s *Server) refused(c *gin.Context, who stranger) {
	who.address = strings.TrimSuffix(addressOf(c.ClientIP(), 32, 64), "/32")
	s.strangers.count(who, requestID(c))
}

// collect takes what is to be written now; last: everything that there is room for, due or not.
func (s *strangers) collect(last bool) (list []store.Stranger, counted map[stranger]strangerCount, rest map[string]int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	s.tokens = min(strangersBurst, s.tokens+float64(now.Sub(s.filled))/float64(strangersPace))
	s.filled = now
	counted = map[stranger]strangerCount{}
	for who, c := range s.seen {
		switch {
		case c.count == 0 && now.After(c.due):
			delete(s.seen, who)
		case c.count == 0 || (now.Before(c.due) && !last):
		case s.tokens < 1+float64(len(s.rest)): // the numbers that are told for the rest come first
			s.rest[who.action] += c.count
			delete(s.seen, who)
		default:
			s.tokens--
			counted[who] = *c
			list = append(list, who.entry(*c))
			c.count, c.due = 0, now.Add(strangersRepeat)
		}
	}
	rest = map[string]int64{}
	for _, action := range slices.Sorted(maps.Keys(s.rest)) {
		if s.tokens < 1 && !last {
			break
		}
		s.tokens--
		rest[action] = s.rest[action]
		delete(s.rest, action)
		list = append(list, store.Stranger{Entry: store.AuditEntry{ActorType: store.ActorAnonymous, Action: action,
			Details: map[string]any{"count": rest[action], "others": true}}})
	}
	return list, counted, rest
}

func (who stranger) entry(c strangerCount) store.Stranger {
	e := store.AuditEntry{ActorType: store.ActorAnonymous, Action: who.action, Details: map[string]any{"count": c.count}, IP: who.address, RequestID: c.requestID}
	if who.account != "" {
		e.Details["account"] = who.account
	}
	if who.user != uuid.Nil {
		e.Target = store.FormatID(store.UserPrefix, who.user)
	}
	if who.key != uuid.Nil {
		e.Target = store.FormatID(store.KeyPrefix, who.key)
	}
	return store.Stranger{Chain: who.chain, User: who.user, Entry: e}
}

// write writes what is due; what could not be written is counted again.
func (s *strangers) write(ctx context.Context, ledger *store.API, last bool) error {
	list, counted, rest := s.collect(last)
	if len(list) == 0 {
		return nil
	}
	err := ledger.NoteStrangers(ctx, list)
	if err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		for who, c := range counted {
			if again := s.seen[who]; again != nil {
				again.count, again.due = again.count+c.count, c.due
			} else {
				s.rest[who.action] += c.count
			}
		}
		for action, n := range rest {
			s.rest[action] += n
		}
	}
	return err
}
