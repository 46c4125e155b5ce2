package main

import (
	"bytes"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/VictoriaMetrics/metricsql"
	"github.com/goccy/go-yaml"
	"github.com/redis/go-redis/v9"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/generic-corp/muster/api/ratelimit"
	"github.com/generic-corp/muster/api/webhooks"
	"github.com/generic-corp/muster/worker"
	"github.com/generic-corp/muster/worker/autoscale"
)

// What lies in deploy/ is held against the schemas of those who read it, and against the code.

// manifests are the files with their schemas.
var manifests = map[string][]string{
	"deploy/kubernetes/worker.yaml":       {"testdata/schemas/deployment.json"},
	"deploy/kubernetes/scaledobject.yaml": {"testdata/schemas/keda.sh_scaledobjects.yaml", "testdata/schemas/scaledobject_rules.json"},
	"deploy/alerts.yaml":                  {"testdata/schemas/alerts.json"},
}

// asJSON reads YAML as the values that JSON has.
func asJSON(t *testing.T, raw []byte) any {
	t.Helper()
	converted, err := yaml.YAMLToJSON(raw)
	if err != nil {
		t.Fatal(err)
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(converted))
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// definedSchema is the schema of a CustomResourceDefinition's version. The cluster drops fields that it does not have, silently; here
// they are refused.
func definedSchema(t *testing.T, file, version string) any {
	t.Helper()
	definition := asJSON(t, []byte(readDoc(t, file))).(map[string]any)["spec"].(map[string]any)
	for _, v := range definition["versions"].([]any) {
		if v := v.(map[string]any); v["name"] == version {
			schema := v["schema"].(map[string]any)["openAPIV3Schema"]
			refuseUnknown(schema)
			return schema
		}
	}
	t.Fatalf("%s has no version %s", file, version)
	return nil
}

func refuseUnknown(schema any) {
	s, ok := schema.(map[string]any)
	if !ok {
		return
	}
	properties, ok := s["properties"].(map[string]any)
	if ok && s["additionalProperties"] == nil {
		s["additionalProperties"] = false
	}
	for _, p := range properties {
		refuseUnknown(p)
	}
	refuseUnknown(s["items"])
	refuseUnknown(s["additionalProperties"])
}

func checkManifest(t *testing.T, raw []byte, schemas []string) error {
	t.Helper()
	document := asJSON(t, raw)
	for _, schema := range schemas {
		compiler := jsonschema.NewCompiler()
		if strings.HasSuffix(schema, ".yaml") {
			if err := compiler.AddResource(schema, definedSchema(t, schema, "v1alpha1")); err != nil {
				t.Fatal(err)
			}
		}
		compiled, err := compiler.Compile(schema)
		if err != nil {
			t.Fatal(err)
		}
		if err := compiled.Validate(document); err != nil {
			return err
		}
	}
	return nil
}

func TestDeployFitsTheSchemas(t *testing.T) {
	t.Parallel()
	for file, schemas := range manifests {
		if err := checkManifest(t, []byte(readDoc(t, file)), schemas); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
	for _, broken := range []struct{ file, what, from, to string }{
		{"deploy/kubernetes/worker.yaml", "a misspelt field", "terminationGracePeriodSeconds", "terminationGraceSeconds"},
		{"deploy/kubernetes/worker.yaml", "a number for a string", `value: "280"`, "value: 280"},
		{"deploy/kubernetes/scaledobject.yaml", "a string for a number", "minReplicaCount: 1", `minReplicaCount: "1"`},
		{"deploy/kubernetes/scaledobject.yaml", "a misspelt field", "stabilizationWindowSeconds: 300", "stabilisationWindowSeconds: 300"},
		{"deploy/kubernetes/scaledobject.yaml", "an unknown fallback", "behavior: currentReplicas", "behavior: asTheyAre"},
		{"deploy/kubernetes/scaledobject.yaml", "a trigger without a type", "- type: prometheus\n      name: runnable", "- name: runnable"},
		{"deploy/kubernetes/scaledobject.yaml", "a number in a trigger", `threshold: "49"`, "threshold: 49"},
		{"deploy/kubernetes/scaledobject.yaml", "what the scaler does not read", "ignoreNullValues", "ignoreNulls"},
		{"deploy/kubernetes/scaledobject.yaml", "no query", "query: sum(max by (queue) (muster_running_tasks))", "timeout: x"},
		{"deploy/alerts.yaml", "an alert without words", "annotations: {summary:", "annotations: {words:"},
	} {
		raw := readDoc(t, broken.file)
		if changed := strings.Replace(raw, broken.from, broken.to, 1); changed == raw || checkManifest(t, []byte(changed), manifests[broken.file]) == nil {
			t.Errorf("%s with %s passes", broken.file, broken.what)
		}
	}
}

// alert is a rule of deploy/alerts.yaml.
type alert struct {
	Alert, Expr, For string
	Labels           struct{ Severity string }
}

func alerts(t *testing.T) []alert {
	t.Helper()
	var file struct {
		Groups []struct{ Rules []alert }
	}
	if err := yaml.Unmarshal([]byte(readDoc(t, "deploy/alerts.yaml")), &file); err != nil {
		t.Fatal(err)
	}
	return file.Groups[0].Rules
}

// TestAlertsOfTheLineKeepTheirThresholds: more than 100 in line, and more than 5 minutes of waiting, are promised to be
// told, here and in the operators' handbook.
func TestAlertsOfTheLineKeepTheirThresholds(t *testing.T) {
	t.Parallel()
	rules := map[string]alert{}
	for _, r := range alerts(t) {
		rules[r.Alert] = r
	}
	handbook := readDoc(t, "docs/operations.md")
	for _, want := range []struct{ alert, expr, lasts, severity, row string }{
		{"MusterQueueDeep", "max by (queue) (muster_queue_depth) > 100", "5m", "ticket", "| queue deep | `%s` for 5 min |"},
		{"MusterWaitLong", "max by (queue) (muster_oldest_wait_seconds) > 300", "1m", "page", "| wait long | `%s` for 1 min |"},
		{"MusterAutoscaleHeld", "max(muster_autoscale_held) == 1", "5m", "ticket", "| autoscaler holds | `%s` for 5 min |"},
	} {
		r, ok := rules[want.alert]
		if !ok {
			t.Errorf("there is no alert %s", want.alert)
			continue
		}
		if got := canonical(t, r.Expr); got != canonical(t, want.expr) || r.For != want.lasts || r.Labels.Severity != want.severity {
			t.Errorf("%s is %s for %s, a %s; want %+v", want.alert, got, r.For, r.Labels.Severity, want)
		}
		if row := strings.ReplaceAll(want.row, "%s", want.expr); !strings.Contains(handbook, row) {
			t.Errorf("docs/operations.md does not say %s", row)
		}
	}
}

// canonical writes an expression in the parser's own way, whatever its spaces.
func canonical(t *testing.T, expr string) string {
	t.Helper()
	parsed, err := metricsql.Parse(expr)
	if err != nil {
		t.Fatal(err)
	}
	return string(parsed.AppendString(nil))
}

func TestAlertsAreExpressions(t *testing.T) {
	t.Parallel()
	parsed := 0
	for _, r := range alerts(t) {
		if _, err := metricsql.Parse(r.Expr); err != nil {
			t.Errorf("%s: %v", r.Alert, err)
		}
		if _, err := metricsql.Parse(strings.Replace(r.Expr, "(", "", 1)); err == nil && strings.Contains(r.Expr, "(") {
			t.Errorf("%s passes without a parenthesis", r.Alert)
		}
		parsed++
	}
	if parsed < 10 {
		t.Errorf("%d alerts were parsed", parsed)
	}
}

// exported is every metric that a process of ours exports.
func exported(t *testing.T) map[string]bool {
	t.Helper()
	reg := names{map[string]bool{}}
	worker.NewMetrics(reg)
	newSchedulerMetrics(reg)
	autoscale.NewMetrics(reg)
	webhooks.NewMetrics(reg)
	if _, err := ratelimit.New(ratelimit.Config{Redis: redis.NewClient(&redis.Options{}), Metrics: reg}); err != nil {
		t.Fatal(err)
	}
	reg.MustRegister(&fleetCollector{}, &marginCollector{})
	return reg.found
}

func TestDeployNamesMetricsAndSettingsThatExist(t *testing.T) {
	t.Parallel()
	metrics := exported(t)
	for file := range manifests {
		for _, name := range regexp.MustCompile(`\bmuster_[a-z_]+`).FindAllString(readDoc(t, file), -1) {
			if !metrics[name] {
				t.Errorf("%s: there is no metric %s", file, name)
			}
		}
	}
	known := map[string]string{}
	for _, v := range variables {
		known[v.name] = v.fallback
	}
	var deployment struct {
		Metadata struct{ Name string }
		Spec     struct {
			Template struct {
				Spec struct {
					Grace      int `yaml:"terminationGracePeriodSeconds"`
					Containers []struct {
						Args []string
						Env  []struct{ Name, Value string }
					}
				}
			}
		}
	}
	var scaled struct {
		Spec struct {
			ScaleTargetRef struct{ Name string } `yaml:"scaleTargetRef"`
			Triggers       []struct {
				Name     string
				Metadata map[string]string
			}
		}
	}
	for file, into := range map[string]any{"deploy/kubernetes/worker.yaml": &deployment, "deploy/kubernetes/scaledobject.yaml": &scaled} {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.Unmarshal(raw, into); err != nil {
			t.Fatal(err)
		}
	}
	pod := deployment.Spec.Template.Spec
	env := map[string]int{}
	for _, e := range pod.Containers[0].Env {
		if _, ok := known[e.Name]; !ok {
			t.Errorf("there is no setting %s", e.Name)
		}
		env[e.Name], _ = strconv.Atoi(e.Value) // a word where there is no number
	}
	if need := env["DRAIN_SECONDS"] + int(drainGrace.Seconds()); env["DRAIN_SECONDS"] == 0 || pod.Grace < need {
		t.Errorf("a pod is killed after %d s, a worker needs %d", pod.Grace, need)
	}
	if strings.Join(pod.Containers[0].Args, " ") != "/muster worker" {
		t.Errorf("the pod runs %v", pod.Containers[0].Args)
	}
	if scaled.Spec.ScaleTargetRef.Name != deployment.Metadata.Name {
		t.Errorf("KEDA scales %q, the workers are %q", scaled.Spec.ScaleTargetRef.Name, deployment.Metadata.Name)
	}
	target, _ := strconv.Atoi(known["AUTOSCALE_TARGET"])
	want := map[string]int{"runnable": target - 1, "running": env["WORKER_CONCURRENCY"], "waiting": env["WORKER_CONCURRENCY"] * 4 / 5}
	for _, trigger := range scaled.Spec.Triggers {
		if got := trigger.Metadata["threshold"]; got != strconv.Itoa(want[trigger.Name]) {
			t.Errorf("trigger %s has threshold %s, want %d", trigger.Name, got, want[trigger.Name])
		}
		if trigger.Metadata["ignoreNullValues"] != "false" {
			t.Errorf("trigger %s takes a lost figure for 0", trigger.Name)
		}
	}
	if len(scaled.Spec.Triggers) != len(want) {
		t.Errorf("%d triggers, want %d", len(scaled.Spec.Triggers), len(want))
	}
}
