// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// userHz is the unit of times below /proc. It is part of the kernel's interface
// to programs and 100 on every architecture we build for.
const userHz = 100

// processMeter measures the server's process between two looks.
//
// Not by gopsutil's process package: it reads five files for what stands in
// one, takes five times as long, and gives the start as a time of the day, which
// moves with the clock, so that a reused number could not be told from a step of
// the clock.
type processMeter struct {
	at   time.Time
	last processStat
	pid  int // of last; 0 where there was none
}

// processStat is what /proc/PID/stat tells.
type processStat struct {
	state   byte
	ticks   uint64 // of user and system time, all threads
	started uint64 // ticks since the boot; with the number the identity of a process
	threads int
	pages   uint64 // resident
}

// ended says that the process is a zombie that nobody has collected yet.
func (st processStat) ended() bool { return st.state == 'Z' || st.state == 'X' || st.state == 'x' }

// read looks at the process pid. nil without an error is a process that does
// not run: it ended, or is a zombie that nobody has collected yet.
func (m *processMeter) read(proc string, pid int, clock func() time.Time) (*Process, error) {
	last, lastPID, lastAt := m.last, m.pid, m.at
	m.last, m.pid = processStat{}, 0
	if pid <= 0 {
		return nil, nil
	}
	b, err := readFile(filepath.Join(proc, strconv.Itoa(pid), "stat"))
	switch {
	case gone(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("reading process %d: %w", pid, err)
	}
	st, err := parseProcessStat(b)
	if err != nil {
		return nil, fmt.Errorf("reading process %d: %w", pid, err)
	}
	if st.ended() {
		return nil, nil
	}
	at := clock()
	m.last, m.pid, m.at = st, pid, at
	rss := st.pages * uint64(os.Getpagesize())
	p := &Process{PID: pid, RSS: &rss, Threads: &st.threads}
	elapsed := at.Sub(lastAt).Seconds()
	if lastPID == pid && last.started == st.started && st.ticks >= last.ticks && elapsed > 0 {
		cpu := float64(st.ticks-last.ticks) / userHz / elapsed * 100
		p.CPU = &cpu
	}
	return p, nil
}

// again looks at the process of the look before, for when nobody says which
// process is the server's now. nil if that one does not run any more. Its number
// alone does not tell: that is given to another one some time after its end.
func (m *processMeter) again(proc string, clock func() time.Time) *Process {
	started := m.last.started
	p, err := m.read(proc, m.pid, clock)
	if err != nil || p == nil || m.last.started != started {
		*m = processMeter{}
		return nil
	}
	return p
}

// parseProcessStat takes what we need from a /proc/PID/stat. The name of the
// process may hold anything, blanks and brackets too: it ends at the last
// bracket.
func parseProcessStat(b []byte) (processStat, error) {
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return processStat{}, errors.New("its stat has no name")
	}
	// Numbers as in proc(5); the field after the name is the third.
	const state, utime, stime, threads, starttime, rss = 3, 14, 15, 20, 22, 24
	st, n := processStat{}, state
	var user, system uint64
	for field := range bytes.FieldsSeq(b[end+1:]) {
		var err error
		switch n {
		case state:
			st.state = field[0]
		case utime:
			user, err = strconv.ParseUint(string(field), 10, 62)
		case stime:
			system, err = strconv.ParseUint(string(field), 10, 62)
		case threads:
			st.threads, err = strconv.Atoi(string(field))
			if err == nil && st.threads < 0 {
				err = errors.New("a negative number of threads")
			}
		case starttime:
			st.started, err = strconv.ParseUint(string(field), 10, 64)
		case rss:
			// A signed number; a few pages below zero is a race in the kernel's
			// own sums.
			var pages int64
			pages, err = strconv.ParseInt(string(field), 10, 48)
			st.pages = uint64(max(pages, 0))
		}
		if err != nil {
			return processStat{}, fmt.Errorf("field %d of its stat: %w", n, err)
		}
		if n++; n > rss {
			st.ticks = user + system
			return st, nil
		}
	}
	return processStat{}, errors.New("its stat is too short")
}
