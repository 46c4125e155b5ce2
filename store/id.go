package store

import (
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"syscall"

	"github.com/google/uuid"
)

// Type prefixes of ids, as they stand in HTTP and on the command line. Inside, an id is a UUIDv7.
const (
	WorkspacePrefix = "ws_"
	UserPrefix      = "usr_"
	TaskPrefix      = "task_"
	KeyPrefix       = "key_"
	AgentPrefix     = "agt_"
	SessionPrefix   = "ses_"
	AttemptPrefix   = "att_"
	CallPrefix      = "call_"
	WorkerPrefix    = "wrk_"

	InvitationPrefix = "inv_"
	SchedulePrefix   = "sched_"
	WebhookPrefix    = "wh_"
	EventPrefix      = "evt_" // of what a webhook tells; goes out as webhook-id
)

// NewID returns a UUIDv7: sortable by time to the millisecond and, within this process, strictly growing.
func NewID() uuid.UUID { return uuid.Must(uuid.NewV7()) }

// FormatID writes id for the outside: the prefix and 32 hexadecimal digits.
func FormatID(prefix string, id uuid.UUID) string { return prefix + hex.EncodeToString(id[:]) }

// ParseID reads what FormatID wrote, and nothing else; ok is false for any other text.
func ParseID(prefix, s string) (id uuid.UUID, ok bool) {
	digits, found := strings.CutPrefix(s, prefix)
	if !found || len(digits) != 32 || strings.ToLower(digits) != digits {
		return uuid.Nil, false
	}
	raw, err := hex.DecodeString(digits)
	if err != nil {
		return uuid.Nil, false
	}
	copy(id[:], raw)
	return id, id != uuid.Nil
}

func isEOF(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNREFUSED)
}
