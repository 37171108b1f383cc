// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/amsagent/amsagent/files"
)

// userHz is the unit of start times in /proc, 100 by the kernel's ABI.
const userHz = 100

// editSlack: the boot time has whole seconds.
const editSlack = 2 * time.Second

// Process is a running process.
type Process struct {
	Name    string
	Started time.Time
	// HostAddress is AMS_HOST_ADDRESS in its initial environment; "" if not set or not readable.
	HostAddress string
}

// Java reports whether the process is a JVM, as the server is.
func (p Process) Java() bool { return p.Name == "java" || p.Name == "jsvc" }

// ReadProcess reads a process below root.
func ReadProcess(root string, pid int) (p Process, _ error) {
	fail := func(err error) (Process, error) { return p, fmt.Errorf("reading process %d: %w", pid, err) }
	proc := files.Root{Path: root}
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	stat, _, err := proc.Read(filepath.Join(dir, "stat"), maxSystemFile)
	if err != nil {
		return fail(err)
	}
	name, ticks, err := parseStat(stat)
	if err != nil {
		return fail(err)
	}
	boot, err := bootTime(proc)
	if err != nil {
		return fail(err)
	}
	p = Process{Name: name, Started: boot.Add(time.Duration(ticks) * (time.Second / userHz))}
	if env, _, err := proc.Read(filepath.Join(dir, "environ"), maxSystemFile); err == nil {
		for v := range bytes.SplitSeq(env, []byte{0}) {
			if value, ok := bytes.CutPrefix(v, []byte(HostAddressVariable+"=")); ok {
				p.HostAddress = string(value)
				break // getenv returns the first one
			}
		}
	}
	return p, nil
}

// parseStat parses /proc/PID/stat; ticks are since boot. The name may contain brackets.
func parseStat(b []byte) (name string, ticks uint64, err error) {
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return "", 0, errors.New("its stat has no name")
	}
	// The name is field 2, the start time field 22.
	fields := strings.Fields(string(b[end+1:]))
	if len(fields) < 20 {
		return "", 0, errors.New("its stat is too short")
	}
	if ticks, err = strconv.ParseUint(fields[19], 10, 62); err != nil {
		return "", 0, fmt.Errorf("its start time: %w", err)
	}
	return string(b[open+1 : end]), ticks, nil
}

var btime = regexp.MustCompile(`(?m)^btime (\d{1,18})$`)

func bootTime(proc files.Root) (time.Time, error) {
	b, _, err := proc.Read("/proc/stat", maxSystemFile)
	if err != nil {
		return time.Time{}, err
	}
	m := btime.FindSubmatch(b)
	if m == nil {
		return time.Time{}, errors.New("/proc/stat has no boot time")
	}
	s, _ := strconv.ParseInt(string(m[1]), 10, 64)
	return time.Unix(s, 0), nil
}

// EditedAfter reports whether a file below root is newer than a process, which then uses its old content.
func EditedAfter(root, path string, started time.Time) bool {
	st, err := statBelow(root, path)
	return err == nil && st.Modified.After(started.Add(editSlack))
}
