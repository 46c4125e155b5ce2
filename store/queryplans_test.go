package store_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/jmoiron/sqlx"
	"github.com/lib/pq"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// The plans of the statements that run often or look at tables that grow: PostgreSQL's auto_explain tells each plan as it was
// executed, of the product's own calls, as its own roles, under row-level security, inside functions too. TestPlans holds their
// shapes over a small ledger; scripts/plans runs it over a million tasks and writes what it saw into docs/plans.md.

// Variables that scripts/plans sets.
const (
	plansTasks = "MUSTER_PLANS_TASKS" // how many tasks; 20,000 by default
	plansOut   = "MUSTER_PLANS_OUT"   // the page to write the table into
)

// plan is a statement as it was executed.
type plan struct {
	Query string `json:"Query Text"`
	Plan  node   `json:"Plan"`
	ms    float64
}

// node is one of a plan.
type node struct {
	Type     string  `json:"Node Type"`
	Table    string  `json:"Relation Name"`
	Index    string  `json:"Index Name"`
	Writes   string  `json:"Operation"`
	Rows     float64 `json:"Actual Rows"` // of each loop
	Loops    float64 `json:"Actual Loops"`
	Filtered float64 `json:"Rows Removed by Filter"`
	Rechecks float64 `json:"Rows Removed by Index Recheck"`
	Hit      int64   `json:"Shared Hit Blocks"`
	Read     int64   `json:"Shared Read Blocks"`
	Plans    []node  `json:"Plans"`
}

func (n node) walk(visit func(node)) {
	visit(n)
	for _, below := range n.Plans {
		below.walk(visit)
	}
}

// touched is how many rows of tables were read: those that a filter dropped count.
func (p plan) touched() (rows int64) {
	p.Plan.walk(func(n node) {
		if n.Table != "" && n.Type != "ModifyTable" || n.Type == "Bitmap Index Scan" {
			rows += int64((n.Rows + n.Filtered + n.Rechecks) * n.Loops)
		}
	})
	return rows
}

func (p plan) buffers() int64 { return p.Plan.Hit + p.Plan.Read }

// shape names the ways to the rows, each once, in the plan's order.
func (p plan) shape() string {
	var steps []string
	p.Plan.walk(func(n node) {
		step := ""
		switch {
		case n.Loops == 0: // never executed
		case n.Type == "ModifyTable":
			if n.Writes == "Insert" {
				step = "insert " + n.Table
			}
		case n.Index != "":
			step = strings.TrimSuffix(n.Type, " Scan") + " " + n.Index
		case n.Table != "":
			step = n.Type + " " + n.Table
		case n.Type == "Sort" || n.Type == "Incremental Sort":
			step = "sort"
		}
		if step != "" && !slices.Contains(steps, step) {
			steps = append(steps, step)
		}
	})
	return strings.Join(steps, ", ")
}

// watched collects the plans of one connection.
type watched struct {
	*sqlx.DB
	t     testing.TB
	mu    sync.Mutex
	plans []plan
}

var (
	explained = regexp.MustCompile(`(?s)^duration: ([0-9.]+) ms  plan:\n(.*)$`)
	spaces    = regexp.MustCompile(`\s+`)
	literal   = regexp.MustCompile(`'[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}'`) // an id that readOne wrote into its query
)

// watch opens a connection as the URL's role, with the parameters of store.Open, that tells its plans.
func watch(t testing.TB, raw string) *watched {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set("binary_parameters", "yes")
	u.RawQuery = q.Encode()
	connector, err := pq.NewConnector(u.String())
	if err != nil {
		t.Fatal(err)
	}
	w := &watched{t: t}
	w.DB = sqlx.NewDb(sql.OpenDB(pq.ConnectorWithNoticeHandler(connector, w.note)), "postgres")
	w.SetMaxOpenConns(1)
	t.Cleanup(func() { w.Close() })
	return w
}

