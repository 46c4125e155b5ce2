package api

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

// exported reads an export's lines by table.
func (r *reply) exported() map[string][]json.RawMessage {
	r.t.Helper()
	rows := map[string][]json.RawMessage{}
	for line := range bytes.Lines(r.body) {
		var l struct {
			Table string
			Row   json.RawMessage
		}
		if err := json.Unmarshal(line, &l); err != nil {
			r.t.Fatalf("%v: %s", err, line)
		}
		rows[l.Table] = append(rows[l.Table], l.Row)
	}
	return rows
}

func TestExport(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil)
	fleet := w.fleet()
	c, other := w.owner("pro"), w.owner("pro")
	words, others := canary(), canary()
	c.fill(words, fleet)
	other.fill(others, fleet)
	for i := range 45 { // more than two pages of tasks
		c.exec(`INSERT INTO tasks (workspace_id, id, status, agent, model, prompt, timeout_ms, max_attempts, first_max_attempts, finished_at)
			VALUES ($1, $2, 'canceled', 'yuki', 'auto', $3, 1000, 1, 1, now())`, c.ws, store.NewID(), strings.Repeat("page ", i))
	}
	for _, table := range []string{"metering_rows", "daily_usage", "push_ledger", "provider_calls", "quota_notices", "workspace_events", "schedules", "schedule_runs"} {
		for _, ws := range []uuid.UUID{c.ws, other.ws} {
			c.exec(map[string]string{
				"metering_rows": `INSERT INTO metering_rows (workspace_id, attempt_id, meter, quantity, billable, day, task_id, agent, model)
					SELECT $1, gen_random_uuid(), 'tasks', 1, true, now()::date, gen_random_uuid(), 'a', 'm' FROM generate_series(1, 250)`,
				"daily_usage":      `INSERT INTO daily_usage (workspace_id, day, meter, quantity, billable) VALUES ($1, '2026-01-01', 'agent_ms', 1, 1)`,
				"push_ledger":      `INSERT INTO push_ledger (workspace_id, id, meter, day, value, status, stripe_customer_id, event_at) VALUES ($1, gen_random_uuid(), 'agent_ms', '2026-01-01', 1, 'confirmed', 'cus', now())`,
				"provider_calls":   `INSERT INTO provider_calls (workspace_id, id, task_id, attempt_id, step, try, provider, model) VALUES ($1, gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 1, 1, 'p', 'm')`,
				"quota_notices":    `INSERT INTO quota_notices (workspace_id, period, percent) VALUES ($1, '2026-01-01', 80)`,
				"workspace_events": `INSERT INTO workspace_events (workspace_id, seq, kind, data) VALUES ($1, 1000, 'usage', '{}')`,
				"schedules": `INSERT INTO schedules (workspace_id, id, name, cron, timezone, missed_runs, overlap, agent, model, prompt, priority, timeout_ms, max_attempts)
					VALUES ($1, gen_random_uuid(), 's', '@daily', 'UTC', 'skip', 'allow', 'a', 'auto', 'p', 0, 1000, 1)`,
				"schedule_runs": `INSERT INTO schedule_runs (workspace_id, schedule_id, occurrence, until, occurrences, outcome, reason)
					SELECT $1, gen_random_uuid(), now() + n * interval '1 minute', now() + interval '1 year', 1, 'missed', 'late' FROM generate_series(1, 250) n`,
			}[table], ws)
		}
	}
	r := c.get("/v1/workspace/export").want(200)
	if got := r.header.Get("Content-Type"); got != exportMedia {
		t.Errorf("content type %q", got)
	}
	rows := r.exported()
	total := 0
	for _, h := range store.Holdings {
		list := rows[h.Table]
		total += len(list)
		if (len(list) > 0) != (len(h.Export) > 0) {
			t.Errorf("%d rows of %s", len(list), h.Table)
		}
		if len(h.Export) == 0 {
			continue
		}
		column := "workspace_id"
		if h.Table == "workspaces" {
			column = "id"
		}
		if want := w.count(`SELECT count(*) FROM `+h.Table+` WHERE `+column+` = $1`, c.ws); len(list) != want {
			t.Errorf("%d rows of %s are exported, there are %d", len(list), h.Table, want)
		}
	}
	var end struct{ Rows int }
	if err := json.Unmarshal(rows["end"][0], &end); err != nil || end.Rows != total || !bytes.HasSuffix(r.body, []byte("}}\n")) {
		t.Errorf("the end says %d rows of %d, %v", end.Rows, total, err)
	}
	for _, table := range []string{"workspaces", "agents", "api_keys", "invitations", "tasks", "attempts"} {
		if !strings.Contains(string(bytes.Join(toBytes(rows[table]), nil)), words) {
			t.Errorf("%s lacks the workspace's words", table)
		}
	}
	foreign := []string{others, other.ws.String(), strings.ReplaceAll(other.ws.String(), "-", ""), strings.ReplaceAll(other.user.String(), "-", "")}
	var secrets []string
	if err := w.admin.Select(&secrets, `SELECT encode(key_hash, 'hex') FROM api_keys UNION ALL SELECT encode(token_hash, 'hex') FROM invitations
		UNION ALL SELECT encode(token_hash, 'hex') FROM refresh_tokens UNION ALL SELECT encode(body_hash, 'hex') FROM idempotency_keys`); err != nil {
		t.Fatal(err)
	}
	for _, word := range append(append(foreign, "password", "mst_inv_"), secrets...) {
		if bytes.Contains(r.body, []byte(word)) {
			t.Errorf("the export holds %q", word)
		}
	}
	var task struct {
		ID, Prompt, Status string
		Input              map[string]any
		Metadata           map[string]string
	}
	if err := json.Unmarshal(rows["tasks"][len(rows["tasks"])-1], &task); err != nil || task.Prompt != words || task.Metadata["m"] != words || !strings.HasPrefix(task.ID, "task_") {
		t.Errorf("%+v, %v", task, err)
	}
	if n := w.count(`SELECT count(*) FROM audit_log WHERE workspace_id = $1 AND action = 'workspace.export'`, c.ws); n != 1 {
		t.Errorf("%d audit entries", n)
	}
	if n := w.count(`SELECT count(*) FROM audit_log WHERE workspace_id = $1 AND action = 'workspace.export'`, other.ws); n != 0 {
		t.Errorf("%d audit entries at another's", n)
	}
	for range 5 {
		c.get("/v1/workspace/export").want(200)
	}
	c.get("/v1/workspace/export").problem(probRateLimited)
}

