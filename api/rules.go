package api

import (
	"encoding/json"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// rules are the limits in a field's struct tags. The names are JSON Schema's, and so is their meaning; those with the
// prefix "items." bind the elements of an array or a map.
type rules struct {
	required             bool
	nullable             string // what null does: "true" unsets the field, "false" is refused; "": the field is as if absent
	minimum, maximum     *int64
	minLength, maxLength *int // characters
	minItems, maxItems   *int
	maxProperties        *int
	enum                 []string
	pattern              string
	itemEnum             []string
	itemMaxLength        *int
}

func rulesOf(tag reflect.StructTag) rules {
	number := func(name string) *int64 {
		text, ok := tag.Lookup(name)
		if !ok {
			return nil
		}
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			panic("struct tag " + name + " of a request type: " + err.Error()) // a mistake in the source
		}
		return &n
	}
	length := func(name string) *int {
		if n := number(name); n != nil {
			i := int(*n)
			return &i
		}
		return nil
	}
	list := func(name string) []string {
		if text := tag.Get(name); text != "" {
			return strings.Split(text, ",")
		}
		return nil
	}
	return rules{
		required: tag.Get("required") == "true", nullable: tag.Get("nullable"), minimum: number("minimum"), maximum: number("maximum"),
		minLength: length("minLength"), maxLength: length("maxLength"), minItems: length("minItems"), maxItems: length("maxItems"),
		maxProperties: length("maxProperties"), enum: list("enum"), pattern: tag.Get("pattern"),
		itemEnum: list("items.enum"), itemMaxLength: length("items.maxLength"),
	}
}

// element are the rules of an array's or a map's elements.
func (r rules) element() rules { return rules{enum: r.itemEnum, maxLength: r.itemMaxLength} }

// wrongs collects what is wrong with a request's fields.
type wrongs interface {
	wrong(path, format string, args ...any)
}

func (r rules) checkText(w wrongs, path, text string) {
	n := utf8.RuneCountInString(text)
	switch {
	case r.minLength != nil && n < *r.minLength:
		if n == 0 {
			w.wrong(path, "must not be empty")
		} else {
			w.wrong(path, "must have at least %d characters", *r.minLength)
		}
	case r.maxLength != nil && n > *r.maxLength:
		w.wrong(path, "must have at most %d characters", *r.maxLength)
	case r.enum != nil && !slices.Contains(r.enum, text):
		w.wrong(path, "must be one of %s", strings.Join(r.enum, ", "))
	case r.pattern != "" && !matches(r.pattern, text):
		w.wrong(path, "must match %s", r.pattern)
	}
}

func (r rules) checkInt(w wrongs, path string, n int64) {
	if (r.minimum != nil && n < *r.minimum) || (r.maximum != nil && n > *r.maximum) {
		switch {
		case r.maximum == nil:
			w.wrong(path, "must be at least %d", *r.minimum)
		case r.minimum == nil:
			w.wrong(path, "must be at most %d", *r.maximum)
		default:
			w.wrong(path, "must be from %d to %d", *r.minimum, *r.maximum)
		}
	}
}

// checkTime reads an RFC 3339 time.
func (r rules) checkTime(w wrongs, path, text string) (at time.Time, ok bool) {
	at, err := time.Parse(time.RFC3339, text)
	if err != nil || at.Year() < 1970 {
		w.wrong(path, "must be an RFC 3339 time such as 2026-01-31T23:59:59Z")
		return time.Time{}, false
	}
	return at.UTC(), true
}

func (r rules) count(w wrongs, path string, n int, what string, limit *int) {
	if limit != nil && n > *limit {
		w.wrong(path, "must have at most %d %s", *limit, what)
	}
}

// kind names the JSON type that a Go value is read from.
func (r rules) kind(v reflect.Value) string {
	switch v.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Int, reflect.Int64:
		return "a whole number"
	case reflect.Bool:
		return "a boolean"
	case reflect.Slice:
		return "an array"
	case reflect.Pointer:
		return "a string"
	}
	return "an object"
}

// jsonObject is a JSON object of the client's own, passed on as it is.
type jsonObject struct{ json.RawMessage }

// JSONSchemaBytes tells OpenAPI that it is an object of any content.
func (jsonObject) JSONSchemaBytes() ([]byte, error) { return []byte(`{"type": "object"}`), nil }

// MarshalJSON writes an absent object as {}.
func (o jsonObject) MarshalJSON() ([]byte, error) {
	if len(o.RawMessage) == 0 {
		return []byte("{}"), nil
	}
	return o.RawMessage, nil
}
