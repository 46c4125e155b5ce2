package main

import (
	"context"
	"flag"
	"slices"
	"strings"
	"unicode"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/jobs"
	"github.com/generic-corp/muster/store"
)

// What operators' commands begin with: read the arguments, refuse wrong ones before anything is connected to, connect.

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
