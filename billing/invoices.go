package billing

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/stripe/stripe-go/v76"
)

// Invoice lines, the fifth book: the quantities that a subscription's invoice shows for a period against the totals that
// were confirmed for the period's days. A meter that has totals and no line is a difference too.

// invoiceQuantity is the metered usage of one subscription on one invoice.
type invoiceQuantity struct {
	invoice    string
	from, to   time.Time
	quantities map[string]int64 // by Stripe's id of the meter
}

// invoices compares the upcoming invoice and every draft or final one whose period lies in the range of days.
func (c comparison) invoices(ctx context.Context, r *Reconciliation) error {
	if c.Customer == nil || c.Subscription == nil {
		return nil
	}
	list, err := c.account.invoiceQuantities(ctx, *c.Subscription)
	if err != nil {
		return err
	}
	for _, q := range list {
		from, to := day(q.from), day(q.to)
		if q.from.Before(c.from) && q.invoice != upcoming {
			continue // days that were not asked for
		}
		stands, err := c.System.DayStands(ctx, c.Workspace, from, to)
		if err != nil {
			return err
		}
		sums, moving := map[string]int64{}, map[string]bool{}
		for _, s := range stands {
			moving[s.Meter] = moving[s.Meter] || s.Pending != nil
			// Usage counts for the period that holds its timestamp.
			if s.Confirmed != nil && !s.ConfirmedEventAt.Before(q.from) && s.ConfirmedEventAt.Before(q.to) {
				sums[s.Meter] += *s.Confirmed
			}
		}
		compared := false
		for _, m := range meters {
			if moving[m.name] {
				continue // told by its days
			}
			compared = true
			if quantity := q.quantities[c.ids[m.name]]; sums[m.name] != quantity {
				r.Invoiced = append(r.Invoiced, InvoiceLine{Workspace: c.Workspace, Invoice: q.invoice, Meter: m.name, From: q.from, To: q.to,
					Quantity: quantity, Ledger: sums[m.name]})
			}
		}
		if compared {
			r.Invoices++
		}
	}
	return nil
}

// upcoming stands for the id of an invoice that is still a preview.
const upcoming = "upcoming"

// invoiceQuantities sums the lines of a subscription's meters per invoice: a price in tiers makes a line for each.
func (a *account) invoiceQuantities(ctx context.Context, subscription string) ([]invoiceQuantity, error) {
	var list []invoiceQuantity
	preview := &stripe.InvoiceUpcomingLinesParams{Subscription: stripe.String(subscription)}
	preview.Context, preview.Limit = ctx, stripe.Int64(100)
	q := invoiceQuantity{invoice: upcoming, quantities: map[string]int64{}}
	lines := a.api.Invoices.UpcomingLines(preview)
	for lines.Next() {
		q.add(lines.InvoiceLineItem(), subscription)
	}
	var e *stripe.Error
	if err := lines.Err(); errors.As(err, &e) && (e.HTTPStatusCode == http.StatusNotFound || e.Code == stripe.ErrorCodeInvoiceUpcomingNone) {
		q = invoiceQuantity{} // ended: nothing is to come
	} else if err != nil {
		return nil, fmt.Errorf("read the upcoming invoice of %s: %w", subscription, err)
	}
	if !q.from.IsZero() {
		list = append(list, q)
	}
	params := &stripe.InvoiceListParams{Subscription: stripe.String(subscription)}
	params.Context, params.Limit = ctx, stripe.Int64(24) // two years of months; the days asked for are fewer
	invoices := a.api.Invoices.List(params)
	for n := 0; invoices.Next() && n < 24; n++ {
		inv := invoices.Invoice()
		if inv.Status == stripe.InvoiceStatusVoid || inv.BillingReason == stripe.InvoiceBillingReasonSubscriptionCreate {
			continue // the first one bills no usage
		}
		q := invoiceQuantity{invoice: inv.ID, quantities: map[string]int64{}}
		per := &stripe.InvoiceListLinesParams{Invoice: stripe.String(inv.ID)}
		per.Context, per.Limit = ctx, stripe.Int64(100)
		items := a.api.Invoices.ListLines(per)
		for items.Next() {
			q.add(items.InvoiceLineItem(), subscription)
		}
		if err := items.Err(); err != nil {
			return nil, fmt.Errorf("read invoice %s: %w", inv.ID, err)
		}
		if !q.from.IsZero() {
			list = append(list, q)
		}
	}
	if err := invoices.Err(); err != nil {
		return nil, fmt.Errorf("list invoices of %s: %w", subscription, err)
	}
	return list, nil
}

// add counts a line if it is a meter's.
func (q *invoiceQuantity) add(line *stripe.InvoiceLineItem, subscription string) {
	if line.Price == nil || line.Price.Recurring == nil || line.Price.Recurring.Meter == "" || line.Period == nil {
		return
	}
	if line.Subscription != nil && line.Subscription.ID != subscription {
		return
	}
	q.from, q.to = time.Unix(line.Period.Start, 0).UTC(), time.Unix(line.Period.End, 0).UTC()
	q.quantities[line.Price.Recurring.Meter] += line.Quantity
}
