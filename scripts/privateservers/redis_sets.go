//go:build unix

// Redis beyond one node: a master with replicas under Sentinel, and a cluster.

package privateservers

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// RedisSet is several Redis servers that belong together. Its methods may be called by one goroutine at a time.
type RedisSet struct {
	Nodes     []*Redis // that hold data
	Sentinels []*Redis // that watch them

	password string
	scheme   string
	query    string
}

// The master's name at the sentinels, and after how many milliseconds without an answer they, or a cluster's nodes, take a
// node for dead. Production has 5 s and more; tests should not wait as long.
const (
	sentinelMaster = "muster"
	nodeDeadMS     = 2000
)

// StartSentinel starts a master, two replicas, and three sentinels that fail over when two of them agree. It returns when
// the sentinels know all of each other and of the replicas.
func StartSentinel(ctx context.Context, dir string) (s *RedisSet, err error) {
	s = &RedisSet{password: newPassword(), scheme: "redis-sentinel", query: "?master=" + sentinelMaster}
	defer s.removeOn(&err)
	for i := range 3 {
		more := []string{"masterauth " + s.password}
		if i > 0 {
			more = append(more, "replicaof 127.0.0.1 "+strconv.Itoa(s.Nodes[0].Port()), "repl-diskless-sync-delay 0")
		}
		if err := s.start(ctx, &s.Nodes, filepath.Join(dir, fmt.Sprintf("node-%d", i)), RedisConfig{more: more}); err != nil {
			return nil, err
		}
	}
	for i := range 3 {
		of := func(setting string, value any) string {
			return fmt.Sprintf("sentinel %s %s %v", setting, sentinelMaster, value)
		}
		more := []string{of("monitor", fmt.Sprintf("127.0.0.1 %d 2", s.Nodes[0].Port())), of("auth-pass", s.password), "sentinel sentinel-pass " + s.password,
			of("down-after-milliseconds", nodeDeadMS), of("failover-timeout", 6000), of("parallel-syncs", 1)}
		if err := s.start(ctx, &s.Sentinels, filepath.Join(dir, fmt.Sprintf("sentinel-%d", i)), RedisConfig{sentinel: true, more: more}); err != nil {
			return nil, err
		}
	}
	return s, s.await(ctx, s.Sentinels, "SENTINEL CKQUORUM "+sentinelMaster, func(answer string) bool { return strings.HasPrefix(answer, "+OK 3 usable") })
}

// StartCluster starts three masters that share the slots, without replicas: what a node that died held is away until it is
// restarted, and empty then. It returns when all of them serve.
func StartCluster(ctx context.Context, dir string) (s *RedisSet, err error) {
	s = &RedisSet{password: newPassword(), scheme: "redis-cluster"}
	defer s.removeOn(&err)
	const nodes, slots = 3, 16384
	bus := make([]int, nodes)
	for i := range bus {
		if bus[i], err = FreePort(); err != nil {
			return nil, err
		}
		more := []string{"masterauth " + s.password, "cluster-enabled yes", "cluster-config-file nodes.conf", "cluster-port " + strconv.Itoa(bus[i]),
			"cluster-node-timeout " + strconv.Itoa(nodeDeadMS), "cluster-require-full-coverage no"}
		if err := s.start(ctx, &s.Nodes, filepath.Join(dir, fmt.Sprintf("node-%d", i)), RedisConfig{more: more}); err != nil {
			return nil, err
		}
	}
	for i, n := range s.Nodes {
		if err := n.command(ctx, n.port, fmt.Sprintf("CLUSTER ADDSLOTSRANGE %d %d", i*slots/nodes, (i+1)*slots/nodes-1), "+OK"); err != nil {
			return nil, fmt.Errorf("share the cluster's slots: %w", err)
		}
		if err := n.command(ctx, n.port, fmt.Sprintf("CLUSTER MEET 127.0.0.1 %d %d", s.Nodes[0].port, bus[0]), "+OK"); err != nil {
			return nil, fmt.Errorf("join the cluster: %w", err)
		}
	}
	for slot := range nodes { // each node knows where each third of the slots lies
		key := []string{"{b}", "{c}", "{a}"}[slot] // slots 3300, 7365, 15495
		err := s.await(ctx, s.Nodes, "EXISTS "+key, func(answer string) bool { return answer == ":0" || strings.HasPrefix(answer, "-MOVED") })
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}

// URL is what REDIS_URL must say to use the set.
func (s *RedisSet) URL() string {
	of := s.Sentinels
	if len(of) == 0 {
		of = s.Nodes
	}
	hosts := make([]string, len(of))
	for i, r := range of {
		hosts[i] = r.Addr()
	}
	return s.scheme + "://:" + s.password + "@" + strings.Join(hosts, ",") + s.query
}

// Holder is the node on which a key's slot lies, in a cluster, or the one that is the master now.
func (s *RedisSet) Holder(ctx context.Context, key string) (*Redis, error) {
	for _, n := range s.Nodes {
		question, want := "EXISTS "+key, ":"
		if len(s.Sentinels) > 0 {
			question, want = "SET muster-test-holder 1", "+OK"
		}
		if answer, err := n.ask(ctx, n.port, question); err == nil && strings.HasPrefix(answer, want) {
			return n, nil
		}
	}
	return nil, fmt.Errorf("no node holds %s", key)
}

// Remove ends all servers at once and deletes their data.
func (s *RedisSet) Remove() error {
	var errs []error
	for _, r := range append(s.Sentinels, s.Nodes...) {
		errs = append(errs, r.Remove())
	}
	return errors.Join(errs...)
}

func (s *RedisSet) removeOn(err *error) {
	if *err != nil {
		_ = s.Remove()
	}
}

func (s *RedisSet) start(ctx context.Context, into *[]*Redis, dir string, cfg RedisConfig) error {
	cfg.password = s.password
	r, err := StartRedis(ctx, dir, cfg)
	if err == nil {
		*into = append(*into, r)
	}
	return err
}

// await asks each server until its answer is as wanted.
func (s *RedisSet) await(ctx context.Context, of []*Redis, question string, wanted func(answer string) bool) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for _, r := range of {
		for {
			answer, err := r.ask(ctx, r.port, question)
			if err == nil && wanted(answer) {
				break
			}
			if ctx.Err() != nil {
				return fmt.Errorf("the servers did not find each other: %s is answered %q, %w", question, answer, err)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	return nil
}
