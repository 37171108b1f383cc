// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/sleep"
)

// keptAskers is the file of askers.
type keptAskers struct{ b []byte }

func (k *keptAskers) Load() ([]byte, error) { return k.b, nil }

func (k *keptAskers) Save(b []byte) error {
	k.b = b
	return nil
}

// check is the agent check of a node whose state a test sets.
type check struct {
	*AgentCheck
	is   NodeState
	now  time.Time
	kept keptAskers
	log  bytes.Buffer
}

func newCheck(is NodeState) *check {
	c := &check{is: is, now: time.Date(2026, 11, 28, 8, 0, 0, 0, time.UTC)}
	c.restart()
	return c
}

// restart begins a new process of the agent in the same boot.
func (c *check) restart() {
	c.AgentCheck = &AgentCheck{
		State: func() NodeState { return c.is }, Now: func() time.Time { return c.now }, Kept: &c.kept,
		Log: slog.New(slog.NewTextHandler(&c.log, nil)),
	}
}

func (c *check) asks(t *testing.T, from asker, want ...string) {
	t.Helper()
	for i, want := range want {
		must.Equal(t, fmt.Sprintf("%v, answer %d", from, i), c.answer(from), want)
	}
}

// client is an asker at 10.0.x.y.
func client(n int, send string) asker {
	return asker{netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), send}
}

// TestAgentCheck: what one balancer reads, poll after poll.
func TestAgentCheck(t *testing.T) {
	score := func(n int) *int { return &n }
	edge := NodeState{Role: "edge", Score: score(30)}
	leaves, down := edge, edge
	leaves.Leaves, down.Down = true, "LiveApp fails\r\nand more"
	full, busy, unknown, origin := edge, edge, edge, edge
	full.Score, busy.Score, unknown.Score, origin.Role = score(1000), score(85), nil, "origin"
	c := newCheck(edge)
	for i, step := range []struct {
		is   NodeState
		send string
		want string
	}{
		{edge, "", "ready up 70%"}, // an agent before may have taken it out
		{edge, "", "ready up 70%"},
		{edge, "", "ready up 70%"},
		{edge, "", "up 70%"}, // what the operator says now, stays
		{full, "", "up 10%"}, // a full node is not out: all may be full
		{busy, "", "up 15%"},
		{unknown, "", "up 100%"},
		{down, "", "down #LiveApp fails and more"},
		{edge, "", "up 70%"}, // HAProxy ends "down" itself
		{leaves, "", "maint"},
		{leaves, "edge drain", "drain"},
		{edge, "", "ready up 70%"},
		{edge, "", "ready up 70%"},
		{edge, "", "ready up 70%"},
		{edge, "", "up 70%"},
		{edge, "edge drain", "ready up 70%"},
		{edge, "origin", "maint"},
		{edge, "origin", "maint"},
		{edge, "role=vod", "maint"},
		{edge, "EDGE", "ready up 70%"}, // an asker that is new after the drain
		{origin, "origin", "ready up 70%"},
		{origin, "EDGE", "maint"},
	} {
		c.is = step.is
		must.Equal(t, fmt.Sprintf("step %d", i), c.answer(asker{Send: step.send}), step.want)
	}
}

// TestAgentCheckWords: HAProxy takes any text in agent-send. Only a role of the cluster is one.
func TestAgentCheckWords(t *testing.T) {
	c := newCheck(NodeState{Role: "edge"})
	for send, want := range map[string]string{
		"state": "ready up 100%", "server1 edge": "ready up 100%", "edge server1": "ready up 100%", "GET / HTTP/1.1": "ready up 100%",
		"hello world": "ready up 100%", "edge nam=x name=": "ready up 100%", "origin": "maint", "role=x": "maint", "Origin name=a": "maint",
	} {
		c.asks(t, client(len(send), send), want)
	}
	if !c.HasUnknownWords() {
		t.Error("no word is unknown")
	}
	c.answer(client(1, "vod state"))
	c.AddRoles([]string{"VOD", "edge", ""})
	c.asks(t, client(1, "vod state"), "maint")
	must.Equal(t, "the word is logged (times)", strings.Count(c.log.String(), "word=state"), 1)
	for n := range 10 * maxWords {
		c.answer(client(1, fmt.Sprint("word", n)))
	}
	if n := strings.Count(c.log.String(), "\n"); n > maxWords {
		t.Errorf("%d lines are logged", n)
	}
}

// TestAgentCheckRestart: a restart of the agent ends no maintenance that an operator has set, and forgets none of its own.
func TestAgentCheckRestart(t *testing.T) {
	c := newCheck(NodeState{Role: "edge"})
	other, ours := client(1, "edge"), client(2, "edge name=lb")
	c.asks(t, other, "ready up 100%", "ready up 100%", "ready up 100%", "up 100%")
	c.is.Leaves = true
	c.asks(t, ours, "maint")
	c.restart()
	c.is.Leaves = false // a join without the agent
	c.asks(t, ours, "ready up 100%", "ready up 100%", "ready up 100%", "up 100%")
	c.asks(t, other, "up 100%")
	c.restart()
	c.asks(t, ours, "up 100%")
	c.asks(t, other, "up 100%")

	c.is.Role = "origin" // set while the agent did not run
	c.restart()
	c.asks(t, client(1, "origin"), "ready up 100%")
	c.kept.b = []byte("{")
	c.restart()
	c.asks(t, client(1, "origin"), "ready up 100%")
}

