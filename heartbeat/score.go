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

// Limits are the loads at which AMS refuses another stream, in percent of all processors and of the memory; 0 is 75.
// Releases before 2.8 have no memory limit in percent, and before 2.3.1 a CPU limit of 85 %: their score is a little too
// high.
type Limits struct{ CPU, Memory int }

// ReadLimits reads the limits from red5.properties by get. The server reads the file when it starts, and does not start
// with an invalid number.
func ReadLimits(get func(key string) (value string, ok bool)) Limits {
	percent := func(key string) int {
		v, _ := get(key)
		n, err := strconv.Atoi(strings.TrimSpace(v))
		if err != nil {
			return defaultLimit
		}
		return min(max(n, 10), 100) // as the server does
	}
	return Limits{CPU: percent("server.cpu_limit"), Memory: percent("server.memory_limit_percentage")}
}

// score is the load of the node in percent of its capacity for streams: 0 is idle, 100 is a limit of AMS or of a device.
// It is the highest of
//
//   - the CPU, against AMS's CPU limit: 60 % busy of a limit of 75 % is 80;
//   - the memory, against AMS's memory limit;
//   - each GPU's utilisation, encoder, decoder and memory as they are. AMS has
//     no limit for them and continues until they are full.
//
// It is not the maximum of the percentages in the heartbeat, because its reader does not know each node's limits: of two
// nodes at 70 %, one that refuses at 75 % is nearly full, and one that refuses at 100 % is not. A load balancer can use
// 100 − score as a weight.
//
// Disk and network do not limit AMS. Unknown values are left out; nil if all are unknown.
func score(s *Sample, l Limits) *int {
	var highest *float64
	add := func(p *float64, limit int) {
		if p == nil || math.IsNaN(*p) {
			return
		}
		if v := *p / float64(limit) * 100; highest == nil || v > *highest {
			highest = &v
		}
	}
	add(s.CPU, cmp.Or(l.CPU, defaultLimit))
	if s.MemTotal != nil && s.MemUsed != nil {
		add(share(*s.MemUsed, *s.MemTotal), cmp.Or(l.Memory, defaultLimit))
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
