// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lb_test

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/amsagent/amsagent/internal/locked"
	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/internal/sleep"
	"github.com/amsagent/amsagent/lb"
)

// check is the agent check of a node whose state a test sets.
type check struct {
	*lb.AgentCheck
	t       *testing.T
	is      lb.NodeState
	kept    stored
	log     locked.Buffer
	clients clients
}

// clients is a listener to which clients connect in memory.
type clients chan net.Conn

func (c clients) Accept() (net.Conn, error) {
	conn, open := <-c
	if !open {
		return nil, net.ErrClosed
	}
	return conn, nil
}

func (c clients) Close() error {
	close(c)
	return nil
}

func (clients) Addr() net.Addr { return nil }

// connection is one of a client at this address.
type connection struct {
	net.Conn
	from netip.Addr
}

func (c connection) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(c.from, 1))
}

// checking runs a test of an agent check in a bubble of fake time.
func checking(t *testing.T, is lb.NodeState, f func(t *testing.T, c *check)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := &check{t: t, is: is}
		c.restart()
		f(t, c)
	})
}

// restart begins a new process of the agent in the same boot.
func (c *check) restart() {
	c.AgentCheck = &lb.AgentCheck{
		State: func() lb.NodeState { return c.is }, Now: time.Now, Kept: &c.kept, Log: slog.New(slog.NewTextHandler(&c.log, nil)),
	}
	c.clients = make(clients)
	go c.Serve(c.t.Context(), c.clients)
}

// asker is a backend of a load balancer: an address, and its agent-send string.
type asker struct {
	addr netip.Addr
	send string
}

// client is an asker at 10.0.x.y.
func client(n int, send string) asker {
	return asker{netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), send}
}

func (c *check) connect(from netip.Addr) net.Conn {
	ours, theirs := net.Pipe()
	c.clients <- connection{theirs, from}
	return ours
}

// answer returns the line that a client reads.
func (c *check) answer(from asker) string {
	c.t.Helper()
	conn := c.connect(from.addr)
	if from.send != "" {
		_, err := io.WriteString(conn, from.send+"\n")
		must.OK(c.t, err)
	}
	text, err := io.ReadAll(conn)
	must.OK(c.t, err)
	line, ended := strings.CutSuffix(string(text), "\n")
	must.Equal(c.t, fmt.Sprintf("%q ends its line", text), ended, true)
	return line
}

func (c *check) asks(from asker, want ...string) {
	c.t.Helper()
	for i, want := range want {
		must.Equal(c.t, fmt.Sprintf("%v, answer %d", from, i), c.answer(from), want)
	}
}

// TestAgentCheck: what one balancer reads, poll after poll.
func TestAgentCheck(t *testing.T) {
	score := func(n int) *int { return &n }
	edge := lb.NodeState{Role: "edge", Score: score(30)}
	leaves, down := edge, edge
	leaves.Leaves, down.Down = true, "LiveApp fails\r\nand more"
	full, busy, unknown, origin := edge, edge, edge, edge
	full.Score, busy.Score, unknown.Score, origin.Role = score(1000), score(85), nil, "origin"
	checking(t, edge, func(t *testing.T, c *check) {
		for i, step := range []struct {
			is   lb.NodeState
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
			must.Equal(t, fmt.Sprintf("step %d", i), c.answer(asker{send: step.send}), step.want)
		}
	})
}

// TestAgentCheckWords: HAProxy takes any text in agent-send. Only a role of the cluster is one.
func TestAgentCheckWords(t *testing.T) {
	checking(t, lb.NodeState{Role: "edge"}, func(t *testing.T, c *check) {
		for send, want := range map[string]string{
			"state": "ready up 100%", "server1 edge": "ready up 100%", "edge server1": "ready up 100%", "GET / HTTP/1.1": "ready up 100%",
			"hello world": "ready up 100%", "edge nam=x name=": "ready up 100%", "origin": "maint", "role=x": "maint", "Origin name=a": "maint",
		} {
			c.asks(client(len(send), send), want)
		}
		if !c.HasUnknownWords() {
			t.Error("no word is unknown")
		}
		c.answer(client(1, "vod state"))
		c.AddRoles([]string{"VOD", "edge", ""})
		c.asks(client(1, "vod state"), "maint")
		must.Equal(t, "the word is logged (times)", strings.Count(c.log.String(), "word=state"), 1)
		for n := range 640 {
			c.answer(client(1, fmt.Sprint("word", n)))
		}
		if n := strings.Count(c.log.String(), "\n"); n > 64 {
			t.Errorf("%d lines are logged", n)
		}
	})
}

