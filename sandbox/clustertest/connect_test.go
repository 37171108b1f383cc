// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package clustertest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/internal/locked"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/sandbox/mongod"
)

// password has every special character.
const password = `p@:/?#%&\ +"'<>{}$=;ß€`

func TestCredentials(t *testing.T) {
	t.Parallel()
	s := startServer(t, mongod.Options{Users: map[string]string{"amsagent": password}})
	uri := func(user, pw string) string {
		t.Helper()
		target, err := cluster.ParseTarget("mongodb://" + user + ":" + strings.ReplaceAll(url.QueryEscape(pw), "+", "%20") + "@" + s.Addr() + "/")
		must.OK(t, err)
		return target.URI().Reveal()
	}
	var log locked.Buffer
	o := cluster.Options{Timeout: 2 * time.Minute, Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))}

	good := connect(t, uri("amsagent", password), o)
	must.OK(t, good.Ping(t.Context()))
	must.OK(t, good.CheckAccess(t.Context()))
	for name, bad := range map[string]string{
		"wrong password": uri("amsagent", password+"x"),
		"wrong user":     uri("unknown", password),
	} {
		c := connect(t, bad, o)
		start := time.Now()
		err := c.Ping(t.Context())
		if took := time.Since(start); took > time.Minute {
			t.Errorf("%s: it took %s", name, took)
		}
		e, ok := errors.AsType[*cluster.Error](err)
		if !ok || e.Kind != cluster.KindAuth || e.Host != s.Addr() {
			t.Fatalf("%s: %v", name, err)
		}
		must.Equal(t, name, e.Summary(), "MongoDB at "+s.Addr()+" refused the user name or the password")
		noPassword(t, name, fmt.Sprintf("%v %+v %#v", err, err, err))
		if _, err := c.Register(t.Context(), node(), cluster.RegisterOptions{}); cluster.KindOf(err) != cluster.KindAuth {
			t.Errorf("%s: registering: %v", name, err)
		}
	}
	// Without credentials, the server answers only a ping.
	c := connect(t, s.URI(), o)
	must.Equal(t, "ping without credentials", c.Ping(t.Context()), nil)
	if err := c.CheckAccess(t.Context()); cluster.KindOf(err) != cluster.KindForbidden {
		t.Errorf("access without credentials: %v", err)
	}
	if log.String() == "" {
		t.Error("failed calls left no line in the log")
	}
	noPassword(t, "log", log.String())
}

func noPassword(t *testing.T, where, text string) {
	t.Helper()
	for _, part := range []string{password, password[:8], `%40%3A`, `"'<>{}`, "ß€"} {
		if strings.Contains(text, part) {
			t.Errorf("%s shows the password: %s", where, text)
		}
	}
}

// TestServerErrors and TestNetworkErrors in package cluster have the errors of other failures.
func TestServerMisbehaves(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		fault mongod.Fault
		kind  cluster.Kind // "" means that the call works in spite of it
	}{
		"cut once in a call": {mongod.Fault{Mode: mongod.CutReply, Commands: []string{"find"}, Times: 1}, ""},
		"election":           {mongod.Fault{Mode: mongod.Error, Commands: []string{"find"}, Times: 1, Code: 189, Name: "PrimarySteppedDown"}, ""},
		"election that does not end": {
			mongod.Fault{Mode: mongod.Error, Commands: []string{"find"}, Code: 189, Name: "PrimarySteppedDown"}, cluster.KindNotPrimary,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startServer(t, mongod.Options{})
			o := cluster.Options{Timeout: 30 * time.Second}
			if tt.kind != "" {
				o.Timeout = 1500 * time.Millisecond
			}
			c := connect(t, s.URI(), o)
			must.Until(t, "the server answers", func() bool { return c.Ping(t.Context()) == nil })
			fault(t, s, tt.fault)
			_, err := c.Nodes(t.Context())
			if tt.kind != "" {
				// A call whose time ends in an attempt, and not between two, has the timeout as its error.
				must.Until(t, string(tt.kind), func() bool {
					_, err = c.Nodes(t.Context())
					return cluster.KindOf(err) == tt.kind
				})
			}
			if cluster.KindOf(err) != tt.kind || (err == nil) != (tt.kind == "") {
				t.Errorf("kind %q, want %q: %v", cluster.KindOf(err), tt.kind, err)
			}
			if e, ok := errors.AsType[*cluster.Error](err); ok && (e.Host != s.Addr() || e.Op != "reading the nodes of the registry") {
				t.Errorf("host %q, op %q", e.Host, e.Op)
			}
			s.Faults().Clear()
			must.Until(t, "the client recovers", func() bool { _, err := c.Nodes(t.Context()); return err == nil })
		})
	}
}

// A call ends with its caller's context, and closing never hangs.
func TestBounds(t *testing.T) {
	t.Parallel()
	s := startServer(t, mongod.Options{})
	target, err := cluster.ParseTarget(s.Addr())
	must.OK(t, err)
	c, err := cluster.Connect(t.Context(), target, cluster.Options{Timeout: time.Hour})
	must.OK(t, err)
	must.OK(t, c.Ping(t.Context()))
	fault(t, s, mongod.Fault{Mode: mongod.BlackHole})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	start := time.Now()
	if err := c.Ping(ctx); cluster.KindOf(err) != cluster.KindTimeout {
		t.Errorf("Ping: %v", err)
	}
	_ = c.Close(ctx) // ctx has ended already
	if took := time.Since(start); took > time.Minute {
		t.Errorf("a dead server held the client for %s", took)
	}
	must.Equal(t, "closing twice", c.Close(context.Background()), nil)
	if err := c.Ping(t.Context()); err == nil {
		t.Error("a closed client pings")
	}
}

// Close does not wait for the driver's monitor, which waits for a new connection.
func TestCloseWhileConnecting(t *testing.T) {
	t.Parallel()
	s := startServer(t, mongod.Options{})
	var stuck atomic.Bool
	dialed, release := make(chan struct{}, 100), make(chan struct{})
	defer close(release)
	dial := dialFunc(func(ctx context.Context, network, address string) (net.Conn, error) {
		if stuck.Load() { // whatever the context
			dialed <- struct{}{}
			<-release
			return nil, errors.New("released")
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	})
	target, err := cluster.ParseTarget(s.Addr())
	must.OK(t, err)
	c, err := cluster.Connect(t.Context(), target, cluster.Options{Dialer: dial})
	must.OK(t, err)
	must.OK(t, c.Ping(t.Context()))
	stuck.Store(true)
	fault(t, s, mongod.Fault{Mode: mongod.Cut})
	<-dialed
	closed := make(chan error, 1)
	go func() { closed <- c.Close(t.Context()) }()
	select {
	case err := <-closed:
		must.Equal(t, fmt.Sprintf("kind of %v", err), cluster.KindOf(err), cluster.KindTimeout)
	case <-time.After(time.Minute):
		t.Error("Close waits for the driver")
	}
}

type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

func (f dialFunc) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return f(ctx, network, address)
}

// An idle client has few connections.
func TestFewConnections(t *testing.T) {
	t.Parallel()
	s := startServer(t, mongod.Options{})
	c := connect(t, s.URI(), cluster.Options{})
	var all sync.WaitGroup
	for range 30 {
		all.Go(func() {
			must.Equal(t, "ping", c.Ping(t.Context()), nil)
		})
	}
	all.Wait()
	if n := s.Stats().Accepted; n > 4 {
		t.Errorf("%d connections for 30 calls at once, want 4 at most: 2 to call and 2 to watch", n)
	}
}
