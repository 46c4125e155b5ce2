package api

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// What all customers asked in one moment is not asked again in one moment.
func TestRememberedAnswersEndAtDifferentTimes(t *testing.T) {
	t.Parallel()
	const life, n = time.Hour, 300
	r := remember[int, int](life, make(chan struct{}, asksAtOnce))
	from := time.Now()
	for key := range n {
		r.add(key, key)
	}
	to := time.Now()
	var byThird [3]int // of the span in which they end
	for key := range n {
		b, _ := r.lru.Peek(key)
		if b.until.Before(from.Add(life*2/3-time.Second)) || b.until.After(to.Add(life)) {
			t.Fatalf("an answer is believed until %s, want two thirds of the life to all of it", b.until.Sub(from))
		}
		byThird[min(2, max(0, int(b.until.Sub(from.Add(life*2/3))/(life/9))))]++
	}
	for i, ended := range byThird {
		if ended < n/6 { // a third is expected; half of that is six standard deviations away
			t.Errorf("%d of %d answers end in part %d of the span: %v", ended, n, i+1, byThird)
		}
	}
}

func TestRememberedIsAskedByFewAtATime(t *testing.T) {
	t.Parallel()
	r := remember[int, int](time.Hour, make(chan struct{}, asksAtOnce))
	var asking, most, asked atomic.Int64
	full, release := make(chan struct{}), make(chan struct{})
	ask := func(context.Context) (int, error) {
		asked.Add(1)
		n := asking.Add(1)
		defer asking.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		if n == asksAtOnce {
			close(full)
		}
		<-release
		return 7, nil
	}
	var all sync.WaitGroup
	for range 10 * asksAtOnce {
		all.Go(func() {
			if v, err := r.get(context.Background(), 1, ask); v != 7 || err != nil {
				t.Errorf("%d, %v", v, err)
			}
		})
	}
	<-full
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := r.get(ended, 2, ask); !errors.Is(err, context.Canceled) {
		t.Errorf("without room and out of time: %v", err)
	}
	close(release)
	all.Wait()
	if most.Load() != asksAtOnce || asked.Load() != asksAtOnce {
		t.Errorf("%d asked, at most %d at once; want %d: the others find the answer", asked.Load(), most.Load(), asksAtOnce)
	}
	failed := errors.New("away")
	if _, err := r.get(context.Background(), 3, func(context.Context) (int, error) { return 0, failed }); !errors.Is(err, failed) {
		t.Errorf("%v", err)
	}
	if _, ok := r.known(3); ok {
		t.Error("an error is remembered")
	}
}
