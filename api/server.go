// Package api is Muster's door for customers: the HTTP contract under /v1, served with Gin.
//
// The whole route table stands in routes.go, with the role and scope that each route asks for; OpenAPI is made from it
// and from the request and answer types, so that what is published cannot drift from what is served. A handler binds,
// checks, makes one call to the ledger (package store) and returns an answer or an error; only errors.go knows which
// HTTP status an error is. Work that was committed is handed to the Enqueuer and the Canceler, which never block and
// never fail a request: what they lose, the scheduler finds again.
//
// It promises that a credential's revocation holds within five seconds, that nothing of one workspace is shown to
// another (an id of another workspace is answered exactly like an unknown one), that no secret, query or body is
// logged, and that no panic reaches a client.
package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/store"
)

// Enqueuer puts workspaces in line once their turn is committed. It must not block.
type Enqueuer interface {
	Enqueue(turns ...store.Turn)
}

// Canceler tells the workers which running tasks were asked to stop. It must not block.
type Canceler interface {
	Cancel(ids ...uuid.UUID)
}

// Pinger reports whether something answers.
type Pinger interface {
	Ping(ctx context.Context) error
}

// Config is what a Server needs. Store, Enqueuer, Canceler and SigningKeys are required; zero values of the others
// are the defaults.
type Config struct {
	Store         *store.API
	Enqueuer      Enqueuer
	Canceler      Canceler
	Redis         Pinger         // nil: /ready does not report Redis
	StripeEvents  StripeEvents   // nil: Stripe's webhook is answered 503
	Mailer        Mailer         // nil: no letters are sent, and passwords cannot be reset
	RateLimits    RateLimits     // nil: nothing is limited
	Webhooks      Webhooks       // zero: customers make no webhooks, and endpoints must be public
	SigningKeys   [][]byte       // of access tokens and cursors; current first, each at least 32 bytes
	Log           zerolog.Logger // zero: nothing is logged
	Version       string         // in OpenAPI; "dev"
	VerifiedEmail bool           // workspaces whose plan says so need an owner with a proved address before they run tasks

	Production     bool     // tells browsers to come back over TLS only, whatever this connection is
	TrustedProxies []string // addresses or CIDRs whose X-Forwarded-For, -Proto and -Host count; none
	AppDomain      string   // slug.AppDomain chooses a workspace's login; empty: no host does
	CORSOrigins    []string // origins whose pages may use the API in a browser; none
	AddressFactor  int      // limits per address and network are multiplied by it; 1

	MaxWaiters    int           // requests that wait for a task at once; further ones are answered at once; 256
	MaxStreams    int           // event streams of one workspace at once, in this process; 10
	MaxAllStreams int           // of all workspaces; 1,000
	Heartbeat     time.Duration // of event streams without events; 15 s

	MaxHashes    int // passwords hashed at once, 19 MiB each; 3
	CredentialMS int // how long a checked credential and a limit are believed at most, milliseconds; 3000

	NoteInterval time.Duration // how often the last uses of API keys, and what strangers did, are written down; 5 s

	ReadHeaderTimeout time.Duration // 5 s
	ReadTimeout       time.Duration // header and body; 30 s
	WriteTimeout      time.Duration // from the end of the header; longer than the longest wait; 90 s
	IdleTimeout       time.Duration // 120 s
	WorkTimeout       time.Duration // of a request's work in the ledger; 15 s
	ExportWrite       time.Duration // how long the reader of an export may take for a page; 20 s

	Now func() time.Time // time.Now
}

