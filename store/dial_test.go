//go:build unix

package store_test

import (
	"context"
	"syscall"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// A Postgres process that is stopped takes what is sent, as far as the kernel is concerned, and answers nothing, not even a
// request to cancel. Whatever is asked of it must return soon after its context ends, and the next question be answered by another.
func TestNothingHangsOnAPostgresThatTakesPacketsAndDoesNotAnswer(t *testing.T) {
	t.Parallel()
	env := storetest.New(t)
	begin := func(t *testing.T, ctx context.Context, db *sqlx.DB) *sqlx.Tx {
		tx, err := db.BeginTxx(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		return tx
	}
	for name, prepare := range map[string]func(t *testing.T, ctx context.Context, db *sqlx.DB) (ask func() error){
		"Query": func(_ *testing.T, ctx context.Context, db *sqlx.DB) func() error {
			return func() error { var n int; return db.GetContext(ctx, &n, `SELECT $1::int`, 1) }
		},
		"PreparedQuery": func(t *testing.T, ctx context.Context, db *sqlx.DB) func() error {
			ready, err := db.PreparexContext(ctx, `SELECT $1::int`)
			if err != nil {
				t.Fatal(err)
			}
			return func() error { var n int; return ready.GetContext(ctx, &n, 1) }
		},
		"Ping": func(_ *testing.T, ctx context.Context, db *sqlx.DB) func() error {
			return func() error { return db.PingContext(ctx) }
		},
		"Begin": func(_ *testing.T, ctx context.Context, db *sqlx.DB) func() error {
			return func() error { _, err := db.BeginTxx(ctx, nil); return err }
		},
		"StatementOfATransaction": func(t *testing.T, ctx context.Context, db *sqlx.DB) func() error {
			tx := begin(t, ctx, db)
			return func() error { _, err := tx.ExecContext(ctx, `SELECT 1`); _ = tx.Rollback(); return err }
		},
		"Commit": func(t *testing.T, ctx context.Context, db *sqlx.DB) func() error {
			return begin(t, ctx, db).Commit
		},
		"Rollback": func(t *testing.T, ctx context.Context, db *sqlx.DB) func() error {
			tx := begin(t, ctx, db)
			return func() error { _ = tx.Rollback(); return ctx.Err() }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db, err := store.Open(t.Context(), env.APIURL, 1)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			var silent, other int
			if err := db.Get(&silent, `SELECT pg_backend_pid()`); err != nil {
				t.Fatal(err)
			}
			ctx, end := context.WithCancel(t.Context())
			defer end()
			ask := prepare(t, ctx, db)
			if err := syscall.Kill(silent, syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = syscall.Kill(silent, syscall.SIGCONT) }()
			time.AfterFunc(100*time.Millisecond, end)
			returned := make(chan error, 1)
			go func() { returned <- ask() }()
			select {
			case err := <-returned:
				if err == nil {
					t.Error("it was answered")
				}
			case <-time.After(30 * time.Second):
				t.Fatal("it hangs")
			}
			patient, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			if err := db.GetContext(patient, &other, `SELECT pg_backend_pid()`); err != nil || other == silent {
				t.Errorf("the next question was answered by %d, after %d: %v", other, silent, err)
			}
		})
	}
}

// A statement that its context ends, and that Postgres cancels as it is told, costs no more than its connection.
func TestACanceledStatementEndsAtOnceAndInPostgresToo(t *testing.T) {
	t.Parallel()
	env := storetest.New(t)
	db := env.API(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := db.ExecContext(ctx, `SELECT pg_sleep(60) -- to be canceled`); err == nil || time.Since(began) > 30*time.Second {
		t.Fatalf("%v after %s", err, time.Since(began))
	}
	for {
		var left int
		if err := env.Admin(t).Get(&left, `SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%to be canceled' AND state = 'active' AND datname = current_database()`+
			` AND pid <> pg_backend_pid()`); err != nil {
			t.Fatal(err)
		}
		if left == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
}
