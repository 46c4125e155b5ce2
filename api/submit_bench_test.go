package api

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/api/ratelimit"
	"github.com/generic-corp/muster/jobs"
	"github.com/generic-corp/muster/scripts/privateservers"
	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// BenchmarkOverHTTP measures the routes that customers call most, over 64 kept connections and 200 workspaces with their
// limits lifted, against servers of its own that keep their commits (fsync on), with everything that a process of the API has:
// rate limits in Redis, the enqueuer, the access log. It prints requests per second, waits, and for each request the processor time
// of this process (API and client), of Postgres and of Redis, the statements and the commits. Run it with -benchtime 1x; what client
// and HTTP cost alone is its first line. CASE=word runs only the cases whose names have it, CONNS=n sets the connections, STATEMENTS=1 prints the
// statements that took longest, TRACK=all those inside functions too.
func BenchmarkOverHTTP(b *testing.B) {
	const workspaces = 200
	connections := 64
	if v := os.Getenv("CONNS"); v != "" {
		connections, _ = strconv.Atoi(v)
	}
	m := newMeter(b)
	w := newWorldOn(b, m.env, func(cfg *Config) {
		limits, err := ratelimit.New(ratelimit.Config{Redis: m.env.Redis(b), Log: zerolog.Nop()})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { limits.Close() })
		turns := jobs.NewEnqueuer(m.env.Redis(b), zerolog.Nop())
		b.Cleanup(turns.Close)
		cfg.RateLimits, cfg.Enqueuer, cfg.CredentialMS, cfg.NoteInterval, cfg.Log = limits, toRedis{turns}, 3000, 5*time.Second, zerolog.New(io.Discard)
	})
	var tokens, keys, tasks [workspaces]string
	for i := range tokens {
		c := w.owner("pro")
		c.mayRequest(1_000_000_000)
		tokens[i] = c.credential
		keys[i] = c.post("/v1/api-keys", map[string]any{"name": "bench"}).want(201).str("key")
		tasks[i] = c.post("/v1/tasks", map[string]any{"prompt": "x"}).want(202).str("id")
	}
	canned := func() string { // what client and HTTP cost without us
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		body := w.with(tokens[0]).get("/v1/tasks/" + tasks[0]).want(200).body
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write(body)
		})}
		go server.Serve(ln)
		b.Cleanup(func() { server.Close() })
		return "http://" + ln.Addr().String()
	}()
	batch := `{"tasks": [` + strings.TrimSuffix(strings.Repeat(`{"prompt": "no-op"},`, 100), ",") + `]}`
	cases := []struct {
		name, method string
		requests     int
		make         func(i int) (url, credential, body, key string)
	}{
		{"client and HTTP alone", "POST", 20_000, func(i int) (string, string, string, string) {
			return canned, tokens[i%workspaces], `{"prompt": "no-op"}`, ""
		}},
		{"submit, access token", "POST", 10_000, func(i int) (string, string, string, string) {
			return w.url + "/v1/tasks", tokens[i%workspaces], `{"prompt": "no-op"}`, ""
		}},
		{"submit, API key", "POST", 10_000, func(i int) (string, string, string, string) {
			return w.url + "/v1/tasks", keys[i%workspaces], `{"prompt": "no-op"}`, ""
		}},
		{"submit, Idempotency-Key", "POST", 10_000, func(i int) (string, string, string, string) {
			return w.url + "/v1/tasks", keys[i%workspaces], `{"prompt": "no-op"}`, fmt.Sprint(i)
		}},
		{"submit to 1 workspace", "POST", 5_000, func(i int) (string, string, string, string) {
			return w.url + "/v1/tasks", keys[0], `{"prompt": "no-op"}`, ""
		}},
		{"batch of 100", "POST", 400, func(i int) (string, string, string, string) {
			return w.url + "/v1/tasks/batch", keys[i%20], batch, ""
		}},
		{"read a task", "GET", 10_000, func(i int) (string, string, string, string) {
			return w.url + "/v1/tasks/" + tasks[i%workspaces], keys[i%workspaces], "", ""
		}},
		{"who am I", "GET", 10_000, func(i int) (string, string, string, string) {
			return w.url + "/v1/me", keys[i%workspaces], "", ""
		}},
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: connections, MaxConnsPerHost: connections}}
	for b.Loop() {
		for _, c := range cases {
			if only := os.Getenv("CASE"); only != "" && !strings.Contains(c.name, only) {
				continue
			}
			waits := make([]time.Duration, c.requests)
			var next atomic.Int64
			var senders sync.WaitGroup
			began := m.read()
			for range connections {
				senders.Go(func() {
					for i := int(next.Add(1)) - 1; i < c.requests; i = int(next.Add(1)) - 1 {
						at := time.Now()
						url, credential, body, key := c.make(i)
						req, _ := http.NewRequest(c.method, url, strings.NewReader(body))
						req.Header.Set("Content-Type", "application/json")
						req.Header.Set("Authorization", "Bearer "+credential)
						if key != "" {
							req.Header.Set("Idempotency-Key", key)
						}
						resp, err := client.Do(req)
						if err != nil {
							b.Error(err)
							return
						}
						answer, _ := io.ReadAll(resp.Body)
						resp.Body.Close()
						if resp.StatusCode >= 300 {
							b.Errorf("%s: %d %s", c.name, resp.StatusCode, answer)
							return
						}
						waits[i] = time.Since(at)
					}
				})
			}
			senders.Wait()
			ended := m.read()
			slices.Sort(waits)
			fmt.Printf("%-24s %6.0f requests/s, p50 %6.1f ms, p99 %6.1f ms; %s\n", c.name, float64(c.requests)/ended.at.Sub(began.at).Seconds(),
				float64(waits[len(waits)/2].Microseconds())/1000, float64(waits[len(waits)*99/100].Microseconds())/1000, ended.since(began, c.requests))
			if os.Getenv("STATEMENTS") != "" {
				m.top(c.requests)
			}
		}
	}
}

