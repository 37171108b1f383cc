// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/shirou/gopsutil/v4/mem"
)

type memoryReading struct{ total, used uint64 } // bytes

// readMemory measures memory as AMS's own limit does: total less MemAvailable.
func readMemory(ctx context.Context, proc string) (memoryReading, error) {
	vm, err := mem.VirtualMemoryWithContext(ctx)
	if err != nil {
		return memoryReading{}, fmt.Errorf("reading the memory: %w", err)
	}
	// gopsutil returns 0 for a missing line.
	switch {
	case vm.Total == 0:
		return memoryReading{}, fmt.Errorf("reading the memory: %s has no MemTotal", filepath.Join(proc, "meminfo"))
	case vm.Available == vm.Free && vm.Cached == 0:
		// Before Linux 3.14 there is no MemAvailable, and gopsutil adds free and cached memory.
		return memoryReading{}, fmt.Errorf("reading the memory: %s ends before MemAvailable", filepath.Join(proc, "meminfo"))
	case vm.Available > vm.Total:
		return memoryReading{}, errors.New("reading the memory: more is available than there is")
	}
	return memoryReading{vm.Total, vm.Total - vm.Available}, nil
}

// AMS and the kernel use the limits of its control group: the machine's figures would be too low.
var (
	errMemoryLimit = errors.New("the server's control group has a memory limit (memory.max), of which the use is not read")
	errCPULimit    = errors.New("the server's control group has a CPU limit (cpu.max), of which the use is not read")
)

// groupLimits are those of the server's control group and its parents.
type groupLimits struct {
	memory uint64 // bytes; 0 = no limit
	cpu    bool
}

// readLimits reads the limits of the server's process. Without a process it reads those of the root, a container's own
// group. A process that has ended keeps its limits.
func (s *Sampler) readLimits(ctx context.Context) groupLimits {
	groups := "0::/\n1:memory,cpu:/\n"
	pid, err := s.opts.AMSPID(ctx)
	var b []byte
	if err == nil && pid > 0 {
		b, err = readFile(filepath.Join(s.proc, strconv.Itoa(pid), "cgroup"))
	}
	if err != nil || pid <= 0 && !s.limits.at.IsZero() {
		return s.limits.value // only this goroutine writes it
	}
	var l groupLimits
	root := filepath.Join(s.sys, "fs/cgroup")
	for line := range strings.Lines(groups + string(b)) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) != 3 {
			continue
		}
		// The path of a process outside the namespace climbs (/../x).
		for group := path.Clean("/" + parts[2]); ; group = path.Dir(group) {
			for controller := range strings.SplitSeq(parts[1], ",") {
				switch controller {
				case "": // version 2
					l.lower(limitOf(filepath.Join(root, group, "memory.max")))
					l.cpu = l.cpu || limitOf(filepath.Join(root, group, "cpu.max")) > 0
				case "memory":
					l.lower(limitOf(filepath.Join(root, "memory", group, "memory.limit_in_bytes")))
				case "cpu":
					l.cpu = l.cpu || limitOf(filepath.Join(root, "cpu", group, "cpu.cfs_quota_us")) > 0
				}
			}
			if group == "/" {
				break
			}
		}
	}
	return l
}

func (l *groupLimits) lower(memory uint64) {
	if memory > 0 && (l.memory == 0 || memory < l.memory) {
		l.memory = memory
	}
}

// limitOf returns the limit in a file, or 0 for "max" and -1.
func limitOf(name string) uint64 {
	b, err := readFile(name)
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
