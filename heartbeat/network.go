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

// traffic is the sum of the counters of some interfaces, in bytes.
type traffic struct {
	at     time.Time
	number int
	rx, tx uint64
}

func (t *traffic) add(c net.IOCountersStat) {
	t.number, t.rx, t.tx = t.number+1, t.rx+c.BytesRecv, t.tx+c.BytesSent
}

// networkMeter measures the traffic with other machines between two samples. Only cards count, because traffic of veths,
// bridges, VLANs and tunnels also passes a card. Without cards, as in a container, all but the loopback count.
type networkMeter struct{ last traffic }

// read returns bytes per second, unknown in the sample in which an interface appears or vanishes.
func (m *networkMeter) read(ctx context.Context, sys string, clock func() time.Time) (rx, tx *int64, err error) {
	all, err := net.IOCountersWithContext(ctx, true)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the interfaces: %w", err)
	}
	last, cards, others := m.last, traffic{at: clock()}, traffic{at: clock()}
	for _, c := range all {
		if isCard(filepath.Join(sys, "class/net"), c.Name) {
			cards.add(c)
		} else if c.Name != "lo" {
			others.add(c)
		}
	}
	now := cards
	if cards.number == 0 {
		now = others
	}
	m.last = now
	elapsed := now.at.Sub(last.at).Seconds()
	switch {
	case now.number == 0:
		return nil, nil, errors.New("no interface to other machines")
	case now.number != last.number:
		return nil, nil, errFirst
	case elapsed <= 0:
		return nil, nil, errors.New("no time has passed since the look before")
	case now.rx < last.rx || now.tx < last.tx:
		return nil, nil, errors.New("the counters of an interface started again")
	}
	perSecond := func(n uint64) *int64 {
		rate := int64(math.Round(min(float64(n)/elapsed, 1<<62)))
		return &rate
	}
	return perSecond(now.rx - last.rx), perSecond(now.tx - last.tx), nil
}

// isCard reports whether an interface has a device and is not part of another card, like the SR-IOV function behind
// Azure's netvsc.
func isCard(dir, name string) bool {
	master, err := os.Readlink(filepath.Join(dir, name, "master"))
	return exists(filepath.Join(dir, name, "device")) && (err != nil || !exists(filepath.Join(dir, filepath.Base(master), "device")))
}
