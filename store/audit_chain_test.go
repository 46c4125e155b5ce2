package store_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// chainRig is a ledger whose chains are tampered with.
type chainRig struct {
	t      *testing.T
	env    *storetest.Env
	api    *store.API
	system *store.System
	admin  *sqlx.DB // a superuser without triggers, whom nothing binds
}

func newChainRig(t *testing.T) *chainRig {
	t.Helper()
	env := storetest.New(t)
	admin, err := store.Open(t.Context(), env.AdminURL, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { admin.Close() })
	admin.MustExec(`SET session_replication_role = replica`)
	return &chainRig{t: t, env: env, api: store.NewAPI(env.API(t)), system: store.NewSystem(env.System(t)), admin: admin}
}

// note appends n entries to a workspace's chain in one transaction.
func (r *chainRig) note(ws uuid.UUID, n int) error {
	_, err := r.api.Do(context.Background(), store.Scope{Workspace: ws}, nil, func(w *store.Work) (store.Answer, error) {
		for i := range n {
			e := store.AuditEntry{ActorType: store.ActorUser, ActorID: "usr_x", Action: "test.note", Target: fmt.Sprint("ünïcode ", i),
				Details: map[string]any{"n": i, "text": "a \"b\" \\ ü \u2028", "nested": map[string]any{"z": 1.50, "a": []int{1, 2}}}, IP: "2001:db8::1", RequestID: "r"}
			if err := w.Audit(e); err != nil {
				return store.Answer{}, err
			}
		}
		return store.Answer{}, nil
	})
	return err
}

// workspace makes one with ten entries.
func (r *chainRig) workspace() uuid.UUID {
	r.t.Helper()
	ws := storetest.NewWorkspace(r.t, r.env, "pro") // registered, and given a plan: two entries
	if err := r.note(ws, 8); err != nil {
		r.t.Fatal(err)
	}
	return ws
}

// faults verifies a chain and tells kinds and places.
func (r *chainRig) faults(ws uuid.UUID) string {
	r.t.Helper()
	check, err := r.system.VerifyChain(r.t.Context(), ws)
	if err != nil {
		r.t.Fatal(err)
	}
	var all []string
	for _, f := range check.Faults {
		if f.Chain != ws || f.What == "" {
			r.t.Errorf("%+v", f)
		}
		all = append(all, fmt.Sprint(f.Kind, " ", f.Seq))
	}
	return strings.Join(all, ", ")
}

