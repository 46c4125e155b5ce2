package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os/user"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/jobs"
	"github.com/generic-corp/muster/store"
)

// What operators' commands (command_*.go) have in common: read the arguments, refuse wrong ones before anything is connected to,
// connect; and print what customers wrote.

// desk is what an operator's command acts with.
type desk struct {
	*cli
	cfg    Config
	system *store.System
	ledger *store.API // the API's own code, with the system's role
	ws     uuid.UUID  // the first argument, where the usage says WS
	args   []string   // the other arguments
	json   bool       // print JSON
	done   func()
}

// open reads the arguments that the usage names ("tasks show WS TASK", with … behind the last for any number) and connects.
// define adds the command's flags, check refuses what was given; either may be nil. Call done when err is nil.
func (c *cli) open(ctx context.Context, usage string, args []string, define func(*flag.FlagSet), check func(d *desk) error) (*desk, error) {
	set := flag.NewFlagSet("muster "+usage, flag.ContinueOnError)
	d := &desk{cli: c}
	set.BoolVar(&d.json, "json", false, "print JSON")
	if define != nil {
		define(set)
	}
	wanted := slices.DeleteFunc(strings.Fields(usage), func(word string) bool { return !unicode.IsUpper(rune(word[0])) })
	most := len(wanted)
	if most > 0 && strings.HasSuffix(wanted[most-1], "…") {
		most = -1
	}
	var err error
	if d.args, err = c.flags(set, args, len(wanted), most); err != nil {
		return nil, err
	}
	if len(wanted) > 0 && wanted[0] == "WS" {
		if d.ws, err = parseWorkspace(d.args[0]); err != nil {
			return nil, err
		}
		d.args = d.args[1:]
	}
	if check != nil {
		if err := check(d); err != nil {
			return nil, err
		}
	}
	d.system, d.cfg, d.done, err = c.openSystem(ctx)
	if err != nil {
		return nil, err
	}
	d.ledger = d.system.API()
	return d, nil
}

// note writes down that an operator looks at something of the workspace, before it is shown.
func (d *desk) note(ctx context.Context, action, target string) error {
	return d.system.Note(ctx, d.ws, operator(), action, target, nil)
}

// id reads the argument n as an id of this kind.
func (d *desk) id(n int, prefix, kind string) (uuid.UUID, error) {
	id, ok := store.ParseID(prefix, d.args[n])
	if !ok {
		return id, misuse("%q is no %s; want an id such as %s0190…", d.args[n], kind, prefix)
	}
	return id, nil
}

// limited refuses a --limit that is out of range.
func limited(limit, most int) error {
	if limit < 1 || limit > most {
		return misuse("--limit is %d; want 1 to %d", limit, most)
	}
	return nil
}

// among refuses a flag's value that is neither empty nor one of these.
func among(name, value string, allowed ...string) error {
	if value == "" || slices.Contains(allowed, value) {
		return nil
	}
	last := len(allowed) - 1
	return misuse("%s is %q; want %s or %s", name, value, strings.Join(allowed[:last], ", "), allowed[last])
}

// workOn makes a change to the workspace with one audit entry about target, and tells Redis.
func (d *desk) workOn(ctx context.Context, action, target string, change func(*store.Work) (map[string]any, error)) error {
	result, err := d.ledger.Do(ctx, store.Scope{Workspace: d.ws}, nil, func(w *store.Work) (store.Answer, error) {
		details, err := change(w)
		if err != nil {
			return store.Answer{}, err
		}
		return store.Answer{}, w.Audit(store.AuditEntry{ActorType: store.ActorOperator, ActorID: operator().Name, Action: action, Target: target, Details: details})
	})
	if err != nil {
		return err
	}
	if err := d.enqueue(d.cfg, result.Turns); err != nil {
		return err
	}
	if len(result.Cancels) > 0 && d.cfg.Redis.RedisConnOpt != nil {
		if rdb, err := jobs.NewRedis(d.cfg.Redis); err == nil { // the fast path; the worker's beat is the sure one
			defer rdb.Close()
			_ = jobs.PublishCancels(ctx, rdb, result.Cancels...)
		}
	}
	return nil
}

// subcommand runs the one that args names.
func (c *cli) subcommand(ctx context.Context, name string, args []string, table map[string]func(context.Context, *cli, []string) error) error {
	names := make([]string, 0, len(table))
	for n := range table {
		names = append(names, n)
	}
	sort.Strings(names)
	if len(args) == 0 {
		return misuse("want one of %s", strings.Join(names, ", "))
	}
	if args[0] == "--help" || args[0] == "-h" {
		fmt.Fprintf(c.stdout, "Usage: muster %s %s   (each with --help)\n", name, strings.Join(names, "|"))
		return nil
	}
	if run := table[args[0]]; run != nil {
		return run(ctx, c, args[1:])
	}
	return misuse("unknown %q; want one of %s", args[0], strings.Join(names, ", "))
}

// operator is who acts, for the audit log: the login name on this machine.
func operator() store.Operator {
	if u, err := user.Current(); err == nil {
		return store.Operator{Name: u.Username}
	}
	return store.Operator{Name: "unknown"}
}

// openSystem connects with the system's role and proves that it answers.
func (c *cli) openSystem(ctx context.Context) (*store.System, Config, func(), error) {
	cfg, err := loadConfig(c.getenv, nil, "SYSTEM_DATABASE_URL")
	if err != nil {
		return nil, cfg, nil, err
	}
	if err := cfg.allowModels(); err != nil {
		return nil, cfg, nil, err
	}
	db, err := store.Open(ctx, string(cfg.SystemDatabaseURL), 4)
	if err != nil {
		return nil, cfg, nil, err
	}
	if err := db.PingContext(ctx); err != nil {
		db.Close()
		return nil, cfg, nil, dialHint("the database", "SYSTEM_DATABASE_URL", err)
	}
	return store.NewSystem(db), cfg, func() { db.Close() }, nil
}

// enqueue brings turns to Redis, if it is configured and there.
func (c *cli) enqueue(cfg Config, turns []store.Turn) error {
	if len(turns) == 0 || cfg.Redis.RedisConnOpt == nil {
		return nil
	}
	rdb, err := jobs.NewRedis(cfg.Redis)
	if err != nil {
		return err
	}
	defer rdb.Close()
	enqueuer := jobs.NewEnqueuer(rdb, zerolog.Nop())
	for _, t := range turns {
		enqueuer.Enqueue(jobs.Turn(t))
	}
	enqueuer.Close()
	if enqueuer.Dropped() > 0 {
		fmt.Fprintln(c.stderr, "note: redis could not be reached; the scheduler will bring the workspace in line")
	}
	return nil
}

func parseWorkspace(arg string) (uuid.UUID, error) {
	id, ok := store.ParseID(store.WorkspacePrefix, arg)
	if !ok {
		return id, misuse("%q is no workspace; want an id such as ws_0190…", arg)
	}
	return id, nil
}

func ptr[T any](v T) *T { return &v }

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// printable keeps a customer's text from steering an operator's terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if strconv.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}

// clock writes a time for people; - for none.
func clock(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}

// dollars writes micro-dollars.
func dollars(microUSD int64) string {
	sign := ""
	if microUSD < 0 {
		sign, microUSD = "-", -microUSD
	}
	return fmt.Sprintf("%s$%d.%02d", sign, microUSD/1_000_000, microUSD%1_000_000/10_000)
}
