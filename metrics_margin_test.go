package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// costs books provider cost of this month on a workspace.
func costs(t *testing.T, env *storetest.Env, ws uuid.UUID, microUSD int64, day string) {
	t.Helper()
	_, err := env.Admin(t).Exec(`INSERT INTO metering_rows (workspace_id, attempt_id, meter, quantity, billable, day, task_id, agent, model)
		VALUES ($1, gen_random_uuid(), 'provider_cost_microusd', $2, true, `+day+`, gen_random_uuid(), 'yuki', 'auto')`, ws, microUSD)
	if err != nil {
		t.Fatal(err)
	}
}

func TestMargins(t *testing.T) {
	t.Parallel()
	env := storetest.New(t)
	free, dear, pro, idle := storetest.NewWorkspace(t, env, "free"), storetest.NewWorkspace(t, env, "free"), storetest.NewWorkspace(t, env, "pro"), storetest.NewWorkspace(t, env, "pro")
	const today, lastMonth = `(now() AT TIME ZONE 'UTC')::date`, `(date_trunc('month', now() AT TIME ZONE 'UTC') - interval '1 day')::date`
	costs(t, env, free, 400_000, today) // twice of what is expected, not past it
	costs(t, env, dear, 300_000, today)
	costs(t, env, dear, 100_001, today)
	costs(t, env, pro, 30_000, today)
	costs(t, env, pro, 900_000_000, lastMonth)
	id := func(ws uuid.UUID) string { return store.FormatID(store.WorkspacePrefix, ws) }
	system := store.NewSystem(env.System(t))

	t.Run("TheWorstAreNamedAndTheRestIsSummedByPlan", func(t *testing.T) {
		collector := &marginCollector{system: system}
		want := fmt.Sprintf(`
			# HELP muster_workspaces_over_expected_cost Workspaces past twice what their plan expects them to cost at model providers this month.
			# TYPE muster_workspaces_over_expected_cost gauge
			muster_workspaces_over_expected_cost{plan="free"} 1
			muster_workspaces_over_expected_cost{plan="pro"} 0
			# HELP muster_plan_provider_cost_microusd Paid to model providers this month, summed over the workspaces of a plan.
			# TYPE muster_plan_provider_cost_microusd gauge
			muster_plan_provider_cost_microusd{plan="free"} 800001
			muster_plan_provider_cost_microusd{plan="pro"} 30000
			# HELP muster_plan_price_microusd List prices of this month, summed over the workspaces of a plan.
			# TYPE muster_plan_price_microusd gauge
			muster_plan_price_microusd{plan="free"} 0
			muster_plan_price_microusd{plan="pro"} 2.98e+08
			# HELP muster_plan_workspaces Workspaces, by plan.
			# TYPE muster_plan_workspaces gauge
			muster_plan_workspaces{plan="free"} 2
			muster_plan_workspaces{plan="pro"} 2
			# HELP muster_workspace_margin_microusd Plan's price less provider cost this month, of the 100 workspaces with the lowest.
			# TYPE muster_workspace_margin_microusd gauge
			muster_workspace_margin_microusd{plan="free",workspace="%s"} -400000
			muster_workspace_margin_microusd{plan="free",workspace="%s"} -400001
			muster_workspace_margin_microusd{plan="pro",workspace="%s"} 1.4897e+08
		`, id(free), id(dear), id(pro))
		if err := testutil.CollectAndCompare(collector, strings.NewReader(want)); err != nil {
			t.Error(err)
		}
	})
	t.Run("NoMoreSeriesThanTheWorstHundred", func(t *testing.T) {
		crowd := storetest.New(t)
		for range worstMargins + 3 {
			costs(t, crowd, storetest.NewWorkspace(t, crowd, "growth"), 1, today)
		}
		if n := testutil.CollectAndCount(&marginCollector{system: store.NewSystem(crowd.System(t))}, "muster_workspace_margin_microusd"); n != worstMargins {
			t.Errorf("%d series", n)
		}
	})
	t.Run("TheCardShowsIt", func(t *testing.T) {
		env := func(k string) string { return map[string]string{"SYSTEM_DATABASE_URL": env.SystemURL}[k] }
		var out, errs strings.Builder
		if code := run(context.Background(), []string{"workspace", "show", "--json", id(dear)}, env, &out, &errs); code != 0 {
			t.Fatal(errs.String())
		}
		var card map[string]any
		if err := json.Unmarshal([]byte(out.String()), &card); err != nil {
			t.Fatal(err)
		}
		if card["margin_microusd"] != -400001.0 || card["provider_cost_microusd"] != 400001.0 || card["expected_cost_microusd"] != 200000.0 {
			t.Errorf("%v", card)
		}
		out.Reset()
		if code := run(context.Background(), []string{"workspace", "list", "--by-margin", "--limit", "2"}, env, &out, &errs); code != 0 {
			t.Fatal(errs.String())
		}
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if len(lines) != 3 || !strings.HasPrefix(lines[1], id(dear)) || !strings.Contains(lines[1], "past twice") || strings.Contains(out.String(), id(idle)) {
			t.Errorf("%s", out.String())
		}
	})
}