func TestAnAuditChainShowsEachHand(t *testing.T) {
	t.Parallel()
	r := newChainRig(t)
	for name, c := range map[string]struct{ sql, want string }{
		"nothing was done":                 {`SELECT $1::uuid`, ""},
		"an action was changed":            {`UPDATE audit_log SET action = 'other' WHERE workspace_id = $1 AND seq = 5`, "changed 5"},
		"an actor was changed":             {`UPDATE audit_log SET actor_id = 'usr_y' WHERE workspace_id = $1 AND seq = 5`, "changed 5"},
		"an actor's kind was changed":      {`UPDATE audit_log SET actor_type = 'operator' WHERE workspace_id = $1 AND seq = 5`, "changed 5"},
		"a target was changed":             {`UPDATE audit_log SET target = '' WHERE workspace_id = $1 AND seq = 5`, "changed 5"},
		"details were changed":             {`UPDATE audit_log SET details = details || '{"n": 7}' WHERE workspace_id = $1 AND seq = 5`, "changed 5"},
		"an address was changed":           {`UPDATE audit_log SET ip = '' WHERE workspace_id = $1 AND seq = 5`, "changed 5"},
		"a request was changed":            {`UPDATE audit_log SET request_id = '' WHERE workspace_id = $1 AND seq = 5`, "changed 5"},
		"a time was changed":               {`UPDATE audit_log SET at = at - interval '1 microsecond' WHERE workspace_id = $1 AND seq = 5`, "changed 5"},
		"texts were shifted":               {`UPDATE audit_log SET actor_id = actor_id || left(action, 1), action = substr(action, 2) WHERE workspace_id = $1 AND seq = 5`, "changed 5"},
		"a hash was changed":               {`UPDATE audit_log SET hash = sha256('x') WHERE workspace_id = $1 AND seq = 5`, "changed 5, changed 6"},
		"a row was changed with its hash":  {`UPDATE audit_log a SET target = 'x', hash = audit_hash((SELECT hash FROM audit_log WHERE workspace_id = $1 AND seq = 4), ROW(a.workspace_id, a.id, a.at, a.actor_type, a.actor_id, a.action, 'x', a.details, a.ip, a.request_id, a.seq, a.hash)::audit_log, 5, a.at) WHERE workspace_id = $1 AND seq = 5`, "changed 6"},
		"a row was removed":                {`DELETE FROM audit_log WHERE workspace_id = $1 AND seq = 5`, "removed 5"},
		"several were removed":             {`DELETE FROM audit_log WHERE workspace_id = $1 AND seq IN (1, 2, 6)`, "removed 1, removed 6"},
		"one was removed, the rest moved":  {`WITH gone AS (DELETE FROM audit_log WHERE workspace_id = $1 AND seq = 8) UPDATE audit_log SET seq = -8 WHERE workspace_id = $1 AND seq = 9`, "changed 8, removed 9"},
		"the last were removed":            {`DELETE FROM audit_log WHERE workspace_id = $1 AND seq > 7`, "truncated 8"},
		"all were removed":                 {`DELETE FROM audit_log WHERE workspace_id = $1`, "truncated 1"},
		"all and the head were removed":    {`WITH h AS (DELETE FROM audit_heads WHERE workspace_id = $1) DELETE FROM audit_log WHERE workspace_id = $1`, "removed 0"},
		"the head was removed":             {`DELETE FROM audit_heads WHERE workspace_id = $1`, "removed 0"},
		"the head's hash was changed":      {`UPDATE audit_heads SET hash = sha256('x') WHERE workspace_id = $1`, "changed 10"},
		"the head was set back":            {`UPDATE audit_heads SET seq = 7 WHERE workspace_id = $1`, "inserted 8, changed 7"},
		"a row was put behind the head":    {`INSERT INTO audit_log SELECT (ROW(workspace_id, id, at, actor_type, actor_id, action, target, details, ip, request_id, 11, hash)::audit_log).* FROM audit_log WHERE workspace_id = $1 AND seq = 10`, "inserted 11"},
		"two rows were swapped":            {`UPDATE audit_log SET seq = CASE seq WHEN 4 THEN -7 ELSE -4 END WHERE workspace_id = $1 AND seq IN (4, 7)`, "changed 4, changed 5, changed 7, changed 8"},
		"one was put between two":          {`UPDATE audit_log SET seq = -(seq + 1) WHERE workspace_id = $1 AND seq > 8; `, "inserted 11, changed 9, changed 10, changed 10"},
		"two workspaces' rows were traded": {`UPDATE audit_log SET workspace_id = CASE workspace_id WHEN $1 THEN '00000000-0000-0000-0000-00000000000a'::uuid ELSE $1 END, seq = -5 WHERE seq = 5 AND workspace_id IN ($1, '00000000-0000-0000-0000-00000000000a')`, "changed 5, changed 6"},
	} {
		t.Run(name, func(t *testing.T) {
			r := *r
			r.t = t
			ws := r.workspace()
			if before := r.faults(ws); before != "" {
				t.Fatalf("before anything was done: %s", before)
			}
			r.admin.MustExec(`ALTER TABLE audit_log DROP CONSTRAINT IF EXISTS audit_log_seq_check`)
			var other uuid.UUID
			if strings.Contains(c.sql, "00000a") {
				other = r.workspace()
				c.sql = strings.ReplaceAll(c.sql, "00000000-0000-0000-0000-00000000000a", other.String())
			}
			r.admin.MustExec(c.sql, ws)
			if strings.Contains(c.sql, "-(seq + 1)") { // the room is made, now it is filled
				r.admin.MustExec(`INSERT INTO audit_log SELECT (ROW(workspace_id, id, at, actor_type, actor_id, action, 'forged', details, ip, request_id, 9, hash)::audit_log).* FROM audit_log WHERE workspace_id = $1 AND seq = 8`, ws)
			}
			r.admin.MustExec(`UPDATE audit_log SET seq = -seq WHERE seq < 0`)
			if got := r.faults(ws); got != c.want {
				t.Errorf("found %q, want %q", got, c.want)
			}
			if other != uuid.Nil {
				if got := r.faults(other); got != c.want {
					t.Errorf("in the other: found %q, want %q", got, c.want)
				}
			}
		})
	}
}

