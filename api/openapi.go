package api

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"

	"github.com/swaggest/jsonschema-go"
	"github.com/swaggest/openapi-go"
	"github.com/swaggest/openapi-go/openapi31"
)

// openAPIJSON is the document's outline.
type openAPIJSON struct {
	OpenAPI    string     `json:"openapi"`
	Info       jsonObject `json:"info"`
	Paths      jsonObject `json:"paths"`
	Webhooks   jsonObject `json:"webhooks"`
	Components jsonObject `json:"components"`
}

// describe writes OpenAPI 3.1 from the route table and the request and answer types. Every field of an answer that is
// not omitempty is required and no other field is allowed, so that tests can hold every answer against it.
func describe(table []route, version string) ([]byte, error) {
	r := openapi31.NewReflector()
	r.Spec.Info.WithTitle("Muster").WithVersion(version).WithDescription("Runs AI-agent tasks. Errors are application/problem+json (RFC 9457).")
	r.Spec.SetHTTPBearerTokenSecurity("bearer", "access token or API key", "An access token of a session, or an API key (mst_live_...).")
	r.DefaultOptions = append(r.DefaultOptions, jsonschema.InterceptProp(closeObjects), jsonschema.InterceptNullability(arraysAreNeverNull),
		jsonschema.InterceptDefName(componentName), func(rc *jsonschema.ReflectContext) { rc.EnvelopNullability = true })
	for i := range table {
		if err := describeRoute(r, &table[i]); err != nil {
			return nil, fmt.Errorf("%s: %w", table[i].pattern(), err)
		}
	}
	if err := describeWebhooks(r); err != nil {
		return nil, fmt.Errorf("webhooks: %w", err)
	}
	raw, err := json.Marshal(r.Spec)
	if err != nil {
		return nil, err
	}
	var document any
	if err := json.Unmarshal(raw, &document); err != nil {
		return nil, err
	}
	letNullBe(document)
	return json.Marshal(document)
}

// letNullBe takes back the reflector's type beside an anyOf that allows null, since both would have to hold, and adds null to an
// enum of a type that allows it.
func letNullBe(node any) {
	switch n := node.(type) {
	case []any:
		for _, element := range n {
			letNullBe(element)
		}
	case map[string]any:
		if alternatives, ok := n["anyOf"].([]any); ok && len(alternatives) > 0 {
			if first, _ := alternatives[0].(map[string]any); first["type"] == "null" {
				delete(n, "type")
			}
		}
		types, _ := n["type"].([]any)
		if values, ok := n["enum"].([]any); ok && slices.Contains(types, any("null")) && !slices.Contains(values, nil) {
			n["enum"] = append(values, nil)
		}
		for _, element := range n {
			letNullBe(element)
		}
	}
}

func describeRoute(r *openapi31.Reflector, t *route) error {
	oc, err := r.NewOperationContext(t.method, t.path)
	if err != nil {
		return err
	}
	oc.SetID(operationID(t))
	oc.SetSummary(t.summary)
	oc.SetTags(tagOf(t.path))
	oc.SetDescription(t.fullDetails())
	if !t.anonymous {
		oc.AddSecurity("bearer")
	}
	if t.params != nil {
		oc.AddReqStructure(t.params)
	}
	if t.idempotent {
		oc.AddReqStructure(struct {
			Key string `header:"Idempotency-Key" minLength:"1" maxLength:"255" description:"The same key and body again get the first answer; kept at least 24 h."`
		}{})
	}
	if t.body != nil {
		oc.AddReqStructure(t.body, requiredBody)
	}
	for status, body := range t.answers {
		options := []openapi.ContentOption{openapi.WithHTTPStatus(status), openapi.WithCustomize(t.addHeaders(status))}
		if t.media != "" {
			options = append(options, openapi.WithContentType(t.media))
		}
		oc.AddRespStructure(body, options...)
		if t.csv {
			oc.AddRespStructure(new(string), openapi.WithHTTPStatus(status), openapi.WithContentType(mediaCSV), openapi.WithCustomize(t.addHeaders(status)))
		}
	}
	byStatus := map[int][]string{}
	for _, p := range t.allProblems() {
		if !slices.Contains(byStatus[p.status], p.slug) {
			byStatus[p.status] = append(byStatus[p.status], p.slug)
		}
	}
	for status, slugs := range byStatus {
		oc.AddRespStructure(problemJSON{}, openapi.WithHTTPStatus(status), openapi.WithContentType(problemContentType),
			openapi.WithCustomize(t.addHeaders(status)), func(cu *openapi.ContentUnit) {
				cu.Description = http.StatusText(status) + ": " + strings.Join(slugs, ", ")
			})
	}
	return r.AddOperation(oc)
}