// TestAgentCheckNames: a balancer that names itself is reported for a minute. A backend for another role does not matter.
func TestAgentCheckNames(t *testing.T) {
	c := newCheck(NodeState{Role: "edge"})
	is := func(want map[string]bool) {
		t.Helper()
		must.NoDiff(t, "balancers", c.Balancers(), want)
	}
	is(map[string]bool{})
	c.answer(asker{Send: "edge name=LB1"})
	c.answer(asker{Send: "edge"})
	is(map[string]bool{"lb1": true})
	c.is.Leaves = true
	c.answer(asker{Send: "origin name=LB1"}) // its backend edge may still send sessions here
	is(map[string]bool{"lb1": true})
	c.answer(asker{Send: "name=lb2 edge"})
	is(map[string]bool{"lb1": true, "lb2": false})
	c.answer(asker{Send: "edge name=LB1"})
	is(map[string]bool{"lb1": false, "lb2": false})
	c.now = c.now.Add(namedFor)
	is(map[string]bool{})
	for i := range 2 * maxNamed {
		c.answer(asker{Send: fmt.Sprintf("name=%d", i)})
	}
	must.Equal(t, "balancers", len(c.Balancers()), maxNamed)
}

// TestAgentCheckCrowd: however many strangers ask, a balancer reads "ready" after a drain, and one that names itself keeps
// what an operator has set.
func TestAgentCheckCrowd(t *testing.T) {
	c := newCheck(NodeState{Role: "edge"})
	plain, named := client(1, "edge"), client(2, "edge name=lb1")
	strangers := func() {
		for n := range 1000 {
			c.answer(client(3, fmt.Sprint("edge ", n)))
			c.answer(client(4, fmt.Sprint("edge name=", n)))
			c.answer(client(5+n, "edge"))
		}
		if n := len(c.askers); n > maxAddrs*maxStrings {
			t.Errorf("%d askers are remembered", n)
		}
	}
	strangers()
	c.asks(t, plain, "ready up 100%")
	c.asks(t, named, "ready up 100%", "ready up 100%", "ready up 100%", "up 100%")
	strangers()
	c.asks(t, named, "up 100%")
	c.is.Leaves = true
	strangers()
	c.asks(t, plain, "maint")
	c.asks(t, named, "maint")
	strangers()
	c.is.Leaves = false
	strangers()
	c.asks(t, plain, "ready up 100%")
	c.asks(t, named, "ready up 100%", "ready up 100%", "ready up 100%", "up 100%")
}

// TestAgentCheckFullTable: with as many balancers that name themselves as there is room for, another one reads "ready" for a
// minute, and those that no longer ask make room.
func TestAgentCheckFullTable(t *testing.T) {
	c := newCheck(NodeState{Role: "edge"})
	for n := range maxAddrs {
		c.answer(client(n, fmt.Sprint("edge name=", n)))
	}
	late := client(maxAddrs, "edge name=late")
	c.asks(t, late, "ready up 100%", "ready up 100%", "ready up 100%", "ready up 100%")
	c.now = c.now.Add(readyTime)
	c.asks(t, late, "ready up 100%", "ready up 100%", "ready up 100%", "up 100%")
}

// TestAgentCheckServe: one line for each connection, with and without agent-send.
func TestAgentCheckServe(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.OK(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	a := &AgentCheck{State: func() NodeState { return NodeState{Role: "edge"} }, Now: time.Now, Log: slog.New(slog.DiscardHandler)}
	go func() { defer close(ended); a.Serve(ctx, l) }()
	for send, want := range map[string]string{"": "ready up 100%\n", "edge\n": "ready up 100%\n", "origin\n": "maint\n"} {
		conn, err := net.Dial("tcp", l.Addr().String())
		must.OK(t, err)
		_, err = io.WriteString(conn, send)
		must.OK(t, err)
		if got, err := io.ReadAll(conn); err != nil || string(got) != want {
			t.Errorf("after %q: %q, %v", send, got, err)
		}
		must.OK(t, conn.Close())
	}
	cancel()
	<-ended
}

// The listener closes the oldest connection of too many: beside a crowd that sends nothing, it waits shorter for each.
func TestAgentCheckBesideSilentConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCheck(NodeState{Role: "edge"})
		open := func() net.Conn {
			client, server := net.Pipe()
			go c.serve(server)
			synctest.Wait()
			return client
		}
		answered := func() time.Duration {
			conn, began := open(), time.Now()
			_, err := io.ReadAll(conn)
			must.OK(t, err)
			return time.Since(began)
		}
		must.Equal(t, "alone, the answer comes after", answered(), sendWait)
		for range crowd {
			conn := open()
			go func() { _, _ = io.ReadAll(conn) }()
		}
		must.Equal(t, "in a crowd, the answer comes after", answered(), crowdWait)
		sleep.For(t.Context(), checkLimit) // the others end
	})
}
