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

// Limits is where AMS refuses to take another stream, in percent of all processors and of the memory; 0 is 75. Releases before
// 2.8 have no limit by a share of the memory, and before 2.3.1 85 % of the processors: their score is a little too high.
type Limits struct{ CPU, Memory int }

// ReadLimits takes the limits from red5.properties, by get. The server reads the file when it starts, and does not start with
// what is no number.
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

// score is how near the node is to taking no more streams, in percent: 0 is
// idle, 100 is where AMS refuses, or where a device has nothing left. It is the
// highest of
//
//   - the CPU, against AMS's CPU limit: 60 % busy of a limit of 75 % is 80;
//   - the memory, against AMS's memory limit;
//   - each GPU's utilisation, encoder, decoder and memory as they are. AMS knows
//     no limit of them and goes on until they are full.
//
// It is not the plain maximum of the percentages in the heartbeat, because its reader
// does not know the limits of each node: of two nodes at 70 %, one that
// refuses at 75 % is nearly full, and one that refuses at 100 % is not. A load
// balancer can take 100 − score as a weight.
//
// Disk and network are not among what AMS is limited by. What is not known is
// left out; nil if nothing is known.
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
