package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

// Operators' commands on the audit log. A chain is a workspace's, or "system".

func runAudit(ctx context.Context, c *cli, args []string) error {
	return c.subcommand(ctx, "audit", args, map[string]func(context.Context, *cli, []string) error{
		"verify": auditVerify, "heads": auditHeads, "show": auditShow,
	})
}

func parseChain(arg string) (uuid.UUID, error) {
	chain, ok := store.ParseChain(arg)
	if !ok {
		return chain, misuse("%q is no chain; want a workspace such as ws_0190…, or system", arg)
	}
	return chain, nil
}

// chainFaultJSON is a fault as --json prints it.
type chainFaultJSON struct {
	Chain string `json:"chain"`
	Seq   int64  `json:"seq"`
	Kind  string `json:"kind"`
	What  string `json:"what"`
}

// verification is what muster audit verify found.
type verification struct {
	Chains  int64            `json:"chains"`
	Entries int64            `json:"entries"`
	Lists   []listJSON       `json:"lists"`
	Faults  []chainFaultJSON `json:"faults"`
}

// listJSON is a list of heads that was compared.
type listJSON struct {
	File     string `json:"file"`
	Night    string `json:"night"`
	At       string `json:"at"`
	Chains   int64  `json:"chains"`
	Digest   string `json:"digest"`
	Previous string `json:"previous"`
}

// maxShownFaults keeps the memory bounded when nothing is as it was.
const maxShownFaults = 10_000

func (v *verification) add(chain string, seq int64, kind, format string, args ...any) {
	if len(v.Faults) < maxShownFaults {
		v.Faults = append(v.Faults, chainFaultJSON{chain, seq, kind, fmt.Sprintf(format, args...)})
	}
}

func auditVerify(ctx context.Context, c *cli, args []string) error {
	set := flag.NewFlagSet("muster audit verify [WS|system]… | --all", flag.ContinueOnError)
	asJSON := set.Bool("json", false, "print JSON")
	all := set.Bool("all", false, "every chain")
	var files []string
	set.Func("heads", "compare with this file of heads; may be given several times", func(file string) error {
		files = append(files, file)
		return nil
	})
	positional, err := c.flags(set, args, 0, -1)
	if err != nil {
		return err
	}
	if *all == (len(positional) > 0) && len(files) == 0 || *all && len(positional) > 0 {
		return misuse("want chains, --all, or --heads FILE")
	}
	chains := make([]uuid.UUID, len(positional))
	for i, arg := range positional {
		if chains[i], err = parseChain(arg); err != nil {
			return err
		}
	}
	system, _, done, err := c.openSystem(ctx)
	if err != nil {
		return err
	}
	defer done()
	v := &verification{Lists: []listJSON{}, Faults: []chainFaultJSON{}}
	for _, chain := range chains {
		if err := v.chain(ctx, system, chain); err != nil {
			return err
		}
	}
	if *all {
		if err := v.everyChain(ctx, system); err != nil {
			return err
		}
	}
	if err := v.lists(ctx, system, files); err != nil {
		return err
	}
	if *asJSON {
		err = printJSON(c.stdout, v)
	} else {
		err = c.printVerification(v)
	}
	if err == nil && len(v.Faults) > 0 {
		return errFound
	}
	return err
}

func (c *cli) printVerification(v *verification) error {
	for _, l := range v.Lists {
		fmt.Fprintf(c.stdout, "compared %d heads of %s (%s): digest %s, previous %s\n", l.Chains, l.At, printable(l.File), l.Digest, l.Previous)
	}
	for _, f := range v.Faults {
		fmt.Fprintf(c.stdout, "BROKEN  %s  entry %d  %s: %s\n", f.Chain, f.Seq, f.Kind, f.What)
	}
	_, err := fmt.Fprintf(c.stdout, "%d chains with %d entries read, %d faults\n", v.Chains, v.Entries, len(v.Faults))
	return err
}

func (v *verification) chain(ctx context.Context, system *store.System, chain uuid.UUID) error {
	check, err := system.VerifyChain(ctx, chain)
	if err != nil {
		return fmt.Errorf("verify %s: %w", store.ChainName(chain), err)
	}
	v.Chains++
	v.Entries += check.Entries
	v.found(check.Faults)
	return nil
}

func (v *verification) found(faults []store.ChainFault) {
	for _, f := range faults {
		v.add(store.ChainName(f.Chain), f.Seq, f.Kind, "%s", f.What)
	}
}

// everyChain goes from chain to chain, a thousand at a time.
func (v *verification) everyChain(ctx context.Context, system *store.System) error {
	const page = 1000
	for next := store.SystemChain; ; {
		chains, err := system.Chains(ctx, next, page)
		if err != nil {
			return err
		}
		for _, chain := range chains {
			if err := v.chain(ctx, system, chain); err != nil {
				return err
			}
		}
		if len(chains) < page {
			return nil
		}
		next = store.NextChain(chains[page-1])
	}
}

