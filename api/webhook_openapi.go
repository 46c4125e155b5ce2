package api

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/swaggest/openapi-go"
	"github.com/swaggest/openapi-go/openapi31"

	"github.com/generic-corp/muster/store"
)

// What endpoints are sent, as OpenAPI's webhooks tell it. WebhookBody writes these types.

// webhookHeaders are Standard Webhooks'.
type webhookHeaders struct {
	ID        string `header:"Webhook-Id" required:"true" pattern:"^evt_[0-9a-f]{32}$" description:"The event's, the same at each attempt: drop what you have had."`
	Timestamp string `header:"Webhook-Timestamp" required:"true" pattern:"^[0-9]+$" description:"Of this attempt, in seconds since 1970."`
	Signature string `header:"Webhook-Signature" required:"true" pattern:"^v1,[A-Za-z0-9+/]{43}=( v1,[A-Za-z0-9+/]{43}=)*$" description:"Of id.timestamp.body by HMAC-SHA-256 under each secret that signs."`
}

type taskEventJSON struct {
	Type      string        `json:"type" enum:"task.succeeded,task.failed,task.canceled"`
	Timestamp time.Time     `json:"timestamp" description:"When it ended."`
	Data      endedTaskJSON `json:"data"`
}

// endedTaskJSON is a task as its event tells it: as in lists, with its result.
type endedTaskJSON struct {
	taskItemJSON
	Result    *resultJSON `json:"result"`
	Truncated bool        `json:"truncated" description:"The result is left out, because the event would be larger than 256 KiB or the task is not kept any more."`
}

type quotaEventJSON struct {
	Type      string          `json:"type" enum:"quota.notice"`
	Timestamp time.Time       `json:"timestamp" description:"When the share was passed."`
	Data      quotaNoticeJSON `json:"data"`
}

type quotaNoticeJSON struct {
	Meter   string `json:"meter" enum:"agent_ms,provider_cost_microusd"`
	Percent int    `json:"percent" minimum:"80" maximum:"100" description:"80 or 100."`
	Used    int64  `json:"used"`
	Limit   int64  `json:"limit"`
	Period  string `json:"period" pattern:"^[0-9]{4}-[0-9]{2}$" description:"UTC month."`
}

type testEventJSON struct {
	Type      string    `json:"type" enum:"webhook.test"`
	Timestamp time.Time `json:"timestamp" description:"When it was asked for."`
	Data      struct {
		WebhookID string `json:"webhook_id"`
	} `json:"data"`
}

// webhookEvents are the events with their bodies.
var webhookEvents = []struct {
	name, summary string
	body          any
}{
	{store.EventTaskSucceeded, "A task has succeeded", taskEventJSON{}},
	{store.EventTaskFailed, "A task has failed for good", taskEventJSON{}},
	{store.EventTaskCanceled, "A task was canceled", taskEventJSON{}},
	{store.EventQuotaNotice, "80 or 100 percent of a month's quota are used", quotaEventJSON{}},
	{store.EventWebhookTest, "You asked for it", testEventJSON{}},
}

// webhookTag sets them apart from routes.
const webhookTag = "webhook events"

// describeWebhooks adds what is sent to endpoints.
func describeWebhooks(r *openapi31.Reflector) error {
	for _, e := range webhookEvents {
		oc, err := r.NewOperationContext(http.MethodPost, e.name)
		if err != nil {
			return err
		}
		of, what, _ := strings.Cut(e.name, ".")
		oc.SetID("on" + strings.ToUpper(of[:1]) + of[1:] + strings.ToUpper(what[:1]) + what[1:])
		oc.SetSummary(e.summary)
		oc.SetTags(webhookTag)
		oc.SetDescription("Sent to endpoints that ask for it (POST /v1/webhooks), signed as Standard Webhooks, at least once, in any order.")
		oc.AddReqStructure(webhookHeaders{})
		oc.AddReqStructure(e.body, requiredBody)
		for status, says := range map[int]string{200: "Any 2xx within 15 seconds: it has arrived.", 410: "Disables the endpoint.", 500: "As anything else, redirects too: it is sent again, eight times in a day."} {
			oc.AddRespStructure(nil, openapi.WithHTTPStatus(status), func(cu *openapi.ContentUnit) { cu.Description = says })
		}
		if err := r.AddWebhook(oc); err != nil {
			return err
		}
	}
	return nil
}

// describesWebhook reports whether an operation is one of webhookEvents, not of a route.
func describesWebhook(oc openapi.OperationContext) bool {
	return slices.Contains(oc.Tags(), webhookTag)
}
