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
	"slices"
	"strconv"
	"strings"

	"github.com/shirou/gopsutil/v4/mem"
)

// memoryMeter measures memory as AMS's own limit counts it.
//
// AMS refuses streams when (total − available) / total reaches its limit, where
// available is the kernel's MemAvailable: page cache that can be dropped is not
// in use. So does this.
//
// In a container AMS takes both from the control group instead: the limit, and
// all that is charged to the group, page cache included. So does this, where the
// group's name or a /.dockerenv says container, as they do to AMS.
//
// A service with a MemoryMax= of its own is no container to AMS, which looks at
// the machine and never comes to its limit; but the kernel kills it at that
// one. There the limit counts, and what is charged to the group and cannot be
// dropped.
type memoryMeter struct {
	container bool // a /.dockerenv is there

	// The group is looked up once per process: services do not move.
	pid     int
	started uint64
	group   controlGroup
}

type memoryReading struct{ total, used uint64 } // bytes

// controlGroup is where a process stands in the hierarchy of a controller.
type controlGroup struct {
	version   int    // 1 or 2; 0 is not known
	path      string // from the root of the hierarchy
	container bool   // by its name
}

// read looks at the memory: the machine's, or that of the control group of
// process pid if its limit is lower. pid is 0 where none runs.
func (m *memoryMeter) read(ctx context.Context, proc, sys string, pid int, started uint64) (memoryReading, error) {
	vm, err := mem.VirtualMemoryWithContext(ctx)
	if err != nil {
		return memoryReading{}, fmt.Errorf("reading the memory: %w", err)
	}
	// gopsutil takes a line that is not there for 0.
	switch {
	case vm.Total == 0:
		return memoryReading{}, fmt.Errorf("reading the memory: %s has no MemTotal", filepath.Join(proc, "meminfo"))
	case vm.Available == vm.Free && vm.Cached == 0:
		// Before Linux 3.14 there is no MemAvailable, and it is made of what is
		// free and what is cached.
		return memoryReading{}, fmt.Errorf("reading the memory: %s ends before it tells what is available", filepath.Join(proc, "meminfo"))
	case vm.Available > vm.Total:
		return memoryReading{}, errors.New("reading the memory: more is available than there is")
	}
	machine := memoryReading{vm.Total, vm.Total - vm.Available}
	switch {
	case pid <= 0:
		m.pid, m.group = 0, controlGroup{}
	case m.pid != pid || m.started != started:
		// Where it cannot be read the process ended meanwhile, or there are no
		// control groups here: none is known then.
		b, _ := readFile(filepath.Join(proc, strconv.Itoa(pid), "cgroup"))
		m.pid, m.started, m.group = pid, started, parseControlGroup(b, "memory")
	}
	if limited, ok := m.group.read(sys, m.container); ok && limited.total < machine.total {
		return limited, nil
	}
	return machine, nil
}

// parseControlGroup finds the hierarchy of a controller in a /proc/PID/cgroup.
// Where both versions are mounted, it is in the one that lists it.
func parseControlGroup(b []byte, controller string) controlGroup {
	var g controlGroup
	for line := range bytes.Lines(b) {
		parts := strings.SplitN(strings.TrimSuffix(string(line), "\n"), ":", 3)
		if len(parts) != 3 || !strings.HasPrefix(parts[2], "/") {
			continue
		}
		version := 0
		switch {
		case parts[0] == "0" && parts[1] == "" && g.version == 0:
			version = 2
		case slices.Contains(strings.Split(parts[1], ","), controller):
			version = 1
		}
		if version != 0 {
			// A process outside our own view has a path that climbs (/../x).
			g.version, g.path = version, path.Clean(parts[2])
		}
		for _, runtime := range []string{"docker", "lxc", "kubepods", "containerd"} {
			g.container = g.container || strings.Contains(parts[2], runtime)
		}
	}
	return g
}

// lowest finds the lowest limit on the way from the group up to the root, and
// its level; 0 is no limit. In a container the upper part of the path is not
// there, and its own limit is found at the root.
func (g controlGroup) lowest(root string, limit func(folder string) uint64) (lowest uint64, level string) {
	if g.version == 0 {
		return 0, ""
	}
	for p := g.path; ; p = path.Dir(p) {
		if n := limit(filepath.Join(root, p)); n > 0 && (lowest == 0 || n < lowest) {
			lowest, level = n, p
		}
		if p == "/" || p == "." {
			return lowest, level
		}
	}
}

// read finds the lowest limit, and what is used of it. Each level is read anew:
// a limit can be set at any time.
func (g controlGroup) read(sys string, container bool) (memoryReading, bool) {
	root, limitName, usageName, cacheName := filepath.Join(sys, "fs/cgroup"), "memory.max", "memory.current", "inactive_file"
	if g.version == 1 {
		root, limitName, usageName, cacheName = filepath.Join(root, "memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
	}
	limit, at := g.lowest(root, func(folder string) uint64 {
		n, _ := readNumber(filepath.Join(folder, limitName)) // "max" is no limit
		return n
	})
	if limit == 0 {
		return memoryReading{}, false
	}
	at = filepath.Join(root, at)
	used, ok := readNumber(filepath.Join(at, usageName))
	if !ok {
		return memoryReading{}, false
	}
	if !container && !g.container {
		// Page cache that nobody has asked for lately goes first when the limit
		// is near; this is what kubelet and docker call the working set.
		used -= min(used, readKey(filepath.Join(at, "memory.stat"), cacheName))
	}
	// A group may be above its limit for a moment, or for good where the limit
	// was lowered below it.
	return memoryReading{limit, min(used, limit)}, true
}

func readNumber(name string) (uint64, bool) {
	b, err := readFile(name)
	if err != nil {
		return 0, false
	}
	return number(b)
}

// number returns 0 for what is no number, and for one that does not fit.
func number(b []byte) (uint64, bool) {
	n, err := strconv.ParseUint(string(bytes.TrimSpace(b)), 10, 64)
	if err != nil {
		return 0, false
	}
	return n, true
}

// readKey finds a number in a file of lines of a name and a number; 0 if it is
// not there.
func readKey(name, key string) uint64 {
	b, err := readFile(name)
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(b) {
		k, v, _ := bytes.Cut(bytes.TrimSpace(line), []byte(" "))
		if string(k) == key {
			n, _ := number(v)
			return n
		}
	}
	return 0
}
