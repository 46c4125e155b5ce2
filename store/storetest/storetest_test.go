//go:build unix

package storetest

import (
	"context"
	"os"
	"testing"

	"github.com/generic-corp/muster/store"
)

func TestMain(m *testing.M) { os.Exit(Main(m)) }

func TestEachTestHasADatabaseOfItsOwn(t *testing.T) {
	t.Parallel()
	a, b := New(t), New(t)
	if a.Database == b.Database || a.RedisURL == b.RedisURL {
		t.Fatalf("two tests share %s or %s", a.Database, a.RedisURL)
	}
	if _, err := a.Owner(t).Exec(`CREATE TABLE only_here (n int)`); err != nil {
		t.Fatal(err)
	}
	var seen bool
	if err := b.Owner(t).Get(&seen, `SELECT to_regclass('only_here') IS NOT NULL`); err != nil || seen {
		t.Errorf("the other test sees the table: %v, %v", seen, err)
	}
	ctx := context.Background()
	if err := a.Redis(t).Set(ctx, "k", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if n, err := b.Redis(t).Exists(ctx, "k").Result(); n != 0 || err != nil {
		t.Errorf("the other test sees the key: %d, %v", n, err)
	}
}

func TestADatabaseIsMigratedAndTheRolesAreBound(t *testing.T) {
	t.Parallel()
	env := New(t)
	var version int64
	if err := env.Admin(t).Get(&version, `SELECT max(version_id) FROM goose_db_version`); err != nil || version != store.LatestVersion() {
		t.Errorf("schema version %d, %v; want %d", version, err, store.LatestVersion())
	}
	for want, db := range map[string]interface {
		Get(any, string, ...any) error
	}{
		store.RoleAPI: env.API(t), store.RoleWorker: env.Worker(t), store.RoleSystem: env.System(t), RoleOwner: env.Owner(t),
	} {
		var role struct {
			Name  string `db:"rolname"`
			Above bool   `db:"above"`
		}
		err := db.Get(&role, `SELECT rolname, rolsuper OR rolbypassrls AS above FROM pg_roles WHERE rolname = current_user`)
		if err != nil || role.Name != want || role.Above {
			t.Errorf("%s: %+v, %v; want that role, bound by row-level security", want, role, err)
		}
	}
}

func TestOwnServersMayBeKilled(t *testing.T) {
	t.Parallel()
	ctx, own := context.Background(), OwnServers(t)
	system := own.System(t)
	if err := system.Ping(); err != nil {
		t.Fatal(err)
	}
	if err := own.Postgres.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := system.Ping(); err == nil {
		t.Error("the killed server answers")
	}
	if err := own.Postgres.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if err := system.Ping(); err != nil {
		t.Errorf("the restarted server does not answer: %v", err)
	}
	if err := own.RedisServer.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := own.RedisServer.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if err := own.Redis(t).FlushAll(ctx).Err(); err != nil {
		t.Error(err)
	}
	if New(t).System(t).Ping() != nil {
		t.Error("the other tests' servers have gone down too")
	}
}

func BenchmarkNew(b *testing.B) {
	for b.Loop() {
		New(b)
	}
}

func TestThroughPgBouncerRolesShareConnections(t *testing.T) {
	t.Parallel()
	env := New(t)
	pooled := env.ThroughPgBouncer(t, 1)
	if pooled.APIURL == env.APIURL || pooled.Database != env.Database {
		t.Fatalf("%s is not a way around %s", pooled.APIURL, env.APIURL)
	}
	a, b := pooled.System(t), pooled.Worker(t)
	var role string
	for want, db := range map[string]interface {
		Get(any, string, ...any) error
	}{store.RoleSystem: a, store.RoleWorker: b} {
		if err := db.Get(&role, `SELECT current_user`); err != nil || role != want {
			t.Errorf("%s signs in as %s, %v", want, role, err)
		}
	}
	// Two clients' connections are one at the server.
	var pids [2]int
	for i := range pids {
		db, err := store.Open(context.Background(), pooled.SystemURL, 1)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if err := db.Get(&pids[i], `SELECT pg_backend_pid()`); err != nil {
			t.Fatal(err)
		}
	}
	if pids[0] != pids[1] {
		t.Errorf("a pool of one connection has %v", pids)
	}
}
