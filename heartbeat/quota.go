// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"bytes"
	"path/filepath"
	"strconv"
	"time"
)

// quotaEvery is how often the quota is read again: it can be set at any time, and
// most servers have none.
const quotaEvery = time.Minute

// quotaMeter measures which share of its CPU quota (docker --cpus, CPUQuota=) the
// server's control group used. Java, and so AMS's own limit, goes by that share
// where there is a quota, however idle the machine is.
type quotaMeter struct {
	pid     int
	started uint64
	checked time.Time // when the quota was read

	quota uint64 // CPU time per second, in the unit of usage; 0 is none
	usage string // the file that has the group's CPU time
	v1    bool   // its unit is ns, else µs

	at   time.Time
	used uint64 // CPU time until then; 0 is not known
}

// read returns the share in percent since the look before, 0 where there is no
// quota or nothing to compare with. pid is 0 where no server runs.
func (m *quotaMeter) read(proc, sys string, pid int, started uint64, now time.Time) float64 {
	same := m.pid == pid && m.started == started
	if !same || !within(quotaEvery, m.checked, now) {
		m.pid, m.started, m.checked = pid, started, now
		usage := m.usage
		if m.find(proc, sys); !same || m.usage != usage {
			m.used = 0
		}
	}
	if m.quota == 0 {
		return 0
	}
	used := readKey(m.usage, "usage_usec")
	if m.v1 {
		used, _ = readNumber(m.usage)
	}
	before, since := m.used, now.Sub(m.at)
	m.at, m.used = now, used
	if before == 0 || used < before || since < shortLook {
		return 0
	}
	// Above 100 for a moment: what is left of one period may be used in the next.
	return min(float64(used-before)/(float64(m.quota)*since.Seconds())*100, 100)
}

// find looks for the lowest quota of the process. Where its groups cannot be read,
// none is known.
func (m *quotaMeter) find(proc, sys string) {
	b, _ := readFile(filepath.Join(proc, strconv.Itoa(m.pid), "cgroup"))
	g := parseControlGroup(b, "cpu")
	root, usage := filepath.Join(sys, "fs/cgroup"), "cpu.stat"
	if m.v1 = g.version == 1; m.v1 {
		root, usage = filepath.Join(root, "cpu"), "cpuacct.usage"
	}
	var level string
	if m.quota, level = g.lowest(root, cpuQuota); m.v1 {
		m.quota *= 1000
		root += "acct" // a hierarchy of its own, or another name of the same one
	}
	m.usage = filepath.Join(root, level, usage)
}

// cpuQuota reads the quota of one level, in µs of CPU time per second; 0 is none.
func cpuQuota(folder string) uint64 {
	b, err := readFile(filepath.Join(folder, "cpu.max"))
	quota, period, _ := bytes.Cut(b, []byte(" "))
	if err != nil {
		quota, _ = readFile(filepath.Join(folder, "cpu.cfs_quota_us"))
		period, _ = readFile(filepath.Join(folder, "cpu.cfs_period_us"))
	}
	q, _ := number(quota) // "max" and -1 are no quota
	p, _ := number(period)
	if p == 0 || q > 1<<34 { // more than any machine has, and the sums must fit
		return 0
	}
	return q * 1e6 / p
}
