// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// userHz is the unit of start times below /proc. It is part of the kernel's
// interface to programs and 100 on every architecture we build for.
const userHz = 100

// editSlack is how much later than the start of a process a file must have been
// written to count as edited after it: the boot time that start times are
// counted from is known to a second only.
const editSlack = 2 * time.Second

// Process is a running process, as far as /proc tells.
type Process struct {
	PID     int       `json:"pid"`
	Name    string    `json:"name"`
	Started time.Time `json:"started"`
	// HostAddress is AMS_HOST_ADDRESS in the environment the process was started
	// with, which decides, whatever the files say by now. HostAddressKnown is
	// false where we may not look.
	HostAddress      string `json:"host_address,omitempty"`
	HostAddressKnown bool   `json:"host_address_known"`
}

// Java reports whether it is a Java machine, as the server's process is.
func (p Process) Java() bool { return p.Name == "java" || p.Name == "jsvc" }

// ReadProcess looks at a process below root. ErrNoProcess where it does not exist.
func ReadProcess(root string, pid int) (Process, error) {
	p := Process{PID: pid}
	if pid <= 0 {
		return p, fmt.Errorf("reading process %d: %w", pid, ErrNoProcess)
	}
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	stat, err := readProc(root, filepath.Join(dir, "stat"))
	switch {
	// A process that ends while we read gives ESRCH.
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ESRCH):
		return p, fmt.Errorf("reading process %d: %w", pid, ErrNoProcess)
	case err != nil:
		return p, fmt.Errorf("reading process %d: %w", pid, err)
	}
	boot, err := bootTime(root)
	if err != nil {
		return p, err
	}
	var ticks uint64
	if p.Name, ticks, err = parseStat(stat); err != nil {
		return p, fmt.Errorf("reading process %d: %w", pid, err)
	}
	p.Started = boot.Add(time.Duration(ticks) * (time.Second / userHz))
	if env, err := readProc(root, filepath.Join(dir, "environ")); err == nil {
		p.HostAddressKnown = true
		for v := range bytes.SplitSeq(env, []byte{0}) {
			if value, ok := strings.CutPrefix(string(v), HostAddressVariable+"="); ok {
				p.HostAddress = value
				break // the first one is what getenv finds
			}
		}
	}
	return p, nil
}

// readProc reads a file of /proc, which has no size and no kind to check.
func readProc(root, path string) ([]byte, error) {
	b, _, err := readBelow(root, path, maxConfigSize)
	return b, err
}

// parseStat takes the name and the start time, in ticks since the boot, from a
// /proc/PID/stat. The name may hold anything, blanks and brackets too: it ends
// at the last bracket.
func parseStat(b []byte) (name string, ticks uint64, err error) {
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return "", 0, errors.New("its stat has no name")
	}
	// The field after the name is the third; the start time is the 22nd.
	fields := strings.Fields(string(b[end+1:]))
	if len(fields) < 20 {
		return "", 0, errors.New("its stat is too short")
	}
	if ticks, err = strconv.ParseUint(fields[19], 10, 62); err != nil {
		return "", 0, fmt.Errorf("its start time: %w", err)
	}
	return string(b[open+1 : end]), ticks, nil
}

func bootTime(root string) (time.Time, error) {
	b, err := readProc(root, "/proc/stat")
	if err != nil {
		return time.Time{}, fmt.Errorf("reading the boot time: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "btime "); ok {
			if s, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64); err == nil {
				return time.Unix(s, 0), nil
			}
		}
	}
	return time.Time{}, fmt.Errorf("reading the boot time: %s has none", shown(root, "/proc/stat"))
}

// Edited is a file that was written after a process had started.
type Edited struct {
	Path string    `json:"path"`
	At   time.Time `json:"at"`
}

// EditedAfter says which of the paths below root were written after started: a
// server that was started before them runs with what they said then. A path that
// does not exist was not edited. Paths that cannot be looked at are in the error,
// and the others in the result all the same.
//
// The server itself writes its .properties when somebody saves settings in its
// panel, so a newer file of these alone does not mean that a restart is missing.
func EditedAfter(root string, started time.Time, paths ...string) ([]Edited, error) {
	var list []Edited
	var errs []error
	for _, path := range paths {
		st, err := statBelow(root, path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			errs = append(errs, fmt.Errorf("looking at %s: %w", shown(root, path), err))
		case st.Modified.After(started.Add(editSlack)):
			list = append(list, Edited{Path: path, At: st.Modified})
		}
	}
	return list, errors.Join(errs...)
}
