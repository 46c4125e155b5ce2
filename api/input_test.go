package api

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
)

func nested(open, inner, end string, depth int) string {
	return strings.Repeat(open, depth) + inner + strings.Repeat(end, depth)
}

// bodies that POST /v1/tasks is sent; field is the one a 422 names.
var bodies = []struct {
	name, body string
	status     int
	field      string
}{
	{"AnObject", `{"prompt": "x"}`, 202, ""},
	{"SpaceAround", " \n\t{\"prompt\": \"x\"}\r\n ", 202, ""},
	{"Empty", ``, 400, ""},
	{"NotJSON", `prompt=x`, 400, ""},
	{"Cut", `{"prompt": "x"`, 400, ""},
	{"Array", `[{"prompt": "x"}]`, 400, ""},
	{"Null", `null`, 400, ""},
	{"Text", `"x"`, 400, ""},
	{"TrailingData", `{"prompt": "x"} {"prompt": "y"}`, 400, ""},
	{"TrailingBrace", `{"prompt": "x"}}`, 400, ""},
	{"Comment", `{"prompt": "x"} // y`, 400, ""},
	{"TrailingComma", `{"prompt": "x",}`, 400, ""},
	{"ByteOrderMark", "\ufeff" + `{"prompt": "x"}`, 400, ""},
	{"DuplicateKey", `{"prompt": "x", "prompt": "y"}`, 400, ""},
	{"DuplicateByEscape", `{"prompt": "x", "pr\u006fmpt": "y"}`, 400, ""},
	{"DuplicateDeepInside", `{"prompt": "x", "input": {"a": [{"b": 1, "b": 2}]}}`, 400, ""},
	{"DuplicateInMetadata", `{"prompt": "x", "metadata": {"a": "1", "a": "2"}}`, 400, ""},
	{"SameKeyInTwoObjects", `{"prompt": "x", "input": {"a": {"b": 1}, "c": {"b": 2}}}`, 202, ""},
	{"UnknownField", `{"prompt": "x", "promt": "y"}`, 422, "promt"},
	{"OtherCase", `{"Prompt": "x"}`, 422, "Prompt"},
	{"InvalidUTF8", "{\"prompt\": \"\xff\"}", 400, ""},
	{"OverlongUTF8", "{\"prompt\": \"\xc0\x80\"}", 400, ""},
	{"RawNUL", "{\"prompt\": \"a\x00b\"}", 400, ""},
	{"EscapedNUL", `{"prompt": "a\u0000b"}`, 422, "prompt"},
	{"NULInInput", `{"prompt": "x", "input": {"a": ["b\u0000"]}}`, 422, "input.a[0]"},
	{"NULInAKey", `{"prompt": "x", "input": {"a\u0000": 1}}`, 422, "input.?"},
	{"NULInMetadata", `{"prompt": "x", "metadata": {"a": "\u0000"}}`, 422, "metadata.a"},
	{"BackslashU0000", `{"prompt": "x", "input": {"a": "\\u0000"}}`, 202, ""},
	{"LoneHighSurrogate", `{"prompt": "x", "input": {"a": "\ud800"}}`, 422, "input.a"},
	{"LoneLowSurrogate", `{"prompt": "x", "input": {"a": "\udc00x"}}`, 422, "input.a"},
	{"SwappedSurrogates", `{"prompt": "\ude00\ud83d"}`, 422, "prompt"},
	{"SurrogatePair", `{"prompt": "\ud83d\ude00", "input": {"a": "\uD83D\uDE00\ud83d\ude00"}}`, 202, ""},
	{"HugeNumber", `{"prompt": "x", "input": {"a": 1e999999}}`, 422, "input.a"},
	{"TinyNumber", `{"prompt": "x", "input": {"a": 1e-999999}}`, 422, "input.a"},
	{"LongNumber", `{"prompt": "x", "input": {"a": ` + strings.Repeat("1", 500) + `}}`, 422, "input.a"},
	{"ZeroToAPower", `{"prompt": "x", "input": {"a": 0e5, "b": -0.0, "c": 1.5e300}}`, 202, ""},
	{"HugePriority", `{"prompt": "x", "priority": 99999999999999999999}`, 422, "priority"},
	{"FloatPriority", `{"prompt": "x", "priority": 1.0}`, 422, "priority"},
	{"AtTheDepthLimit", `{"prompt": "x", "input": ` + nested(`{"a":`, `1`, `}`, maxDepth-1) + `}`, 202, ""},
	{"BeyondTheDepthLimit", `{"prompt": "x", "input": ` + nested(`{"a":`, `1`, `}`, maxDepth) + `}`, 400, ""},
	{"DeepArrays", `{"prompt": "x", "input": {"a": ` + nested(`[`, ``, `]`, 5000) + `}}`, 400, ""},
	{"DeeperThanGoReads", `{"prompt": "x", "input": ` + nested(`[`, ``, `]`, 100_000) + `}`, 400, ""},
	{"DeepUnknownField", `{"prompt": "x", "y": ` + nested(`[`, ``, `]`, 5000) + `}`, 400, ""},
	{"ManyUnknownFields", `{"prompt": "x"` + manyFields(1000) + `}`, 422, "f0"},
	{"AnInputAtItsLimit", `{"prompt": "x", "input": {"a": "` + strings.Repeat("a", maxInputBytes-len(`{"a": ""}`)) + `"}}`, 202, ""},
	{"AnInputBeyondItsLimit", `{"prompt": "x", "input": {"a": "` + strings.Repeat("a", maxInputBytes) + `"}}`, 422, "input"},
	{"AMegabyte", `{"prompt": "x", "input": {"a": "` + strings.Repeat("a", 1<<20-100) + `"}}`, 422, "input"},
	{"MoreThanAMegabyte", `{"prompt": "x", "input": {"a": "` + strings.Repeat("a", 1<<20) + `"}}`, 413, ""},
}

