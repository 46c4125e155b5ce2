package api

import (
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

// Bodies are decoded strictly, because what one reader skips another obeys: exact field names, no unknown ones, no
// duplicate keys, one object, no trailing data, bounded depth. What PostgreSQL's jsonb refuses (NUL, lone surrogates,
// numbers beyond a double) is refused here, by name. All wrong fields are told at once, and the limits are read from
// the same struct tags that OpenAPI is made of, so that they cannot differ:
//
//	json:"name" required:"true" minimum maximum minLength maxLength (in characters) minItems maxItems maxProperties enum pattern nullable
//
// null stands for an absent field, but where a patch could mean something else by it (RFC 7396): there nullable:"true" makes the
// field a pointer to its zero value, which unsets it, and nullable:"false" refuses null.

// maxDepth is how deeply objects and arrays may be nested.
const maxDepth = 32

// maxFieldErrors is how many wrong fields one answer names.
const maxFieldErrors = 100

// decodeStrict reads one JSON object into the struct that dst points to. It returns the wrong fields; err is a text
// that is not one readable JSON object.
func decodeStrict(raw []byte, dst any) (fields []fieldError, err error) {
	if !utf8.Valid(raw) {
		return nil, refuse(probBadRequest, "the body is not valid UTF-8")
	}
	if !json.Valid(raw) { // grammar and trailing data; all below may trust it
		return nil, refuse(probBadRequest, "the body is not one valid JSON value")
	}
	s := &scanner{raw: raw}
	s.space()
	if s.raw[s.pos] != '{' {
		return nil, refuse(probBadRequest, "the body must be a JSON object")
	}
	s.object("", reflect.ValueOf(dst).Elem(), rules{}, 1)
	if s.err != nil {
		return nil, s.err
	}
	slices.SortStableFunc(s.fields, func(a, b fieldError) int { return strings.Compare(a.Field, b.Field) })
	return s.fields, nil
}

// scanner walks over text that json.Valid has accepted.
type scanner struct {
	raw    []byte
	pos    int
	fields []fieldError
	err    error // unreadable: ends the walk
}

func (s *scanner) wrong(path, format string, args ...any) {
	if len(s.fields) < maxFieldErrors {
		s.fields = append(s.fields, fieldError{Field: path, Detail: fmt.Sprintf(format, args...)})
	}
}

func (s *scanner) space() {
	for s.pos < len(s.raw) && strings.IndexByte(" \t\r\n", s.raw[s.pos]) >= 0 {
		s.pos++
	}
}

// value reads the next value into v. An invalid v (reflect.Value{}) only checks.
func (s *scanner) value(path string, v reflect.Value, r rules, depth int) {
	if s.err != nil {
		return
	}
	s.space()
	start := s.pos
	switch s.raw[s.pos] {
	case 'n':
		s.pos += len("null")
		switch {
		case r.nullable == "false":
			s.wrong(path, "must not be null")
		case r.nullable == "true":
			v.Set(reflect.New(v.Type().Elem()))
		}
		return
	case '{', '[':
		if depth > maxDepth {
			s.err = refuse(probBadRequest, fmt.Sprintf("the body is nested more than %d deep", maxDepth))
			return
		}
	}
	if v.IsValid() && v.Type() == typeObject {
		if s.raw[s.pos] != '{' {
			s.wrong(path, "must be an object")
		}
		s.value(path, reflect.Value{}, rules{}, depth)
		v.Set(reflect.ValueOf(jsonObject{s.raw[start:s.pos]}))
		return
	}
	if v.IsValid() && v.Kind() == reflect.Pointer && v.Type() != typeTimePointer {
		v.Set(reflect.New(v.Type().Elem()))
		v = v.Elem()
	}
	switch s.raw[s.pos] {
	case '{':
		s.object(path, v, r, depth)
	case '[':
		s.array(path, v, r, depth)
	case '"':
		s.text(path, v, r)
	case 't', 'f':
		s.boolean(path, v)
	default:
		s.number(path, v, r)
	}
}

func (s *scanner) object(path string, v reflect.Value, r rules, depth int) {
	s.pos++ // {
	var fields map[string]field
	switch {
	case !v.IsValid():
	case v.Kind() == reflect.Struct && v.Type() != typeTime:
		fields = fieldsOf(v.Type())
	case v.Kind() == reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
	default:
		s.wrong(path, "must be %s, not an object", r.kind(v))
		v = reflect.Value{}
	}
	seen := map[string]bool{}
	for s.space(); s.err == nil && s.raw[s.pos] != '}'; s.space() {
		if s.raw[s.pos] == ',' {
			s.pos++
			s.space()
		}
		name := s.key(path)
		if seen[name] {
			s.err = refuse(probBadRequest, fmt.Sprintf("the key %q stands twice in one object", clip(name)))
			return
		}
		seen[name] = true
		s.space()
		s.pos++ // :
		at := joinPath(path, clip(name))
		switch f, known := fields[name]; {
		case known:
			s.value(at, v.FieldByIndex(f.index), f.rules, depth+1)
		case fields != nil:
			s.wrong(at, "unknown field")
			s.value(at, reflect.Value{}, rules{}, depth+1)
		case v.IsValid(): // a map of strings
			element := reflect.New(v.Type().Elem()).Elem()
			if s.space(); s.raw[s.pos] == 'n' {
				s.wrong(at, "must not be null")
			}
			s.value(at, element, r.element(), depth+1)
			v.SetMapIndex(reflect.ValueOf(name), element)
		default:
			s.value(at, reflect.Value{}, rules{}, depth+1)
		}
	}
	s.pos++ // }
	if v.IsValid() && v.Kind() == reflect.Map {
		r.count(s, path, len(seen), "pairs", r.maxProperties)
	}
	for name, f := range fields {
		if f.required && (!seen[name] || v.FieldByIndex(f.index).IsZero()) && !s.told(joinPath(path, name)) {
			s.wrong(joinPath(path, name), "is required")
		}
	}
}

// told reports whether something is said about the field already.
func (s *scanner) told(path string) bool {
	for _, f := range s.fields {
		if f.Field == path {
			return true
		}
	}
	return false
}

func (s *scanner) array(path string, v reflect.Value, r rules, depth int) {
	s.pos++ // [
	if v.IsValid() && v.Kind() != reflect.Slice {
		s.wrong(path, "must be %s, not an array", r.kind(v))
		v = reflect.Value{}
	}
	n := 0
	for s.space(); s.err == nil && s.raw[s.pos] != ']'; s.space() {
		if s.raw[s.pos] == ',' {
			s.pos++
		}
		element := reflect.Value{}
		if v.IsValid() && (r.maxItems == nil || n < *r.maxItems) {
			v.Set(reflect.Append(v, reflect.Zero(v.Type().Elem())))
			element = v.Index(n)
		}
		s.space()
		if element.IsValid() && s.raw[s.pos] == 'n' {
			s.wrong(fmt.Sprintf("%s[%d]", path, n), "must not be null")
		}
		s.value(fmt.Sprintf("%s[%d]", path, n), element, r.element(), depth+1)
		n++
	}
	s.pos++ // ]
	if v.IsValid() {
		if n == 0 {
			v.Set(reflect.MakeSlice(v.Type(), 0, 0)) // present, though empty
		}
		r.count(s, path, n, "items", r.maxItems)
		if r.minItems != nil && n < *r.minItems {
			s.wrong(path, "must have at least %d items", *r.minItems)
		}
	}
}

func (s *scanner) boolean(path string, v reflect.Value) {
	truth := s.raw[s.pos] == 't'
	s.pos += len("true")
	if !truth {
		s.pos++
	}
	if !v.IsValid() {
		return
	}
	if v.Kind() != reflect.Bool {
		s.wrong(path, "must be %s, not a boolean", rules{}.kind(v))
		return
	}
	v.SetBool(truth)
}

func (s *scanner) number(path string, v reflect.Value, r rules) {
	start := s.pos
	for s.pos < len(s.raw) && strings.IndexByte("+-.0123456789eE", s.raw[s.pos]) >= 0 {
		s.pos++
	}
	literal := string(s.raw[start:s.pos])
	if !v.IsValid() { // somebody's own data: what jsonb can hold
		f, err := strconv.ParseFloat(literal, 64)
		if err != nil || math.IsInf(f, 0) || (f == 0 && strings.ContainsAny(literal[:mantissa(literal)], "123456789")) || len(literal) > 400 {
			s.wrong(path, "is a number out of range")
		}
		return
	}
	if v.Kind() != reflect.Int && v.Kind() != reflect.Int64 {
		s.wrong(path, "must be %s, not a number", r.kind(v))
		return
	}
	n, err := strconv.ParseInt(literal, 10, 64)
	if err != nil {
		s.wrong(path, "must be a whole number")
		return
	}
	r.checkInt(s, path, n)
	v.SetInt(n)
}

// mantissa is the length of a number's part before its exponent.
func mantissa(literal string) int {
	if i := strings.IndexAny(literal, "eE"); i >= 0 {
		return i
	}
	return len(literal)
}

func (s *scanner) key(path string) string {
	name, problem := s.unquote()
	if problem != "" {
		s.wrong(joinPath(path, "?"), "the name of a field %s", problem)
	}
	return name
}

func (s *scanner) text(path string, v reflect.Value, r rules) {
	text, problem := s.unquote()
	if problem != "" {
		s.wrong(path, "%s", problem)
		return
	}
	if !v.IsValid() {
		return
	}
	switch {
	case v.Type() == typeTimePointer:
		if at, ok := r.checkTime(s, path, text); ok {
			v.Set(reflect.ValueOf(&at))
		}
	case v.Kind() == reflect.String:
		r.checkText(s, path, text)
		v.SetString(text)
	default:
		s.wrong(path, "must be %s, not a string", r.kind(v))
	}
}

// unquote reads the string that begins here. problem says what the ledger could not store of it.
func (s *scanner) unquote() (text, problem string) {
	start := s.pos
	s.pos++
	escaped := false
	for ; s.raw[s.pos] != '"'; s.pos++ {
		if s.raw[s.pos] == '\\' {
			escaped = true
			s.pos++
		}
	}
	s.pos++
	quoted := s.raw[start:s.pos]
	if !escaped {
		return string(quoted[1 : len(quoted)-1]), ""
	}
	if err := json.Unmarshal(quoted, &text); err != nil {
		return "", "is not a readable string"
	}
	switch {
	case strings.ContainsRune(text, 0):
		return text, "must not contain NUL characters"
	case loneSurrogate(quoted):
		return text, "must not contain half of a surrogate pair"
	}
	return text, ""
}

// loneSurrogate reports whether an escape in the quoted string is half of a pair.
func loneSurrogate(quoted []byte) bool {
	unit := func(i int) rune {
		if i+6 > len(quoted) || quoted[i] != '\\' || quoted[i+1] != 'u' {
			return -1
		}
		n, err := strconv.ParseUint(string(quoted[i+2:i+6]), 16, 32)
		if err != nil {
			return -1
		}
		return rune(n)
	}
	for i := 0; i < len(quoted); i++ {
		if quoted[i] != '\\' {
			continue
		}
		if u := unit(i); utf16.IsSurrogate(u) {
			if utf16.DecodeRune(u, unit(i+6)) == utf8.RuneError {
				return true
			}
			i += 6
		}
		i++
	}
	return false
}

var (
	typeTime        = reflect.TypeFor[time.Time]()
	typeTimePointer = reflect.TypeFor[*time.Time]()
	typeObject      = reflect.TypeFor[jsonObject]()
)

// field is one JSON field of a request struct.
type field struct {
	index []int
	rules
}

var fieldCache sync.Map // reflect.Type → map[string]field

// fieldsOf reads the JSON fields of a struct type, embedded ones included.
func fieldsOf(t reflect.Type) map[string]field {
	if known, ok := fieldCache.Load(t); ok {
		return known.(map[string]field)
	}
	fields := map[string]field{}
	for _, f := range reflect.VisibleFields(t) {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && name != "-" {
			fields[name] = field{index: f.Index, rules: rulesOf(f.Tag)}
		}
	}
	fieldCache.Store(t, fields)
	return fields
}

func joinPath(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// clip keeps a client's own text in an answer short.
func clip(s string) string {
	if len(s) > 64 {
		return strings.ToValidUTF8(s[:64], "") + "…"
	}
	return s
}

var patterns sync.Map // string → *regexp.Regexp

func matches(pattern, text string) bool {
	re, ok := patterns.Load(pattern)
	if !ok {
		re, _ = patterns.LoadOrStore(pattern, regexp.MustCompile(pattern))
	}
	return re.(*regexp.Regexp).MatchString(text)
}
