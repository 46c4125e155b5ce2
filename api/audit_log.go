package api

import (
	"context"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/store"
)

// The audit log, for a workspace's owners: as a list, and whole as a file. Reading it is noted in it: a list when its first
// page is asked for, an export always, both in the transaction of the first read.

type auditFilterParams struct {
	Action        string     `query:"action" maxLength:"64" description:"Exactly, such as api_key.create, or api_key.* for all of a noun."`
	Actor         string     `query:"actor" maxLength:"100" description:"The id of who did it: usr_..., key_..., or an operator's name."`
	Target        string     `query:"target" maxLength:"100" description:"The id of what it was done to."`
	CreatedAfter  *time.Time `query:"created_after" description:"Exclusive."`
	CreatedBefore *time.Time `query:"created_before" description:"Exclusive."`
}

type listAuditParams struct {
	pageParams
	auditFilterParams
}

type exportAuditParams struct {
	auditFilterParams
	Format string `query:"format" enum:"csv,json" default:"json" description:"json: one entry per line."`
}

func (p *auditFilterParams) filter() store.AuditFilter {
	return store.AuditFilter{Action: p.Action, Actor: p.Actor, Target: p.Target, CreatedAfter: p.CreatedAfter, CreatedBefore: p.CreatedBefore}
}

type actorJSON struct {
	Type string `json:"type" enum:"user,api_key,operator,system,anonymous"`
	ID   string `json:"id"`
}

type auditEntryJSON struct {
	Seq       int64      `json:"seq" description:"From 1, without gaps in the workspace."`
	At        time.Time  `json:"at"`
	Actor     actorJSON  `json:"actor"`
	Action    string     `json:"action"`
	Target    string     `json:"target" description:"The id of what it was done to; may be empty."`
	Details   jsonObject `json:"details"`
	IP        string     `json:"ip" description:"Where it came from; empty inside the service."`
	RequestID string     `json:"request_id"`
	Hash      string     `json:"hash" description:"SHA-256 over this entry and the hash of the one before, hexadecimal."`
}

func auditEntryOf(l store.AuditLine) auditEntryJSON {
	return auditEntryJSON{Seq: l.Seq, At: l.At.UTC(), Actor: actorJSON{Type: l.ActorType, ID: l.ActorID}, Action: l.Action, Target: l.Target,
		Details: jsonObject{l.Details}, IP: l.IP, RequestID: l.RequestID, Hash: hex.EncodeToString(l.Hash)}
}

func (s *Server) listAuditLog(q *request) (answer, error) {
	p, err := params[listAuditParams](q, nil)
	if err != nil {
		return answer{}, err
	}
	filter := p.filter()
	var noted *store.AuditEntry
	if p.Cursor == "" {
		e := q.auditEntry("audit_log.read", store.FormatID(store.WorkspacePrefix, q.id.Workspace), filter.Details())
		noted = &e
	}
	list := fmt.Sprintf("audit %q %q %q %s %s", filter.Action, filter.Actor, filter.Target, timeText(filter.CreatedAfter), timeText(filter.CreatedBefore))
	return listPage(s, q, list, p.pageParams, func(before int64, n int) ([]store.AuditLine, error) {
		return s.Store.AuditLog(q.ctx, q.id.Workspace, filter, before, n, noted)
	}, func(l store.AuditLine) int64 { return l.Seq }, auditEntryOf)
}

// An export is read in pages, each in a transaction of its own: the log only grows, so they fit together.
const exportPage = 1000

// mediaCSV is the type of a file in UTF-8 for spreadsheets.
const mediaCSV = "text/csv"

