package api

import (
	"bytes"
	"context"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/generic-corp/muster/api/outbound"
	"github.com/generic-corp/muster/api/webhooks"
	"github.com/generic-corp/muster/store"
)

// eventFault says how a delivery differs from what OpenAPI's webhooks publish, "" when it does not.
func eventFault(event string, header http.Header, body []byte) string {
	at := "/webhooks/" + event + "/post"
	operation, ok := lookUp(loadContract().document, at).(map[string]any)
	if !ok {
		return "the event is not documented"
	}
	check := func(pointer string, instance any) string {
		schema, err := loadContract().schema(pointer)
		if err == nil {
			err = schema.Validate(instance)
		}
		if err != nil {
			return err.Error()
		}
		return ""
	}
	for i, p := range operation["parameters"].([]any) {
		name := p.(map[string]any)["name"].(string)
		if len(header[name]) != 1 {
			return "the header " + name + " is missing"
		}
		if fault := check(at+"/parameters/"+string(rune('0'+i))+"/schema", header.Get(name)); fault != "" {
			return name + ": " + fault
		}
	}
	media := header.Get("Content-Type")
	if lookUp(operation, "/requestBody/content/"+escapeJSON.Replace(media)) == nil {
		return "the content type " + media + " is not documented"
	}
	instance, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		return err.Error()
	}
	return check(at+"/requestBody/content/"+escapeJSON.Replace(media)+"/schema", instance)
}

// TestWhatIsSentToWebhooksIsAsPublished receives an event of each kind over HTTP and holds it against OpenAPI.
func TestWhatIsSentToWebhooksIsAsPublished(t *testing.T) {
	t.Parallel()
	rules := outbound.Rules{Loopback: true}
	var keys webhooks.Keys
	w := newWorld(t, func(c *Config) { c.Webhooks.Rules, keys = rules, c.Webhooks.Keys })
	c := w.owner("pro")
	type delivery struct {
		header http.Header
		body   []byte
	}
	arrived := make(chan delivery, 100)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		arrived <- delivery{r.Header, body}
	}))
	t.Cleanup(server.Close)
	hook := c.post("/v1/webhooks", map[string]any{"url": server.URL, "events": store.WebhookEvents}).want(201).str("id")

	f := w.fleet()
	c.post("/v1/tasks", map[string]any{"prompt": "a", "metadata": map[string]string{"k": "v"}, "input": map[string]any{"x": 1}}).want(202)
	f.finish(f.start(c.ws), store.Succeeded, store.AttemptUsage{AgentMS: 5})
	c.post("/v1/tasks", map[string]any{"prompt": "b", "max_attempts": 1}).want(202)
	f.finish(f.start(c.ws), store.Failed, store.AttemptUsage{AgentMS: 5})
	id := c.post("/v1/tasks", map[string]any{"prompt": "c", "run_at": "2100-01-01T00:00:00Z", "expires_at": "2100-01-02T00:00:00Z"}).want(202).str("id")
	c.post("/v1/tasks/"+id+"/cancel", nil).want(202)
	w.exec(`UPDATE workspace_load SET quota_ms = 300000 WHERE workspace_id = $1`, c.ws)
	c.post("/v1/tasks", map[string]any{"prompt": "d"}).want(202)
	f.finish(f.start(c.ws), store.Succeeded, store.AttemptUsage{AgentMS: 250_000})
	c.post("/v1/webhooks/"+hook+"/rotate", map[string]any{"overlap_seconds": 600}).want(201) // two signatures
	c.post("/v1/webhooks/"+hook+"/test", nil).want(202)

	sender := webhooks.New(webhooks.Config{Ledger: store.NewSystem(w.env.System(t)), Client: rules.Client(), Keys: keys, Render: WebhookBody,
		Metrics: webhooks.NewMetrics(prometheus.NewRegistry()), Log: zerolog.New(w.log), Version: "test"})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); sender.Run(ctx) }()
	t.Cleanup(func() { stop(); <-ended })

	seen := map[string]delivery{}
	for range 6 {
		select {
		case d := <-arrived:
			instance, err := jsonschema.UnmarshalJSON(bytes.NewReader(d.body))
			if err != nil {
				t.Fatal(err)
			}
			event, _ := lookUp(instance, "/type").(string)
			if fault := eventFault(event, d.header, d.body); fault != "" {
				t.Errorf("%s %v %s: %s", event, d.header, d.body, fault)
			}
			seen[event] = d
		case <-t.Context().Done():
			t.Fatal("fewer events than were caused")
		}
	}
	published := slices.Sorted(maps.Keys(loadContract().document["webhooks"].(map[string]any)))
	if got := slices.Sorted(maps.Keys(seen)); !slices.Equal(got, published) {
		t.Errorf("sent were %v, published are %v", got, published)
	}
	// The check sees a drift.
	drifted := seen[store.EventTaskFailed]
	if eventFault(store.EventTaskSucceeded, drifted.header, bytes.Replace(drifted.body, []byte(`"truncated"`), []byte(`"cut"`), 1)) == "" ||
		eventFault(store.EventTaskFailed, http.Header{"Content-Type": {"application/json"}}, drifted.body) == "" {
		t.Error("a body or headers that are not as published pass")
	}
}
