package api

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strings"

	"github.com/google/uuid"
)

// A cursor says where a page ended. It is opaque and sealed: it carries a MAC over the workspace, the list and its
// filters, so that one that was made up, edited, or taken from another workspace or another query is a 400.

const cursorMACBytes = 16

// cursors seals and opens cursors with keys derived from the signing keys: the first seals, all open.
type cursors struct{ keys [][]byte }

func newCursors(signingKeys [][]byte) cursors {
	var c cursors
	for _, key := range signingKeys {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte("muster cursor"))
		c.keys = append(c.keys, mac.Sum(nil))
	}
	return c
}

// seal writes a cursor of the list (its name and filters) to position, any JSON value.
func (c cursors) seal(ws uuid.UUID, list string, position any) string {
	raw, _ := json.Marshal(position) // ids, times and strings: cannot fail
	return base64.RawURLEncoding.EncodeToString(append(cursorMAC(c.keys[0], ws, list, raw), raw...))
}

// open reads a cursor that seal wrote for the same workspace and list into position.
func (c cursors) open(ws uuid.UUID, list, text string, position any) error {
	sealed, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err == nil && !strings.ContainsAny(text, "\r\n") && len(sealed) > cursorMACBytes {
		for _, key := range c.keys {
			if hmac.Equal(sealed[:cursorMACBytes], cursorMAC(key, ws, list, sealed[cursorMACBytes:])) {
				if json.Unmarshal(sealed[cursorMACBytes:], position) == nil {
					return nil
				}
			}
		}
	}
	return refuse(probBadRequest, "the cursor is not one of this list's: follow next_cursor with the same filters")
}

func cursorMAC(key []byte, ws uuid.UUID, list string, raw []byte) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write(ws[:])
	mac.Write([]byte(list))
	mac.Write([]byte{0})
	mac.Write(raw)
	return mac.Sum(nil)[:cursorMACBytes]
}
