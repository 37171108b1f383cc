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

// limits are the loads in percent at which AMS refuses another stream; 0 is 75. Before 2.8 there is no memory limit in
// percent, before 2.3.1 the CPU limit is 85 %: the score is a little too high.
type limits struct{ cpu, memory int }

// readLimits reads red5.properties by get. The server does not start with an invalid number.
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

// score is the highest load in percent: CPU and memory against AMS's limits, and each GPU's values, for which AMS has no
// limit. Disk and network do not limit AMS. nil if all values are unknown.
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