func requiredBody(cu *openapi.ContentUnit) {
	cu.Customize = func(cor openapi.ContentOrReference) {
		if body, ok := cor.(*openapi31.RequestBodyOrReference); ok && body.RequestBody != nil {
			body.RequestBody.WithRequired(true)
		}
	}
}

// fullDetails adds who may call it.
func (r *route) fullDetails() string {
	rights := "Needs no credential."
	switch {
	case r.session:
		rights = "Needs an access token."
	case !r.anonymous && r.scope != "":
		rights = fmt.Sprintf("Needs the role %s and the scope %s.", r.role, r.scope)
	case len(r.fieldScopes) > 0:
		rights = fmt.Sprintf("Needs the role %s, and a scope for each field that changes:", r.role)
		for i, field := range slices.Sorted(maps.Keys(r.fieldScopes)) {
			if i > 0 {
				rights += ","
			}
			rights += fmt.Sprintf(" %s for %s", r.fieldScopes[field], field)
		}
		rights += "."
	case !r.anonymous:
		rights = "Needs any credential."
	}
	return strings.TrimSpace(r.details + " " + rights)
}

// addHeaders names the headers of an answer.
func (r *route) addHeaders(status int) func(openapi.ContentOrReference) {
	headers := map[string]string{"X-Request-ID": "Names the request in problems and in support."}
	if !r.limits().unlimited {
		headers[headerPolicy] = "The limits that applied: name, q requests in any span of w seconds."
		headers[headerLimits] = "How they stand: r requests are left; after t seconds some are given back."
		headers[headerLimit] = "Of the limit with the least left: requests in its span."
		headers[headerRemaining] = "Of the same: requests left."
		headers[headerReset] = "Of the same: when some are given back, seconds since 1970."
	}
	if status < 300 {
		for _, h := range r.headers {
			headers[h] = ""
		}
		if r.idempotent {
			headers["Idempotent-Replayed"] = "true: this is the answer to an earlier request with the key."
		}
	}
	switch status {
	case http.StatusUnauthorized:
		headers["WWW-Authenticate"] = ""
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		headers["Retry-After"] = "Seconds."
	}
	return func(cor openapi.ContentOrReference) {
		resp, ok := cor.(*openapi31.ResponseOrReference)
		if !ok || resp.Response == nil {
			return
		}
		for name, description := range headers {
			h := openapi31.Header{Schema: map[string]any{"type": "string"}}
			if description != "" {
				h.WithDescription(description)
			}
			resp.Response.WithHeadersItem(name, openapi31.HeaderOrReference{Header: &h})
		}
	}
}

// closeObjects makes the fields of answers and of webhooks' events required and lets no object have others.
func closeObjects(p jsonschema.InterceptPropParams) error {
	if !p.Processed || p.ParentSchema == nil {
		return nil
	}
	name, options, _ := strings.Cut(p.Field.Tag.Get("json"), ",")
	if name == "" {
		return nil
	}
	no := false
	p.ParentSchema.AdditionalProperties = &jsonschema.SchemaOrBool{TypeBoolean: &no}
	oc, ok := openapi.OperationCtx(p.Context)
	if ok && (oc.IsProcessingResponse() || describesWebhook(oc)) && !strings.Contains(options, "omitempty") && !slices.Contains(p.ParentSchema.Required, name) {
		p.ParentSchema.Required = append(p.ParentSchema.Required, name)
	}
	return nil
}

// arraysAreNeverNull: our answers always have an array where the type has one.
func arraysAreNeverNull(p jsonschema.InterceptNullabilityParams) {
	if p.Type.Kind() == reflect.Slice && p.Schema.Ref == nil {
		p.Schema.RemoveType(jsonschema.Null)
	}
}

// componentName writes taskItemJSON as TaskItem.
func componentName(t reflect.Type, name string) string {
	name = strings.TrimSuffix(strings.TrimPrefix(name, "Api"), "JSON")
	if t.Name() != "" && strings.HasPrefix(t.Name(), "listJSON[") {
		_, element, _ := strings.Cut(t.Name(), "api.")
		element = strings.TrimSuffix(strings.TrimSuffix(element, "]"), "JSON")
		name = "List" + strings.ToUpper(element[:1]) + element[1:]
	}
	return name
}

func tagOf(path string) string {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	if parts[0] != "v1" {
		return "operators"
	}
	return parts[1]
}

// operationID is the method and the words of the path.
func operationID(r *route) string {
	words := strings.FieldsFunc(strings.TrimPrefix(r.path, "/v1"), func(c rune) bool { return !('a' <= c && c <= 'z') })
	id := strings.ToLower(r.method)
	for _, w := range words {
		id += strings.ToUpper(w[:1]) + w[1:]
	}
	return id
}
