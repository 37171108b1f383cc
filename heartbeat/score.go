// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"cmp"
	"math"
	"strconv"
	"strings"
)

// defaultLimit is AMS's own for CPU and memory.
const defaultLimit = 75

// limits are the loads at which AMS refuses another stream, in percent of all processors and of the memory; 0 is 75.
// Releases before 2.8 have no memory limit in percent, and before 2.3.1 a CPU limit of 85 %: their score is a little too
// high.
type limits struct{ cpu, memory int }

// readLimits reads the limits from red5.properties by get. The server reads the file when it starts, and does not start
// with an invalid number.
func readLimits(get func(key string) (value string, ok bool)) limits {
	percent := func(key string) int {
		v, _ := get(key)
		n, err := strconv.Atoi(strings.TrimSpace(v))
		if err != nil {
			return defaultLimit
		}
		return min(max(n, 10), 100) // as the server does
	}
	return limits{cpu: percent("server.cpu_limit"), memory: percent("server.memory_limit_percentage")}
}

// score is the load of the node in percent of its capacity for streams: 0 is idle, 100 is a limit of AMS or of a device. It
// is the highest of the CPU and the memory against AMS's limits (60 % busy of a limit of 75 % is 80), and of each GPU's
// utilisation, encoder, decoder and memory as they are: AMS has no limit for them. Disk and network do not limit AMS.
// A reader of the percentages alone does not know each node's limits. Unknown values are left out; nil if all are unknown.
func score(s *Sample, l limits) *int {
	var highest *float64
	add := func(p *float64, limit int) {
		if p == nil || math.IsNaN(*p) {
			return
		}
		if v := *p / float64(limit) * 100; highest == nil || v > *highest {
			highest = &v
		}
	}
	add(s.cpu, cmp.Or(l.cpu, defaultLimit))
	if s.memory != nil {
		add(s.memory.percent(), cmp.Or(l.memory, defaultLimit))
	}
	if s.GPUs.State == GPUReady {
		for _, d := range s.GPUs.Devices {
			for _, p := range []*float64{d.Util, d.Enc, d.Dec, d.memory()} {
				add(p, 100)
			}
		}
	}
	return whole(highest)
}
