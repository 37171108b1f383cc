// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"bytes"
	"cmp"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// instant is a time of CLOCK_BOOTTIME: nanoseconds since boot, sleep included. No program can set that clock. 0 means unset.
type instant time.Duration

func (t instant) Add(d time.Duration) instant { return t + instant(d) }

func (t instant) Sub(u instant) time.Duration { return time.Duration(t - u) }

// reached reports whether t has come; 0 never comes.
func (t instant) reached(now instant) bool { return t != 0 && now >= t }

// BootClock returns a clock that reports the boot id and the time since boot. The id is "" if the kernel does not report it.
func BootClock(root string) func() (boot string, up time.Duration) {
	return func() (string, time.Duration) {
		id, err := os.ReadFile(filepath.Join(root, "/proc/sys/kernel/random/boot_id"))
		var ts unix.Timespec
		if err != nil || unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
			return "", 0
		}
		return string(bytes.TrimSpace(id)), time.Duration(ts.Nano())
	}
}

// wallClock is the wall time of instant 0. It changes only if the clock was set by a second or more, so that the same
// instant is always written the same way.
type wallClock time.Time

func (c wallClock) updated(now instant, wall time.Time) wallClock {
	start := wall.Round(0).Add(-time.Duration(now))
	if start.Sub(time.Time(c)).Abs() < time.Second {
		return c
	}
	return wallClock(start)
}

func (c wallClock) time(t instant) time.Time {
	if t == 0 {
		return time.Time{}
	}
	return time.Time(c).Add(time.Duration(t))
}

func (c wallClock) instant(t time.Time) instant {
	if t.IsZero() {
		return 0
	}
	return cmp.Or(instant(t.Round(0).Sub(time.Time(c))), 1) // negative before this boot
}
