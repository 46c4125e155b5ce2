package api

import (
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/generic-corp/muster/store"
)

// route is one line of the contract. Everything that is published about it and everything that guards it stands here.
type route struct {
	method, path string // {id} stands for a path parameter
	summary      string
	details      string // more for OpenAPI; may be empty

	anonymous bool   // no credential; else:
	role      string // the least role of the sender
	scope     string // the scope the credential must have; empty: any credential
	session   bool   // an access token, not an API key
	self      bool   // whatever their role, users may do it to themselves, with an access token: the path's user_id is theirs

	fieldScopes map[string]string // in place of scope: what each field of the body needs

	params  any   // struct of path, query and header parameters; nil: none
	body    any   // request struct; nil: no body
	maxBody int64 // bytes; 0 is maxBodyBytes

	idempotent bool        // takes an Idempotency-Key
	waits      bool        // may take longer than Config.WorkTimeout
	answers    map[int]any // status → answer struct; nil for an empty one
	media      string      // of a good answer; empty: application/json. Of application/x-ndjson the struct is a line
	csv        bool        // a good answer may be text/csv instead
	problems   []problem   // beyond those that follow from the above
	headers    []string    // of the answers: Location, Preference-Applied

	handle func(s *Server, q *request) (answer, error)
}

// Limits on bodies, bytes.
const (
	maxBodyBytes  = 1 << 20
	maxBatchBytes = 8 << 20
)

