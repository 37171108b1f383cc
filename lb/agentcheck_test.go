// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
)

// TestAgentCheck: what one balancer reads, poll after poll.
func TestAgentCheck(t *testing.T) {
	score := func(n int) *int { return &n }
	edge := NodeState{Role: "edge", Score: score(30)}
	leaves, down := edge, edge
	leaves.Leaves, down.Down = true, "LiveApp fails\r\nand more"
	full, busy, unknown := edge, edge, edge
	full.Score, busy.Score, unknown.Score = score(100), score(99), nil
	const later = 2 * readyTime
	now := time.Date(2026, 11, 28, 8, 0, 0, 0, time.UTC)
	state := edge
	a := &AgentCheck{State: func() NodeState { return state }, Started: now, Now: func() time.Time { return now }}
	for i, step := range []struct {
		after time.Duration
		is    NodeState
		send  string
		want  string
	}{
		{0, edge, "", "ready up 70%"}, // an agent before may have taken it out
		{readyTime, edge, "", "up 70%"},
		{later, full, "", "up 0%"},
		{0, busy, "", "up 1%"},
		{0, unknown, "", "up 100%"},
		{0, down, "", "down #LiveApp fails and more"},
		{0, edge, "", "up 70%"}, // HAProxy ends "down" itself
		{0, leaves, "", "maint"},
		{0, leaves, "edge drain", "drain"},
		{0, edge, "", "ready up 70%"},
		{0, edge, "", "ready up 70%"},
		{0, edge, "", "ready up 70%"},
		{0, edge, "", "up 70%"}, // what the operator says now, stays
		{0, edge, "edge drain", "ready up 70%"},
		{0, edge, "origin", "maint"},
		{0, edge, "EDGE", "up 70%"},
	} {
		now, state = now.Add(step.after), step.is
		if got := a.answer(asker{send: step.send}); got != step.want {
			t.Errorf("step %d: %q, want %q", i, got, step.want)
		}
	}
}

// TestAgentCheckNames: a balancer that names itself is reported for a minute. A backend for another role does not matter.
func TestAgentCheckNames(t *testing.T) {
	now := time.Date(2026, 11, 28, 8, 0, 0, 0, time.UTC)
	state := NodeState{Role: "edge"}
	a := &AgentCheck{State: func() NodeState { return state }, Now: func() time.Time { return now }}
	is := func(want map[string]bool) {
		t.Helper()
		if got := a.Balancers(); !maps.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
	}
	is(map[string]bool{})
	a.answer(asker{send: "edge name=LB1"})
	a.answer(asker{send: "origin name=LB1"})
	a.answer(asker{send: "edge"})
	if got := a.answer(asker{send: "edge nam=lb3 name="}); got == "maint" {
		t.Error("an unknown word is a role")
	}
	is(map[string]bool{"lb1": true})
	state.Leaves = true
	a.answer(asker{send: "name=lb2 edge"})
	is(map[string]bool{"lb1": true, "lb2": false})
	a.answer(asker{send: "edge name=LB1"})
	is(map[string]bool{"lb1": false, "lb2": false})
	now = now.Add(namedFor)
	is(map[string]bool{})
	for i := range 2 * maxNamed {
		a.answer(asker{send: fmt.Sprintf("name=%d", i)})
	}
	if n := len(a.Balancers()); n != maxNamed {
		t.Errorf("%d balancers", n)
	}
}

// TestAgentCheckCrowd: many who ask in the first minute take no room from a balancer that must read "ready" later.
func TestAgentCheckCrowd(t *testing.T) {
	now := time.Date(2026, 11, 28, 8, 0, 0, 0, time.UTC)
	state := NodeState{Role: "edge"}
	a := &AgentCheck{State: func() NodeState { return state }, Started: now, Now: func() time.Time { return now }}
	balancer := func(n int) asker { return asker{addr: netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)})} }
	for n := range 2 * maxAskers {
		if got := a.answer(balancer(n)); got != "ready up 100%" {
			t.Fatalf("balancer %d: %q", n, got)
		}
	}
	now, state.Leaves = now.Add(readyTime), true
	late := balancer(2 * maxAskers)
	if got := a.answer(late); got != "maint" {
		t.Error(got)
	}
	state.Leaves = false
	if got := a.answer(late); got != "ready up 100%" {
		t.Error(got)
	}
}

// TestAgentCheckForgets: clients that no longer ask take no room from one that must read "ready" later.
func TestAgentCheckForgets(t *testing.T) {
	now := time.Date(2026, 11, 28, 8, 0, 0, 0, time.UTC)
	state := NodeState{Role: "edge", Leaves: true}
	a := &AgentCheck{State: func() NodeState { return state }, Now: func() time.Time { return now }}
	for n := range maxAskers {
		a.answer(asker{addr: netip.AddrFrom4([4]byte{10, 0, 0, byte(n)})})
	}
	now = now.Add(namedFor)
	late := asker{addr: netip.AddrFrom4([4]byte{10, 0, 1, 0})}
	a.answer(late)
	state.Leaves = false
	if got := a.answer(late); got != "ready up 100%" {
		t.Error(got)
	}
}

// TestAgentCheckServe: one line for each connection, with and without agent-send.
func TestAgentCheckServe(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.OK(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	a := &AgentCheck{State: func() NodeState { return NodeState{Role: "edge"} }, Started: time.Now(), Now: time.Now}
	go func() { ended <- a.Serve(ctx, l) }()
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
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("ended by %v", err)
	}
}
