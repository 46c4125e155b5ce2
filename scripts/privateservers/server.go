//go:build unix

// What both servers have in common as child processes: their environment, their log.

package privateservers

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/generic-corp/muster/worker/childprocess"
)

var errExited = errors.New("the server exited")

// startServer starts a server as the user cred names (nil: as ourselves), with its output appended to logFile and what
// env adds to its environment.
func startServer(argv []string, dir, logFile string, cred *syscall.Credential, onParentDeath syscall.Signal, env ...string) (*childprocess.Process, error) {
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	defer log.Close()
	return childprocess.Start(childprocess.Config{Argv: argv, Dir: dir, Env: append(serverEnv(), env...), Output: log,
		Credential: cred, OnParentDeath: onParentDeath})
}

// serverEnv keeps the caller's settings (PGDATA, PGPORT, locale) away from the servers.
func serverEnv() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC"}
}

// logTail returns the end of a log for an error message.
func logTail(file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return "\n  " + strings.Join(lines[max(0, len(lines)-8):], "\n  ")
}
