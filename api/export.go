package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/store"
)

// An export is one answer of JSON lines (application/x-ndjson): a head, every row of every exported table, and an end that
// counts the rows. Without its end an export is not whole. It is written page by page, so its size is bounded by nothing
// but the workspace; the memory it takes is bounded by a page. See store/export.go for what a row's moment is.

const (
	exportMedia    = "application/x-ndjson"
	exportFormat   = 1
	exportLife     = time.Hour       // and so is an export that takes longer than this
	exportsAtOnce  = 4               // per process; further ones are a 503
	exportRecheck  = 2 * time.Second // how often the sender's session is looked at again
	retryAfterBusy = 30              // seconds
)

// exportLineJSON is one line. The tables' columns are those of the ledger, with ids as everywhere in the API.
type exportLineJSON struct {
	Table string     `json:"table" description:"export for the head (format, workspace, at), end for the last line (rows), else where the row comes from."`
	Row   jsonObject `json:"row"`
}

// exportWorkspace streams all that the workspace has. The audit entry is committed before the first byte goes out.
func (s *Server) exportWorkspace(q *request) (answer, error) {
	select {
	case s.exports <- struct{}{}:
	default:
		return answer{}, &apiError{problem: probUnavailable, detail: "too many exports run at this moment", retryAfter: retryAfterBusy}
	}
	ctx, cancel := context.WithTimeout(q.ctx, s.WorkTimeout)
	defer cancel()
	_, err := s.Store.Do(ctx, store.Scope{Workspace: q.id.Workspace}, nil, func(w *store.Work) (store.Answer, error) {
		if err := w.Confirm(ctx, q.id.Identity); err != nil {
			return store.Answer{}, err
		}
		return store.Answer{}, q.audit(w, "workspace.export", store.FormatID(store.WorkspacePrefix, w.Workspace), nil)
	})
	if err != nil {
		<-s.exports
		return answer{}, err
	}
	return answer{status: http.StatusOK, media: exportMedia, stream: func(w http.ResponseWriter) {
		defer func() { <-s.exports }()
		if err := s.export(q, w); err != nil {
			zerolog.Ctx(q.ctx).Info().Err(err).Msg("export broken off")
			panic(http.ErrAbortHandler) // cuts the connection: the reader must not take a part for the whole
		}
	}}, nil
}

// export writes the lines.
func (s *Server) export(q *request, w http.ResponseWriter) error {
	ctx, cancel := context.WithTimeout(q.ctx, exportLife)
	defer cancel()
	out := &lines{conn: http.NewResponseController(w), to: w, pause: s.ExportWrite}
	_ = out.conn.SetReadDeadline(time.Time{}) // net/http would end the context with the read timeout
	head := map[string]any{"format": exportFormat, "workspace": store.FormatID(store.WorkspacePrefix, q.id.Workspace), "at": s.Now().UTC()}
	if err := out.write("export", mustJSON(head)); err != nil {
		return err
	}
	rows, looked := 0, time.Now()
	for _, h := range slices.Backward(store.Holdings) { // the workspace and its members first, stored answers last
		if len(h.Export) == 0 {
			continue
		}
		for after, more := []string(nil), true; more; more = after != nil {
			if time.Since(looked) > exportRecheck {
				if err := s.mayGoOn(ctx, q); err != nil {
					return err
				}
				looked = time.Now()
			}
			page, next, err := s.exportPage(ctx, q, h, after)
			if err != nil {
				return err
			}
			if err := out.write(h.Table, page...); err != nil {
				return err
			}
			rows, after = rows+len(page), next
		}
	}
	return out.write("end", mustJSON(map[string]any{"rows": rows}))
}

func (s *Server) exportPage(ctx context.Context, q *request, h store.Holding, after []string) ([]json.RawMessage, []string, error) {
	ctx, cancel := context.WithTimeout(ctx, s.WorkTimeout)
	defer cancel()
	return s.Store.ExportPage(ctx, q.id.Workspace, h, after)
}

// mayGoOn: whoever has lost the session or the role gets no more, and a process that stops waits for no export.
func (s *Server) mayGoOn(ctx context.Context, q *request) error {
	select {
	case <-s.closing:
		return errors.New("the server shuts down")
	default:
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	now, err := s.Store.CheckSession(ctx, q.id.Workspace, q.id.User, q.id.Session)
	if err == nil && roleRank[now.Role] < roleRank[q.route.role] {
		err = refuse(probForbidden, "the role is too small now")
	}
	return err
}

// lines writes JSON lines, each page within pause.
type lines struct {
	conn  *http.ResponseController
	to    http.ResponseWriter
	pause time.Duration
}

func (l *lines) write(table string, rows ...json.RawMessage) error {
	var buf bytes.Buffer
	for _, row := range rows {
		buf.WriteString(`{"table":"` + table + `","row":`)
		buf.Write(row)
		buf.WriteString("}\n")
	}
	_ = l.conn.SetWriteDeadline(time.Now().Add(l.pause)) // a recorder in a test has none
	if _, err := l.to.Write(buf.Bytes()); err != nil {
		return err
	}
	return l.conn.Flush()
}

// mustJSON writes a map of strings, numbers and times.
func mustJSON(v map[string]any) json.RawMessage {
	raw, _ := json.Marshal(v) // cannot fail
	return raw
}
