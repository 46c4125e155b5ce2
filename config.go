package main

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/api"
	"github.com/generic-corp/muster/api/mail"
	"github.com/generic-corp/muster/billing"
	"github.com/generic-corp/muster/jobs"
)

// Config is every setting of every process. Each comes from the environment variable of variables below, from a file
// named by its _FILE twin, or from the flag of the same name, in rising order of precedence.
type Config struct {
	Env string // development or production

	Port    int    // of the API
	OpsAddr string // host:port of the operators' listener; port 0 takes a free one

	DatabaseURL        Secret // the API's role
	WorkerDatabaseURL  Secret
	SystemDatabaseURL  Secret // scheduler, billing, operators' commands
	MigrateDatabaseURL Secret // the owner, direct
	Redis              redisServer

	SigningKeys secretKeys // of access tokens, current first, at least 32 bytes each

	StripeSecretKey      Secret
	StripeWebhookSecrets []Secret // of the endpoint, current first
	StripeAPIBase        string   // empty is Stripe's own

	AnthropicAPIKey, OpenAIAPIKey    Secret
	AnthropicBaseURL, AnthropicModel string
	OpenAIBaseURL, OpenAIModel       string
	PricesFile                       string // overrides the built-in prices of models

	WorkerConcurrency int           // agents at once per worker process
	IsolatedChildren  int           // of these, how many suspects at once, each in a process of its own
	IsolatedMemoryMB  int           // what each of those may allocate
	WorkerProcesses   int           // started by muster up
	Drain             time.Duration // after SIGTERM
	StrictTiers       bool
	CheckInterval     time.Duration

	DeletionGrace time.Duration // between a workspace's deletion and its erasing

	SMTPURL  Secret // of the mail server; empty: no letters are sent
	MailFrom string // their sender

	VerifiedEmail *bool               // workspaces whose plan says so need an owner with a proved address; nil: when SMTPURL is set
	PlanModels    map[string][]string // by plan: the models it allows, instead of its own

	Webhooks  Webhooks
	Autoscale Autoscale

	AuditHeadsDir string // where the scheduler writes the heads of the audit chains each night; empty: nowhere

	LogLevel       zerolog.Level
	TrustedProxies []netip.Prefix
	AppDomain      string   // slug.AppDomain chooses a workspace's login
	CORSOrigins    []string // whose pages may use the API in a browser
}

// variable is one setting: how it is read, and what to say when it is wrong.
type variable struct {
	name     string
	fallback string
	want     string // what would be right
	secret   bool   // never shown; may come from NAME_FILE
	help     string
	set      func(c *Config, value string) error
}

var variables = slices.Concat(processVariables, webhookVariables, autoscaleVariables)

