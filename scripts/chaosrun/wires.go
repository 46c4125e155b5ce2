//go:build unix

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/Shopify/toxiproxy/v2/toxics"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// wires are the connections between processes and servers: one proxy for each pair, named "api>postgres".
type wires struct {
	server *toxiproxy.ApiServer

	mu    sync.Mutex
	wires map[string]*wire
}

// wire is one of them.
type wire struct {
	name  string
	proxy *toxiproxy.Proxy
}

func newWires() *wires {
	return &wires{server: toxiproxy.NewServer(toxiproxy.NewMetricsContainer(prometheus.NewRegistry()), zerolog.Nop()), wires: map[string]*wire{}}
}

// lay makes a wire to a server and returns the address of its near end.
func (w *wires) lay(from, to, server string) (addr string, err error) {
	name := from + ">" + to
	p := toxiproxy.NewProxy(w.server, name, "127.0.0.1:0", server)
	if err := p.Start(); err != nil {
		return "", fmt.Errorf("proxy %s: %w", name, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wires[name] = &wire{name: name, proxy: p}
	return p.Listen, nil
}

// find returns the wires with these ends; "" is any.
func (w *wires) find(from, to string) (found []*wire) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, one := range w.wires {
		a, b, _ := strings.Cut(name, ">")
		if (from == "" || a == from) && (to == "" || b == to) {
			found = append(found, one)
		}
	}
	slices.SortFunc(found, func(a, b *wire) int { return strings.Compare(a.name, b.name) })
	return found
}

// close ends all proxies.
func (w *wires) close() {
	for _, one := range w.find("", "") {
		one.proxy.Stop()
	}
}

// How a wire is cut.
const (
	refusing = "refusing" // connections break, new ones are refused
	silent   = "silent"   // connections stay, new ones are taken, and nothing comes through
)

const cutToxic = "cut"

func (w *wire) cut(how string) error {
	if how == refusing {
		w.proxy.Stop()
		return nil
	}
	for _, stream := range []string{"upstream", "downstream"} {
		if err := w.add(cutToxic+stream, "timeout", stream, map[string]any{"timeout": 0}); err != nil {
			return err
		}
	}
	return nil
}

// mend ends a cut. What was connected through a silence is disconnected: its data is lost.
func (w *wire) mend(how string) error {
	if how == refusing {
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) { // another program may hold the port for a moment
			err := w.proxy.Start()
			if err == nil || time.Now().After(deadline) {
				return err
			}
		}
	}
	for _, stream := range []string{"upstream", "downstream"} {
		if err := w.remove(cutToxic + stream); err != nil {
			return err
		}
	}
	return nil
}

func (w *wire) add(name, kind, stream string, attributes map[string]any) error {
	raw, err := json.Marshal(map[string]any{"name": name, "type": kind, "stream": stream, "toxicity": 1, "attributes": attributes})
	if err != nil {
		return err
	}
	if _, err := w.proxy.Toxics.AddToxicJson(bytes.NewReader(raw)); err != nil {
		return fmt.Errorf("%s: %w", w.name, err)
	}
	return nil
}

func (w *wire) remove(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := w.proxy.Toxics.RemoveToxic(ctx, name); err != nil {
		return fmt.Errorf("%s: %w", w.name, err)
	}
	return nil
}

// Replies that tell of a commit: Postgres' command tag, behind its length; the API's first line of a 202.
const (
	tagCommit   = "C\x00\x00\x00\x0bCOMMIT\x00"
	tagAccepted = "HTTP/1.1 202"
)

// loss makes replies disappear that a server has sent, so that what they tell of has happened and nobody learns it.
type loss struct {
	tag   []byte
	every int64 // one reply of so many
	left  atomic.Int64
	seen  atomic.Int64
	lost  atomic.Int64
}

// losses is where toxics, which are made from JSON, find theirs.
var losses sync.Map // name → *loss

func (l *loss) takes(data []byte) bool {
	if !bytes.Contains(data, l.tag) || l.seen.Add(1)%l.every != 0 || l.left.Add(-1) < 0 {
		return false
	}
	l.lost.Add(1)
	return true
}

const lossToxic = "lost_reply"

// lossOn lets the wires lose so many replies with the tag, one of every few. The function waits until some were lost, ends
// it, and returns how many.
func lossOn(on []*wire, name, tag string, replies, every int64) (end func(ctx context.Context) (lost int64, err error), err error) {
	l := &loss{tag: []byte(tag), every: every}
	l.left.Store(replies)
	losses.Store(name, l)
	for _, w := range on {
		if err := w.add(lossToxic, lossToxic, "downstream", map[string]any{"loss": name}); err != nil {
			return nil, err
		}
	}
	return func(ctx context.Context) (int64, error) {
		err := until(ctx, 30*time.Second, "a reply to be lost", func() bool { return l.lost.Load() > 0 })
		for _, w := range on {
			err = errors.Join(err, w.remove(lossToxic))
		}
		return l.lost.Load(), err
	}, nil
}

// lostReply is the toxic: it drops a reply and everything after it, and ends the connection.
type lostReply struct {
	Loss string `json:"loss"`
}

func init() { toxics.Register(lossToxic, new(lostReply)) }

// Pipe passes on what is not lost.
func (t *lostReply) Pipe(stub *toxics.ToxicStub) {
	var l *loss
	if found, ok := losses.Load(t.Loss); ok {
		l = found.(*loss)
	}
	for {
		select {
		case <-stub.Interrupt:
			return
		case c := <-stub.Input:
			if c == nil || l != nil && l.takes(c.Data) {
				stub.Close()
				return
			}
			stub.Output <- c
		}
	}
}

// answers says whether something at the address takes connections.
func answers(addr string) bool {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}
