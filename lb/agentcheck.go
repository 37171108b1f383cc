// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/amsagent/amsagent/cluster"
)

// NodeState is what an agent check says about its node.
type NodeState struct {
	Role string
	// Leaves: the node drains, or the agent stops its server.
	Leaves bool
	// Down is why the server does not serve, or "".
	Down string
	// Score is the load in percent of the capacity; nil if unknown.
	Score *int
}

const (
	// readyAnswers counts the "ready" answers after one that took the server out.
	readyAnswers = 3
	// For readyTime after its start, the agent says "ready": an earlier process may have taken the server out.
	readyTime = time.Minute
	// checkLimit bounds one connection.
	checkLimit = 2 * time.Second
	// sendWait is the wait for a client's agent-send string.
	sendWait = 100 * time.Millisecond
	// maxSend bounds the agent-send string, maxAskers the remembered clients.
	maxSend, maxAskers = 64, 256
	// maxNamed bounds the load balancers in a heartbeat: any client may connect.
	maxNamed = 8
	// namedFor is how long a silent load balancer is remembered.
	namedFor = time.Minute
)

// AgentCheck answers HAProxy's agent check (configuration manual, "agent-check") with one line per connection.
//
// The percentage is of the server's weight, whose default of 1 rounds to 0: the configuration must set 100. "ready" also
// ends a state that the operator has set, so it follows only an answer of this agent that took the server out.
type AgentCheck struct {
	State func() NodeState
	// Started is the agent's start.
	Started time.Time
	Now     func() time.Time

	mu     sync.Mutex
	askers map[asker]takenOut
	named  map[string]asked
}

// takenOut is the last answer that took the server out; due counts the "ready" answers to come.
type takenOut struct {
	due int
	at  time.Time
}

// asked is the last answer to the load balancer of a name.
type asked struct {
	uses bool
	at   time.Time
}

// asker is a backend of a load balancer.
type asker struct {
	addr netip.Addr
	send string
}

// Serve answers until ctx ends.
func (a *AgentCheck) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return ctx.Err()
		}
		if err != nil {
			return err
		}
		go a.serve(conn)
	}
}

func (a *AgentCheck) serve(conn net.Conn) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(checkLimit))
	var from asker
	if addr, err := netip.ParseAddrPort(conn.RemoteAddr().String()); err == nil {
		from.addr = addr.Addr().Unmap()
	}
	_ = conn.SetReadDeadline(time.Now().Add(sendWait))
	buf := make([]byte, maxSend)
	n, _ := conn.Read(buf) // most send nothing
	from.send = strings.TrimSpace(string(buf[:n]))
	_, _ = conn.Write([]byte(a.answer(from) + "\n"))
}

// Balancers returns the load balancers that name themselves in agent-send strings: true if the last answer let them send
// new sessions here.
func (a *AgentCheck) Balancers() map[string]bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	uses := map[string]bool{}
	for name, t := range a.named {
		if a.Now().Sub(t.at) >= namedFor {
			delete(a.named, name)
			continue
		}
		uses[name] = t.uses
	}
	return uses
}

// An agent-send string may have the role of the backend, "drain" for one without cookies, where persistent sessions cannot
// come back, and name=NAME of the load balancer.
func (a *AgentCheck) answer(from asker) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.Now()
	if a.askers == nil {
		a.askers, a.named = map[asker]takenOut{}, map[string]asked{}
	}
	state := a.State()
	out, role := "maint", ""
	for _, word := range strings.Fields(from.send) {
		name, named := strings.CutPrefix(word, "name=")
		switch {
		case named && name != "":
			name = cluster.BalancerName(name)
			if _, known := a.named[name]; known || len(a.named) < maxNamed {
				a.named[name] = asked{!state.Leaves, now}
			}
		case word == "drain":
			out = word
		case !strings.Contains(word, "="): // else of a later version, or a mistake
			role = word
		}
	}
	switch {
	case role != "" && !strings.EqualFold(role, state.Role):
		return a.takesOut(from, "maint", now)
	case state.Leaves:
		return a.takesOut(from, out, now)
	case state.Down != "":
		return "down #" + strings.Join(strings.Fields(state.Down), " ")
	}
	line := "up " + percent(state.Score)
	due := a.askers[from].due
	if due > 1 {
		a.askers[from] = takenOut{due - 1, now}
	} else {
		delete(a.askers, from)
	}
	if due > 0 || now.Sub(a.Started) < readyTime {
		return "ready " + line
	}
	return line
}

func (a *AgentCheck) takesOut(from asker, word string, now time.Time) string {
	if len(a.askers) >= maxAskers {
		maps.DeleteFunc(a.askers, func(_ asker, last takenOut) bool { return now.Sub(last.at) >= namedFor })
	}
	if _, known := a.askers[from]; known || len(a.askers) < maxAskers {
		a.askers[from] = takenOut{readyAnswers, now}
	}
	return word
}

// percent is a score's weight. A full node gets 0, which takes no new session; any other at least 1.
func percent(score *int) string {
	if score == nil {
		return "100%"
	}
	if *score >= 100 {
		return "0%"
	}
	return fmt.Sprintf("%d%%", max(1, 100-*score))
}
