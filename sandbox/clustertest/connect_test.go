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

func TestServerMisbehaves(t *testing.T) {
	t.Parallel()
	const limit = 1500 * time.Millisecond
	tests := []struct {
		name  string
		fault mongod.Fault
		kind  cluster.Kind // "" means that the call works in spite of it
	}{
		{"absent", mongod.Fault{Mode: mongod.Refuse}, cluster.KindRefused},
		{"slow", mongod.Fault{Mode: mongod.Delay, Delay: time.Minute, Commands: []string{"find"}}, cluster.KindTimeout},
		{"a little slow", mongod.Fault{Mode: mongod.Delay, Delay: 300 * time.Millisecond, Commands: []string{"find"}}, ""},
		{"deaf", mongod.Fault{Mode: mongod.BlackHole, Commands: []string{"find"}}, cluster.KindTimeout},
		{"cut once in a call", mongod.Fault{Mode: mongod.CutReply, Commands: []string{"find"}, Times: 1}, ""},
		{"half an answer once", mongod.Fault{Mode: mongod.Truncate, Commands: []string{"find"}, Times: 1}, ""},
		{"closed once", mongod.Fault{Mode: mongod.HalfClose, Commands: []string{"find"}, Times: 1}, ""},
		{"election", mongod.Fault{Mode: mongod.Error, Commands: []string{"find"}, Times: 1, Code: 189, Name: "PrimarySteppedDown"}, ""},
		{"election that does not end", mongod.Fault{Mode: mongod.Error, Commands: []string{"find"}, Code: 189, Name: "PrimarySteppedDown"}, cluster.KindNotPrimary},
		{"not implemented", mongod.Fault{Mode: mongod.Error, Commands: []string{"find"}, Code: 238, Name: "NotImplemented"}, cluster.KindUnsupported},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := startServer(t, mongod.Options{})
			o := cluster.Options{Timeout: limit}
			if tt.kind == "" || tt.kind == cluster.KindUnsupported {
				o.Timeout = 30 * time.Second
			}
			c := connect(t, s.URI(), o)
			must.Until(t, "the server answers", func() bool { return c.Ping(t.Context()) == nil })
			fault(t, s, tt.fault)
			start := time.Now()
			_, err := c.Nodes(t.Context())
			if took := time.Since(start); took > o.Timeout+30*time.Second {
				t.Errorf("it took %s", took)
			}
			if tt.kind == cluster.KindRefused || tt.kind == cluster.KindNotPrimary {
				// The driver checks twice, half a second apart, before it drops the connections that were cut. A call whose
				// time ends in an attempt, and not between two, has the timeout as its error.
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
	d := &stuckDialer{dialed: make(chan struct{}, 100), release: make(chan struct{})}
	defer close(d.release)
	target, err := cluster.ParseTarget(s.Addr())
	must.OK(t, err)
	c, err := cluster.Connect(t.Context(), target, cluster.Options{Dialer: d})
	must.OK(t, err)
	must.OK(t, c.Ping(t.Context()))
	d.stuck.Store(true)
	fault(t, s, mongod.Fault{Mode: mongod.Cut})
	<-d.dialed
	closed := make(chan error, 1)
	go func() { closed <- c.Close(t.Context()) }()
	select {
	case err := <-closed:
		must.Equal(t, fmt.Sprintf("kind of %v", err), cluster.KindOf(err), cluster.KindTimeout)
	case <-time.After(time.Minute):
		t.Error("Close waits for the driver")
	}
}

// stuckDialer connects, and hangs once stuck is set, whatever the context.
type stuckDialer struct {
	stuck           atomic.Bool
	dialed, release chan struct{}
}

func (d *stuckDialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if d.stuck.Load() {
		d.dialed <- struct{}{}
		<-d.release
		return nil, errors.New("released")
	}
	return new(net.Dialer).DialContext(ctx, network, address)
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

func TestReplicaSetOption(t *testing.T) {
	t.Parallel()
	s := startServer(t, mongod.Options{ReplicaSet: "rs0"})
	must.OK(t, connect(t, s.URI()+"?replicaSet=rs0", cluster.Options{}).CheckAccess(t.Context()))
	err := connect(t, s.URI()+"?replicaSet=other", cluster.Options{Timeout: 5 * time.Second}).Ping(t.Context())
	if cluster.KindOf(err) != cluster.KindConfig || !strings.Contains(err.Error(), "replica set other") {
		t.Errorf("another replica set: %v", err)
	}
	// One of several hosts is enough.
	dead := startServer(t, mongod.Options{})
	fault(t, dead, mongod.Fault{Mode: mongod.Refuse})
	must.Equal(t, "one host of two is dead", connect(t, dead.Addr()+","+s.Addr(), cluster.Options{}).Ping(t.Context()), nil)
}

func TestServerClock(t *testing.T) {
	t.Parallel()
	s := startServer(t, mongod.Options{})
	for _, skew := range []time.Duration{0, 10 * time.Minute, -10 * time.Minute} {
		c := connect(t, s.URI(), cluster.Options{Now: func() time.Time { return time.Now().Add(skew) }})
		got, accuracy, err := c.ClockSkew(t.Context())
		if err != nil || (got-skew).Abs() > accuracy+time.Second {
			t.Errorf("skew %s ± %s, %v, want %s", got, accuracy, err, skew)
		}
	}
}
