package jobs_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/generic-corp/muster/jobs"
	"github.com/generic-corp/muster/store/storetest"
)

// slowTrips counts round trips and the scripts in them, and holds each of them until it may go.
type slowTrips struct {
	trips, scripts atomic.Int64
	hold           chan struct{}
}

func (s *slowTrips) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}
func (s *slowTrips) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }
func (s *slowTrips) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if cmds[0].Name() == "evalsha" { // not what a new connection begins with
			s.scripts.Add(int64(len(cmds)))
			s.trips.Add(1)
			<-s.hold
		}
		return next(ctx, cmds)
	}
}

func TestPipe(t *testing.T) {
	t.Parallel()
	echo := redis.NewScript(`if ARGV[1] == "bad" then return redis.error_reply("NO " .. ARGV[1]) end return ARGV[1]`)
	open := func(t *testing.T) (*jobs.Pipe, *slowTrips) {
		rdb := storetest.New(t).Redis(t)
		if err := echo.Load(context.Background(), rdb).Err(); err != nil {
			t.Fatal(err)
		}
		s := &slowTrips{hold: make(chan struct{})}
		rdb.AddHook(s)
		p := jobs.NewPipe(rdb)
		t.Cleanup(func() { _ = p.Close() })
		return p, s
	}

	t.Run("ScriptsShareRoundTripsAndEachGetsItsOwnAnswer", func(t *testing.T) {
		t.Parallel()
		p, s := open(t)
		var asked sync.WaitGroup
		for i := range 50 {
			asked.Go(func() {
				want := fmt.Sprint(i)
				if i == 7 {
					want = "bad"
				}
				got, err := echo.Run(context.Background(), p, []string{"key"}, want).Text()
				if i == 7 && (err == nil || err.Error() != "NO bad") {
					t.Errorf("the script that fails answers %q, %v", got, err)
				} else if i != 7 && (err != nil || got != want) {
					t.Errorf("script %d answers %q, %v", i, got, err)
				}
			})
		}
		for s.trips.Load() == 0 || s.scripts.Load()+int64(p.Gathered()) < 50 {
			time.Sleep(time.Millisecond) // until the others have gathered behind the first
		}
		close(s.hold)
		asked.Wait()
		if n := s.trips.Load(); n > 2 {
			t.Errorf("%d round trips for 50 scripts, of which all but the first could share one", n)
		}
	})

	t.Run("ACallerWaitsNoLongerThanItsContext", func(t *testing.T) {
		t.Parallel()
		p, s := open(t)
		ctx, cancel := context.WithCancel(context.Background())
		answer := make(chan error, 1)
		go func() { answer <- p.EvalSha(ctx, echo.Hash(), []string{"key"}, "x").Err() }()
		for s.trips.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
		cancel()
		if err := <-answer; !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		close(s.hold)
	})
}
