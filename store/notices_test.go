package store_test

import (
	"fmt"
	"testing"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// told lists a workspace's notices with their limits, oldest first.
func (l *line) told(ws uuid.UUID) string {
	l.t.Helper()
	var list []string
	if err := l.env.Admin(l.t).Select(&list, `SELECT kind || ' ' || percent || ' of ' || quota FROM quota_notices WHERE workspace_id = $1 ORDER BY id`, ws); err != nil {
		l.t.Fatal(err)
	}
	return fmt.Sprint(list)
}

func TestNotices(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	operator := store.Operator{Name: "test"}
	setMS := func(l *line, ws uuid.UUID, ms int64) []store.Turn {
		l.t.Helper()
		turns, err := l.system.SetLimits(ctx, ws, map[string]int64{"agent_ms": ms}, operator)
		if err != nil {
			l.t.Fatal(err)
		}
		return turns
	}
	use := func(l *line, ws uuid.UUID, ms int64) {
		l.t.Helper()
		long := task("x")
		long.TimeoutMS = store.MaxTimeoutMS
		_, turn := l.submit(ws, long)
		l.finish(l.won(turn).Task, store.Succeeded, ms)
	}

	t.Run("AShareIsToldAgainOnlyUnderALargerLimit", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ws := storetest.NewWorkspace(t, l.env, "pro")
		setMS(l, ws, 100_000)
		use(l, ws, 85_000)
		want := "agent_time 80 of 100000"
		if got := l.told(ws); got != "["+want+"]" {
			t.Fatal(got)
		}
		setMS(l, ws, 200_000) // raising tells nothing
		use(l, ws, 80_000)    // 165 of 200: past 80 % of more than before
		want += " agent_time 80 of 200000"
		if got := l.told(ws); got != "["+want+"]" {
			t.Fatal(got)
		}
		setMS(l, ws, 150_000) // lowered: 100 % is passed by it, and was never told
		want += " agent_time 100 of 150000"
		if got := l.told(ws); got != "["+want+"]" {
			t.Fatal(got)
		}
		setMS(l, ws, 300_000)
		setMS(l, ws, 150_000) // down and up and down again: heard before
		setMS(l, ws, 170_000) // 97 %, no news
		if got := l.told(ws); got != "["+want+"]" {
			t.Fatal(got)
		}
	})

	t.Run("EachNoticeIsAnEventWithoutGapsAndAnAuditEntry", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		api := store.NewAPI(l.env.API(t))
		ws, other := storetest.NewWorkspace(t, l.env, "pro"), storetest.NewWorkspace(t, l.env, "pro")
		setMS(l, ws, 100_000)
		use(l, ws, 85_000)
		use(l, ws, 15_000)
		e, err := api.EventsAfter(ctx, ws, 0, 10)
		if err != nil || len(e.List) != 2 || e.Missing || e.Last != 2 {
			t.Fatalf("%+v, %v", e, err)
		}
		if e.List[0].Seq != 1 || e.List[1].Seq != 2 || e.List[0].Kind != store.EventUsage {
			t.Errorf("%+v", e.List)
		}
		if n := l.count(`SELECT count(*) FROM audit_log WHERE workspace_id = $1 AND action = 'quota.notice'`, ws); n != 2 {
			t.Errorf("%d audit entries", n)
		}
		if e, err = api.EventsAfter(ctx, ws, 2, 10); err != nil || len(e.List) != 0 || e.Missing {
			t.Errorf("up to date: %+v, %v", e, err)
		}
		if e, err = api.EventsAfter(ctx, ws, 7, 10); err != nil || len(e.List) != 2 || !e.Missing {
			t.Errorf("a number that was never given out: %+v, %v", e, err)
		}
		if e, err = api.EventsAfter(ctx, other, 0, 10); err != nil || len(e.List) != 0 || e.Missing {
			t.Errorf("another workspace: %+v, %v", e, err)
		}
		if _, err := l.env.Admin(t).Exec(`UPDATE workspace_events SET at = now() - interval '8 days' WHERE seq = 1`); err != nil {
			t.Fatal(err)
		}
		if err := l.system.SweepTold(ctx); err != nil {
			t.Fatal(err)
		}
		if e, err = api.EventsAfter(ctx, ws, 0, 10); err != nil || len(e.List) != 1 || !e.Missing {
			t.Errorf("after the sweep: %+v, %v", e, err)
		}
		if e, err = api.EventsAfter(ctx, ws, 1, 10); err != nil || len(e.List) != 1 || e.Missing {
			t.Errorf("behind what was swept: %+v, %v", e, err)
		}
	})
}
