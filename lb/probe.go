// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lb

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// Both signals of a node come by MongoDB, so their silence is one piece of evidence. The second is the server's own port.

const (
	// refusals in a row, or silentFor without an answer, show that nothing serves at a port.
	refusals  = 3
	silentFor = 11 * time.Second // as cluster's limit for a node with the default interval
	// probeLimit bounds one connection attempt.
	probeLimit = 500 * time.Millisecond
)

// dial connects to a server's port once.
func dial(ctx context.Context, to netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", to.String())
	if err == nil {
		_ = conn.Close()
	}
	return err
}

// ports are what connection attempts found since the first late signal of a server.
type ports map[netip.AddrPort]port

type port struct {
	refused int       // in a row
	since   time.Time // of the first of the failed attempts in a row; zero: the last one succeeded
}

// isDead reports whether nothing serves there.
func (p port) isDead(now time.Time) bool {
	return p.refused >= refusals || !p.since.IsZero() && now.Sub(p.since) >= silentFor
}

// probe tries each port once, and forgets those that are not among them.
func (p ports) probe(ctx context.Context, to []netip.AddrPort, dial func(context.Context, netip.AddrPort) error, now time.Time) ports {
	next := ports{}
	for _, addr := range to {
		next[addr] = p[addr]
	}
	var mu sync.Mutex
	var work sync.WaitGroup
	for addr, was := range maps.Clone(next) {
		if was.isDead(now) {
			continue // a server that returns has new signals
		}
		work.Go(func() {
			err := dial(ctx, addr)
			is := port{}
			if err != nil {
				is.since = cmp.Or(was.since, now)
			}
			if errors.Is(err, syscall.ECONNREFUSED) {
				is.refused = was.refused + 1
			}
			mu.Lock()
			defer mu.Unlock()
			next[addr] = is
		})
	}
	work.Wait()
	return next
}
