// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bounded_test

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/amsagent/amsagent/internal/bounded"
	"github.com/amsagent/amsagent/internal/must"
)

// handed hands out connections and errors, and is closed after the last one.
type handed struct {
	net.Listener
	next []any
}

func (h *handed) Accept() (net.Conn, error) {
	if len(h.next) == 0 {
		return nil, net.ErrClosed
	}
	next := h.next[0]
	h.next = h.next[1:]
	if err, ok := next.(error); ok {
		return nil, err
	}
	return next.(net.Conn), nil
}

// silent is a client that sends nothing.
type silent struct {
	net.Conn
	closed bool
}

func (s *silent) Close() error {
	s.closed = true
	return nil
}

func TestListener(t *testing.T) {
	h := &handed{}
	var all []*silent
	for range 1000 {
		c := &silent{}
		all = append(all, c)
		h.next = append(h.next, c)
	}
	l := bounded.New(h, nil)
	var last net.Conn
	for range all {
		c, err := l.Accept()
		must.OK(t, err)
		last = c
	}
	for i, c := range all {
		must.Equal(t, fmt.Sprintf("connection %d is closed", i), c.closed, i < len(all)-bounded.MaxConns)
	}
	must.OK(t, last.Close())
	one := &silent{}
	h.next = []any{one}
	if _, err := l.Accept(); err != nil || all[len(all)-bounded.MaxConns].closed {
		t.Errorf("closing made no room, %v", err)
	}
}

// A failed accept ends nothing, and is reported until the next good one.
func TestListenerGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var reported []error
		l := bounded.New(&handed{next: []any{syscall.ENOMEM, syscall.EPERM, &silent{}, &silent{}}}, func(err error) { reported = append(reported, err) })
		for range 2 {
			_, err := l.Accept()
			must.OK(t, err)
		}
		must.NoDiff(t, "reported", reported, []error{syscall.ENOMEM, syscall.EPERM, nil})
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
}
