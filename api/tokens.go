package api

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

// Access tokens are JWTs signed with HS256 and nothing else. They name a user, a workspace and a session, and no
// rights: what the session may do is read from the ledger at each request. Refresh tokens are opaque random bits, so
// neither can be taken for the other.

// accessLife is how long an access token is good for, when its session lives.
const accessLife = 15 * time.Minute

const (
	tokenIssuer   = "muster"
	tokenAudience = "muster-api"
	tokenType     = "at+jwt" // RFC 9068; stands in the header
	tokenSkew     = 30 * time.Second
	refreshPrefix = "mst_rt_"
)

// claims of an access token; all are required.
type claims struct {
	jwt.RegisteredClaims
	Workspace string `json:"wid"`
	Session   string `json:"sid"`
}

// tokens signs with the current key and accepts the others too, so that keys can be changed without signing anybody
// out.
type tokens struct {
	current string
	keys    map[string][]byte // by key id
	parser  *jwt.Parser
	now     func() time.Time
}

func newTokens(signingKeys [][]byte, now func() time.Time) (*tokens, error) {
	if len(signingKeys) == 0 {
		return nil, errors.New("no signing key")
	}
	t := &tokens{keys: map[string][]byte{}, now: now}
	for i, key := range signingKeys {
		if len(key) < 32 {
			return nil, fmt.Errorf("signing key %d has %d bytes, want at least 32", i+1, len(key))
		}
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte("muster key id"))
		kid := hex.EncodeToString(mac.Sum(nil)[:8])
		if i == 0 {
			t.current = kid
		}
		t.keys[kid] = key
	}
	t.parser = jwt.NewParser(jwt.WithValidMethods([]string{jwt.SigningMethodHS256.Alg()}), jwt.WithIssuer(tokenIssuer),
		jwt.WithAudience(tokenAudience), jwt.WithExpirationRequired(), jwt.WithNotBeforeRequired(), jwt.WithStrictDecoding(),
		jwt.WithTimeFunc(now))
	return t, nil
}

// issue signs an access token of the session.
func (t *tokens) issue(ws, user, session uuid.UUID) (string, error) {
	now := t.now()
	token := jwt.NewWithClaims(jwt.SigningMethodHS256, claims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer: tokenIssuer, Audience: jwt.ClaimStrings{tokenAudience}, Subject: store.FormatID(store.UserPrefix, user),
			IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now.Add(-tokenSkew)), ExpiresAt: jwt.NewNumericDate(now.Add(accessLife)),
			ID: uuid.NewString(),
		},
		Workspace: store.FormatID(store.WorkspacePrefix, ws), Session: store.FormatID(store.SessionPrefix, session),
	})
	token.Header["kid"], token.Header["typ"] = t.current, tokenType
	signed, err := token.SignedString(t.keys[t.current])
	if err != nil {
		return "", fmt.Errorf("sign access token: %w", err)
	}
	return signed, nil
}

// verify reads an access token; ok is false for anything but a valid one.
func (t *tokens) verify(text string) (ws, user, session uuid.UUID, ok bool) {
	if strings.ContainsAny(text, "\r\n") { // which package base64 skips, also when it is strict
		return ws, user, session, false
	}
	var c claims
	_, err := t.parser.ParseWithClaims(text, &c, func(token *jwt.Token) (any, error) {
		kid, _ := token.Header["kid"].(string)
		key, known := t.keys[kid]
		if !known || token.Header["typ"] != tokenType {
			return nil, errors.New("not one of our access tokens")
		}
		return key, nil
	})
	if err != nil {
		return ws, user, session, false
	}
	ws, ok1 := store.ParseID(store.WorkspacePrefix, c.Workspace)
	user, ok2 := store.ParseID(store.UserPrefix, c.Subject)
	session, ok3 := store.ParseID(store.SessionPrefix, c.Session)
	return ws, user, session, ok1 && ok2 && ok3
}

// newToken makes an opaque token with the prefix of its kind, and the hash under which the ledger knows it.
func newToken(prefix string) (text string, hash []byte) {
	var secret [32]byte
	_, _ = rand.Read(secret[:]) // never fails
	text = prefix + base64.RawURLEncoding.EncodeToString(secret[:])
	return text, hashSecret(text)
}

// hashSecret is how secrets of full entropy are stored and looked up.
func hashSecret(text string) []byte {
	sum := sha256.Sum256([]byte(text))
	return sum[:]
}
