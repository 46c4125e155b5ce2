package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/lib/pq"
)

// A database host that dies, or a network that is cut, sends nothing any more. lib/pq waits for an answer whatever its
// context says, and the kernel resends for a quarter of an hour, so it is the kernel that must give up: after
// silenceLimit without an acknowledgement of what was sent, or of keep-alive probes while an answer is awaited. A
// statement may run as long as it likes meanwhile: the server's kernel acknowledges.
const silenceLimit = 10 * time.Second

// A database whose kernel acknowledges and whose processes do not answer (its disk hangs, it is stopped, a proxy before it
// hangs) goes unnoticed by the kernel. There the statement's context is the limit: lib/pq asks the server to cancel the
// statement when its context ends, and if no answer has come cancelLimit later, the connection is given up.
const cancelLimit = 2 * time.Second

// connector makes connections that end within cancelLimit of their statements' contexts. One dialer serves one connection,
// for it to know which one a request to cancel is for.
type connector struct{ pq *pq.Connector }

// Connect is driver.Connector's.
func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	d, own := newDialer(), *c.pq
	own.Dialer(d)
	inner, err := own.Connect(ctx)
	if err != nil {
		return nil, err
	}
	d.established()
	able, ok := inner.(pqConn)
	if !ok {
		return nil, errors.Join(errors.New("lib/pq's connection lacks a method that database/sql would use"), inner.Close())
	}
	return conn{able, d}, nil
}

// Driver is driver.Connector's.
func (c connector) Driver() driver.Driver { return c.pq.Driver() }

// pqConn is what lib/pq's connection does.
type pqConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
	driver.NamedValueChecker
	driver.Pinger
	driver.SessionResetter
	driver.Validator
}

// conn is lib/pq's connection with a BEGIN that heeds its context, and out of use once its end is near.
type conn struct {
	pqConn
	dialer *dialer
}

// BeginTx is driver.ConnBeginTx's. lib/pq asks for no cancel here, only once the transaction has begun; and a server cannot
// cancel a BEGIN that a pooler holds back.
func (c conn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	stop := context.AfterFunc(ctx, c.dialer.limit)
	defer stop()
	return c.pqConn.BeginTx(ctx, opts)
}

// IsValid is driver.Validator's.
func (c conn) IsValid() bool { return !c.dialer.limited() && c.pqConn.IsValid() }

// ResetSession is driver.SessionResetter's.
func (c conn) ResetSession(ctx context.Context) error {
	if c.dialer.limited() {
		return driver.ErrBadConn
	}
	return c.pqConn.ResetSession(ctx)
}

// dialer connects to the database for one connection of lib/pq: to its host, or to several until one is taken, and later,
// when a context ends, once more for each request to cancel.
type dialer struct {
	net.Dialer

	mu      sync.Mutex
	last    net.Conn // dialed
	session net.Conn // what lib/pq has taken; nil until then
	ending  bool     // the session has a limit
}

func newDialer() *dialer {
	return &dialer{Dialer: net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: silenceLimit / 2, Interval: silenceLimit / 5, Count: 3},
		Control:         limitSilence,
	}}
}

var (
	_ pq.Dialer        = (*dialer)(nil)
	_ pq.DialerContext = (*dialer)(nil)
)

// established says that the connection stands: what is dialed from now on are requests to cancel.
func (d *dialer) established() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.session = d.last
}

// limit lets the session end within cancelLimit: the context of what runs on it is over.
func (d *dialer) limit() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.session != nil {
		d.ending = true
		_ = d.session.SetDeadline(time.Now().Add(cancelLimit))
	}
}

func (d *dialer) limited() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ending
}

// DialContext is what pq.DialerContext asks for.
func (d *dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	d.limit()
	c, err := d.Dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.session != nil {
		return c, c.SetDeadline(time.Now().Add(cancelLimit))
	}
	d.last = c
	return c, nil
}

// DialTimeout is what pq.Dialer asks for.
func (d *dialer) DialTimeout(network, address string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return d.DialContext(ctx, network, address)
}
