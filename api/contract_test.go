package api

import (
	"bytes"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"sync"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// contract is OpenAPI, compiled.
type contract struct {
	mu       sync.Mutex
	compiler *jsonschema.Compiler
	document map[string]any
	compiled map[string]*jsonschema.Schema
}

var loadContract = sync.OnceValue(func() *contract {
	raw, err := describe(routes, "test")
	if err != nil {
		panic(err)
	}
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		panic(err)
	}
	c := &contract{compiler: jsonschema.NewCompiler(), document: document.(map[string]any), compiled: map[string]*jsonschema.Schema{}}
	c.compiler.DefaultDraft(jsonschema.Draft2020)
	c.compiler.AssertFormat()
	if err := c.compiler.AddResource("openapi.json", document); err != nil {
		panic(err)
	}
	return c
})

func (c *contract) schema(pointer string) (*jsonschema.Schema, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s, ok := c.compiled[pointer]; ok {
		return s, nil
	}
	s, err := c.compiler.Compile("openapi.json#" + pointer)
	if err == nil {
		c.compiled[pointer] = s
	}
	return s, err
}

var (
	pathVariable = regexp.MustCompile(`\\\{[a-z_]+\\\}`) // as QuoteMeta leaves it
	escapeJSON   = strings.NewReplacer("~", "~0", "/", "~1")
)

// routeOf finds the route that serves a request; literal paths win over variables.
func routeOf(method, path string) *route {
	var found *route
	for i := range routes {
		r := &routes[i]
		pattern := "^" + pathVariable.ReplaceAllString(regexp.QuoteMeta(r.path), "[^/]+") + "$"
		if r.method == method && regexp.MustCompile(pattern).MatchString(path) && (found == nil || !strings.Contains(r.path, "{")) {
			found = r
		}
	}
	return found
}

// contractFault says how an answer differs from what is published, "" when it does not.
func contractFault(method, path string, r *reply) string {
	if r.header.Get("X-Request-ID") == "" {
		return "no X-Request-ID"
	}
	media := r.header.Get("Content-Type")
	pointer := "/components/schemas/Problem"
	if route := routeOf(method, path); route != nil {
		at := fmt.Sprintf("/paths/%s/%s/responses/%d", escapeJSON.Replace(route.path), strings.ToLower(method), r.status)
		response, ok := lookUp(loadContract().document, at).(map[string]any)
		if !ok {
			return "the status is not documented"
		}
		content, _ := response["content"].(map[string]any)
		if len(content) == 0 {
			if len(r.body) > 0 {
				return "a body where none is documented"
			}
			return ""
		}
		if content[media] == nil {
			return fmt.Sprintf("the content type %q is not documented", media)
		}
		if media == eventMedia || media == mediaCSV {
			return ""
		}
		pointer = at + "/content/" + escapeJSON.Replace(media) + "/schema"
	} else if r.status != http.StatusNotFound && r.status != http.StatusMethodNotAllowed {
		return "an unknown route must be a 404 or a 405"
	}
	schema, err := loadContract().schema(pointer)
	if err != nil {
		return err.Error()
	}
	values := [][]byte{r.body}
	if media == exportMedia { // the schema is a line's
		values = bytes.Split(bytes.TrimSuffix(r.body, []byte("\n")), []byte("\n"))
	}
	for _, value := range values {
		instance, err := jsonschema.UnmarshalJSON(bytes.NewReader(value))
		if err != nil {
			return err.Error()
		}
		if err := schema.Validate(instance); err != nil {
			return err.Error()
		}
	}
	if r.status >= 400 {
		return problemFault(r, media)
	}
	return ""
}

func lookUp(document any, pointer string) any {
	for part := range strings.SplitSeq(strings.TrimPrefix(pointer, "/"), "/") {
		m, ok := document.(map[string]any)
		if !ok {
			return nil
		}
		document = m[strings.NewReplacer("~1", "/", "~0", "~").Replace(part)]
	}
	return document
}

// problemFault: what every problem promises.
func problemFault(r *reply, media string) string {
	switch {
	case media != problemContentType:
		return "an error that is no problem"
	case int(r.num("status")) != r.status:
		return "status differs from the answer's"
	case r.str("request_id") != r.header.Get("X-Request-ID"):
		return "request_id differs from X-Request-ID"
	case !strings.HasPrefix(r.str("type"), problemBase):
		return "type is not one of ours"
	case r.status == 401 && !strings.HasPrefix(r.header.Get("WWW-Authenticate"), "Bearer"):
		return "no WWW-Authenticate"
	case (r.status == 429 || r.status == 503) && r.header.Get("Retry-After") == "":
		return "no Retry-After"
	case r.str("type") == problemBase+"invalid" && len(r.list("errors")) == 0:
		return "a 422 that names no field"
	}
	return ""
}
