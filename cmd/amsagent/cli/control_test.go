// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/cmd/amsagent/daemon"
	"github.com/amsagent/amsagent/internal/locked"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/lifecycle"
	"github.com/amsagent/amsagent/metadata/cloud"
)

// impatient is a client that soon gives up a daemon that is away. One that runs may take its time.
func (m *fakeMachine) impatient(progress func(string)) *daemon.Client {
	c := daemon.NewClient(m.socket(), progress)
	c.Patience, c.Timeout = 300*time.Millisecond, time.Minute
	return c
}

func TestControlNoDaemon(t *testing.T) {
	m := withDaemon(t)
	m.kill()
	var said locked.Buffer
	c := m.impatient(func(text string) { _, _ = io.WriteString(&said, text) })

	// The socket is there and no process listens: the daemon may come back, and the command waits for it.
	begin := time.Now()
	_, err := c.Status(t.Context())
	if !errors.Is(err, daemon.ErrDown) || time.Since(begin) < c.Patience || !strings.Contains(said.String(), "waiting") {
		t.Errorf("after %s: %v\n%s", time.Since(begin), err, said.String())
	}
	c.Patience = time.Minute
	time.AfterFunc(100*time.Millisecond, m.start)
	_, err = c.Status(t.Context())
	must.OK(t, err)
	// Without a socket it fails at once.
	m.kill()
	must.OK(t, os.Remove(m.socket()))
	c.Patience = 24 * time.Hour
	if _, err = c.Status(t.Context()); !errors.Is(err, daemon.ErrDown) {
		t.Error(err)
	}
}

// A leave and a join get the daemon's count, with the reason of unknown ones. Without a daemon nothing is known, at once.
func TestDaemonCountsSessions(t *testing.T) {
	m := withDaemon(t)
	c := m.impatient(nil)
	m.count.Sessions = cluster.Sessions{Publishers: new(0), Viewers: new(5), Peers: new(3), By: cluster.CountedByConnections}
	if n, err := c.Sessions(t.Context()); err != nil || n.Left() != "0 publishers, about 5 viewers left, 3 connections of other nodes" {
		t.Errorf("%s, %v", n.Left(), err)
	}
	m.count = daemon.SessionsView{Sessions: cluster.Sessions{Publishers: new(0)}, Missing: "a network of its own"}
	if n, err := c.Sessions(t.Context()); err == nil || n.Publishers == nil || n.Viewers != nil || !strings.Contains(err.Error(), m.count.Missing) {
		t.Errorf("%+v, %v", n, err)
	}
	m.kill()
	if n, err := c.Sessions(t.Context()); !errors.Is(err, daemon.ErrDown) || n.Publishers != nil || n.Viewers != nil {
		t.Errorf("%+v, %v", n, err)
	}
}

// Any program may listen there.
func TestControlOddAnswers(t *testing.T) {
	serve := func(t *testing.T, handle func(net.Conn)) *daemon.Client {
		m := withDaemon(t)
		m.kill()
		l := m.listen()
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer func() { _ = conn.Close() }()
					_, _ = conn.Read(make([]byte, 4096))
					handle(conn)
				}()
			}
		}()
		return m.impatient(func(string) {})
	}
	say := func(text string) func(net.Conn) {
		return func(c net.Conn) { _, _ = io.WriteString(c, text) }
	}
	const ok = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
	for _, tt := range []struct {
		name   string
		handle func(net.Conn)
		want   error // nil for a refusal
		text   string
	}{
		{"garbage", say("SSH-2.0-OpenSSH_9.2\r\n"), daemon.ErrVersion, "malformed HTTP"},
		{"web page", say("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\n<p>x"), daemon.ErrVersion, "answers 200 OK"},
		{"wrong types", say(ok + "Content-Length: 11\r\n\r\n{\"state\":5}"), daemon.ErrVersion, "the answer of"},
		{"404 of an older daemon", say("HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\n404"), daemon.ErrVersion, "answers 40"},
		{"redirect", say("HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n"), daemon.ErrVersion, "answers 302 Found"},
		{"hangs up", func(net.Conn) {}, daemon.ErrLost, "gave no answer"},
		{"cut off", say(ok + "Content-Length: 500\r\n\r\n{\"id\":\"d1\""), daemon.ErrLost, "gave no answer"},
		{"silent", func(c net.Conn) { _, _ = c.Read(make([]byte, 1)) }, daemon.ErrLost, "no answer in 0.3 s"},
		{"slow to the end", func(c net.Conn) {
			_, _ = io.WriteString(c, ok+"Content-Length: 500\r\n\r\n{")
			_, _ = c.Read(make([]byte, 1))
		}, daemon.ErrLost, "no answer in 0.3 s"},
		{"endless", func(c net.Conn) {
			if _, err := io.WriteString(c, ok+"\r\n"); err != nil {
				return
			}
			for {
				if _, err := c.Write([]byte(strings.Repeat(" ", 4096))); err != nil {
					return
				}
			}
		}, daemon.ErrVersion, "has no end"},
		{"refusal", say("HTTP/1.1 409 Conflict\r\nContent-Type: application/json\r\nContent-Length: 40\r\n\r\n{\"code\":\"too-late\",\"message\":\"it stops\"}"), nil, "it stops"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := serve(t, tt.handle)
			if strings.Contains(tt.text, "0.3 s") { // only these must be given up
				c.Timeout = 300 * time.Millisecond
			}
			_, err := c.Life(t.Context(), daemon.PathDrain, nil)
			refusal, _ := errors.AsType[*daemon.Refusal](err)
			if !errors.Is(err, tt.want) && (tt.want != nil || refusal == nil) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("%T %v", err, err)
			}
			if strings.Contains(err.Error(), "http://") {
				t.Errorf("names an address: %v", err)
			}
		})
	}
}

