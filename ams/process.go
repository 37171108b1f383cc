// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package ams

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
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
	// HostAddress is AMS_HOST_ADDRESS in its initial environment; "" if unset or unreadable.
	HostAddress string
}

// Java reports whether the process is a JVM, as the server is.
func (p Process) Java() bool { return p.Name == "java" || p.Name == "jsvc" }

// A process's name, which may contain brackets, its start in ticks since boot (field 22), and the boot time.
var (
	statLine = regexp.MustCompile(`(?s)\((.*)\) \S+(?: \S+){18} (\d{1,11}) `)
	bootLine = regexp.MustCompile(`(?m)^btime (\d{1,11})$`)
)

// ReadProcess works below root.
func ReadProcess(root string, pid int) (Process, error) {
	proc := files.Root{Path: root}
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	stat, _, err := proc.Read(filepath.Join(dir, "stat"), maxSystemFile)
	machine, _, merr := proc.Read("/proc/stat", maxSystemFile)
	is, boot := statLine.FindSubmatch(stat), bootLine.FindSubmatch(machine)
	if is == nil || boot == nil {
		return Process{}, fmt.Errorf("reading process %d: %w", pid, cmp.Or(err, merr, errors.New("no name, or no start time")))
	}
	ticks, _ := strconv.ParseInt(string(is[2]), 10, 64)
	booted, _ := strconv.ParseInt(string(boot[1]), 10, 64)
	p := Process{Name: string(is[1]), Started: time.Unix(booted, 0).Add(time.Duration(ticks) * (time.Second / userHz))}
	environ, _, _ := proc.Read(filepath.Join(dir, "environ"), maxSystemFile)
	for v := range bytes.SplitSeq(environ, []byte{0}) {
		if value, ok := bytes.CutPrefix(v, []byte(HostAddressVariable+"=")); ok {
			p.HostAddress = string(value)
			break // getenv returns the first one
		}
	}
	return p, nil
}

// PreferIPv4 makes a JVM unable to use IPv6. The vendor's unit and start.sh have it.
const PreferIPv4 = "-Djava.net.preferIPv4Stack=true"

// IPv4Only returns what gives the server [PreferIPv4], or "".
func (in *Installation) IPv4Only(st State) string {
	if st.IPv4Only {
		return cmp.Or(st.Fragment, "the unit")
	}
	command, _, _ := files.Root{Path: in.Root}.Read(fmt.Sprintf("/proc/%d/cmdline", st.MainPID), maxSystemFile)
	if bytes.Contains(command, []byte(PreferIPv4)) {
		return filepath.Join(in.Dir, "start.sh") + " or the unit"
	}
	return ""
}

// EditedAfter reports whether a process uses the old content of a file below root.
func EditedAfter(root, path string, started time.Time) bool {
	st, err := statBelow(root, path)
	return err == nil && st.Modified.After(started.Add(editSlack))
}

// OtherTree returns the other installation that a service runs, or "". The unit's folder comes first: verification includes
// a restart.
func (in *Installation) OtherTree(st State) string {
	cwd, _ := os.Readlink(filepath.Join(in.Root, "/proc", strconv.Itoa(st.MainPID), "cwd"))
	for _, dir := range []string{st.WorkingDirectory, cwd} {
		if !filepath.IsAbs(dir) || !in.holdsServer(dir) {
			continue
		}
		runs, err := statBelow(in.Root, dir)
		here, herr := statBelow(in.Root, in.Dir)
		if err == nil && herr == nil && runs.ID == here.ID {
			return ""
		}
		return dir
	}
	return ""
}

func (in *Installation) holdsServer(dir string) bool {
	for _, name := range []string{containerName, webappsName} {
		if _, err := statBelow(in.Root, filepath.Join(dir, name)); err != nil {
			return false
		}
	}
	return true
}
