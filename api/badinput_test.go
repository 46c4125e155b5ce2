package api

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// Bad input below the bodies of input_test.go: what is wrong with the request itself. Each case is one request as it stands on the
// wire, sent over a connection of its own; TOKEN is a good credential.

const whole = "Content-Type: application/json\r\nContent-Length: 15\r\n\r\n{\"prompt\": \"x\"}"

// rawRequests have no Host line of their own unless they begin with one. 0 is a connection cut without an answer.
var rawRequests = []struct {
	name, line, rest string
	status           int
}{
	// The twins that are served.
	{"Served", "GET /v1/me HTTP/1.1", auth + "\r\n", 200},
	{"ServedPost", "POST /v1/tasks HTTP/1.1", auth + whole, 202},
	{"ServedChunks", "POST /v1/tasks HTTP/1.1", auth + "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nf\r\n{\"prompt\": \"x\"}\r\n0\r\n\r\n", 202},
	{"ServedHTTP10", "GET /v1/me HTTP/1.0", auth + "\r\n", 200},

	// Lines and framing.
	{"NotHTTP", "hello", "\r\n", 400},
	{"NoPath", "GET HTTP/1.1", "\r\n", 400},
	{"UnknownVersion", "GET /v1/me HTTP/9.9", "\r\n", 505},
	{"HTTP2Preface", "PRI * HTTP/2.0", "\r\nSM\r\n\r\n", 404},
	{"TwoHosts", "GET /v1/me HTTP/1.1", "Host: y\r\n" + auth + "\r\n", 400},
	{"HostWithSpace", "GET /v1/me HTTP/1.1\r\nHost: a b", "\r\n", 400},
	{"NULInAHeader", "GET /v1/me HTTP/1.1", "X-A: a\x00b\r\n\r\n", 400},
	{"SpaceInAName", "GET /v1/me HTTP/1.1", "X A: b\r\n\r\n", 400},
	{"SpaceBeforeColon", "POST /v1/tasks HTTP/1.1", auth + "Content-Length : 15\r\n\r\n{\"prompt\": \"x\"}", 400},
	{"NoColon", "GET /v1/me HTTP/1.1", "X-A\r\n\r\n", 400},
	{"EndlessHeader", "GET /v1/me HTTP/1.1", "X-A: " + strings.Repeat("a", 64<<10) + "\r\n\r\n", 431},
	{"EndlessHeaders", "GET /v1/me HTTP/1.1", strings.Repeat("X-A: aaaaaaaaaaaaaaaa\r\n", 4000) + "\r\n", 431},
	{"EndlessPath", "GET /" + strings.Repeat("a", 64<<10) + " HTTP/1.1", "\r\n", 431},
	{"ATokenOfEightKilobytes", "GET /v1/me HTTP/1.1", "Authorization: Bearer " + strings.Repeat("a", 8<<10) + "\r\n\r\n", 401},

	// Two readings of where a body ends. With chunks a length means nothing (RFC 9112, 6.3), and Go forgets it.
	{"LengthAndChunks", "POST /v1/tasks HTTP/1.1", auth + "Content-Type: application/json\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nf\r\n{\"prompt\": \"x\"}\r\n0\r\n\r\n", 202},
	{"TwoLengths", "POST /v1/tasks HTTP/1.1", auth + "Content-Type: application/json\r\nContent-Length: 15\r\nContent-Length: 16\r\n\r\n{\"prompt\": \"x\"}", 400},
	{"LengthList", "POST /v1/tasks HTTP/1.1", auth + "Content-Type: application/json\r\nContent-Length: 15, 16\r\n\r\n{\"prompt\": \"x\"}", 400},
	{"NegativeLength", "POST /v1/tasks HTTP/1.1", auth + "Content-Length: -1\r\n\r\n", 400},
	{"PlusLength", "POST /v1/tasks HTTP/1.1", auth + "Content-Length: +15\r\n\r\n{\"prompt\": \"x\"}", 400},
	{"HexLength", "POST /v1/tasks HTTP/1.1", auth + "Content-Length: 0xf\r\n\r\n{\"prompt\": \"x\"}", 400},
	{"EndlessLength", "POST /v1/tasks HTTP/1.1", auth + "Content-Length: 99999999999999999999\r\n\r\n", 400},
	{"ATerabyteAnnounced", "POST /v1/tasks HTTP/1.1", auth + "Content-Type: application/json\r\nContent-Length: 1099511627776\r\n\r\n", 413},
	{"UnknownCoding", "POST /v1/tasks HTTP/1.1", auth + "Transfer-Encoding: xchunked\r\n\r\n", 501},
	{"TwoCodings", "POST /v1/tasks HTTP/1.1", auth + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501},
	{"CodingTwice", "POST /v1/tasks HTTP/1.1", auth + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", 501},
	{"BadChunk", "POST /v1/tasks HTTP/1.1", auth + "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", 400},
	{"EndlessChunk", "POST /v1/tasks HTTP/1.1", auth + "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", 400},
	{"CompressedBomb", "POST /v1/tasks HTTP/1.1", auth + "Content-Encoding: gzip\r\n" + whole, 415},
	{"CompressedTwice", "POST /v1/tasks HTTP/1.1", auth + "Content-Encoding: identity\r\nContent-Encoding: gzip\r\n" + whole, 415},
	{"ARequestInAGET", "GET /v1/me HTTP/1.1", auth + "Content-Length: 44\r\n\r\nDELETE /v1/workspace HTTP/1.1\r\nHost: x\r\n\r\n\r\n", 200},

	// Paths.
	{"EncodedSlash", "GET /v1%2Fme HTTP/1.1", auth + "\r\n", 404},
	{"EncodedSlashInAnID", "GET /v1/tasks/a%2Fb HTTP/1.1", auth + "\r\n", 404},
	{"DotSegments", "GET /v1/tasks/../me HTTP/1.1", auth + "\r\n", 404},
	{"EncodedDotSegments", "GET /v1/tasks/%2e%2e/me HTTP/1.1", auth + "\r\n", 404},
	{"DoubledSlash", "GET //v1//me HTTP/1.1", auth + "\r\n", 404},
	{"TrailingSlash", "GET /v1/me/ HTTP/1.1", auth + "\r\n", 404},
	{"OtherCase", "GET /V1/ME HTTP/1.1", auth + "\r\n", 404},
	{"NULInThePath", "GET /v1/tasks/%00 HTTP/1.1", auth + "\r\n", 404},
	{"NewlineInThePath", "GET /v1/tasks/%0d%0aX:%20y HTTP/1.1", auth + "\r\n", 404},
	{"InvalidUTF8InThePath", "GET /v1/tasks/%ff%fe HTTP/1.1", auth + "\r\n", 404},
	{"BadEscapeInThePath", "GET /v1/tasks/%zz HTTP/1.1", auth + "\r\n", 400},
	{"RawNULInThePath", "GET /v1/tasks/\x00 HTTP/1.1", auth + "\r\n", 400},
	{"Backslashes", "GET /v1\\me HTTP/1.1", auth + "\r\n", 404},
	{"Semicolon", "GET /v1/me;a=b HTTP/1.1", auth + "\r\n", 404},
	{"AFilesPath", "GET /../../../../etc/passwd HTTP/1.1", "\r\n", 404},
	{"AnIDOfAKilobyte", "GET /v1/tasks/" + strings.Repeat("a", 1024) + " HTTP/1.1", auth + "\r\n", 404},
	{"AQuoteInAnID", "GET /v1/tasks/'%20OR%201=1-- HTTP/1.1", auth + "\r\n", 404},
	{"Asterisk", "OPTIONS * HTTP/1.1", "\r\n", 200},
	{"AnothersHostInTheLine", "GET http://elsewhere.example/v1/me HTTP/1.1", auth + "\r\n", 200},
	{"ATunnel", "CONNECT elsewhere.example:443 HTTP/1.1", "\r\n", 404},

	// Methods.
	{"Trace", "TRACE /v1/me HTTP/1.1", auth + "\r\n", 405},
	{"UnknownMethod", "BREW /v1/me HTTP/1.1", auth + "\r\n", 405},
	{"LowerCase", "get /v1/me HTTP/1.1", auth + "\r\n", 405},
	{"AMethodInAHeader", "GET /v1/workspace HTTP/1.1", auth + "X-HTTP-Method-Override: DELETE\r\nX-Method-Override: DELETE\r\nX-HTTP-Method: DELETE\r\n\r\n", 200},
	{"AMethodInTheQuery", "POST /v1/tasks?_method=DELETE HTTP/1.1", auth + whole, 202},
	{"AnotherPathInAHeader", "GET /v1/me HTTP/1.1", auth + "X-Original-URL: /v1/tasks/x\r\nX-Rewrite-URL: /ops\r\n\r\n", 200},
	{"AnUpgrade", "GET /v1/me HTTP/1.1", auth + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n", 200},
	{"AnUnknownExpectation", "POST /v1/tasks HTTP/1.1", auth + "Expect: miracles\r\n" + whole, 417},

	// Queries.
	{"BadEscape", "GET /v1/tasks?status=%zz HTTP/1.1", auth + "\r\n", 400},
	{"SemicolonInTheQuery", "GET /v1/tasks?limit=1;limit=2 HTTP/1.1", auth + "\r\n", 400},
	{"Twice", "GET /v1/tasks?limit=1&limit=2 HTTP/1.1", auth + "\r\n", 422},
	{"InvalidUTF8InTheQuery", "GET /v1/tasks?agent=%ff HTTP/1.1", auth + "\r\n", 422},
	{"NULInTheQuery", "GET /v1/tasks?agent=%00 HTTP/1.1", auth + "\r\n", 422},
	{"ANumberTooLarge", "GET /v1/tasks?limit=99999999999999999999 HTTP/1.1", auth + "\r\n", 422},
	{"ANumberOfZero", "GET /v1/tasks?limit=0 HTTP/1.1", auth + "\r\n", 422},
	{"NoNumber", "GET /v1/tasks?limit=ten HTTP/1.1", auth + "\r\n", 422},
	{"NoTime", "GET /v1/tasks?created_after=yesterday HTTP/1.1", auth + "\r\n", 422},
	{"ForgedCursor", "GET /v1/tasks?cursor=AAAA HTTP/1.1", auth + "\r\n", 400},
	{"CursorOfTenKilobytes", "GET /v1/tasks?cursor=" + strings.Repeat("A", 10<<10) + " HTTP/1.1", auth + "\r\n", 422},
	{"FiveThousandParameters", "GET /v1/tasks?" + strings.Repeat("a&", 5000) + " HTTP/1.1", auth + "\r\n", 200},
	{"ACredentialInTheQuery", "GET /v1/me?access_token=x HTTP/1.1", auth + "\r\n", 400},

	// Headers that mean something.
	{"TwoCredentials", "GET /v1/me HTTP/1.1", auth + auth + "\r\n", 401},
	{"AnotherScheme", "GET /v1/me HTTP/1.1", "Authorization: Basic YTpi\r\n\r\n", 401},
	{"NoCredentialBehindTheScheme", "GET /v1/me HTTP/1.1", "Authorization: Bearer\r\n\r\n", 401},
	{"TwoKeys", "POST /v1/tasks HTTP/1.1", auth + "Idempotency-Key: a\r\nIdempotency-Key: b\r\n" + whole, 422},
	{"AnEmptyKey", "POST /v1/tasks HTTP/1.1", auth + "Idempotency-Key:\r\n" + whole, 422},
	{"AKeyTooLong", "POST /v1/tasks HTTP/1.1", auth + "Idempotency-Key: " + strings.Repeat("k", 256) + "\r\n" + whole, 422},
	{"AKeyOfOtherBytes", "POST /v1/tasks HTTP/1.1", auth + "Idempotency-Key: \xff\xfe\r\n" + whole, 422},
	{"NoMediaType", "POST /v1/tasks HTTP/1.1", auth + "Content-Length: 15\r\n\r\n{\"prompt\": \"x\"}", 415},
	{"TwoMediaTypes", "POST /v1/tasks HTTP/1.1", auth + "Content-Type: text/plain\r\n" + whole, 415},
	{"AnEndlessWait", "GET /v1/me HTTP/1.1", auth + "Prefer: wait=99999999999999999999\r\n\r\n", 200},
	{"AnOddRequestID", "GET /v1/me HTTP/1.1", auth + "X-Request-ID: <script>\r\n\r\n", 200},
}

const auth = "Authorization: Bearer TOKEN\r\n"

func TestEveryBadRequestHasItsAnswer(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	c := w.owner("pro")
	for _, raw := range rawRequests {
		t.Run(raw.name, func(t *testing.T) {
			conn, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
				t.Fatal(err)
			}
			text := raw.line + "\r\n"
			if !strings.Contains(raw.line, "Host:") {
				text += "Host: x\r\n"
			}
			go func() { // the server may answer and close before it has read all
				_, _ = io.WriteString(conn, strings.ReplaceAll(text+raw.rest, "TOKEN", c.credential))
			}()
			method, _, _ := strings.Cut(raw.line, " ")
			resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
			if err != nil {
				t.Fatalf("no answer: %v", err)
			}
			defer resp.Body.Close()
			body, _ := io.ReadAll(resp.Body) // cut short where the connection is reset behind the answer
			if resp.StatusCode != raw.status {
				t.Errorf("status %d, want %d: %s", resp.StatusCode, raw.status, body[:min(len(body), 500)])
			}
			if resp.StatusCode >= 500 && resp.StatusCode != 501 && resp.StatusCode != 505 {
				t.Errorf("the server took it for its own fault")
			}
		})
	}
	t.Run("NoneOfThemReachedAnother", func(t *testing.T) { // the request hidden in a GET's body, the methods in headers
		c.get("/v1/workspace").want(200)
		if log := w.log.String(); strings.Contains(log, "handler panicked") || strings.Contains(log, fmt.Sprintf(`"method":%q`, "DELETE")) {
			t.Errorf("%s", log)
		}
	})
	t.Logf("%d requests on the wire, %d bodies", len(rawRequests), len(bodies))
}
