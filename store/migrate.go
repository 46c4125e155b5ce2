package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

// The login roles of the processes. None is a superuser, none may bypass row-level security, none owns a table.
const (
	RoleAPI    = "muster_api"
	RoleWorker = "muster_worker"
	RoleSystem = "muster_system"
)

// RolePasswords are set when Migrate creates a login role; a role that exists keeps its own.
type RolePasswords struct{ API, Worker, System string }

// MissingRolesError says which SQL an administrator must run, because the migrating role may not create roles.
type MissingRolesError struct{ SQL string }

func (e *MissingRolesError) Error() string {
	return "the login roles are missing and this role may not create them; let an administrator run:\n" + e.SQL
}

// rolesLock keeps two migrators apart while they create roles, which are shared by the whole cluster.
const rolesLock = 0x6d757374

// Migrate brings the schema up to this binary's version with the owner's URL, a direct connection (no PgBouncer): it
// creates the login roles where they are missing, then applies the embedded migrations. Running it again, or twice at
// once, does no harm. It returns the version reached.
func Migrate(ctx context.Context, ownerURL string, passwords RolePasswords) (version int64, err error) {
	db, err := Open(ctx, ownerURL, 4)
	if err != nil {
		return 0, err
	}
	defer db.Close()
	if err := db.PingContext(ctx); err != nil {
		return 0, fmt.Errorf("reach the database: %w", err)
	}
	conn, err := db.Conn(ctx) // one session: the lock below is a session's
	if err != nil {
		return 0, fmt.Errorf("reach the database: %w", err)
	}
	err = createRoles(ctx, conn, passwords)
	conn.Close()
	if err != nil {
		return 0, err
	}
	files, err := fs.Sub(migrationFiles, "migrations")
	if err != nil {
		return 0, fmt.Errorf("read migrations: %w", err)
	}
	locker, err := lock.NewPostgresSessionLocker()
	if err != nil {
		return 0, fmt.Errorf("make migration lock: %w", err)
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, db.DB, files, goose.WithSessionLocker(locker))
	if err != nil {
		return 0, fmt.Errorf("read migrations: %w", err)
	}
	if _, err := provider.Up(ctx); err != nil {
		return 0, fmt.Errorf("migrate: %w", err)
	}
	return provider.GetDBVersion(ctx)
}

// CheckSchema fails when the database is older than this binary, so that a process says "migrate" at its start and not
// at its first statement. A newer one passes: migrations are additive first, and old processes drain after an upgrade.
func CheckSchema(ctx context.Context, db *sqlx.DB) error {
	v, err := schemaVersion(ctx, db)
	if code := sqlCode(err); code == "42P01" || code == "42501" { // no such table, or its grants are yet to come
		return errors.New("the database has no schema yet: run muster migrate")
	}
	if err != nil {
		return err
	}
	if v < LatestVersion() {
		return fmt.Errorf("the database is at schema %d and this version needs %d: run muster migrate", v, LatestVersion())
	}
	return nil
}

func schemaVersion(ctx context.Context, db *sqlx.DB) (int64, error) {
	var v int64
	if err := db.GetContext(ctx, &v, `SELECT coalesce(max(version_id), 0) FROM goose_db_version WHERE is_applied`); err != nil {
		return 0, fmt.Errorf("read schema version: %w", err)
	}
	return v, nil
}

// LatestVersion is the schema version this binary was built for.
func LatestVersion() int64 {
	names, _ := fs.Glob(migrationFiles, "migrations/*.sql") // embedded: cannot fail
	var latest int64
	for _, name := range names {
		if v, err := goose.NumericComponent(name); err == nil && v > latest {
			latest = v
		}
	}
	return latest
}

// roleSettings are ALTER ROLE … SET, so that they hold behind PgBouncer too, where session settings would not.
var roleSettings = []string{
	"jit = off",
	"plan_cache_mode = force_generic_plan", // our plans do not depend on the values; planning per call would cost more than it brings
	// No transaction of ours waits for anything but its own next statement. A process that stands still in the middle of one,
	// or is cut off, holds a workspace's row: nobody can submit there, and its tasks cannot be taken back, until this ends it.
	"idle_in_transaction_session_timeout = '5s'",
	"TimeZone = 'UTC'", // spelled as Postgres stores it
}

