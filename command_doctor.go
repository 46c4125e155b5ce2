package main

import (
	"context"
	"flag"
	"fmt"
	"strings"
	"time"

	"github.com/generic-corp/muster/jobs"
	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/worker/provider"
)

// muster doctor looks at everything an operator can get wrong and says how to mend it. It changes nothing.

// maxSkew between this machine's clock and the servers'. Nothing is decided by it; tokens and pages would look odd.
const maxSkew = 2 * time.Second

// auditSample is how many audit chains are looked at, at their ends only.
const auditSample = 10_000

// diagnosis collects what was looked at.
type diagnosis struct {
	Checked  []string        `json:"checked"`
	Findings []store.Finding `json:"findings"`
}

func (d *diagnosis) ok(format string, args ...any) {
	d.Checked = append(d.Checked, fmt.Sprintf(format, args...))
}

func (d *diagnosis) found(fix, format string, args ...any) {
	d.Findings = append(d.Findings, store.Finding{What: fmt.Sprintf(format, args...), Fix: fix})
}

func runDoctor(ctx context.Context, c *cli, args []string) error {
	set := flag.NewFlagSet("muster doctor", flag.ContinueOnError)
	asJSON := set.Bool("json", false, "print JSON")
	if _, err := c.flags(set, args, 0, 0); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	d := &diagnosis{Checked: []string{}, Findings: []store.Finding{}}
	cfg, err := loadConfig(c.getenv, nil, "DATABASE_URL", "WORKER_DATABASE_URL", "SYSTEM_DATABASE_URL", "REDIS_URL", "JWT_SIGNING_KEYS")
	if mistakes, wrong := err.(configError); wrong { //nolint:errorlint // loadConfig returns it unwrapped
		for _, m := range mistakes {
			d.found("set it in the environment of every process that needs it", "configuration: %s", m)
		}
	} else {
		d.ok("configuration: every variable is well formed")
	}
	d.examineProviders(cfg)
	d.examineRoles(ctx, cfg)
	d.examineLedger(ctx, cfg)
	d.examineRedis(ctx, cfg)
	if *asJSON {
		if err := printJSON(c.stdout, d); err != nil {
			return err
		}
	} else {
		for _, line := range d.Checked {
			fmt.Fprintf(c.stdout, "ok     %s\n", line)
		}
		for _, f := range d.Findings {
			fmt.Fprintf(c.stdout, "WRONG  %s\n       fix: %s\n", f.What, f.Fix)
		}
	}
	if len(d.Findings) > 0 {
		return errFound
	}
	return nil
}

func (d *diagnosis) examineProviders(cfg Config) {
	if _, err := providers(cfg); err != nil {
		d.found("set ANTHROPIC_API_KEY, OPENAI_API_KEY or OPENAI_BASE_URL for the workers", "providers: %v", err)
	} else {
		d.ok("providers: at least one is configured")
	}
	if _, err := provider.LoadPrices(cfg.PricesFile); err != nil {
		d.found("mend the file that MODEL_PRICES_FILE names", "prices: %v", err)
	} else {
		d.ok("prices: the table is well formed")
	}
	if cfg.StripeSecretKey == "" {
		d.found("set STRIPE_SECRET_KEY for the scheduler, or accept that usage is only recorded", "Stripe: no account is configured")
	}
}

// examineRoles proves that each URL signs in as the role it is meant for.
func (d *diagnosis) examineRoles(ctx context.Context, cfg Config) {
	for _, u := range []struct {
		variable string
		url      Secret
		role     string
	}{
		{"DATABASE_URL", cfg.DatabaseURL, store.RoleAPI}, {"WORKER_DATABASE_URL", cfg.WorkerDatabaseURL, store.RoleWorker},
		{"SYSTEM_DATABASE_URL", cfg.SystemDatabaseURL, store.RoleSystem},
	} {
		if u.url == "" {
			continue
		}
		db, err := store.Open(ctx, string(u.url), 1)
		if err != nil {
			d.found("mend "+u.variable, "%s: %v", u.variable, err)
			continue
		}
		var role string
		err = db.GetContext(ctx, &role, `SELECT current_user`)
		db.Close()
		switch {
		case err != nil:
			d.found("start the database, or mend "+u.variable, "%s: %v", u.variable, dialHint("the database", u.variable, err))
		case role != u.role:
			d.found(fmt.Sprintf("let %s sign in as %s", u.variable, u.role), "%s signs in as %s: row-level security is made for %s", u.variable, role, u.role)
		default:
			d.ok("%s signs in as %s", u.variable, role)
		}
	}
}

