package provider

import (
	"bytes"
	_ "embed" // the table
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"
)

// prices.json is the published price list, as read on 2026-11-23. All amounts are integer micro-dollars per million
// tokens, so "input": 2000000 is $2. The file and an operator's override have the same form:
//
//	{"default": {"input", "output", "cache_read", "cache_write"},
//	 "prices": [{"provider", "model", "effective_from": "2026-10-07", "input", "output", "cache_read", "cache_write",
//	             "long_prompt": {"above_tokens", "input", "output", "cache_read", "cache_write"}}]}
//
// A model matches a row that has its name, with or without a trailing date (gpt-4o-2024-08-06), or a row whose name is
// a prefix that ends in "*". The longest match wins, and of its rows the latest that has begun (UTC); before the first
// of them has begun that one holds. long_prompt replaces the row's prices for a call whose whole prompt, cache
// included, is longer.
//
// An override is asked first, whatever is more exact in the embedded table: {"provider": "openai", "model": "*", …: 0}
// is right for a local server that costs nothing by the token. Rows of it that have not begun are passed over.
//
//go:embed prices.json
var embeddedPrices []byte

const (
	maxPrice   = 1_000_000_000 // micro-dollars per million tokens: $1,000
	maxTokens  = 1_000_000_000 // counted per call and kind; keeps the arithmetic inside int64
	perMillion = 1_000_000
)

// rates are micro-dollars per million tokens.
type rates struct {
	Input      *int64 `json:"input"`
	Output     *int64 `json:"output"`
	CacheRead  *int64 `json:"cache_read"`
	CacheWrite *int64 `json:"cache_write"`
}

type longRates struct {
	Above int64 `json:"above_tokens"`
	rates
}

type priceRow struct {
	Provider      string `json:"provider"`
	Model         string `json:"model"`
	EffectiveFrom string `json:"effective_from"`
	rates
	Long *longRates `json:"long_prompt,omitempty"`

	from time.Time
}

type priceFile struct {
	Default *rates     `json:"default"`
	Prices  []priceRow `json:"prices"`
}

// Prices is a price list. It is immutable.
type Prices struct {
	embedded, override []priceRow
	fallback           rates
}

// LoadPrices reads the embedded table and, unless path is "", the operator's override. Its error lists all mistakes.
func LoadPrices(path string) (*Prices, error) {
	if path == "" {
		return parsePrices(nil)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read price table: %w", err)
	}
	p, err := parsePrices(b)
	if err != nil {
		return nil, fmt.Errorf("price table %s: %w", path, err)
	}
	return p, nil
}

func parsePrices(override []byte) (*Prices, error) {
	base, err := decodePrices(embeddedPrices)
	if err != nil {
		return nil, fmt.Errorf("embedded price table: %w", err)
	}
	p := &Prices{embedded: base.Prices, fallback: *base.Default}
	if override == nil {
		return p, nil
	}
	over, err := decodePrices(override)
	if err != nil {
		return nil, err
	}
	p.override = over.Prices
	if over.Default != nil {
		p.fallback = *over.Default
	}
	return p, nil
}

func decodePrices(b []byte) (priceFile, error) {
	var f priceFile
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&f); err != nil {
		return f, fmt.Errorf("not a price table: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return f, errors.New("not a price table: more follows the first value")
	}
	var mistakes []error
	wrong := func(where, format string, args ...any) {
		mistakes = append(mistakes, fmt.Errorf("%s: %s", where, fmt.Sprintf(format, args...)))
	}
	if f.Default != nil {
		f.Default.check("default", wrong)
	}
	seen := map[string]int{}
	for i := range f.Prices {
		r := &f.Prices[i]
		where := fmt.Sprintf("prices[%d]", i)
		if r.Provider == "" {
			wrong(where, "provider: must not be empty")
		}
		if r.Model == "" || strings.Contains(strings.TrimSuffix(r.Model, "*"), "*") {
			wrong(where, "model: want a name, or a prefix with one * at its end, not %q", r.Model)
		}
		var err error
		if r.from, err = time.Parse(time.DateOnly, r.EffectiveFrom); err != nil {
			wrong(where, "effective_from: want a date like 2026-01-31, not %q", r.EffectiveFrom)
		}
		r.check(where, wrong)
		if r.Long != nil {
			if r.Long.Above < 1 {
				wrong(where+".long_prompt", "above_tokens: must be at least 1")
			}
			r.Long.check(where+".long_prompt", wrong)
		}
		key := r.Provider + "\n" + r.Model + "\n" + r.EffectiveFrom
		if first, twice := seen[key]; twice {
			wrong(where, "the same provider, model and date as prices[%d]", first)
		} else {
			seen[key] = i
		}
	}
	return f, errors.Join(mistakes...)
}

