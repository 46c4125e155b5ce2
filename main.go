// Command muster runs AI-agent tasks for many customers on one fleet.
//
// One binary holds every process: the API, the workers, the scheduler, and what operators type. This file is the
// table of commands; each command's wiring reads like a recipe in a file of its own.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/generic-corp/muster/store"
	"github.com/generic-corp/muster/worker/isolate"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

// Exit codes.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

// cli is what a command has of the outside world.
type cli struct {
	getenv func(string) string
	stdout io.Writer
	stderr io.Writer

	children io.Writer // what they write: a file they can write to themselves, since each redacts its own
}

// command is one entry of the table. Its run gets the arguments after its name.
type command struct {
	name    string
	args    string // as shown in the usage
	summary string
	run     func(ctx context.Context, c *cli, args []string) error
}

func commands() []command {
	return []command{
		{"up", "", "run API, scheduler and local workers on one server", runUp},
		{"api", "", "serve the HTTP API", runAPI},
		{"worker", "", "take turns and run agents", runWorker},
		{"scheduler", "", "sweeps, repairs, the nightly push, customers' webhooks; any number: all send webhooks, one (the leader) sweeps", runScheduler},
		{"migrate", "", "bring the database's schema and roles up to this version", runMigrate},
		{"workspace", "list|show|set-plan|set-limit|pause|resume|restore …", "look at and change workspaces", runWorkspace},
		{"plans", "", "the table of plans; --cost PLAN: what a workspace can cost at worst", runPlans},
		{"tasks", "list|show|retry|cancel|retry-all|cancel-all|dead-letters …", "look at and change tasks", runTasks},
		{"schedules", "list|show|pause|resume|delete …", "look at and change cron schedules", runSchedules},
		{"webhooks", "list|enable|disable|test|deliveries|replay|replay-all …", "look at and change webhooks and what was sent to them", runWebhooks},
		{"autoscale", "show|pause|resume …", "look at the fleet's load, pause the autoscaler", runAutoscale},
		{"user", "list|show|reset-password …", "look at accounts, let somebody in again", runUser},
		{"billing", "setup|push|reconcile …", "usage and Stripe", runBilling},
		{"audit", "verify|heads|show …", "check and read the audit log", runAudit},
		{"doctor", "", "check roles, row-level security, schema, Redis, clocks and configuration", runDoctor},
		{"version", "", "print the version", runVersion},
	}
}

// usageError is a mistake in how the command was called: exit code 2.
type usageError struct{ message string }

func (e usageError) Error() string { return e.message }

func misuse(format string, args ...any) error { return usageError{fmt.Sprintf(format, args...)} }

// errFound: the command did its work and found something wrong, which it has printed.
var errFound = errors.New("found")

// run is main without the process around it.
func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	if len(args) == 1 && args[0] == isolate.Command {
		return runIsolated()
	}
	shown := redact(getenv, stdout, stderr)
	c := &cli{getenv: getenv, stdout: shown[0], stderr: shown[1], children: stderr}
	if len(args) == 0 || args[0] == "help" || args[0] == "--help" || args[0] == "-h" {
		usage(c.stderr)
		if len(args) == 0 {
			return exitUsage
		}
		return exitOK
	}
	for _, cmd := range commands() {
		if cmd.name == args[0] {
			return c.exitCode(cmd.name, cmd.run(ctx, c, args[1:]))
		}
	}
	fmt.Fprintf(c.stderr, "muster: unknown command %q\n\n", args[0])
	usage(c.stderr)
	return exitUsage
}

