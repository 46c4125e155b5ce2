package api

import (
	"testing"

	"github.com/generic-corp/muster/store"
)

func TestOverageIsItsOwnersToSet(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	on := map[string]any{"overage": map[string]any{"enabled": true, "spend_cap_cents": 5000}}
	owner := w.owner("starter")
	keyWith := func(scope string) *client {
		return w.with(owner.post("/v1/api-keys", map[string]any{"name": "x", "role": "owner", "scopes": []string{scope}}).want(201).str("key"))
	}

	w.owner("free").do("PATCH", "/v1/workspace", on).problem(probPlanLimit)
	owner.colleague(store.RoleMember).do("PATCH", "/v1/workspace", on).problem(probForbidden)
	keyWith("members:write").do("PATCH", "/v1/workspace", on).problem(probForbidden)
	keyWith("billing:write").do("PATCH", "/v1/workspace", map[string]any{"name": "x"}).problem(probForbidden)
	for _, wrong := range []map[string]any{{"enabled": true}, {"enabled": true, "spend_cap_cents": 0}, {"enabled": true, "spend_cap_cents": 5_000_001},
		{"enabled": true, "spend_cap_cents": 1.5}, {"enabled": true, "spend_cap_cents": 1, "allowance_ms": 1}} {
		owner.do("PATCH", "/v1/workspace", map[string]any{"overage": wrong}).problem(probInvalid)
	}

	keyWith("billing:write").do("PATCH", "/v1/workspace", on).want(200)
	r := owner.get("/v1/quota").want(200)
	if r.at("overage.enabled") != true || r.at("overage.spend_cap_cents") != 5000.0 || r.at("overage.allowance_ms") != float64(store.OverageMS(5000)) ||
		r.at("overage.cost_microusd") != 0.0 || r.at("provider_budget.included_microusd") != 15e6 || r.at("provider_budget.max_task_microusd") != 3e6 {
		t.Errorf("%s", r.body)
	}
	owner.do("PATCH", "/v1/workspace", map[string]any{"overage": map[string]any{"enabled": false}}).want(200)
	if r := owner.get("/v1/quota").want(200); r.at("overage.enabled") != false || r.at("overage.allowance_ms") != 0.0 || r.at("overage.spend_cap_cents") != 5000.0 {
		t.Errorf("%s", r.body)
	}
	owner.do("PATCH", "/v1/workspace", map[string]any{"overage": map[string]any{"enabled": true}}).want(200) // the last cap
}