func (r rates) check(where string, wrong func(where, format string, args ...any)) {
	for _, x := range []struct {
		name string
		v    *int64
	}{{"input", r.Input}, {"output", r.Output}, {"cache_read", r.CacheRead}, {"cache_write", r.CacheWrite}} {
		switch {
		case x.v == nil:
			wrong(where, "%s: missing", x.name)
		case *x.v < 0 || *x.v > maxPrice:
			wrong(where, "%s: must be 0..%d micro-dollars per million tokens, not %d", x.name, maxPrice, *x.v)
		}
	}
}

// Cost is what usage costs at that moment, in micro-dollars, rounded up. known is false when the table has no such
// model and the default, which is higher than most prices, was used.
func (p *Prices) Cost(provider, model string, u Usage, at time.Time) (microUSD int64, known bool) {
	row, known := p.find(provider, model, at)
	r := p.fallback
	if known {
		r = row.rates
		if row.Long != nil && u.InputTokens+u.CacheReadTokens+u.CacheWriteTokens > row.Long.Above {
			r = row.Long.rates
		}
	}
	return r.cost(u), known
}

// Ceiling is the most that a call can cost, in micro-dollars: as many tokens of input as it can be, at the dearest rate
// that input can have, and all of its output limit. A model without a price may be answered by any of the provider's.
// Only a provider that ignores the output limit, or counts more tokens than there are bytes, can go past it.
func (p *Prices) Ceiling(provider string, r Request, at time.Time) (microUSD int64) {
	in, out := r.maxInput(), r.maxTokens()
	highest := func(row priceRow) {
		microUSD = max(microUSD, row.rates.ceiling(in, out))
		if row.Long != nil && in > row.Long.Above {
			microUSD = max(microUSD, row.Long.rates.ceiling(in, out))
		}
	}
	if row, known := p.find(provider, r.Model, at); known {
		highest(row)
		return microUSD
	}
	highest(priceRow{rates: p.fallback})
	for _, rows := range [][]priceRow{p.embedded, p.override} {
		for _, row := range rows {
			if row.Provider == provider {
				highest(row)
			}
		}
	}
	return microUSD
}

// ceiling prices input at its dearest rate.
func (r rates) ceiling(in, out int64) int64 {
	dearest := max(*r.Input, *r.CacheRead, *r.CacheWrite)
	return (min(in, maxTokens)*dearest + min(out, maxTokens)**r.Output + perMillion - 1) / perMillion
}

func (r rates) cost(u Usage) int64 {
	part := func(tokens int64, price *int64) int64 { return min(max(tokens, 0), maxTokens) * *price }
	sum := part(u.InputTokens, r.Input) + part(u.OutputTokens, r.Output) +
		part(u.CacheReadTokens, r.CacheRead) + part(u.CacheWriteTokens, r.CacheWrite)
	return (sum + perMillion - 1) / perMillion
}

func (p *Prices) find(provider, model string, at time.Time) (priceRow, bool) {
	if r, ok := best(p.override, provider, model, at, false); ok {
		return r, true
	}
	return best(p.embedded, provider, model, at, true)
}

// best is the row of the longest match that holds at a moment; with early, the first row also holds before it begins.
func best(rows []priceRow, provider, model string, at time.Time, early bool) (found priceRow, ok bool) {
	score := 0
	undated := trailingDate.ReplaceAllString(model, "")
	for _, r := range rows {
		s := r.match(provider, model, undated)
		begun := !r.from.After(at)
		if s == 0 || s < score || !begun && !early {
			continue
		}
		// Of equally good matches: one that has begun before one that has not; of those the latest, else the earliest.
		better := s > score
		if !better {
			foundBegun := !found.from.After(at)
			better = begun && (!foundBegun || r.from.After(found.from)) || !begun && !foundBegun && r.from.Before(found.from)
		}
		if better {
			found, score, ok = r, s, true
		}
	}
	return found, ok
}

// match is 0 for no match, else the higher the more exact. undated is the model without a trailing date.
func (r priceRow) match(provider, model, undated string) int {
	if r.Provider != provider {
		return 0
	}
	if prefix, ok := strings.CutSuffix(r.Model, "*"); ok {
		if strings.HasPrefix(model, prefix) {
			return 1 + len(prefix)
		}
		return 0
	}
	switch r.Model {
	case model:
		return 1 << 20
	case undated:
		return 1 << 19
	}
	return 0
}

var trailingDate = regexp.MustCompile(`-20\d\d(-\d\d-\d\d|\d{4})$`)
