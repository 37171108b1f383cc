// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/shirou/gopsutil/v4/cpu"
)

// cpuMeter measures how busy the cores were between two looks.
//
// Busy is user, nice, system, both kinds of interrupts, and steal. Idle is idle
// and iowait, in which a core could have run something else; Java's own
// measure, which AMS compares with its limit, counts so too.
//
// Stolen time is busy because something wanted to run in it: of a core that
// works for 20 % and is kept waiting by the host for 70 %, a tenth is left to
// give. Java leaves it out of both sides, so that we are never below its figure
// and are above it where the host has nothing left, as on a burstable machine
// whose credits are spent.
//
// Guest time is not added: the kernel has counted it as user time already.
type cpuMeter struct {
	at   time.Time
	last []coreTimes
}

// coreTimes are the counters of one core, in seconds.
type coreTimes struct {
	name                      string
	work, steal, idle, iowait float64
}

// shortLook is a time in which the counters, of a hundredth of a second each,
// need not go on.
const shortLook = 20 * time.Millisecond

var errNoProgress = errors.New("no core has a counter that went on since the look before")

// read looks at the cores and returns the busy share of all, in percent. Each is compared with itself: one that came since
// or was renamed is left out until the next look, and so is one whose counters
// went back, as after a move of the machine to another host. One that is
// offline now has no say.
func (m *cpuMeter) read(ctx context.Context, proc string, clock func() time.Time) (*float64, error) {
	cores, err := readCores(ctx, proc)
	if err != nil {
		return nil, err // the next look is compared with the one before this
	}
	at := clock()
	last, since := m.last, at.Sub(m.at)
	m.last, m.at = cores, at
	if last == nil {
		return nil, ErrFirst
	}
	var busy, total float64
	for _, c := range cores {
		i := slices.IndexFunc(last, func(before coreTimes) bool { return before.name == c.name })
		if i < 0 {
			continue
		}
		b, t, ok := c.since(last[i], since)
		if !ok {
			continue
		}
		busy, total = busy+b, total+t
	}
	switch {
	case total <= 0 && since < shortLook:
		return nil, errNoTime
	case total <= 0:
		return nil, errNoProgress
	}
	all := busy / total * 100
	return &all, nil
}

// since is the time in which the core was busy, and all of its time, between
// two looks.
func (c coreTimes) since(before coreTimes, elapsed time.Duration) (busy, total float64, ok bool) {
	work := c.work - before.work
	// Two counters are known to go back a little where nothing happened: iowait
	// on a kernel without ticks, and steal on some hosts.
	steal, iowait := max(c.steal-before.steal, 0), max(c.iowait-before.iowait, 0)
	idle := max(c.idle-before.idle, 0) + iowait
	busy, total = work+steal, work+steal+idle
	switch {
	case work < 0 || total <= 0:
		return 0, 0, false
	case elapsed > 0 && total > 4*elapsed.Seconds()+60:
		// A core has one second in each second. Counters that jumped (a known
		// fault of steal on Xen, a machine that was resumed) tell nothing.
		return 0, 0, false
	}
	return busy, total, true
}

// readCores reads the counters of the cores that are online. The line of their
// sum is not used: it keeps the time of cores that went offline.
func readCores(ctx context.Context, proc string) ([]coreTimes, error) {
	times, err := cpu.TimesWithContext(ctx, true)
	if err == nil && len(times) == 0 {
		// gopsutil says the same of a file that is not there and of one without
		// cores.
		name := filepath.Join(proc, "stat")
		if _, err = os.Stat(name); err == nil {
			err = fmt.Errorf("%s: no line of a core that can be read", name)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("reading the cores: %w", err)
	}
	cores := make([]coreTimes, 0, len(times))
	for _, t := range times {
		cores = append(cores, coreTimes{
			name:   t.CPU,
			work:   t.User + t.Nice + t.System + t.Irq + t.Softirq,
			steal:  t.Steal,
			idle:   t.Idle,
			iowait: t.Iowait,
		})
	}
	return cores, nil
}
