package api

import (
	"context"
	"net/http"
	"strings"

	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/store"
)

// Passwords that change and addresses that are proved. Who asks for a reset is answered before anybody looks whether
// there is such a user, so the answer tells nothing, in words or in time. Without a mail server nothing is sent and no
// token is made.

const (
	resetPrefix  = "mst_rst_"
	verifyPrefix = "mst_vfy_"
	invitePrefix = "mst_inv_"
)

type changePasswordBody struct {
	CurrentPassword string `json:"current_password" required:"true" maxLength:"1024"`
	NewPassword     string `json:"new_password" required:"true" minLength:"8" maxLength:"1024" description:"Any characters of any script, at most 1,024 bytes."`
}

type forgotPasswordBody struct {
	Email string `json:"email" required:"true" minLength:"3" maxLength:"254"`
}

type resetPasswordBody struct {
	Token    string `json:"token" required:"true" maxLength:"200" description:"As mailed; works once, within an hour."`
	Password string `json:"password" required:"true" minLength:"8" maxLength:"1024" description:"Any characters of any script, at most 1,024 bytes."`
}

type verifyEmailBody struct {
	Token string `json:"token" required:"true" maxLength:"200" description:"As mailed; works once, within seven days."`
}

var errMailedToken = refuse(probUnauthorized, "the token is unknown, used or expired")

// by says where the request comes from.
func (q *request) by() store.By { return store.By{IP: q.gin.ClientIP(), RequestID: requestID(q.gin)} }

// changePassword needs the current password, so that a stolen access token cannot take the account over.
func (s *Server) changePassword(q *request) (answer, error) {
	body, err := bind[changePasswordBody](q, nil)
	if err != nil {
		return answer{}, err
	}
	email, known, err := s.Store.OwnCredentials(q.ctx, q.id.User)
	if err != nil {
		return answer{}, err
	}
	if fault := passwordFault(body.NewPassword, email); fault != "" {
		return answer{}, invalid(fieldError{Field: "new_password", Detail: fault})
	}
	attempt, err := s.beginSignIn(q, email) // a stolen session must not guess faster than a sign-in
	if err != nil {
		s.refused(q.gin, stranger{action: "password.change_delayed", user: q.id.User})
		return answer{}, err
	}
	match := false
	if len(body.CurrentPassword) <= passwordMaxBytes {
		if match, err = s.passwords.verify(q.ctx, body.CurrentPassword, known); err != nil {
			attempt.Abandoned(q.ctx)
			return answer{}, err
		}
	}
	if !match {
		attempt.Failed()
		s.refused(q.gin, stranger{action: "password.change_failed", user: q.id.User})
		return answer{}, invalid(fieldError{Field: "current_password", Detail: "is wrong"})
	}
	attempt.Succeeded(q.ctx)
	hash, err := s.passwords.hash(q.ctx, body.NewPassword)
	if err != nil {
		return answer{}, err
	}
	if err := s.Store.ChangePassword(q.ctx, q.id.User, q.id.Session, known, hash, q.by()); err != nil {
		return answer{}, err
	}
	s.believed.forgetAll(func(id identity) bool { return id.User == q.id.User && id.Session != q.id.Session })
	s.mailPasswordChanged(email)
	return answer{status: http.StatusNoContent}, nil
}

func (s *Server) forgotPassword(q *request) (answer, error) {
	body, err := bind(q, func(b *forgotPasswordBody, f *faults) {
		if b.Email = strings.ToLower(b.Email); !validEmail(b.Email) {
			f.wrong("email", "must be an email address")
		}
	})
	if err != nil {
		return answer{}, err
	}
	if s.Mailer != nil {
		by := q.by()
		s.backstage.later(zerolog.Ctx(q.ctx), "password reset", func(ctx context.Context) error {
			token, hash := newToken(resetPrefix)
			due, err := s.Store.AskReset(ctx, body.Email, hash, by)
			if due && err == nil {
				s.mailReset(body.Email, token)
			}
			return err
		})
	}
	return answer{status: http.StatusAccepted}, nil
}

func (s *Server) resetPassword(q *request) (answer, error) {
	body, err := bind[resetPasswordBody](q, nil)
	if err != nil {
		return answer{}, err
	}
	if !strings.HasPrefix(body.Token, resetPrefix) {
		s.refused(q.gin, stranger{action: "password.reset_failed"})
		return answer{}, errMailedToken
	}
	token := hashSecret(body.Token)
	email, err := s.Store.ResetEmail(q.ctx, token) // before hashing: made-up tokens must cost little
	if store.KindOf(err) == store.Unauthorized {
		s.refused(q.gin, stranger{action: "password.reset_failed"})
	}
	if err != nil {
		return answer{}, err
	}
	if fault := passwordFault(body.Password, email); fault != "" {
		return answer{}, invalid(fieldError{Field: "password", Detail: fault})
	}
	hash, err := s.passwords.hash(q.ctx, body.Password)
	if err != nil {
		return answer{}, err
	}
	user, email, err := s.Store.ResetPassword(q.ctx, token, hash, q.by())
	if err != nil {
		return answer{}, err
	}
	s.believed.forgetAll(func(id identity) bool { return id.User == user })
	s.trustAddress(q, email)
	s.mailPasswordChanged(email)
	return answer{status: http.StatusNoContent}, nil
}

func (s *Server) verifyEmail(q *request) (answer, error) {
	body, err := bind[verifyEmailBody](q, nil)
	if err != nil {
		return answer{}, err
	}
	err = errMailedToken
	if strings.HasPrefix(body.Token, verifyPrefix) {
		err = s.Store.VerifyEmail(q.ctx, hashSecret(body.Token), q.by())
	}
	if e, _ := classify(err); err != nil && e.problem == probUnauthorized {
		s.refused(q.gin, stranger{action: "email.verify_failed"})
	}
	return answer{status: http.StatusNoContent}, err
}

// sendVerification mails another token to a user whose first was lost. It answers alike whether one was due.
func (s *Server) sendVerification(q *request) (answer, error) {
	if err := q.noBody(); err != nil {
		return answer{}, err
	}
	if s.Mailer == nil {
		return answer{status: http.StatusAccepted}, nil
	}
	token, hash := newToken(verifyPrefix)
	email, due, err := s.Store.AskVerification(q.ctx, q.id.User, hash, q.by())
	if err == nil && due {
		s.mailVerification(email, token)
	}
	return answer{status: http.StatusAccepted}, err
}

// newVerification makes the token that a new user is mailed; without a mail server there is none.
func (s *Server) newVerification() (token string, hash []byte) {
	if s.Mailer == nil {
		return "", nil
	}
	return newToken(verifyPrefix)
}

// NewResetToken makes a token that resets a password, as it is handed to its user, and the SHA-256 under which the ledger
// keeps it: for operators, where no letter reaches the user.
func NewResetToken() (token string, hash []byte) { return newToken(resetPrefix) }
