package api

import (
	"net/http"
	"net/mail"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/generic-corp/muster/store"
)

type registerBody struct {
	Email         string `json:"email" required:"true" minLength:"3" maxLength:"254" description:"Stored in lower case; ASCII."`
	Password      string `json:"password" required:"true" minLength:"8" maxLength:"1024" description:"Any characters of any script, at most 1,024 bytes."`
	WorkspaceName string `json:"workspace_name" required:"true" minLength:"1" maxLength:"100"`
}

type loginBody struct {
	Email       string `json:"email" required:"true" maxLength:"254"`
	Password    string `json:"password" required:"true" maxLength:"1024"`
	WorkspaceID string `json:"workspace_id" maxLength:"64" description:"One of the user's own; the oldest when absent."`
}

type refreshBody struct {
	RefreshToken string `json:"refresh_token" required:"true" maxLength:"200"`
	WorkspaceID  string `json:"workspace_id" maxLength:"64" description:"Another one of the user's own: the session goes on there. The session's when absent."`
}

type workspaceBody struct {
	Name string `json:"name" required:"true" minLength:"1" maxLength:"100"`
}

type workspacePatch struct {
	Name *string `json:"name" minLength:"1" maxLength:"100" nullable:"false"`
	Slug *string `json:"slug" maxLength:"63" nullable:"true" description:"Chooses this workspace's login on a host of its own. A DNS label of at least 3 characters that no other workspace has; empty or null: none."`

	Overage *overagePatch `json:"overage" nullable:"false" description:"Paid time past the plan, on plans that cost something. It holds from the next task that starts."`
}

type overagePatch struct {
	Enabled       bool   `json:"enabled" description:"false when absent."`
	SpendCapCents *int64 `json:"spend_cap_cents" minimum:"1" maximum:"5000000" description:"What it may cost per UTC month. The last one when absent."`
}

type userJSON struct {
	ID            string    `json:"id"`
	Email         string    `json:"email"`
	EmailVerified bool      `json:"email_verified" description:"The address has proved to be theirs."`
	CreatedAt     time.Time `json:"created_at"`
}

type limitsJSON struct {
	AgentMS                int64    `json:"agent_ms" description:"Agent time per UTC month, milliseconds."`
	RequestsPerHour        int      `json:"requests_per_hour" description:"In any rolling hour."`
	Concurrency            int      `json:"concurrency" description:"Tasks that run at once."`
	MaxWaiting             int      `json:"max_waiting" description:"Tasks that wait at once, scheduled ones included."`
	MaxUsers               *int     `json:"max_users" description:"null: unlimited."`
	MaxWebhooks            int      `json:"max_webhooks"`
	ProviderBudgetMicroUSD int64    `json:"provider_budget_microusd" description:"Model cost per UTC month."`
	MaxTaskCostMicroUSD    int64    `json:"max_task_cost_microusd" description:"Model cost of one task, all its attempts together."`
	MaxSchedules           int      `json:"max_schedules" description:"Cron schedules."`
	MinScheduleSeconds     int      `json:"min_schedule_seconds" description:"Between two occurrences of a schedule."`
	Models                 []string `json:"models" description:"The models that tasks may run on: provider/model, * at the end stands for anything. Empty: all."`
	RetentionDays          *int     `json:"retention_days" description:"How long tasks are kept once they have ended, with their content, attempts and model calls. null: as long as the workspace."`
	NeedsVerifiedEmail     bool     `json:"needs_verified_email" description:"Where the service asks for it, an owner must have proved their address before the first task."`
}

type workspaceJSON struct {
	ID        string     `json:"id"`
	Name      string     `json:"name"`
	Slug      *string    `json:"slug" description:"The login's host is this and the service's domain; null: none."`
	Plan      string     `json:"plan"`
	Status    string     `json:"status" enum:"active,paused,deleting" description:"paused: accepts tasks, starts none."`
	Limits    limitsJSON `json:"limits" description:"The plan's, or an operator's own."`
	Settings  jsonObject `json:"settings"`
	CreatedAt time.Time  `json:"created_at"`
}