// routes is the whole route table, in blocks of privilege.
var routes = []route{
	// Nobody in particular.
	{method: http.MethodGet, path: "/health", anonymous: true, summary: "The process lives; touches nothing else",
		answers: map[int]any{200: healthJSON{}}, handle: (*Server).health},
	{method: http.MethodGet, path: "/ready", anonymous: true, summary: "The service can take requests",
		details: "The database must answer. Without Redis the service is degraded and still ready: tasks are accepted and start later.",
		answers: map[int]any{200: readyJSON{}}, handle: (*Server).ready},
	{method: http.MethodGet, path: "/openapi.json", anonymous: true, summary: "This document",
		answers: map[int]any{200: openAPIJSON{}}, handle: (*Server).describeItself},
	{method: http.MethodGet, path: "/v1/plans", anonymous: true, summary: "The table of plans",
		answers: map[int]any{200: listJSON[planJSON]{}}, handle: (*Server).listPlans},
	{method: http.MethodPost, path: "/v1/auth/register", anonymous: true, summary: "Make a user who owns a new Free workspace",
		body: registerBody{}, answers: map[int]any{201: signInJSON{}}, problems: []problem{probConflict}, handle: (*Server).register},
	{method: http.MethodPost, path: "/v1/auth/login", anonymous: true, summary: "Open a session",
		body: loginBody{}, answers: map[int]any{200: signInJSON{}}, problems: []problem{probUnauthorized, probNotFound, probPlanLimit, probSignInDelayed}, handle: (*Server).login},
	{method: http.MethodPost, path: "/v1/auth/refresh", anonymous: true, summary: "Exchange a refresh token for a new pair",
		details: "A refresh token works once; using one again ends its session. With workspace_id the session goes on in another workspace of the user's.",
		body:    refreshBody{}, answers: map[int]any{200: signInJSON{}}, problems: []problem{probUnauthorized, probNotFound}, handle: (*Server).refresh},
	{method: http.MethodPost, path: "/v1/auth/password/forgot", anonymous: true, summary: "Have a token mailed that resets a password",
		details: "The answer is the same whether the address is known.",
		body:    forgotPasswordBody{}, answers: map[int]any{202: nil}, handle: (*Server).forgotPassword},
	{method: http.MethodPost, path: "/v1/auth/password/reset", anonymous: true, summary: "Set a new password with a mailed token",
		details: "All of the user's sessions end.",
		body:    resetPasswordBody{}, answers: map[int]any{204: nil}, problems: []problem{probUnauthorized}, handle: (*Server).resetPassword},
	{method: http.MethodPost, path: "/v1/auth/email/verify", anonymous: true, summary: "Prove an address with a mailed token",
		body: verifyEmailBody{}, answers: map[int]any{204: nil}, problems: []problem{probUnauthorized}, handle: (*Server).verifyEmail},
	{method: http.MethodPost, path: "/v1/invitations/accept", anonymous: true, summary: "Join the workspace that an invitation is for",
		details: "With the access token of the invited address's user: 200. Without a credential it makes the account: 201. Opens a session in the workspace.",
		body:    acceptInvitationBody{}, answers: map[int]any{200: signInJSON{}, 201: signInJSON{}},
		problems: []problem{probUnauthorized, probPlanLimit, probForbidden, probNotFound, probConflict}, handle: (*Server).acceptInvitation},
	{method: http.MethodPost, path: "/v1/billing/webhook", anonymous: true, summary: "Take an event of Stripe's",
		details: "Stripe's, signature required. Answers 200 once the event is kept, and to each repetition of it.",
		params:  stripeWebhookParams{}, body: jsonObject{}, answers: map[int]any{200: nil}, handle: (*Server).receiveStripeEvent},

	// Every member.
	{method: http.MethodGet, path: "/v1/me", role: store.RoleViewer, summary: "Who sends this, where, with which rights",
		answers: map[int]any{200: meJSON{}}, handle: (*Server).me},
	{method: http.MethodGet, path: "/v1/workspace", role: store.RoleViewer, summary: "The workspace with its plan and limits",
		answers: map[int]any{200: workspaceJSON{}}, handle: (*Server).getWorkspace},
	{method: http.MethodPost, path: "/v1/auth/logout", role: store.RoleViewer, session: true, summary: "End this session",
		answers: map[int]any{204: nil}, handle: (*Server).logout},
	{method: http.MethodPost, path: "/v1/auth/password", role: store.RoleViewer, session: true, summary: "Change the user's password",
		details: "All their other sessions end, in every workspace.",
		body:    changePasswordBody{}, answers: map[int]any{204: nil}, problems: []problem{probConflict, probSignInDelayed}, handle: (*Server).changePassword},
	{method: http.MethodPost, path: "/v1/auth/email/send", role: store.RoleViewer, session: true, summary: "Have another token mailed that proves the user's address",
		answers: map[int]any{202: nil}, handle: (*Server).sendVerification},
	{method: http.MethodGet, path: "/v1/sessions", role: store.RoleViewer, session: true, summary: "The user's live sessions in all their workspaces, newest first",
		params: pageParams{}, answers: map[int]any{200: listJSON[sessionJSON]{}}, handle: (*Server).listSessions},
	{method: http.MethodDelete, path: "/v1/sessions/{id}", role: store.RoleViewer, session: true, summary: "End one of the user's sessions",
		details: "It is refused everywhere within five seconds.",
		params:  idParam{}, answers: map[int]any{204: nil}, handle: (*Server).deleteSession},
	{method: http.MethodGet, path: "/v1/workspaces", role: store.RoleViewer, session: true, summary: "The workspaces that the user is in, newest first",
		details: "To go to another one, log in or refresh with its workspace_id.",
		params:  pageParams{}, answers: map[int]any{200: listJSON[ownWorkspaceJSON]{}}, handle: (*Server).listWorkspaces},
	{method: http.MethodPost, path: "/v1/workspaces", role: store.RoleViewer, session: true, idempotent: true, summary: "Make another Free workspace that the user owns",
		details: "A user owns at most three Free workspaces.",
		body:    workspaceBody{}, answers: map[int]any{201: workspaceJSON{}}, problems: []problem{probPlanLimit}, handle: (*Server).createWorkspace},
	{method: http.MethodGet, path: "/v1/members", role: store.RoleViewer, scope: "members:read", summary: "The members, who joined last first",
		params: pageParams{}, answers: map[int]any{200: listJSON[memberJSON]{}}, handle: (*Server).listMembers},
	{method: http.MethodGet, path: "/v1/members/{user_id}", role: store.RoleViewer, scope: "members:read", summary: "One member",
		params: memberParams{}, answers: map[int]any{200: memberJSON{}}, handle: (*Server).getMember},
	{method: http.MethodGet, path: "/v1/tasks", role: store.RoleViewer, scope: "tasks:read", summary: "The tasks, newest first",
		details: "Leaves out prompt, input and result. metadata.KEY=VALUE chooses tasks with this pair; it may stand several times. " +
			"A page looks at 10,000 tasks at most: with a filter that few pass it may be short or empty and still have a next_cursor.",
		params: listTasksParams{}, answers: map[int]any{200: listJSON[taskItemJSON]{}}, handle: (*Server).listTasks},
	{method: http.MethodGet, path: "/v1/tasks/{id}", role: store.RoleViewer, scope: "tasks:read", waits: true, summary: "One task",
		details: "With Prefer: wait=N (1 to 60 seconds) it answers when the task has ended or the time is over.",
		params:  getTaskParams{}, answers: map[int]any{200: taskJSON{}}, headers: []string{"Preference-Applied"}, handle: (*Server).getTask},
	{method: http.MethodGet, path: "/v1/tasks/{id}/attempts", role: store.RoleViewer, scope: "tasks:read",
		summary: "The attempts at a task with their provider calls, newest first",
		params:  listAttemptsParams{}, answers: map[int]any{200: listJSON[attemptJSON]{}}, handle: (*Server).listAttempts},
	{method: http.MethodGet, path: "/v1/dead-letters", role: store.RoleViewer, scope: "tasks:read", summary: "The failed tasks that can be replayed, what failed last first",
		details: "Tasks that expired among them. Leaves out prompt, input and result. A task leaves the list when it is replayed, retried, dropped or erased.",
		params:  listDeadLettersParams{}, answers: map[int]any{200: listJSON[taskItemJSON]{}}, handle: (*Server).listDeadLetters},
	{method: http.MethodGet, path: "/v1/schedules", role: store.RoleViewer, scope: "tasks:read", summary: "The cron schedules, newest first, without their prompts and inputs",
		params: pageParams{}, answers: map[int]any{200: listJSON[scheduleItemJSON]{}}, handle: (*Server).listSchedules},
	{method: http.MethodGet, path: "/v1/schedules/{id}", role: store.RoleViewer, scope: "tasks:read", summary: "One schedule",
		params: idParam{}, answers: map[int]any{200: scheduleJSON{}}, handle: (*Server).getSchedule},
	{method: http.MethodGet, path: "/v1/schedules/{id}/runs", role: store.RoleViewer, scope: "tasks:read", summary: "What became of a schedule's occurrences, newest first",
		details: "Each was sent as a task or missed with a reason. Kept for 30 days.",
		params:  listRunsParams{}, answers: map[int]any{200: listJSON[scheduleRunJSON]{}}, handle: (*Server).listScheduleRuns},
	{method: http.MethodGet, path: "/v1/agents", role: store.RoleViewer, scope: "agents:read", summary: "The agents that tasks may name",
		answers: map[int]any{200: listJSON[agentJSON]{}}, handle: (*Server).listAgents},
	{method: http.MethodGet, path: "/v1/agents/{id}", role: store.RoleViewer, scope: "agents:read", summary: "One agent, by id or name",
		params: idParam{}, answers: map[int]any{200: agentJSON{}}, handle: (*Server).getAgent},
	{method: http.MethodGet, path: "/v1/usage", role: store.RoleViewer, scope: "usage:read", summary: "What was metered, summed, newest first",
		params: usageParams{}, answers: map[int]any{200: listJSON[usageRowJSON]{}}, handle: (*Server).getUsage},
	{method: http.MethodGet, path: "/v1/events", role: store.RoleViewer, scope: "tasks:read", waits: true, media: eventMedia, summary: "What happens in the workspace, as it happens",
		details: "Server-sent events. usage: 80 or 100 percent of a quota are used; its data has at, task_id (null) and data with meter, percent, used, limit and period. " +
			"reset: events before its id are no longer kept (7 days). Comments come every 15 seconds. The stream ends with the credential; connect anew with Last-Event-ID.",
		params: eventsParams{}, answers: map[int]any{200: ""}, problems: []problem{probTooManyStreams}, handle: (*Server).streamEvents},
	{method: http.MethodGet, path: "/v1/quota", role: store.RoleViewer, scope: "usage:read", summary: "The agent time of this month",
		answers: map[int]any{200: quotaJSON{}}, handle: (*Server).getQuota},

	// Members who work.
	{method: http.MethodPost, path: "/v1/tasks", role: store.RoleMember, scope: "tasks:write", idempotent: true, summary: "Submit a task",
		details: "A used-up quota never refuses a task: it waits, and says so in waiting.",
		body:    newTaskBody{}, answers: map[int]any{202: taskJSON{}}, problems: []problem{probBacklogFull, probEmailUnverified, probPlanLimit}, headers: []string{"Location"},
		handle: (*Server).createTask},
	{method: http.MethodPost, path: "/v1/tasks/batch", role: store.RoleMember, scope: "tasks:write", idempotent: true,
		summary: "Submit up to 1,000 tasks, all or none",
		details: "Counts as many requests as it has tasks; with more tasks than the workspace may send requests per hour it is a 402.",
		body:    newTasksBody{}, maxBody: maxBatchBytes, answers: map[int]any{202: batchJSON{}}, problems: []problem{probBacklogFull, probEmailUnverified, probPlanLimit},
		handle: (*Server).createTasks},
	{method: http.MethodPost, path: "/v1/tasks/cancel", role: store.RoleMember, scope: "tasks:write", idempotent: true,
		summary: "Cancel all tasks that match and have not ended", details: "{} matches all. What waits or runs now is canceled, nothing that is sent later. Of more than 1,000 those that run and the head of the line come first, the rest within seconds.",
		body: cancelTasksBody{}, answers: map[int]any{202: countJSON{}}, problems: []problem{probConflict}, handle: (*Server).cancelTasks},
	{method: http.MethodPost, path: "/v1/tasks/{id}/cancel", role: store.RoleMember, scope: "tasks:write", idempotent: true, summary: "Cancel a task",
		details: "A waiting task ends at once, a running one is asked to stop. 200 when it was canceled before, 409 when it has ended otherwise.",
		params:  idParam{}, answers: map[int]any{200: taskJSON{}, 202: taskJSON{}}, problems: []problem{probConflict}, handle: (*Server).cancelTask},
	{method: http.MethodDelete, path: "/v1/tasks/{id}", role: store.RoleMember, scope: "tasks:write", idempotent: true, summary: "Erase a task's content",
		details: "Only of a task that has ended. prompt is empty then, input and metadata are {}, result is null, an error keeps its code alone, and erased_at says when; usage and metering stay. It cannot be retried. A repeat of its submit's Idempotency-Key is a 409.",
		params:  idParam{}, answers: map[int]any{204: nil}, problems: []problem{probConflict}, handle: (*Server).deleteTask},
	{method: http.MethodPost, path: "/v1/tasks/{id}/retry", role: store.RoleMember, scope: "tasks:write", idempotent: true,
		summary: "Run a failed or canceled task again", details: "Attempts go on counting; max_attempts grows by its first value.",
		params: idParam{}, answers: map[int]any{202: taskJSON{}}, problems: []problem{probConflict, probBacklogFull, probEmailUnverified, probPlanLimit}, headers: []string{"Location"},
		handle: (*Server).retryTask},
	{method: http.MethodPost, path: "/v1/tasks/retry", role: store.RoleMember, scope: "tasks:write", idempotent: true,
		summary: "Run failed and canceled tasks again that match, what ended first first",
		details: "{} matches all. Each as by its own retry, and no more than limit and the backlog have room for: more says whether to go on. Tasks whose model the plan does not include any more stay as they are.",
		body:    retryTasksBody{}, answers: map[int]any{202: bulkJSON{}}, problems: []problem{probBacklogFull, probEmailUnverified, probPlanLimit}, handle: (*Server).retryTasks},
	{method: http.MethodPost, path: "/v1/dead-letters/replay", role: store.RoleMember, scope: "tasks:write", idempotent: true,
		summary: "Run dead letters again that match, what failed first first", details: "As POST /v1/tasks/retry of failed tasks.",
		body: endedBody{}, answers: map[int]any{202: bulkJSON{}}, problems: []problem{probBacklogFull, probEmailUnverified, probPlanLimit}, handle: (*Server).replayDeadLetters},
	{method: http.MethodDelete, path: "/v1/dead-letters", role: store.RoleMember, scope: "tasks:write", idempotent: true, summary: "Drop dead letters that match",
		details: "Their content is erased, as by DELETE /v1/tasks/{id}; usage and metering stay. They cannot be replayed.",
		body:    dropBody{}, answers: map[int]any{200: bulkJSON{}}, handle: (*Server).dropDeadLetters},
	{method: http.MethodPost, path: "/v1/schedules", role: store.RoleMember, scope: "tasks:write", idempotent: true, summary: "Make a cron schedule",
		details: "It sends its task at each occurrence, as POST /v1/tasks would. How many there may be, and how close their occurrences, is the plan's.",
		body:    scheduleBody{}, answers: map[int]any{201: scheduleJSON{}}, problems: []problem{probEmailUnverified, probPlanLimit}, headers: []string{"Location"}, handle: (*Server).createSchedule},
	{method: http.MethodPatch, path: "/v1/schedules/{id}", role: store.RoleMember, scope: "tasks:write", idempotent: true, summary: "Change, pause or resume a schedule",
		details: "What is not named stays; null unsets (RFC 7396). When it occurs at other times from then on, or was resumed, it starts from now.",
		params:  idParam{}, body: schedulePatch{}, answers: map[int]any{200: scheduleJSON{}}, problems: []problem{probEmailUnverified, probPlanLimit}, handle: (*Server).patchSchedule},
	{method: http.MethodDelete, path: "/v1/schedules/{id}", role: store.RoleMember, scope: "tasks:write", idempotent: true, summary: "Delete a schedule with the list of its runs",
		details: "The tasks that it has sent stay.",
		params:  idParam{}, answers: map[int]any{204: nil}, handle: (*Server).deleteSchedule},
	{method: http.MethodGet, path: "/v1/api-keys", role: store.RoleMember, scope: "keys:read", summary: "The API keys, newest first, without their secrets",
		params: pageParams{}, answers: map[int]any{200: listJSON[apiKeyJSON]{}}, handle: (*Server).listKeys},
	{method: http.MethodPost, path: "/v1/api-keys", role: store.RoleMember, scope: "keys:write", idempotent: true,
		summary: "Make an API key", details: "The key is shown this once. Its role and scopes are at most the sender's.",
		body: newKeyBody{}, answers: map[int]any{201: newKeyJSON{}}, problems: []problem{probConflict}, handle: (*Server).createKey},
	{method: http.MethodDelete, path: "/v1/api-keys/{id}", role: store.RoleMember, scope: "keys:write", idempotent: true,
		summary: "Revoke an API key for good", details: "It is refused everywhere within five seconds.",
		params: idParam{}, answers: map[int]any{204: nil}, handle: (*Server).deleteKey},
	{method: http.MethodPost, path: "/v1/api-keys/{id}/rotate", role: store.RoleMember, scope: "keys:write", idempotent: true,
		summary: "Give an API key's rights to a new one", details: "The new key is shown this once. The old one works on for overlap_seconds.",
		params: idParam{}, body: rotateKeyBody{}, answers: map[int]any{201: newKeyJSON{}}, problems: []problem{probConflict}, handle: (*Server).rotateKey},
	{method: http.MethodGet, path: "/v1/webhooks", role: store.RoleMember, scope: "webhooks:read", summary: "The webhooks, newest first, without their secrets",
		params: pageParams{}, answers: map[int]any{200: listJSON[webhookJSON]{}}, handle: (*Server).listWebhooks},
	{method: http.MethodPost, path: "/v1/webhooks", role: store.RoleMember, scope: "webhooks:write", idempotent: true, summary: "Be told when tasks end",
		details: "Events are signed as Standard Webhooks and come at least once each. The secret is shown this once. The sender needs the scope tasks:read for events of tasks, usage:read for quota.notice.",
		body:    newWebhookBody{}, answers: map[int]any{201: newWebhookJSON{}}, problems: []problem{probConflict, probPlanLimit}, handle: (*Server).createWebhook},
	{method: http.MethodGet, path: "/v1/webhooks/{id}", role: store.RoleMember, scope: "webhooks:read", summary: "One webhook",
		params: idParam{}, answers: map[int]any{200: webhookJSON{}}, handle: (*Server).getWebhook},
	{method: http.MethodPatch, path: "/v1/webhooks/{id}", role: store.RoleMember, scope: "webhooks:write", idempotent: true, summary: "Change a webhook",
		details: "Enabling it, or another url, forgets that it has failed. One that an operator has disabled cannot be enabled.",
		params:  idParam{}, body: patchWebhookBody{}, answers: map[int]any{200: webhookJSON{}}, problems: []problem{probConflict}, handle: (*Server).patchWebhook},
	{method: http.MethodDelete, path: "/v1/webhooks/{id}", role: store.RoleMember, scope: "webhooks:write", idempotent: true, summary: "Remove a webhook with its deliveries",
		params: idParam{}, answers: map[int]any{204: nil}, handle: (*Server).deleteWebhook},
	{method: http.MethodPost, path: "/v1/webhooks/{id}/rotate", role: store.RoleMember, scope: "webhooks:write", idempotent: true, summary: "Give a webhook another secret",
		details: "The new secret is shown this once. Until overlap_seconds have passed both sign: webhook-signature holds two.",
		params:  idParam{}, body: rotateWebhookBody{}, answers: map[int]any{201: newWebhookJSON{}}, problems: []problem{probConflict}, handle: (*Server).rotateWebhook},
	{method: http.MethodPost, path: "/v1/webhooks/{id}/test", role: store.RoleMember, scope: "webhooks:write", idempotent: true, summary: "Send a webhook.test event",
		params: idParam{}, answers: map[int]any{202: deliveryJSON{}}, problems: []problem{probConflict}, handle: (*Server).testWebhook},
	{method: http.MethodGet, path: "/v1/webhooks/{id}/deliveries", role: store.RoleMember, scope: "webhooks:read", summary: "What was sent to a webhook, newest event first",
		details: "For 30 days. What the endpoint answered beyond its status is not kept.",
		params:  listDeliveriesParams{}, answers: map[int]any{200: listJSON[deliveryJSON]{}}, handle: (*Server).listDeliveries},
	{method: http.MethodPost, path: "/v1/webhooks/{id}/deliveries/replay", role: store.RoleMember, scope: "webhooks:write", idempotent: true, summary: "Send what was given up since a time again",
		details: "Chosen by when they were given up (or arrived, with status succeeded), not by their events' time. 10,000 a call; while more is true, call again.",
		params:  idParam{}, body: replayDeliveriesBody{}, answers: map[int]any{202: replayedJSON{}}, problems: []problem{probConflict}, handle: (*Server).replayDeliveries},
	{method: http.MethodPost, path: "/v1/webhooks/{id}/deliveries/{delivery_id}/replay", role: store.RoleMember, scope: "webhooks:write", idempotent: true, summary: "Send an event again",
		details: "Under the same webhook-id, whatever has become of it.",
		params:  deliveryParams{}, answers: map[int]any{202: deliveryJSON{}}, problems: []problem{probConflict}, handle: (*Server).replayDelivery},

	// Owners.
	{method: http.MethodPatch, path: "/v1/members/{user_id}", role: store.RoleOwner, scope: "members:write", idempotent: true, summary: "Give a member another role",
		details: "It holds everywhere within five seconds. The last owner stays one. Keys that the member minted with a higher role are revoked unless keys is keep.",
		params:  memberParams{}, body: memberBody{}, answers: map[int]any{200: memberJSON{}}, problems: []problem{probConflict}, handle: (*Server).patchMember},
	{method: http.MethodDelete, path: "/v1/members/{user_id}", role: store.RoleOwner, scope: "members:write", idempotent: true, self: true, summary: "Remove a member, or leave",
		details: "Any member may remove themselves with an access token; their keys are revoked then. It holds everywhere within five seconds. The last owner stays. The keys that the member minted are revoked unless keys is keep; their invitations are withdrawn.",
		params:  deleteMemberParams{}, answers: map[int]any{204: nil}, problems: []problem{probConflict}, handle: (*Server).deleteMember},
	{method: http.MethodGet, path: "/v1/invitations", role: store.RoleOwner, scope: "members:read", summary: "The open invitations, newest first, without their tokens",
		params: pageParams{}, answers: map[int]any{200: listJSON[invitationJSON]{}}, handle: (*Server).listInvitations},
	{method: http.MethodPost, path: "/v1/invitations", role: store.RoleOwner, scope: "members:write", idempotent: true, summary: "Invite somebody",
		details: "The token is shown this once, and mailed where a mail server is configured. It replaces an open invitation of the same address.",
		body:    newInvitationBody{}, answers: map[int]any{201: newInvitationJSON{}}, problems: []problem{probConflict, probPlanLimit}, handle: (*Server).createInvitation},
	{method: http.MethodDelete, path: "/v1/invitations/{id}", role: store.RoleOwner, scope: "members:write", idempotent: true, summary: "Withdraw an open invitation",
		params: idParam{}, answers: map[int]any{204: nil}, handle: (*Server).deleteInvitation},
	{method: http.MethodGet, path: "/v1/audit-log", role: store.RoleOwner, scope: "members:read", summary: "Who did what, when, from where; newest first",
		details: "Asking for the first page is itself noted.",
		params:  listAuditParams{}, answers: map[int]any{200: listJSON[auditEntryJSON]{}}, handle: (*Server).listAuditLog},
	{method: http.MethodGet, path: "/v1/audit-log/export", role: store.RoleOwner, session: true, waits: true, summary: "The audit log as a file, newest first",
		details: "It is noted. In CSV, a text that a spreadsheet would read as a formula has an apostrophe before it.",
		params:  exportAuditParams{}, answers: map[int]any{200: auditEntryJSON{}}, media: exportMedia, csv: true, headers: []string{"Content-Disposition"}, handle: (*Server).exportAuditLog},
	{method: http.MethodPatch, path: "/v1/workspace", role: store.RoleOwner, idempotent: true, summary: "Change the workspace's name or slug, or paid time past the plan",
		fieldScopes: map[string]string{"name": "members:write", "slug": "members:write", "overage": "billing:write"},
		body:        workspacePatch{}, answers: map[int]any{200: workspaceJSON{}}, problems: []problem{probConflict, probPlanLimit}, handle: (*Server).patchWorkspace},
	{method: http.MethodGet, path: "/v1/workspace/export", role: store.RoleOwner, session: true, waits: true, summary: "All that the workspace has, as JSON lines",
		details: "Without secrets. Each line is a row and its table; an export without its last line, table end, is not whole. Tables come one after the other, newest rows first, each row as it was when it was read.",
		answers: map[int]any{200: exportLineJSON{}}, media: exportMedia, handle: (*Server).exportWorkspace},
	{method: http.MethodDelete, path: "/v1/workspace", role: store.RoleOwner, session: true, idempotent: true, summary: "Delete the workspace",
		details: "Ends all sessions, keys and invitations within five seconds, cancels all tasks, settles what is billable, and then erases everything but what invoices stand on.",
		body:    deleteWorkspaceBody{}, answers: map[int]any{202: workspaceJSON{}}, handle: (*Server).deleteWorkspace},
}

