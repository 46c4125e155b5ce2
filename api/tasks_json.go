package api

import (
	"encoding/json"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

// newTaskBody is a task as a customer sends it.
type newTaskBody struct {
	taskTemplate
	RunAt     *time.Time `json:"run_at" description:"Not before this time; at once when absent or past."`
	ExpiresAt *time.Time `json:"expires_at" description:"A task that still waits then fails with the code expired, and is not started from then on; one that runs is not touched. In the future, and after run_at."`
}

// taskTemplate is what a task is whenever it is sent.
type taskTemplate struct {
	Prompt         string            `json:"prompt" required:"true" minLength:"1" description:"At most 256 KiB."`
	Agent          string            `json:"agent" maxLength:"64" default:"marcus" description:"A built-in agent or one of the workspace's own, by name."`
	Input          jsonObject        `json:"input" description:"Data for the agent beside the prompt. At most 512 KiB."`
	Model          string            `json:"model" maxLength:"128" pattern:"^[a-z0-9][a-z0-9_-]*(/[A-Za-z0-9][A-Za-z0-9._:@/-]*)?$" default:"auto" description:"auto, a provider, or provider/model."`
	Priority       int               `json:"priority" minimum:"-100" maximum:"100" default:"0" description:"Within the workspace; higher runs first."`
	TimeoutSeconds *int              `json:"timeout_seconds" minimum:"1" maximum:"300" default:"300" description:"Wall clock of the agent, per attempt."`
	MaxAttempts    *int              `json:"max_attempts" minimum:"1" maximum:"20" default:"3"`
	Metadata       map[string]string `json:"metadata" maxProperties:"16" items.maxLength:"512" description:"Keys of 1 to 64, values of up to 512 characters."`
}

type newTasksBody struct {
	Tasks []newTaskBody `json:"tasks" required:"true" minItems:"1" maxItems:"1000"`
}

type batchJSON struct {
	Data []taskJSON `json:"data" description:"In the order in which they were sent."`
}

type cancelTasksBody struct {
	Status   string            `json:"status" enum:"scheduled,queued,running"`
	Agent    string            `json:"agent" maxLength:"64"`
	Metadata map[string]string `json:"metadata" maxProperties:"16" items.maxLength:"512" description:"Tasks that have all of these pairs."`
}

type countJSON struct {
	Count int `json:"count" description:"Tasks that are canceled or asked to stop, those that follow within seconds included."`
}

// Limits that struct tags cannot say, because they count bytes or bind keys.
const (
	maxPromptBytes  = 256 << 10
	maxInputBytes   = 512 << 10
	maxMetadataKey  = 64
	maxMetadataText = 512
)

// check fills in the defaults and adds what struct tags cannot say; at is where the task stands in the body.
func (b *newTaskBody) check(at string, f *faults) {
	b.taskTemplate.check(at, f)
	if b.ExpiresAt != nil && b.RunAt != nil && !b.ExpiresAt.After(*b.RunAt) {
		f.wrong(at+"expires_at", "must be after run_at")
	}
}

// checkExpiry refuses what has expired before it came. It stands apart from check because time passes: the repeat of a submit
// that was accepted may come when its tasks have expired, and is given the first answer all the same.
func checkExpiry(bodies []newTaskBody, at func(int) string, now time.Time) error {
	f := &faults{}
	for i, b := range bodies {
		if b.ExpiresAt != nil && !b.ExpiresAt.After(now) {
			f.wrong(at(i)+"expires_at", "must be in the future")
		}
	}
	return f.err()
}

func (b *taskTemplate) check(at string, f *faults) {
	if len(b.Prompt) > maxPromptBytes {
		f.wrong(at+"prompt", "must have at most %d bytes", maxPromptBytes)
	}
	if len(b.Input.RawMessage) > maxInputBytes {
		f.wrong(at+"input", "must have at most %d bytes", maxInputBytes)
	}
	checkMetadata(at+"metadata", b.Metadata, f)
	setDefault(&b.Agent, store.DefaultAgent)
	setDefault(&b.Model, "auto")
	if b.TimeoutSeconds == nil {
		b.TimeoutSeconds = ptr(store.DefaultTimeoutMS / 1000)
	}
	if b.MaxAttempts == nil {
		b.MaxAttempts = ptr(store.DefaultAttempts)
	}
}

func ptr[T any](v T) *T { return &v }

func checkMetadata(at string, metadata map[string]string, f *faults) {
	for key := range metadata {
		if len([]rune(key)) < 1 || len([]rune(key)) > maxMetadataKey {
			f.wrong(joinPath(at, clip(key)), "the key must have 1 to %d characters", maxMetadataKey)
		}
	}
}

// task is the ledger's form of it.
func (b *newTaskBody) task(id *identity) store.NewTask {
	t := b.taskTemplate.task(id)
	t.RunAt, t.ExpiresAt = b.RunAt, b.ExpiresAt
	return t
}

func (b *taskTemplate) task(id *identity) store.NewTask {
	t := store.NewTask{Agent: b.Agent, Model: b.Model, Prompt: b.Prompt, Input: b.Input.RawMessage, Priority: b.Priority,
		TimeoutMS: *b.TimeoutSeconds * 1000, MaxAttempts: *b.MaxAttempts}
	if len(b.Metadata) > 0 {
		t.Metadata, _ = json.Marshal(b.Metadata) // strings only: cannot fail
	}
	if id.isSession() {
		t.UserID = id.user()
	} else {
		t.APIKeyID = uuid.NullUUID{UUID: id.Key, Valid: true}
	}
	return t
}

// taskItemJSON is a task in a list.
type taskItemJSON struct {
	ID                string            `json:"id"`
	Status            string            `json:"status" enum:"scheduled,queued,running,succeeded,failed,canceled"`
	Agent             string            `json:"agent"`
	Model             string            `json:"model"`
	Priority          int               `json:"priority"`
	TimeoutSeconds    int               `json:"timeout_seconds"`
	Attempt           int               `json:"attempt" description:"Attempts spent, the running one included."`
	MaxAttempts       int               `json:"max_attempts"`
	CreatedAt         time.Time         `json:"created_at"`
	CreatedBy         *string           `json:"created_by" description:"Who sent it: a user (usr_...) or an API key (key_...); null for a user's task from before this was noted."`
	ScheduleID        *string           `json:"schedule_id" description:"The schedule that sent it; null for one that was submitted."`
	RunAt             *time.Time        `json:"run_at"`
	StartedAt         *time.Time        `json:"started_at" description:"The first start."`
	FinishedAt        *time.Time        `json:"finished_at"`
	CancelRequestedAt *time.Time        `json:"cancel_requested_at"`
	ExpiresAt         *time.Time        `json:"expires_at" description:"If it still waits then it fails with the code expired."`
	ErasedAt          *time.Time        `json:"erased_at" description:"Its content is gone: prompt, input, metadata, result and the texts of errors."`
	Error             *taskErrorJSON    `json:"error" description:"Of the last attempt that failed."`
	Usage             *usageJSON        `json:"usage" description:"Summed over ended attempts; null before the first."`
	Waiting           *waitingJSON      `json:"waiting" description:"Why it is not running; null while it runs and when it has ended."`
	Metadata          map[string]string `json:"metadata" nullable:"false"`
}

// taskJSON is a task as such.
type taskJSON struct {
	taskItemJSON
	Prompt string      `json:"prompt" description:"Empty once it is erased."`
	Input  jsonObject  `json:"input"`
	Result *resultJSON `json:"result" description:"null until it has succeeded."`
}

type resultJSON struct {
	Output string      `json:"output"`
	Data   *jsonObject `json:"data"`
}

type taskErrorJSON struct {
	Code      string `json:"code" description:"timeout, canceled, expired, provider_error, quota_exceeded, worker_crashed, invalid_tool_call, ..."`
	Message   string `json:"message"`
	Retryable bool   `json:"retryable"`
}

type usageJSON struct {
	AgentMS       int64 `json:"agent_ms"`
	ProviderCalls int64 `json:"provider_calls"`
	InputTokens   int64 `json:"input_tokens"`
	OutputTokens  int64 `json:"output_tokens"`
	CostMicroUSD  int64 `json:"cost_microusd"`
}

type waitingJSON struct {
	Reason          string `json:"reason" enum:"workspace_cap,in_line,quota_exhausted,workspace_paused,scheduled,retry_backoff,provider_budget,isolated"`
	Position        *int   `json:"position,omitempty" nullable:"false" minimum:"0" description:"Queued tasks of the workspace that run before it, up to 1,000. Absent while it waits for a time: scheduled, retry_backoff, isolated."`
	PositionAtLeast *int   `json:"position_at_least,omitempty" nullable:"false" description:"Instead of position, beyond 1,000."`
}

func itemOf(t store.TaskView) taskItemJSON {
	j := taskItemJSON{
		ID: store.FormatID(store.TaskPrefix, t.ID), Status: t.Status, Agent: t.Agent, Model: t.Model, Priority: t.Priority,
		TimeoutSeconds: (t.TimeoutMS + 999) / 1000, Attempt: t.Attempt, MaxAttempts: t.MaxAttempts, CreatedAt: t.CreatedAt.UTC(),
		RunAt: utc(t.RunAt), StartedAt: utc(t.StartedAt), FinishedAt: utc(t.FinishedAt), CancelRequestedAt: utc(t.CancelRequestedAt),
		ExpiresAt: utc(t.ExpiresAt), ErasedAt: utc(t.ErasedAt), Usage: usageOf(t.Usage, store.Final(t.Status)), Metadata: map[string]string{},
	}
	_ = json.Unmarshal(t.Metadata, &j.Metadata) // our own rows: strings by the check at submit
	_ = json.Unmarshal(t.Error, &j.Error)       // null leaves nil
	switch {
	case t.APIKeyID.Valid:
		j.CreatedBy = ptr(store.FormatID(store.KeyPrefix, t.APIKeyID.UUID))
	case t.UserID.Valid:
		j.CreatedBy = ptr(store.FormatID(store.UserPrefix, t.UserID.UUID))
	}
	if t.ScheduleID.Valid {
		j.ScheduleID = ptr(store.FormatID(store.SchedulePrefix, t.ScheduleID.UUID))
	}
	if w := t.Waiting; w != nil {
		j.Waiting = &waitingJSON{Reason: w.Reason}
		switch {
		case w.InLine && w.More:
			j.Waiting.PositionAtLeast = &w.Position
		case w.InLine:
			j.Waiting.Position = &w.Position
		}
	}
	return j
}

func taskOf(t store.TaskView) taskJSON {
	j := taskJSON{taskItemJSON: itemOf(t), Prompt: t.Prompt, Input: jsonObject{t.Input}}
	_ = json.Unmarshal(t.Result, &j.Result) // null leaves nil
	return j
}

// usageOf is nil as long as nothing was used.
func usageOf(u store.Usage, always bool) *usageJSON {
	if u == (store.Usage{}) && !always {
		return nil
	}
	j := usageJSON(u)
	return &j
}

type attemptJSON struct {
	ID         string         `json:"id"`
	Attempt    int            `json:"attempt"`
	Worker     string         `json:"worker"`
	Outcome    string         `json:"outcome" enum:"running,succeeded,failed,retry,timeout,canceled,handed_back,quota_cut,budget_cut,crashed"`
	Billable   bool           `json:"billable"`
	Error      *taskErrorJSON `json:"error"`
	StartedAt  time.Time      `json:"started_at"`
	FinishedAt *time.Time     `json:"finished_at"`
	Usage      *usageJSON     `json:"usage" description:"null while it runs."`
	Calls      []callJSON     `json:"provider_calls"`
}

type callJSON struct {
	ID               string     `json:"id"`
	Step             int        `json:"step"`
	Try              int        `json:"try"`
	Provider         string     `json:"provider"`
	Model            string     `json:"model"`
	Outcome          string     `json:"outcome" enum:"started,ok,transient,permanent,canceled,cut,orphaned"`
	ErrorCode        *string    `json:"error_code"`
	LatencyMS        int64      `json:"latency_ms"`
	InputTokens      int64      `json:"input_tokens"`
	OutputTokens     int64      `json:"output_tokens"`
	CacheReadTokens  int64      `json:"cache_read_tokens"`
	CacheWriteTokens int64      `json:"cache_write_tokens"`
	CostMicroUSD     int64      `json:"cost_microusd" description:"While started: the most it can cost."`
	Estimated        bool       `json:"estimated"`
	StartedAt        time.Time  `json:"started_at"`
	FinishedAt       *time.Time `json:"finished_at"`
}

func attemptOf(a store.Attempt) attemptJSON {
	j := attemptJSON{ID: store.FormatID(store.AttemptPrefix, a.ID), Attempt: a.Attempt, Worker: store.FormatID(store.WorkerPrefix, a.Worker),
		Outcome: a.Outcome, Billable: a.Billable, StartedAt: a.StartedAt.UTC(), FinishedAt: utc(a.FinishedAt), Calls: []callJSON{},
		Usage: usageOf(a.Usage, a.FinishedAt != nil)}
	_ = json.Unmarshal(a.Error, &j.Error) // null leaves nil
	for _, c := range a.Calls {
		call := callJSON{ID: store.FormatID(store.CallPrefix, c.ID), Step: c.Step, Try: c.Try, Provider: c.Provider, Model: c.Model,
			Outcome: c.Outcome, LatencyMS: c.LatencyMS, InputTokens: c.InputTokens, OutputTokens: c.OutputTokens,
			CacheReadTokens: c.CacheReadTokens, CacheWriteTokens: c.CacheWriteTokens, CostMicroUSD: c.CostMicroUSD, Estimated: c.Estimated,
			StartedAt: c.StartedAt.UTC(), FinishedAt: utc(c.FinishedAt)}
		if c.ErrorCode != "" {
			call.ErrorCode = ptr(c.ErrorCode)
		}
		j.Calls = append(j.Calls, call)
	}
	return j
}