type signInJSON struct {
	User         userJSON      `json:"user"`
	Workspace    workspaceJSON `json:"workspace"`
	AccessToken  string        `json:"access_token" description:"Send as Authorization: Bearer."`
	ExpiresIn    int           `json:"expires_in" description:"Seconds that the access token is good for."`
	RefreshToken string        `json:"refresh_token" description:"Works once, within 30 days."`
}

type meJSON struct {
	User      *userJSON     `json:"user" description:"null for an API key."`
	Workspace workspaceJSON `json:"workspace"`
	Role      string        `json:"role" enum:"owner,member,viewer"`
	Scopes    []string      `json:"scopes"`
}

func userOf(u store.User) userJSON {
	return userJSON{ID: store.FormatID(store.UserPrefix, u.ID), Email: u.Email, EmailVerified: u.Verified, CreatedAt: u.CreatedAt.UTC()}
}

func workspaceOf(w store.Workspace) workspaceJSON {
	status := w.Status
	if status == "active" && w.Paused != nil {
		status = "paused"
	}
	return workspaceJSON{
		ID: store.FormatID(store.WorkspacePrefix, w.ID), Name: w.Name, Slug: w.Slug, Plan: w.Plan, Status: status,
		Limits: limitsJSON{AgentMS: w.QuotaMS, RequestsPerHour: w.RequestsPerHour, Concurrency: w.Concurrency, MaxWaiting: w.MaxWaiting,
			MaxUsers: orNull(w.MaxUsers), MaxWebhooks: w.MaxWebhooks, ProviderBudgetMicroUSD: w.ProviderBudgetMicroUSD, MaxTaskCostMicroUSD: w.MaxTaskCostMicroUSD,
			MaxSchedules: w.MaxSchedules, MinScheduleSeconds: w.MinScheduleSeconds, Models: orEmpty(w.Models), NeedsVerifiedEmail: w.NeedsVerifiedEmail, RetentionDays: orNull(w.RetentionDays)},
		Settings: jsonObject{w.Settings}, CreatedAt: w.CreatedAt.UTC(),
	}
}

// orNull writes 0, which means unlimited inside, as null.
func orNull(n int) *int {
	if n == 0 {
		return nil
	}
	return &n
}

// register makes a user, a workspace and a session. A known mail is a 409: whoever registers must learn that they have
// an account already, and the password is hashed first, so that the answer takes as long either way.
func (s *Server) register(q *request) (answer, error) {
	body, err := bind(q, func(b *registerBody, f *faults) {
		b.Email = strings.ToLower(b.Email)
		if !validEmail(b.Email) {
			f.wrong("email", "must be an email address")
		}
		if fault := passwordFault(b.Password, b.Email); fault != "" {
			f.wrong("password", "%s", fault)
		}
		if b.WorkspaceName = strings.TrimSpace(b.WorkspaceName); b.WorkspaceName == "" {
			f.wrong("workspace_name", "must not be empty")
		}
	})
	if err != nil {
		return answer{}, err
	}
	hash, err := s.passwords.hash(q.ctx, body.Password)
	if err != nil {
		return answer{}, err
	}
	session, refresh := q.newSession()
	verification, verifyHash := s.newVerification()
	in, err := s.Store.Register(q.ctx, store.NewAccount{Email: body.Email, PasswordHash: hash, WorkspaceName: body.WorkspaceName,
		VerifyHash: verifyHash}, session)
	if store.KindOf(err) == store.Conflict {
		s.refused(q.gin, stranger{action: "account.register_refused", account: s.strangers.account(body.Email)})
	}
	if err != nil {
		return answer{}, err
	}
	s.mailVerification(body.Email, verification)
	s.trustAddress(q, body.Email)
	return s.signedIn(http.StatusCreated, in, refresh)
}

