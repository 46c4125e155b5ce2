package worker_test

import (
	"context"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/generic-corp/muster/jobs"
	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/store/storetest"
	"github.com/generic-corp/muster/worker/agent"
	"github.com/generic-corp/muster/worker/provider"
	"github.com/generic-corp/muster/worker/provider/providertest"
)

// TestATaskNeverRunsOnAModelThatThePlanLost: a task that waited for a dear model while its plan shrank fails for good,
// and no call is made; auto goes on with a model that is left.
func TestATaskNeverRunsOnAModelThatThePlanLost(t *testing.T) {
	t.Parallel()
	models := providertest.New()
	server := httptest.NewServer(models)
	t.Cleanup(server.Close)
	router, err := provider.New(provider.Config{OpenAI: provider.Options{APIKey: "sk-test", BaseURL: server.URL + "/v1"}})
	if err != nil {
		t.Fatal(err)
	}
	prices, err := provider.LoadPrices("")
	if err != nil {
		t.Fatal(err)
	}
	config := agent.Config{Router: router, Prices: prices}
	r := start(t, time.Minute, func(ctx context.Context, task agent.Task, calls agent.Recorder) (agent.Result, error) {
		return agent.Run(ctx, config, task, calls)
	})
	ctx := t.Context()
	ws := storetest.NewWorkspace(t, r.env, "pro")
	operator := store.Operator{Name: "test"}
	if err := r.system.Pause(ctx, ws, operator); err != nil {
		t.Fatal(err)
	}
	ids := r.submit(ws, store.NewTask{Agent: "yuki", Model: "openai/gpt-6-astra", Prompt: "x", TimeoutMS: 60_000, MaxAttempts: 3},
		store.NewTask{Agent: "yuki", Model: "auto", Prompt: "x", TimeoutMS: 60_000, MaxAttempts: 3})
	allowed := []string{"openai/gpt-6-luna"}
	if _, err := r.system.Override(ctx, ws, nil, &allowed, operator); err != nil {
		t.Fatal(err)
	}
	turns, err := r.system.Resume(ctx, ws, operator)
	if err != nil {
		t.Fatal(err)
	}
	for _, turn := range turns {
		r.turns.Enqueue(jobs.Turn(turn))
	}
	dear, auto := r.await(ws, ids[0], store.StatusFailed), r.await(ws, ids[1], store.StatusSucceeded)
	if e := string(dear.Error); !strings.Contains(e, `"code": "model_not_allowed"`) || !strings.Contains(e, "gpt-6-luna") || strings.Contains(e, `"retryable": true`) {
		t.Errorf("error %s", e)
	}
	if dear.Attempt != 1 || dear.ProviderCalls != 0 || auto.ProviderCalls != 1 {
		t.Errorf("attempts %d, calls %d and %d", dear.Attempt, dear.ProviderCalls, auto.ProviderCalls)
	}
	for _, call := range models.Recent() {
		if call.Model != "gpt-6-luna" {
			t.Errorf("%s was called", call.Model)
		}
	}
}
