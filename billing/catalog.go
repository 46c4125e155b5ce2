package billing

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/stripe/stripe-go/v76"

	"github.com/generic-corp/muster/store"
)

// What Stripe must know of us before anything can be billed: two meters, and a price for each thing that stands on an
// invoice. Objects are found again by their fixed names (event name, product id, lookup key), so that a set-up may be
// repeated, interrupted and run twice at once.

// EventAgentMS and EventOverageMS are the event names of the meters, in milliseconds. The first is what finance compares
// with the ledger, at price 0; the second is what is charged, computed by the ledger.
const (
	EventAgentMS   = "muster_agent_ms"
	EventOverageMS = "muster_overage_ms"
)

// Catalog is what Stripe calls our meters and prices. Keys are agent_ms, overage_ms and, for prices, the paid plans' ids.
type Catalog struct {
	Meters map[string]string `json:"meters"`
	Prices map[string]string `json:"prices"`
}

// tier is a step of a price: up to so many units of a month, 0 for no end.
type tier struct {
	upTo  int64
	cents float64 // per unit, at most 12 decimal places
}

// overageTiers are the ledger's, in Stripe's terms.
func overageTiers() []tier {
	tiers := make([]tier, len(store.OverageTiers))
	for i, t := range store.OverageTiers {
		tiers[i] = tier{t.UpToMS, float64(t.PicoCents) / 1e12}
	}
	return tiers
}

// item is one price and what it belongs to.
type item struct {
	key       string // in Catalog.Prices
	lookupKey string
	productID string
	product   string // name
	unit      string // label of a unit, empty for none
	meter     string // Stripe's id; empty for a licensed price
	cents     int64  // per unit
	tiers     []tier // in place of cents
}

// Setup makes what is missing in Stripe and returns everything. A price whose amount has changed gets a successor, which
// takes over its lookup key; subscriptions keep the old one until they are moved.
func (p *Pusher) Setup(ctx context.Context) (Catalog, error) {
	c := Catalog{Meters: map[string]string{}, Prices: map[string]string{}}
	for key, m := range map[string]struct{ event, name string }{
		"agent_ms": {EventAgentMS, "Agent time (ms)"}, "overage_ms": {EventOverageMS, "Agent time past the plan (ms)"},
	} {
		id, err := ensure(ctx, p.Pause, func() (string, error) { return p.account.meterOf(ctx, m.event) },
			func() error { return p.account.createMeter(ctx, m.event, m.name) })
		if err != nil {
			return c, fmt.Errorf("set up meter %s: %w", m.event, err)
		}
		c.Meters[key] = id
	}
	items := []item{
		{key: "agent_ms", lookupKey: EventAgentMS, productID: "muster_agent_time", product: "Agent time", unit: "ms", meter: c.Meters["agent_ms"]},
		{key: "overage_ms", lookupKey: EventOverageMS, productID: "muster_overage", product: "Agent time past the plan", unit: "ms",
			meter: c.Meters["overage_ms"], tiers: overageTiers()},
	}
	for _, plan := range store.Plans {
		if plan.PriceCents > 0 {
			items = append(items, item{key: plan.ID, lookupKey: "muster_plan_" + plan.ID, productID: "muster_plan_" + plan.ID,
				product: "Muster " + plan.Name, cents: plan.PriceCents})
		}
	}
	for _, it := range items {
		_, err := ensure(ctx, p.Pause, func() (string, error) { return p.account.product(ctx, it.productID) },
			func() error { return p.account.createProduct(ctx, it) })
		if err != nil {
			return c, fmt.Errorf("set up product %s: %w", it.productID, err)
		}
		id, err := ensure(ctx, p.Pause, func() (string, error) { return p.account.price(ctx, it) },
			func() error { return p.account.createPrice(ctx, it) })
		if err != nil {
			return c, fmt.Errorf("set up price %s: %w", it.lookupKey, err)
		}
		c.Prices[it.key] = id
	}
	return c, nil
}

// ensureTries bounds how often a passing failure is met with another look.
const ensureTries = 6

// ensure finds an object or makes it and looks again: whether a creation took effect, somebody else was faster or the
// reply was lost, the look tells.
func ensure(ctx context.Context, pause time.Duration, find func() (string, error), create func() error) (string, error) {
	var noMeter errNoMeter
	var last error
	for try := range ensureTries {
		if try > 0 && last != nil {
			select {
			case <-ctx.Done():
				return "", errors.Join(ctx.Err(), last)
			case <-time.After(pause << (try - 1)):
			}
		}
		id, err := find()
		if id != "" && err == nil {
			return id, nil
		}
		if err != nil && !errors.As(err, &noMeter) {
			if last = err; kindOf(err) != passing {
				return "", err
			}
			continue
		}
		created := create()
		if created != nil && kindOf(created) == permanent && last != nil && kindOf(last) == permanent {
			return "", created // refused twice, and not because it exists
		}
		last = created
		if created != nil && kindOf(created) == fatal {
			return "", created
		}
	}
	return "", fmt.Errorf("not there after %d tries: %w", ensureTries, last)
}

