package store

import (
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"

	"github.com/lib/pq"
)

// Kind says what went wrong in terms a caller can act on.
type Kind int

// The kinds. Anything else is an internal error whose text must not leave the process.
const (
	NotFound     Kind = iota + 1 // absent, or of another workspace: the same answer
	Conflict                     // the row's state forbids it
	Invalid                      // the input is wrong
	BacklogFull                  // the plan's waiting tasks are used up
	PlanLimit                    // the plan does not include it
	Unauthorized                 // no or bad credential
	InFlight                     // another request with this idempotency key is still running
	KeyReused                    // the idempotency key was used with another body
)

// Error is an expected refusal. Message is safe to show to the workspace it concerns.
type Error struct {
	Kind    Kind
	Field   string // the input at fault, when Kind is Invalid
	Message string
}

func (e *Error) Error() string { return e.Message }

// KindOf returns the kind of err, 0 when it is not an Error.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return 0
}

func refuse(kind Kind, format string, args ...any) error {
	return &Error{Kind: kind, Message: fmt.Sprintf(format, args...)}
}

// noRows turns sql.ErrNoRows into NotFound and leaves other errors alone.
func noRows(err error, what string) error {
	if errors.Is(err, sql.ErrNoRows) {
		return refuse(NotFound, "no such %s", what)
	}
	return err
}

// violates reports whether err is a violation of the named constraint.
func violates(err error, constraint string) bool {
	var pe *pq.Error
	return errors.As(err, &pe) && pe.Constraint == constraint
}

// sqlCode returns the five-character code of a Postgres error, "" when err is none.
func sqlCode(err error) string {
	var pe *pq.Error
	if errors.As(err, &pe) {
		return string(pe.Code)
	}
	return ""
}

// sqlClass returns the two-character class of a Postgres error, "" when err is none.
func sqlClass(err error) string {
	code := sqlCode(err)
	return code[:min(2, len(code))]
}

// isConcurrency: a deadlock, a serialization failure, a lock timeout, or a line that changed under a submit (MU001, see
// migration 00021). The transaction did nothing; run it again.
func isConcurrency(err error) bool {
	return sqlClass(err) == "40" || sqlCode(err) == "55P03" || sqlCode(err) == "MU001"
}

// BadData reports whether the database refused the very values it was given (class 22 data exception, 23 constraint,
// 54 too large or too deep): asking again cannot help, other values may pass.
func BadData(err error) bool {
	switch sqlClass(err) {
	case "22", "23", "54":
		return true
	}
	return false
}

// Unavailable reports whether err means that the ledger could not be reached or was going away (connection failure,
// shutdown, pool exhausted, a held lock, a standby that takes no writes), so that the same request may succeed later.
// The outcome of a commit is then unknown.
func Unavailable(err error) bool {
	if err == nil {
		return false
	}
	switch sqlClass(err) {
	case "08", "57", "53", "40", "55":
		return true
	case "25", "0A": // a transaction ended by its idle timeout; a standby, which refuses BEGIN READ WRITE as a feature
		return true
	case "":
	default:
		return false
	}
	var netErr net.Error
	return errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrConnDone) || errors.Is(err, sql.ErrTxDone) || errors.As(err, &netErr) || isEOF(err)
}