func manyFields(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `, "f%d": %d`, i, i)
	}
	return b.String()
}

func TestBodiesAreReadStrictly(t *testing.T) {
	t.Parallel()
	c := newWorld(t, nil).owner("pro")
	for _, b := range bodies {
		t.Run(b.name, func(t *testing.T) {
			r := c.post("/v1/tasks", b.body).want(b.status)
			if b.field != "" && !slices.Contains(r.fields(), b.field) {
				t.Errorf("fields %v, want %s", r.fields(), b.field)
			}
			if b.status == 422 && len(r.fields()) > maxFieldErrors {
				t.Errorf("%d fields", len(r.fields()))
			}
			if b.status == 202 {
				c.get("/v1/tasks/" + r.str("id")).want(200)
			}
		})
	}
}

func TestMediaTypes(t *testing.T) {
	t.Parallel()
	c := newWorld(t, nil).owner("")
	for contentType, want := range map[string]int{
		"application/json": 202, "application/json; charset=utf-8": 202, "Application/JSON;charset=UTF-8": 202,
		"application/json; charset=latin1": 415, "text/plain": 415, "application/x-www-form-urlencoded": 415, "multipart/form-data; boundary=x": 415,
		"": 415, "application/json; charset": 415, "application/jsonx": 415,
	} {
		if r := c.post("/v1/tasks", `{"prompt": "x"}`, headers{"Content-Type": contentType}); r.status != want {
			t.Errorf("%q: %d, want %d", contentType, r.status, want)
		}
	}
	t.Run("ACompressedBodyIsRefusedUnread", func(t *testing.T) {
		var bomb bytes.Buffer
		z := gzip.NewWriter(&bomb)
		if _, err := z.Write(bytes.Repeat([]byte(" "), 10<<20)); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		for _, encoding := range []string{"gzip", "br", "deflate, gzip"} {
			c.post("/v1/tasks", bomb.String(), headers{"Content-Encoding": encoding}).problem(probMediaType)
		}
		c.post("/v1/tasks", `{"prompt": "x"}`, headers{"Content-Encoding": "identity"}).want(202)
	})
	t.Run("ABatchMayHaveEightMegabytes", func(t *testing.T) {
		task := `{"prompt": "` + strings.Repeat("x", 250<<10) + `"}`
		c.post("/v1/tasks/batch", `{"tasks": [`+strings.Repeat(task+",", 30)+task+`]}`).want(202)
		c.post("/v1/tasks/batch", `{"tasks": [`+strings.Repeat(task+",", 33)+task+`]}`).problem(probTooLarge)
	})
	t.Run("ABodyOfUnknownLengthIsCutAtTheLimit", func(t *testing.T) {
		pipe, feed := io.Pipe()
		go func() {
			chunk := bytes.Repeat([]byte(" "), 64<<10)
			for range 64 {
				if _, err := feed.Write(chunk); err != nil {
					return
				}
			}
			feed.Close()
		}()
		req, err := http.NewRequest("POST", c.url+"/v1/tasks", pipe)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Authorization", "Bearer "+c.credential)
		resp, err := testTransport.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("status %d", resp.StatusCode)
		}
	})
}
