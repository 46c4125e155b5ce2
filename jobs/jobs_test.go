package jobs_test

import (
	"context"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/jobs"
	"github.com/generic-corp/muster/store/storetest"
)

func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }

func turn(n byte) jobs.Turn {
	return jobs.Turn{Workspace: uuid.UUID{0: 1, 15: n}, ID: uuid.UUID{0: 2, 15: n}, Queue: "pro", IssuedAt: time.UnixMilli(1_700_000_000_000 + int64(n)).UTC()}
}

// deliver puts turns on their queues and waits until they are there.
func deliver(t *testing.T, rdb redis.UniversalClient, turns ...jobs.Turn) {
	t.Helper()
	for _, next := range turns { // one by one: the order in the queue is the order here
		e := jobs.NewEnqueuer(rdb, zerolog.Nop())
		e.Enqueue(next)
		e.Close()
		if e.Dropped() != 0 {
			t.Fatal("a turn was dropped")
		}
	}
}

func TestTurns(t *testing.T) {
	t.Parallel()
	ctx := context.Background()

	t.Run("TheMessageIsWhatAnotherVersionReads", func(t *testing.T) {
		t.Parallel()
		rdb := storetest.New(t).Redis(t)
		deliver(t, rdb, turn(7))
		info, err := asynq.NewInspectorFromRedisClient(rdb).GetTaskInfo("pro", turn(7).ID.String())
		if err != nil {
			t.Fatal(err)
		}
		const golden = `{"workspace":"01000000-0000-0000-0000-000000000007","turn":"02000000-0000-0000-0000-000000000007","issued_at_ms":1700000000007}`
		if string(info.Payload) != golden || info.Type != "turn" {
			t.Errorf("%s %s", info.Type, info.Payload)
		}
		if info.MaxRetry < 1 || info.Timeout < 10*time.Minute || info.Retention != 0 {
			t.Errorf("retry %d, timeout %s, retention %s: a turn survives a claim that could not reach the ledger, outlasts any task, and leaves nothing", info.MaxRetry, info.Timeout, info.Retention)
		}
		back, err := jobs.ParseTurn(info.Payload)
		if want := turn(7); err != nil || back.ID != want.ID || back.Workspace != want.Workspace || !back.IssuedAt.Equal(want.IssuedAt) {
			t.Errorf("%+v, %v", back, err)
		}
		if _, err := jobs.ParseTurn([]byte("{")); err == nil {
			t.Error("nonsense was read as a turn")
		}
	})

	t.Run("TheSameTurnStandsInLineOnce", func(t *testing.T) {
		t.Parallel()
		rdb := storetest.New(t).Redis(t)
		deliver(t, rdb, turn(1), turn(1))
		if pending, _, err := jobs.NewLine(rdb).Depth("pro"); err != nil || pending != 1 {
			t.Errorf("%d pending, %v", pending, err)
		}
	})

	t.Run("TheOldestPendingTurnIsTheOneThatComesNext", func(t *testing.T) {
		t.Parallel()
		rdb := storetest.New(t).Redis(t)
		line := jobs.NewLine(rdb)
		if _, ok, err := line.OldestPending("pro"); ok || err != nil {
			t.Errorf("an unknown queue: %v, %v", ok, err)
		}
		deliver(t, rdb, turn(3), turn(1), turn(2))
		if at, ok, err := line.OldestPending("pro"); err != nil || !ok || !at.Equal(turn(3).IssuedAt) {
			t.Errorf("%s, %v, %v", at, ok, err)
		}
	})

	t.Run("QueuesAreFoundAgainAfterAFlush", func(t *testing.T) {
		t.Parallel()
		rdb := storetest.New(t).Redis(t)
		line := jobs.NewLine(rdb)
		e := jobs.NewEnqueuer(rdb, zerolog.Nop()) // one client, which caches that it has published its queue
		e.Enqueue(turn(1))
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			if pending, _, err := line.Depth("pro"); err == nil && pending == 1 {
				break
			} else if time.Now().After(deadline) {
				t.Fatal("the turn never arrived")
			}
		}
		if err := rdb.FlushDB(ctx).Err(); err != nil {
			t.Fatal(err)
		}
		e.Enqueue(turn(2))
		e.Close()
		if _, ok, _ := line.OldestPending("pro"); ok {
			t.Error("asynq publishes its queues again by itself now: PublishQueues can go")
		}
		if err := line.PublishQueues(ctx, "pro"); err != nil {
			t.Fatal(err)
		}
		if at, ok, err := line.OldestPending("pro"); err != nil || !ok || !at.Equal(turn(2).IssuedAt) {
			t.Errorf("%s, %v, %v", at, ok, err)
		}
	})

	t.Run("WithRedisAwayTurnsAreDroppedAndCountedAndNobodyWaits", func(t *testing.T) {
		t.Parallel()
		rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1", MaxRetries: -1})
		defer rdb.Close()
		e := jobs.NewEnqueuer(rdb, zerolog.Nop())
		const n = 40_000 // more than it keeps
		began := time.Now()
		for i := range n {
			e.Enqueue(turn(byte(i)))
		}
		took := time.Since(began)
		e.Close()
		if e.Dropped() != n {
			t.Errorf("%d dropped of %d", e.Dropped(), n)
		}
		if took > 5*time.Second {
			t.Errorf("enqueueing took %s: it waited for redis", took)
		}
	})

	t.Run("WhatComesAfterTheCloseIsDroppedAndCounted", func(t *testing.T) {
		t.Parallel()
		e := jobs.NewEnqueuer(storetest.New(t).Redis(t), zerolog.Nop())
		var late sync.WaitGroup // requests and agents that outlive their process's patience
		for range 8 {
			late.Go(func() {
				for e.Dropped() == 0 {
					e.Enqueue(turn(1))
				}
			})
		}
		e.Close()
		e.Close()
		e.Enqueue(turn(2))
		late.Wait()
	})

	t.Run("ACancelIsHeard", func(t *testing.T) {
		t.Parallel()
		rdb := storetest.New(t).Redis(t)
		ctx, stop := context.WithCancel(ctx)
		heard, ended := make(chan uuid.UUID, 100), make(chan struct{})
		go func() {
			defer close(ended)
			jobs.SubscribeCancels(ctx, rdb, func(id uuid.UUID) { heard <- id })
		}()
		id := uuid.New()
		for got := uuid.Nil; got != id; { // until the subscription stands
			if err := jobs.PublishCancels(ctx, rdb, id); err != nil {
				t.Fatal(err)
			}
			select {
			case got = <-heard:
			case <-time.After(10 * time.Millisecond):
			}
		}
		stop()
		<-ended
	})
}

