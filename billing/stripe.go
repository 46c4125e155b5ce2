package billing

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/stripe/stripe-go/v76"

	"github.com/generic-corp/muster/store"
)

// The calls to Stripe that a push makes, and what their answers mean.

// meterOf finds the active meter of an event name. A meter without a daily window would add our totals up, so it is
// refused.
func (a *account) meterOf(ctx context.Context, eventName string) (string, error) {
	params := &stripe.BillingMeterListParams{Status: stripe.String(string(stripe.BillingMeterStatusActive))}
	params.Context, params.Limit = ctx, stripe.Int64(100)
	meters := a.api.BillingMeters.List(params)
	for meters.Next() {
		m := meters.BillingMeter()
		if m.EventName != eventName {
			continue
		}
		if m.EventTimeWindow != stripe.BillingMeterEventTimeWindowDay || m.DefaultAggregation.Formula != stripe.BillingMeterDefaultAggregationFormulaSum {
			return "", fmt.Errorf("stripe's meter %s (%s) must sum over a daily window; deactivate it and run muster billing setup", m.ID, eventName)
		}
		return m.ID, nil
	}
	if err := meters.Err(); err != nil {
		return "", fmt.Errorf("list Stripe's meters: %w", err)
	}
	return "", errNoMeter(eventName)
}

// errNoMeter names a meter that Stripe does not have.
type errNoMeter string

func (e errNoMeter) Error() string {
	return fmt.Sprintf("stripe has no active meter for %s; run muster billing setup", string(e))
}

// meterIDs reads Stripe's ids of the meters that are pushed, by our names.
func (a *account) meterIDs(ctx context.Context) (map[string]string, error) {
	ids := make(map[string]string, len(meters))
	for _, m := range meters {
		id, err := a.meterOf(ctx, m.event)
		if err != nil {
			return nil, err
		}
		ids[m.name] = id
	}
	return ids, nil
}

// dayTotals reads a customer's totals on a meter for the days from..to, both included; a day without usage is missing.
func (a *account) dayTotals(ctx context.Context, meter, customer string, from, to time.Time) (map[time.Time]int64, error) {
	params := &stripe.BillingMeterEventSummaryListParams{ID: stripe.String(meter), Customer: stripe.String(customer),
		StartTime: stripe.Int64(from.Unix()), EndTime: stripe.Int64(to.AddDate(0, 0, 1).Unix()), ValueGroupingWindow: stripe.String("day")}
	params.Context, params.Limit = ctx, stripe.Int64(100)
	totals := map[time.Time]int64{}
	summaries := a.api.BillingMeterEventSummaries.List(params)
	for summaries.Next() {
		s := summaries.BillingMeterEventSummary()
		value := int64(s.AggregatedValue) // exact below 2^53, which is 285,000 years of milliseconds
		if float64(value) != s.AggregatedValue {
			return nil, fmt.Errorf("read Stripe's totals of %s: %v is no whole number", customer, s.AggregatedValue)
		}
		totals[day(time.Unix(s.StartTime, 0))] += value
	}
	if err := summaries.Err(); err != nil {
		return nil, fmt.Errorf("read Stripe's totals of %s: %w", customer, err)
	}
	return totals, nil
}

// send pushes a booked total. Everything it says comes from the row, so that a repetition is the same request: the row's
// id is the identifier, and the idempotency key unless Stripe answered 500, which it would repeat under the same key
// for 24 hours.
func (a *account) send(ctx context.Context, eventName string, row store.PushRow) error {
	key := row.ID.String()
	if row.Answer == store.PushServerError {
		key += "." + strconv.Itoa(row.Sends)
	}
	params := &stripe.BillingMeterEventParams{EventName: stripe.String(eventName), Identifier: stripe.String(row.ID.String()),
		Timestamp: stripe.Int64(row.EventAt.Unix()),
		Payload:   map[string]string{"stripe_customer_id": row.Customer, "value": strconv.FormatInt(row.Value, 10)}}
	params.Context = ctx
	params.SetIdempotencyKey(key)
	if _, err := a.api.BillingMeterEvents.New(params); err != nil {
		return fmt.Errorf("push %d of %s for %s: %w", row.Value, row.Day.Format(time.DateOnly), row.Customer, err)
	}
	return nil
}

// kind says what an error of Stripe means for what to do next.
type kind int

const (
	passing   kind = iota + 1 // nobody knows, or try later: cut, timeout, unreadable answer, 409, 429, 5xx
	permanent                 // the same request will never pass
	fatal                     // no request will pass: the key is wrong or may not do this
)

// kindOf classifies an error of Stripe or on the way there.
func kindOf(err error) kind {
	var e *stripe.Error
	var noMeter errNoMeter
	switch {
	case errors.As(err, &noMeter):
		return fatal
	case !errors.As(err, &e):
		return passing
	}
	switch e.HTTPStatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		return fatal
	case http.StatusConflict, http.StatusTooManyRequests:
		return passing
	}
	if e.HTTPStatusCode >= 400 && e.HTTPStatusCode < 500 {
		return permanent
	}
	return passing
}

// answerOf is what the ledger keeps of a send's outcome.
func answerOf(err error) string {
	var e *stripe.Error
	switch {
	case err == nil:
		return store.PushAccepted
	case !errors.As(err, &e):
		return store.PushUnanswered
	case isDuplicate(e):
		return store.PushDuplicate
	case e.HTTPStatusCode == http.StatusInternalServerError:
		return store.PushServerError
	case kindOf(err) == permanent:
		return store.PushRefused
	}
	return store.PushUnanswered
}

// isDuplicate recognises Stripe's refusal of an identifier that it has: a 400 without a code, told only by its text.
func isDuplicate(e *stripe.Error) bool {
	return e.HTTPStatusCode == http.StatusBadRequest && e.Type == stripe.ErrorTypeInvalidRequest && strings.Contains(e.Msg, "already exists with identifier")
}
