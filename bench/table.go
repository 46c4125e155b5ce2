package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// render makes the Markdown table.
func render(results []result, quick bool) string {
	var b strings.Builder
	days := make([]string, 0, len(results))
	for _, r := range results {
		days = append(days, r.Measured)
	}
	slices.Sort(days)
	if days = slices.Compact(days); len(days) == 0 {
		days = []string{time.Now().UTC().Format(time.DateOnly)}
	}
	fmt.Fprintf(&b, "%s, %d cores, %s/%s, %s, fsync on", strings.Join(days, ", "), runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version())
	if quick {
		fmt.Fprintf(&b, ", **a quick run with a tenth of the work: not for comparing**")
	}
	b.WriteString(".\n\n| case | system | figure | median | runs | to Asynq | to River | wanted | | strangers' CPU, most |\n|---|---|---|--:|---|--:|--:|---|---|--:|\n")
	for _, r := range results {
		var each []string
		for _, v := range r.Runs {
			each = append(each, number(v))
		}
		wants, verdict := judge(r, results)
		taken := math.NaN()
		if r.Strangers != nil {
			taken = *r.Strangers
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", r.Case, r.System, r.Name, strings.TrimSpace(number(r.Median)+" "+r.Unit),
			strings.Join(each, ", "), ratio(r, asynqSystem, results), ratio(r, riverSystem, results), wants, verdict, percent(taken))
	}
	return b.String()
}

// ratio compares a figure of Muster's with the same one of a peer; counts are not compared.
func ratio(r result, to string, all []result) string {
	if r.System != musterSystem || r.Unit == "" {
		return ""
	}
	for _, peer := range all {
		if peer.Case == r.Case && peer.System == to && peer.Name == r.Name && peer.Median > 0 {
			return number(r.Median/peer.Median) + " x"
		}
	}
	return ""
}

// number writes three significant digits or all before the point.
func number(v float64) string {
	switch a := math.Abs(v); {
	case v == math.Trunc(v) || a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	case a >= 0.01:
		s := strings.TrimRight(fmt.Sprintf("%.3f", v), "0")
		if a >= 1 {
			s = strings.TrimRight(fmt.Sprintf("%.2f", v), "0")
		}
		return strings.TrimSuffix(s, ".")
	default:
		return fmt.Sprintf("%.1g", v)
	}
}

// The marks in docs/benchmarks.md between which the table stands.
const (
	tableBegins = "<!-- bench: the table begins; scripts/bench --docs writes it -->\n"
	tableEnds   = "<!-- bench: the table ends -->\n"
)

// defaultOut is where results.md and results.json of the last run lie, below the repository.
const defaultOut = ".muster/bench/results"

// publish writes the table and the figures, with --docs into the docs too, and says into which files.
func publish(o options, root string, results []result) (files []string, err error) {
	out := o.out
	if out == "" {
		out = filepath.Join(root, defaultOut)
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return nil, err
	}
	if err := errors.Join(os.WriteFile(out+".md", []byte(render(results, o.quick)), 0o644), writeJSON(out+".json", results)); err != nil {
		return nil, err
	}
	files = []string{out + ".md", out + ".json"}
	if !o.docs {
		return files, nil
	}
	figures, page := filepath.Join(root, "bench", "results.json"), filepath.Join(root, "docs", "benchmarks.md")
	if err := publishDocs(o.cases, figures, page, results); err != nil {
		return files, err
	}
	return append(files, page, figures), nil
}

// publishDocs puts the table into the docs' page and the figures beside it; of a run of some cases theirs only.
func publishDocs(cases []string, figures, page string, results []result) error {
	if len(cases) > 0 { // the other cases' figures stay
		old, err := readJSON(figures)
		if err != nil {
			return err
		}
		results = append(slices.DeleteFunc(old, func(r result) bool { return slices.Contains(cases, r.Case) }), results...)
		sortResults(results)
	}
	text, err := os.ReadFile(page)
	if err != nil {
		return fmt.Errorf("put the table into the docs (run scripts/bench, which says where they are): %w", err)
	}
	before, rest, begins := strings.Cut(string(text), tableBegins)
	_, after, ends := strings.Cut(rest, tableEnds)
	if !begins || !ends {
		return fmt.Errorf("%s has lost the marks of the table", page)
	}
	return errors.Join(writeJSON(figures, results), os.WriteFile(page, []byte(before+tableBegins+"\n"+render(results, false)+"\n"+tableEnds+after), 0o644))
}

func writeJSON(file string, results []result) error {
	raw, err := json.MarshalIndent(results, "", " ")
	if err != nil {
		return fmt.Errorf("write figures: %w", err)
	}
	return os.WriteFile(file, append(raw, '\n'), 0o644)
}

// readJSON reads what writeJSON wrote; a file that is not there holds nothing.
func readJSON(file string) (results []result, err error) {
	raw, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(raw, &results); err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	return results, nil
}
