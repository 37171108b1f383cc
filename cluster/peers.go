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

// Dialable accepts only an IP address of one machine: any client of MongoDB may have written it.
func Dialable(address string) (_ netip.Addr, ok bool) {
	addr, err := netip.ParseAddr(address)
	return addr, err == nil && addr.Zone() == "" && !addr.IsUnspecified() && !addr.IsMulticast()
}

// Peers finds the other machines that still serve. It keeps state between calls.
type Peers struct {
	mu       sync.Mutex
	observer Observer
}

// Serving returns those machines (ids or [Node.Name]s) that may still have sessions. A single look finds none gone: after a
// failover all records are old.
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

// goneForLong requires AMS's own limit of silence.
func (m Member) goneForLong() bool {
	return m.Health == Gone && m.Agent.silent >= amsFresh && (!m.Server.Known || m.Server.silent >= amsFresh)
}
