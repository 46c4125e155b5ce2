package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

// GET /v1/events: the workspace's events as they happen, as text/event-stream. A stream looks into the ledger once a
// second, with the credential's check before, and holds no connection to it in between. What is written has numbers
// without gaps (store/events.go), so Last-Event-ID resumes exactly; what is no longer kept is announced by reset.
//
// A stream ends when its credential does, when the client reads too slowly or has gone, and when the server shuts down.
// Clients of text/event-stream connect anew by themselves, with the last id that they have seen.

const (
	eventMedia     = "text/event-stream"
	streamLook     = time.Second
	streamPage     = 100              // events per look
	streamPatience = 10 * time.Second // for the client to take what is written
	streamRetry    = 3000             // milliseconds that a client is told to wait before it connects anew
)

type eventsParams struct {
	LastEventID string `header:"Last-Event-ID" pattern:"^[0-9]{1,18}$" description:"The id of the last event seen: the stream goes on behind it. Without it the stream begins with what happens next."`
}

// eventJSON is the data of an event.
type eventJSON struct {
	At     time.Time       `json:"at"`
	TaskID *string         `json:"task_id"` // null: of the workspace
	Data   json.RawMessage `json:"data"`    // usage: meter, percent, used, limit, period
}

// resetJSON is the data of reset.
type resetJSON struct {
	ResumesAfter int64 `json:"resumes_after"` // events up to this id are no longer kept, or never were
}

func (s *Server) streamEvents(q *request) (answer, error) {
	seen, err := s.lastEventID(q)
	if err != nil {
		return answer{}, err
	}
	leave, err := s.streams.enter(q.id.Workspace)
	if err != nil {
		return answer{}, err
	}
	return answer{status: http.StatusOK, headers: map[string]string{"X-Accel-Buffering": "no"}, media: eventMedia,
		stream: func(http.ResponseWriter) {
			defer leave()
			if !isHead(q.gin.Request) {
				s.stream(q, seen)
			}
		}}, nil
}

// lastEventID reads where the stream begins.
func (s *Server) lastEventID(q *request) (int64, error) {
	values := q.gin.Request.Header.Values("Last-Event-ID")
	if len(values) == 0 {
		ctx, cancel := context.WithTimeout(q.ctx, s.WorkTimeout)
		defer cancel()
		return s.Store.LastEvent(ctx, q.id.Workspace)
	}
	seen, err := strconv.ParseInt(values[0], 10, 64)
	if len(values) > 1 || len(values[0]) > 18 || err != nil || seen < 0 {
		return 0, invalid(fieldError{Field: "Last-Event-ID", Detail: "must be the id of an event"})
	}
	return seen, nil
}

// stream writes until something ends it. Its headers are written.
func (s *Server) stream(q *request, seen int64) {
	out := http.NewResponseController(q.gin.Writer)
	_ = out.SetReadDeadline(time.Time{}) // net/http would end the context with the read timeout
	write := func(text string) bool {
		_ = out.SetWriteDeadline(time.Now().Add(streamPatience))
		_, err := q.gin.Writer.WriteString(text)
		return err == nil && out.Flush() == nil
	}
	// The number alone is no event, and lets a client that is cut off before the first one resume here.
	if !write(fmt.Sprintf("retry: %d\nid: %d\n\n", streamRetry, seen)) {
		return
	}
	look := time.NewTicker(streamLook)
	defer look.Stop()
	for written := time.Now(); ; {
		text, next, err := s.news(q, seen)
		if err != nil {
			return // the client connects anew, and is told why it cannot
		}
		if text == "" && time.Since(written) >= s.Heartbeat {
			text = ": heartbeat\n\n"
		}
		if text != "" {
			if !write(text) {
				return
			}
			written = time.Now()
		}
		if seen = next; len(text) > 0 && text[0] != ':' {
			continue // there may be more
		}
		select {
		case <-q.ctx.Done():
			return
		case <-s.closing:
			return
		case <-look.C:
		}
	}
}

// news is what has happened behind seen, written out, and the number to go on behind. It fails when the sender may not
// read it any more.
func (s *Server) news(q *request, seen int64) (text string, next int64, err error) {
	id, err := s.authenticate(q.gin)
	if err == nil {
		err = authorize(q.route, id)
	}
	if err != nil {
		return "", seen, err
	}
	ctx, cancel := context.WithTimeout(q.ctx, s.WorkTimeout)
	defer cancel()
	e, err := s.Store.EventsAfter(ctx, q.id.Workspace, seen, streamPage)
	if err != nil {
		return "", seen, err
	}
	var out bytes.Buffer
	if e.Missing {
		if seen = e.Last; len(e.List) > 0 {
			seen = e.List[0].Seq - 1
		}
		if err := frame(&out, seen, "reset", resetJSON{ResumesAfter: seen}); err != nil {
			return "", seen, err
		}
	}
	for _, event := range e.List {
		j := eventJSON{At: event.At.UTC(), Data: event.Data}
		if event.Task.Valid {
			j.TaskID = ptr(store.FormatID(store.TaskPrefix, event.Task.UUID))
		}
		if err := frame(&out, event.Seq, event.Kind, j); err != nil {
			return "", seen, err
		}
		seen = event.Seq
	}
	return out.String(), seen, nil
}

// frame writes one event; JSON has no line breaks outside of strings, and inside they are escaped.
func frame(out *bytes.Buffer, id int64, kind string, data any) error {
	raw, err := json.Marshal(data)
	if err != nil {
		return fmt.Errorf("write event: %w", err)
	}
	fmt.Fprintf(out, "id: %d\nevent: %s\ndata: %s\n\n", id, kind, raw)
	return nil
}

// streams counts those that are open in this process.
type streams struct {
	mu           sync.Mutex
	each, all    int // the most per workspace and in all
	byWorkspace  map[uuid.UUID]int
	openTogether int
}

// enter lets a stream in, or refuses it; leave ends it.
func (s *streams) enter(ws uuid.UUID) (leave func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byWorkspace[ws] >= s.each {
		return nil, &apiError{problem: probTooManyStreams, detail: fmt.Sprintf("the workspace has %d event streams open; close one first", s.each)}
	}
	if s.openTogether >= s.all {
		return nil, refuse(probUnavailable, "too many event streams are open; try again")
	}
	s.byWorkspace[ws]++
	s.openTogether++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.openTogether--
		if s.byWorkspace[ws]--; s.byWorkspace[ws] == 0 {
			delete(s.byWorkspace, ws)
		}
	}, nil
}
