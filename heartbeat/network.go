// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/shirou/gopsutil/v4/net"
)

// networkMeter measures the traffic with other machines between two samples. Only cards count, because traffic of veths,
// bridges, VLANs and tunnels also passes a card. Without cards, as in a container, all but the loopback count.
type networkMeter struct {
	at   time.Time
	last map[string]net.IOCountersStat
}

var (
	errNoInterface = errors.New("no interface to other machines")
	errReset       = errors.New("the counters of an interface started again")
	errNoTime      = errors.New("no time has passed since the look before")
)

// read returns bytes per second. A new interface counts from the next sample on.
func (m *networkMeter) read(ctx context.Context, sys string, clock func() time.Time) (rx, tx *int64, err error) {
	all, err := net.IOCountersWithContext(ctx, true)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the interfaces: %w", err)
	}
	now, cards := map[string]net.IOCountersStat{}, map[string]net.IOCountersStat{}
	for _, c := range all {
		if c.Name != "lo" {
			now[c.Name] = c
		}
		if isCard(filepath.Join(sys, "class/net"), c.Name) {
			cards[c.Name] = c
		}
	}
	if len(cards) > 0 {
		now = cards
	}
	last, elapsed := m.last, clock().Sub(m.at).Seconds()
	m.last, m.at = now, clock()
	switch {
	case len(now) == 0:
		return nil, nil, errNoInterface
	case last == nil:
		return nil, nil, errFirst
	case elapsed <= 0:
		return nil, nil, errNoTime
	}
	var in, out uint64
	known := false
	for name, c := range now {
		was, ok := last[name]
		if !ok {
			continue
		}
		if c.BytesRecv < was.BytesRecv || c.BytesSent < was.BytesSent {
			return nil, nil, fmt.Errorf("%s: %w", name, errReset)
		}
		in, out, known = in+c.BytesRecv-was.BytesRecv, out+c.BytesSent-was.BytesSent, true
	}
	if !known {
		return nil, nil, errFirst
	}
	perSecond := func(n uint64) *int64 {
		rate := int64(math.Round(min(float64(n)/elapsed, 1<<62)))
		return &rate
	}
	return perSecond(in), perSecond(out), nil
}

// isCard reports whether an interface has a device and is not part of another card, like the SR-IOV function behind
// Azure's netvsc.
func isCard(dir, name string) bool {
	master, err := os.Readlink(filepath.Join(dir, name, "master"))
	return exists(filepath.Join(dir, name, "device")) && (err != nil || !exists(filepath.Join(dir, filepath.Base(master), "device")))
}