func (s *Server) exportAuditLog(q *request) (answer, error) {
	p, err := params[exportAuditParams](q, nil)
	if err != nil {
		return answer{}, err
	}
	select {
	case s.exports <- struct{}{}:
	default:
		return answer{}, &apiError{problem: probUnavailable, detail: "too many exports run at this moment", retryAfter: retryAfterBusy}
	}
	filter := p.filter()
	details := filter.Details()
	details["format"] = p.Format
	noted := q.auditEntry("audit_log.export", store.FormatID(store.WorkspacePrefix, q.id.Workspace), details)
	first, err := s.auditPage(q.ctx, q, filter, 0, &noted)
	if err != nil {
		<-s.exports
		return answer{}, err
	}
	a := answer{status: http.StatusOK, media: exportMedia}
	write := writeAuditJSON
	if p.Format == "csv" {
		a.media, write = mediaCSV, writeAuditCSV
	}
	a.headers = map[string]string{"Content-Disposition": fmt.Sprintf("attachment; filename=audit-log-%s.%s", s.Now().UTC().Format(time.DateOnly), p.Format)}
	a.stream = func(w http.ResponseWriter) {
		defer func() { <-s.exports }()
		if err := s.sendAuditLog(q, w, filter, first, write); err != nil {
			zerolog.Ctx(q.ctx).Info().Err(err).Msg("export broken off")
			panic(http.ErrAbortHandler) // cuts the connection: the reader must not take a part for the whole
		}
	}
	return a, nil
}

func (s *Server) auditPage(ctx context.Context, q *request, f store.AuditFilter, before int64, noted *store.AuditEntry) ([]store.AuditLine, error) {
	ctx, cancel := context.WithTimeout(ctx, s.WorkTimeout)
	defer cancel()
	return s.Store.AuditLog(ctx, q.id.Workspace, f, before, exportPage, noted)
}

// sendAuditLog writes page after page, as long as the sender may read them and takes them.
func (s *Server) sendAuditLog(q *request, w http.ResponseWriter, f store.AuditFilter, page []store.AuditLine, write func(io.Writer, []store.AuditLine, bool) error) error {
	ctx, cancel := context.WithTimeout(q.ctx, exportLife)
	defer cancel()
	conn, looked := http.NewResponseController(w), time.Now()
	_ = conn.SetReadDeadline(time.Time{}) // net/http would end the context with the read timeout
	for first := true; ; first = false {
		_ = conn.SetWriteDeadline(time.Now().Add(s.ExportWrite)) // a recorder in a test has none
		if err := write(w, page, first); err != nil {
			return err
		}
		if len(page) < exportPage {
			return nil
		}
		if time.Since(looked) > exportRecheck {
			if err := s.mayGoOn(ctx, q); err != nil {
				return err
			}
			looked = time.Now()
		}
		var err error
		if page, err = s.auditPage(ctx, q, f, page[exportPage-1].Seq, nil); err != nil {
			return err
		}
	}
}

func writeAuditJSON(w io.Writer, lines []store.AuditLine, _ bool) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	for _, l := range lines {
		if err := enc.Encode(auditEntryOf(l)); err != nil {
			return fmt.Errorf("write entry: %w", err)
		}
	}
	return nil
}

func writeAuditCSV(w io.Writer, lines []store.AuditLine, first bool) error {
	out := csv.NewWriter(w)
	if first {
		_ = out.Write([]string{"seq", "at", "actor_type", "actor_id", "action", "target", "details", "ip", "request_id", "hash"}) // Error tells
	}
	for _, l := range lines {
		cells := []string{strconv.FormatInt(l.Seq, 10), l.At.UTC().Format(time.RFC3339Nano), l.ActorType, l.ActorID, l.Action, l.Target, string(l.Details), l.IP,
			l.RequestID, hex.EncodeToString(l.Hash)}
		for i, cell := range cells {
			cells[i] = plainCell(cell)
		}
		_ = out.Write(cells)
	}
	out.Flush()
	if err := out.Error(); err != nil {
		return fmt.Errorf("write entries: %w", err)
	}
	return nil
}

// plainCell keeps a spreadsheet from reading a customer's text as a formula.
func plainCell(cell string) string {
	if cell != "" && strings.ContainsRune("=+-@\t\r\n", rune(cell[0])) {
		return "'" + cell
	}
	return cell
}
