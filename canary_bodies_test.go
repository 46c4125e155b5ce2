package main

import (
	"fmt"
	"math/rand/v2"
)

// canaryBodies make the body of each route that changes something; nil sends none. Every text in them holds the word.
var canaryBodies = map[string]func(r *rand.Rand, z *zoo, a *animal) any{
	"POST /v1/auth/register": func(r *rand.Rand, z *zoo, a *animal) any {
		return map[string]any{"email": fmt.Sprintf("%s-%d@example.com", a.word, r.IntN(1e6)), "password": "pw " + a.word, "workspace_name": a.word}
	},
	"POST /v1/auth/login": func(r *rand.Rand, z *zoo, a *animal) any {
		body := map[string]any{"email": a.email, "password": a.password}
		if r.IntN(3) == 0 {
			body["workspace_id"] = z.any(r, "workspaces")
		}
		if r.IntN(6) == 0 {
			body["password"] = "wrong " + a.word
		}
		return body
	},
	"POST /v1/auth/refresh": func(r *rand.Rand, z *zoo, a *animal) any {
		a.mu.Lock()
		defer a.mu.Unlock()
		return map[string]any{"refresh_token": []string{a.refresh, rubbish(r)}[r.IntN(2)]}
	},
	"POST /v1/auth/password/forgot": func(r *rand.Rand, z *zoo, a *animal) any { return map[string]any{"email": a.email} },
	"POST /v1/auth/password/reset": func(r *rand.Rand, z *zoo, a *animal) any {
		return map[string]any{"token": rubbish(r), "password": "pw " + a.word}
	},
	"POST /v1/auth/email/verify": func(r *rand.Rand, z *zoo, a *animal) any { return map[string]any{"token": rubbish(r)} },
	"POST /v1/invitations/accept": func(r *rand.Rand, z *zoo, a *animal) any {
		a.mu.Lock()
		defer a.mu.Unlock()
		token := rubbish(r)
		if n := len(a.invites); n > 0 && r.IntN(3) > 0 {
			token, a.invites = a.invites[n-1], a.invites[:n-1]
		}
		return map[string]any{"token": token, "password": "pw " + a.word}
	},
	"POST /v1/billing/webhook": func(r *rand.Rand, z *zoo, a *animal) any { return map[string]any{"id": "evt_" + a.word} },
	"POST /v1/auth/logout":     nil,
	"POST /v1/auth/password": func(r *rand.Rand, z *zoo, a *animal) any {
		return map[string]any{"current_password": "wrong " + a.word, "new_password": "new " + a.word}
	},
	"POST /v1/auth/email/send":     nil,
	"DELETE /v1/sessions/{id}":     nil,
	"POST /v1/workspaces":          func(r *rand.Rand, z *zoo, a *animal) any { return map[string]any{"name": a.word} },
	"PATCH /v1/workspace":          func(r *rand.Rand, z *zoo, a *animal) any { return map[string]any{"name": "ws " + a.word} },
	"DELETE /v1/workspace":         func(r *rand.Rand, z *zoo, a *animal) any { return map[string]any{"confirm": "not " + a.word} },
	"PATCH /v1/members/{user_id}":  func(r *rand.Rand, z *zoo, a *animal) any { return map[string]any{"role": "viewer"} },
	"DELETE /v1/members/{user_id}": nil,
	"POST /v1/invitations": func(r *rand.Rand, z *zoo, a *animal) any {
		return map[string]any{"email": fmt.Sprintf("i%d-%s@example.com", r.IntN(1e6), a.word), "role": "viewer"}
	},
	"DELETE /v1/invitations/{id}": nil,
	// Each endpoint bears its workspace's word; who answers there looks for others.
	"POST /v1/webhooks": func(r *rand.Rand, z *zoo, a *animal) any {
		return map[string]any{"url": z.hooks + "/" + a.word, "description": a.word}
	},
	"PATCH /v1/webhooks/{id}": func(r *rand.Rand, z *zoo, a *animal) any {
		return map[string]any{"url": z.hooks + "/" + a.word, "enabled": true}
	},
	"DELETE /v1/webhooks/{id}":      nil,
	"POST /v1/webhooks/{id}/rotate": func(r *rand.Rand, z *zoo, a *animal) any { return map[string]any{"overlap_seconds": 0} },
	"POST /v1/webhooks/{id}/test":   nil,
	"POST /v1/webhooks/{id}/deliveries/replay": func(r *rand.Rand, z *zoo, a *animal) any {
		return map[string]any{"since": "2026-01-01T00:00:00Z", "status": "succeeded"}
	},
	"POST /v1/webhooks/{id}/deliveries/{delivery_id}/replay": nil,

	"POST /v1/tasks": func(r *rand.Rand, z *zoo, a *animal) any { return canaryTask(r, a) },
	"POST /v1/tasks/batch": func(r *rand.Rand, z *zoo, a *animal) any {
		return map[string]any{"tasks": []any{canaryTask(r, a), canaryTask(r, a)}}
	},
	"POST /v1/tasks/cancel": func(r *rand.Rand, z *zoo, a *animal) any {
		return map[string]any{"metadata": map[string]string{"word": a.word, "n": "1"}}
	},
	"POST /v1/schedules": func(r *rand.Rand, z *zoo, a *animal) any {
		return map[string]any{"name": "s " + a.word, "cron": "@daily", "task": map[string]any{"prompt": a.word, "input": map[string]any{"word": a.word},
			"metadata": map[string]string{"word": a.word}}}
	},
	"PATCH /v1/schedules/{id}": func(r *rand.Rand, z *zoo, a *animal) any {
		return map[string]any{"name": "t " + a.word, "paused": r.IntN(2) == 0, "task": map[string]any{"prompt": "new " + a.word}}
	},
	"DELETE /v1/schedules/{id}": nil,
	"POST /v1/tasks/retry": func(r *rand.Rand, z *zoo, a *animal) any {
		return map[string]any{"metadata": map[string]string{"word": a.word}, "limit": 2}
	},
	"POST /v1/dead-letters/replay": func(r *rand.Rand, z *zoo, a *animal) any {
		return map[string]any{"ids": []any{z.any(r, "tasks"), z.any(r, "tasks")}}
	},
	"DELETE /v1/dead-letters": func(r *rand.Rand, z *zoo, a *animal) any {
		return map[string]any{"metadata": map[string]string{"word": a.word, "n": "2"}, "limit": 1}
	},
	"DELETE /v1/tasks/{id}":      nil,
	"POST /v1/tasks/{id}/cancel": nil,
	"POST /v1/tasks/{id}/retry":  nil,
	"POST /v1/api-keys": func(r *rand.Rand, z *zoo, a *animal) any {
		return map[string]any{"name": "key " + a.word, "role": []string{"viewer", "member"}[r.IntN(2)]}
	},
	"DELETE /v1/api-keys/{id}":      nil,
	"POST /v1/api-keys/{id}/rotate": func(r *rand.Rand, z *zoo, a *animal) any { return map[string]any{"overlap_seconds": 3600} },
}

// canaryTask holds the word in all that a task carries, also in what the model answers or fails with.
func canaryTask(r *rand.Rand, a *animal) map[string]any {
	ways := []string{"out=answer+" + a.word, "out=%7B%22word%22%3A%22" + a.word + "%22%7D", "fail=500:1", "status=400", "fail=garbage:1", "sleep=100ms", "stop=refusal"}
	task := map[string]any{"prompt": "say " + a.word + " tokens=5/5 " + ways[r.IntN(len(ways))], "input": map[string]any{"word": a.word},
		"metadata": map[string]string{"word": a.word, "n": fmt.Sprint(r.IntN(3))}, "max_attempts": 2}
	switch r.IntN(8) {
	case 0:
		task["agent"] = "nobody-" + a.word
	case 1:
		task["model"] = "openai/" + a.word
	case 2:
		task["field-"+a.word] = a.word
	}
	return task
}