func (c *cli) exitCode(name string, err error) int {
	var wrong configError
	var misused usageError
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, flag.ErrHelp): // the flag set has printed it
		return exitOK
	case errors.Is(err, errFound):
		return exitFailure
	case errors.As(err, &wrong):
		fmt.Fprintf(c.stderr, "muster %s: the configuration is wrong:\n", name)
		for _, mistake := range wrong {
			fmt.Fprintf(c.stderr, "  - %s\n", mistake)
		}
		return exitUsage
	case errors.As(err, &misused):
		fmt.Fprintf(c.stderr, "muster %s: %s\n", name, misused.message)
		return exitUsage
	}
	fmt.Fprintf(c.stderr, "muster %s: %v\n", name, err)
	return exitFailure
}

func usage(w io.Writer) {
	fmt.Fprintln(w, "Muster runs AI-agent tasks for many customers on one fleet.\n\nUsage: muster COMMAND [flags]   (muster COMMAND --help tells more)\n\nCommands:")
	for _, cmd := range commands() {
		fmt.Fprintf(w, "  %-10s %s\n", cmd.name, cmd.summary)
		if cmd.args != "" {
			fmt.Fprintf(w, "  %-10s   %s\n", "", cmd.args)
		}
	}
	fmt.Fprintln(w, "\nSettings come from the environment:")
	for _, v := range variables {
		fallback := ""
		if v.fallback != "" {
			fallback = " [" + v.fallback + "]"
		}
		fmt.Fprintf(w, "  %-22s %s%s\n", v.name, v.help, fallback)
	}
}

// flags parses a command's flags; positional arguments are returned. Mistakes are printed by the set itself.
func (c *cli) flags(set *flag.FlagSet, args []string, lowest, highest int) ([]string, error) {
	set.SetOutput(c.stderr)
	// Flags may stand before or after positional arguments.
	var positional []string
	for {
		if err := set.Parse(args); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				return nil, err
			}
			return nil, misuse("%v", err)
		}
		if args = set.Args(); len(args) == 0 {
			break
		}
		positional, args = append(positional, args[0]), args[1:]
	}
	if len(positional) < lowest || (highest >= 0 && len(positional) > highest) {
		return nil, misuse("%d arguments, want %s; see --help", len(positional), wanted(lowest, highest))
	}
	return positional, nil
}

func wanted(lowest, highest int) string {
	switch {
	case highest < 0:
		return fmt.Sprintf("at least %d", lowest)
	case lowest == highest:
		return fmt.Sprint(lowest)
	}
	return fmt.Sprintf("%d to %d", lowest, highest)
}

// process reads the settings of a long-running process: flags over environment.
func (c *cli) process(name string, args []string, required ...string) (Config, error) {
	set := flag.NewFlagSet("muster "+name, flag.ContinueOnError)
	overrides := configFlags(set)
	if _, err := c.flags(set, args, 0, 0); err != nil {
		return Config{}, err
	}
	return loadConfig(c.getenv, overrides, required...)
}

func init() { zerolog.TimeFieldFormat = time.RFC3339Nano } // a global: set before anybody logs

// logger writes JSON lines, one event each.
func (c *cli) logger(cfg Config, process string) zerolog.Logger {
	return zerolog.New(c.stderr).Level(cfg.LogLevel).With().Timestamp().Str("process", process).Logger()
}

func runVersion(_ context.Context, c *cli, args []string) error {
	if _, err := c.flags(flag.NewFlagSet("muster version", flag.ContinueOnError), args, 0, 0); err != nil {
		return err
	}
	fmt.Fprintf(c.stdout, "muster %s, schema %d\n", version(), store.LatestVersion())
	return nil
}

// version is the module's version or the commit it was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return "dev-" + s.Value[:min(12, len(s.Value))]
		}
	}
	return "dev"
}

// dialHint turns a failure to reach a server at start into a line that says what to look at.
func dialHint(what, variable string, err error) error {
	text := err.Error()
	if i := strings.LastIndex(text, "@"); i >= 0 && strings.Contains(text, "://") { // never echo a URL with its password
		text = text[i+1:]
	}
	return fmt.Errorf("cannot reach %s: %s; is it running, and is %s right?", what, text, variable)
}