// login answers an unknown mail and a wrong password alike, in words and in time.
func (s *Server) login(q *request) (answer, error) {
	body, err := bind[loginBody](q, nil)
	if err != nil {
		return answer{}, err
	}
	user, hash, err := s.checkPassword(q, strings.ToLower(body.Email), body.Password)
	if err != nil {
		return answer{}, err
	}
	workspace, err := s.wanted(q, body.WorkspaceID)
	if err != nil {
		return answer{}, err
	}
	session, refresh := q.newSession()
	in, err := s.Store.Login(q.ctx, user, hash, workspace, session)
	if err != nil {
		return answer{}, err
	}
	return s.signedIn(http.StatusOK, in, refresh)
}

// checkPassword finds who has this mail (in lower case) and password, and the hash that it matched; failures before
// delay it.
func (s *Server) checkPassword(q *request, email, password string) (user uuid.UUID, hash string, err error) {
	attempt, err := s.beginSignIn(q, email)
	if err != nil {
		s.refused(q.gin, stranger{action: "session.login_delayed", account: s.strangers.account(email)})
		return uuid.Nil, "", err
	}
	match := false
	if len(password) <= passwordMaxBytes {
		user, hash, err = s.Store.Credentials(q.ctx, email)
		if err == nil || store.KindOf(err) == store.NotFound {
			match, err = s.passwords.verify(q.ctx, password, hash)
		}
		if err != nil {
			attempt.Abandoned(q.ctx)
			return uuid.Nil, "", err
		}
	}
	if !match {
		attempt.Failed()
		s.refused(q.gin, stranger{action: "session.login_failed", user: user, account: s.strangers.account(email)})
		return uuid.Nil, "", refuse(probUnauthorized, "the email address or the password is wrong")
	}
	attempt.Succeeded(q.ctx)
	return user, hash, nil
}

func (s *Server) refresh(q *request) (answer, error) {
	body, err := bind[refreshBody](q, nil)
	if err != nil {
		return answer{}, err
	}
	if !strings.HasPrefix(body.RefreshToken, refreshPrefix) {
		s.refused(q.gin, stranger{action: "session.refresh_failed"})
		return answer{}, refuse(probUnauthorized, "the refresh token is unknown, used, expired or revoked")
	}
	workspace, err := s.wanted(q, body.WorkspaceID)
	if err != nil {
		return answer{}, err
	}
	session, next := q.newSession()
	in, err := s.Store.Refresh(q.ctx, hashSecret(body.RefreshToken), workspace, session)
	if store.KindOf(err) == store.Unauthorized {
		s.refused(q.gin, stranger{action: "session.refresh_failed"})
	}
	if err != nil {
		return answer{}, err
	}
	return s.signedIn(http.StatusOK, in, next)
}

// logout ends the session that sends it. It needs no Idempotency-Key: the second time is a 401.
func (s *Server) logout(q *request) (answer, error) {
	if err := q.noBody(); err != nil {
		return answer{}, err
	}
	_, err := s.Store.Do(q.ctx, store.Scope{Workspace: q.id.Workspace}, nil, func(w *store.Work) (store.Answer, error) {
		if _, err := w.RevokeSession(q.ctx, q.id.Session, "logout"); err != nil {
			return store.Answer{}, err
		}
		return store.Answer{}, q.audit(w, "session.logout", store.FormatID(store.SessionPrefix, q.id.Session), nil)
	})
	s.believed.forget(q.id.cacheKey)
	return answer{status: http.StatusNoContent}, err
}

// newSession describes a session from this request, with its next refresh token.
func (q *request) newSession() (store.NewSession, string) {
	text, hash := newToken(refreshPrefix)
	agent := strings.ToValidUTF8(strings.ReplaceAll(q.gin.Request.UserAgent(), "\x00", ""), "")
	return store.NewSession{RefreshHash: hash, UserAgent: strings.ToValidUTF8(agent[:min(len(agent), 256)], ""), IP: q.gin.ClientIP(),
		RequestID: requestID(q.gin)}, text
}