// toRedis introduces the enqueuer, as the API's process does.
type toRedis struct{ *jobs.Enqueuer }

func (e toRedis) Enqueue(turns ...store.Turn) {
	for _, t := range turns {
		e.Enqueuer.Enqueue(jobs.Turn(t))
	}
}

// meter reads what a benchmark costs: processes' time, statements, commits.
type meter struct {
	tb         testing.TB
	env        *storetest.Env
	postmaster int
}

func newMeter(b *testing.B) *meter {
	dir, err := os.MkdirTemp("", "muster-meter-")
	if err == nil {
		err = os.Chmod(dir, 0o711) // PostgreSQL's system user has to pass
	}
	if err != nil {
		b.Fatal(err)
	}
	pair, err := privateservers.Start(context.Background(), privateservers.Config{Dir: filepath.Join(dir, "servers"),
		Postgres: privateservers.PostgresConfig{Fsync: true, Settings: map[string]string{"shared_preload_libraries": "pg_stat_statements", "pg_stat_statements.track_planning": "on", "pg_stat_statements.track": cmp.Or(os.Getenv("TRACK"), "top")}}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = pair.Remove(); _ = os.RemoveAll(dir) })
	m := &meter{tb: b, env: storetest.On(b, pair)}
	m.env.Admin(b).MustExec(`CREATE EXTENSION pg_stat_statements`)
	raw, err := os.ReadFile(filepath.Join(pair.Postgres.DataDir(), "postmaster.pid"))
	if err != nil {
		b.Fatal(err)
	}
	first, _, _ := bytes.Cut(raw, []byte("\n"))
	if m.postmaster, err = strconv.Atoi(string(first)); err != nil {
		b.Fatal(err)
	}
	return m
}

// reading is one look.
type reading struct {
	at                    time.Time
	own, postgres, redis  time.Duration
	statements, redisCmds int64
	commits               int64
}

func (m *meter) read() reading {
	m.tb.Helper()
	r := reading{at: time.Now(), own: cpu(), postgres: familyCPU(m.postmaster)}
	admin := m.env.Admin(m.tb)
	err := admin.QueryRow(`SELECT (SELECT coalesce(sum(calls), 0) FROM pg_stat_statements s JOIN pg_roles r ON r.oid = s.userid WHERE r.rolname LIKE 'muster%')::bigint,
		(SELECT xact_commit FROM pg_stat_database WHERE datname = current_database())`).Scan(&r.statements, &r.commits)
	if err != nil {
		m.tb.Fatal(err)
	}
	info, err := m.env.Redis(m.tb).Info(context.Background(), "cpu", "stats").Result()
	if err != nil {
		m.tb.Fatal(err)
	}
	for line := range strings.Lines(info) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		v, _ := strconv.ParseFloat(value, 64)
		switch name {
		case "used_cpu_sys", "used_cpu_user":
			r.redis += time.Duration(v * float64(time.Second))
		case "total_commands_processed":
			r.redisCmds = int64(v)
		}
	}
	return r
}

func (r reading) since(began reading, n int) string {
	each := func(d time.Duration) float64 { return float64(d.Microseconds()) / float64(n) }
	return fmt.Sprintf("CPU µs: here %4.0f, Postgres %4.0f, Redis %3.0f; statements %.2f, commits %.2f, Redis commands %.2f",
		each(r.own-began.own), each(r.postgres-began.postgres), each(r.redis-began.redis),
		float64(r.statements-began.statements)/float64(n), float64(r.commits-began.commits)/float64(n), float64(r.redisCmds-began.redisCmds)/float64(n))
}

// top prints the statements that took longest, and forgets all.
func (m *meter) top(requests int) {
	var rows []struct {
		Query      string
		Calls      float64
		Plan, Exec float64
	}
	if err := m.env.Admin(m.tb).Select(&rows, `SELECT left(regexp_replace(query, '\s+', ' ', 'g'), 150) AS query, calls, total_plan_time AS plan, total_exec_time AS exec
		FROM pg_stat_statements ORDER BY total_plan_time + total_exec_time DESC LIMIT 22`); err != nil {
		m.tb.Fatal(err)
	}
	for _, r := range rows {
		fmt.Printf("    %5.2f calls, plan %4.0f µs, exec %4.0f µs: %s\n", r.Calls/float64(requests), 1000*r.Plan/r.Calls, 1000*r.Exec/r.Calls, r.Query)
	}
	m.env.Admin(m.tb).MustExec(`SELECT pg_stat_statements_reset()`)
}

// familyCPU is what a process and its children have used, those that have ended included.
func familyCPU(pid int) (used time.Duration) {
	const tick = 10 * time.Millisecond
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range stats {
		raw, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		_, rest, _ := strings.Cut(string(raw), ") ")
		f := strings.Fields(rest)
		if len(f) < 15 || f[1] != strconv.Itoa(pid) && filepath.Base(filepath.Dir(file)) != strconv.Itoa(pid) {
			continue
		}
		fields := f[11:13]
		if f[1] != strconv.Itoa(pid) {
			fields = f[11:15]
		}
		for _, field := range fields {
			n, _ := strconv.Atoi(field)
			used += time.Duration(n) * tick
		}
	}
	return used
}
