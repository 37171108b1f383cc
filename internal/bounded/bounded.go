// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package bounded limits what the clients of a listener can take.
package bounded

import (
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"
)

// MaxConns is the usual bound of a listener's connections. A balancer and Prometheus need one each, for milliseconds.
const MaxConns = 64

// pause separates attempts to accept after one that failed, for example for a lack of memory.
const pause = time.Second

// Listener keeps at most Max connections. It closes the oldest one: a balancer's is among the newest, a silent client's
// among the oldest. Accept fails only after Close.
type Listener struct {
	net.Listener
	// Failed is called with the error of each failed accept, and with nil after the next successful one; may be nil.
	Failed func(error)
	// Max is set before the first Accept.
	Max int

	mu     sync.Mutex
	conns  []*conn // oldest first
	failed bool
	closed chan struct{}
	once   sync.Once
}

// New limits l.
func New(l net.Listener, failed func(error)) *Listener {
	return &Listener{Listener: l, Failed: failed, Max: MaxConns, closed: make(chan struct{})}
}

// Logged is a [Listener.Failed] that logs.
func Logged(log *slog.Logger) func(error) {
	return func(err error) {
		if err != nil {
			log.Error("accepting a connection failed", "error", err)
		} else {
			log.Info("connections are accepted again")
		}
	}
}

type conn struct {
	net.Conn
	l *Listener
}

// Accept implements [net.Listener].
func (l *Listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil, err
		}
		if l.Failed != nil && (err != nil || l.failed) {
			l.Failed(err)
		}
		if l.failed = err != nil; !l.failed {
			return l.admit(c), nil
		}
		select {
		case <-l.closed:
		case <-time.After(pause):
		}
	}
}

func (l *Listener) admit(c net.Conn) net.Conn {
	l.mu.Lock()
	var oldest *conn
	if len(l.conns) >= l.Max {
		oldest = l.conns[0]
	}
	b := &conn{Conn: c, l: l}
	l.conns = append(l.conns, b)
	l.mu.Unlock()
	if oldest != nil {
		_ = oldest.Close()
	}
	return b
}

// Close implements [net.Listener].
func (l *Listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// Close makes room for another connection.
func (c *conn) Close() error {
	c.l.mu.Lock()
	c.l.conns = slices.DeleteFunc(c.l.conns, func(o *conn) bool { return o == c })
	c.l.mu.Unlock()
	return c.Conn.Close()
}
