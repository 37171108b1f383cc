// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Usage is what a process holds and has used, as the kernel counts it. Sizes are
// bytes.
type Usage struct {
	RSS, Anon, File, Shmem int64
	// CPU is its own, Children that of the children it has waited for.
	CPU, Children time.Duration
	// Major are page faults that had to wait for a disk.
	Minor, Major int64
	Threads, FDs int
	// Age is for how long it has run.
	Age time.Duration
}

// tick is the kernel's unit of times in /proc: USER_HZ, the same everywhere.
const tick = 10 * time.Millisecond

// ReadUsage looks at a process.
func ReadUsage(pid int) (Usage, error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	u := Usage{}
	b, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return u, fmt.Errorf("looking at process %d: %w", pid, err)
	}
	fields := map[string]*int64{
		"VmRSS": &u.RSS, "RssAnon": &u.Anon, "RssFile": &u.File, "RssShmem": &u.Shmem,
	}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		words := strings.Fields(value)
		to, wanted := fields[key]
		if !wanted || len(words) == 0 {
			continue
		}
		if *to, err = strconv.ParseInt(words[0], 10, 64); err != nil {
			return u, fmt.Errorf("looking at process %d: %s: %w", pid, key, err)
		}
		if len(words) > 1 { // kB
			*to <<= 10
		}
	}
	b, err = os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return u, fmt.Errorf("looking at process %d: %w", pid, err)
	}
	// The name in parentheses may hold anything; the fields are counted behind it,
	// where the third of the line is the first.
	words := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	number := func(n int) int64 {
		if n -= 3; n >= len(words) {
			err = errors.New("its line is too short")
			return 0
		}
		v, e := strconv.ParseInt(words[n], 10, 64)
		err = errors.Join(err, e)
		return v
	}
	u.Minor, u.Major = number(10), number(12)
	u.CPU = time.Duration(number(14)+number(15)) * tick
	u.Children = time.Duration(number(16)+number(17)) * tick
	u.Threads = int(number(20))
	up, uerr := os.ReadFile("/proc/uptime")
	seconds, _, _ := strings.Cut(string(up), " ")
	since, perr := strconv.ParseFloat(seconds, 64)
	err = errors.Join(err, uerr, perr)
	// A number with a point may fall a nanosecond short of the tick that a process began with.
	u.Age = max(0, time.Duration(since*float64(time.Second))-time.Duration(number(22))*tick)
	if err != nil {
		return u, fmt.Errorf("looking at process %d: %w", pid, err)
	}
	fds, err := os.ReadDir(filepath.Join(dir, "fd"))
	u.FDs = len(fds)
	if err != nil {
		return u, fmt.Errorf("looking at process %d: %w", pid, err)
	}
	// Ticks are coarse for a process that works for some milliseconds in a minute;
	// the scheduler's own figure, if there is one, is exact.
	if cpu, ok := schedstat(dir); ok {
		u.CPU = cpu
	}
	return u, nil
}

// schedstat adds up the time on a core of every thread that lives. The runtime
// of Go ends threads only in rare cases, so none is missing.
func schedstat(dir string) (time.Duration, bool) {
	tasks, err := filepath.Glob(filepath.Join(dir, "task", "*", "schedstat"))
	if err != nil || len(tasks) == 0 {
		return 0, false
	}
	var sum int64
	for _, name := range tasks {
		b, err := os.ReadFile(name)
		if err != nil {
			return 0, false
		}
		word, _, _ := strings.Cut(string(b), " ")
		ns, err := strconv.ParseInt(word, 10, 64)
		if err != nil {
			return 0, false
		}
		sum += ns
	}
	return time.Duration(sum), true
}

// LoadAverage is the machine's: figures of a machine that is busy with other
// things say less.
func LoadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "?"
	}
	words := strings.Fields(string(b))
	return strings.Join(words[:min(3, len(words))], " ")
}
