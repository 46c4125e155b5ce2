package main

import (
	"context"
	"flag"
	"fmt"

	"github.com/generic-corp/muster/store"
)

// runMigrate creates the login roles with the passwords of the processes' URLs where they are missing, then migrates.
func runMigrate(ctx context.Context, c *cli, args []string) error {
	set := flag.NewFlagSet("muster migrate", flag.ContinueOnError)
	if _, err := c.flags(set, args, 0, 0); err != nil {
		return err
	}
	cfg, err := loadConfig(c.getenv, nil, "MIGRATE_DATABASE_URL")
	if err != nil {
		return err
	}
	version, err := store.Migrate(ctx, string(cfg.MigrateDatabaseURL), store.RolePasswords{
		API: passwordOf(cfg.DatabaseURL), Worker: passwordOf(cfg.WorkerDatabaseURL), System: passwordOf(cfg.SystemDatabaseURL)})
	if store.Unavailable(err) {
		return dialHint("the database", "MIGRATE_DATABASE_URL", err)
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(c.stdout, "the database is at schema %d\n", version)
	return nil
}