// ginPath writes {id} as :id.
func (r *route) ginPath() string {
	return strings.NewReplacer("{", ":", "}", "").Replace(r.path)
}

// anyScope lists the scopes of which a sender must have one to change anything.
func (r *route) anyScope() []string {
	return slices.Compact(slices.Sorted(maps.Values(r.fieldScopes)))
}

// pattern names the route in idempotency keys.
func (r *route) pattern() string { return r.method + " " + r.path }

// allProblems are the problems this route may answer: what follows from what it takes, then its own.
func (r *route) allProblems() []problem {
	all := []problem{probInternal, probUnavailable, probBadRequest}
	limits := r.limits()
	if !limits.unlimited {
		all = append(all, probRateLimited)
	}
	if limits.byTasks {
		all = append(all, probPlanLimit)
	}
	if !r.anonymous {
		all = append(all, probUnauthorized, probForbidden)
	}
	if strings.Contains(r.path, "{") {
		all = append(all, probNotFound)
	}
	if r.params != nil || r.body != nil || r.idempotent {
		all = append(all, probInvalid)
	}
	if r.method != http.MethodGet {
		all = append(all, probTimeout, probTooLarge, probMediaType, probInvalid)
	}
	if r.idempotent {
		all = append(all, probInFlight, probKeyReused)
	}
	return append(all, r.problems...)
}
