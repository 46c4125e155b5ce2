package billing

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/generic-corp/muster/store"
)

// Reconciliation compares five books that must say the same: metering rows = daily usage = push ledger = Stripe's day
// totals = invoice lines. It writes nothing. What cannot be equal yet, or for a known reason never will, is told apart
// from drift: a day that is not over, a total on its way, one that Stripe no longer took, a workspace nobody pays for.

// A day is due from four hours after its end: the push runs at 02:10 UTC and may have to repeat itself. A total that is
// on its way for longer than two nights is drift.
const (
	dueAfter    = 4 * time.Hour
	longPending = 50 * time.Hour
)

// Reason says why a day's books are apart without being wrong.
type Reason string

// The reasons.
const (
	ReasonOpen        Reason = "open"         // the day, or the time to push it, is not over
	ReasonPending     Reason = "pending"      // a total is on its way
	ReasonCarried     Reason = "carried"      // booked to be carried forward: Stripe takes no more for that day
	ReasonNotBillable Reason = "not_billable" // no Stripe customer, or not at that time
)

// Line is one workspace's meter on one day, as each book has it; nil where a book has nothing to say. Metered and Daily
// are billable sums of the meters that are pushed, and all of it for others.
type Line struct {
	Workspace uuid.UUID
	Day       time.Time
	Meter     string
	Metered   int64
	Daily     int64
	Ledger    *int64 // the last confirmed total
	Stripe    *int64
	Note      string // what is wrong, or on its way
	Reason    Reason // empty for a difference
}

// InvoiceLine is a meter's part of one period of a workspace's subscription: what the invoice says and what was confirmed
// for its days.
type InvoiceLine struct {
	Workspace uuid.UUID
	Invoice   string // Stripe's id, or "upcoming"
	Meter     string
	From, To  time.Time
	Quantity  int64
	Ledger    int64
}

// Reconciliation is what a comparison found.
type Reconciliation struct {
	Days        int            // workspace-days compared
	Invoices    int            // invoice periods compared
	Differences []Line         // drift, by workspace, day and meter
	Invoiced    []InvoiceLine  // drift between invoice and ledger
	Apart       []Line         // apart for a reason, meters that are pushed only
	Reasons     map[Reason]int // days of a workspace's meter by reason
}

// Found counts everything that is wrong.
func (r Reconciliation) Found() int { return len(r.Differences) + len(r.Invoiced) }

