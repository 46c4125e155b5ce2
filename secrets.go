package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"

	"github.com/hibiken/asynq"
)

// Secrets reach their users and nobody's eyes. Two things see to it: the settings that hold them print as "[redacted]"
// whichever way they are printed, and whatever a process writes goes through a redactor that knows its secrets, since a
// server may repeat one in an error.

const redacted = "[redacted]"

// Secret is a setting that is never shown; string(s) is what it says.
type Secret string

// Format hides it from every verb of fmt; a String method alone would leave %d and %#v.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// MarshalText hides it from JSON and its like.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// secretKeys are keys that are never shown.
type secretKeys [][]byte

func (secretKeys) Format(f fmt.State, _ rune)   { _, _ = io.WriteString(f, redacted) }
func (secretKeys) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// redisServer is how to reach Redis, with its password; nil inside when there is none.
type redisServer struct {
	asynq.RedisConnOpt
	url Secret
}

func (redisServer) Format(f fmt.State, _ rune)   { _, _ = io.WriteString(f, redacted) }
func (redisServer) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// leastSecret is the length in characters from which a secret is looked for in what is written, and the least that production
// takes for a password: shorter ones stand in innocent words.
const leastSecret = 12

// redactor replaces a process' own secrets in what it writes. A secret that is split over two writes would pass: the log and
// the commands write whole lines.
type redactor struct {
	to      io.Writer
	replace *strings.Replacer
}

func (r redactor) Write(p []byte) (int, error) {
	if _, err := r.replace.WriteString(r.to, string(p)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// redact returns writers that know the secrets in these variables.
func redact(getenv func(string) string, writers ...io.Writer) []io.Writer {
	var pairs []string
	for _, v := range variables {
		if !v.secret {
			continue
		}
		value, err := v.value(getenv, nil)
		if err != nil {
			continue // the command says so
		}
		for _, secret := range secretsIn(value) {
			if len(secret) >= leastSecret {
				for _, spelled := range spellings(secret) {
					pairs = append(pairs, spelled, redacted)
				}
			}
		}
	}
	replace := strings.NewReplacer(pairs...)
	out := make([]io.Writer, len(writers))
	for i, w := range writers {
		out[i] = redactor{w, replace}
	}
	return out
}

// secretsIn are the parts of a setting that must not be seen: of a URL its password, of a list each element.
func secretsIn(value string) []string {
	if _, rest, found := strings.Cut(value, "://"); found {
		at := strings.LastIndexByte(rest, '@')
		_, spelled, _ := strings.Cut(rest[:max(at, 0)], ":")
		return []string{passwordOf(Secret(value)), spelled}
	}
	secrets := []string{value}
	for part := range strings.SplitSeq(value, ",") {
		secrets = append(secrets, strings.TrimSpace(part))
	}
	return secrets
}

// passwordOf is the password in a URL, "" when there is none.
func passwordOf(server Secret) string {
	scheme, rest, _ := strings.Cut(string(server), "://")
	if at := strings.LastIndexByte(rest, '@'); at >= 0 {
		rest = rest[:at] // what follows may name several hosts, which package url does not read
	} else {
		return ""
	}
	u, err := url.Parse(scheme + "://" + rest + "@host")
	if err != nil {
		return ""
	}
	password, _ := u.User.Password()
	return password
}

// spellings are the ways in which a text stands in logs, URLs and JSON.
func spellings(text string) []string {
	quoted, _ := json.Marshal(text) // a string: cannot fail
	all := []string{text, url.QueryEscape(text), url.PathEscape(text), strings.Trim(string(quoted), `"`), strings.Trim(strconv.Quote(text), `"`)}
	return all
}