// ownSettings are those of one role. A worker's statements are look-ups by key over arrays, planned generically while
// the tables may look empty: a hash or a scan of the whole table would be the one mistake to make. A bitmap scan never
// marks index entries of rows that are gone as dead, and leases are mostly such between two vacuums. Its shared
// transactions wait shortly for a lock, because others wait with them.
var ownSettings = map[string][]string{
	RoleAPI:    {"lock_timeout = '5s'", "statement_timeout = '30s'"},
	RoleWorker: {"lock_timeout = '100ms'", "enable_hashjoin = off", "enable_mergejoin = off", "enable_seqscan = off", "enable_bitmapscan = off"},
	RoleSystem: {"lock_timeout = '5s'"},
}

// settingsOf a role, as pg_roles.rolconfig shows them.
func settingsOf(role string) []string {
	settings := append(slices.Clone(roleSettings), ownSettings[role]...)
	for i, s := range settings {
		name, value, _ := strings.Cut(s, " = ")
		settings[i] = name + "=" + strings.Trim(value, "'")
	}
	return settings
}

func alterRole(role string, settings []string) string {
	var alter strings.Builder
	for _, s := range settings {
		name, value, _ := strings.Cut(s, "=")
		fmt.Fprintf(&alter, ";\nALTER ROLE %s SET %s = %s", role, name, pq.QuoteLiteral(value))
	}
	return alter.String()
}

// errNotAllowed: the migrating role may not create or alter roles.
var errNotAllowed = errors.New("not allowed")

// allowed reads the answer to a change of roles. Another database's migrator may have been faster: that is no error.
func allowed(_ sql.Result, err error) error {
	switch sqlCode(err) {
	case "42710", "XX000": // duplicate_object; tuple concurrently updated
		return nil
	case "42501": // insufficient_privilege
		return errNotAllowed
	}
	return err
}

func createRoles(ctx context.Context, db *sql.Conn, passwords RolePasswords) error {
	if _, err := db.ExecContext(ctx, `SELECT pg_advisory_lock($1)`, rolesLock); err != nil {
		return fmt.Errorf("lock roles: %w", err)
	}
	defer func() { _, _ = db.ExecContext(context.WithoutCancel(ctx), `SELECT pg_advisory_unlock($1)`, rolesLock) }()
	var missing []string
	for _, role := range []struct{ name, password string }{
		{RoleAPI, passwords.API}, {RoleWorker, passwords.Worker}, {RoleSystem, passwords.System},
	} {
		create := fmt.Sprintf("CREATE ROLE %s LOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE", role.name)
		secret := ""
		if role.password != "" {
			secret = " PASSWORD " + pq.QuoteLiteral(role.password)
		}
		set := settingsOf(role.name)
		var has bool // the role, with these settings
		err := db.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = $1 AND rolconfig @> $2)`, role.name, pq.Array(set)).Scan(&has)
		if err != nil {
			return fmt.Errorf("look for role %s: %w", role.name, err)
		}
		if has {
			continue
		}
		var exists bool
		if err := db.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = $1)`, role.name).Scan(&exists); err != nil {
			return fmt.Errorf("look for role %s: %w", role.name, err)
		}
		if !exists {
			if err := allowed(db.ExecContext(ctx, create+secret)); errors.Is(err, errNotAllowed) {
				missing = append(missing, create+" PASSWORD '…'"+alterRole(role.name, set)+";")
				continue
			} else if err != nil {
				return fmt.Errorf("create role %s: %w", role.name, err)
			}
		}
		// An older version's role gets this version's settings. Where that is not allowed, muster doctor says so.
		if err := allowed(db.ExecContext(ctx, "SELECT 1"+alterRole(role.name, set))); err != nil && !errors.Is(err, errNotAllowed) {
			return fmt.Errorf("set up role %s: %w", role.name, err)
		}
	}
	if len(missing) > 0 {
		return &MissingRolesError{SQL: strings.Join(missing, "\n")}
	}
	return nil
}
