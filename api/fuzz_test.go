package api

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

// Fuzz targets: each runs over its seeds in every go test, for seconds in scripts/test and for as long as one likes by
// scripts/fuzz. Besides "does not panic" each holds a property.

// fuzzBody has a field of each kind that request structs have.
type fuzzBody struct {
	Text   string            `json:"text" required:"true"`
	Maybe  *string           `json:"maybe"`
	Number int               `json:"number"`
	Flag   bool              `json:"flag"`
	Pairs  map[string]string `json:"pairs"`
	List   []string          `json:"list"`
	Nested []fuzzNested      `json:"nested"`
	Free   jsonObject        `json:"free"`
}

type fuzzNested struct {
	Number *int64 `json:"number"`
	Text   string `json:"text"`
}

// FuzzDecodeStrict: what is accepted is what encoding/json reads, to the same value.
func FuzzDecodeStrict(f *testing.F) {
	for _, b := range bodies {
		if len(b.body) < 10_000 {
			f.Add([]byte(b.body))
		}
	}
	f.Add([]byte(`{"text": "a", "maybe": null, "number": -1, "flag": true, "pairs": {"a": "b"}, "list": ["x"], "nested": [{"number": 9223372036854775807, "text": "\u00e9\n"}], "free": {"a": [1e5, null]}}`))
	f.Add([]byte(`{"text": "a", "list": [], "pairs": {}, "nested": [], "free": null}`))
	f.Add([]byte(`{"text":"a","TEXT":"b"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var tasks newTasksBody
		_, _ = decodeStrict(raw, &tasks) // must not panic
		var task newTaskBody
		if fields, err := decodeStrict(raw, &task); err == nil && len(fields) == 0 && task.Prompt == "" {
			t.Errorf("accepted without a prompt: %q", raw)
		}
		var ours, theirs fuzzBody
		fields, err := decodeStrict(raw, &ours)
		if err != nil || len(fields) > 0 {
			for _, field := range fields {
				if !utf8.ValidString(field.Field + field.Detail) {
					t.Errorf("told in invalid UTF-8: %q", field)
				}
			}
			return
		}
		dec := json.NewDecoder(bytes.NewReader(raw))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&theirs); err != nil {
			t.Fatalf("accepted %q, which encoding/json refuses: %v", raw, err)
		}
		if string(theirs.Free.RawMessage) == "null" {
			theirs.Free = jsonObject{}
		}
		a, errA := json.Marshal(ours)
		b, errB := json.Marshal(theirs)
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			t.Errorf("%q is %s to us and %s to encoding/json (%v, %v)", raw, a, b, errA, errB)
		}
	})
}

// FuzzCursor: what opens is what was sealed for that workspace and list; nothing else does.
func FuzzCursor(f *testing.F) {
	c, foreign := newCursors(testKeys), newCursors([][]byte{[]byte("a key that is none of the tests' own")})
	old := newCursors(testKeys[1:])
	ws := uuid.MustParse("01900000-0000-7000-8000-000000000001")
	for _, text := range []string{c.seal(ws, "tasks", "x"), old.seal(ws, "tasks", []int{1}), foreign.seal(ws, "tasks", "x"), c.seal(uuid.Nil, "tasks", "x"), "", "AAAA", "====", strings.Repeat("A", 5000)} {
		f.Add(text, "tasks", uint16(3), byte(1))
	}
	f.Fuzz(func(t *testing.T, text, list string, at uint16, flip byte) {
		var position json.RawMessage
		if err := c.open(ws, list, text, &position); err == nil {
			if text != c.sealRaw(ws, list, position) && text != old.sealRaw(ws, list, position) {
				t.Fatalf("%q opens as %s", text, position)
			}
		} else if e, _ := classify(err); e.status != http.StatusBadRequest {
			t.Fatalf("%v", err)
		}
		if !utf8.ValidString(text) {
			return
		}
		sealed := c.seal(ws, list, text)
		var back string
		if err := c.open(ws, list, sealed, &back); err != nil || back != text {
			t.Fatalf("sealed %q, opened %q, %v", text, back, err)
		}
		if c.open(ws, list+"x", sealed, &back) == nil || c.open(uuid.Nil, list, sealed, &back) == nil {
			t.Fatal("it opens for another list or workspace")
		}
		if changed := mutate(sealed, at, flip); changed != sealed && c.open(ws, list, changed, &back) == nil {
			t.Fatalf("%q opens, changed from %q", changed, sealed)
		}
	})
}

// sealRaw is seal of a position that is JSON already.
func (c cursors) sealRaw(ws uuid.UUID, list string, raw json.RawMessage) string {
	return c.seal(ws, list, raw)
}

// mutate changes one byte.
func mutate(s string, at uint16, flip byte) string {
	b := []byte(s)
	b[int(at)%len(b)] ^= flip
	return string(b)
}

// FuzzAccessToken: a token is accepted only letter by letter as one of the keys signs it.
func FuzzAccessToken(f *testing.F) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	clock := func() time.Time { return now }
	issuer := func(keys [][]byte) *tokens {
		tk, err := newTokens(keys, clock)
		if err != nil {
			f.Fatal(err)
		}
		return tk
	}
	ours := issuer(testKeys)
	ws, user, session := uuid.New(), uuid.New(), uuid.New()
	issued := map[string]bool{}
	for _, keys := range [][][]byte{testKeys, testKeys[1:]} {
		text, err := issuer(keys).issue(ws, user, session)
		if err != nil {
			f.Fatal(err)
		}
		if _, _, _, ok := ours.verify(text); !ok {
			f.Fatal("an issued token is refused")
		}
		issued[text] = true
		parts := strings.Split(text, ".")
		f.Add(text, uint16(0), byte(0))
		f.Add(text, uint16(len(text)-1), byte(1))
		f.Add("eyJhbGciOiJub25lIiwidHlwIjoiYXQrand0In0."+parts[1]+".", uint16(9), byte(32))
		f.Add(parts[0]+"."+parts[1]+"."+parts[2]+"=", uint16(40), byte(2))
		f.Add(parts[0]+"."+parts[1], uint16(80), byte(4))
		f.Add(text+"\n", uint16(80), byte(4))
	}
	foreign, err := issuer([][]byte{[]byte("a key that is none of the tests' own")}).issue(ws, user, session)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(foreign, uint16(1), byte(1))
	signed := func(text string) bool { // not by comparing with issued: fuzzing runs in several processes, each with its own
		content := text[:strings.LastIndexByte(text, '.')]
		return slices.ContainsFunc(testKeys, func(key []byte) bool {
			mac := hmac.New(sha256.New, key)
			mac.Write([]byte(content))
			return text == content+"."+base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
		})
	}
	f.Fuzz(func(t *testing.T, text string, at uint16, flip byte) {
		if _, _, _, ok := ours.verify(text); ok && !signed(text) {
			t.Fatalf("accepted: %q", text)
		}
		for good := range issued {
			changed := mutate(good, at, flip)
			gotWS, gotUser, gotSession, ok := ours.verify(changed)
			if ok != (changed == good) {
				t.Fatalf("accepted is %v: %q, changed from %q", ok, changed, good)
			}
			if ok && (gotWS != ws || gotUser != user || gotSession != session) {
				t.Fatal("read as somebody else's")
			}
		}
	})
}

// FuzzAPIKey: the form says all that the checksum can: no key with one byte changed has it.
func FuzzAPIKey(f *testing.F) {
	f.Add(newAPIKey(), uint16(12), byte(1))
	f.Add(keyPrefix+strings.Repeat("0", keyRandom)+"000000", uint16(44), byte(7))
	f.Add(keyPrefix, uint16(0), byte(32))
	f.Add("mst_live_\x00", uint16(20), byte(128))
	f.Fuzz(func(t *testing.T, text string, at uint16, flip byte) {
		if validKey(text) {
			random, ok := strings.CutPrefix(text, keyPrefix)
			if !ok || len(random) != keyRandom+keyChecksum || strings.Trim(random, base62) != "" || random[keyRandom:] != keySum(text[:len(text)-keyChecksum]) {
				t.Fatalf("accepted: %q", text)
			}
		}
		key := newAPIKey()
		if !validKey(key) || !looksLikeKey(key) {
			t.Fatalf("our own key is refused: %q", key)
		}
		if changed := mutate(key, at, flip); changed != key && validKey(changed) {
			t.Fatalf("accepted: %q, changed from %q", changed, key)
		}
	})
}

// FuzzProblem: whatever an error says, its answer is one JSON object of the published shape, and its headers are ours.
func FuzzProblem(f *testing.F) {
	f.Add("no such task", "tasks[3].prompt", "must not be empty", "req_1", 3)
	f.Add("\r\nSet-Cookie: a=b\r\n\r\n<script>", "\"}]", "\xff\xfe\x00\u2028", "a\r\nb", 17)
	f.Add(noCredential, "", "", "", 1)
	all := []problem{probBadRequest, probUnauthorized, probPlanLimit, probForbidden, probNotFound, probMethodNotAllowed, probTimeout, probConflict, probInFlight, probTooLarge, probMediaType,
		probInvalid, probKeyReused, probRateLimited, probSignInDelayed, probBacklogFull, probInternal, probUnavailable}
	f.Fuzz(func(t *testing.T, detail, field, fault, id string, which int) {
		p := all[uint(which)%uint(len(all))]
		e := &apiError{problem: p, detail: detail, fields: []fieldError{{Field: field, Detail: fault}}, scope: "tasks:read"}
		if !safeRequestID(id) { // identify lets no other one come so far
			id = "req_0"
		}
		w := httptest.NewRecorder()
		writeProblem(w, id, e)
		var got problemJSON
		dec := json.NewDecoder(w.Body)
		dec.DisallowUnknownFields()
		if err := dec.Decode(&got); err != nil || dec.More() {
			t.Fatalf("no JSON: %v", err)
		}
		clean := func(s string) string { return string([]rune(s)) } // invalid bytes are shown as U+FFFD
		if got.Status != p.status || w.Code != p.status || got.Type != problemBase+p.slug || got.RequestID != id || got.Detail != clean(detail) || got.Errors[0] != (fieldError{clean(field), clean(fault)}) {
			t.Errorf("%+v of %q", got, detail)
		}
		for name, values := range w.Header() {
			switch name {
			case "Content-Type", "Cache-Control", "Retry-After", "Www-Authenticate":
			default:
				t.Errorf("header %s", name)
			}
			if strings.ContainsAny(strings.Join(values, ""), "\r\n\x00") {
				t.Errorf("header %s: %q", name, values)
			}
		}
	})
}

// FuzzHeaders: what clients write into headers and queries is read as one of few things or as nothing.
func FuzzHeaders(f *testing.F) {
	f.Add("wait=5", "acme.example.com", "abc-1", "https://app.example.com")
	f.Add("respond-async, wait=60; foo", "ACME.example.com.:443", strings.Repeat("x", 129), "null")
	f.Add("wait=-1, wait=999999999999999999999", "[::1]:80", "\r\n", "https://*.example.com")
	f.Add("wait==", "..example.com", "é", "https://user@x")
	f.Fuzz(func(t *testing.T, prefer, host, id, origin string) {
		if n := preferredWait([]string{prefer, prefer}); n < 0 || n > maxWait {
			t.Errorf("%q waits %d s", prefer, n)
		}
		if label := tenantOf("example.com", host); label != "" && (!dnsLabel(label) || !strings.HasPrefix(strings.ToLower(host), label+".example.com")) {
			t.Errorf("%q chooses %q", host, label)
		}
		if slugFault(host) == "" && (!dnsLabel(host) || len(host) < 3) {
			t.Errorf("%q is a slug", host)
		}
		if safeRequestID(id) && (len(id) > 128 || strings.ContainsAny(id, " \"'<>\r\n\x00\\")) {
			t.Errorf("request id %q", id)
		}
		if CheckOrigin(origin) == nil && (strings.ContainsAny(origin, "*@ \r\n,'\"\\?#") || strings.Count(origin, "/") != 2 || origin != strings.ToLower(origin)) {
			t.Errorf("origin %q", origin)
		}
		if media := isJSON(origin); media && !strings.Contains(strings.ToLower(origin), "application/json") {
			t.Errorf("media type %q", origin)
		}
		if n := tasksIn([]byte(prefer + host)); n < 0 {
			t.Errorf("%d tasks", n)
		}
		for _, prefix := range []string{store.TaskPrefix, store.WorkspacePrefix} {
			if ws, ok := store.ParseID(prefix, id); ok && store.FormatID(prefix, ws) != id {
				t.Errorf("%q is read as %s", id, ws)
			}
		}
	})
}