var processVariables = []variable{
	{"MUSTER_ENV", "development", "development or production", false, "production refuses weak secrets", oneOf(func(c *Config) *string { return &c.Env }, "development", "production")},
	{"PORT", "8080", "a port number from 1 to 65535", false, "where the API listens", number(func(c *Config) *int { return &c.Port }, 1, 65535)},
	{"OPS_ADDR", "127.0.0.1:9090", "host:port", false, "where operators' pages listen: metrics, Asynqmon", func(c *Config, v string) error {
		host, port, err := net.SplitHostPort(v)
		if _, portErr := strconv.ParseUint(port, 10, 16); err != nil || portErr != nil || host == "" {
			return errWrong
		}
		c.OpsAddr = v
		return nil
	}},
	{"DATABASE_URL", "", "postgres://muster_api:…@host:5432/muster", true, "the API's role", postgresURL(func(c *Config) *Secret { return &c.DatabaseURL })},
	{"WORKER_DATABASE_URL", "", "postgres://muster_worker:…@host:5432/muster", true, "the workers' role", postgresURL(func(c *Config) *Secret { return &c.WorkerDatabaseURL })},
	{"SYSTEM_DATABASE_URL", "", "postgres://muster_system:…@host:5432/muster", true, "the role of scheduler, billing and operators' commands", postgresURL(func(c *Config) *Secret { return &c.SystemDatabaseURL })},
	{"MIGRATE_DATABASE_URL", "", "postgres://owner:…@host:5432/muster", true, "the owner of the tables, for migrations, direct", postgresURL(func(c *Config) *Secret { return &c.MigrateDatabaseURL })},
	{"REDIS_URL", "", "redis://, rediss://, redis-sentinel:// or redis-cluster:// with host:port", true, "Redis, for delivery", func(c *Config, v string) (err error) {
		c.Redis.RedisConnOpt, err = jobs.ParseRedisURL(v)
		c.Redis.url = Secret(v)
		return err
	}},
	{"JWT_SIGNING_KEYS", "", "hex or base64 of at least 32 bytes each, comma-separated, the current one first", true, "keys of access tokens", signingKeys},
	{"STRIPE_SECRET_KEY", "", "sk_…", true, "Stripe's API key; without it no usage is pushed", text(func(c *Config) *Secret { return &c.StripeSecretKey })},
	{"STRIPE_WEBHOOK_SECRET", "", "whsec_…, several comma-separated while one is rolled", true, "signing secrets of Stripe's webhook; without one it answers 503", webhookSecrets},
	{"STRIPE_API_BASE", "", "an http or https URL", false, "another server that speaks Stripe's API", httpURL(func(c *Config) *string { return &c.StripeAPIBase })},
	{"ANTHROPIC_API_KEY", "", "sk-ant-…", true, "turns the provider anthropic on", text(func(c *Config) *Secret { return &c.AnthropicAPIKey })},
	{"ANTHROPIC_BASE_URL", "", "an http or https URL without /v1", false, "another server that speaks Anthropic's API", httpURL(func(c *Config) *string { return &c.AnthropicBaseURL })},
	{"ANTHROPIC_MODEL", "", "a model's name", false, "the model of \"anthropic\" and \"auto\"", text(func(c *Config) *string { return &c.AnthropicModel })},
	{"OPENAI_API_KEY", "", "sk-…", true, "turns the provider openai on", text(func(c *Config) *Secret { return &c.OpenAIAPIKey })},
	{"OPENAI_BASE_URL", "", "an http or https URL with /v1", false, "any OpenAI-compatible server (Ollama, vLLM); turns the provider on, key or not", httpURL(func(c *Config) *string { return &c.OpenAIBaseURL })},
	{"OPENAI_MODEL", "", "a model's name", false, "the model of \"openai\" and \"auto\"", text(func(c *Config) *string { return &c.OpenAIModel })},
	{"MODEL_PRICES_FILE", "", "a file as described in docs/operations.md", false, "prices of models that replace or add to the built-in ones", text(func(c *Config) *string { return &c.PricesFile })},
	{"WORKER_CONCURRENCY", "20", "a number from 1 to 1000", false, "agents at once per worker process", number(func(c *Config) *int { return &c.WorkerConcurrency }, 1, 1000)},
	{"WORKER_ISOLATED", "4", "a number from 1 to 64", false, "suspects of crashes at once per worker process, each in a process of its own", number(func(c *Config) *int { return &c.IsolatedChildren }, 1, 64)},
	{"WORKER_ISOLATED_MEMORY_MB", "512", "a number from 128 to 65536", false, "what the process of a suspect may allocate", number(func(c *Config) *int { return &c.IsolatedMemoryMB }, 128, 65536)},
	{"WORKER_PROCESSES", "1", "a number from 0 to 64", false, "worker processes that muster up starts", number(func(c *Config) *int { return &c.WorkerProcesses }, 0, 64)},
	{"DRAIN_SECONDS", "280", "a number from 0 to 3600", false, "how long agents may run on after SIGTERM", func(c *Config, v string) error {
		n, err := strconv.Atoi(v)
		if err != nil || n < 0 || n > 3600 {
			return errWrong
		}
		c.Drain = time.Duration(n) * time.Second
		return nil
	}},
	{"WORKER_STRICT_TIERS", "false", "true or false", false, "a lower tier runs only when the higher ones are empty", boolean(func(c *Config) *bool { return &c.StrictTiers })},
	{"WORKER_POLL_INTERVAL", "250ms", "a duration from 1ms to 1s", false, "how often an idle worker looks at its queues by itself; turns are announced", duration(func(c *Config) *time.Duration { return &c.CheckInterval }, time.Millisecond, time.Second)},
	{"DELETION_GRACE", "24h", "a duration from 1m to 720h", false, "how long a deleted workspace can be restored before it is erased", duration(func(c *Config) *time.Duration { return &c.DeletionGrace }, time.Minute, 720*time.Hour)},
	{"SMTP_URL", "", "smtp://user:password@host:587 (STARTTLS) or smtps://user:password@host:465", true, "the mail server; without it no letters are sent and passwords cannot be reset", mailServer},
	{"MAIL_FROM", "", "an email address, with a name or without", false, "the sender of letters", mailSender},
	{"REQUIRE_VERIFIED_EMAIL", "", "true or false", false, "a Free workspace runs no task before an owner has proved their address; true when SMTP_URL is set", boolean(func(c *Config) *bool {
		c.VerifiedEmail = new(bool)
		return c.VerifiedEmail
	})},
	{"PLAN_MODELS", "", "PLAN=MODEL,MODEL… with PLAN=… of others behind a semicolon", false, "the models that tasks of a plan may run on, instead of the plan's own", planModels},
	{"AUDIT_HEADS_DIR", "", "a directory that exists on the schedulers' machines", false, "where the heads of the audit chains are written each night", text(func(c *Config) *string { return &c.AuditHeadsDir })},
	{"LOG_LEVEL", "info", "debug, info, warn or error", false, "what is logged", func(c *Config, v string) error {
		if !slices.Contains([]string{"debug", "info", "warn", "error"}, v) { // zerolog knows more
			return errWrong
		}
		level, err := zerolog.ParseLevel(v)
		c.LogLevel = level
		return err
	}},
	{"APP_DOMAIN", "", "a lower-case DNS name such as example.com", false, "the domain whose subdomains choose a workspace's login", func(c *Config, v string) error {
		if api.CheckDomain(v) != nil {
			return errWrong
		}
		c.AppDomain = v
		return nil
	}},
	{"CORS_ORIGINS", "", "comma-separated origins such as https://app.example.com, without a path", false, "whose pages may use the API in a browser", corsOrigins},
	{"TRUSTED_PROXIES", "", "comma-separated addresses or networks", false, "whose X-Forwarded-For, -Proto and -Host are believed", func(c *Config, v string) (err error) {
		c.TrustedProxies, err = networks(v)
		return err
	}},
}

