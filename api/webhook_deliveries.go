package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

type deliveryJSON struct {
	ID            string     `json:"id" description:"The event's: webhook-id of each attempt."`
	Type          string     `json:"type" enum:"task.succeeded,task.failed,task.canceled,quota.notice,webhook.test"`
	TaskID        *string    `json:"task_id"`
	Status        string     `json:"status" enum:"waiting,succeeded,dead" description:"dead: given up; it can be replayed."`
	Attempts      int        `json:"attempts"`
	NextAttemptAt *time.Time `json:"next_attempt_at" description:"Not before this time; null when there is none to come."`
	CreatedAt     time.Time  `json:"created_at"`
	DeliveredAt   *time.Time `json:"delivered_at"`
	LastAttempt   *tryJSON   `json:"last_attempt"`
}

type tryJSON struct {
	At         time.Time `json:"at" description:"When it ended, or when the delivery was given up unsent."`
	HTTPStatus *int      `json:"http_status" description:"null when no answer came."`
	Error      *string   `json:"error" description:"unreachable, timeout, tls, redirect, status, broken (no whole answer in HTTP) or disabled; null when it arrived."`
	DurationMS *int64    `json:"duration_ms"`
}

func deliveryOf(d store.Delivery) deliveryJSON {
	j := deliveryJSON{ID: store.FormatID(store.EventPrefix, d.ID), Type: d.Type, Status: d.Status, Attempts: d.Attempts, CreatedAt: d.CreatedAt.UTC(), DeliveredAt: utc(d.DeliveredAt)}
	if d.Task.Valid {
		j.TaskID = ptr(store.FormatID(store.TaskPrefix, d.Task.UUID))
	}
	if d.Status == store.DeliveryWaiting {
		j.NextAttemptAt = utc(&d.NextAt)
	}
	if d.LastAt != nil {
		j.LastAttempt = &tryJSON{At: d.LastAt.UTC(), HTTPStatus: d.LastStatus, Error: d.LastError, DurationMS: d.LastMS}
	}
	return j
}

type listDeliveriesParams struct {
	ID string `path:"id"`
	pageParams
	Status string `query:"status" enum:"waiting,succeeded,dead"`
	TaskID string `query:"task_id" maxLength:"64" description:"Those that tell of this task."`
}

func (s *Server) listDeliveries(q *request) (answer, error) {
	var f store.DeliveryFilter
	p, err := params(q, func(p *listDeliveriesParams, faults *faults) {
		if p.TaskID != "" {
			var ok bool
			if f.Task, ok = store.ParseID(store.TaskPrefix, p.TaskID); !ok {
				faults.wrong("task_id", "is not the id of a task")
			}
		}
	})
	if err != nil {
		return answer{}, err
	}
	id, err := q.pathID(store.WebhookPrefix, "webhook")
	if err != nil {
		return answer{}, err
	}
	f.Status = p.Status
	return listPage(s, q, fmt.Sprintf("deliveries %s %s %s", id, p.Status, p.TaskID), p.pageParams, func(before uuid.UUID, n int) ([]store.Delivery, error) {
		return s.Store.Deliveries(q.ctx, q.id.Workspace, id, f, before, n)
	}, func(d store.Delivery) uuid.UUID { return d.ID }, deliveryOf)
}

func (s *Server) testWebhook(q *request) (answer, error) {
	id, err := q.bareID(store.WebhookPrefix, "webhook")
	if err != nil {
		return answer{}, err
	}
	return s.work(q, true, func(w *store.Work) (answer, error) {
		d, err := w.TestWebhook(q.ctx, id)
		if err != nil {
			return answer{}, err
		}
		shown := deliveryOf(d)
		return answer{status: http.StatusAccepted, body: shown}, q.audit(w, "webhook.test", store.FormatID(store.WebhookPrefix, id), map[string]any{"event": shown.ID})
	})
}

type deliveryParams struct {
	ID         string `path:"id"`
	DeliveryID string `path:"delivery_id"`
}

func (s *Server) replayDelivery(q *request) (answer, error) {
	id, err := q.bareID(store.WebhookPrefix, "webhook")
	if err != nil {
		return answer{}, err
	}
	event, ok := store.ParseID(store.EventPrefix, q.gin.Param("delivery_id"))
	if !ok {
		return answer{}, refuse(probNotFound, "no such delivery")
	}
	return s.work(q, true, func(w *store.Work) (answer, error) {
		d, err := w.ReplayDelivery(q.ctx, id, event)
		if err != nil {
			return answer{}, err
		}
		shown := deliveryOf(d)
		return answer{status: http.StatusAccepted, body: shown}, q.audit(w, "webhook.replay", store.FormatID(store.WebhookPrefix, id), map[string]any{"event": shown.ID})
	})
}

type replayDeliveriesBody struct {
	Since  *time.Time `json:"since" required:"true" description:"Those that were given up, or arrived, from this time on; deliveries are kept for 30 days after their event."`
	Until  *time.Time `json:"until" description:"Before this time; to the last, when absent."`
	Status string     `json:"status" enum:"dead,succeeded" default:"dead" description:"Those that were given up, or those that arrived once already."`
}

type replayedJSON struct {
	Count int  `json:"count"`
	More  bool `json:"more" description:"There may be more: a call takes 10,000, the oldest events first. Call again."`
}

func (s *Server) replayDeliveries(q *request) (answer, error) {
	body, err := bind(q, func(b *replayDeliveriesBody, f *faults) {
		setDefault(&b.Status, store.DeliveryDead)
		if b.Since == nil {
			f.wrong("since", "is missing")
		}
	})
	if err != nil {
		return answer{}, err
	}
	id, err := q.pathID(store.WebhookPrefix, "webhook")
	if err != nil {
		return answer{}, err
	}
	return s.work(q, true, func(w *store.Work) (answer, error) {
		n, err := w.ReplayDeliveries(q.ctx, id, body.Status, *body.Since, body.Until)
		if err != nil {
			return answer{}, err
		}
		return answer{status: http.StatusAccepted, body: replayedJSON{Count: n, More: n == store.MaxReplays}},
			q.audit(w, "webhook.replay", store.FormatID(store.WebhookPrefix, id), map[string]any{"count": n, "status": body.Status})
	})
}

// WebhookBody is an event as it is sent.
func WebhookBody(e store.DeliveryEvent) ([]byte, error) {
	at := e.CreatedAt.UTC()
	var body any
	var err error
	switch e.Type {
	case store.EventQuotaNotice:
		told := quotaEventJSON{Type: e.Type, Timestamp: at}
		err, body = json.Unmarshal(e.Data, &told.Data), &told
	case store.EventWebhookTest:
		told := testEventJSON{Type: e.Type, Timestamp: at}
		err, body = json.Unmarshal(e.Data, &told.Data), &told
	default:
		var facts store.TaskFacts
		err = json.Unmarshal(e.Data, &facts)
		told := taskEventJSON{Type: e.Type, Timestamp: at, Data: endedTaskJSON{taskItemJSON: itemOf(store.TaskView{Task: facts.Task(e.Task.UUID)}), Truncated: e.Omitted}}
		_ = json.Unmarshal(e.Result, &told.Data.Result) // null leaves nil
		body = told
	}
	if err != nil {
		return nil, fmt.Errorf("read facts of event %s: %w", e.ID, err)
	}
	raw, err := answer{body: body}.marshal()
	if err != nil {
		return nil, fmt.Errorf("write event %s: %w", e.ID, err)
	}
	return raw, nil
}

// hostOf is what an audit entry tells of a URL: paths hold customers' tokens.
func hostOf(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	return u.Host
}
