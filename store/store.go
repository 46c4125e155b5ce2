// Package store is the ledger: everything Muster has promised is a committed row here.
//
// It speaks to Postgres through sqlx and lib/pq, keeps each statement beside the Go that runs it, and imports
// nothing else of ours. Three types stand for the three login roles, so that the compiler says who may do what:
//
//   - API serves one workspace per transaction, which row-level security enforces (app.workspace_id); only small submits
//     share one, under a setting that names theirs (app.workspace_ids, submit_together.go).
//   - Fleet is the workers' side: claims and finishes across workspaces, in shared transactions.
//   - System is the scheduler's, billing's and the operators' side.
//
// Tasks and their states are told in tasks.go, the load row and turns in load.go, admission in claim.go.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// API acts for one customer at a time, with the login role muster_api.
type API struct {
	db      *sqlx.DB
	submits *submits
}

// NewAPI wraps a handle opened with the API's role.
func NewAPI(db *sqlx.DB) *API {
	a := &API{db: db}
	a.submits = newSubmits(a)
	return a
}

// Ping reports whether the database answers within ctx.
func (a *API) Ping(ctx context.Context) error { return a.db.PingContext(ctx) }

// System acts for the scheduler, billing and operators, with the login role muster_system.
type System struct{ db *sqlx.DB }

// NewSystem wraps a handle opened with the system's role.
func NewSystem(db *sqlx.DB) *System { return &System{db: db} }

// API is what operators' commands change one workspace with: the API's own code, under the system's role.
func (s *System) API() *API { return NewAPI(s.db) }

// Open connects to a Postgres URL (postgres://…) with at most maxConns connections.
//
// It asks for binary parameters: a query with arguments is then one round trip instead of two, and works through
// PgBouncer in transaction mode, which older versions cannot do with named statements. With them a jsonb value must be
// passed as a string, never as []byte.
func Open(ctx context.Context, rawURL string, maxConns int) (*sqlx.DB, error) {
	u, err := url.Parse(rawURL)
	if err != nil || (u.Scheme != "postgres" && u.Scheme != "postgresql") {
		return nil, errors.New("open database: want a URL such as postgres://user:password@host:5432/muster") // never echo the URL: it holds a password
	}
	q := u.Query()
	q.Set("binary_parameters", "yes")
	if q.Get("connect_timeout") == "" {
		q.Set("connect_timeout", "5")
	}
	if q.Get("sslmode") == "" && isLoopback(u.Hostname()) {
		q.Set("sslmode", "disable")
	}
	u.RawQuery = q.Encode()
	c, err := pq.NewConnector(u.String())
	if err != nil {
		return nil, fmt.Errorf("open database at %s: %w", u.Host, err)
	}
	db := sqlx.NewDb(sql.OpenDB(connector{c}), "postgres")
	db.SetMaxOpenConns(maxConns)
	db.SetMaxIdleConns(maxConns)
	db.SetConnMaxIdleTime(5 * time.Minute)
	return db, nil
}

func isLoopback(host string) bool {
	return host == "localhost" || host == "127.0.0.1" || host == "::1"
}

// inTx runs fn in one READ COMMITTED transaction and commits it unless fn fails or panics.
func inTx(ctx context.Context, db *sqlx.DB, fn func(tx *sqlx.Tx) error) (err error) {
	tx, err := db.BeginTxx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer func() {
		if p := recover(); p != nil {
			_ = tx.Rollback()
			panic(p)
		}
	}()
	if err := fn(tx); err != nil {
		_ = tx.Rollback() // the first error is the one that matters
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}

// inWorkspace is inTx for the API's role: inside, row-level security shows exactly the workspace ws.
// A deadlock or a lock timeout (nothing has happened then) is tried again, twice at most.
func (a *API) inWorkspace(ctx context.Context, ws uuid.UUID, fn func(tx *sqlx.Tx) error) error {
	return a.inScope(ctx, Scope{Workspace: ws}, fn)
}

// Scope is what an API transaction may see; the zero value sees nothing. See migration 00001 for the policies.
type Scope struct {
	Workspace  uuid.UUID // the one workspace
	User       uuid.UUID // the signed-in user, across their workspaces
	Email      string    // the mail somebody signs in with
	Credential []byte    // SHA-256 of a presented secret
}

func (a *API) inScope(ctx context.Context, s Scope, fn func(tx *sqlx.Tx) error) error {
	for try := 0; ; try++ {
		err := inTx(ctx, a.db, func(tx *sqlx.Tx) error {
			if err := s.apply(ctx, tx); err != nil {
				return err
			}
			return fn(tx)
		})
		if err == nil || try == 2 || !isConcurrency(err) {
			return err
		}
	}
}

// apply sets the scope for the rest of the transaction; a second call replaces the first whole.
func (s Scope) apply(ctx context.Context, tx *sqlx.Tx) error {
	idOrEmpty := func(id uuid.UUID) string {
		if id == uuid.Nil {
			return ""
		}
		return id.String()
	}
	_, err := tx.ExecContext(ctx, `SELECT set_config('app.workspace_id', $1, true), set_config('app.user_id', $2, true),
		set_config('app.email', $3, true), set_config('app.credential', $4, true)`,
		idOrEmpty(s.Workspace), idOrEmpty(s.User), s.Email, fmt.Sprintf("%x", s.Credential))
	if err != nil {
		return fmt.Errorf("set scope: %w", err)
	}
	return nil
}