func toBytes(rows []json.RawMessage) [][]byte {
	out := make([][]byte, len(rows))
	for i, r := range rows {
		out[i] = r
	}
	return out
}

// large gives the workspace more than sockets hold: 40 MB.
func (c *client) large() {
	c.t.Helper()
	c.exec(`INSERT INTO tasks (workspace_id, id, status, agent, model, prompt, timeout_ms, max_attempts, first_max_attempts, finished_at)
		SELECT $1, gen_random_uuid(), 'canceled', 'yuki', 'auto', repeat('0123456789abcdef', 16384), 1000, 1, 1, now() FROM generate_series(1, 160)`, c.ws)
}

// begin asks for an export and reads its first line.
func (c *client) begin() (*http.Response, *bufio.Reader) {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), http.MethodGet, c.url+"/v1/workspace/export", nil)
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+c.credential)
	res, err := http.DefaultTransport.(*http.Transport).Clone().RoundTrip(req)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { res.Body.Close() })
	body := bufio.NewReaderSize(res.Body, 4096)
	if line, err := body.ReadString('\n'); err != nil || !strings.HasPrefix(line, `{"table":"export"`) {
		c.t.Fatalf("%q, %v", line, err)
	}
	return res, body
}

// rest reads on; whole says whether the end came.
func rest(body *bufio.Reader) (last string, err error) {
	for {
		line, readErr := body.ReadString('\n')
		if line != "" {
			last = line
		}
		if readErr != nil {
			return last, readErr
		}
	}
}

func TestAnExportEndsWithWhoeverMayNotReadOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(cfg *Config) { cfg.ExportWrite = 3 * time.Second })

	t.Run("ASlowReaderIsCutOffAndHoldsNothing", func(t *testing.T) {
		c := w.owner("pro")
		c.large()
		_, body := c.begin()
		eventually(t, 20*time.Second, func() bool { return len(w.api.exports) == 0 }) // cut off: its slot is free again
		if n := w.count(`SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND state LIKE 'idle in transaction%'`, w.env.Database); n != 0 {
			t.Errorf("%d transactions are open", n)
		}
		if last, err := rest(body); strings.HasPrefix(last, `{"table":"end"`) || err == nil || err.Error() == "EOF" {
			t.Errorf("the part looks whole: %.40q, %v", last, err)
		}
	})
	t.Run("ALostSessionEndsIt", func(t *testing.T) {
		c := w.owner("pro")
		c.large()
		_, body := c.begin()
		c.post("/v1/auth/logout", nil).want(204)
		for range 3 { // read slowly, over the next look at the session
			time.Sleep(exportRecheck / 2)
			if _, err := body.Discard(2 << 20); err != nil {
				break
			}
		}
		if last, err := rest(body); strings.HasPrefix(last, `{"table":"end"`) || err == nil || err.Error() == "EOF" {
			t.Errorf("the export went on: %.40q, %v", last, err)
		}
	})
	t.Run("SomeAtOnceAndNoMore", func(t *testing.T) {
		c := w.owner("pro")
		for range exportsAtOnce {
			w.api.exports <- struct{}{}
		}
		if r := c.get("/v1/workspace/export").problem(probUnavailable); r.header.Get("Retry-After") != "30" {
			t.Errorf("%v", r.header)
		}
		for range exportsAtOnce {
			<-w.api.exports
		}
		if last := c.get("/v1/workspace/export").want(200).exported()["end"]; len(last) != 1 {
			t.Errorf("%s", last)
		}
	})
}