// lists compares the chains with files of heads, and the files with each other and with what the ledger knows of them.
func (v *verification) lists(ctx context.Context, system *store.System, files []string) error {
	var nights []store.Heads
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return fmt.Errorf("read heads: %w", err)
		}
		heads, faults, err := system.VerifyHeads(ctx, f)
		f.Close()
		if errors.Is(err, store.ErrNoHeads) {
			v.add(name, 0, store.ChainChanged, "%v", err)
			continue
		}
		if err != nil {
			return err
		}
		v.found(faults)
		v.Lists = append(v.Lists, listJSON{File: name, Night: heads.Night, At: heads.At.UTC().Format(time.RFC3339), Chains: heads.Chains,
			Digest: hex.EncodeToString(heads.Digest), Previous: hex.EncodeToString(heads.Previous)})
		if heads.Night == "" {
			continue
		}
		known, ok, err := system.Night(ctx, heads.Night)
		if err != nil {
			return err
		}
		if !ok || !bytes.Equal(known, heads.Digest) {
			v.add(name, 0, store.ChainChanged, "the ledger knows another digest of this night, or none: the file or the ledger was changed; the scheduler's log of that night decides")
		}
		nights = append(nights, heads)
	}
	slices.SortFunc(nights, func(a, b store.Heads) int { return cmp.Compare(a.Night, b.Night) })
	for i := 1; i < len(nights); i++ {
		if before, after := nights[i-1], nights[i]; before.NightBefore(after) && !bytes.Equal(after.Previous, before.Digest) {
			v.add("night "+before.Night, 0, store.ChainChanged, "the night after names another digest for this one: one of the two files was changed")
		}
	}
	return nil
}

func auditHeads(ctx context.Context, c *cli, args []string) error {
	set := flag.NewFlagSet("muster audit heads", flag.ContinueOnError)
	if _, err := c.flags(set, args, 0, 0); err != nil {
		return err
	}
	system, _, done, err := c.openSystem(ctx)
	if err != nil {
		return err
	}
	defer done()
	_, err = system.WriteHeads(ctx, c.stdout)
	return err
}

// auditLineJSON is an entry as --json prints it, one per line.
type auditLineJSON struct {
	Chain     string          `json:"chain"`
	Seq       int64           `json:"seq"`
	At        time.Time       `json:"at"`
	ActorType string          `json:"actor_type"`
	ActorID   string          `json:"actor_id"`
	Action    string          `json:"action"`
	Target    string          `json:"target"`
	Details   json.RawMessage `json:"details"`
	IP        string          `json:"ip"`
	RequestID string          `json:"request_id"`
	Hash      string          `json:"hash"`
}

func auditShow(ctx context.Context, c *cli, args []string) error {
	var f store.AuditFilter
	var limit int
	var chain uuid.UUID
	d, err := c.open(ctx, "audit show WS|system", args, func(set *flag.FlagSet) {
		set.IntVar(&limit, "limit", 50, "how many, newest first, 1 to 1000000")
		set.StringVar(&f.Action, "action", "", "only this action, such as api_key.create or api_key.*")
		set.StringVar(&f.Actor, "actor", "", "only what this user, key or operator did")
		set.StringVar(&f.Target, "target", "", "only what was done to this")
	}, func(d *desk) (err error) {
		chain, err = parseChain(d.args[0])
		return cmp.Or(limited(limit, 1_000_000), err)
	})
	if err != nil {
		return err
	}
	defer d.done()
	if err := d.system.Note(ctx, chain, operator(), "audit_log.read", d.args[0], f.Details()); err != nil {
		return err
	}
	const page = 500
	tw, lines := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0), json.NewEncoder(c.stdout)
	if !d.json {
		fmt.Fprintln(tw, "ENTRY\tAT\tACTOR\tACTION\tTARGET\tFROM\tDETAILS")
	}
	for before, left := int64(0), limit; left > 0; {
		entries, err := d.system.AuditLog(ctx, chain, f, before, min(left, page))
		if err != nil {
			return err
		}
		for _, e := range entries {
			if d.json {
				err = lines.Encode(auditLineJSON{d.args[0], e.Seq, e.At.UTC(), e.ActorType, e.ActorID, e.Action, e.Target, e.Details, e.IP, e.RequestID, hex.EncodeToString(e.Hash)})
			} else {
				_, err = fmt.Fprintf(tw, "%d\t%s\t%s %s\t%s\t%s\t%s\t%s\n", e.Seq, e.At.UTC().Format(time.RFC3339), e.ActorType, printable(e.ActorID), e.Action,
					printable(e.Target), e.IP, printable(string(e.Details)))
			}
			if err != nil {
				return err
			}
			before = e.Seq
		}
		if err := tw.Flush(); err != nil {
			return err
		}
		if left -= len(entries); len(entries) < page {
			break
		}
	}
	return nil
}
