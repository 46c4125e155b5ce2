package billing

import (
	"context"
	"errors"
	"time"

	"github.com/generic-corp/muster/store"
)

// visit is one look at one workspace, under its hold: what Stripe shows, then each day's next step.
type visit struct {
	*work
	store.PushAccount
	hold  *store.PushHold
	meter meter // being looked at
	sent  int
	days  []Pushed // what was done or is still open
}

// do visits the workspace. settled says that every day is equal and nothing is pending.
func (v *visit) do(ctx context.Context) (settled bool, err error) {
	if !v.dry {
		if v.hold, err = v.System.HoldPush(ctx, v.Workspace, v.Hold); err != nil {
			return false, err
		}
		defer func() {
			// Also when the context is cancelled, or the next push would wait for the hold to lapse.
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			run := v.run
			if !settled || err != nil {
				run = time.Time{}
			}
			err = errors.Join(err, v.hold.Release(end, run))
		}()
	}
	now, err := v.now(ctx)
	if err != nil {
		return false, err
	}
	settled = true
	var refusals error
	for _, v.meter = range meters {
		equal, err := v.look(ctx, now)
		if err != nil && kindOf(err) != permanent {
			return false, err // the other meter would meet the same
		}
		refusals = errors.Join(refusals, err)
		settled = settled && equal
	}
	return settled, refusals
}

// look goes over the days of one meter.
func (v *visit) look(ctx context.Context, now time.Time) (settled bool, err error) {
	days, err := v.System.PushDays(ctx, v.Workspace, v.meter.name, v.first, v.last, v.dry)
	if err != nil {
		return false, err
	}
	shown, err := v.account.dayTotals(ctx, v.ids[v.meter.name], v.Customer, v.first, v.last)
	if err != nil {
		return false, err
	}
	settled = true
	var refusals error
	for _, b := range v.books(days, shown, now) {
		equal, err := v.step(ctx, b)
		if err != nil && kindOf(err) != permanent {
			return false, err // the rest of the days would meet the same
		}
		refusals = errors.Join(refusals, err)
		settled = settled && equal
	}
	return settled, refusals
}

// books joins the ledger's days with Stripe's, oldest first: a day that only Stripe knows must be put to zero.
func (v *visit) books(days []store.PushDay, shown map[time.Time]int64, now time.Time) []books {
	byDay := make(map[time.Time]store.PushDay, len(days))
	for _, d := range days {
		byDay[d.Day] = d
	}
	var out []books
	for d := v.first; !d.After(v.last); d = d.AddDate(0, 0, 1) {
		known, ok := byDay[d]
		if _, seen := shown[d]; !ok && !seen {
			continue
		}
		known.Day = d
		b := books{PushDay: known, seen: shown[d], customer: v.Customer, now: now, due: v.due(d), lag: v.Lag}
		if v.Since != nil {
			b.since = v.Since.UTC()
		}
		out = append(out, b)
	}
	return out
}

// step does what a day needs and says whether it is equal then.
func (v *visit) step(ctx context.Context, b books) (equal bool, err error) {
	do := b.decide()
	if v.dry {
		v.plan(b, do)
		return true, nil
	}
	if do == confirm {
		row := *b.Pending
		if err := v.hold.Confirm(ctx, v.meter.name, row, b.now, row.Value == b.Total); err != nil {
			return false, err
		}
		v.note(b, row.Value, Confirmed)
		row.Status = "confirmed"
		b.Pending, b.Confirmed = nil, &row
		if do = b.decide(); do == keep { // the total may have moved on while it was away
			return true, nil
		}
	}
	switch do {
	case keep:
		return true, nil
	case await:
		if !b.due { // the day's own push will care
			return true, nil
		}
		v.note(b, b.Pending.Value, Pending)
		return false, nil
	case carry:
		v.note(b, b.Total, Carried)
		return true, v.hold.Carry(ctx, v.total(b, b.Total))
	case resend:
		row := *b.Pending
		v.note(b, row.Value, Pending)
		if err := v.hold.Resend(ctx, row.ID, b.now); err != nil {
			return false, err
		}
		row.Sends++
		return false, v.send(ctx, row)
	case book:
		v.note(b, b.want(), Pending)
		row, err := v.hold.Book(ctx, v.total(b, b.want()))
		if err != nil {
			return false, err
		}
		return false, v.send(ctx, row)
	}
	return true, nil
}

// total is a new row for the day. Its timestamp is the day's last second, or now while the day lasts.
func (v *visit) total(b books, value int64) store.NewPush {
	at := lastSecond(b.Day)
	if b.now.Before(at) {
		at = b.now.Truncate(time.Second)
	}
	return store.NewPush{Meter: v.meter.name, Day: b.Day, Value: value, Customer: v.Customer, EventAt: at, Now: b.now}
}

// send sends a booked row and keeps the answer. A duplicate identifier is no error: the read-back tells what it is.
func (v *visit) send(ctx context.Context, row store.PushRow) error {
	v.sent++
	err := v.account.send(ctx, v.meter.event, row)
	answer, problem := answerOf(err), ""
	if err != nil {
		problem = err.Error()[:min(len(err.Error()), 500)]
	}
	if answer == store.PushDuplicate {
		err = nil
	}
	if ctx.Err() != nil {
		return err // as if this process had died: the next visit asks
	}
	return errors.Join(err, v.hold.Answered(ctx, row.ID, answer, problem))
}

func (v *visit) note(b books, value int64, state State) {
	v.days = append(v.days, Pushed{Workspace: v.Workspace, Meter: v.meter.name, Day: b.Day, Value: value, Before: b.confirmed(), State: state})
}

// plan notes what a push would do.
func (v *visit) plan(b books, do step) {
	if do == confirm { // what would come after it
		b.Confirmed, b.Pending = b.Pending, nil
		do = b.decide()
	}
	switch do {
	case book, resend:
		v.note(b, b.want(), Planned)
	case carry:
		v.note(b, b.Total, Carried)
	}
}
