//go:build unix

package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/generic-corp/muster/store"
)

// What customers do beside sending tasks: they cancel, retry and replay, have schedules, and are told by webhook.

// follow does what a customer does with a task that was acknowledged.
func (l *load) follow(t *tenant, w wish, task string) {
	if w.cancelIn == 0 && !w.retry && t != l.long {
		l.mu.Lock()
		l.idle[task] = t
		l.mu.Unlock()
	}
	if w.cancelIn > 0 {
		pause(l.ctx, w.cancelIn)
		cancel := event{What: asks, Kind: kindCancel, WS: t.name, Task: task}
		l.demand(t, "cancel "+task, "/v1/tasks/"+task+"/cancel", nil, cancel)
		if w.twice {
			l.demand(t, "cancel again "+task, "/v1/tasks/"+task+"/cancel", nil, cancel)
		}
	}
	if !w.retry {
		return
	}
	if status := l.awaitEnd(t, task); status == store.StatusFailed || status == store.StatusCanceled {
		l.demand(t, "retry "+task, "/v1/tasks/"+task+"/retry", nil, event{What: asks, Kind: kindRetry, WS: t.name, Task: task})
	}
}

// cancelOne lets a customer cancel a task that a worker holds to which something was just done: when it is taken back from there it
// must not be started again.
func (l *load) cancelOne(held []heldLease) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, h := range held {
		task := taskID(h.Task)
		if t := l.idle[task]; t != nil {
			delete(l.idle, task)
			l.senders.Go(func() {
				l.demand(t, "cancel "+task, "/v1/tasks/"+task+"/cancel", nil, event{What: asks, Kind: kindCancel, WS: t.name, Task: task})
			})
			return
		}
	}
}

// followGroup does it with a group.
func (l *load) followGroup(t *tenant, g *group, tasks []string) {
	chosen := map[string]any{"metadata": map[string]string{"group": g.name}}
	switch g.kind {
	case kindCancel:
		pause(l.ctx, g.in)
		l.demand(t, "cancel "+g.name, "/v1/tasks/cancel", chosen, event{What: asks, Kind: kindCancel, WS: t.name, Group: g.name})
	case kindRetry:
		for _, task := range tasks {
			l.awaitEnd(t, task)
		}
		l.demand(t, "replay "+g.name, "/v1/dead-letters/replay", chosen, event{What: asks, Kind: kindRetry, WS: t.name, Group: g.name})
	}
}

// demand asks under the key until it is answered, and records request and answer.
func (l *load) demand(t *tenant, key, path string, body any, e event) {
	if l.ctx.Err() != nil {
		return
	}
	e.Key = key
	l.s.hist.add(e)
	var said struct {
		Status string
		Count  int
	}
	a, err := l.insist(t, key, path, body, &said)
	if !a.final() {
		return // the run ends
	}
	if err != nil && a.status != http.StatusConflict {
		l.s.host.Errorf("%s: %v", key, err)
	}
	l.s.hist.add(event{What: settled, Key: key, Status: fmt.Sprint(a.status), Becomes: said.Status, Count: said.Count})
}

func (l *load) statusOf(ctx context.Context, t *tenant, task string) (string, error) {
	var said struct{ Status string }
	_, err := l.request(ctx, "GET", "/v1/tasks/"+task, t.key, "", nil, &said)
	return said.Status, err
}

// awaitEnd looks now and then until the task has ended, or the run ends.
func (l *load) awaitEnd(t *tenant, task string) (status string) {
	for wait := 200 * time.Millisecond; l.ctx.Err() == nil; wait = min(2*wait, 2*time.Second) {
		if status, err := l.statusOf(l.ctx, t, task); err == nil && store.Final(status) {
			return status
		}
		pause(l.ctx, wait)
	}
	return ""
}

