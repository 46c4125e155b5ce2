package main

import (
	"testing"
	"time"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
)

// TestTierLoadsRest: a reading serves again while it rests, however often it is asked for, and a fresh one is made after that.
func TestTierLoadsRest(t *testing.T) {
	t.Parallel()
	env := storetest.New(t)
	api := store.NewAPI(env.API(t))
	loads := &tierLoads{system: store.NewSystem(env.System(t))}
	ws := storetest.NewWorkspace(t, env, "pro")
	waiting := func() (n int64, at time.Time) {
		t.Helper()
		tiers, at, err := loads.load(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, tier := range tiers {
			n += tier.Waiting
		}
		return n, at
	}
	_, first := waiting()
	if loads.rest <= 0 || loads.rest > restLimit {
		t.Errorf("rests for %s, want more than nothing and at most %s", loads.rest, restLimit)
	}
	loads.rest = time.Hour
	if _, _, err := api.Submit(t.Context(), ws, []store.NewTask{{Agent: "yuki", Model: "auto", Prompt: "p", TimeoutMS: 1000, MaxAttempts: 1}}); err != nil {
		t.Fatal(err)
	}
	if n, at := waiting(); n != 0 || at != first {
		t.Errorf("while it rests: %d waiting, read at %s, want 0 and %s", n, at, first)
	}
	loads.rest = 0
	if n, at := waiting(); n != 1 || !at.After(first) {
		t.Errorf("after its rest: %d waiting, read at %s, want 1 and later than %s", n, at, first)
	}
}
