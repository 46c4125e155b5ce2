package main

import (
	"fmt"
	"strings"
	"testing"
)

func TestProvedAddressesNeedAMailServer(t *testing.T) {
	t.Parallel()
	mail := map[string]string{"SMTP_URL": "smtps://u:long-and-random@mail:465", "MAIL_FROM": "m@example.com"}
	for _, c := range []struct {
		name     string
		vars     map[string]string
		required bool // the setting's effect
		mistakes []string
	}{
		{"without a mail server nobody can be asked", nil, false, nil},
		{"with one they are", mail, true, nil},
		{"unless somebody says no", with(mail, "REQUIRE_VERIFIED_EMAIL", "false"), false, nil},
		{"asking without a mail server is a mistake", map[string]string{"REQUIRE_VERIFIED_EMAIL": "true"}, true, []string{"SMTP_URL is not set"}},
		{"production wants both, and says so at once", map[string]string{"MUSTER_ENV": "production", "REQUIRE_VERIFIED_EMAIL": "false", "JWT_SIGNING_KEYS": strings.Repeat("ab", 32)}, false,
			[]string{"SMTP_URL is not set", "REQUIRE_VERIFIED_EMAIL is \"false\"", "JWT_SIGNING_KEYS: key 1 is not random"}},
		{"production with both", with(with(mail, "MUSTER_ENV", "production"), "JWT_SIGNING_KEYS", randomKey), true, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			vars := with(c.vars, "JWT_SIGNING_KEYS", randomKey)
			if key := c.vars["JWT_SIGNING_KEYS"]; key != "" {
				vars["JWT_SIGNING_KEYS"] = key
			}
			cfg, err := loadConfig(func(k string) string { return vars[k] }, nil, "JWT_SIGNING_KEYS")
			if got := cfg.requiresVerifiedEmail(); got != c.required {
				t.Errorf("required: %v", got)
			}
			if (err == nil) != (len(c.mistakes) == 0) {
				t.Fatal(err)
			}
			for _, m := range c.mistakes {
				if !strings.Contains(err.Error(), m) {
					t.Errorf("%q is not told in:\n%v", m, err)
				}
			}
		})
	}
	t.Run("a worker in production needs no mail server", func(t *testing.T) {
		t.Parallel()
		vars := map[string]string{"MUSTER_ENV": "production"}
		if _, err := loadConfig(func(k string) string { return vars[k] }, nil); err != nil {
			t.Error(err)
		}
	})
}

// with is a copy with one more.
func with(vars map[string]string, name, value string) map[string]string {
	all := map[string]string{name: value}
	for k, v := range vars {
		if k != name {
			all[k] = v
		}
	}
	return all
}

func TestPlanModelsReadsPatternsByPlan(t *testing.T) {
	t.Parallel()
	cfg, err := loadConfig(func(k string) string {
		if k == "PLAN_MODELS" {
			return "free=openai/llama3.2, openai/qwen*; pro="
		}
		return ""
	}, nil)
	if err != nil || fmt.Sprint(cfg.PlanModels) != "map[free:[openai/llama3.2 openai/qwen*] pro:[]]" {
		t.Errorf("%v, %v", cfg.PlanModels, err)
	}
	for _, wrong := range []string{"free", "gold=openai/*", "free=openai", "free=openai/a b", "free=openai/*a"} {
		_, err := loadConfig(func(k string) string {
			if k == "PLAN_MODELS" {
				return wrong
			}
			return ""
		}, nil)
		if err == nil {
			t.Errorf("%q is taken", wrong)
		}
	}
}
