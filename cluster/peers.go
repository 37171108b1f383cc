// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// Dialable parses the address of another node, of which anyone who writes to MongoDB says what it is: for a
// connection it is one machine's address, and no name that a resolver is asked for.
func Dialable(address string) (_ netip.Addr, ok bool) {
	addr, err := netip.ParseAddr(address)
	return addr, err == nil && addr.Zone() == "" && !addr.IsUnspecified() && !addr.IsMulticast()
}

// Peers tells which other machines of the cluster still serve. It remembers what
// it saw, as an [Observer] does. The zero value is ready.
type Peers struct {
	mu       sync.Mutex
	observer Observer
	// gone has, by the row, the first look since which a machine that is gone has written nothing.
	gone map[string]time.Time
}

// Serving looks at the cluster and returns those of the machines, named by id or
// by [Node.Name] in any case (a cloud's signals need not keep to one), whose agent
// may still have sessions to wait for: it has beaten, has not said that it left, and
// is not gone by both witnesses. A machine that no row names runs no agent, and
// nobody waits for it. One look finds nobody gone: after a failover all rows are old.
func (p *Peers) Serving(ctx context.Context, c *Client, machines []string) ([]string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	look, err := c.Look(ctx)
	if err != nil {
		p.observer.Lost(c.now())
		clear(p.gone)
		return nil, err
	}
	return serving(p.judge(look), machines), nil
}

// judge calls a machine gone only after it had as long to write as a server may be silent.
func (p *Peers) judge(l Look) []Member {
	members := p.observer.Judge(l, l.At)
	gone := map[string]time.Time{}
	for i := range members {
		m := &members[i]
		if m.Node == nil || m.Verdict != VerdictGone {
			continue
		}
		first, seen := p.gone[m.Node.ID]
		since := l.At.Sub(first)
		if !seen || m.Agent.Known && m.Agent.Age <= since || m.Server.Known && m.Server.Age <= since {
			first, since = l.At, 0
		}
		gone[m.Node.ID] = first
		if since < amsFresh {
			m.Verdict = VerdictAgentStale
		}
	}
	p.gone = gone
	return members
}

func serving(members []Member, machines []string) []string {
	var out []string
	for _, m := range members {
		n := m.Node
		if n == nil || !n.Heartbeats() {
			continue
		}
		i := slices.IndexFunc(machines, func(s string) bool { return s != "" && (s == n.ID || strings.EqualFold(s, n.Name)) })
		if i < 0 || n.State == StateLeft || n.State == StateFailed || m.Verdict == VerdictGone {
			continue
		}
		if !slices.Contains(out, machines[i]) {
			out = append(out, machines[i])
		}
	}
	slices.Sort(out)
	return out
}