func (d *diagnosis) examineLedger(ctx context.Context, cfg Config) {
	if cfg.SystemDatabaseURL == "" {
		return
	}
	db, err := store.Open(ctx, string(cfg.SystemDatabaseURL), 2)
	if err != nil || db.PingContext(ctx) != nil {
		return // examineRoles has said so
	}
	defer db.Close()
	system := store.NewSystem(db)
	version, err := system.SchemaVersion(ctx)
	switch {
	case err != nil:
		d.found("run muster migrate", "schema: %v", err)
		return
	case version < store.LatestVersion():
		d.found("run muster migrate", "schema: the database is at %d, this version needs %d", version, store.LatestVersion())
	case version > store.LatestVersion():
		d.found("run a newer muster", "schema: the database is at %d, this version knows %d", version, store.LatestVersion())
	default:
		d.ok("schema: %d", version)
	}
	findings, err := system.AuditCatalog(ctx)
	if err != nil {
		d.found("look at the database's log", "catalog: %v", err)
	} else if d.Findings = append(d.Findings, findings...); len(findings) == 0 {
		d.ok("catalog: row-level security is forced, roles are bound, nothing goes around them")
	}
	if loose, err := system.LooseHeads(ctx, auditSample); err != nil {
		d.found("look at the database's log", "audit log: %v", err)
	} else if len(loose) == 0 {
		d.ok("audit log: the heads of up to %d chains fit (muster audit verify reads them whole)", auditSample)
	} else {
		d.found("muster audit verify "+store.ChainName(loose[0]), "audit log: %d chains do not end where their heads say, %s first", len(loose), store.ChainName(loose[0]))
	}
	asked := time.Now()
	if now, err := system.Now(ctx); err == nil {
		d.examineClock("the database", asked, now)
	}
	var durable string
	if err := db.GetContext(ctx, &durable, `SELECT current_setting('fsync') || ',' || current_setting('full_page_writes') || ',' || (current_setting('synchronous_commit') <> 'off')`); err == nil {
		if durable != "on,on,true" {
			d.found("set fsync, full_page_writes and synchronous_commit to on: a power cut would lose what was promised", "durability: the database does not keep its commits (%s)", durable)
		} else {
			d.ok("durability: the database keeps its commits")
		}
	}
}

func (d *diagnosis) examineClock(whose string, asked, now time.Time) {
	if skew := now.Sub(asked.Add(time.Since(asked) / 2)); skew.Abs() > maxSkew {
		d.found("run a time service on both machines", "clock: %s is %s away from this machine", whose, skew.Round(time.Millisecond))
	} else {
		d.ok("clock: %s agrees with this machine", whose)
	}
}

func (d *diagnosis) examineRedis(ctx context.Context, cfg Config) {
	if cfg.Redis.RedisConnOpt == nil {
		return
	}
	rdb, err := jobs.NewRedis(cfg.Redis)
	if err != nil {
		d.found("mend REDIS_URL", "redis: %v", err)
		return
	}
	defer rdb.Close()
	asked := time.Now()
	now, err := rdb.Time(ctx).Result()
	if err != nil {
		d.found("start Redis, or mend REDIS_URL; until then tasks are accepted and wait", "redis: %v", dialHint("redis", "REDIS_URL", err))
		return
	}
	d.examineClock("redis", asked, now)
	policy, err := rdb.ConfigGet(ctx, "maxmemory-policy").Result()
	switch {
	case err != nil:
		d.ok("redis: answers (its configuration may not be read: make sure that maxmemory-policy is noeviction)")
	case policy["maxmemory-policy"] != "noeviction":
		d.found("CONFIG SET maxmemory-policy noeviction, and in its configuration file", "redis: maxmemory-policy is %s: it may throw turns away", policy["maxmemory-policy"])
	default:
		d.ok("redis: answers, maxmemory-policy is noeviction")
	}
	info, err := rdb.Info(ctx, "server").Result()
	if err == nil {
		for _, line := range strings.Split(info, "\n") {
			if v, ok := strings.CutPrefix(strings.TrimSpace(line), "redis_version:"); ok {
				d.ok("redis: version %s", v)
			}
		}
	}
}
