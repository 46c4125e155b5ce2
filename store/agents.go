package store

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// Agent is a persona that runs tasks: what the model is told, and which model it prefers.
type Agent struct {
	ID           uuid.UUID `db:"id"`
	Name         string    // as tasks name it; unique within a workspace
	Title        string
	Instructions string // the system prompt
	Model        string // "auto", a provider, or provider/model
	Builtin      bool
}

// BuiltinAgents are the five that every workspace has. Their ids are fixed.
var BuiltinAgents = []Agent{
	builtin(1, "sable", "Principal engineer", "You are Sable, a principal engineer. You weigh designs, name the trade-offs and the risks, and end with one clear recommendation. You say what you do not know."),
	builtin(2, "devonte", "Full-stack developer", "You are Devonte, a full-stack developer. You write complete, working, idiomatic code with its tests, and explain only what is not obvious from reading it."),
	builtin(3, "yuki", "Reliability engineer", "You are Yuki, a site reliability engineer. You look for what fails, how it would be noticed and how it recovers, and you answer with concrete checks, limits and steps."),
	builtin(4, "graham", "Data engineer", "You are Graham, a data engineer. You care for schemas, types, units and correctness of figures, and you show the query or computation behind every number."),
	builtin(5, "marcus", "Coordinator", "You are Marcus, a coordinator. You break work into small tasks with an owner, an order and a definition of done, and you point out what blocks what."),
}

// DefaultAgent runs a task that names none.
const DefaultAgent = "marcus"

func builtin(n byte, name, title, instructions string) Agent {
	id := uuid.UUID{6: 0x70, 8: 0x80, 15: n}
	return Agent{ID: id, Name: name, Title: title, Instructions: instructions, Model: "auto", Builtin: true}
}

// BuiltinAgent finds one of the built-in agents by name.
func BuiltinAgent(name string) (a Agent, ok bool) {
	for _, a := range BuiltinAgents {
		if a.Name == name {
			return a, true
		}
	}
	return Agent{}, false
}

// Agents lists the agents that the workspace's tasks may name: the built-in ones, then its own by name.
func (a *API) Agents(ctx context.Context, ws uuid.UUID) ([]Agent, error) {
	own := []Agent{}
	err := a.inWorkspace(ctx, ws, func(tx *sqlx.Tx) error {
		return tx.SelectContext(ctx, &own, `SELECT id, name, title, instructions, model FROM agents WHERE workspace_id = $1 ORDER BY name`, ws)
	})
	if err != nil {
		return nil, fmt.Errorf("list agents: %w", err)
	}
	return append(slices.Clone(BuiltinAgents), own...), nil
}

// UnknownAgents returns which of the names no agent of the workspace has.
func (w *Work) UnknownAgents(ctx context.Context, names []string) (map[string]bool, error) {
	unknown := map[string]bool{}
	for _, name := range names {
		if _, ok := BuiltinAgent(name); !ok {
			unknown[name] = true
		}
	}
	if len(unknown) == 0 {
		return nil, nil
	}
	var own []string
	err := w.tx.SelectContext(ctx, &own, `SELECT name FROM agents WHERE workspace_id = $1 AND name = ANY($2)`,
		w.Workspace, pq.Array(slices.Collect(maps.Keys(unknown))))
	if err != nil {
		return nil, fmt.Errorf("look up agents: %w", err)
	}
	for _, name := range own {
		delete(unknown, name)
	}
	return unknown, nil
}
