package jobs

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
)

// Timeouts towards Redis. It may be away at any time; nobody waits long for it.
const (
	dialTimeout = 2 * time.Second
	ioTimeout   = 3 * time.Second
)

// silent keeps the Redis client from writing to standard error by itself: each failure comes back to us as an error,
// and is logged once, as JSON.
type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

func init() { redis.SetLogger(silent{}) }

// ParseRedisURL reads redis://, rediss:// (TLS), redis-sentinel:// or rediss-sentinel://host:port,host:port/0?master=NAME
// and redis-cluster:// or rediss-cluster://host:port,host:port. With Sentinel, user and password are those of the servers and
// of the sentinels; sentinel_auth=no keeps them from the sentinels. Errors never contain the URL, which holds a password.
func ParseRedisURL(raw string) (asynq.RedisConnOpt, error) {
	scheme, rest, ok := strings.Cut(raw, "://")
	if !ok {
		return nil, errors.New("want a URL such as redis://:password@host:6379/0")
	}
	if scheme == "redis-cluster" || scheme == "rediss-cluster" {
		return parseCluster(scheme, rest)
	}
	if scheme == "redis-sentinel" || scheme == "rediss-sentinel" {
		return parseSentinel(scheme, rest)
	}
	opt, err := asynq.ParseRedisURI(raw)
	if err != nil {
		return nil, errors.New("want redis://, rediss://, redis-sentinel:// or redis-cluster:// with host:port")
	}
	o, ok := opt.(asynq.RedisClientOpt)
	if !ok {
		return opt, nil
	}
	o.DialTimeout, o.ReadTimeout, o.WriteTimeout = dialTimeout, ioTimeout, ioTimeout
	return o, nil
}

// parseSentinel does what Asynq's own does not: credentials of the servers, TLS, a database.
func parseSentinel(scheme, rest string) (asynq.RedisConnOpt, error) {
	wrong := errors.New("want redis-sentinel://[user:password@]host:port,host:port[/database]?master=NAME[&sentinel_auth=no]")
	rest, query, _ := strings.Cut(rest, "?")
	userinfo, place, found := cutLast(rest, "@")
	if !found {
		userinfo, place = "", rest
	}
	hosts, database, _ := strings.Cut(place, "/")
	settings, err := url.ParseQuery(query)
	if err != nil || settings.Get("master") == "" {
		return nil, wrong
	}
	o := asynq.RedisFailoverClientOpt{MasterName: settings.Get("master"), DialTimeout: dialTimeout, ReadTimeout: ioTimeout, WriteTimeout: ioTimeout}
	for _, host := range strings.Split(hosts, ",") {
		if host == "" {
			return nil, wrong
		}
		o.SentinelAddrs = append(o.SentinelAddrs, host)
	}
	if database != "" {
		if o.DB, err = strconv.Atoi(database); err != nil || o.DB < 0 {
			return nil, wrong
		}
	}
	u, err := url.Parse("redis://" + userinfo + "@host")
	if err != nil {
		return nil, wrong
	}
	o.Username = u.User.Username()
	o.Password, _ = u.User.Password()
	switch settings.Get("sentinel_auth") {
	case "":
		o.SentinelUsername, o.SentinelPassword = o.Username, o.Password
	case "no":
	default:
		return nil, wrong
	}
	if scheme == "rediss-sentinel" {
		o.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	return o, nil
}

// cutLast is strings.Cut around the last separator.
func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

func parseCluster(scheme, rest string) (asynq.RedisConnOpt, error) {
	userinfo, hosts, found := strings.Cut(rest, "@")
	if !found {
		userinfo, hosts = "", rest
	}
	o := asynq.RedisClusterClientOpt{DialTimeout: dialTimeout, ReadTimeout: ioTimeout, WriteTimeout: ioTimeout}
	for _, host := range strings.Split(strings.TrimSuffix(hosts, "/"), ",") {
		if host == "" {
			return nil, errors.New("want redis-cluster://[user:password@]host:port,host:port")
		}
		o.Addrs = append(o.Addrs, host)
	}
	if userinfo != "" {
		u, err := url.Parse("redis://" + userinfo + "@host")
		if err != nil {
			return nil, errors.New("want redis-cluster://[user:password@]host:port,host:port")
		}
		o.Username = u.User.Username()
		o.Password, _ = u.User.Password()
	}
	if scheme == "rediss-cluster" {
		o.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	return o, nil
}

// NewRedis connects to what ParseRedisURL read. The caller closes it.
func NewRedis(opt asynq.RedisConnOpt) (redis.UniversalClient, error) {
	client, ok := opt.MakeRedisClient().(redis.UniversalClient)
	if !ok {
		return nil, fmt.Errorf("connect to redis: unexpected client %T", opt.MakeRedisClient())
	}
	return client, nil
}