// errWrong marks a value that is not what the variable wants; the message is made by loadConfig.
var errWrong = errors.New("wrong")

// configError lists every mistake at once.
type configError []string

func (e configError) Error() string { return strings.Join(e, "\n") }

// loadConfig reads the settings and reports all mistakes together. required names the variables that this command
// cannot do without; overrides are flags.
func loadConfig(getenv func(string) string, overrides map[string]string, required ...string) (Config, error) {
	var c Config
	var mistakes configError
	needed := make(map[string]bool, len(required))
	for _, name := range required {
		needed[name] = true
	}
	for _, v := range variables {
		value, err := v.value(getenv, overrides)
		if err != nil {
			mistakes = append(mistakes, err.Error())
			continue
		}
		if value == "" {
			if needed[v.name] {
				mistakes = append(mistakes, fmt.Sprintf("%s is not set; want %s (%s)", v.name, v.want, v.help))
			}
			continue
		}
		if err := v.set(&c, value); err != nil {
			shown := strconv.Quote(value)
			if v.secret {
				shown = "set (not shown)"
			}
			mistakes = append(mistakes, fmt.Sprintf("%s is %s; want %s", v.name, shown, v.want))
		}
	}
	if c.SMTPURL != "" && c.MailFrom == "" {
		mistakes = append(mistakes, "MAIL_FROM is not set; want an email address, because SMTP_URL is set")
	}
	mistakes = append(mistakes, c.mailMistakes(needed["JWT_SIGNING_KEYS"])...)
	mistakes = append(mistakes, c.autoscaleMistakes()...)
	if c.Env == "production" {
		mistakes = append(mistakes, c.weaknesses()...)
	}
	if len(mistakes) > 0 {
		return c, mistakes
	}
	return c, nil
}

