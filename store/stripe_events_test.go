package store_test

import (
	"testing"
	"time"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

func TestTheInboxOfStripeEvents(t *testing.T) {
	t.Parallel()
	env := storetest.New(t)
	api := store.NewAPI(env.API(t))
	event := store.StripeEvent{ID: "evt_1", Type: "invoice.paid", CreatedAt: time.Now(), Payload: []byte("{\x00\xff}")}
	for _, want := range []bool{true, false} {
		if fresh, err := api.KeepStripeEvent(t.Context(), event); err != nil || fresh != want {
			t.Errorf("fresh %v, %v", fresh, err)
		}
	}
	t.Run("EachRoleMayDoItsPartAndNoMore", func(t *testing.T) {
		const add = `INSERT INTO stripe_events (id, type, livemode, created_at, payload) VALUES (gen_random_uuid()::text, 't', false, now(), '')`
		statements := map[string]string{"select": `SELECT id FROM stripe_events`, "add": add,
			"add as handled":  `INSERT INTO stripe_events (id, type, livemode, created_at, payload, handled_at) VALUES (gen_random_uuid()::text, 't', false, now(), '', now())`,
			"add and look":    add + ` RETURNING id`,
			"overwrite":       add + ` ON CONFLICT (id) DO UPDATE SET payload = ''`,
			"mark as handled": `UPDATE stripe_events SET handled_at = now()`,
			"change":          `UPDATE stripe_events SET payload = ''`,
			"remove":          `DELETE FROM stripe_events WHERE id = 'evt_none'`}
		may := map[string][]string{store.RoleAPI: {"add"}, store.RoleWorker: nil, store.RoleSystem: {"select", "mark as handled", "remove"}}
		for role, db := range roleHandles(t, env) {
			for what, statement := range statements {
				allowed := false
				for _, name := range may[role] {
					allowed = allowed || name == what
				}
				if _, err := db.Exec(statement); (sqlState(err) == "") != allowed || (err != nil && sqlState(err) != forbidden) {
					t.Errorf("%s: %s: %v", role, what, err)
				}
			}
		}
		var owner int
		if err := env.Owner(t).Get(&owner, `SELECT count(*) FROM stripe_events`); err != nil || owner != 0 {
			t.Errorf("the owner sees %d, %v", owner, err)
		}
	})
	t.Run("OldOnesAreSwept", func(t *testing.T) {
		env.Admin(t).MustExec(`DELETE FROM stripe_events`)
		env.Admin(t).MustExec(`INSERT INTO stripe_events (id, type, livemode, created_at, payload, received_at, handled_at) VALUES
			('evt_new', 't', false, now(), '', now(), NULL), ('evt_waits', 't', false, now(), '', now() - interval '179 days', NULL),
			('evt_handled', 't', false, now(), '', now() - interval '40 days', now() - interval '29 days'),
			('evt_done', 't', false, now(), '', now() - interval '40 days', now() - interval '31 days'), ('evt_forgotten', 't', false, now(), '', now() - interval '181 days', NULL)`)
		if err := store.NewSystem(env.System(t)).Sweep(t.Context(), 48*time.Hour); err != nil {
			t.Fatal(err)
		}
		var left []string
		if err := env.Admin(t).Select(&left, `SELECT id FROM stripe_events ORDER BY id`); err != nil || len(left) != 3 || left[0] != "evt_handled" || left[1] != "evt_new" || left[2] != "evt_waits" {
			t.Errorf("%v %v", left, err)
		}
	})
}
