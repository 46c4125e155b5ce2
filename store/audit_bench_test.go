package store_test

import (
	"context"
	"testing"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// BenchmarkAuditedChange is what an entry costs a transaction, in one run: none, one as the version before wrote it (plain),
// one that is chained.
func BenchmarkAuditedChange(b *testing.B) {
	env := storetest.New(b)
	ctx := context.Background()
	ws := storetest.NewWorkspace(b, env, "pro")
	api := store.NewAPI(env.API(b))
	for _, v := range []struct{ name, sql string }{
		{"none", `SELECT 1`}, {"chained", `SELECT 1`}, {"none", `SELECT 1`}, {"chained", `SELECT 1`},
		{"plain", `ALTER TABLE audit_log DISABLE TRIGGER audit_chain, DROP CONSTRAINT audit_log_pkey, ALTER hash DROP NOT NULL, ALTER seq DROP NOT NULL`},
	} {
		env.Admin(b).MustExec(v.sql)
		b.Run(v.name, func(b *testing.B) {
			for b.Loop() {
				_, err := api.Do(ctx, store.Scope{Workspace: ws}, nil, func(w *store.Work) (store.Answer, error) {
					if _, err := w.Allowance(ctx); err != nil || v.name == "none" {
						return store.Answer{}, err
					}
					return store.Answer{}, w.Audit(store.AuditEntry{ActorType: store.ActorUser, ActorID: "usr_x", Action: "workspace.update", IP: "192.0.2.1"})
				})
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkVerifyChain(b *testing.B) {
	env := storetest.New(b)
	ws := storetest.NewWorkspace(b, env, "pro")
	env.Admin(b).MustExec(`INSERT INTO audit_log (workspace_id, actor_type, actor_id, action, target) SELECT $1, 'user', 'usr_x', 'bulk.entry', n::text FROM generate_series(1, 20000) n`, ws)
	system := store.NewSystem(env.System(b))
	entries := int64(0)
	for b.Loop() {
		check, err := system.VerifyChain(b.Context(), ws)
		if err != nil || len(check.Faults) > 0 {
			b.Fatal(check, err)
		}
		entries += check.Entries
	}
	b.ReportMetric(float64(entries)/b.Elapsed().Seconds(), "entries/s")
}
