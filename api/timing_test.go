package api

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// TestAnothersIDCostsTheLedgerWhatAnUnknownOneCosts: equal answers could still differ in time. Clocks are noisy, so what is
// compared is what Postgres did for either: the same statements, by the same plans, touching the same number of rows.
func TestAnothersIDCostsTheLedgerWhatAnUnknownOneCosts(t *testing.T) {
	t.Parallel()
	env := storetest.New(t)
	for _, set := range []string{"session_preload_libraries = 'auto_explain'", "auto_explain.log_min_duration = 0", "auto_explain.log_analyze = on",
		"auto_explain.log_timing = off", "log_parameter_max_length = 0"} {
		env.Admin(t).MustExec(`ALTER DATABASE ` + env.Database + ` SET ` + set)
	}
	w := newWorldOn(t, env, func(cfg *Config) { cfg.CredentialMS, cfg.NoteInterval = 60_000, time.Hour })
	a, b := w.owner("pro"), w.owner("pro")
	for _, who := range []*client{a, b} { // something to look through
		for range 3 {
			who.post("/v1/tasks", map[string]any{"prompt": "x"}).want(202)
			who.post("/v1/api-keys", map[string]any{"name": "x"}).want(201)
			who.colleague(store.RoleViewer)
			who.post("/v1/webhooks/"+who.webhook()+"/test", nil).want(202)
		}
	}
	foreign := map[string]string{
		"tasks":    b.get("/v1/tasks").want(200).str("data.0.id"),
		"api-keys": b.get("/v1/api-keys").want(200).str("data.0.id"),
		"members":  store.FormatID(store.UserPrefix, b.user),
		"sessions": store.FormatID(store.SessionPrefix, b.session),
	}
	id := uuid.New()
	w.exec(`INSERT INTO agents (workspace_id, id, name) VALUES ($1, $2, 'x')`, b.ws, id)
	foreign["agents"] = store.FormatID(store.AgentPrefix, id)
	foreign["schedules"] = b.post("/v1/schedules", map[string]any{"name": "x", "cron": "30 6 * * *", "timezone": "UTC", "task": map[string]any{"prompt": "x"}}).want(201).str("id")
	foreign["invitations"] = b.post("/v1/invitations", map[string]any{"email": "i@example.com", "role": "viewer"}).want(201).str("id")
	hook := b.webhook()
	foreign["webhooks"] = hook + " " + b.post("/v1/webhooks/"+hook+"/test", nil).want(202).str("id")
	walked, statements := 0, 0
	for _, o := range w.published() {
		if o.noun() == "" {
			continue
		}
		if foreign[o.noun()] == "" {
			t.Errorf("%s: no test makes %s", o.pattern(), o.noun())
			continue
		}
		did := func(id string) []string {
			from := logSize(t, env)
			a.do(o.method, o.with(id), bodyFor[o.pattern()]).problem(probNotFound)
			return plans(t, env, from, id)
		}
		did(o.unknownID(t)) // fills caches
		unknown, others := did(o.unknownID(t)), did(foreign[o.noun()])
		if len(unknown) == 0 {
			t.Errorf("%s: nothing was logged", o.pattern())
		}
		if !slices.Equal(unknown, others) {
			t.Errorf("%s does for an unknown id\n%s\nand for another workspace's\n%s", o.pattern(), strings.Join(unknown, "\n"), strings.Join(others, "\n"))
		}
		walked, statements = walked+1, statements+len(others)
	}
	t.Logf("%d routes, %d statements for another workspace's ids", walked, statements)
}

func logSize(t *testing.T, env *storetest.Env) int64 {
	t.Helper()
	info, err := os.Stat(env.PostgresLog())
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

var planStart = regexp.MustCompile(`(?m)^\S+ \S+ \S+ \[\d+\] `)

// plans are the statements of the API's role that the server has logged since, each with its plan and its rows. The ids that
// were asked for read ID, where they stand in a text.
func plans(t *testing.T, env *storetest.Env, from int64, asked string) (all []string) {
	t.Helper()
	var blind []string
	for one := range strings.FieldsSeq(asked) {
		_, digits, _ := strings.Cut(one, "_")
		blind = append(blind, uuid.MustParse(digits).String(), "ID")
	}
	raw, err := os.ReadFile(env.PostgresLog())
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range planStart.Split(string(raw[from:]), -1) {
		head, plan, found := strings.Cut(entry, "\n")
		if found && strings.HasPrefix(head, store.RoleAPI+"@"+env.Database+" ") && strings.HasSuffix(head, "plan:") {
			all = append(all, strings.NewReplacer(blind...).Replace(strings.TrimSpace(plan)))
		}
	}
	slices.Sort(all)
	return all
}
