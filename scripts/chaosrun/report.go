//go:build unix

package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// report is what came out of a run.
type report struct {
	seed    uint64
	firings []*firing
	tally   *tally
	errors  []string // what is wrong beside the history
	took    time.Duration
}

// failed says whether a promise was broken or a fault could not be shown to have happened.
func (r *report) failed() bool {
	return len(r.tally.Violations) > 0 || len(r.errors) > 0 ||
		slices.ContainsFunc(r.firings, func(f *firing) bool { return f.err != nil && !errors.Is(f.err, errNotRun) })
}

// row is a fault in the summary.
type row struct {
	fault    fault
	fired    int
	of       int
	took     []time.Duration
	evidence []string // of each time
	problems []string
}

func (r *report) rows() (rows []row) {
	for _, f := range faults {
		one := row{fault: f}
		for _, x := range r.firings {
			if x.name != f.name {
				continue
			}
			one.of++
			switch {
			case errors.Is(x.err, errNotRun):
				one.problems = append(one.problems, "not run: this machine does not allow it")
			case x.err != nil:
				one.problems = append(one.problems, x.err.Error())
			default:
				one.fired++
				one.took = append(one.took, x.took)
				one.evidence = append(one.evidence, strings.Join(x.evidence, "; "))
			}
		}
		if one.of > 0 {
			rows = append(rows, one)
		}
	}
	return rows
}

func seconds(all []time.Duration) string {
	if len(all) == 0 {
		return "-"
	}
	var each []string
	for _, d := range all {
		each = append(each, fmt.Sprintf("%.1f", d.Seconds()))
	}
	return strings.Join(each, ", ")
}

// summary is for people at a terminal.
func (r *report) summary() string {
	var b strings.Builder
	if len(r.firings) > 0 {
		fmt.Fprintf(&b, "\nseed %d, %s\n\n%-20s %-6s %s\n", r.seed, r.took.Round(time.Second), "fault", "fired", "seconds until everything went on; what was seen")
		for _, one := range r.rows() {
			fmt.Fprintf(&b, "%-20s %d/%-4d %s\n", one.fault.name, one.fired, one.of, seconds(one.took))
			for _, e := range append(one.evidence, one.problems...) {
				fmt.Fprintf(&b, "%27s %s\n", "", e)
			}
		}
	}
	b.WriteByte('\n')
	for _, line := range r.figures() {
		fmt.Fprintf(&b, "%-84s %s\n", line[0], line[1])
	}
	for _, v := range r.tally.Violations[:min(len(r.tally.Violations), 50)] {
		fmt.Fprintf(&b, "BROKEN %s: %s\n", v.Rule, v.Detail)
	}
	for _, e := range r.errors {
		fmt.Fprintf(&b, "WRONG %s\n", e)
	}
	return b.String()
}

// figures are the run in numbers.
func (r *report) figures() [][2]string {
	t := r.tally
	count := func(rule string) string {
		n := 0
		for _, v := range t.Violations {
			if v.Rule == rule {
				n++
			}
		}
		return fmt.Sprint(n)
	}
	lines := [][2]string{
		{"tasks sent / acknowledged", fmt.Sprintf("%d / %d", t.Submitted, t.Acknowledged)},
		{"of those: for later (`run_at`) / with a priority of their own", fmt.Sprintf("%d / %d", t.Later, t.Ranked)},
		{"refused, since they would have expired (`expires_at`) by then", fmt.Sprint(t.Refused)},
		{"requests answered with their first answer again", fmt.Sprint(t.Replays)},
		{"succeeded / failed as their model did", fmt.Sprintf("%d / %d", t.Succeeded, t.Failed)},
		{"canceled / of which while they ran", fmt.Sprintf("%d / %d", t.Canceled, t.Stopped)},
		{"ended before their acknowledged cancel reached them", fmt.Sprint(t.Beaten)},
		{"expired before they could start", fmt.Sprint(t.Expired)},
		{"failed because the model server was out for all their attempts", fmt.Sprint(t.OutOfReach)},
		{"failed because workers died under them again and again", fmt.Sprint(t.Suspects)},
		{"retried by their customers, singly and in bulk", fmt.Sprint(t.Retried)},
		{"sent by schedules / occurrences missed", fmt.Sprintf("%d / %d", t.Sent, t.Missed)},
		{"ends told by webhook / told again under their id", fmt.Sprintf("%d / %d", t.Told, t.ToldAgain)},
		{"attempts / of which crashed with their workers / met an outage of the model server", fmt.Sprintf("%d / %d / %d", t.Attempts, t.Crashed, t.Outages)},
		{"model calls / at once at most", fmt.Sprintf("%d / %d", t.Calls, t.MostAtOnce)},
		{"calls on their way when their lease was taken away, beside the next attempt's", fmt.Sprint(t.Overlaps)},
		{"calls of a stopped or cut worker that went out after that", fmt.Sprint(t.Late)},
	}
	for _, rule := range rules {
		name, _, _ := strings.Cut(rule, ":")
		lines = append(lines, [2]string{"violations, " + name, count(rule)})
	}
	return append(lines, [2]string{"other findings (the ledger's rules, reconcile, races, panics)", fmt.Sprint(len(r.errors))})
}

// markdown is for the document: without a date, so that a run that changes nothing changes nothing there.
func (r *report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Seed %d, %s.\n\n| fault | what it is | fired | seconds until everything went on |\n|---|---|--:|--:|\n", r.seed, r.took.Round(time.Second))
	for _, one := range r.rows() {
		fired := fmt.Sprintf("%d of %d", one.fired, one.of)
		if len(one.problems) > 0 {
			fired += ": " + strings.ReplaceAll(strings.Join(one.problems, "; "), "|", "/")
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", one.fault.name, one.fault.about, fired, seconds(one.took))
	}
	b.WriteString("\n| | |\n|---|--:|\n")
	for _, line := range r.figures() {
		fmt.Fprintf(&b, "| %s | %s |\n", line[0], line[1])
	}
	return b.String()
}

// The summary stands between these lines of the document.
const (
	docsBegin = "<!-- scripts/chaos --docs writes from here -->"
	docsEnd   = "<!-- to here -->"
)

// publish puts the summary into the document, unless the run failed: what stands there is what was promised and shown.
func (r *report) publish(path string) error {
	if r.failed() {
		return fmt.Errorf("the run failed; %s stays as it was", path)
	}
	return writeDocs(path, r.markdown())
}

// writeDocs replaces the summary in the document.
func writeDocs(path, summary string) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, found := strings.Cut(string(raw), docsBegin)
	_, after, ended := strings.Cut(rest, docsEnd)
	if !found || !ended {
		return fmt.Errorf("%s has no place for the summary: want the lines %q and %q", path, docsBegin, docsEnd)
	}
	return os.WriteFile(path, []byte(before+docsBegin+"\n\n"+summary+"\n"+docsEnd+after), 0o644)
}
