// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
)

// List is what a [Feed] publishes. An empty one changes no load balancer: the registry may be the wrong one.
type List struct {
	// Servers is null before the first list, and empty if the cluster has no server.
	Servers []Server `json:"servers"`
	// Read is when MongoDB was last read; zero if the list comes from the state of an earlier run.
	Read time.Time `json:"read,omitzero"`
	// Held are the roles that keep servers although the cluster has lost them.
	Held []Held `json:"held,omitempty"`
	// Gone are addresses of machines that are gone by both signals, and at whose port nothing serves.
	Gone []netip.Addr `json:"gone,omitempty"`
	// Failed is why the last read of MongoDB failed, or "".
	Failed string `json:"error,omitempty"`
}

// Looker reads the cluster. *cluster.Client is one.
type Looker interface {
	Look(ctx context.Context) (cluster.Look, error)
}

// Store keeps the last good list of a filter over a restart. A missing one is nil, without an error.
type Store interface {
	Load() ([]byte, error)
	Save(b []byte) error
}

const (
	lookEvery = time.Second
	lookLimit = 10 * time.Second
)

// Feed reads the cluster once a second and keeps the list of servers. Its methods are safe for concurrent use.
type Feed struct {
	o        Options
	observer cluster.Observer
	ports    ports
	saved    []Server
	unsaved  bool // the list could not be stored, and that was logged

	mu      sync.Mutex
	list    List
	changed chan struct{} // closed at the next change
}

// Options are the settings of a [Feed].
type Options struct {
	Filter Filter
	Looker Looker
	Store  Store
	// Force accepts lists that [Guard] refuses.
	Force bool
	Log   *slog.Logger
	Now   func() time.Time
	// Dial connects to a server's port once; nil: by TCP.
	Dial func(context.Context, netip.AddrPort) error
}

// NewFeed returns a feed that begins with the stored list, if it can be read.
func NewFeed(o Options) *Feed {
	if o.Dial == nil {
		o.Dial = dial
	}
	f := &Feed{o: o, changed: make(chan struct{})}
	last, err := stored(o.Store)
	if err != nil {
		o.Log.Warn("the stored list cannot be read", "error", err)
	}
	f.list.Servers, f.saved = last, last
	return f
}

func stored(s Store) (last []Server, err error) {
	b, err := s.Load()
	if err != nil || b == nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &last); err != nil {
		return nil, err
	}
	return last, nil
}

// List returns the current list, and a channel that is closed when it changes.
func (f *Feed) List() (List, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.list, f.changed
}