func (w *watched) note(e *pq.Error) {
	m := explained.FindStringSubmatch(e.Message)
	if m == nil {
		return
	}
	var p plan
	if err := json.Unmarshal([]byte(m[2]), &p); err != nil {
		w.t.Errorf("a plan that cannot be read: %v\n%s", err, m[2])
		return
	}
	p.ms, _ = strconv.ParseFloat(m[1], 64)
	p.Query = literal.ReplaceAllString(strings.TrimSpace(spaces.ReplaceAllString(p.Query, " ")), "'…'")
	if p.shape() == "" {
		return // of no table: settings, or the outside of a function, whose statements come by themselves
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.plans = append(w.plans, p)
}

func (w *watched) take() []plan {
	w.mu.Lock()
	defer w.mu.Unlock()
	taken := w.plans
	w.plans = nil
	return taken
}

// explain has PostgreSQL tell the plans of connections to the database that are opened from now on.
func explain(t testing.TB, e *storetest.Env) {
	t.Helper()
	settings := map[string]string{"session_preload_libraries": "auto_explain", "auto_explain.log_min_duration": "0", "auto_explain.log_analyze": "on",
		"auto_explain.log_buffers": "on", "auto_explain.log_timing": "off", "auto_explain.log_format": "json", "auto_explain.log_nested_statements": "on",
		"auto_explain.log_level": "notice"}
	db := e.Admin(t)
	if _, err := db.Exec(`LOAD 'auto_explain'`); err != nil { // its settings are unknown before
		t.Fatal(err)
	}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		if _, err := db.Exec(`ALTER DATABASE ` + e.Database + ` SET ` + name + ` = ` + pq.QuoteLiteral(settings[name])); err != nil {
			t.Fatal(err)
		}
	}
}

// planRepeats: a function's statements get their lasting plans with the sixth call on a connection.
const planRepeats = 7

// growing are the tables that grow with what customers do; none of them is ever read as a whole by a statement that runs
// more than once a night.
var growing = []string{"tasks", "attempts", "metering_rows", "provider_calls", "webhook_deliveries", "daily_usage", "schedule_runs"}

// fewRows is how many rows a table may have that is read as a whole all the same.
const fewRows = 5000

// seen is what one step's statements did over one ledger.
type seen struct {
	step  planStep
	plans []plan
}

func TestPlans(t *testing.T) {
	t.Parallel()
	tasks := 20_000
	if v := os.Getenv(plansTasks); v != "" {
		var err error
		if tasks, err = strconv.Atoi(v); err != nil || tasks < 20_000 {
			t.Fatalf("%s is %q; want a number of tasks, at least 20000", plansTasks, v)
		}
	}
	out := os.Getenv(plansOut)
	var mu sync.Mutex
	byLedger := map[string][]seen{}
	t.Run("ledgers", func(t *testing.T) {
		for name, workspaces := range map[string]int{"one": 1, "many": max(100, tasks/100)} {
			t.Run(name, func(t *testing.T) {
				if out == "" {
					t.Parallel()
				}
				l := newPlanLedger(t, workspaces, tasks)
				all := l.run(t)
				for _, s := range all {
					s.hold(t, name)
				}
				mu.Lock()
				defer mu.Unlock()
				byLedger[name] = all
			})
		}
	})
	if out != "" && !t.Failed() {
		writePlans(t, out, tasks, byLedger["one"], byLedger["many"])
	}
}

// hold fails the test when a statement reads a growing table as a whole, or touches more buffers than the step allows.
func (s seen) hold(t *testing.T, ledger string) {
	for _, p := range s.plans {
		p.Plan.walk(func(n node) {
			if n.Type == "Seq Scan" && (n.Rows+n.Filtered)*n.Loops > fewRows && slices.Contains(growing, n.Table) && !s.step.whole {
				t.Errorf("%s, ledger %q: reads all of %s: %s", s.step.name, ledger, n.Table, p.Query)
			}
		})
		if most := s.step.most; most > 0 && p.buffers() > most {
			t.Errorf("%s, ledger %q: %d buffers, want at most %d: %s: %s", s.step.name, ledger, p.buffers(), most, p.shape(), p.Query)
		}
	}
	if len(s.plans) == 0 {
		t.Errorf("%s, ledger %q: no statement was seen", s.step.name, ledger)
	}
}

