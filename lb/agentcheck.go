// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
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
	// readyAnswers counts the "ready" answers to each asker after a return.
	readyAnswers = 3
	// For readyTime after a return, also askers without room in the table read "ready".
	readyTime = time.Minute
	// checkLimit bounds one connection.
	checkLimit = 2 * time.Second
	// sendWait is the wait for a client's agent-send string, crowdWait that beside a crowd of others: the listener closes the
	// oldest of its connections for a new one.
	sendWait, crowdWait, crowd = 100 * time.Millisecond, 5 * time.Millisecond, 32
	// maxSend bounds the agent-send string. Any client may connect, so the remembered ones are bounded: maxAddrs addresses with
	// maxStrings strings each.
	maxSend, maxAddrs, maxStrings = 64, 64, 4
	// maxNamed bounds the load balancers in a heartbeat, maxWords the known roles and the logged words.
	maxNamed, maxWords = 8, 64
	// namedFor is how long a silent load balancer is remembered.
	namedFor = time.Minute
)

// AgentCheck answers HAProxy's agent check (configuration manual, "agent-check") with one line per connection.
//
// The percentage is of the server's weight, whose default of 1 rounds to 0: the configuration must set 100.
//
// "ready" ends a state "maint", also one that an operator has set. So each asker reads it three times, and only after a
// return of the node: the first start of the agent in a boot, the end of a drain or of a command that stops the server, or
// another role. A restart of the agent is no return.
type AgentCheck struct {
	State func() NodeState
	// Kept keeps, over a restart of the agent within a boot, the askers that must read "ready" later; nil: not kept.
	Kept Store
	Now  func() time.Time
	Log  *slog.Logger

	active atomic.Int32

	mu       sync.Mutex
	last     NodeState // of the last answer
	fresh    int       // the "ready" answers due to an asker that is not in the table
	returned time.Time
	askers   map[asker]asking
	named    map[string]asked
	roles    map[string]bool // in lower case; false: a word of a client that is not a role, as far as known
}

// asking counts the "ready" answers that are due to an asker.
type asking struct {
	due int
	at  time.Time // of its last question
}

// asked is the last answer to the load balancer of a name.
type asked struct {
	uses bool
	at   time.Time
}

// asker is a backend of a load balancer.
type asker struct {
	Addr netip.Addr `json:"address"`
	Send string     `json:"send"`
}

func (a asker) isNamed() bool { return strings.Contains(a.Send, "name=") }

// kept is the stored form.
type kept struct {
	Role   string  `json:"role"`
	Askers []asker `json:"askers"`
}

// Serve answers until ctx ends, on a listener of which only Close ends Accept.
func (a *AgentCheck) Serve(ctx context.Context, l net.Listener) {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go a.serve(conn)
	}
}

func (a *AgentCheck) serve(conn net.Conn) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(checkLimit))
	var from asker
	if addr, err := netip.ParseAddrPort(conn.RemoteAddr().String()); err == nil {
		from.Addr = addr.Addr().Unmap()
	}
	wait := sendWait
	if a.active.Add(1) > crowd {
		wait = crowdWait
	}
	_ = conn.SetReadDeadline(time.Now().Add(wait))
	buf := make([]byte, maxSend)
	n, _ := conn.Read(buf) // most send nothing
	a.active.Add(-1)
	from.Send = strings.TrimSpace(string(buf[:n]))
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

// AddRoles makes the roles of the cluster's nodes known: a word in agent-send that is no known role is ignored.
func (a *AgentCheck) AddRoles(roles []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.begin()
	for _, role := range roles {
		if role = strings.ToLower(role); role != "" && (len(a.roles) < maxWords || !a.roles[role]) {
			a.roles[role] = true
		}
	}
}

// HasUnknownWords reports whether a client sent a word that is not a known role.
func (a *AgentCheck) HasUnknownWords() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, known := range a.roles {
		if !known {
			return true
		}
	}
	return false
}

// begin reads what an earlier process of this boot has kept. Without it, this is the first start of the boot.
func (a *AgentCheck) begin() {
	if a.askers != nil {
		return
	}
	a.askers, a.named = map[asker]asking{}, map[string]asked{}
	a.roles = map[string]bool{"origin": true, "edge": true}
	a.fresh, a.returned = readyAnswers, a.Now()
	if a.Kept == nil {
		return
	}
	b, err := a.Kept.Load()
	var k kept
	if err == nil && b != nil {
		err = json.Unmarshal(b, &k)
	}
	switch {
	case err != nil:
		a.Log.Warn("the askers of the agent check are unknown: all read \"ready\"", "error", err)
	case b != nil:
		a.fresh, a.returned, a.last.Role = 0, time.Time{}, k.Role
		for _, from := range k.Askers {
			a.askers[from] = asking{readyAnswers, a.Now()}
		}
	}
	a.keep()
}

