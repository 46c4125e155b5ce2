package main

import (
	"errors"
	"net/netip"
	"strconv"
	"strings"

	"github.com/generic-corp/muster/api/outbound"
	"github.com/generic-corp/muster/api/webhooks"
)

// Webhooks is what customers' webhooks need: the API makes them, the schedulers send.
type Webhooks struct {
	SecretKeys    secretKeys     // that seal the endpoints' secrets, current first, at least 32 bytes each; none: nobody makes webhooks
	AllowLoopback bool           // endpoints may be http on this machine; never in production
	Denied        []netip.Prefix // the service's own public addresses
}

var webhookVariables = []variable{
	{"WEBHOOK_KEYS", "", "hex or base64 of at least 32 bytes each, comma-separated, the current one first", true, "keys that seal the secrets of customers' webhooks", func(c *Config, v string) (err error) {
		c.Webhooks.SecretKeys, err = secretKeysOf(v)
		return err
	}},
	{"WEBHOOK_ALLOW_LOOPBACK", "false", "true or false", false, "customers' webhooks may be http on this machine; for development", boolean(func(c *Config) *bool { return &c.Webhooks.AllowLoopback })},
	{"WEBHOOK_DENIED_NETWORKS", "", "comma-separated addresses or networks", false, "public addresses that no webhook may be sent to: the service's own", func(c *Config, v string) (err error) {
		c.Webhooks.Denied, err = networks(v)
		return err
	}},
}

// weaknesses are what must not reach production.
func (w Webhooks) weaknesses() (mistakes []string) {
	for i, key := range w.SecretKeys {
		if variety(key) < leastVariety {
			mistakes = append(mistakes, "WEBHOOK_KEYS: key "+strconv.Itoa(i+1)+" is not random; in production want one from: openssl rand -hex 32")
		}
	}
	if w.AllowLoopback {
		mistakes = append(mistakes, "WEBHOOK_ALLOW_LOOPBACK is true; in production want false, or customers reach this machine")
	}
	return mistakes
}

func (w Webhooks) rules() outbound.Rules {
	return outbound.Rules{Loopback: w.AllowLoopback, Denied: w.Denied}
}

func (w Webhooks) keys() (webhooks.Keys, error) { return webhooks.NewKeys(w.SecretKeys) }

// networks reads addresses and networks.
func networks(v string) ([]netip.Prefix, error) {
	var list []netip.Prefix
	for _, part := range strings.Split(v, ",") {
		part = strings.TrimSpace(part)
		prefix, err := netip.ParsePrefix(part)
		if addr, addrErr := netip.ParseAddr(part); err != nil && addrErr == nil {
			prefix, err = addr.Prefix(addr.BitLen())
		}
		if err != nil {
			return nil, errors.Join(errWrong, err)
		}
		list = append(list, prefix)
	}
	return list, nil
}
