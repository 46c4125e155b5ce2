package billing

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

// A push goes in rounds. Each round visits the workspaces that are not settled yet, several at once and none for long: it
// reads what Stripe shows, does each day's next step, and leaves. So one workspace's trouble delays nobody, and the time
// that Stripe's summaries lag behind is spent once for all workspaces.

// The longest pause between rounds, and how many calls in a row may fail before a round is given up: an outage must not
// cost a timeout per workspace.
const (
	maxPause   = 30 * time.Second
	maxFailing = 24
)

// meter is one that is pushed: what the ledger calls it, and the event name of Stripe's meter.
type meter struct{ name, event string }

var meters = []meter{{store.MeterAgentMS, EventAgentMS}, {store.MeterOverageMS, EventOverageMS}}

// Pushed is what a push did, or would do, about one workspace's meter and day.
type Pushed struct {
	Workspace uuid.UUID
	Meter     string
	Day       time.Time
	Value     int64 // the absolute total; of a carried day it may be below zero
	Before    int64 // the last confirmed total
	State     State
}

// State is how a day stands after a push.
type State string

// The states. A planned one is a dry run's.
const (
	Confirmed State = "confirmed"
	Pending   State = "pending" // sent, or to be sent again, and not read back yet
	Carried   State = "carried"
	Planned   State = "planned"
)

// Problem is why a workspace is not settled.
type Problem struct {
	Workspace uuid.UUID
	Err       error
}

// Report is what a push did. Days that were equal from the start are not in it.
type Report struct {
	Workspaces int      // visited
	Sent       int      // meter events sent, repetitions included
	Left       int      // workspaces with something pending or wrong
	Days       []Pushed // by workspace, meter and day
	Problems   []Problem
}

// Err is nil when nothing is left.
func (r Report) Err() error {
	if r.Left == 0 {
		return nil
	}
	err := fmt.Errorf("%d of %d workspaces are not settled", r.Left, r.Workspaces)
	for i, p := range r.Problems {
		if i == 3 { // a line for people; the ledger has the rest
			break
		}
		err = fmt.Errorf("%w; %w", err, named(store.FormatID(store.WorkspacePrefix, p.Workspace), p.Err))
	}
	return err
}

// Request says what to push. The zero value is everything up to yesterday.
type Request struct {
	Day    time.Time // one UTC day alone, today included; zero is every day up to yesterday
	DryRun bool      // say what would be sent, and write nothing anywhere
}

// PushNight is the nightly run that belongs to the UTC day run: it rolls up, pushes and reads back every day before it,
// and books itself. It returns an error while something is left, so that it is tried again; the repetition visits only
// what is left, and days that moved later are the next night's.
func (p *Pusher) PushNight(ctx context.Context, run time.Time) error {
	run = day(run)
	if err := p.System.StartPushRun(ctx, run); err != nil {
		return err
	}
	report, err := p.push(ctx, Request{}, run)
	if err != nil {
		return err
	}
	if err := p.System.EndPushRun(ctx, run, report.Sent, report.Left); err != nil {
		return err
	}
	p.Log.Info().Str("day", run.Format(time.DateOnly)).Int("workspaces", report.Workspaces).Int("sent", report.Sent).Int("left", report.Left).Msg("nightly push")
	return report.Err()
}

// Push rolls up and pushes by hand. Its error is what kept it from working at all; see Report.Err for what is left.
func (p *Pusher) Push(ctx context.Context, q Request) (Report, error) {
	return p.push(ctx, q, time.Time{})
}

// span is the days of one push.
type span struct {
	first, last time.Time // looked at, both included
	due         func(day time.Time) bool
}

func (p *Pusher) span(ctx context.Context, q Request, run time.Time) (span, error) {
	now, err := p.now(ctx)
	if err != nil {
		return span{}, err
	}
	if !q.Day.IsZero() {
		only := day(q.Day)
		if only.After(now) {
			return span{}, fmt.Errorf("push %s: that day has not begun", only.Format(time.DateOnly))
		}
		return span{only, only, func(d time.Time) bool { return d.Equal(only) }}, nil
	}
	today := day(now)
	if run.IsZero() || run.After(today) {
		run = today
	}
	from, err := p.System.RollUpFrom(ctx, today)
	return span{from, today, func(d time.Time) bool { return d.Before(run) }}, err
}

