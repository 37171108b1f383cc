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
	"strings"
	"time"

	"github.com/shirou/gopsutil/v4/net"
)

// networkMeter measures what came from other machines and went to them between
// two looks.
//
// A byte that goes through a container's veth, a bridge, a VLAN, a bond or a
// tunnel goes through a network card as well, and would be counted twice or
// three times if all interfaces were summed up. So only cards count: interfaces
// with a device in sysfs, which every cloud's virtual cards have. Of a card that
// is a part of another card (the SR-IOV function behind Azure's netvsc, which
// sums up both itself) only the upper one counts.
//
// In a container there is no card to be seen. There everything counts that is
// not the loopback and has no other interface below it.
type networkMeter struct {
	at      time.Time
	last    map[string]netBytes
	counted map[string]bool // by name, of those looked up in sysfs
	sorted  time.Time       // when counted was made
}

type netBytes struct{ rx, tx uint64 }

// sortAgain is how long a name is taken to be the same kind of interface.
const sortAgain = time.Minute

var (
	errNoInterface = errors.New("no interface to other machines")
	errReset       = errors.New("the counters of an interface started again")
)

// read looks at the interfaces and returns bytes per second. An interface that
// came since the look before counts from the next one on. Where a counter
// started again the sum would be too low by we do not know what, and is missing.
func (m *networkMeter) read(ctx context.Context, sys string, clock func() time.Time) (rx, tx *int64, err error) {
	all, err := net.IOCountersWithContext(ctx, true)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the interfaces: %w", err)
	}
	at := clock()
	m.sort(all, sys, at)
	now := make(map[string]netBytes, len(all))
	for _, c := range all {
		if m.counted[c.Name] {
			now[c.Name] = netBytes{c.BytesRecv, c.BytesSent}
		}
	}
	last, elapsed := m.last, at.Sub(m.at).Seconds()
	m.last, m.at = now, at
	switch {
	case len(now) == 0:
		return nil, nil, errNoInterface
	case last == nil:
		return nil, nil, ErrFirst
	case elapsed <= 0:
		return nil, nil, errNoTime
	}
	var in, out uint64
	known := false
	for name, c := range now {
		before, ok := last[name]
		if !ok {
			continue
		}
		r, ok1 := moved(before.rx, c.rx)
		t, ok2 := moved(before.tx, c.tx)
		if !ok1 || !ok2 {
			return nil, nil, fmt.Errorf("%s: %w", name, errReset)
		}
		in, out, known = in+r, out+t, true
	}
	if !known {
		return nil, nil, ErrFirst
	}
	return perSecond(in, elapsed), perSecond(out, elapsed), nil
}

// moved is by how much a counter went on. One that was below 4 GiB and went back
// may be of a driver that counts in 32 bits: then it went once round, provided
// that it went less than half of the way; else it started again.
func moved(before, now uint64) (uint64, bool) {
	if now >= before {
		return now - before, true
	}
	if before > math.MaxUint32 {
		return 0, false
	}
	round := now + (1 << 32) - before
	return round, round < 1<<31
}

func perSecond(n uint64, elapsed float64) *int64 {
	rate := math.Round(float64(n) / elapsed)
	if rate >= math.MaxInt64 {
		return nil
	}
	v := int64(rate)
	return &v
}

// sort finds out which interfaces count. sysfs is asked about a name when it is
// new, and again now and then, since a name may be given to another interface.
func (m *networkMeter) sort(all []net.IOCountersStat, sys string, at time.Time) {
	stale := m.counted == nil || at.Sub(m.sorted) >= sortAgain || len(all) != len(m.counted)
	for i := 0; i < len(all) && !stale; i++ {
		_, known := m.counted[all[i].Name]
		stale = !known
	}
	if !stale {
		return
	}
	m.counted, m.sorted = make(map[string]bool, len(all)), at
	dir := filepath.Join(sys, "class/net")
	cards := false
	for _, c := range all {
		card := isCard(dir, c.Name)
		m.counted[c.Name] = card
		cards = cards || card
	}
	if cards {
		return
	}
	for _, c := range all {
		m.counted[c.Name] = isOutermost(dir, c.Name)
	}
}

// isCard says whether an interface is a network card, and no part of one.
func isCard(dir, name string) bool {
	if strings.ContainsRune(name, '/') || !exists(filepath.Join(dir, name, "device")) {
		return false
	}
	master, err := os.Readlink(filepath.Join(dir, name, "master"))
	return err != nil || !exists(filepath.Join(dir, filepath.Base(master), "device"))
}

// isOutermost says whether an interface, on a machine that shows no cards,
// leads out of it: it is not the loopback, it is not stacked on another one,
// and it is none of the kinds that exist without a peer. Its name decides where
// sysfs is not there.
func isOutermost(dir, name string) bool {
	if name == "lo" || strings.ContainsAny(name, "/.") {
		return false
	}
	for _, kind := range []string{
		"docker", "br-", "virbr", "veth", "cni", "cali", "flannel", "vxlan", "bond", "team", "tun", "tap", "wg", "ifb", "dummy",
		"sit", "ip6tnl", "tunl", "gre", "erspan", "ip_vti", "ip6_vti", "ip6gre", "teql",
	} {
		if strings.HasPrefix(name, kind) {
			return false
		}
	}
	entries, err := os.ReadDir(filepath.Join(dir, name))
	if err != nil {
		return true
	}
	for _, e := range entries {
		switch n := e.Name(); {
		case strings.HasPrefix(n, "lower_"), n == "bridge", n == "bonding", n == "tun_flags":
			return false
		}
	}
	return true
}
