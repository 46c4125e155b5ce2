//go:build unix

// Where the servers' programs are, on Debian and Ubuntu, macOS with Homebrew, or on the PATH.

package privateservers

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
)

// postgresDirs are where packages put initdb and postgres; Debian keeps them off the PATH.
var postgresDirs = []string{
	"/usr/lib/postgresql/*/bin",
	"/opt/homebrew/opt/postgresql@*/bin",
	"/usr/local/opt/postgresql@*/bin",
	"/usr/pgsql-*/bin",
}

var versionInPath = regexp.MustCompile(`(\d+)/bin$`)

// FindPostgres returns the directory that holds initdb and postgres: for major > 0 of that major version, else the
// newest one installed, else the one on the PATH.
func FindPostgres(major int) (string, error) {
	var dirs []string
	for _, pattern := range postgresDirs {
		found, _ := filepath.Glob(pattern) // the patterns are constant and well formed
		dirs = append(dirs, found...)
	}
	version := func(dir string) int {
		m := versionInPath.FindStringSubmatch(dir)
		if m == nil {
			return 0
		}
		n, _ := strconv.Atoi(m[1])
		return n
	}
	slices.SortStableFunc(dirs, func(a, b string) int { return version(b) - version(a) })
	for _, dir := range dirs {
		if (major == 0 || version(dir) == major) && executable(filepath.Join(dir, "postgres")) && executable(filepath.Join(dir, "initdb")) {
			return dir, nil
		}
	}
	if path, err := exec.LookPath("initdb"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil && executable(filepath.Join(filepath.Dir(path), "postgres")) {
			if dir := filepath.Dir(path); major == 0 || version(dir) == 0 || version(dir) == major {
				return dir, nil
			}
		}
	}
	if major > 0 {
		return "", fmt.Errorf("the data was made by PostgreSQL %d, which is not installed (install postgresql-%d, or remove the data directory to begin anew)", major, major)
	}
	return "", errors.New("PostgreSQL's server is not installed: run scripts/setup, or install it (apt-get install postgresql, brew install postgresql)")
}

// FindRedis returns the Redis (or Valkey) server's program.
func FindRedis() (string, error) {
	if path := findProgram("redis-server", "valkey-server"); path != "" {
		return path, nil
	}
	return "", errors.New("the Redis server is not installed: run scripts/setup, or install it (apt-get install redis-server, brew install redis)")
}

// FindPgBouncer returns PgBouncer's program.
func FindPgBouncer() (string, error) {
	if path := findProgram("pgbouncer"); path != "" {
		return path, nil
	}
	return "", errors.New("PgBouncer is not installed: run scripts/setup, or install it (apt-get install pgbouncer, brew install pgbouncer)")
}

// findProgram returns the first of the programs that is on the PATH or where packages put it, "" for none.
func findProgram(names ...string) string {
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
		for _, dir := range []string{"/usr/bin", "/usr/sbin", "/opt/homebrew/bin", "/usr/local/bin"} {
			if path := filepath.Join(dir, name); executable(path) {
				return path
			}
		}
	}
	return ""
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}