// TestAgentCheckRestart: a restart of the agent ends no maintenance that an operator has set, and forgets none of its own.
func TestAgentCheckRestart(t *testing.T) {
	checking(t, lb.NodeState{Role: "edge"}, func(t *testing.T, c *check) {
		other, ours := client(1, "edge"), client(2, "edge name=lb")
		c.asks(other, "ready up 100%", "ready up 100%", "ready up 100%", "up 100%")
		c.is.Leaves = true
		c.asks(ours, "maint")
		c.restart()
		c.is.Leaves = false // a join without the agent
		c.asks(ours, "ready up 100%", "ready up 100%", "ready up 100%", "up 100%")
		c.asks(other, "up 100%")
		c.restart()
		c.asks(ours, "up 100%")
		c.asks(other, "up 100%")

		c.is.Role = "origin" // set while the agent did not run
		c.restart()
		c.asks(client(1, "origin"), "ready up 100%")
		c.kept.b = []byte("{")
		c.restart()
		c.asks(client(1, "origin"), "ready up 100%")
	})
	// One that has read "ready" often enough is in maintenance since the drain.
	checking(t, lb.NodeState{Role: "edge"}, func(_ *testing.T, c *check) {
		ours := client(1, "edge")
		c.asks(ours, "ready up 100%", "ready up 100%", "ready up 100%", "up 100%")
		c.is.Leaves = true
		c.asks(ours, "maint")
		c.restart()
		c.is.Leaves = false
		c.asks(ours, "ready up 100%")
	})
	// The role is learned late, and changes while the agent does not run.
	checking(t, lb.NodeState{}, func(_ *testing.T, c *check) {
		c.is.Role = "edge"
		c.asks(client(1, "origin"), "maint")
		c.is.Role = "origin"
		c.restart()
		c.asks(client(1, "origin"), "ready up 100%")
	})
}

// TestAgentCheckNames: a balancer that names itself is reported for a minute. A backend for another role does not matter.
func TestAgentCheckNames(t *testing.T) {
	checking(t, lb.NodeState{Role: "edge"}, func(t *testing.T, c *check) {
		is := func(want map[string]bool) {
			t.Helper()
			must.NoDiff(t, "balancers", c.Balancers(), want)
		}
		is(map[string]bool{})
		c.answer(asker{send: "edge name=LB1"})
		c.answer(asker{send: "edge"})
		is(map[string]bool{"lb1": true})
		c.is.Leaves = true
		c.answer(asker{send: "origin name=LB1"}) // its backend edge may still send sessions here
		is(map[string]bool{"lb1": true})
		c.answer(asker{send: "name=lb2 edge"})
		is(map[string]bool{"lb1": true, "lb2": false})
		c.answer(asker{send: "edge name=LB1"})
		is(map[string]bool{"lb1": false, "lb2": false})
		sleep.For(t.Context(), time.Minute)
		is(map[string]bool{})
		for i := range 16 {
			c.answer(asker{send: fmt.Sprintf("name=%d", i)})
		}
		must.Equal(t, "balancers", len(c.Balancers()), 8)
	})
}

// TestAgentCheckCrowd: however many strangers ask, a balancer reads "ready" after a drain, and one that names itself keeps
// what an operator has set.
func TestAgentCheckCrowd(t *testing.T) {
	checking(t, lb.NodeState{Role: "edge"}, func(t *testing.T, c *check) {
		plain, named := client(1, "edge"), client(2, "edge name=lb1")
		strangers := func() {
			for n := range 1000 {
				c.answer(client(3, fmt.Sprint("edge ", n)))
				c.answer(client(4, fmt.Sprint("edge name=", n)))
				c.answer(client(5+n, "edge"))
			}
			if n := strings.Count(string(c.kept.b), `"address"`); n > 256 {
				t.Errorf("%d askers are kept", n)
			}
		}
		strangers()
		c.asks(plain, "ready up 100%")
		c.asks(named, "ready up 100%", "ready up 100%", "ready up 100%", "up 100%")
		strangers()
		c.asks(named, "up 100%")
		c.is.Leaves = true
		strangers()
		c.asks(plain, "maint")
		c.asks(named, "maint")
		strangers()
		c.is.Leaves = false
		strangers()
		c.asks(plain, "ready up 100%")
		c.asks(named, "ready up 100%", "ready up 100%", "ready up 100%", "up 100%")
	})
}

// TestAgentCheckFullTable: with as many balancers that name themselves as there is room for, another one reads "ready" for a
// minute, and those that no longer ask make room.
func TestAgentCheckFullTable(t *testing.T) {
	checking(t, lb.NodeState{Role: "edge"}, func(t *testing.T, c *check) {
		for n := range 64 {
			c.answer(client(n, fmt.Sprint("edge name=", n)))
		}
		late := client(64, "edge name=late")
		c.asks(late, "ready up 100%", "ready up 100%", "ready up 100%", "ready up 100%")
		sleep.For(t.Context(), time.Minute)
		c.asks(late, "ready up 100%", "ready up 100%", "ready up 100%", "up 100%")
	})
}

// The listener closes the oldest connection of too many: beside a crowd that sends nothing, it waits shorter for each.
func TestAgentCheckBesideSilentConnections(t *testing.T) {
	checking(t, lb.NodeState{Role: "edge"}, func(t *testing.T, c *check) {
		answered := func() time.Duration {
			began := time.Now()
			c.answer(asker{})
			return time.Since(began)
		}
		must.Equal(t, "alone, the answer comes after", answered(), 100*time.Millisecond)
		for range 32 {
			conn := c.connect(netip.Addr{})
			go func() { _, _ = io.ReadAll(conn) }()
		}
		synctest.Wait()
		must.Equal(t, "in a crowd, the answer comes after", answered(), 5*time.Millisecond)
		sleep.For(t.Context(), time.Minute) // the others end
	})
}