// defaults fills in zero values and says everything that is wrong.
func (cfg Config) defaults() (Config, error) {
	var errs []error
	for name, missing := range map[string]bool{"Store": cfg.Store == nil, "Enqueuer": cfg.Enqueuer == nil, "Canceler": cfg.Canceler == nil} {
		if missing {
			errs = append(errs, fmt.Errorf("%s is required", name))
		}
	}
	setDefault(&cfg.Version, "dev")
	setDefault(&cfg.AddressFactor, 1)
	setDefault(&cfg.MaxWaiters, 256)
	setDefault(&cfg.MaxStreams, 10)
	setDefault(&cfg.MaxAllStreams, 1_000)
	setDefault(&cfg.Heartbeat, 15*time.Second)
	setDefault(&cfg.MaxHashes, 3)
	setDefault(&cfg.CredentialMS, 3000)
	setDefault(&cfg.NoteInterval, 5*time.Second)
	setDefault(&cfg.ReadHeaderTimeout, 5*time.Second)
	setDefault(&cfg.ReadTimeout, 30*time.Second)
	setDefault(&cfg.WriteTimeout, 90*time.Second)
	setDefault(&cfg.IdleTimeout, 120*time.Second)
	setDefault(&cfg.WorkTimeout, 15*time.Second)
	setDefault(&cfg.ExportWrite, 20*time.Second)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return cfg, errors.Join(errs...)
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// maxHeaderBytes is far more than our own headers need.
const maxHeaderBytes = 32 << 10

// Server answers HTTP.
type Server struct {
	Config
	engine    *gin.Engine
	http      *http.Server
	openapi   func() ([]byte, error) // made at the first request: it costs more than the rest of the start
	tokens    *tokens
	cursors   cursors
	passwords *passwords
	believed  *remembered[[32]byte, identity]         // credentials checked a moment ago
	allowed   *remembered[uuid.UUID, store.Allowance] // of workspaces, read a moment ago
	backstage *backstage
	strangers *strangers
	waiters   chan struct{}
	exports   chan struct{} // that run
	streams   *streams
	closing   chan struct{}
	close     sync.Once
}

func init() { gin.SetMode(gin.ReleaseMode) } // its debug mode prints routes on stdout

// New makes a server; it listens only once Serve is called.
func New(cfg Config) (*Server, error) {
	cfg, err := cfg.defaults()
	if err != nil {
		return nil, fmt.Errorf("api configuration: %w", err)
	}
	life, asks := time.Duration(cfg.CredentialMS)*time.Millisecond, make(chan struct{}, asksAtOnce)
	s := &Server{
		Config:    cfg,
		engine:    gin.New(),
		cursors:   newCursors(cfg.SigningKeys),
		passwords: newPasswords(cfg.MaxHashes),
		believed:  remember[[32]byte, identity](life, asks),
		allowed:   remember[uuid.UUID, store.Allowance](life, asks),
		waiters:   make(chan struct{}, cfg.MaxWaiters),
		exports:   make(chan struct{}, exportsAtOnce),
		streams:   &streams{each: cfg.MaxStreams, all: cfg.MaxAllStreams, byWorkspace: map[uuid.UUID]int{}},
		closing:   make(chan struct{}),
	}
	s.backstage = newBackstage(s)
	s.strangers = newStrangers(cfg.SigningKeys, cfg.Now)
	if s.tokens, err = newTokens(cfg.SigningKeys, cfg.Now); err != nil {
		return nil, fmt.Errorf("api configuration: %w", err)
	}
	trusted, err := parseProxies(cfg.TrustedProxies)
	if err != nil {
		return nil, fmt.Errorf("api configuration: %w", err)
	}
	if cfg.AppDomain != "" && CheckDomain(cfg.AppDomain) != nil {
		return nil, fmt.Errorf("api configuration: app domain %q: %w", cfg.AppDomain, CheckDomain(cfg.AppDomain))
	}
	for _, origin := range cfg.CORSOrigins {
		if err := CheckOrigin(origin); err != nil {
			return nil, fmt.Errorf("api configuration: CORS origin %q: %w", origin, err)
		}
	}
	if err := s.engine.SetTrustedProxies(nil); err != nil { // proxies.go has looked before Gin does
		return nil, fmt.Errorf("api configuration: %w", err)
	}
	s.engine.ForwardedByClientIP = false
	s.engine.HandleMethodNotAllowed = true
	s.engine.RedirectTrailingSlash = false
	s.engine.UseRawPath = true // /v1%2Fme is not /v1/me: a proxy that guards paths would have let it pass as another
	s.engine.Use(s.identify, s.logAccess, s.recoverPanics, s.setSecurityHeaders, s.allowOrigins)
	s.engine.NoRoute(func(c *gin.Context) { fail(c, refuse(probNotFound, "there is no such route")) })
	s.engine.NoMethod(func(c *gin.Context) {
		fail(c, refuse(probMethodNotAllowed, "this route knows other methods; see Allow"))
	})
	for i := range routes {
		r := &routes[i]
		s.engine.Handle(r.method, r.ginPath(), s.serve(r))
	}
	s.openapi = sync.OnceValues(func() ([]byte, error) { return describe(routes, cfg.Version) })
	s.http = &http.Server{
		Handler:           trusted.resolve(headAsGet(s.engine)),
		ReadHeaderTimeout: cfg.ReadHeaderTimeout,
		ReadTimeout:       cfg.ReadTimeout,
		WriteTimeout:      cfg.WriteTimeout,
		IdleTimeout:       cfg.IdleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
	}
	return s, nil
}

// Handler is the whole API, for tests and for mounting; the timeouts of connections are Serve's.
func (s *Server) Handler() http.Handler { return s.http.Handler }

// Serve answers on ln until Shutdown; it returns nil then.
func (s *Server) Serve(ln net.Listener) error {
	s.backstage.start()
	if err := s.http.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve HTTP: %w", err)
	}
	return nil
}

// Shutdown stops listening, answers waiting clients with what is known, waits for open requests until ctx ends, and
// finishes what they have left backstage.
func (s *Server) Shutdown(ctx context.Context) error {
	s.close.Do(func() { close(s.closing) })
	err := s.http.Shutdown(ctx)
	if err := errors.Join(err, s.backstage.stop(ctx)); err != nil {
		return fmt.Errorf("shut down HTTP: %w", err)
	}
	return nil
}

// headKey marks a request that was a HEAD.
type headKey struct{}

func isHead(r *http.Request) bool { return r.Context().Value(headKey{}) != nil }

// headAsGet serves HEAD wherever GET is; net/http leaves out the body.
func headAsGet(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			r = r.WithContext(context.WithValue(r.Context(), headKey{}, true))
			r.Method = http.MethodGet
		}
		next.ServeHTTP(w, r)
	})
}
