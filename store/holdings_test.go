package store_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// The table of what leaving does and what an export shows, held against the catalog: a new table or column fails until
// somebody has decided about it.
func TestHoldingsNameEveryTableAndColumn(t *testing.T) {
	t.Parallel()
	env := storetest.New(t)
	var columns []struct{ Table, Name string }
	if err := env.Admin(t).Select(&columns, `SELECT c.relname AS table, a.attname AS name FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
		WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped`); err != nil {
		t.Fatal(err)
	}
	byTable := map[string][]string{}
	for _, c := range columns {
		byTable[c.Table] = append(byTable[c.Table], c.Name)
	}
	held := map[string]bool{}
	for _, h := range store.Holdings {
		if held[h.Table] {
			t.Errorf("%s stands twice", h.Table)
		}
		held[h.Table] = true
		if byTable[h.Table] == nil {
			t.Errorf("there is no table %s", h.Table)
		}
		switch h.Fate {
		case store.FateDeleted:
		case store.FateErased, store.FateKept:
			if h.Why == "" {
				t.Errorf("%s is %s without a reason", h.Table, h.Fate)
			}
		default:
			t.Errorf("%s has the fate %q", h.Table, h.Fate)
		}
		if (len(h.Export) == 0) == (h.Left == "") {
			t.Errorf("%s must be exported, or left out with a reason", h.Table)
		}
		if len(h.Export) == 0 {
			continue
		}
		told := append([]string{"workspace_id"}, h.Withheld...)
		for _, c := range h.Export {
			name, _, _ := strings.Cut(c, ">")
			if strings.Contains(name, ".") {
				continue // a joined table's
			}
			told = append(told, name)
			for _, secret := range []string{"hash", "token", "password", "secret"} {
				if strings.HasSuffix(name, secret) {
					t.Errorf("%s.%s is exported", h.Table, name)
				}
			}
		}
		for _, name := range byTable[h.Table] {
			if !slices.Contains(told, name) {
				t.Errorf("%s.%s is neither exported nor withheld", h.Table, name)
			}
		}
		for _, name := range told {
			if !slices.Contains(byTable[h.Table], name) && !(h.Table == "workspaces" && name == "workspace_id") {
				t.Errorf("%s has no column %s", h.Table, name)
			}
		}
	}
	for table, wall := range tables {
		if !held[table] && !wall.shared {
			t.Errorf("nobody has decided what becomes of %s when its workspace leaves", table)
		}
	}
}
