//go:build unix

// Tests through PgBouncer in transaction mode: one test that asks for it, or a whole run by PoolVariable.

package storetest

import (
	"context"
	"fmt"
	"strconv"
	"testing"

	"github.com/jmoiron/sqlx"

	"github.com/generic-corp/muster/scripts/privateservers"
	"github.com/generic-corp/muster/store"
)

// PoolVariable, when it is set, puts a PgBouncer between every test's login roles and its database; its value is the number
// of connections that all transactions of a role in a database share, at least 1. The owner and the superuser go around it.
const PoolVariable = "MUSTER_TEST_PGBOUNCER"

// ThroughPgBouncer returns the same database with the login roles' URLs through a PgBouncer of the test's own in
// transaction mode, whose roles share size connections each. The owner and the superuser go around it.
func (e *Env) ThroughPgBouncer(t testing.TB, size int) *Env {
	t.Helper()
	bouncer, err := startBouncer(context.Background(), e.postgres, strconv.Itoa(size))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := bouncer.Remove(); err != nil {
			t.Errorf("stop PgBouncer: %v", err)
		}
	})
	pooled := &Env{Database: e.Database, OwnerURL: e.OwnerURL, AdminURL: e.AdminURL, RedisURL: e.RedisURL, postgres: e.postgres, handles: map[string]*sqlx.DB{}}
	pooled.through(bouncer)
	t.Cleanup(pooled.close)
	return pooled
}

// through sends the login roles through a PgBouncer.
func (e *Env) through(b *privateservers.PgBouncer) {
	e.APIURL = b.URLAs(store.RoleAPI, password, e.Database)
	e.WorkerURL = b.URLAs(store.RoleWorker, password, e.Database)
	e.SystemURL = b.URLAs(store.RoleSystem, password, e.Database)
}

func startBouncer(ctx context.Context, p *privateservers.Postgres, size string) (*privateservers.PgBouncer, error) {
	n, err := strconv.Atoi(size)
	if err != nil || n < 1 {
		return nil, fmt.Errorf("%s is %q; want a number of connections, at least 1", PoolVariable, size)
	}
	return p.StartPgBouncer(ctx, privateservers.PgBouncerConfig{PoolSize: n,
		Users: map[string]string{store.RoleAPI: password, store.RoleWorker: password, store.RoleSystem: password}})
}
