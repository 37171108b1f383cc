// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/shirou/gopsutil/v4/cpu"
	"github.com/shirou/gopsutil/v4/mem"
	"github.com/shirou/gopsutil/v4/net"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
)

// cpuMeter measures the cores between two samples. Iowait is idle, as in Java's measure, which AMS compares with its limit.
// Steal is busy: work waited for the core. User time includes guest time.
type cpuMeter struct{ last *cpu.TimesStat }

func (m *cpuMeter) read(ctx context.Context) (*int, error) {
	times, err := cpu.TimesWithContext(ctx, false)
	if err == nil && len(times) == 0 {
		err = errors.New("/proc/stat has no line of all processors") // the file may be missing
	}
	if err != nil {
		return nil, fmt.Errorf("reading the processors: %w", err)
	}
	last := m.last
	m.last = &times[0]
	if last == nil {
		return nil, errFirst
	}
	work := func(t *cpu.TimesStat) float64 { return t.User + t.Nice + t.System + t.Irq + t.Softirq }
	// Steal and iowait may decrease a little.
	busy := work(m.last) - work(last) + max(m.last.Steal-last.Steal, 0)
	total := busy + max(m.last.Idle-last.Idle, 0) + max(m.last.Iowait-last.Iowait, 0)
	if work(m.last) < work(last) || total <= 0 {
		return nil, errors.New("the counters of the processors did not go on since the look before")
	}
	return percent(busy, total), nil
}

// readMemory measures as AMS does: total less MemAvailable. The total is in bytes.
func readMemory(ctx context.Context) (used *int, total uint64, err error) {
	vm, err := mem.VirtualMemoryWithContext(ctx)
	if err != nil {
		return nil, 0, fmt.Errorf("reading the memory: %w", err)
	}
	// gopsutil returns 0 for a missing line, and free and cached memory without MemAvailable.
	if vm.Total == 0 || vm.Available > vm.Total || vm.Available == vm.Free && vm.Cached == 0 {
		return nil, 0, errors.New("reading the memory: /proc/meminfo has no MemTotal or MemAvailable, or they contradict")
	}
	return percent(float64(vm.Total-vm.Available), float64(vm.Total)), vm.Total, nil
}

const noLimit = math.MaxUint64

// readGroupLimits returns the lowest limits of the server's control group and its parents. The root is a container's own
// group.
func (s *Sampler) readGroupLimits(pid int) (memory, cpu uint64, err error) {
	var lines []byte
	if pid > 0 {
		if lines, err = os.ReadFile(filepath.Join(s.proc, strconv.Itoa(pid), "cgroup")); err != nil {
			return 0, 0, err
		}
	}
	root := filepath.Join(s.sys, "fs/cgroup")
	memory, cpu = noLimit, noLimit
	for line := range strings.Lines("0::/\n" + string(lines)) {
		// Number, controllers and path, which climbs (/../x) for a process outside the namespace.
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		for group := path.Clean("/" + parts[len(parts)-1]); ; group = path.Dir(group) {
			memory = min(memory, limitOf(root, group, "memory.max"), limitOf(root, "memory", group, "memory.limit_in_bytes"))
			cpu = min(cpu, limitOf(root, group, "cpu.max"), limitOf(root, "cpu", group, "cpu.cfs_quota_us"))
			if group == "/" {
				break
			}
		}
	}
	return memory, cpu, nil
}

// limitOf returns noLimit for "max" and -1.
func limitOf(elem ...string) uint64 {
	b, _ := os.ReadFile(filepath.Join(elem...))
	n, err := strconv.ParseUint(strings.Fields(string(b) + " max")[0], 10, 64)
	if err != nil || n == 0 {
		return noLimit
	}
	return n
}

// readDisk measures as df: the used part of what non-root users can have, rounded up.
func readDisk(path string) (used *int, err error) {
	var st syscall.Statfs_t
	if err = syscall.Statfs(path, &st); err == nil {
		used, err = usedPercent(st)
	}
	if err != nil {
		err = fmt.Errorf("measuring the volume of %s: %w", path, err)
	}
	return used, err
}

func usedPercent(st syscall.Statfs_t) (*int, error) {
	if st.Bfree > st.Blocks || st.Blocks-st.Bfree+st.Bavail == 0 {
		return nil, errors.New("this file system has no size")
	}
	used := st.Blocks - st.Bfree
	return percent(math.Ceil(float64(used)/float64(used+st.Bavail)*100), 100), nil
}

// networkMeter measures the traffic with other machines. Only cards count: that of veths, bridges, VLANs and tunnels
// passes a card, too. Without cards, as in a container, all but the loopback count.
type networkMeter struct {
	at   time.Time
	last map[string]net.IOCountersStat
}

// read returns bytes per second. A new interface counts from the next sample.
func (m *networkMeter) read(ctx context.Context, sys string) (rx, tx *int64, err error) {
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
	last, elapsed := m.last, time.Since(m.at).Seconds()
	m.last, m.at = now, time.Now()
	switch {
	case len(now) == 0:
		return nil, nil, errors.New("no interface to other machines")
	case last == nil:
		return nil, nil, errFirst
	}
	var in, out uint64
	known := false
	for name, c := range now {
		was, ok := last[name]
		if !ok {
			continue
		}
		if c.BytesRecv < was.BytesRecv || c.BytesSent < was.BytesSent {
			return nil, nil, fmt.Errorf("%s: the counters of an interface started again", name)
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

// isCard excludes interfaces without a device, and parts of another card, like Azure's SR-IOV function behind netvsc.
func isCard(dir, name string) bool {
	master, err := os.Readlink(filepath.Join(dir, name, "master"))
	return exists(filepath.Join(dir, name, "device")) && (err != nil || !exists(filepath.Join(dir, filepath.Base(master), "device")))
}

// defaultLimit is AMS's own for CPU and memory.
const defaultLimit = 75

// score is the highest load in percent: CPU and memory against AMS's limits, and the GPUs' values, which have no limit.
// Disk and network do not limit AMS. nil if all are unknown.
func score(load cluster.Load, l ams.Limits) (highest *int) {
	add := func(p *int, limit int) {
		if p == nil {
			return
		}
		if v := percent(float64(*p), float64(limit)); highest == nil || *v > *highest {
			highest = v
		}
	}
	add(load.CPU, cmp.Or(l.CPU, defaultLimit))
	add(load.Mem, cmp.Or(l.Memory, defaultLimit))
	for _, d := range load.GPUs {
		for _, p := range []*int{d.Util, d.Enc, d.Dec, d.Mem} {
			add(p, 100)
		}
	}
	return highest
}