func TestATruncatedTailShowsAgainstTheHeadsOfANight(t *testing.T) {
	t.Parallel()
	r := newChainRig(t)
	ws, other := r.workspace(), r.workspace()
	day := time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)
	night := func(day time.Time) (string, store.Heads) {
		t.Helper()
		var file bytes.Buffer
		heads, written, err := r.system.WriteNight(t.Context(), day, func(write func(io.Writer) (store.Heads, error)) error {
			_, err := write(&file)
			return err
		})
		if err != nil || !written {
			t.Fatalf("%v %v", written, err)
		}
		return file.String(), heads
	}
	file, heads := night(day)
	if _, written, err := r.system.WriteNight(t.Context(), day, nil); written || err != nil {
		t.Errorf("the night was written twice: %v %v", written, err)
	}
	if err := r.note(ws, 3); err != nil {
		t.Fatal(err)
	}
	second, next := night(day.AddDate(0, 0, 1))
	if heads.Chains != 2 || !bytes.Equal(next.Previous, heads.Digest) || heads.Previous != nil || !strings.Contains(second, fmt.Sprintf("previous %x\n", heads.Digest)) {
		t.Errorf("%+v, then %+v", heads, next)
	}
	compare := func(file string) []store.ChainFault {
		t.Helper()
		_, faults, err := r.system.VerifyHeads(t.Context(), strings.NewReader(file))
		if err != nil {
			t.Fatal(err)
		}
		return faults
	}
	if f := append(compare(file), compare(second)...); len(f) != 0 {
		t.Errorf("a sound ledger: %+v", f)
	}

	// Whoever cuts the tail off and sets the head back leaves no trace in the database.
	r.admin.MustExec(`DELETE FROM audit_log WHERE workspace_id = $1 AND seq > 10`, ws)
	r.admin.MustExec(`UPDATE audit_heads h SET seq = a.seq, hash = a.hash, at = a.at FROM audit_log a WHERE h.workspace_id = $1 AND a.workspace_id = $1 AND a.seq = 10`, ws)
	if got := r.faults(ws); got != "" {
		t.Errorf("found %q; the test tests nothing", got)
	}
	if f := compare(file); len(f) != 0 {
		t.Errorf("the first night, when it was so: %+v", f)
	}
	if f := compare(second); len(f) != 1 || f[0].Chain != ws || f[0].Seq != 13 || f[0].Kind != store.ChainTruncated {
		t.Errorf("the second night: %+v", f)
	}
	// A tail that was written anew has other hashes.
	if err := r.note(ws, 3); err != nil {
		t.Fatal(err)
	}
	if f := compare(second); len(f) != 1 || f[0].Seq != 13 || f[0].Kind != store.ChainChanged {
		t.Errorf("a tail that was written anew: %+v", f)
	}

	for name, forged := range map[string]string{
		"another number":  strings.Replace(file, store.ChainName(other)+" 10 ", store.ChainName(other)+" 9 ", 1),
		"a line less":     file[:strings.Index(file, store.ChainName(ws))] + file[strings.Index(file, "digest"):],
		"no end":          file[:strings.Index(file, "digest")],
		"something after": file + "x\n",
		"something else":  "nonsense\n",
		"nothing":         "",
	} {
		if _, _, err := r.system.VerifyHeads(t.Context(), strings.NewReader(forged)); err == nil {
			t.Errorf("a file with %s is taken", name)
		}
	}
}

