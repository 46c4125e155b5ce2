package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

func TestAuditCommands(t *testing.T) {
	t.Parallel()
	env := storetest.New(t)
	vars := whole(env)
	id := storetest.NewWorkspace(t, env, "pro")
	ws := store.FormatID(store.WorkspacePrefix, id)
	expect := func(code int, want string, args ...string) string {
		t.Helper()
		got, stdout, stderr := runWith(vars, args...)
		if got != code || !strings.Contains(stdout+stderr, want) {
			t.Errorf("%q: %d, want %d and %q\n%s%s", args, got, code, want, stdout, stderr)
		}
		return stdout
	}

	// What operators look at is noted, by name, before it is shown.
	expect(exitOK, ws, "workspace", "show", ws)
	expect(exitOK, ws, "workspace", "list")
	expect(exitOK, "TASK", "tasks", "list", ws)
	expect(exitFailure, "no such task", "tasks", "show", ws, "task_"+strings.Repeat("0a", 16))
	shown := expect(exitOK, "workspace.read", "audit", "show", ws)
	for _, action := range []string{"account.register", "workspace.set_plan", "tasks.read", "task.read", "audit_log.read", "operator " + operator().Name} {
		if !strings.Contains(shown, action) {
			t.Errorf("%s is not shown:\n%s", action, shown)
		}
	}
	expect(exitOK, "workspaces.read", "audit", "show", "system", "--json")
	expect(exitFailure, "no such workspace", "audit", "show", "ws_"+strings.Repeat("0a", 16))
	for _, wrong := range [][]string{{"audit", "verify"}, {"audit", "verify", "--all", ws}, {"audit", "verify", "nonsense"}, {"audit", "show"}, {"audit", "show", ws, "--limit", "0"}} {
		expect(exitUsage, "", wrong...)
	}

	// Two nights are written down.
	var log bytes.Buffer
	s := &scheduler{system: store.NewSystem(env.System(t)), nights: t.TempDir(), log: zerolog.New(&log)}
	day := time.Now().UTC().Truncate(24 * time.Hour)
	var files []string
	for i := range 2 {
		for range 2 { // twice is once
			if err := s.writeHeads(context.Background(), day.AddDate(0, 0, i)); err != nil {
				t.Fatal(err)
			}
		}
		files = append(files, filepath.Join(s.nights, "audit-heads-"+day.AddDate(0, 0, i).Format(time.DateOnly)+".txt"))
		expect(exitOK, ws, "workspace", "show", ws)
	}
	if n := strings.Count(log.String(), `"digest"`); n != 2 || strings.Count(log.String(), `"chains":2`) != 2 {
		t.Errorf("the log:\n%s", log.String())
	}
	sound := []string{"audit", "verify", "--all", "--heads", files[0], "--heads", files[1]}
	expect(exitOK, "2 chains", sound...)
	list := filepath.Join(t.TempDir(), "now.txt")
	if err := os.WriteFile(list, []byte(expect(exitOK, "digest ", "audit", "heads")), 0o600); err != nil {
		t.Fatal(err)
	}
	expect(exitOK, "compared 2 heads", "audit", "verify", "--heads", list)

	// A file of another first night has a digest of its own, which neither the ledger nor the second night knows.
	env.Admin(t).MustExec(`DELETE FROM audit_nights`)
	if err := s.writeHeads(context.Background(), day); err != nil {
		t.Fatal(err)
	}
	expect(exitFailure, "the night after names another digest", sound...)

	// A cut tail whose head was set back shows against a list alone.
	env.Admin(t).MustExec(`DELETE FROM audit_log WHERE workspace_id = $1 AND seq > 3`, id)
	code, stdout, _ := runWith(vars, "audit", "verify", ws, "--json")
	var v verification
	if err := json.Unmarshal([]byte(stdout), &v); err != nil || code != exitFailure || len(v.Faults) != 1 || v.Faults[0].Kind != store.ChainTruncated || v.Faults[0].Seq != 4 || v.Faults[0].Chain != ws {
		t.Errorf("%d %s %v", code, stdout, err)
	}
	expect(exitFailure, "do not end where their heads say", "doctor")
	env.Admin(t).MustExec(`UPDATE audit_heads h SET seq = 3, hash = a.hash FROM audit_log a WHERE h.workspace_id = $1 AND a.workspace_id = $1 AND a.seq = 3`, id)
	expect(exitOK, "0 faults", "audit", "verify", ws)
	expect(exitFailure, "was the chain's last when the list was written, and is gone", "audit", "verify", "--heads", list)
}