// push is a whole push; run is the nightly run that it belongs to, zero for none.
func (p *Pusher) push(ctx context.Context, q Request, run time.Time) (Report, error) {
	s, err := p.span(ctx, q, run)
	if err != nil {
		return Report{}, err
	}
	if !q.DryRun {
		if _, err := p.System.RollUp(ctx, s.first, s.last); err != nil {
			return Report{}, err
		}
		if err := p.System.DropUnbillablePushes(ctx); err != nil {
			return Report{}, err
		}
	}
	accounts, err := p.System.PushAccounts(ctx, s.first, s.last, run)
	if err != nil || len(accounts) == 0 {
		return Report{}, err
	}
	w := &work{Pusher: p, span: s, run: run, dry: q.DryRun, left: make(map[uuid.UUID]error, len(accounts)), days: map[uuid.UUID][]Pushed{}}
	for i := range accounts {
		w.left[accounts[i].Workspace] = nil
	}
	err = w.rounds(ctx, accounts)
	return w.report(accounts), err
}

// work is a push under way.
type work struct {
	*Pusher
	span
	run time.Time
	dry bool
	ids map[string]string // Stripe's ids of the meters, by our names

	mu      sync.Mutex
	left    map[uuid.UUID]error // not settled yet, with the last trouble
	days    map[uuid.UUID][]Pushed
	sent    int
	failing int   // calls in a row that came to nothing
	stop    error // fatal
}

// rounds visits until all are settled or the time is up.
func (w *work) rounds(ctx context.Context, accounts []store.PushAccount) error {
	pause := w.Pause
	var until time.Time
	for {
		again := w.round(ctx, accounts)
		if w.stop != nil || ctx.Err() != nil {
			return errors.Join(w.stop, context.Cause(ctx))
		}
		if until.IsZero() {
			until = time.Now().Add(w.Wait)
		}
		if len(again) == 0 || time.Now().Add(pause).After(until) {
			return nil
		}
		accounts = again
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, maxPause)
	}
}

// round visits each account once and returns those that want another visit.
func (w *work) round(ctx context.Context, accounts []store.PushAccount) (again []store.PushAccount) {
	w.failing = 0
	if w.ids == nil {
		ids, err := w.account.meterIDs(ctx)
		if err != nil {
			w.troubled(accounts, err)
			return accounts
		}
		w.ids = ids
	}
	next := make(chan store.PushAccount)
	var wg sync.WaitGroup
	for range min(w.Parallel, len(accounts)) {
		wg.Go(func() {
			for a := range next {
				if w.visitOne(ctx, a) {
					w.mu.Lock()
					again = append(again, a)
					w.mu.Unlock()
				}
			}
		})
	}
	for i, a := range accounts {
		if w.givenUp() || ctx.Err() != nil {
			w.mu.Lock()
			again = append(again, accounts[i:]...)
			w.mu.Unlock()
			break
		}
		next <- a
	}
	close(next)
	wg.Wait()
	return again
}

// troubled books an error that concerns all accounts of a round.
func (w *work) troubled(accounts []store.PushAccount, err error) {
	if kindOf(err) == fatal {
		w.stop = err
	}
	for _, a := range accounts {
		w.left[a.Workspace] = err
	}
}

func (w *work) givenUp() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failing >= maxFailing || w.stop != nil
}

// visitOne visits an account, books what came of it, and says whether it wants another visit.
func (w *work) visitOne(ctx context.Context, a store.PushAccount) (again bool) {
	v := &visit{work: w, PushAccount: a}
	settled, err := v.do(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sent += v.sent
	w.merge(a.Workspace, v.days)
	switch {
	case err == nil && settled:
		delete(w.left, a.Workspace)
		w.failing = 0
		return false
	case err == nil: // sent, to be read back
		w.left[a.Workspace] = nil
		w.failing = 0
		return true
	}
	w.left[a.Workspace] = err
	switch kindOf(err) {
	case fatal:
		w.stop = err
	case permanent:
		return false
	case passing:
		if !errors.Is(err, store.ErrPushHeld) {
			w.failing++
		}
	}
	return true
}

// merge keeps the latest word on each day. w.mu is held.
func (w *work) merge(ws uuid.UUID, days []Pushed) {
	for _, d := range days {
		found := false
		for i, old := range w.days[ws] {
			if old.Meter == d.Meter && old.Day.Equal(d.Day) {
				d.Before = old.Before
				w.days[ws][i], found = d, true
			}
		}
		if !found {
			w.days[ws] = append(w.days[ws], d)
		}
	}
}

func (w *work) report(accounts []store.PushAccount) Report {
	r := Report{Workspaces: len(accounts), Sent: w.sent, Left: len(w.left), Days: []Pushed{}, Problems: []Problem{}}
	for _, a := range accounts {
		r.Days = append(r.Days, w.days[a.Workspace]...)
		if err, ok := w.left[a.Workspace]; ok && err != nil {
			r.Problems = append(r.Problems, Problem{a.Workspace, err})
		}
	}
	return r
}