// run makes each step's call so often and keeps the plans of the last one.
func (l *planLedger) run(t *testing.T) (all []seen) {
	explain(t, l.env)
	handles := map[string]*watched{store.RoleAPI: watch(t, l.env.APIURL), store.RoleWorker: watch(t, l.env.WorkerURL), store.RoleSystem: watch(t, l.env.SystemURL)}
	l.api, l.system = store.NewAPI(handles[store.RoleAPI].DB), store.NewSystem(handles[store.RoleSystem].DB)
	l.fleet = store.NewFleet(handles[store.RoleWorker].DB)
	defer l.fleet.Close()
	for _, step := range planSteps {
		var plans []plan
		repeats := planRepeats
		if step.once {
			repeats = 1
		}
		for range repeats {
			plans = nil
			for _, w := range handles {
				w.take()
			}
			if err := step.call(context.Background(), l); err != nil {
				t.Fatalf("%s: %v", step.name, err)
			}
			for _, w := range handles {
				plans = append(plans, w.take()...)
			}
		}
		all = append(all, seen{step: step, plans: distinct(plans)})
	}
	return all
}

// distinct keeps of each statement the execution that touched most.
func distinct(plans []plan) (kept []plan) {
	for _, p := range plans {
		i := slices.IndexFunc(kept, func(k plan) bool { return k.Query == p.Query })
		switch {
		case i < 0:
			kept = append(kept, p)
		case p.buffers() > kept[i].buffers():
			kept[i] = p
		}
	}
	return kept
}

const (
	plansBegin = "<!-- plans: what scripts/plans writes begins -->"
	plansEnd   = "<!-- plans: what scripts/plans writes ends -->"
)

// writePlans replaces the part of the page between the two marks.
func writePlans(t *testing.T, file string, tasks int, one, many []seen) {
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(raw), plansBegin)
	_, after, ends := strings.Cut(rest, plansEnd)
	if !ok || !ends {
		t.Fatalf("%s lacks the marks of the part to write", file)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d tasks. In each cell: all of them in one workspace / in %d workspaces.\n", tasks, max(100, tasks/100))
	group := ""
	for i, s := range one {
		if s.step.group != group {
			group = s.step.group
			fmt.Fprintf(&b, "\n### %s\n", group)
		}
		fmt.Fprintf(&b, "\n**%s** (`%s`). %s\n\n| statement | way to the rows | rows | buffers | ms |\n|---|---|--:|--:|--:|\n", s.step.name, s.step.calls, s.step.why)
		for _, p := range union(s.plans, many[i].plans) {
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", excerpt(p.Query), ways(p.Query, s.plans, many[i].plans),
				both(p.Query, s.plans, many[i].plans, func(p plan) string { return strconv.FormatInt(p.touched(), 10) }),
				both(p.Query, s.plans, many[i].plans, func(p plan) string { return strconv.FormatInt(p.buffers(), 10) }),
				both(p.Query, s.plans, many[i].plans, func(p plan) string { return strconv.FormatFloat(p.ms, 'f', 2, 64) }))
		}
	}
	page := before + plansBegin + "\n\n" + b.String() + "\n" + plansEnd + after
	if err := os.WriteFile(file, []byte(page), 0o644); err != nil {
		t.Fatal(err)
	}
}

// union is the statements of both ledgers, each once.
func union(one, many []plan) []plan {
	all := slices.Clone(one)
	for _, p := range many {
		if !slices.ContainsFunc(all, func(o plan) bool { return o.Query == p.Query }) {
			all = append(all, p)
		}
	}
	return all
}

// both is a figure of a statement in both ledgers; - where it did not run.
func both(query string, one, many []plan, figure func(plan) string) string {
	cell := func(plans []plan) string {
		if i := slices.IndexFunc(plans, func(p plan) bool { return p.Query == query }); i >= 0 {
			return figure(plans[i])
		}
		return "-"
	}
	return cell(one) + " / " + cell(many)
}

// ways is the statement's shape, or both where they differ.
func ways(query string, one, many []plan) string {
	shapes := both(query, one, many, plan.shape)
	first, second, _ := strings.Cut(shapes, " / ")
	switch {
	case first == second || second == "-":
		return first
	case first == "-":
		return second
	}
	return shapes
}

// excerpt is a statement's beginning, as a table's cell.
func excerpt(query string) string {
	const width = 90
	query = strings.ReplaceAll(strings.ReplaceAll(query, "|", "\\|"), "`", "'")
	if len(query) > width {
		query = strings.TrimSpace(query[:width]) + "…"
	}
	return query
}
