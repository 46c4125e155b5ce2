package webhooks

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
)

// A secret signs what goes to one endpoint. Signing needs it as it is, so it cannot be kept as a hash: the ledger holds
// it sealed with a key that only the processes know. The API seals and cannot read back, the scheduler opens.

// secretPrefix and secretBytes make a secret as Standard Webhooks wants it.
const (
	secretPrefix = "whsec_"
	secretBytes  = 32
)

// NewSecret makes a secret as its customer is shown it, once.
func NewSecret() string {
	raw := make([]byte, secretBytes)
	_, _ = rand.Read(raw) // never fails (crypto/rand)
	return secretPrefix + base64.StdEncoding.EncodeToString(raw)
}

// Sign is the signature of a message under a secret, "v1,…": HMAC-SHA-256 over id, time and body.
func Sign(secret, id string, at time.Time, body []byte) (string, error) {
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, secretPrefix))
	if err != nil {
		return "", errors.New("sign webhook: the secret is not base64")
	}
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(id + "." + strconv.FormatInt(at.Unix(), 10) + "."))
	mac.Write(body)
	return "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)), nil
}

// Keys seal secrets: the first seals, all open, so that a key is replaced by putting a new one first and leaving the old
// one until the last secret under it was rotated. Each has at least 32 bytes.
type Keys struct{ sealers []sealer }

type sealer struct {
	id   [4]byte // tells the keys apart in what they have sealed
	aead cipher.AEAD
}

// NewKeys derives sealing keys.
func NewKeys(keys [][]byte) (Keys, error) {
	var k Keys
	for _, key := range keys {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte("muster webhook secrets"))
		derived := mac.Sum(nil)
		block, err := aes.NewCipher(derived)
		if err != nil {
			return Keys{}, fmt.Errorf("make webhook key: %w", err)
		}
		aead, err := cipher.NewGCM(block)
		if err != nil {
			return Keys{}, fmt.Errorf("make webhook key: %w", err)
		}
		sum := sha256.Sum256(derived)
		k.sealers = append(k.sealers, sealer{id: [4]byte(sum[:4]), aead: aead})
	}
	return k, nil
}

// Ready reports whether there is a key to seal with.
func (k Keys) Ready() bool { return len(k.sealers) > 0 }

// Seal closes a secret for one endpoint: moved to another it does not open.
func (k Keys) Seal(secret string, ws, endpoint uuid.UUID) []byte {
	s := k.sealers[0]
	nonce := make([]byte, s.aead.NonceSize())
	_, _ = rand.Read(nonce) // never fails (crypto/rand)
	return s.aead.Seal(append(s.id[:], nonce...), nonce, []byte(secret), owner(ws, endpoint))
}

// errNotOurs: none of the keys has sealed it for this endpoint.
var errNotOurs = errors.New("the webhook's secret was sealed with a key that is not in WEBHOOK_KEYS")

// Open returns what Seal closed.
func (k Keys) Open(sealed []byte, ws, endpoint uuid.UUID) (string, error) {
	for _, s := range k.sealers {
		if n := len(s.id) + s.aead.NonceSize(); len(sealed) > n && string(sealed[:len(s.id)]) == string(s.id[:]) {
			if secret, err := s.aead.Open(nil, sealed[len(s.id):n], sealed[n:], owner(ws, endpoint)); err == nil {
				return string(secret), nil
			}
		}
	}
	return "", errNotOurs
}

func owner(ws, endpoint uuid.UUID) []byte { return append(ws[:], endpoint[:]...) }
