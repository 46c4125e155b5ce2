package api

import (
	"crypto/rand"
	"encoding/hex"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/store"
)

// What every request passes, in this order: identify, logAccess, recoverPanics, setSecurityHeaders, allowOrigins, then its
// route. Before them the server finds out whom it comes from (proxies.go).

const (
	keyRequestID = "request_id"
	keyRoute     = "route"
	keyWorkspace = "workspace"
)

func requestID(c *gin.Context) string { return c.GetString(keyRequestID) }

// identify gives the request an id: the client's when it is well formed, else a random one.
func (s *Server) identify(c *gin.Context) {
	id := c.GetHeader("X-Request-ID")
	if !safeRequestID(id) {
		var raw [12]byte
		_, _ = rand.Read(raw[:]) // never fails
		id = "req_" + hex.EncodeToString(raw[:])
	}
	c.Set(keyRequestID, id)
	c.Header("X-Request-ID", id)
	log := s.Log.With().Str("request_id", id).Logger()
	c.Request = c.Request.WithContext(log.WithContext(c.Request.Context()))
}

// safeRequestID: 1 to 128 letters, digits, dots, dashes and underscores, so that it can stand in a log and a header.
func safeRequestID(id string) bool {
	for i := range len(id) {
		switch b := id[i]; {
		case b >= 'a' && b <= 'z', b >= 'A' && b <= 'Z', b >= '0' && b <= '9', b == '-', b == '_', b == '.':
		default:
			return false
		}
	}
	return len(id) >= 1 && len(id) <= 128
}

// logAccess writes one line per request: never a path with ids, a query, a header or a body.
func (s *Server) logAccess(c *gin.Context) {
	start := time.Now()
	c.Next()
	level := zerolog.InfoLevel
	if c.FullPath() == "/health" || c.FullPath() == "/ready" {
		level = zerolog.DebugLevel
	}
	event := s.Log.WithLevel(level)
	if event == nil {
		return
	}
	event = event.Str("request_id", requestID(c)).Str("method", method(c.Request.Method)).Str("route", c.FullPath()).
		Int("status", c.Writer.Status()).Float64("ms", float64(time.Since(start).Microseconds())/1000)
	if ws, ok := c.Get(keyWorkspace); ok {
		event = event.Str("workspace", store.FormatID(store.WorkspacePrefix, ws.(uuid.UUID)))
	}
	event.Msg("request")
}

// method keeps a client's own words out of the log.
func method(m string) string {
	switch m {
	case http.MethodGet, http.MethodPost, http.MethodPatch, http.MethodPut, http.MethodDelete, http.MethodHead, http.MethodOptions:
		return m
	}
	return "other"
}

// recoverPanics answers a panic as a problem without its text, or cuts the connection when an answer has begun.
func (s *Server) recoverPanics(c *gin.Context) {
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		if p == http.ErrAbortHandler { // meant to cut the connection
			panic(p)
		}
		zerolog.Ctx(c.Request.Context()).Error().Interface("panic", p).Bytes("stack", debug.Stack()).Msg("handler panicked")
		if c.Writer.Written() {
			panic(http.ErrAbortHandler)
		}
		fail(c, refuse(probInternal, "the error was noted under this request id"))
	}()
	c.Next()
}

// setSecurityHeaders: answers are data of one customer, never a page, and no cache keeps them. The few that are everybody's
// (the plans, OpenAPI) say otherwise themselves.
func (s *Server) setSecurityHeaders(c *gin.Context) {
	h := c.Writer.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	if s.Production || c.Request.URL.Scheme == "https" {
		h.Set("Strict-Transport-Security", "max-age=31536000")
	}
}