// keep stores the askers to which "ready" is due.
func (a *AgentCheck) keep() {
	if a.Kept == nil {
		return
	}
	k := kept{Role: a.last.Role}
	for from, is := range a.askers {
		if is.due > 0 {
			k.Askers = append(k.Askers, from)
		}
	}
	b, err := json.Marshal(k)
	if err == nil {
		err = a.Kept.Save(b)
	}
	if err != nil {
		a.Log.Warn("a restart of the agent may leave this node in maintenance at a load balancer", "error", err)
	}
}

// follow compares the node with that of the last answer. A change of role, or a node that no longer leaves, is a return.
func (a *AgentCheck) follow(is NodeState, now time.Time) {
	was := a.last
	if is.Role == "" {
		is.Role = was.Role // not known yet
	}
	a.last = is
	if was.Leaves && !is.Leaves || was.Role != "" && was.Role != is.Role {
		a.fresh, a.returned = readyAnswers, now
		for from, known := range a.askers {
			a.askers[from] = asking{readyAnswers, known.at}
		}
		a.keep()
	} else if was.Role != is.Role {
		a.keep()
	}
}

// answer returns the line for one client. An agent-send string may have the role of the backend, as a word or as role=NAME,
// "drain" for one without cookies, where persistent sessions cannot come back, and name=NAME of the load balancer.
func (a *AgentCheck) answer(from asker) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.begin()
	now, state := a.Now(), a.State()
	a.follow(state, now)
	out, role, balancer := "maint", "", ""
	for _, word := range strings.Fields(from.Send) {
		name, named := strings.CutPrefix(word, "name=")
		explicit, hasRole := strings.CutPrefix(word, "role=")
		switch {
		case named:
			balancer = name
		case hasRole:
			role = explicit
		case word == "drain":
			out = word
		case strings.Contains(word, "="): // of a later version, or a mistake
		case a.isRole(word, from.Addr):
			role = word
		}
	}
	if role != "" && !strings.EqualFold(role, state.Role) && (state.Role != "" || state.Down == "") {
		return "maint" // for as long as it has the other role
	}
	if balancer != "" {
		name := cluster.BalancerName(balancer)
		if _, known := a.named[name]; known || len(a.named) < maxNamed {
			a.named[name] = asked{!state.Leaves, now}
		}
	}
	was, known := a.askers[from]
	is := asking{was.due, now}
	if !known {
		is.due = a.fresh
	}
	switch {
	case state.Leaves:
		is.due = readyAnswers
		a.remember(from, is, !known || was.due != is.due)
		return out
	case state.Down != "":
		return "down #" + strings.Join(strings.Fields(state.Down), " ")
	}
	ready := is.due > 0
	is.due = max(0, is.due-1)
	if !a.remember(from, is, ready && is.due == 0) {
		ready = now.Sub(a.returned) < readyTime
	}
	line := "up " + percent(state.Score)
	if ready {
		line = "ready " + line
	}
	return line
}

func (a *AgentCheck) isRole(word string, from netip.Addr) bool {
	word = strings.ToLower(word)
	role, known := a.roles[word]
	if !known && !strings.EqualFold(word, a.last.Role) && len(a.roles) < maxWords {
		a.roles[word] = false
		a.Log.Warn("a word of agent-send is not a role of this cluster, and is ignored: role=NAME names a role", "word", word, "from", from)
	}
	return role || strings.EqualFold(word, a.last.Role)
}

// remember keeps what is due to an asker, if there is room. One that names itself has precedence over those that do not.
func (a *AgentCheck) remember(from asker, is asking, changed bool) bool {
	_, known := a.askers[from]
	for _, forget := range []func(asker, asking) bool{
		func(_ asker, last asking) bool { return is.at.Sub(last.at) >= namedFor },
		func(k asker, _ asking) bool { return from.isNamed() && !k.isNamed() },
	} {
		if !known && !a.hasRoom(from) {
			maps.DeleteFunc(a.askers, forget)
		}
	}
	if !known && !a.hasRoom(from) {
		return false
	}
	a.askers[from] = is
	if changed {
		a.keep()
	}
	return true
}

func (a *AgentCheck) hasRoom(from asker) bool {
	strings, addrs := 0, map[netip.Addr]bool{}
	for k := range a.askers {
		addrs[k.Addr] = true
		if k.Addr == from.Addr {
			strings++
		}
	}
	return strings < maxStrings && (strings > 0 || len(addrs) < maxAddrs)
}

// percent is a score's weight. A full node takes new sessions, too: if all are full, the players of running streams must
// still get their files.
func percent(score *int) string {
	if score == nil {
		return "100%"
	}
	return fmt.Sprintf("%d%%", weight(*score))
}
