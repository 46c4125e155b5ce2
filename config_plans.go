package main

import (
	"strings"

	"github.com/generic-corp/muster/store"
)

// The settings about what plans ask for and allow: proved addresses, models.

// requiresVerifiedEmail: as it was set, else where letters can be sent.
func (c Config) requiresVerifiedEmail() bool {
	if c.VerifiedEmail != nil {
		return *c.VerifiedEmail
	}
	return c.SMTPURL != ""
}

// planModels reads free=openai/a,openai/b*;starter=openai/*.
func planModels(c *Config, v string) error {
	c.PlanModels = map[string][]string{}
	for part := range strings.SplitSeq(v, ";") {
		plan, list, found := strings.Cut(strings.TrimSpace(part), "=")
		if _, known := store.PlanByID(plan); !found || !known {
			return errWrong
		}
		patterns, err := modelList(list)
		if err != nil {
			return errWrong
		}
		c.PlanModels[plan] = patterns
	}
	return nil
}

// modelList reads patterns of models that are separated by commas; nothing is none.
func modelList(text string) ([]string, error) {
	patterns := []string{}
	for pattern := range strings.SplitSeq(text, ",") {
		if pattern = strings.TrimSpace(pattern); pattern != "" {
			patterns = append(patterns, pattern)
		}
	}
	return patterns, store.CheckModels(patterns)
}

// allowModels makes the operator's choice of models the plans'.
func (c Config) allowModels() error {
	for plan, patterns := range c.PlanModels {
		if err := store.AllowModels(plan, patterns); err != nil {
			return err
		}
	}
	return nil
}

// mailMistakes: proved addresses need a mail server. customers is true for a command that lets them in.
func (c Config) mailMistakes(customers bool) (mistakes []string) {
	if c.requiresVerifiedEmail() && c.SMTPURL == "" {
		mistakes = append(mistakes, "REQUIRE_VERIFIED_EMAIL is true and SMTP_URL is not set; want both, or nobody can prove an address")
	}
	if c.Env != "production" || !customers {
		return mistakes
	}
	if c.SMTPURL == "" {
		mistakes = append(mistakes, "SMTP_URL is not set; in production want a mail server, because addresses are proved and passwords reset by mail")
	}
	if c.VerifiedEmail != nil && !*c.VerifiedEmail {
		mistakes = append(mistakes, `REQUIRE_VERIFIED_EMAIL is "false"; in production want true, because little else stands before a flood of Free workspaces`)
	}
	return mistakes
}
