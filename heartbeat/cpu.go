// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"context"
	"errors"
	"fmt"

	"github.com/shirou/gopsutil/v4/cpu"
)

// cpuMeter measures the cores between two samples. Iowait is idle, as in Java's own measure, which AMS compares with its
// limit. Steal is busy because work waited for the core. The kernel includes guest time in user time.
type cpuMeter struct{ last *cpu.TimesStat }

var errNoProgress = errors.New("the counters of the processors did not go on since the look before")

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
		return nil, errNoProgress
	}
	return percent(busy, total), nil
}