// leastVariety: a random key of 32 bytes has about 30 different ones; fewer than 16 do not happen by chance.
const leastVariety = 16

// What production asks of other secrets: Stripe's signing secrets have 32 characters after whsec_; 12 random letters have
// fewer than 6 different ones once in a million.
const (
	leastWebhookSecret   = 24
	leastPasswordVariety = 6
)

// variety is how many different bytes there are.
func variety(b []byte) int {
	different := map[byte]bool{}
	for _, c := range b {
		different[c] = true
	}
	return len(different)
}

// weaknesses are secrets that must not reach production.
func (c Config) weaknesses() (mistakes []string) {
	for i, key := range c.SigningKeys {
		if variety(key) < leastVariety {
			mistakes = append(mistakes, fmt.Sprintf("JWT_SIGNING_KEYS: key %d is not random; in production want one from: openssl rand -hex 32", i+1))
		}
	}
	for i, secret := range c.StripeWebhookSecrets {
		if len(secret) < len("whsec_")+leastWebhookSecret || variety([]byte(secret)) < leastVariety {
			mistakes = append(mistakes, fmt.Sprintf("STRIPE_WEBHOOK_SECRET: secret %d is not one of Stripe's; in production want the endpoint's signing secret", i+1))
		}
	}
	for _, server := range []struct {
		name string
		url  Secret
	}{{"DATABASE_URL", c.DatabaseURL}, {"WORKER_DATABASE_URL", c.WorkerDatabaseURL}, {"SYSTEM_DATABASE_URL", c.SystemDatabaseURL},
		{"MIGRATE_DATABASE_URL", c.MigrateDatabaseURL}, {"REDIS_URL", c.Redis.url}, {"SMTP_URL", c.SMTPURL}} {
		password := passwordOf(server.url)
		switch {
		case password == "": // none: a socket, a certificate, a private network
		case len(password) < leastSecret:
			mistakes = append(mistakes, fmt.Sprintf("%s has a password of fewer than %d characters; in production want a random one", server.name, leastSecret))
		case variety([]byte(password)) < leastPasswordVariety || strings.Contains(strings.ToLower(password), "password") || strings.Contains(strings.ToLower(password), "changeme"):
			mistakes = append(mistakes, fmt.Sprintf("%s has a password that is easily guessed; in production want a random one", server.name))
		}
	}
	if c.StripeSecretKey != "" && !billing.LiveKey(string(c.StripeSecretKey)) {
		mistakes = append(mistakes, "STRIPE_SECRET_KEY is a test key or none of Stripe's; in production want sk_live_… or rk_live_…, or none")
	}
	mistakes = append(mistakes, c.Webhooks.weaknesses()...)
	for _, origin := range c.CORSOrigins {
		if strings.HasPrefix(origin, "http://") {
			mistakes = append(mistakes, fmt.Sprintf("CORS_ORIGINS has %q; in production want https, or whoever is on the way can use the API as its user", origin))
		}
	}
	return mistakes
}

func (v variable) value(getenv func(string) string, overrides map[string]string) (string, error) {
	if value, ok := overrides[v.name]; ok {
		return value, nil
	}
	value, file := getenv(v.name), ""
	if v.secret {
		file = getenv(v.name + "_FILE")
	}
	switch {
	case value != "" && file != "":
		return "", fmt.Errorf("%s and %s_FILE are both set; want one", v.name, v.name)
	case file != "":
		raw, err := os.ReadFile(file)
		if err != nil {
			return "", fmt.Errorf("%s_FILE is %q, which cannot be read: %v", v.name, file, errors.Unwrap(err))
		}
		return strings.TrimSpace(string(raw)), nil
	case value != "":
		return value, nil
	}
	return v.fallback, nil
}

