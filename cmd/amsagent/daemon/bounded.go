// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

const (
	// maxConns bounds the connections of one listener. With keep-alive switched off a balancer and a Prometheus need
	// one each, for milliseconds.
	maxConns = 64
	// maxHostConns bounds those of one remote host, so that a flood from one host leaves room for the balancer.
	maxHostConns = 16
)

// boundedListener accepts every connection and keeps at most maxConns of them open, and maxHostConns of one remote host.
// It makes room by closing the oldest connection of the host with the most: refusing new ones instead would let
// anyone who holds 16 silent connections open keep every other client of that host out. A connection whose request is
// being answered is never closed for another.
type boundedListener struct {
	net.Listener
	max, maxHost int

	mu    sync.Mutex
	conns []*boundedConn // oldest first
}

type boundedConn struct {
	net.Conn
	l         *boundedListener
	host      netip.Prefix
	answering bool // guarded by l.mu
	once      sync.Once
}

func bound(l net.Listener) *boundedListener {
	return &boundedListener{Listener: l, max: maxConns, maxHost: maxHostConns}
}

// Accept returns the next connection that there is room for.
func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		b := &boundedConn{Conn: c, l: l, host: remoteHost(c)}
		evicted, ok := l.add(b)
		if evicted != nil {
			_ = evicted.Close()
		}
		if ok {
			return b, nil
		}
		_ = c.Close()
	}
}

// add takes c in, and tells which connection has to go for it.
func (l *boundedListener) add(c *boundedConn) (evicted *boundedConn, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()

	perHost := map[netip.Prefix]int{}
	for _, o := range l.conns {
		perHost[o.host]++
	}
	from, full := c.host, perHost[c.host] >= l.maxHost
	if !full && len(l.conns) >= l.max {
		full = true
		for _, o := range l.conns {
			if perHost[o.host] > perHost[from] {
				from = o.host
			}
		}
	}
	if full {
		at := -1
		for i, o := range l.conns {
			if o.host == from && !o.answering {
				at = i
				break
			}
		}
		if at < 0 {
			return nil, false
		}
		evicted = l.conns[at]
		l.conns = append(l.conns[:at], l.conns[at+1:]...)
	}
	l.conns = append(l.conns, c)
	return evicted, true
}

// Close closes the connection and makes room for another.
func (c *boundedConn) Close() error {
	c.once.Do(func() {
		c.l.mu.Lock()
		defer c.l.mu.Unlock()
		for i, o := range c.l.conns {
			if o == c {
				c.l.conns = append(c.l.conns[:i], c.l.conns[i+1:]...)
				return
			}
		}
	})
	return c.Conn.Close()
}

func (c *boundedConn) setAnswering(on bool) {
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	c.answering = on
}

// remoteHost is the host that a connection comes from: for IPv6 its /64, all of which one host may have. Those of a
// Unix socket have one host, the zero prefix.
func remoteHost(c net.Conn) netip.Prefix {
	a, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	addr := a.AddrPort().Addr().Unmap().WithZone("")
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	p, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// connKey is the key of a request's *boundedConn in its context.
type connKey struct{}

// markAnswering marks connections whose request is being answered.
func markAnswering(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := r.Context().Value(connKey{}).(*boundedConn); ok {
			c.setAnswering(true)
			defer c.setAnswering(false)
		}
		h.ServeHTTP(w, r)
	})
}

func withConn(ctx context.Context, c net.Conn) context.Context {
	if b, ok := c.(*boundedConn); ok {
		return context.WithValue(ctx, connKey{}, b)
	}
	return ctx
}

// noBody refuses requests with a body: nothing that the port serves takes one.
func noBody(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 {
			w.Header().Set("Connection", "close")
			http.Error(w, "no body is expected", http.StatusRequestEntityTooLarge)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// serverErrorPause is the least time between two reports of a server's errors: a client can cause as many as it likes.
const serverErrorPause = 10 * time.Second

// serverErrors is the slog handler behind net/http's error log. It passes one error on in each serverErrorPause and
// counts the others.
type serverErrors struct {
	log *slog.Logger

	mu         sync.Mutex
	last       time.Time
	suppressed int
}

func (s *serverErrors) Enabled(context.Context, slog.Level) bool { return true }

func (s *serverErrors) Handle(ctx context.Context, r slog.Record) error {
	s.mu.Lock()
	now := time.Now()
	if !s.last.IsZero() && now.Sub(s.last) < serverErrorPause {
		s.suppressed++
		s.mu.Unlock()
		return nil
	}
	n := s.suppressed
	s.last, s.suppressed = now, 0
	s.mu.Unlock()

	s.log.WarnContext(ctx, "the HTTP server reports an error", "error", r.Message, "suppressed", n)
	return nil
}

func (s *serverErrors) WithAttrs([]slog.Attr) slog.Handler { return s }
func (s *serverErrors) WithGroup(string) slog.Handler      { return s }
