package api

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

type listTasksParams struct {
	Status        string     `query:"status" enum:"scheduled,queued,running,succeeded,failed,canceled"`
	Agent         string     `query:"agent" maxLength:"64"`
	CreatedAfter  *time.Time `query:"created_after" description:"Exclusive."`
	CreatedBefore *time.Time `query:"created_before" description:"Exclusive."`
	Schedule      string     `query:"schedule" maxLength:"64" description:"Tasks that this schedule has sent."`
	Metadata      string     `query:"metadata.{key}" description:"Tasks whose metadata has this value under this key."`
	pageParams
}

type getTaskParams struct {
	ID     string `path:"id"`
	Prefer string `header:"Prefer" description:"wait=N: answer when the task ends or after N seconds, 1 to 60."`
}

type listAttemptsParams struct {
	ID string `path:"id"`
	pageParams
}

func (s *Server) createTask(q *request) (answer, error) {
	body, err := bind(q, func(b *newTaskBody, f *faults) { b.check("", f) })
	if err != nil {
		return answer{}, err
	}
	return s.submit(q, []newTaskBody{body}, func(int) string { return "" }, func(views []store.TaskView) answer {
		task := taskOf(views[0])
		return answer{status: http.StatusAccepted, headers: locationOf(task), body: task}
	})
}

func locationOf(t taskJSON) map[string]string {
	return map[string]string{"Location": "/v1/tasks/" + t.ID}
}

func (s *Server) createTasks(q *request) (answer, error) {
	at := func(i int) string { return fmt.Sprintf("tasks[%d].", i) }
	body, err := bind(q, func(b *newTasksBody, f *faults) {
		for i := range b.Tasks {
			b.Tasks[i].check(at(i), f)
		}
	})
	if err != nil {
		return answer{}, err
	}
	return s.submit(q, body.Tasks, at, func(views []store.TaskView) answer {
		batch := batchJSON{Data: make([]taskJSON, len(views))}
		for i, v := range views {
			batch.Data[i] = taskOf(v)
		}
		return answer{status: http.StatusAccepted, body: batch}
	})
}

// submit accepts tasks, all or none, and shows them. at says where each stands in the body. Without an Idempotency-Key it is
// one round trip to the ledger; with one, the key and the answer are a part of the same transaction.
func (s *Server) submit(q *request, bodies []newTaskBody, at func(int) string, show func([]store.TaskView) answer) (answer, error) {
	models, tasks := make([]string, len(bodies)), make([]store.NewTask, len(bodies))
	for i := range bodies {
		models[i], tasks[i] = bodies[i].Model, bodies[i].task(q.id)
	}
	if len(q.gin.Request.Header.Values("Idempotency-Key")) > 0 {
		return s.work(q, true, func(w *store.Work) (answer, error) {
			if err := checkExpiry(bodies, at, s.Now()); err != nil {
				return answer{}, err
			}
			if err := s.mayRun(q, w.Allowance, models...); err != nil {
				return answer{}, err
			}
			views, err := w.Submit(q.ctx, tasks)
			if err != nil {
				return answer{}, unknownAgents(err, bodies, at)
			}
			return show(views), nil
		})
	}
	if err := checkExpiry(bodies, at, s.Now()); err != nil {
		return answer{}, err
	}
	ask := func(ctx context.Context) (store.Allowance, error) { return s.Store.Allowance(ctx, q.id.Workspace) }
	if err := s.mayRun(q, ask, models...); err != nil {
		return answer{}, err
	}
	views, turns, err := s.Store.Submit(q.ctx, q.id.Workspace, tasks)
	if err != nil {
		return answer{}, unknownAgents(err, bodies, at)
	}
	if len(turns) > 0 {
		s.Enqueuer.Enqueue(turns...)
	}
	return show(views), nil
}

// unknownAgents names the fields whose agents the ledger does not know.
func unknownAgents(err error, bodies []newTaskBody, at func(int) string) error {
	var unknown store.UnknownAgents
	if !errors.As(err, &unknown) {
		return err
	}
	f := &faults{}
	for i := range bodies {
		if slices.Contains(unknown, bodies[i].Agent) {
			f.wrong(at(i)+"agent", "no agent is called %s", clip(bodies[i].Agent))
		}
	}
	return f.err()
}

func (s *Server) listTasks(q *request) (answer, error) {
	filter := store.TaskFilter{}
	p, err := params(q, func(p *listTasksParams, f *faults) {
		filter = store.TaskFilter{Status: p.Status, Agent: p.Agent, CreatedAfter: p.CreatedAfter, CreatedBefore: p.CreatedBefore,
			Metadata: q.metadataFilter(f)}
		if p.Schedule != "" {
			var ok bool
			if filter.Schedule, ok = store.ParseID(store.SchedulePrefix, p.Schedule); !ok {
				f.wrong("schedule", "must be the id of a schedule")
			}
		}
	})
	if err != nil {
		return answer{}, err
	}
	return walkPage(s, q, listName(filter), p.pageParams, func(before uuid.UUID, n int) ([]store.TaskView, *uuid.UUID, error) {
		tasks, stopped, err := s.Store.Tasks(q.ctx, q.id.Workspace, filter, before, n)
		if stopped == uuid.Nil {
			return tasks, nil, err
		}
		return tasks, &stopped, err
	}, func(t store.TaskView) uuid.UUID { return t.ID }, itemOf)
}

