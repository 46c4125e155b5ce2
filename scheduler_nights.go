package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/generic-corp/muster/store"
)

// Each night the leader writes the heads of all audit chains to a file of their own, and always one line about it to its
// log, both out of the database's reach: what store/audit_nights.go is for.

const (
	auditHour = 2 // 02:20 UTC
	auditMin  = 20
)

// checkHeadsDir refuses at the start what would fail in the night.
func checkHeadsDir(dir string) error {
	if dir == "" {
		return nil
	}
	f, err := os.CreateTemp(dir, ".audit-heads-*")
	if err != nil {
		return fmt.Errorf("AUDIT_HEADS_DIR: files cannot be made there: %w", err)
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// auditNight writes tonight's heads, once, after 02:20 UTC.
func (s *scheduler) auditNight(ctx context.Context) error {
	now, err := s.system.Now(ctx)
	if err != nil {
		return err
	}
	day := now.UTC().Truncate(24 * time.Hour)
	if now.Before(day.Add(auditHour*time.Hour + auditMin*time.Minute)) {
		return nil
	}
	return s.writeHeads(ctx, day)
}

// writeHeads writes a night's heads unless that was done. The line is logged before the commit, so that none is missing:
// a process that dies in between lets it be written again.
func (s *scheduler) writeHeads(ctx context.Context, day time.Time) error {
	_, _, err := s.system.WriteNight(ctx, day, func(write func(io.Writer) (store.Heads, error)) error {
		heads, file, err := placeHeads(s.nights, day, write)
		if err == nil {
			s.log.Info().Str("night", heads.Night).Int64("chains", heads.Chains).Hex("digest", heads.Digest).Hex("previous", heads.Previous).
				Str("file", file).Msg("audit heads")
		}
		return err
	})
	return err
}

// placeHeads lets write fill the night's file in dir (empty: none) and returns its path once it is on the disk.
func placeHeads(dir string, day time.Time, write func(io.Writer) (store.Heads, error)) (heads store.Heads, path string, err error) {
	if dir == "" {
		heads, err = write(io.Discard)
		return heads, "", err
	}
	f, err := os.CreateTemp(dir, ".audit-heads-*")
	if err != nil {
		return heads, "", fmt.Errorf("make file of audit heads: %w", err)
	}
	defer os.Remove(f.Name()) // gone already when all went well
	if heads, err = write(f); err == nil {
		err = errors.Join(f.Chmod(0o444), f.Sync())
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return heads, "", fmt.Errorf("write file of audit heads: %w", err)
	}
	path = filepath.Join(dir, "audit-heads-"+day.Format(time.DateOnly)+".txt")
	if err := os.Rename(f.Name(), path); err != nil {
		return heads, "", fmt.Errorf("name file of audit heads: %w", err)
	}
	at, err := os.Open(dir)
	if err != nil {
		return heads, "", fmt.Errorf("keep file of audit heads: %w", err)
	}
	return heads, path, errors.Join(at.Sync(), at.Close()) // the name too
}
