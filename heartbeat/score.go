// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"cmp"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
)

// defaultLimit is AMS's own for CPU and memory.
const defaultLimit = 75

// score is the highest load in percent: CPU and memory against AMS's limits, and each GPU's values, for which AMS has no
// limit. Disk and network do not limit AMS. nil if all values are unknown.
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
