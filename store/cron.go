package store

import (
	"strings"
	"time"
	_ "time/tzdata" // so that a machine without the database knows the zones, and all machines the same

	"github.com/robfig/cron/v3"
)

// Cron is when a schedule occurs: an expression of five fields (minute, hour, day of month, month, day of week) or @hourly,
// @daily, @weekly, @monthly, @yearly, on the wall clocks of a time zone. As with every cron, a day fits when either day field
// does, if both are restricted.
//
// Where clocks are changed, what counts is whether the hour is fixed. With a fixed hour each time of the day occurs once: one
// that the clocks skip occurs at the moment they are put forward, one that they show twice at the first. With a hour field
// that begins with * time simply passes: nothing occurs in the hour that is skipped, and what occurs in one that is shown twice
// does so twice.
type Cron struct {
	spec  *cron.SpecSchedule // of UTC when fixed: wall clocks are computed as if they were UTC's
	loc   *time.Location
	fixed bool
}

var cronParser = cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor)

// ParseCron reads an expression and an IANA time zone. Invalid, with the field, when either is none, or when the expression
// fits no day of the next five years.
func ParseCron(expression, timezone string) (*Cron, error) {
	loc, err := time.LoadLocation(timezone)
	if err != nil || timezone == "" || timezone == "Local" {
		return nil, &Error{Kind: Invalid, Field: "timezone", Message: "must be an IANA time zone such as UTC or Europe/Berlin"}
	}
	wrong := &Error{Kind: Invalid, Field: "cron", Message: "must be five fields such as 30 6 * * 1-5 (minute, hour, day of month, month, day of week), or @hourly, @daily, @weekly, @monthly, @yearly"}
	if strings.Contains(expression, "TZ=") { // the parser takes a zone here
		return nil, wrong
	}
	parsed, err := cronParser.Parse(expression)
	if err != nil {
		return nil, wrong
	}
	spec, ok := parsed.(*cron.SpecSchedule)
	if !ok { // @every has no wall clock
		return nil, wrong
	}
	hour := "0"
	if fields := strings.Fields(expression); len(fields) == 5 {
		hour = fields[1]
	} else if expression == "@hourly" {
		hour = "*"
	}
	c := &Cron{spec: spec, loc: loc, fixed: hour[0] != '*' && hour[0] != '?'}
	if spec.Location = loc; c.fixed {
		spec.Location = time.UTC
	}
	if c.Next(time.Now()).IsZero() {
		return nil, &Error{Kind: Invalid, Field: "cron", Message: "never occurs"}
	}
	return c, nil
}

// Next is the first occurrence after a moment; the zero time when there is none in five years.
func (c *Cron) Next(after time.Time) time.Time {
	after = after.In(c.loc)
	if !c.fixed {
		return c.spec.Next(after)
	}
	for wall := c.spec.Next(wallOf(after)); !wall.IsZero(); wall = c.spec.Next(wall) {
		if at := c.at(wall); at.After(after) {
			return at
		}
	}
	return time.Time{}
}

// wallOf is what the clocks show, as if it were UTC.
func wallOf(t time.Time) time.Time {
	_, offset := t.Zone()
	return t.UTC().Add(time.Duration(offset) * time.Second)
}

// at is the first moment at which the clocks show wall, or, when they skip it, the one at which they are put forward.
func (c *Cron) at(wall time.Time) time.Time {
	var read [2]time.Time // by the offsets before and after a change nearby
	for i, near := range []time.Duration{-24 * time.Hour, 24 * time.Hour} {
		_, offset := wall.Add(near).In(c.loc).Zone()
		read[i] = wall.Add(-time.Duration(offset) * time.Second).In(c.loc)
		if wallOf(read[i]).Equal(wall) {
			return read[i]
		}
	}
	start, _ := read[0].ZoneBounds()
	return start
}

// shortest is the least time between two occurrences, changes of the clocks aside, told from the next 1,500 or of the next
// 400 days.
func (c *Cron) shortest(from time.Time) time.Duration {
	plain := *c.spec
	plain.Location = time.UTC
	c = &Cron{spec: &plain, loc: time.UTC, fixed: true}
	least := 400 * 24 * time.Hour
	end := from.Add(least)
	last := c.Next(from)
	for n := 0; n < 1500 && !last.IsZero() && last.Before(end); n++ {
		next := c.Next(last)
		if next.IsZero() {
			break
		}
		least, last = min(least, next.Sub(last)), next
	}
	return least
}
