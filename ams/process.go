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

	"github.com/amsagent/amsagent/files"
)

// userHz is the unit of start times below /proc, part of the kernel's ABI and 100 on every supported architecture.
const userHz = 100

// editSlack is how much later than a process's start a file counts as edited after it: the boot time is known to a
// second only.
const editSlack = 2 * time.Second

// Process is a running process, from /proc.
type Process struct {
	PID     int       `json:"pid"`
	Name    string    `json:"name"`
	Started time.Time `json:"started"`
	// HostAddress is AMS_HOST_ADDRESS in the process's initial environment, which counts even if the files have changed.
	// HostAddressKnown is false without permission to read it.
	HostAddress      string `json:"host_address,omitempty"`
	HostAddressKnown bool   `json:"host_address_known"`
}

// Java reports whether it is a JVM, as the server's process is.
func (p Process) Java() bool { return p.Name == "java" || p.Name == "jsvc" }

// ReadProcess reads a process below root, or fails with ErrNoProcess.
func ReadProcess(root string, pid int) (Process, error) {
	p := Process{PID: pid}
	if pid <= 0 {
		return p, fmt.Errorf("reading process %d: %w", pid, ErrNoProcess)
	}
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	stat, err := readProc(root, filepath.Join(dir, "stat"))
	switch {
	// ESRCH: the process ended during the read.
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
				break // getenv returns the first one
			}
		}
	}
	return p, nil
}

// readProc reads a file of /proc, which has no size or type to check.
func readProc(root, path string) ([]byte, error) {
	b, _, err := files.Root{Path: root}.Read(path, maxSystemFile)
	return b, err
}

// parseStat returns the name and the start time, in ticks since boot, of a /proc/PID/stat. The name may contain any
// character and ends at the last bracket.
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

// EditedAfter returns the paths below root that were written after started: a server started earlier runs with their old
// content. Missing paths were not edited. The error has the unreadable paths, the result the others.
//
// The server itself writes its .properties when a user saves settings in its panel, so a newer .properties file alone
// does not mean that a restart is missing.
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
