package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/generic-corp/muster/store"
)

// The documents are held against the code: what they name must exist, and what operators need must be named.

func readDoc(t *testing.T, name string) string {
	t.Helper()
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// documents are all of docs/.
func documents(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob("docs/*.md")
	if err != nil || len(found) < 7 {
		t.Fatal(found, err)
	}
	return found
}

func TestOperationsNamesEverySettingAndCommand(t *testing.T) {
	t.Parallel()
	doc := readDoc(t, "docs/operations.md")
	row := regexp.MustCompile("(?m)^\\| `([A-Z_]+)`( \\(secret\\))? \\|([^|]*)\\|")
	type setting struct{ secret, fallback string }
	told := map[string]setting{}
	for _, m := range row.FindAllStringSubmatch(doc, -1) {
		told[m[1]] = setting{m[2], strings.Trim(m[3], "` ")}
	}
	for _, v := range variables {
		s, ok := told[v.name]
		delete(told, v.name)
		switch {
		case !ok:
			t.Errorf("%s stands in no row of the settings", v.name)
		case (s.secret != "") != v.secret:
			t.Errorf("%s: secret is %v in the code", v.name, v.secret)
		case v.fallback != "" && s.fallback != v.fallback:
			t.Errorf("%s: the default is %q, the document says %q", v.name, v.fallback, s.fallback)
		}
	}
	for name := range told {
		t.Errorf("there is no variable %s", name)
	}
	for _, cmd := range commands() {
		if !strings.Contains(doc, "`muster "+cmd.name) && !strings.Contains(doc, "$ muster "+cmd.name) {
			t.Errorf("muster %s is not told", cmd.name)
		}
	}
}

// names is a registry that only keeps the names of what is registered.
type names struct{ found map[string]bool }

var fqName = regexp.MustCompile(`fqName: "([^"]+)"`)

func (n names) Register(c prometheus.Collector) error {
	descs := make(chan *prometheus.Desc, 100)
	c.Describe(descs)
	close(descs)
	for d := range descs {
		n.found[fqName.FindStringSubmatch(d.String())[1]] = true
	}
	return nil
}

func (n names) MustRegister(all ...prometheus.Collector) {
	for _, c := range all {
		_ = n.Register(c)
	}
}

func (n names) Unregister(prometheus.Collector) bool { return false }

func TestOperationsNamesEveryMetric(t *testing.T) {
	t.Parallel()
	found := exported(t)
	doc := readDoc(t, "docs/operations.md")
	_, section, _ := strings.Cut(doc, "\n## Metrics\n")
	section, _, _ = strings.Cut(section, "\n## Logs\n")
	told := map[string]bool{}
	for _, name := range regexp.MustCompile(`muster_[a-z_]+`).FindAllString(section, -1) {
		told[name] = true
		if !found[name] {
			t.Errorf("there is no metric %s", name)
		}
	}
	for name := range found {
		if !told[name] {
			t.Errorf("%s is not told", name)
		}
	}
}

func TestOperationsNamesEverySweep(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	sweep := regexp.MustCompile(`s\.(?:part|every)\(ctx, (?:[^"(]*, )?"([a-z_]+)"`)
	var found, told []string
	for _, file := range files {
		if !strings.HasSuffix(file, "_test.go") {
			for _, m := range sweep.FindAllStringSubmatch(readDoc(t, file), -1) {
				found = append(found, m[1])
			}
		}
	}
	row := regexp.MustCompile("(?m)^\\| `muster_sweep_failures_total\\{sweep\\}` \\| rounds of (.*?) that failed").FindStringSubmatch(readDoc(t, "docs/operations.md"))
	if row == nil || len(found) < 15 {
		t.Fatalf("the row is %q, the sweeps %q", row, found)
	}
	for _, m := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(row[1], -1) {
		told = append(told, m[1])
	}
	slices.Sort(found)
	slices.Sort(told)
	if !slices.Equal(found, told) {
		t.Errorf("there are the sweeps\n%q\nand told are\n%q", found, told)
	}
}

// What becomes of each table, and whether its owner gets it, is what store/holdings.go does.
func TestOperationsTellsWhatBecomesOfEachTable(t *testing.T) {
	t.Parallel()
	_, section, _ := strings.Cut(readDoc(t, "docs/operations.md"), "| table | when its workspace has left | in the export |\n")
	section, _, _ = strings.Cut(section, "\n\n")
	type row struct{ fate, export string }
	told := map[string]row{}
	for line := range strings.Lines(section) {
		cells := strings.Split(line, " | ")
		for _, m := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(cells[0], -1) {
			told[m[1]] = row{cells[1], cells[len(cells)-1]}
		}
	}
	fates := map[store.Fate]string{store.FateDeleted: `^(theirs )?deleted$`, store.FateErased: `erased`, store.FateKept: `^kept`}
	for _, h := range store.Holdings {
		r, ok := told[h.Table]
		delete(told, h.Table)
		switch {
		case !ok:
			t.Errorf("%s stands in no row", h.Table)
		case !regexp.MustCompile(fates[h.Fate]).MatchString(r.fate):
			t.Errorf("%s is %s, the document says %q", h.Table, h.Fate, r.fate)
		case strings.HasPrefix(r.export, "yes") != (h.Left == ""):
			t.Errorf("%s is left out of the export for %q, the document says %q", h.Table, h.Left, r.export)
		}
	}
	for table := range told {
		t.Errorf("there is no table %s", table)
	}
}

// A document that begins with a table of contents lists all of its sections, in their order.
func TestTablesOfContentsAreWhole(t *testing.T) {
	t.Parallel()
	tables := 0
	for _, doc := range documents(t) {
		head, body, _ := strings.Cut(readDoc(t, doc), "\n## ")
		var told, sections []string
		for _, m := range regexp.MustCompile(`(?m)^- \[([^\]]+)\]\(#`).FindAllStringSubmatch(head, -1) {
			told = append(told, m[1])
		}
		for _, m := range regexp.MustCompile(`(?m)^## (.*)$`).FindAllStringSubmatch("## "+body, -1) {
			sections = append(sections, m[1])
		}
		if len(told) == 0 {
			continue
		}
		tables++
		if !slices.Equal(told, sections) {
			t.Errorf("%s has the sections\n%q\nand lists\n%q", doc, sections, told)
		}
	}
	if tables < 3 {
		t.Errorf("only %d documents have a table of contents", tables)
	}
}

func TestTheTestsThatDocumentsNameExist(t *testing.T) {
	t.Parallel()
	var sources strings.Builder
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || (d.IsDir() && strings.HasPrefix(d.Name(), ".") && path != ".") {
			return filepath.SkipDir
		}
		if strings.HasSuffix(path, "_test.go") {
			sources.WriteString(readDoc(t, path))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(readDoc(t, "docs/architecture.md"), "\n## Invariants and their tests\n")
	section, _, _ = strings.Cut(section, "\n## ")
	named := 0
	for _, m := range regexp.MustCompile("`([A-Z][a-z]*[A-Z]\\w+|A[A-Z]\\w+)`").FindAllStringSubmatch(section, -1) {
		named++
		if !strings.Contains(sources.String(), "func "+m[1]+"(t *testing.T)") && !strings.Contains(sources.String(), `t.Run("`+m[1]+`"`) {
			t.Errorf("no test is called %s", m[1])
		}
	}
	for _, doc := range []string{"docs/security.md", "docs/reliability.md"} {
		for _, m := range regexp.MustCompile("`((?:Test|Fuzz)\\w+)`").FindAllStringSubmatch(readDoc(t, doc), -1) {
			named++
			if !strings.Contains(sources.String(), "func "+m[1]+"(") {
				t.Errorf("%s names %s, which is no test", doc, m[1])
			}
		}
	}
	if !found || named < 90 {
		t.Errorf("only %d tests are named", named)
	}
}

func TestTheFilesThatDocumentsNameExist(t *testing.T) {
	t.Parallel()
	quoted := regexp.MustCompile("`((?:api|worker|billing|store|jobs|scripts|docs)/[A-Za-z0-9_./-]*|[a-z_]+\\.go)`")
	link := regexp.MustCompile(`\]\(([^):#]*)(#[^)]*)?\)`) // none with a scheme
	for _, doc := range append(documents(t), "README.md") {
		text := readDoc(t, doc)
		var anchors []string
		for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(text, -1) {
			anchors = append(anchors, "#"+strings.ReplaceAll(regexp.MustCompile(`[^a-z0-9 -]`).ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-"))
		}
		for _, m := range quoted.FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat(m[1]); err != nil {
				t.Errorf("%s names %s: %v", doc, m[1], err)
			}
		}
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if m[1] != "" {
				if _, err := os.Stat(filepath.Join(filepath.Dir(doc), m[1])); err != nil {
					t.Errorf("%s links to %s: %v", doc, m[1], err)
				}
			} else if !slices.Contains(anchors, m[2]) {
				t.Errorf("%s links to %s, which no heading has", doc, m[2])
			}
		}
		if strings.Contains(text, "@@") {
			t.Errorf("%s is not finished", doc)
		}
	}
}

// TestTracesInDocumentsAreThoseOfTheSimulations: each block of docs/reliability.md has lines of its golden trace, in their
// order, from the first to the last; what is left out is marked.
func TestTracesInDocumentsAreThoseOfTheSimulations(t *testing.T) {
	t.Parallel()
	block := regexp.MustCompile("(?m)^`(worker/autoscale/testdata/\\w+\\.trace)`[^\n]*\n(?:[^\n]+\n)*\n```text\n((?:[^`\n]*\n)+)```$")
	shown := map[string]bool{}
	for _, m := range block.FindAllStringSubmatch(readDoc(t, "docs/reliability.md"), -1) {
		file := m[1]
		shown[filepath.Base(file)] = true
		trace, at := strings.Split(strings.TrimSuffix(readDoc(t, file), "\n"), "\n"), 0
		cut := false
		for line := range strings.Lines(m[2]) {
			line = strings.TrimSuffix(line, "\n")
			if line == "…" {
				cut = true
				continue
			}
			i := slices.Index(trace[at:], line)
			if i < 0 || cut != (i > 0) {
				t.Errorf("%s does not go on with %q after %d lines", file, line, at)
				break
			}
			at, cut = at+i+1, false
		}
		if at < len(trace) && !cut {
			t.Errorf("%s has %d more lines", file, len(trace)-at)
		}
	}
	for _, name := range []string{"step", "sawtooth", "cappedflood", "metricloss", "budget"} {
		if !shown[name+".trace"] {
			t.Errorf("the trace of %s is not shown", name)
		}
	}
}
