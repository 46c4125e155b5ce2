package store

import (
	"database/sql/driver"
	"encoding/binary"
	"time"

	"github.com/google/uuid"
)

// Arrays as parameters of the line's statements, in Postgres' binary format: neither side spells out and reads back some
// hundred UUIDs and numbers for each shared transaction, as pq.Array would have them. (With binary parameters lib/pq sends
// bytes as they are.)

// Types of elements, as pg_type has them.
const (
	oidBool        = 16
	oidInt8        = 20
	oidText        = 25
	oidDate        = 1082
	oidTimestamptz = 1184
	oidUUID        = 2950
	oidJSONB       = 3802
)

// array is a driver.Valuer for n elements; element appends the i-th to b, or says that it is null.
type array struct {
	oid     uint32
	n       int
	element func(b []byte, i int) (_ []byte, null bool)
}

// Value is the array in binary: dimensions, whether nulls may come, the element's type, the dimension's length and lower
// bound, then each element behind its length (-1: null).
func (a array) Value() (driver.Value, error) {
	b := make([]byte, 0, 20+a.n*24)
	b = binary.BigEndian.AppendUint32(b, 1)
	b = binary.BigEndian.AppendUint32(b, 1)
	b = binary.BigEndian.AppendUint32(b, a.oid)
	b = binary.BigEndian.AppendUint32(b, uint32(a.n))
	b = binary.BigEndian.AppendUint32(b, 1)
	for i := range a.n {
		at := len(b)
		b = append(b, 0, 0, 0, 0)
		var null bool
		if b, null = a.element(b, i); null {
			binary.BigEndian.PutUint32(b[at:], ^uint32(0))
			continue
		}
		binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at-4))
	}
	return b, nil
}

func uuids(list []uuid.UUID) array {
	return array{oidUUID, len(list), func(b []byte, i int) ([]byte, bool) { return append(b, list[i][:]...), false }}
}

// nullUUIDs takes nil for null.
func nullUUIDs(list []*uuid.UUID) array {
	return array{oidUUID, len(list), func(b []byte, i int) ([]byte, bool) {
		if list[i] == nil {
			return b, true
		}
		return append(b, list[i][:]...), false
	}}
}

func bigints(list []int64) array {
	return array{oidInt8, len(list), func(b []byte, i int) ([]byte, bool) {
		return binary.BigEndian.AppendUint64(b, uint64(list[i])), false
	}}
}

func bools(list []bool) array {
	return array{oidBool, len(list), func(b []byte, i int) ([]byte, bool) {
		if list[i] {
			return append(b, 1), false
		}
		return append(b, 0), false
	}}
}

func texts(list []string) array {
	return array{oidText, len(list), func(b []byte, i int) ([]byte, bool) { return append(b, list[i]...), false }}
}

// bytesAsTexts is texts of what is bytes already.
func bytesAsTexts(list [][]byte) array {
	return array{oidText, len(list), func(b []byte, i int) ([]byte, bool) { return append(b, list[i]...), false }}
}

// jsonbs takes nil for null.
func jsonbs(list [][]byte) array {
	return array{oidJSONB, len(list), func(b []byte, i int) ([]byte, bool) {
		if list[i] == nil {
			return b, true
		}
		return append(append(b, 1), list[i]...), false // 1: the format's version
	}}
}

// epoch is Postgres' own.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// times takes nil for null; microseconds.
func times(list []*time.Time) array {
	return array{oidTimestamptz, len(list), func(b []byte, i int) ([]byte, bool) {
		if list[i] == nil {
			return b, true
		}
		return binary.BigEndian.AppendUint64(b, uint64(list[i].UnixMicro()-epoch.UnixMicro())), false
	}}
}

// dates are the UTC days of the times.
func dates(list []time.Time) array {
	return array{oidDate, len(list), func(b []byte, i int) ([]byte, bool) {
		return binary.BigEndian.AppendUint32(b, uint32(int32(list[i].Sub(epoch)/(24*time.Hour)))), false
	}}
}

// textOf writes an id for an array parameter of pq's, nil for none.
func textOf(id uuid.NullUUID) *string {
	if !id.Valid {
		return nil
	}
	text := id.UUID.String()
	return &text
}

// textOfTime writes a time for an array parameter of pq's, nil for none.
func textOfTime(at *time.Time) *string {
	if at == nil {
		return nil
	}
	text := at.UTC().Format(time.RFC3339Nano)
	return &text
}
