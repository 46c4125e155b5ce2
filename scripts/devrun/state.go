//go:build unix

// What survives a restart beside the servers' own data: secrets, and who the demo customer is.

package main

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// state is .muster/dev.json, readable by its owner alone.
type state struct {
	file string

	JWTSigningKey  string `json:"jwt_signing_key"`
	WebhookKey     string `json:"webhook_key"`
	OwnerPassword  string `json:"owner_password"` // of the login roles, see stack.go
	APIPassword    string `json:"api_password"`
	WorkerPassword string `json:"worker_password"`
	SystemPassword string `json:"system_password"`

	Email       string `json:"email,omitempty"` // of the demo user
	Password    string `json:"password,omitempty"`
	WorkspaceID string `json:"workspace_id,omitempty"`
	APIKey      string `json:"api_key,omitempty"`

	// StripeAccount is "stand-in" or the secret key's last characters: another account knows no customer of this one.
	StripeAccount      string `json:"stripe_account,omitempty"`
	StripeWorkspace    string `json:"stripe_workspace,omitempty"`
	StripeCustomer     string `json:"stripe_customer,omitempty"`
	StripeSubscription string `json:"stripe_subscription,omitempty"`
}

// loadState reads the file, or makes one with fresh secrets.
func loadState(file string) (*state, error) {
	s := &state{file: file}
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		s.JWTSigningKey, s.WebhookKey = randomHex(32), randomHex(32)
		for _, p := range []*string{&s.OwnerPassword, &s.APIPassword, &s.WorkerPassword, &s.SystemPassword} {
			*p = randomHex(16)
		}
		return s, s.save()
	}
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("read %s (remove it to begin anew): %w", file, err)
	}
	if s.WebhookKey == "" { // of a state that an earlier version wrote
		s.WebhookKey = randomHex(32)
		return s, s.save()
	}
	return s, nil
}

// save replaces the file whole.
func (s *state) save() error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	if err := os.WriteFile(s.file+".new", append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	return os.Rename(s.file+".new", s.file)
}

func randomHex(bytes int) string {
	b := make([]byte, bytes)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