// Status shows what the daemon finds.
func TestStatusOfTheDaemon(t *testing.T) {
	at := fixedNow()
	zone, _ := at.Local().Zone()
	zoned := "  " + at.Local().Format(time.DateTime) + " " + zone + "  "
	hooks := (&cloud.OthersHooksError{Group: "edge", Hooks: []string{"up", "install"}}).Error()
	for name, tt := range map[string]struct {
		daemon daemon.View
		said   []string
		not    []string
	}{
		"no viewers may be sent here": {
			daemon: daemon.View{State: cluster.StateActive, Proved: true, NotReady: "no application is known", MetricsError: "127.0.0.1:9771 is taken", Drift: &daemon.DriftView{Means: "a restart is pending"}},
			said: []string{
				"AMS-NOT-SERVING: the node is not ready for new sessions: no application is known",
				"STATUS-PORT: the daemon does not serve /metrics, /healthz and /readyz: 127.0.0.1:9771 is taken",
				"\nServer settings\n",
			},
		},
		"its first second": {daemon: daemon.View{State: cluster.StateActive, Proved: true, NotReady: daemon.NotAsked}, not: []string{"What disagrees"}},
		// Which launch hooks are not this agent's is no disagreement.
		"hooks of others": {
			daemon: daemon.View{Lifecycle: &lifecycle.View{State: lifecycle.StateActive, LaunchHooks: hooks}},
			said:   []string{"up, install"}, not: []string{"What disagrees", "Shutdown"},
		},
		// The operator's terminal may have another zone.
		"a drain": {
			daemon: daemon.View{Lifecycle: &lifecycle.View{State: lifecycle.StateDraining, NextDrain: at, Timeline: []lifecycle.Moment{{At: at, By: "--deadline", Decides: true}}}},
			said:   []string{zoned + "--deadline", zoned + "an announced drain begins"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := withDaemon(t)
			m.status = tt.daemon
			c := m.run("status")
			c.ends(codeNotMember)
			must.Contain(t, "status", c.stdout.String(), tt.said...)
			for _, not := range tt.not {
				if strings.Contains(c.stdout.String(), not) {
					t.Errorf("it says %q", not)
				}
			}
		})
	}
}

// A daemon that does not answer has its id and its hint, for status and for drain.
func TestDaemonThatHangs(t *testing.T) {
	t.Parallel()
	m := withDaemon(t)
	m.kill()
	m.listen() // and never accept
	drain, status := m.run("drain"), m.run("status")
	status.ends(codeNotMember)
	out := status.stdout.String()
	if strings.Count(out, "AGENT-DAEMON-LOST: ") != 1 || !strings.Contains(out, "no answer in 2 s\n      ") || strings.Contains(out, "context") {
		t.Errorf("%s", out)
	}
	drain.ends(codeUnknown)
	drain.said("[AGENT-DAEMON-LOST]\n", "no answer in 10 s\n", "amsagent: hint: ", "the daemon may have begun it")
}
