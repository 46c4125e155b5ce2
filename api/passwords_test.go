package api

import (
	"context"
	"strings"
	"testing"
	"time"
)

func TestPasswords(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	p := newPasswords(1)
	phc, err := p.hash(ctx, "correct horse battery")
	if err != nil {
		t.Fatal(err)
	}
	verify := func(password, phc string) (bool, time.Duration) {
		t.Helper()
		start := time.Now()
		match, err := p.verify(ctx, password, phc)
		if err != nil {
			t.Fatal(err)
		}
		return match, time.Since(start)
	}
	t.Run("TheRightOneMatchesAndAnotherDoesNot", func(t *testing.T) {
		if match, _ := verify("correct horse battery", phc); !match {
			t.Error("the right one is refused")
		}
		for _, wrong := range []string{"correct horse batterY", "correct horse battery ", "", strings.Repeat("x", 1024)} {
			if match, _ := verify(wrong, phc); match {
				t.Errorf("%q is accepted", wrong)
			}
		}
	})
	t.Run("NobodysPasswordNeverMatchesAndTakesAsLong", func(t *testing.T) {
		if match, _ := verify("no user has this password", ""); match {
			t.Error("the stand-in's password is accepted")
		}
		// The same work: version and cost of the stand-in's hash are those of a user's.
		cost := func(phc string) string { return strings.Join(strings.Split(phc, "$")[:4], "$") }
		if cost(p.dummy) != cost(phc) {
			t.Errorf("the stand-in costs %s, a user's %s", cost(p.dummy), cost(phc))
		}
		// And it is done. The two are timed in turns and the quickest of each compared, so that a busy machine slows both;
		// an answer without a hash would be a thousand times quicker.
		known, unknown := time.Hour, time.Hour
		for range 7 {
			_, d := verify("wrong horse battery", phc)
			known = min(known, d)
			_, d = verify("wrong horse battery", "")
			unknown = min(unknown, d)
		}
		if unknown < known/4 || known < unknown/4 {
			t.Errorf("a known user takes %v, an unknown one %v", known, unknown)
		}
	})
	t.Run("TenThousandCommonOnesAreRefusedAndLongUnusualOnesAreNot", func(t *testing.T) {
		if n := len(commonPasswords); n < 10_000 {
			t.Errorf("%d common passwords", n)
		}
		for _, common := range []string{"12345678", "PassWord", "qwertyuiop", "iloveyou1", "trustno1", "letmein123", "1q2w3e4r"} {
			if passwordFault(common, "ada@example.com") == "" {
				t.Errorf("%q is accepted", common)
			}
		}
		for _, good := range []string{"correct horse battery", "permission notice", "aaaaaaab", "密码正确马电池钉", "        x"} {
			if fault := passwordFault(good, "ada@example.com"); fault != "" {
				t.Errorf("%q %s", good, fault)
			}
		}
	})
	t.Run("EachHashHasItsOwnSalt", func(t *testing.T) {
		if again := hashPassword("correct horse battery"); again == phc {
			t.Error("the same hash twice")
		}
	})
	t.Run("AnUnreadableHashIsAnErrorNotAMatch", func(t *testing.T) {
		for _, bad := range []string{"none", "$argon2i$v=19$m=1,t=1,p=1$c2FsdA$aGFzaA", "$argon2id$v=18$m=8,t=1,p=1$c2FsdA$aGFzaA", "$argon2id$v=19$x$c2FsdA$aGFzaA", "$argon2id$v=19$m=8,t=1,p=1$c2FsdA$"} {
			if match, err := p.verify(ctx, "x", bad); err == nil || match {
				t.Errorf("%q: %v %v", bad, match, err)
			}
		}
	})
	t.Run("WhoCannotHaveATurnIsToldToComeBack", func(t *testing.T) {
		done, err := p.turn(ctx)
		if err != nil {
			t.Fatal(err)
		}
		short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
		defer cancel()
		if _, err := p.hash(short, "x"); err != errBusyHashing {
			t.Errorf("%v", err)
		}
		done()
		if _, err := p.hash(ctx, "x"); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	})
}
