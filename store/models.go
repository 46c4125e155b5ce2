package store

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"
)

// Which models a workspace's tasks may run on: patterns of provider/model, copied from the plan like every limit. A
// submit that names another is refused; a task that was accepted before the list shrank fails when it is claimed, because
// the worker gets the list with the claim (worker/provider/allow.go).

// ModelsLimit is how many patterns a list may have.
const ModelsLimit = 100

var modelPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]*/([A-Za-z0-9][A-Za-z0-9._:@/-]{0,99}\*?|\*)$`)

// CheckModels refuses a list that has a malformed pattern or too many.
func CheckModels(patterns []string) error {
	if len(patterns) > ModelsLimit {
		return &Error{Kind: Invalid, Field: "models", Message: fmt.Sprintf("models may have at most %d patterns", ModelsLimit)}
	}
	for _, p := range patterns {
		if !modelPattern.MatchString(p) {
			return &Error{Kind: Invalid, Field: "models", Message: fmt.Sprintf("%.100q is no provider/model, provider/prefix* or provider/*", p)}
		}
	}
	return nil
}

// AllowModels replaces what a plan allows, by an operator's setting. Call it once, before anything reads Plans; plans
// that were copied to workspaces before stay as they are. Invalid when there is no such plan or a pattern is malformed.
func AllowModels(plan string, patterns []string) error {
	if err := CheckModels(patterns); err != nil {
		return err
	}
	i := slices.IndexFunc(Plans, func(p Plan) bool { return p.ID == plan })
	if i < 0 {
		return &Error{Kind: Invalid, Field: "models", Message: fmt.Sprintf("no plan is called %.100q", plan)}
	}
	Plans[i].Models = slices.Clone(patterns)
	return nil
}

// AllowsModel reports whether a task may ask for the model: auto ("") always, a provider when at least one of its models
// is allowed, provider/model when a pattern fits. Empty patterns allow all.
func AllowsModel(patterns []string, model string) bool {
	if len(patterns) == 0 || model == "" || model == "auto" {
		return true
	}
	provider, _, exact := strings.Cut(model, "/")
	return slices.ContainsFunc(patterns, func(p string) bool {
		if !exact {
			return strings.HasPrefix(p, provider+"/")
		}
		prefix, open := strings.CutSuffix(p, "*")
		return p == model || open && strings.HasPrefix(model, prefix)
	})
}

// setModels writes the list that the workspace's claims go by. The load row is locked.
func (l *load) setModels(ctx context.Context, tx *sqlx.Tx, patterns []string) error {
	_, err := tx.ExecContext(ctx, `UPDATE workspace_load SET models = $2 WHERE workspace_id = $1`, l.Workspace, models(patterns))
	if err != nil {
		return fmt.Errorf("set models: %w", err)
	}
	return nil
}

// models is a list as a parameter: never null.
func models(patterns []string) any {
	if patterns == nil {
		patterns = []string{}
	}
	return pq.Array(patterns)
}
