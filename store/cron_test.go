package store_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/generic-corp/muster/store"
)

// occurrences lists the next n, as local times with their offsets.
func occurrences(t *testing.T, expression, zone, after string, n int) []string {
	t.Helper()
	c, err := store.ParseCron(expression, zone)
	if err != nil {
		t.Fatalf("%s in %s: %v", expression, zone, err)
	}
	at, err := time.Parse(time.RFC3339, after)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for range n {
		next := c.Next(at)
		if !next.After(at) {
			t.Fatalf("%s: %s does not come after %s", expression, next, at)
		}
		at = next
		list = append(list, at.Format("01-02 15:04-0700"))
	}
	return list
}

func TestCronOverChangesOfTheClocks(t *testing.T) {
	t.Parallel()
	const newYork, spring, autumn = "America/New_York", "2027-03-13T12:00:00-05:00", "2027-11-06T12:00:00-04:00" // the clocks change the next night at 2
	for name, c := range map[string]struct {
		cron, zone, after string
		want              string
	}{
		"AFixedTimeThatIsSkippedOccursWhenTheClocksAreChanged": {"30 2 * * *", newYork, spring, "03-14 03:00-0400, 03-15 02:30-0400"},
		"TimesThatAreSkippedTogetherOccurOnce":                 {"0,30 2 * * *", newYork, spring, "03-14 03:00-0400, 03-15 02:00-0400, 03-15 02:30-0400"},
		"AndOnceWithTheTimeBehindThem":                         {"0 2,3 * * *", newYork, spring, "03-14 03:00-0400, 03-15 02:00-0400"},
		"AFixedTimeThatIsShownTwiceOccursAtTheFirst":           {"30 1 * * *", newYork, autumn, "11-07 01:30-0400, 11-08 01:30-0500"},
		"AlsoWhenOneAsksBetweenTheTwo":                         {"30 1 * * *", newYork, "2027-11-07T01:10:00-05:00", "11-08 01:30-0500"},
		"ATimeOfTheSecondHourBehindTheChange":                  {"30 2 * * *", newYork, autumn, "11-07 02:30-0500, 11-08 02:30-0500"},
		"EveryHourPassesOverTheSkippedOne":                     {"15 * * * *", newYork, "2027-03-14T00:30:00-05:00", "03-14 01:15-0500, 03-14 03:15-0400, 03-14 04:15-0400"},
		"EveryHourOccursTwiceInTheDoubledOne":                  {"15 * * * *", newYork, "2027-11-07T00:30:00-04:00", "11-07 01:15-0400, 11-07 01:15-0500, 11-07 02:15-0500"},
		"EveryHalfHourKeepsItsPace":                            {"*/30 * * * *", newYork, "2027-11-07T01:00:00-04:00", "11-07 01:30-0400, 11-07 01:00-0500, 11-07 01:30-0500"},
		"EveryTwoHoursLeavesOutTheSkippedOne":                  {"0 */2 * * *", newYork, "2027-03-13T23:00:00-05:00", "03-14 00:00-0500, 03-14 04:00-0400"},
		"MidnightThatIsSkipped":                                {"0 0 * * *", "America/Sao_Paulo", "2018-11-03T12:00:00-03:00", "11-04 01:00-0200, 11-05 00:00-0200"},
		"MidnightThatIsShownTwice":                             {"@daily", "America/Havana", "2026-10-31T12:00:00-04:00", "11-01 00:00-0400, 11-02 00:00-0500"},
		"AChangeOfHalfAnHour":                                  {"15,40 2 * * *", "Australia/Lord_Howe", "2026-10-03T12:00:00+10:30", "10-04 02:30+1100, 10-04 02:40+1100, 10-05 02:15+1100"},
		"ADateThatWasSkipped":                                  {"0 9 * * *", "Pacific/Apia", "2011-12-29T12:00:00-10:00", "12-31 00:00+1400, 12-31 09:00+1400"},
		"WithoutChanges":                                       {"30 6 * * 1-5", "UTC", "2026-11-27T12:00:00Z", "11-30 06:30+0000, 12-01 06:30+0000"},
		"EitherDay":                                            {"0 0 13 * 5", "UTC", "2026-11-01T00:00:00Z", "11-06 00:00+0000, 11-13 00:00+0000, 11-20 00:00+0000"},
		"LeapDays":                                             {"0 0 29 2 *", "UTC", "2026-11-01T00:00:00Z", "02-29 00:00+0000"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want := strings.Split(c.want, ", ")
			if got := occurrences(t, c.cron, c.zone, c.after, len(want)); !slices.Equal(got, want) {
				t.Errorf("%s in %s: %v, want %v", c.cron, c.zone, got, want)
			}
		})
	}
}

func TestCronRefusesWhatItCannotKeep(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ cron, zone, field string }{
		{"", "UTC", "cron"}, {"* * * *", "UTC", "cron"}, {"* * * * * *", "UTC", "cron"}, {"60 * * * *", "UTC", "cron"}, {"*/0 * * * *", "UTC", "cron"},
		{"@every 1h", "UTC", "cron"}, {"@reboot", "UTC", "cron"}, {"TZ=Asia/Tokyo 0 0 * * *", "UTC", "cron"}, {"CRON_TZ=UTC", "UTC", "cron"}, {"TZ=", "UTC", "cron"},
		{"0 0 30 2 *", "UTC", "cron"}, {"5-1 * * * *", "UTC", "cron"}, {"@daily", "", "timezone"}, {"@daily", "Local", "timezone"},
		{"@daily", "Mars/Olympus", "timezone"}, {"@daily", "../../etc/passwd", "timezone"},
	} {
		_, err := store.ParseCron(c.cron, c.zone)
		var refused *store.Error
		if e, ok := err.(*store.Error); ok {
			refused = e
		}
		if refused == nil || refused.Kind != store.Invalid || refused.Field != c.field {
			t.Errorf("%q in %q: %v", c.cron, c.zone, err)
		}
	}
	for _, zone := range []string{"UTC", "Europe/Berlin", "Asia/Kathmandu", "America/Argentina/Buenos_Aires"} {
		for _, expression := range []string{"* * * * *", "0 9 * jan-mar MON", "@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually", "*/5 8-18 1,15 * *"} {
			if got := occurrences(t, expression, zone, "2026-11-24T03:00:00Z", 3); len(got) != 3 {
				t.Error(fmt.Sprint(expression, zone, got))
			}
		}
	}
}