func (a *account) createMeter(ctx context.Context, event, name string) error {
	params := &stripe.BillingMeterParams{DisplayName: stripe.String(name), EventName: stripe.String(event),
		EventTimeWindow:    stripe.String(string(stripe.BillingMeterEventTimeWindowDay)),
		DefaultAggregation: &stripe.BillingMeterDefaultAggregationParams{Formula: stripe.String(string(stripe.BillingMeterDefaultAggregationFormulaSum))},
		CustomerMapping:    &stripe.BillingMeterCustomerMappingParams{Type: stripe.String("by_id"), EventPayloadKey: stripe.String("stripe_customer_id")},
		ValueSettings:      &stripe.BillingMeterValueSettingsParams{EventPayloadKey: stripe.String("value")}}
	params.Context = ctx
	_, err := a.api.BillingMeters.New(params)
	return err
}

// product returns the id when the product exists and is active.
func (a *account) product(ctx context.Context, id string) (string, error) {
	params := &stripe.ProductParams{}
	params.Context = ctx
	product, err := a.api.Products.Get(id, params)
	var e *stripe.Error
	switch {
	case errors.As(err, &e) && e.HTTPStatusCode == http.StatusNotFound:
		return "", nil
	case err != nil:
		return "", err
	case !product.Active:
		return "", fmt.Errorf("product %s is archived in Stripe; make it active again", id)
	}
	return product.ID, nil
}

func (a *account) createProduct(ctx context.Context, it item) error {
	params := &stripe.ProductParams{ID: stripe.String(it.productID), Name: stripe.String(it.product)}
	if it.unit != "" {
		params.UnitLabel = stripe.String(it.unit)
	}
	params.Context = ctx
	_, err := a.api.Products.New(params)
	return err
}

// price returns the id of the active price under the lookup key, empty when there is none or its amount is another.
func (a *account) price(ctx context.Context, it item) (string, error) {
	params := &stripe.PriceListParams{Active: stripe.Bool(true), LookupKeys: stripe.StringSlice([]string{it.lookupKey})}
	params.Context = ctx
	params.AddExpand("data.tiers")
	prices := a.api.Prices.List(params)
	for prices.Next() {
		if found := prices.Price(); it.matches(found) {
			return found.ID, nil
		}
	}
	return "", prices.Err()
}

// matches reports whether a price charges what it should.
func (it item) matches(p *stripe.Price) bool {
	meter := ""
	if p.Recurring != nil {
		meter = p.Recurring.Meter
	}
	if p.Currency != stripe.CurrencyUSD || p.Recurring == nil || p.Recurring.Interval != stripe.PriceRecurringIntervalMonth || meter != it.meter {
		return false
	}
	if len(it.tiers) == 0 {
		return p.BillingScheme == stripe.PriceBillingSchemePerUnit && p.UnitAmountDecimal == float64(it.cents)
	}
	if p.BillingScheme != stripe.PriceBillingSchemeTiered || len(p.Tiers) != len(it.tiers) {
		return false
	}
	for i, t := range it.tiers {
		if p.Tiers[i].UpTo != t.upTo || p.Tiers[i].UnitAmountDecimal != t.cents {
			return false
		}
	}
	return true
}

func (a *account) createPrice(ctx context.Context, it item) error {
	params := &stripe.PriceParams{Currency: stripe.String(string(stripe.CurrencyUSD)), Product: stripe.String(it.productID),
		LookupKey: stripe.String(it.lookupKey), TransferLookupKey: stripe.Bool(true),
		Recurring: &stripe.PriceRecurringParams{Interval: stripe.String(string(stripe.PriceRecurringIntervalMonth))}}
	if it.meter != "" {
		params.Recurring.UsageType = stripe.String(string(stripe.PriceRecurringUsageTypeMetered))
		params.Recurring.Meter = stripe.String(it.meter)
	}
	if len(it.tiers) == 0 {
		params.UnitAmount = stripe.Int64(it.cents)
	} else {
		params.BillingScheme = stripe.String(string(stripe.PriceBillingSchemeTiered))
		params.TiersMode = stripe.String(string(stripe.PriceTiersModeGraduated))
		for _, t := range it.tiers {
			tp := &stripe.PriceTierParams{UnitAmountDecimal: stripe.Float64(t.cents)}
			if t.upTo == 0 {
				tp.UpToInf = stripe.Bool(true)
			} else {
				tp.UpTo = stripe.Int64(t.upTo)
			}
			params.Tiers = append(params.Tiers, tp)
		}
	}
	params.Context = ctx
	_, err := a.api.Prices.New(params)
	return err
}
