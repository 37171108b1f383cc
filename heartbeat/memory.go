// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/shirou/gopsutil/v4/mem"
)

// readMemory measures as AMS's own limit does: total less MemAvailable. The total is in bytes.
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

// AMS and the kernel use the limits of its control group: the machine's figures would be too low.
var (
	errMemoryLimit = errors.New("the server's control group has a memory limit (memory.max), of which the use is not read")
	errCPULimit    = errors.New("the server's control group has a CPU limit (cpu.max), of which the use is not read")
)

// groupLimits are the lowest of the server's control group and its parents.
type groupLimits struct {
	memory uint64 // bytes; 0 = none
	cpu    bool
}

// readGroupLimits includes the root, which is a container's own group.
func (s *Sampler) readGroupLimits(pid int) (l groupLimits, err error) {
	var lines []byte
	if pid > 0 {
		if lines, err = os.ReadFile(filepath.Join(s.proc, strconv.Itoa(pid), "cgroup")); err != nil {
			return l, err
		}
	}
	root := filepath.Join(s.sys, "fs/cgroup")
	for line := range strings.Lines("0::/\n" + string(lines)) {
		// Number, controllers and path, which climbs (/../x) for a process outside the namespace.
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		for group := path.Clean("/" + parts[len(parts)-1]); ; group = path.Dir(group) {
			for _, file := range []string{group + "/memory.max", "memory" + group + "/memory.limit_in_bytes"} {
				if n := limitOf(filepath.Join(root, file)); n > 0 && (l.memory == 0 || n < l.memory) {
					l.memory = n
				}
			}
			for _, file := range []string{group + "/cpu.max", "cpu" + group + "/cpu.cfs_quota_us"} {
				l.cpu = l.cpu || limitOf(filepath.Join(root, file)) > 0
			}
			if group == "/" {
				break
			}
		}
	}
	return l, nil
}

// limitOf returns 0 for "max" and -1.
func limitOf(name string) uint64 {
	b, err := os.ReadFile(name)
	fields := bytes.Fields(b)
	if err != nil || len(fields) == 0 {
		return 0
	}
	n, err := strconv.ParseUint(string(fields[0]), 10, 64)
	if err != nil {
		return 0
	}
	return n
}
