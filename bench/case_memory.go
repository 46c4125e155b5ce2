package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/generic-corp/muster/jobs"
)

// memory: what a waiting task costs outside of PostgreSQL.
//
// Redis: used_memory with 1,000 workspaces in line, first with 10,000 tasks waiting, then with a million; what lies between
// is the tasks', what lies below is the turns'. And the real processes: API, worker and scheduler do the same work for
// the same time over the one backlog and over the other, each from a fresh start, and their resident memory is read.

const (
	memoryWorkspaces        = 1_000
	memoryFew, memoryMany   = 10_000, 1_000_000
	redisPerTask            = "Redis, bytes per waiting task"
	memorySettle            = 20 * time.Second
	memoryPrompt            = " sleep=200ms" // an agent's model call
	memoryRequestsPerSecond = 100
	memoryListed            = 500 // tasks of the customer who asks the API, at least
)

func memoryMuster(h *host, scale int) []figure {
	many := memoryMany / scale
	settle := memorySettle / time.Duration(min(scale, 2))

	var few, lots map[string]float64
	h.inner(func(h *host) {
		f, all, who := memoryWorkspacesOn(h)
		f.loadFew(all, who)
		few = residentAtWork(f, who, settle)
		f.check()
	})
	// On servers of its own: a worker that ends may leave a turn to Asynq's retries or to the end of its lease, and where no
	// other process runs the line would not be whole again.
	var inLine, growth float64
	h.inner(func(h *host) {
		f, all, who := memoryWorkspacesOn(h)
		empty := redisMemory(h, f.rdb)
		f.loadFew(all, who)
		inLine = redisMemory(h, f.rdb) - empty
		f.load(all, many-memoryFew, memoryPrompt)
		f.stand("pro", memoryWorkspaces)
		growth = redisMemory(h, f.rdb) - empty - inLine
		lots = residentAtWork(f, who, settle)
		f.check()
	})

	figures := []figure{
		{redisPerTask, math.Round(max(0, growth/float64(many-memoryFew))), "B"},
		{"Redis, growth of all by " + backlogName(many-memoryFew) + " tasks", growth / 1024, "KiB"},
		{"Redis, bytes per workspace in line", inLine / memoryWorkspaces, "B"},
	}
	for _, name := range musterProcesses {
		figures = append(figures, figure{"RSS, " + backlogName(memoryFew) + " waiting: " + name, few[name], "MiB"},
			figure{"RSS, " + backlogName(many) + " waiting: " + name, lots[name], "MiB"},
			figure{rssGrowth(many) + name, lots[name] / few[name], "x"})
	}
	return figures
}

func memoryWorkspacesOn(h *host) (*fleet, []*tenant, customer) {
	f := newFleet(h)
	who := f.serve(1, 1, "pro")[0]
	return f, append(f.clones(memoryWorkspaces-1, "pro"), who.tenant), who
}

// loadFew writes the smaller backlog. The customer's own is of one length over either, and so are the lists it asks for.
func (f *fleet) loadFew(all []*tenant, who customer) {
	f.load(all, memoryFew-memoryListed, memoryPrompt)
	f.load([]*tenant{who.tenant}, memoryListed, memoryPrompt)
	f.stand("pro", memoryWorkspaces)
}

// rssGrowth is what the ratio of a process is called by, before its name.
func rssGrowth(many int) string {
	return "RSS, " + backlogName(many) + " waiting to " + backlogName(memoryFew) + ": "
}

var musterProcesses = []string{"api", "worker", "scheduler"}

// residentAtWork starts the processes, lets them work for a while, the worker through tasks and the API through requests of
// one customer, and returns what each holds in memory towards the end, MiB.
func residentAtWork(f *fleet, who customer, settle time.Duration) map[string]float64 {
	c := newCrew(f.h, f.env, map[string]string{"WORKER_CONCURRENCY": "10"})
	for _, name := range musterProcesses {
		c.start(name, name)
	}
	ticker := time.NewTicker(time.Second / memoryRequestsPerSecond)
	defer ticker.Stop()
	paths := []string{"/v1/tasks?limit=200", "/v1/quota"}
	samples, requests := map[string][]float64{}, int(settle.Seconds()*memoryRequestsPerSecond)
	for i := range requests {
		<-ticker.C
		f.h.must(c.get(paths[i%len(paths)], who.token))
		if i < requests*3/4 || i%10 > 0 {
			continue // not settled yet, or looked at a moment ago
		}
		for _, name := range musterProcesses {
			samples[name] = append(samples[name], rss(f.h, c.procs[name].PID()))
		}
	}
	resident := map[string]float64{}
	for name, s := range samples {
		resident[name] = median(s)
	}
	c.end()
	calls := c.models.Stats().Calls // one for each attempt
	if calls == 0 {
		f.h.Fatal("the worker ran nothing")
	}
	f.began.Add(calls)
	return resident
}

// rss is the resident memory of a process, MiB.
func rss(h *host, pid int) float64 {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	h.must(err)
	for line := range strings.Lines(string(raw)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(value)[0], 64)
			h.must(err)
			return kib / 1024
		}
	}
	h.Fatal("no VmRSS in /proc")
	return 0
}

// redisMemory is used_memory when nothing writes, bytes.
func redisMemory(h *host, rdb *redis.Client) float64 {
	info, err := rdb.InfoMap(context.Background(), "memory").Result()
	h.must(err)
	used, err := strconv.ParseFloat(info["Memory"]["used_memory"], 64)
	h.must(err)
	return used
}

// stand waits until so many turns of a tier stand in Redis.
func (f *fleet) stand(queue string, turns int) {
	line := jobs.NewLine(f.rdb)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		pending, active, err := line.Depth(queue)
		f.h.must(err)
		if pending == turns {
			return
		}
		if time.Now().After(deadline) {
			f.h.Fatalf("after a minute %d turns stand in line and %d are out; want %d and none", pending, active, turns)
		}
	}
}

// memoryAsynq: the same for bare Asynq, whose tasks lie in Redis with their payload.
func memoryAsynq(h *host, scale int) []figure {
	const payload = 200 // bytes, a short prompt
	pair, n := h.servers(), 100_000/scale
	opt, err := asynq.ParseRedisURI(pair.Redis.URL(0))
	h.must(err)
	client := asynq.NewClient(opt)
	defer client.Close()
	rdb := opt.MakeRedisClient().(*redis.Client)
	defer rdb.Close()
	before := redisMemory(h, rdb)
	fill(h, client, n, strings.Repeat("x", payload))
	return []figure{{redisPerTask, (redisMemory(h, rdb) - before) / float64(n), "B"}}
}