// flags adds one flag per variable to the set; the map holds those that were given.
func configFlags(set *flag.FlagSet) map[string]string {
	overrides := map[string]string{}
	for _, v := range variables {
		if v.secret {
			continue // a secret on a command line is in everybody's process list
		}
		name := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(v.name, "MUSTER_"), "_", "-"))
		set.Func(name, fmt.Sprintf("%s: %s (%s)", v.help, v.want, v.name), func(value string) error {
			overrides[v.name] = value
			return nil
		})
	}
	return overrides
}

func text[T ~string](field func(*Config) *T) func(*Config, string) error {
	return func(c *Config, v string) error {
		*field(c) = T(v)
		return nil
	}
}

func oneOf(field func(*Config) *string, allowed ...string) func(*Config, string) error {
	return func(c *Config, v string) error {
		if !slices.Contains(allowed, v) {
			return errWrong
		}
		*field(c) = v
		return nil
	}
}

func number(field func(*Config) *int, lowest, highest int) func(*Config, string) error {
	return func(c *Config, v string) error {
		n, err := strconv.Atoi(v)
		if err != nil || n < lowest || n > highest {
			return errWrong
		}
		*field(c) = n
		return nil
	}
}

func boolean(field func(*Config) *bool) func(*Config, string) error {
	return func(c *Config, v string) error {
		b, err := strconv.ParseBool(v)
		if err != nil {
			return errWrong
		}
		*field(c) = b
		return nil
	}
}

func duration(field func(*Config) *time.Duration, lowest, highest time.Duration) func(*Config, string) error {
	return func(c *Config, v string) error {
		d, err := time.ParseDuration(v)
		if err != nil || d < lowest || d > highest {
			return errWrong
		}
		*field(c) = d
		return nil
	}
}

func postgresURL(field func(*Config) *Secret) func(*Config, string) error {
	return func(c *Config, v string) error {
		u, err := url.Parse(v)
		if err != nil || (u.Scheme != "postgres" && u.Scheme != "postgresql") || u.Host == "" || strings.Trim(u.Path, "/") == "" {
			return errWrong
		}
		*field(c) = Secret(v)
		return nil
	}
}

func httpURL(field func(*Config) *string) func(*Config, string) error {
	return func(c *Config, v string) error {
		u, err := url.Parse(v)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			return errWrong
		}
		*field(c) = strings.TrimRight(v, "/")
		return nil
	}
}

func mailServer(c *Config, v string) error {
	if mail.Check(v) != nil {
		return errWrong
	}
	c.SMTPURL = Secret(v)
	return nil
}

func mailSender(c *Config, v string) error {
	if mail.CheckFrom(v) != nil {
		return errWrong
	}
	c.MailFrom = v
	return nil
}

func webhookSecrets(c *Config, v string) error {
	for _, secret := range strings.Split(v, ",") {
		if secret = strings.TrimSpace(secret); !strings.HasPrefix(secret, "whsec_") || len(secret) == len("whsec_") {
			return errWrong
		}
		c.StripeWebhookSecrets = append(c.StripeWebhookSecrets, Secret(secret))
	}
	return nil
}

func corsOrigins(c *Config, v string) error {
	for _, origin := range strings.Split(v, ",") {
		if origin = strings.TrimSpace(origin); api.CheckOrigin(origin) != nil {
			return errWrong
		}
		c.CORSOrigins = append(c.CORSOrigins, origin)
	}
	return nil
}

func signingKeys(c *Config, v string) (err error) {
	c.SigningKeys, err = secretKeysOf(v)
	return err
}

// secretKeysOf reads keys of at least 32 bytes.
func secretKeysOf(v string) (keys secretKeys, err error) {
	for _, part := range strings.Split(v, ",") {
		part = strings.TrimSpace(part)
		key, err := hex.DecodeString(part)
		if err != nil {
			if key, err = base64.StdEncoding.DecodeString(part); err != nil {
				key, err = base64.RawURLEncoding.DecodeString(part)
			}
		}
		if err != nil || len(key) < 32 {
			return nil, errWrong
		}
		keys = append(keys, key)
	}
	return keys, nil
}