func TestPush(t *testing.T) {
	t.Parallel()
	task, err := jobs.NewPushTask(jobs.Push{Day: "2026-11-23"})
	if err != nil {
		t.Fatal(err)
	}
	if task.Type() != "billing:push" || string(task.Payload()) != `{"day":"2026-11-23"}` {
		t.Errorf("%s %s", task.Type(), task.Payload())
	}
	rdb := storetest.New(t).Redis(t)
	client := asynq.NewClientFromRedisClient(rdb)
	if _, err := client.Enqueue(task); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Enqueue(task); err == nil {
		t.Error("the same night is queued twice")
	}
	if p, err := jobs.ParsePush(task.Payload()); err != nil || p.Day != "2026-11-23" {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestRedisURLs(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]bool{
		"redis://localhost:6379": true, "redis://:secret@h:1/3": true, "rediss://u:p@h:6380": true, "redis-sentinel://h:1,h2:2?master=m": true,
		"redis-sentinel://u:secret@h:1,h2:2/3?master=m": true, "rediss-sentinel://h:1?master=m&sentinel_auth=no": true,
		"redis-sentinel://h:1": false, "redis-sentinel://:secret@h:1,,h:2?master=m": false, "redis-sentinel://h:1/x?master=m": false, "redis-sentinel://h:1?master=m&sentinel_auth=secret": false,
		"redis-cluster://h:1": true, "redis-cluster://u:p@h:1,h2:2": true, "rediss-cluster://h:1": true,
		"": false, "localhost:6379": false, "http://h": false, "redis-cluster://": false, "redis-cluster://h:1,,h:2": false, "redis://h:1/x": false,
	} {
		opt, err := jobs.ParseRedisURL(url)
		if (err == nil) != want {
			t.Errorf("%q: %v", url, err)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: the error shows the password", url)
		}
		if err == nil {
			rdb, err := jobs.NewRedis(opt)
			if err != nil {
				t.Errorf("%q: %v", url, err)
				continue
			}
			rdb.Close()
		}
	}
}

// Asynq's own reading would keep the servers' password, TLS and the database from the servers.
func TestSentinelURLsReachTheServersToo(t *testing.T) {
	t.Parallel()
	opt, err := jobs.ParseRedisURL("rediss-sentinel://u:secret@h:1,h2:2/3?master=m")
	o, ok := opt.(asynq.RedisFailoverClientOpt)
	if err != nil || !ok || o.MasterName != "m" || len(o.SentinelAddrs) != 2 || o.Username != "u" || o.Password != "secret" || o.SentinelPassword != "secret" || o.DB != 3 || o.TLSConfig == nil {
		t.Errorf("%T, %v", opt, err)
	}
	opt, err = jobs.ParseRedisURL("redis-sentinel://:secret@h:1?master=m&sentinel_auth=no")
	if o, ok := opt.(asynq.RedisFailoverClientOpt); err != nil || !ok || o.Password != "secret" || o.SentinelPassword != "" || o.TLSConfig != nil {
		t.Errorf("%T, %v", opt, err)
	}
}

func TestAnnouncementsTellOfTheLastNewcomer(t *testing.T) {
	t.Parallel()
	rdb := storetest.New(t).Redis(t)
	type news struct {
		queue    string
		newcomer time.Time
	}
	heard := make(chan news, 100)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go jobs.WatchTurns(ctx, rdb, func(queue string, newcomer time.Time) { heard <- news{queue, newcomer} })
	if n := <-heard; n.queue != "" {
		t.Fatalf("first of all: %+v", n)
	}
	e := jobs.NewEnqueuer(rdb, zerolog.Nop())
	defer e.Close()
	own := func(n byte) jobs.Turn { // what parallel tests announce has other queues
		one := turn(n)
		one.Queue = "announced"
		return one
	}
	e.Requeue(own(9))
	for n := range heard {
		if n.queue == "announced" {
			if !n.newcomer.IsZero() {
				t.Errorf("who comes back is a newcomer of %s", n.newcomer)
			}
			break
		}
	}
	e.Enqueue(own(3), own(5), own(4))
	for n := range heard {
		if n.queue == "announced" && n.newcomer.Equal(own(5).IssuedAt) {
			break
		}
	}
}