// Run looks until ctx ends.
func (f *Feed) Run(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		_ = f.Look(ctx) // it is logged
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// Look reads the cluster once. After an error, the list stays.
func (f *Feed) Look(ctx context.Context) error {
	bound, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	look, err := f.o.Looker.Look(bound)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	was, _ := f.List()
	is := was
	if err != nil {
		f.observer.Failed()
		if is.Failed = err.Error(); was.Failed == "" {
			f.o.Log.Warn("MongoDB cannot be read", "servers", len(was.Servers), "error", err)
		}
		f.publish(is)
		return err
	}
	members := f.observer.Observe(look)
	now := f.o.Now()
	if f.ports = f.ports.probe(ctx, findLate(members, was.Servers), f.o.Dial, now); ctx.Err() != nil {
		return ctx.Err()
	}
	isDead := func(a netip.AddrPort) bool { return f.ports[a].isDead(now) }
	is = List{Read: look.At, Servers: Members(members, f.o.Filter, was.Servers, now), Gone: listGone(members, isDead)}
	if !f.o.Force {
		is.Servers, is.Held = Guard(was.Servers, is.Servers, func(s Server) Evidence {
			return evidence(members, f.o.Filter, s, isDead(netip.AddrPortFrom(s.Addr, uint16(s.Port))))
		})
	}
	f.log(was, is)
	f.publish(is)
	return f.save(is.Servers)
}

func (f *Feed) publish(is List) {
	f.mu.Lock()
	defer f.mu.Unlock()
	same := slices.Equal(f.list.Servers, is.Servers) && slices.Equal(f.list.Gone, is.Gone)
	f.list = is
	if !same {
		close(f.changed)
		f.changed = make(chan struct{})
	}
}

func (f *Feed) log(was, is List) {
	if was.Failed != "" {
		f.o.Log.Info("MongoDB can be read again")
	}
	if was.Servers == nil {
		f.o.Log.Info("first list of servers", "servers", len(is.Servers))
		return
	}
	before, after := index(was.Servers), index(is.Servers)
	for _, s := range is.Servers {
		if _, ok := before[s.key()]; !ok {
			f.o.Log.Info("server added", "node", s.ID, "role", s.Role, "address", s.Addr)
		}
	}
	for _, s := range was.Servers {
		if _, ok := after[s.key()]; !ok {
			f.o.Log.Info("server removed", "node", s.ID, "role", s.Role, "address", s.Addr)
		}
	}
	for _, h := range is.Held {
		if !slices.ContainsFunc(was.Held, func(w Held) bool { return w.Role == h.Role && slices.Equal(w.IDs, h.IDs) }) {
			f.o.Log.Warn("servers stay in the list", "role", h.Role, "nodes", h.IDs, "reason", h.Why)
		}
	}
	for _, w := range was.Held {
		if !slices.ContainsFunc(is.Held, func(h Held) bool { return h.Role == w.Role }) {
			f.o.Log.Info("the list follows the cluster again", "role", w.Role)
		}
	}
}

// save stores the list without its weights, which change with each look.
func (f *Feed) save(servers []Server) error {
	kept := slices.Clone(servers)
	for i := range kept {
		kept[i].Weight, kept[i].Full = 1, false
	}
	if slices.Equal(kept, f.saved) {
		return nil
	}
	b, err := json.Marshal(kept)
	if err == nil {
		err = f.o.Store.Save(b)
	}
	if err != nil {
		if !f.unsaved {
			f.o.Log.Warn("the list could not be stored", "error", err)
		}
		f.unsaved = true
		return fmt.Errorf("storing the list: %w", err)
	}
	f.saved, f.unsaved = kept, false
	return nil
}

// findLate returns the ports of servers without two fresh signals: of the list, and of machines that are gone.
func findLate(members []cluster.Member, list []Server) (to []netip.AddrPort) {
	fresh := map[string]bool{}
	for _, m := range members {
		switch {
		case m.Node == nil:
		case m.Health == cluster.Healthy, m.Health == cluster.NotServing:
			fresh[m.Node.ID] = true
		case m.Health == cluster.Gone && !m.Replaced:
			if addr, ok := addrPort(m); ok {
				to = append(to, addr)
			}
		}
	}
	for _, s := range list {
		if !fresh[s.ID] {
			to = append(to, netip.AddrPortFrom(s.Addr, uint16(s.Port)))
		}
	}
	return to
}

func addrPort(m cluster.Member) (netip.AddrPort, bool) {
	addr, ok := cluster.Dialable(m.Address())
	return netip.AddrPortFrom(addr.Unmap(), uint16(cmp.Or(m.Node.Port, ams.DefaultHTTPPort))), ok
}

// evidence judges a server that the cluster has lost. Its own record is trusted, another machine's silence about it is not.
func evidence(members []cluster.Member, f Filter, s Server, dead bool) Evidence {
	i := slices.IndexFunc(members, func(m cluster.Member) bool { return m.Node != nil && m.Node.ID == s.ID })
	own := false
	if i >= 0 {
		m := members[i]
		own = m.State() != cluster.StateActive || m.Node.Serving != nil && !m.Node.Serving.Up || m.Replaced ||
			!strings.EqualFold(m.Node.Role, s.Role) || !f.selects(m.Node.Role, m.Node.Group) || !cluster.SameAddress(m.Node.IP, s.Addr.String())
	}
	switch {
	case own && dead:
		return HasLeft
	case own:
		return Leaves
	case dead:
		return Dead
	}
	return Answers
}

// listGone omits addresses that another machine has by now, and servers without an agent, whose ports are unknown.
func listGone(members []cluster.Member, isDead func(netip.AddrPort) bool) (addrs []netip.Addr) {
	for _, m := range members {
		if m.Node == nil || m.Health != cluster.Gone || m.Replaced {
			continue
		}
		if addr, ok := addrPort(m); ok && isDead(addr) {
			addrs = append(addrs, addr.Addr())
		}
	}
	return addrs
}