// furnish gives every second customer a webhook, and the first of each plan that allows it a schedule of every minute.
func (l *load) furnish(ctx context.Context) error {
	plan := ""
	for i, t := range l.tenants {
		if i%2 == 0 {
			var made struct{ Secret string }
			if _, err := l.request(ctx, "POST", "/v1/webhooks", t.key, "", map[string]string{"url": l.s.receiver.url(t.name)}, &made); err != nil {
				return fmt.Errorf("make a webhook of %s: %w", t.name, err)
			}
			l.s.receiver.knows(t.name, made.Secret)
			l.s.hist.add(event{What: hooked, WS: t.name})
		}
		if allowed, _ := store.PlanByID(t.plan); t.plan != plan && allowed.MinScheduleSeconds <= 60 {
			var made struct{ ID string }
			if _, err := l.request(ctx, "POST", "/v1/schedules", t.key, "", map[string]any{"name": "every minute", "cron": "* * * * *",
				"missed_runs": []string{store.MissedRunAll, store.MissedSkip}[i%2],
				"task":        map[string]any{"prompt": "ws=" + t.name + " sleep=200ms tokens=10/20"}}, &made); err != nil {
				return fmt.Errorf("make a schedule of %s: %w", t.name, err)
			}
			t.schedule = made.ID
			l.s.hist.add(event{What: planned, Schedule: made.ID, WS: t.name})
		}
		plan = t.plan
	}
	return nil
}

// cease pauses the schedules, for the run to come to an end.
func (l *load) cease(ctx context.Context) error {
	for _, t := range l.tenants {
		if t.schedule == "" {
			continue
		}
		if _, err := l.request(ctx, "PATCH", "/v1/schedules/"+t.schedule, t.key, "", map[string]any{"paused": true}, nil); err != nil {
			return fmt.Errorf("pause the schedule of %s: %w", t.name, err)
		}
		l.s.hist.add(event{What: ceased, Schedule: t.schedule})
	}
	return nil
}

// readFinals reads every task's end, each schedule's occurrences, and each workspace's used time, as the customers see them.
func (l *load) readFinals(ctx context.Context) error {
	for _, t := range append(slices.Clone(l.tenants), l.long) {
		err := pages(ctx, l, t, "/v1/tasks", func(task struct {
			ID, Status string
			ScheduleID string `json:"schedule_id"`
			Error      *struct{ Code string }
		}) {
			e := event{What: final, WS: t.name, Task: task.ID, Status: task.Status, Schedule: task.ScheduleID}
			if task.Error != nil {
				e.Code = task.Error.Code
			}
			l.s.hist.add(e)
		})
		if err != nil {
			return fmt.Errorf("read the tasks of %s: %w", t.name, err)
		}
		if t.schedule != "" {
			err := pages(ctx, l, t, "/v1/schedules/"+t.schedule+"/runs", func(run struct {
				Occurrence, Until time.Time
				Occurrences       int
				Outcome, Reason   string
				TaskID            string `json:"task_id"`
			}) {
				l.s.hist.add(event{What: occurred, Schedule: t.schedule, From: run.Occurrence.UnixMilli(), Until: run.Until.UnixMilli(), Count: run.Occurrences,
					Status: run.Outcome, Code: run.Reason, Task: run.TaskID})
			})
			if err != nil {
				return fmt.Errorf("read the occurrences of %s: %w", t.name, err)
			}
		}
		var q struct {
			UsedMS int64 `json:"used_ms"`
		}
		if _, err := l.request(ctx, "GET", "/v1/quota", t.key, "", nil, &q); err != nil {
			return fmt.Errorf("read the quota of %s: %w", t.name, err)
		}
		l.s.hist.add(event{What: quota, WS: t.name, Used: q.UsedMS})
	}
	return nil
}

// pages reads a list to its end.
func pages[T any](ctx context.Context, l *load, t *tenant, path string, each func(T)) error {
	for cursor := ""; ; {
		var page struct {
			Data       []T
			NextCursor *string `json:"next_cursor"`
		}
		if _, err := l.request(ctx, "GET", path+"?limit=200&cursor="+cursor, t.key, "", nil, &page); err != nil {
			return err
		}
		for _, one := range page.Data {
			each(one)
		}
		if page.NextCursor == nil {
			return nil
		}
		cursor = *page.NextCursor
	}
}
