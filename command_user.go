package main

import (
	"context"
	"flag"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/generic-corp/muster/api"
	"github.com/generic-corp/muster/store"
)

// Operators' commands on accounts. They show no secret but the one that reset-password makes, and change nothing else.

func runUser(ctx context.Context, c *cli, args []string) error {
	return c.subcommand(ctx, "user", args, map[string]func(context.Context, *cli, []string) error{
		"list": userList, "show": userShow, "reset-password": userResetPassword,
	})
}

// userJSON is an account as --json prints it.
type userJSON struct {
	ID         string           `json:"id"`
	Email      string           `json:"email"`
	Verified   bool             `json:"email_verified"`
	CreatedAt  time.Time        `json:"created_at"`
	Workspaces []membershipJSON `json:"workspaces,omitempty"`
}

type membershipJSON struct {
	Workspace string    `json:"workspace"`
	Name      string    `json:"name"`
	Status    string    `json:"status"`
	Role      string    `json:"role"`
	JoinedAt  time.Time `json:"joined_at"`
}

func showUser(u store.User) userJSON {
	return userJSON{ID: store.FormatID(store.UserPrefix, u.ID), Email: u.Email, Verified: u.Verified, CreatedAt: u.CreatedAt.UTC()}
}

func userList(ctx context.Context, c *cli, args []string) error {
	var limit int
	d, err := c.open(ctx, "user list", args, func(set *flag.FlagSet) {
		set.IntVar(&limit, "limit", 100, "how many, newest first, 1 to 10000")
	}, func(*desk) error { return limited(limit, 10_000) })
	if err != nil {
		return err
	}
	defer d.done()
	if err := d.system.Note(ctx, store.SystemChain, operator(), "users.read", "", map[string]any{"limit": limit}); err != nil {
		return err
	}
	users, err := d.system.Users(ctx, limit)
	if err != nil {
		return err
	}
	shown := make([]userJSON, len(users))
	for i, u := range users {
		shown[i] = showUser(u)
	}
	if d.json {
		return printJSON(c.stdout, shown)
	}
	tw := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "USER\tEMAIL\tVERIFIED\tCREATED")
	for _, u := range shown {
		fmt.Fprintf(tw, "%s\t%s\t%v\t%s\n", u.ID, printable(u.Email), u.Verified, u.CreatedAt.Format(time.RFC3339))
	}
	return tw.Flush()
}

func userShow(ctx context.Context, c *cli, args []string) error {
	d, err := c.open(ctx, "user show EMAIL", args, nil, nil)
	if err != nil {
		return err
	}
	defer d.done()
	account, err := d.system.Account(ctx, strings.ToLower(d.args[0]), operator())
	if err != nil {
		return err
	}
	shown := showUser(account.User)
	for _, m := range account.Memberships {
		shown.Workspaces = append(shown.Workspaces, membershipJSON{Workspace: store.FormatID(store.WorkspacePrefix, m.Workspace), Name: m.Name, Status: m.Status,
			Role: m.Role, JoinedAt: m.JoinedAt.UTC()})
	}
	if d.json {
		return printJSON(c.stdout, shown)
	}
	fmt.Fprintf(c.stdout, "%s  %s  verified %v  created %s\n", shown.ID, printable(shown.Email), shown.Verified, shown.CreatedAt.Format(time.RFC3339))
	tw := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "WORKSPACE\tNAME\tSTATUS\tROLE\tJOINED")
	for _, m := range shown.Workspaces {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", m.Workspace, printable(m.Name), m.Status, m.Role, m.JoinedAt.Format(time.RFC3339))
	}
	return tw.Flush()
}

// userResetPassword makes a token for somebody whom no letter reaches. The token goes to stdout alone.
func userResetPassword(ctx context.Context, c *cli, args []string) error {
	d, err := c.open(ctx, "user reset-password EMAIL", args, nil, nil)
	if err != nil {
		return err
	}
	defer d.done()
	token, hash := api.NewResetToken()
	if err := d.system.AllowReset(ctx, strings.ToLower(d.args[0]), hash, operator()); err != nil {
		return err
	}
	fmt.Fprintln(c.stdout, token)
	fmt.Fprintf(c.stderr, "The token works once, within %.0f minutes: POST /v1/auth/password/reset {\"token\": \"…\", \"password\": \"…\"}. All sessions of %s end with it.\n",
		store.ResetLife.Minutes(), printable(strings.ToLower(d.args[0])))
	return nil
}
