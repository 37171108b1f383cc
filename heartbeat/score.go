// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"math"
	"strconv"
	"strings"

	"github.com/amsagent/amsagent/ams"
)

// What a release takes where its file says nothing.
const (
	defaultCPULimit    = 75
	oldCPULimit        = 85 // before 2.3.1
	defaultMemoryLimit = 75 // since 2.8
	defaultMinFree     = 10 << 20
)

// Limits is where AMS refuses to take another stream. The zero value is what a
// current release does unless it is told otherwise.
type Limits struct {
	// CPU is the busy share of all cores, in percent; 0 is 75.
	CPU int
	// Memory is the share of the memory in use, in percent. 0 is 75, unless
	// MinFree says how the release does it.
	Memory int
	// MinFree is the memory, in bytes, that must be available, for a release
	// before 2.8, which has no limit by share. Later ones do not look at it on
	// Linux, whatever their file says, so it counts only where Memory is 0.
	MinFree uint64
}

// ReadLimits takes the limits of a release from its red5.properties, by get.
// What is no number is not used by us; the server does not start with it. The
// server reads the file when it starts, so what it says now may not hold yet.
func ReadLimits(r ams.Release, get func(key string) (value string, ok bool)) Limits {
	number := func(key string, otherwise int) int {
		if v, ok := get(key); ok {
			if n, err := strconv.Atoi(strings.TrimSpace(v)); err == nil {
				return n
			}
		}
		return otherwise
	}
	// The server keeps a share between 10 and 100, whatever it is told.
	percent := func(key string, otherwise int) int { return min(max(number(key, otherwise), 10), 100) }
	since := func(numbers ...int) bool { return !r.Known() || r.AtLeast(numbers...) }

	var l Limits
	if since(2, 3, 1) {
		l.CPU = percent("server.cpu_limit", defaultCPULimit)
	} else {
		l.CPU = percent("server.cpu_limit", oldCPULimit)
	}
	if since(2, 8) {
		l.Memory = percent("server.memory_limit_percentage", defaultMemoryLimit)
		return l
	}
	// Megabytes. Without a limit there is still the end of the memory.
	mb := min(max(number("server.min_free_ram", defaultMinFree>>20), 0), 1<<30)
	l.MinFree = max(uint64(mb)<<20, 1)
	return l
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
// It is not the plain maximum of the percentages in the beat, because who reads
// it does not know the limits of each node: of two nodes at 70 %, one that
// refuses at 75 % is nearly full, and one that refuses at 100 % is not. A load
// balancer can take 100 − score as a weight.
//
// Disk and network are not among what AMS is limited by. What is not known is
// left out; nil if nothing is known.
func score(s *Sample, l Limits) *int {
	if l.CPU <= 0 {
		l.CPU = defaultCPULimit
	}
	if l.Memory <= 0 && l.MinFree == 0 {
		l.Memory = defaultMemoryLimit
	}
	var highest *float64
	add := func(p *float64, limit float64) {
		if p == nil || math.IsNaN(*p) || limit <= 0 {
			return
		}
		if v := *p / limit * 100; highest == nil || v > *highest {
			highest = &v
		}
	}
	add(s.CPU, float64(l.CPU))
	if s.MemTotal != nil && s.MemUsed != nil {
		limit := float64(l.Memory)
		if l.Memory <= 0 {
			// As a share of this memory; 0 or less where it is smaller than what
			// must be free, and AMS refuses always.
			limit = 100 * (1 - float64(l.MinFree)/float64(*s.MemTotal))
			if limit <= 0 {
				full := 100.0
				add(&full, 100)
			}
		}
		add(share(*s.MemUsed, *s.MemTotal), limit)
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
