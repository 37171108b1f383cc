// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"
)

// maxConns bounds the connections of one listener. Without keep-alive, a balancer and Prometheus need one each, for
// milliseconds.
const maxConns = 64

// boundedListener keeps at most maxConns connections. It closes the oldest one: a balancer's is among the newest, a silent
// client's among the oldest.
type boundedListener struct {
	net.Listener

	mu    sync.Mutex
	conns []*boundedConn // oldest first
}

type boundedConn struct {
	net.Conn
	l *boundedListener
}

// Accept implements [net.Listener].
func (l *boundedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	var oldest *boundedConn
	if len(l.conns) >= maxConns {
		oldest = l.conns[0]
	}
	b := &boundedConn{Conn: c, l: l}
	l.conns = append(l.conns, b)
	l.mu.Unlock()
	if oldest != nil {
		_ = oldest.Close()
	}
	return b, nil
}

// Close makes room for another connection.
func (c *boundedConn) Close() error {
	c.l.mu.Lock()
	c.l.conns = slices.DeleteFunc(c.l.conns, func(o *boundedConn) bool { return o == c })
	c.l.mu.Unlock()
	return c.Conn.Close()
}

// serverErrorPause separates logged errors: a client can cause any number.
const serverErrorPause = 10 * time.Second

// serverErrors handles net/http's error log. It passes one error in each serverErrorPause and counts the others.
type serverErrors struct {
	slog.Handler

	mu         sync.Mutex
	last       time.Time
	suppressed int
}

func (s *serverErrors) Handle(ctx context.Context, r slog.Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.last.IsZero() && r.Time.Sub(s.last) < serverErrorPause {
		s.suppressed++
		return nil
	}
	slog.New(s.Handler).WarnContext(ctx, "the HTTP server reports an error", "error", r.Message, "suppressed", s.suppressed)
	s.last, s.suppressed = r.Time, 0
	return nil
}