func (s *Server) signedIn(status int, in store.SignIn, refresh string) (answer, error) {
	access, err := s.tokens.issue(in.Workspace.ID, in.User.ID, in.Session)
	if err != nil {
		return answer{}, err
	}
	return answer{status: status, body: signInJSON{User: userOf(in.User), Workspace: workspaceOf(in.Workspace), AccessToken: access,
		ExpiresIn: int(accessLife.Seconds()), RefreshToken: refresh}}, nil
}

func (s *Server) me(q *request) (answer, error) {
	me := meJSON{Role: q.id.Role, Scopes: q.id.scopes}
	if !q.id.isSession() {
		w, err := s.Store.Workspace(q.ctx, q.id.Workspace)
		me.Workspace = workspaceOf(w)
		return answer{status: http.StatusOK, body: me}, err
	}
	in, err := s.Store.Account(q.ctx, q.id.Workspace, q.id.User)
	if store.KindOf(err) == store.NotFound { // removed since the credential was believed
		return answer{}, errBadCredential
	}
	if err != nil {
		return answer{}, err
	}
	user := userOf(in.User)
	me.User, me.Workspace = &user, workspaceOf(in.Workspace)
	return answer{status: http.StatusOK, body: me}, nil
}

func (s *Server) getWorkspace(q *request) (answer, error) {
	w, err := s.Store.Workspace(q.ctx, q.id.Workspace)
	return answer{status: http.StatusOK, body: workspaceOf(w)}, err
}

func (s *Server) patchWorkspace(q *request) (answer, error) {
	body, err := bind(q, func(b *workspacePatch, f *faults) {
		if b.Name != nil {
			if *b.Name = strings.TrimSpace(*b.Name); *b.Name == "" {
				f.wrong("name", "must not be empty")
			}
		}
		if b.Slug != nil && *b.Slug != "" {
			if fault := slugFault(*b.Slug); fault != "" {
				f.wrong("slug", "%s", fault)
			}
		}
		if b.Name == nil && b.Slug == nil && b.Overage == nil && f.err() == nil {
			f.wrong("name", "nothing is to change")
		}
	})
	if err != nil {
		return answer{}, err
	}
	for field, sent := range map[string]bool{"name": body.Name != nil, "slug": body.Slug != nil, "overage": body.Overage != nil} {
		if sent {
			if err := q.mayChange(field); err != nil {
				return answer{}, err
			}
		}
	}
	change := store.WorkspaceChange{Name: body.Name, Slug: body.Slug}
	if o := body.Overage; o != nil {
		change.Overage = &store.OverageSetting{Enabled: o.Enabled, SpendCapCents: o.SpendCapCents}
	}
	return s.work(q, true, func(w *store.Work) (answer, error) {
		changed, err := w.Change(q.ctx, change)
		if err != nil {
			return answer{}, err
		}
		what := []string{} // not the names themselves: the log outlives the workspace
		details := map[string]any{}
		if body.Overage != nil {
			what = append(what, "overage")
			details["overage_enabled"], details["spend_cap_cents"] = changed.OverageEnabled, changed.SpendCapCents
		}
		if body.Name != nil {
			what = append(what, "name")
		}
		if body.Slug != nil {
			what = append(what, "slug")
		}
		details["changed"] = what
		id := store.FormatID(store.WorkspacePrefix, w.Workspace)
		return answer{status: http.StatusOK, body: workspaceOf(changed)}, q.audit(w, "workspace.update", id, details)
	})
}

// validEmail: one ASCII address without a display name, whose domain has a dot or is local.
func validEmail(email string) bool {
	for i := range len(email) {
		if email[i] <= ' ' || email[i] > '~' {
			return false
		}
	}
	parsed, err := mail.ParseAddress(email)
	if err != nil || parsed.Address != email || len(email) > 254 {
		return false
	}
	local, domain, _ := strings.Cut(email, "@")
	return len(local) >= 1 && len(local) <= 64 && !strings.HasPrefix(domain, ".") && !strings.HasSuffix(domain, ".")
}