func TestParallelAppendsMakeOneChainAndNoDeadlock(t *testing.T) {
	t.Parallel()
	r := newChainRig(t)
	a, b := storetest.NewWorkspace(t, r.env, "pro"), storetest.NewWorkspace(t, r.env, "pro")
	const writers, rounds = 50, 4
	var wg sync.WaitGroup
	for i := range writers {
		ws, other := a, b
		if i%5 == 4 {
			ws, other = b, a
		}
		wg.Go(func() {
			for range rounds {
				var submitted []store.TaskView
				_, err := r.api.Do(context.Background(), store.Scope{Workspace: ws}, nil, func(w *store.Work) (store.Answer, error) {
					if err := w.Audit(store.AuditEntry{ActorType: store.ActorUser, ActorID: "usr_x", Action: "test.early"}); err != nil {
						return store.Answer{}, err
					}
					var err error
					submitted, err = w.Submit(context.Background(), []store.NewTask{task("x")}) // the load row, after the entry was noted
					return store.Answer{}, err
				})
				if err == nil {
					_, err = r.api.Do(context.Background(), store.Scope{Workspace: ws}, nil, func(w *store.Work) (store.Answer, error) {
						if err := w.Audit(store.AuditEntry{ActorType: store.ActorUser, ActorID: "usr_x", Action: "test.cancel"}); err != nil {
							return store.Answer{}, err
						}
						_, err := w.Cancel(context.Background(), submitted[0].ID)
						return store.Answer{}, err
					})
				}
				if err == nil { // both chains and the system's, in an order that is not that of their ids
					err = r.api.NoteStrangers(context.Background(), []store.Stranger{{Chain: other, Entry: strange}, {Chain: ws, Entry: strange}, {Entry: strange}})
				}
				if err == nil && i%10 == 0 {
					_, err = r.system.SetLimits(context.Background(), ws, map[string]int64{"max_users": int64(i)}, store.Operator{Name: "test"})
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	var deadlocks int64
	if err := r.env.Admin(t).Get(&deadlocks, `SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()`); err != nil || deadlocks != 0 {
		t.Errorf("%d deadlocks, %v", deadlocks, err)
	}
	total := int64(0)
	for _, chain := range []uuid.UUID{a, b, store.SystemChain} {
		if got := r.faults(chain); got != "" {
			t.Errorf("%s: %s", store.ChainName(chain), got)
		}
		var n int64
		if err := r.env.Admin(t).Get(&n, `SELECT max(seq) FROM audit_log WHERE workspace_id = $1`, chain); err != nil {
			t.Fatal(err)
		}
		total += n
	}
	if want := int64(2*2 + writers*rounds*5 + writers/10*rounds); total != want {
		t.Errorf("%d entries, want %d", total, want)
	}
}

var strange = store.AuditEntry{ActorType: store.ActorAnonymous, Action: "test.strange"}

func TestAChainSurvivesKilledWriters(t *testing.T) {
	t.Parallel()
	own := storetest.OwnServers(t)
	r := &chainRig{t: t, env: own.Env, api: store.NewAPI(own.API(t)), system: store.NewSystem(own.System(t))}
	ws := storetest.NewWorkspace(t, own.Env, "pro")
	var acknowledged sync.Map
	var written atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				name := fmt.Sprint(i, "-", n)
				_, err := r.api.Do(context.Background(), store.Scope{Workspace: ws}, nil, func(w *store.Work) (store.Answer, error) {
					return store.Answer{}, w.Audit(store.AuditEntry{ActorType: store.ActorUser, ActorID: "usr_x", Action: "test.kill", Target: name})
				})
				if err == nil {
					acknowledged.Store(name, true)
					written.Add(1)
				}
			}
		})
	}
	for range 5 { // connections are cut in the middle of transactions; then the whole server is
		for goal := written.Load() + 20; written.Load() < goal; {
			runtime.Gosched()
		}
		if _, err := own.Admin(t).Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'muster_api'`); err != nil {
			t.Error(err)
		}
	}
	if err := own.Postgres.Kill(); err != nil {
		t.Fatal(err)
	}
	close(stop)
	wg.Wait()
	if err := own.Postgres.Restart(context.Background()); err != nil {
		t.Fatal(err)
	}
	for _, db := range []*sqlx.DB{own.API(t), own.System(t), own.Admin(t)} { // connections from before are gone one by one
		for range storetest.PoolSize {
			if db.PingContext(t.Context()) == nil {
				break
			}
		}
	}
	if got := r.faults(ws); got != "" {
		t.Errorf("after the kill: %s", got)
	}
	var there []string
	if err := own.Admin(t).Select(&there, `SELECT target FROM audit_log WHERE action = 'test.kill'`); err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, name := range there {
		found[name] = true
	}
	n := 0
	acknowledged.Range(func(name, _ any) bool {
		n++
		if !found[name.(string)] {
			t.Errorf("entry %s was acknowledged and is gone", name)
		}
		return true
	})
	if n == 0 {
		t.Error("nothing was written")
	}
	if err := r.note(ws, 1); err != nil {
		t.Fatal(err)
	}
	if got := r.faults(ws); got != "" {
		t.Errorf("after the next entry: %s", got)
	}
}
