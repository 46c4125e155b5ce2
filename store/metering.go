package store

import (
	"time"

	"github.com/google/uuid"
)

// The meters. Quantities are whole numbers of the unit in the name; MeterTasks counts tasks that reached a final
// state.
const (
	MeterAgentMS          = "agent_ms"
	MeterOverageMS        = "overage_ms" // the part of agent_ms that is charged past the plan, by the rules of that moment
	MeterTasks            = "tasks"
	MeterInputTokens      = "input_tokens"
	MeterOutputTokens     = "output_tokens"
	MeterCacheReadTokens  = "cache_read_tokens"
	MeterCacheWriteTokens = "cache_write_tokens"
	MeterProviderCost     = "provider_cost_microusd"
)

// meteringArgs are the rows that line_book writes, one per attempt and meter, in the transaction that ends the attempt:
// agent_ms always, the others when they are not zero. The primary key makes a second booking of the same attempt
// impossible. Day and period come from the database's clock there, so a task that runs over midnight counts whole where it
// finished. A transaction that began before the month turned may get the load row after one that turned its period: its
// rows count in the period that its time is used from.
func meteringArgs(loads map[uuid.UUID]*load, byLease map[uuid.UUID]*Finish, ended []held, moves []move) []any {
	var workspaces, attempts, tasks []uuid.UUID
	var meters, agents, models []string
	var periods []time.Time
	var quantities []int64
	var billable []bool
	var keys []*uuid.UUID
	for i, h := range ended {
		f := byLease[h.Lease]
		var key *uuid.UUID
		if h.APIKeyID.Valid {
			key = &h.APIKeyID.UUID
		}
		var final int64
		if Final(moves[i].status) {
			final = 1
		}
		u := f.Usage
		for _, row := range []struct {
			meter    string
			quantity int64
		}{
			{MeterAgentMS, u.AgentMS}, {MeterOverageMS, moves[i].overage}, {MeterTasks, final}, {MeterInputTokens, u.InputTokens}, {MeterOutputTokens, u.OutputTokens},
			{MeterCacheReadTokens, u.CacheReadTokens}, {MeterCacheWriteTokens, u.CacheWriteTokens}, {MeterProviderCost, u.CostMicroUSD},
		} {
			if row.quantity == 0 && row.meter != MeterAgentMS {
				continue
			}
			workspaces, attempts, tasks = append(workspaces, h.Workspace), append(attempts, h.Lease), append(tasks, h.Task)
			meters, quantities, billable = append(meters, row.meter), append(quantities, row.quantity), append(billable, f.billable())
			agents, models, keys = append(agents, h.Agent), append(models, h.Model), append(keys, key)
			periods = append(periods, loads[h.Workspace].Period)
		}
	}
	return []any{uuids(workspaces), uuids(attempts), uuids(tasks), texts(meters), bigints(quantities), bools(billable),
		texts(agents), texts(models), nullUUIDs(keys), dates(periods)}
}
