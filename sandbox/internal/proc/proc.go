// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Package proc watches processes by their pidfd: a number that was taken over by
// another process is not mistaken for the first one. Linux only.
package proc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a process that may end at any time.
type Process struct {
	pid int
	fd  int
}

// ErrGone means that there is no such process any more.
var ErrGone = errors.New("no such process")

// Open takes hold of a process. Close it when done.
func Open(pid int) (*Process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, fmt.Errorf("process %d: %w", pid, ErrGone)
	}
	if err != nil {
		return nil, fmt.Errorf("opening process %d: %w", pid, err)
	}
	return &Process{pid: pid, fd: fd}, nil
}

// Close lets go of the process, and does nothing to it.
func (p *Process) Close() error { return unix.Close(p.fd) }

// Signal sends a signal.
func (p *Process) Signal(s unix.Signal) error {
	if err := unix.PidfdSendSignal(p.fd, s, nil, 0); err != nil {
		return fmt.Errorf("signalling process %d: %w", p.pid, err)
	}
	return nil
}

// Ended says whether the process has ended; a zombie has.
func (p *Process) Ended() bool {
	fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0
}

// Wait returns true when the process has ended, false when ctx ends first.
func (p *Process) Wait(ctx context.Context) bool {
	// A poll in the kernel could not be cancelled; a look every few milliseconds
	// is cheap, and right for a tool of tests.
	t := time.NewTicker(10 * time.Millisecond)
	defer t.Stop()
	for !p.Ended() {
		select {
		case <-t.C:
		case <-ctx.Done():
			return p.Ended()
		}
	}
	return true
}

// Birth is when a process began, in the kernel's ticks since boot. Together with
// its number it names the process for good, on paper too.
func Birth(pid int) (string, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return "", fmt.Errorf("process %d: %w", pid, ErrGone)
	}
	// The name in parentheses may hold anything; the fields are counted behind it.
	s := string(b)
	fields := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	const startTime = 19 // field 22 of the line
	if len(fields) <= startTime {
		return "", fmt.Errorf("process %d: cannot read its stat", pid)
	}
	return fields[startTime], nil
}

// Child is the number of the one child of a process, such as the program that nsenter
// or unshare runs. The process must have one thread.
func Child(pid int) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0, fmt.Errorf("looking for the child of process %d: %w", pid, err)
	}
	child, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, fmt.Errorf("process %d has not one child: %q", pid, text)
	}
	return child, nil
}