// metadataFilter reads the parameters metadata.KEY=VALUE.
func (q *request) metadataFilter(f *faults) map[string]string {
	pairs := map[string]string{}
	for name, values := range q.gin.Request.URL.Query() {
		key, ok := strings.CutPrefix(name, "metadata.")
		if !ok {
			continue
		}
		text := key + values[0]
		switch fault := textFault(text); {
		case fault != "":
			f.wrong("metadata."+clip(strings.ToValidUTF8(key, "?")), "%s", fault)
		case len(values) > 1:
			f.wrong("metadata."+clip(key), "stands more than once")
		case key == "" || len([]rune(key)) > maxMetadataKey || len([]rune(values[0])) > maxMetadataText || len(pairs) == 16:
			f.wrong("metadata."+clip(key), "must be one of at most 16 pairs of a key of 1 to %d and a value of up to %d characters", maxMetadataKey, maxMetadataText)
		default:
			pairs[key] = values[0]
		}
	}
	return pairs
}

// listName names a list of tasks with its filters, for cursors.
func listName(f store.TaskFilter) string {
	text := fmt.Sprintf("%q %q %v %v %v %v", f.Status, f.Agent, timeText(f.CreatedAfter), timeText(f.CreatedBefore), f.Schedule, sortedPairs(f.Metadata))
	return fmt.Sprintf("tasks %x", sha256.Sum256([]byte(text)))
}

// sortedPairs writes metadata in one order.
func sortedPairs(metadata map[string]string) []string {
	pairs := make([]string, 0, len(metadata))
	for k, v := range metadata {
		pairs = append(pairs, fmt.Sprintf("%q=%q", k, v))
	}
	sort.Strings(pairs)
	return pairs
}

func timeText(t *time.Time) string {
	if t == nil {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}

func (s *Server) cancelTask(q *request) (answer, error) {
	id, err := q.bareID(store.TaskPrefix, "task")
	if err != nil {
		return answer{}, err
	}
	return s.work(q, true, func(w *store.Work) (answer, error) {
		outcome, err := w.Cancel(q.ctx, id)
		if err != nil {
			return answer{}, err
		}
		status := http.StatusOK
		if outcome != store.AlreadyCanceled {
			status = http.StatusAccepted
			if err := q.audit(w, "task.cancel", store.FormatID(store.TaskPrefix, id), nil); err != nil {
				return answer{}, err
			}
		}
		view, err := w.Task(q.ctx, id)
		return answer{status: status, body: taskOf(view)}, err
	})
}

func (s *Server) cancelTasks(q *request) (answer, error) {
	body, err := bind(q, func(b *cancelTasksBody, f *faults) { checkMetadata("metadata", b.Metadata, f) })
	if err != nil {
		return answer{}, err
	}
	return s.work(q, true, func(w *store.Work) (answer, error) {
		n, err := w.CancelMatching(q.ctx, store.CancelFilter{Status: body.Status, Agent: body.Agent, Metadata: body.Metadata})
		if err != nil {
			return answer{}, err
		}
		return answer{status: http.StatusAccepted, body: countJSON{Count: n}}, q.audit(w, "tasks.cancel", "",
			map[string]any{"status": body.Status, "agent": body.Agent, "metadata_pairs": len(body.Metadata), "count": n})
	})
}

func (s *Server) retryTask(q *request) (answer, error) {
	id, err := q.bareID(store.TaskPrefix, "task")
	if err != nil {
		return answer{}, err
	}
	return s.work(q, true, func(w *store.Work) (answer, error) {
		model, err := w.ModelOf(q.ctx, id)
		if err != nil {
			return answer{}, err
		}
		if err := s.mayRun(q, w.Allowance, model); err != nil {
			return answer{}, err
		}
		if err := w.Retry(q.ctx, id); err != nil {
			return answer{}, err
		}
		if err := q.audit(w, "task.retry", store.FormatID(store.TaskPrefix, id), nil); err != nil {
			return answer{}, err
		}
		view, err := w.Task(q.ctx, id)
		task := taskOf(view)
		return answer{status: http.StatusAccepted, headers: locationOf(task), body: task}, err
	})
}

func (s *Server) listAttempts(q *request) (answer, error) {
	id, err := q.pathID(store.TaskPrefix, "task")
	if err != nil {
		return answer{}, err
	}
	p, err := params[listAttemptsParams](q, nil)
	if err != nil {
		return answer{}, err
	}
	return listPage(s, q, "attempts "+id.String(), p.pageParams, func(after *store.AttemptCursor, n int) ([]store.Attempt, error) {
		return s.Store.Attempts(q.ctx, q.id.Workspace, id, after, n)
	}, func(a store.Attempt) *store.AttemptCursor {
		return &store.AttemptCursor{StartedAt: a.StartedAt, ID: a.ID}
	}, attemptOf)
}
