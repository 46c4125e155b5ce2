package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/store"
)

type healthJSON struct {
	Status string `json:"status" enum:"ok"`
}

type readyJSON struct {
	Status   string `json:"status" enum:"ready,degraded" description:"degraded: tasks are accepted and start later."`
	Database string `json:"database" enum:"up"`
	Redis    string `json:"redis" enum:"up,down,unknown"`
}

// pingTimeout bounds each look of /ready.
const pingTimeout = 2 * time.Second

func (s *Server) health(*request) (answer, error) {
	return answer{status: http.StatusOK, body: healthJSON{Status: "ok"}}, nil
}

func (s *Server) ready(q *request) (answer, error) {
	ctx, cancel := context.WithTimeout(q.ctx, pingTimeout)
	defer cancel()
	if err := s.Store.Ping(ctx); err != nil {
		zerolog.Ctx(q.ctx).Warn().Err(err).Msg("not ready: the database does not answer")
		return answer{}, refuse(probUnavailable, "the database does not answer")
	}
	ready := readyJSON{Status: "ready", Database: "up", Redis: "unknown"}
	if s.Redis != nil {
		ready.Redis = "up"
		ctx, cancel := context.WithTimeout(q.ctx, pingTimeout)
		defer cancel()
		if err := s.Redis.Ping(ctx); err != nil {
			ready.Status, ready.Redis = "degraded", "down"
		}
	}
	return answer{status: http.StatusOK, body: ready}, nil
}

func (s *Server) describeItself(*request) (answer, error) {
	document, err := s.openapi()
	if err != nil {
		return answer{}, fmt.Errorf("describe routes: %w", err)
	}
	return answer{status: http.StatusOK, headers: map[string]string{"Cache-Control": "no-cache"}, body: json.RawMessage(document)}, nil
}

type planJSON struct {
	ID         string `json:"id"`
	Name       string `json:"name"`
	PriceCents int64  `json:"price_cents" description:"US cents per month."`
	limitsJSON
}

func (s *Server) listPlans(*request) (answer, error) {
	page := listJSON[planJSON]{Data: []planJSON{}}
	for _, p := range store.Plans {
		page.Data = append(page.Data, planJSON{ID: p.ID, Name: p.Name, PriceCents: p.PriceCents, limitsJSON: limitsJSON{AgentMS: p.AgentMS,
			RequestsPerHour: p.RequestsPerHour, Concurrency: p.Concurrency, MaxWaiting: p.MaxWaiting, MaxUsers: orNull(p.MaxUsers), MaxWebhooks: p.MaxWebhooks,
			ProviderBudgetMicroUSD: p.ProviderBudgetMicroUSD, MaxTaskCostMicroUSD: p.MaxTaskCostMicroUSD, Models: orEmpty(p.Models),
			MaxSchedules: p.MaxSchedules, MinScheduleSeconds: p.MinScheduleSeconds, NeedsVerifiedEmail: p.NeedsVerifiedEmail, RetentionDays: orNull(p.RetentionDays)}})
	}
	return answer{status: http.StatusOK, headers: map[string]string{"Cache-Control": "public, max-age=300"}, body: page}, nil
}

type agentJSON struct {
	ID           string `json:"id"`
	Name         string `json:"name" description:"As tasks name it."`
	Title        string `json:"title"`
	Instructions string `json:"instructions"`
	Model        string `json:"model"`
	Builtin      bool   `json:"builtin"`
}

func agentOf(a store.Agent) agentJSON {
	return agentJSON{ID: store.FormatID(store.AgentPrefix, a.ID), Name: a.Name, Title: a.Title, Instructions: a.Instructions, Model: a.Model, Builtin: a.Builtin}
}

func (s *Server) listAgents(q *request) (answer, error) {
	agents, err := s.Store.Agents(q.ctx, q.id.Workspace)
	page := listJSON[agentJSON]{Data: []agentJSON{}}
	for _, a := range agents {
		page.Data = append(page.Data, agentOf(a))
	}
	return answer{status: http.StatusOK, body: page}, err
}

func (s *Server) getAgent(q *request) (answer, error) {
	agents, err := s.Store.Agents(q.ctx, q.id.Workspace)
	if err != nil {
		return answer{}, err
	}
	wanted := q.gin.Param("id")
	for _, a := range agents {
		if j := agentOf(a); j.ID == wanted || j.Name == wanted {
			return answer{status: http.StatusOK, body: j}, nil
		}
	}
	return answer{}, refuse(probNotFound, "no such agent")
}
