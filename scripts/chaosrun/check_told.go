//go:build unix

package main

import (
	"maps"
	"slices"
)

// What schedules send and what webhooks tell.

// schedule is one, with what became of its occurrences.
type schedule struct {
	made, ceased event
	runs         []event
}

const everyMinute = 60_000 // milliseconds: how often all of them occur

func (c *checker) readSchedule(e event) {
	s := c.schedules[e.Schedule]
	if s == nil {
		s = &schedule{}
		c.schedules[e.Schedule] = s
	}
	switch e.What {
	case planned:
		s.made = e
	case ceased:
		s.ceased = e
	case occurred:
		s.runs = append(s.runs, e)
	}
}

// occurrences: each minute of a schedule's life is in one run, and each that is sent has one task.
func (c *checker) occurrences() {
	tasks := map[string]map[string]bool{} // schedule → tasks that bear it
	for task, l := range c.lives {
		if id := l.stored.Schedule; id != "" {
			if tasks[id] == nil {
				tasks[id] = map[string]bool{}
			}
			tasks[id][task] = true
		}
	}
	for id, s := range c.schedules {
		slices.SortFunc(s.runs, func(a, b event) int { return int(a.From - b.From) })
		covered := int64(0)
		for i, r := range s.runs {
			covered += int64(r.Count)
			if i > 0 && r.From != s.runs[i-1].Until+everyMinute || r.Until != r.From+everyMinute*int64(r.Count-1) {
				c.broken(ruleSchedules, "%s has a run for %d to %d, %d occurrences, after one that ends %d", id, r.From, r.Until, r.Count, s.runs[max(i-1, 0)].Until)
			}
			if r.Status == "missed" {
				c.Missed += r.Count
				if r.Code == "" || r.Task != "" {
					c.broken(ruleSchedules, "%s missed %d without a reason, or with a task", id, r.From)
				}
				continue
			}
			c.Sent++
			if !tasks[id][r.Task] || len(c.finals[r.Task]) != 1 || c.finals[r.Task][0].Status != "succeeded" {
				c.broken(ruleSchedules, "%s sent a task at %d that is not there, is another occurrence's too, or has not succeeded: %q", id, r.From, r.Task)
			}
			delete(tasks[id], r.Task)
		}
		for _, task := range slices.Sorted(maps.Keys(tasks[id])) {
			c.broken(ruleSchedules, "%s sent %s for no occurrence", id, task)
		}
		// The minute that has just begun may not have been decided yet, and one more may have been while the clock was ahead.
		if lived := s.ceased.At - s.made.At; s.ceased.What != "" && (covered < lived/everyMinute-1 || covered > lived/everyMinute+2) {
			c.broken(ruleSchedules, "%s has decided %d occurrences in %d ms", id, covered, lived)
		}
	}
}

func (c *checker) readTold(e event) {
	if e.What == hooked {
		c.hooked[e.WS] = true
		return
	}
	if e.Note != "" || e.Hook == "" {
		c.broken(ruleWebhooks, "%s was sent an event that its signature does not fit: %s %s", e.WS, e.Hook, e.Note)
	}
	ids := c.told[e.Task]
	if ids == nil {
		ids = map[string]string{}
		c.told[e.Task] = ids
	}
	before, again := ids[e.Hook]
	if again {
		c.ToldAgain++
	}
	if again && before != e.Status {
		c.broken(ruleWebhooks, "%s is told as %s and as %s under one id", e.Task, before, e.Status)
	}
	ids[e.Hook] = e.Status
}

// webhooks: each end of a task in a workspace that wants to know is told under an id of its own, and nothing else is.
func (c *checker) webhooks() {
	for task, l := range c.lives {
		var ends []string
		for _, e := range l.ends {
			if c.hooked[c.names[e.Workspace]] {
				ends = append(ends, e.Status)
			}
		}
		events := slices.Sorted(maps.Values(c.told[task]))
		if slices.Sort(ends); !slices.Equal(ends, events) {
			c.broken(ruleWebhooks, "%s ended as %v and was told as %v", task, ends, events)
		}
		c.Told += len(ends)
	}
	for task := range c.told {
		if c.lives[task] == nil {
			c.broken(ruleWebhooks, "%q was told, of which the ledger knows nothing", task)
		}
	}
}
