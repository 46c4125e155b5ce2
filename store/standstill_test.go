package store_test

import (
	"context"
	"testing"
	"time"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// A worker that is stopped, or cut off, between two statements holds the rows that its transaction has locked. Nobody's
// submits wait for it longer than a request may take.
func TestAProcessThatStandsStillInATransactionIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	env := storetest.New(t)
	ctx := context.Background()
	ws := storetest.NewWorkspace(t, env, "pro")
	tx, err := env.Worker(t).BeginTxx(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.ExecContext(ctx, `SELECT 1 FROM workspace_load WHERE workspace_id = $1 FOR NO KEY UPDATE`, ws); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(ctx, 12*time.Second) // a request has 15 s
	defer cancel()
	began := time.Now()
	_, err = store.NewAPI(env.API(t)).Do(ctx, store.Scope{Workspace: ws}, nil, func(w *store.Work) (store.Answer, error) {
		_, err := w.Submit(ctx, []store.NewTask{{Agent: "yuki", Model: "auto", Prompt: "hello", TimeoutMS: 1000, MaxAttempts: 1}})
		return store.Answer{}, err
	})
	if err != nil {
		t.Fatalf("after %s: %v", time.Since(began), err)
	}
	if waited := time.Since(began); waited < 2*time.Second {
		t.Fatalf("it was submitted after %s: nobody held the row", waited)
	}
	if err := tx.Commit(); !store.Unavailable(err) {
		t.Errorf("the one that stood still commits: %v", err)
	}
}