// Reconcile compares the UTC days from..to, both included; to is today at the latest. A difference is looked at twice,
// since a push or a task may end between one book and the next.
func (p *Pusher) Reconcile(ctx context.Context, from, to time.Time) (Reconciliation, error) {
	from, to = day(from), day(to)
	r := Reconciliation{Differences: []Line{}, Invoiced: []InvoiceLine{}, Apart: []Line{}, Reasons: map[Reason]int{}}
	workspaces, err := p.System.MeteredWorkspaces(ctx, from, to)
	if err != nil {
		return r, err
	}
	var ids map[string]string
	for _, w := range workspaces {
		if w.Customer != nil {
			if ids, err = p.account.meterIDs(ctx); err != nil {
				return r, err
			}
			break
		}
	}
	found := make([]Reconciliation, len(workspaces))
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(p.Parallel)
	for i, w := range workspaces {
		group.Go(func() error {
			c := comparison{Pusher: p, MeteredWorkspace: w, ids: ids, from: from, to: to}
			for look := 0; look < 2; look++ {
				one, err := c.compare(groupCtx)
				if err != nil {
					return named(store.FormatID(store.WorkspacePrefix, w.Workspace), err)
				}
				if found[i] = one; one.Found() == 0 {
					break
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return r, err
	}
	for _, one := range found {
		r.Days, r.Invoices = r.Days+one.Days, r.Invoices+one.Invoices
		r.Differences, r.Invoiced = append(r.Differences, one.Differences...), append(r.Invoiced, one.Invoiced...)
		r.Apart = append(r.Apart, one.Apart...)
		for reason, n := range one.Reasons {
			r.Reasons[reason] += n
		}
	}
	return r, nil
}

// comparison is one workspace's books.
type comparison struct {
	*Pusher
	store.MeteredWorkspace
	ids      map[string]string // Stripe's, by our names of the meters that are pushed; nil without a customer
	from, to time.Time
	now      time.Time
}

func (c comparison) compare(ctx context.Context) (Reconciliation, error) {
	r := Reconciliation{Reasons: map[Reason]int{}}
	var err error
	if c.now, err = c.Pusher.now(ctx); err != nil {
		return r, err
	}
	shown := map[string]map[time.Time]int64{} // by meter
	if c.Customer != nil {
		for _, m := range meters {
			if shown[m.name], err = c.account.dayTotals(ctx, c.ids[m.name], *c.Customer, c.from, c.to); err != nil {
				return r, err
			}
		}
	}
	stands, err := c.System.DayStands(ctx, c.Workspace, c.from, c.to)
	if err != nil {
		return r, err
	}
	days := map[time.Time]bool{}
	for _, s := range stands {
		days[s.Day] = true
		line := c.line(s, shown[s.Meter])
		if pushed(s.Meter) {
			delete(shown[s.Meter], s.Day)
			line.Reason, line.Note = c.judge(s, line)
		} else if line.Note = c.judgeOther(s); line.Note == "" {
			continue
		}
		c.add(&r, line)
	}
	for meter, rest := range shown {
		for d, value := range rest { // Stripe alone knows of usage
			if value != 0 {
				days[d] = true
				c.add(&r, Line{Workspace: c.Workspace, Day: d, Meter: meter, Stripe: &value, Note: "only Stripe knows of this usage"})
			}
		}
	}
	r.Days = len(days)
	return r, c.invoices(ctx, &r)
}

func (c comparison) add(r *Reconciliation, line Line) {
	switch {
	case line.Reason != "":
		r.Reasons[line.Reason]++
		if line.Reason != ReasonNotBillable { // most workspaces are not: counted, not listed
			r.Apart = append(r.Apart, line)
		}
	case line.Note != "":
		r.Differences = append(r.Differences, line)
	}
}

func (c comparison) line(s store.DayStand, shown map[time.Time]int64) Line {
	l := Line{Workspace: c.Workspace, Day: s.Day, Meter: s.Meter, Metered: value(s.Metered), Daily: value(s.Daily)}
	if pushed(s.Meter) {
		l.Metered, l.Daily, l.Ledger = value(s.MeteredBillable), value(s.DailyBillable), s.Confirmed
		if c.Customer != nil {
			seen := shown[s.Day]
			l.Stripe = &seen
		}
	}
	return l
}

// pushed: Stripe knows the meter.
func pushed(name string) bool {
	return slices.ContainsFunc(meters, func(m meter) bool { return m.name == name })
}

func value(v *int64) int64 {
	if v == nil {
		return 0
	}
	return *v
}

// over: the roll-up of the day must be complete.
func (c comparison) over(d time.Time) bool { return !c.now.Before(d.Add(24*time.Hour + dueAfter)) }

// judgeOther compares what is not pushed.
func (c comparison) judgeOther(s store.DayStand) string {
	if c.rolledUp(s) {
		return ""
	}
	return "daily usage is not the sum of the metering rows"
}

// rolledUp: daily usage equals the rows. While the day is young rows may have been booked since the last roll-up, or with
// it: only a day that was quiet for a second before it must be equal.
func (c comparison) rolledUp(s store.DayStand) bool {
	if value(s.Metered) == value(s.Daily) && value(s.MeteredBillable) == value(s.DailyBillable) {
		return true
	}
	return !c.over(s.Day) && !c.quiet(s)
}

// quiet: nothing was booked since, or within a second of, the day's last roll-up.
func (c comparison) quiet(s store.DayStand) bool {
	return s.DailyAt != nil && (s.LastBooked == nil || s.LastBooked.Add(time.Second).Before(*s.DailyAt))
}

// judge compares a day of a meter that is pushed: a reason, or what is wrong, or neither when all books agree.
func (c comparison) judge(s store.DayStand, l Line) (Reason, string) {
	if !c.rolledUp(s) {
		return "", "daily usage is not the sum of the metering rows"
	}
	if c.Customer == nil {
		return ReasonNotBillable, ""
	}
	ledger, shown, total := value(s.Confirmed), value(l.Stripe), l.Metered
	owed := max(total, 0)
	switch {
	case s.Pending != nil && c.now.Sub(*s.PendingSince) < longPending:
		return ReasonPending, fmt.Sprintf("%d on its way since %s", *s.Pending, s.PendingSince.UTC().Format(time.RFC3339))
	case s.Pending != nil:
		return "", fmt.Sprintf("%d on its way since %s", *s.Pending, s.PendingSince.UTC().Format(time.RFC3339))
	case ledger != shown:
		return "", "Stripe does not show what it was seen to have"
	case ledger == owed && total >= 0:
		return "", ""
	case s.Carried != nil && *s.Carried == total:
		return ReasonCarried, fmt.Sprintf("%d to be carried forward", total-ledger)
	case !c.due(s.Day) && (s.Confirmed == nil || !c.quiet(s) || s.DailyAt.After(*s.ConfirmedSince)):
		return ReasonOpen, fmt.Sprintf("%d not pushed yet", total-ledger)
	case c.Since != nil && !lastSecond(s.Day).After(*c.Since) && s.Confirmed == nil && !inReach(s.Day, c.now):
		return ReasonNotBillable, ""
	}
	return "", "the ledger has not pushed what was metered"
}

// due: the nightly run has had its time, after the day's end and after the customer was attached.
func (c comparison) due(d time.Time) bool {
	return c.over(d) && (c.Since == nil || c.over(day(*c.Since)))
}
