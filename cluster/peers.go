// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
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
}

// Serving looks at the cluster and returns those of the machines, named by id or
// by [Node.Name] in any case (a cloud's signals need not keep to one), whose agent
// may still have sessions to wait for: it has sent heartbeats, has not said that it left, and
// is not gone. A machine that no record names runs no agent, and
// nobody waits for it. One look finds nobody gone: after a failover all records are old.
func (p *Peers) Serving(ctx context.Context, c *Client, machines []string) ([]string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	look, err := c.Look(ctx)
	if err != nil {
		p.observer.Failed()
		return nil, err
	}
	return p.serving(look, machines), nil
}

func (p *Peers) serving(l Look, machines []string) []string {
	p.observer.patient = true
	var out []string
	for _, m := range p.observer.Observe(l) {
		n := m.Node
		if n == nil || !n.Heartbeats() || n.State == StateLeft || n.State == StateFailed || m.goneForLong() {
			continue
		}
		i := slices.IndexFunc(machines, func(s string) bool { return s != "" && (s == n.ID || strings.EqualFold(s, n.Name)) })
		if i >= 0 && !slices.Contains(out, machines[i]) {
			out = append(out, machines[i])
		}
	}
	slices.Sort(out)
	return out
}

// goneForLong reports whether a machine is gone, and each of its signals was silent for as long as AMS may be.
func (m Member) goneForLong() bool {
	return m.Health == Gone && m.Agent.silent >= amsFresh && (!m.Server.Known || m.Server.silent >= amsFresh)
}
