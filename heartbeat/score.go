// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"cmp"
	"strconv"
	"strings"

	"github.com/amsagent/amsagent/cluster"
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
func score(load cluster.Load, l limits) (highest *int) {
	add := func(p *int, limit int) {
		if p == nil {
			return
		}
		if v := percent(float64(*p), float64(limit)); highest == nil || *v > *highest {
			highest = v
		}
	}
	add(load.CPU, cmp.Or(l.cpu, defaultLimit))
	add(load.Mem, cmp.Or(l.memory, defaultLimit))
	for _, d := range load.GPUs {
		for _, p := range []*int{d.Util, d.Enc, d.Dec, d.Mem} {
			add(p, 100)
		}
	}
	return highest
}
