package api

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"time"

	"github.com/generic-corp/muster/store"
)

// Dead letters and what is done to many ended tasks at once. Each call changes at most store.MaxBulk tasks, says how many,
// and whether more matched.

type listDeadLettersParams struct {
	Agent          string     `query:"agent" maxLength:"64"`
	ErrorCode      string     `query:"error_code" maxLength:"64" description:"As in error.code."`
	FinishedAfter  *time.Time `query:"finished_after" description:"Exclusive."`
	FinishedBefore *time.Time `query:"finished_before" description:"Exclusive."`
	Metadata       string     `query:"metadata.{key}" description:"Tasks whose metadata has this value under this key."`
	pageParams
}

// endedBody chooses ended tasks.
type endedBody struct {
	IDs            []string          `json:"ids" minItems:"1" maxItems:"1000" items.maxLength:"64" description:"These tasks; those among them that do not fit are left alone and not counted."`
	Agent          string            `json:"agent" maxLength:"64"`
	ErrorCode      string            `json:"error_code" maxLength:"64" description:"As in error.code."`
	FinishedAfter  *time.Time        `json:"finished_after" description:"Exclusive."`
	FinishedBefore *time.Time        `json:"finished_before" description:"Exclusive."`
	Metadata       map[string]string `json:"metadata" maxProperties:"16" items.maxLength:"512" description:"Tasks that have all of these pairs."`
	Limit          *int              `json:"limit" minimum:"1" maximum:"1000" default:"1000" description:"Tasks that are changed at most."`
}

type retryTasksBody struct {
	endedBody
	Status string `json:"status" enum:"failed,canceled"`
}

type dropBody struct {
	endedBody
	All bool `json:"all" description:"Drop all dead letters: needed when nothing else chooses."`
}

type bulkJSON struct {
	Count int  `json:"count" description:"Tasks that were changed."`
	More  bool `json:"more" description:"Further tasks matched; repeat the request (with another Idempotency-Key) for them."`
}

// check fills in the defaults and adds what struct tags cannot say.
func (b *endedBody) check(f *faults) {
	checkMetadata("metadata", b.Metadata, f)
	for i, id := range b.IDs {
		if _, ok := store.ParseID(store.TaskPrefix, id); !ok {
			f.wrong(fmt.Sprintf("ids[%d]", i), "must be the id of a task")
		}
	}
	if b.Limit == nil {
		b.Limit = ptr(store.MaxBulk)
	}
}

// filter is the ledger's form of it.
func (b *endedBody) filter(status string) store.EndedFilter {
	f := store.EndedFilter{Status: status, Agent: b.Agent, ErrorCode: b.ErrorCode, FinishedAfter: b.FinishedAfter, FinishedBefore: b.FinishedBefore, Metadata: b.Metadata}
	for _, text := range b.IDs {
		id, _ := store.ParseID(store.TaskPrefix, text) // checked
		f.IDs = append(f.IDs, id)
	}
	return f
}

// chooses reports whether anything but limit was said.
func (b *endedBody) chooses() bool {
	return len(b.IDs)+len(b.Agent)+len(b.ErrorCode)+len(b.Metadata) > 0 || b.FinishedAfter != nil || b.FinishedBefore != nil
}

// details are what the audit log notes of a choice: no metadata, which is content.
func (b *endedBody) details(status string, bulk store.Bulk) map[string]any {
	return map[string]any{"status": status, "agent": b.Agent, "error_code": b.ErrorCode, "ids": len(b.IDs), "metadata_pairs": len(b.Metadata),
		"finished_after": timeText(b.FinishedAfter), "finished_before": timeText(b.FinishedBefore), "count": bulk.Count, "more": bulk.More}
}

func (s *Server) listDeadLetters(q *request) (answer, error) {
	var filter store.EndedFilter
	p, err := params(q, func(p *listDeadLettersParams, f *faults) {
		filter = store.EndedFilter{Agent: p.Agent, ErrorCode: p.ErrorCode, FinishedAfter: p.FinishedAfter, FinishedBefore: p.FinishedBefore, Metadata: q.metadataFilter(f)}
	})
	if err != nil {
		return answer{}, err
	}
	text := fmt.Sprintf("%q %q %v %v %v", p.Agent, p.ErrorCode, timeText(p.FinishedAfter), timeText(p.FinishedBefore), sortedPairs(filter.Metadata))
	return listPage(s, q, fmt.Sprintf("dead letters %x", sha256.Sum256([]byte(text))), p.pageParams,
		func(after *store.EndedCursor, n int) ([]store.TaskView, error) {
			return s.Store.DeadLetters(q.ctx, q.id.Workspace, filter, after, n)
		}, func(t store.TaskView) *store.EndedCursor {
			return &store.EndedCursor{FinishedAt: *t.FinishedAt, ID: t.ID}
		}, itemOf)
}

func (s *Server) retryTasks(q *request) (answer, error) {
	body, err := bind(q, func(b *retryTasksBody, f *faults) { b.check(f) })
	if err != nil {
		return answer{}, err
	}
	return s.retryEnded(q, "tasks.retry", body.Status, body.endedBody)
}

func (s *Server) replayDeadLetters(q *request) (answer, error) {
	body, err := bind(q, func(b *endedBody, f *faults) { b.check(f) })
	if err != nil {
		return answer{}, err
	}
	return s.retryEnded(q, "dead_letters.replay", store.StatusFailed, body)
}

func (s *Server) retryEnded(q *request, action, status string, body endedBody) (answer, error) {
	return s.work(q, true, func(w *store.Work) (answer, error) {
		if err := s.mayRun(q, w.Allowance); err != nil {
			return answer{}, err
		}
		bulk, err := w.RetryEnded(q.ctx, body.filter(status), *body.Limit)
		if err != nil {
			return answer{}, err
		}
		return answer{status: http.StatusAccepted, body: bulkJSON(bulk)}, q.audit(w, action, "", body.details(status, bulk))
	})
}

func (s *Server) dropDeadLetters(q *request) (answer, error) {
	body, err := bind(q, func(b *dropBody, f *faults) {
		b.check(f)
		if b.chooses() == b.All {
			f.wrong("all", "say what to drop: ids, a filter, or all as true; not both")
		}
	})
	if err != nil {
		return answer{}, err
	}
	return s.work(q, true, func(w *store.Work) (answer, error) {
		bulk, err := w.DropDeadLetters(q.ctx, body.filter(store.StatusFailed), *body.Limit)
		if err != nil {
			return answer{}, err
		}
		return answer{status: http.StatusOK, body: bulkJSON(bulk)}, q.audit(w, "dead_letters.drop", "", body.details(store.StatusFailed, bulk))
	})
}
