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

// instant is a moment of CLOCK_BOOTTIME, in nanoseconds since the machine started, sleep included. No program can set that
// clock. 0 means unset.
type instant time.Duration

// Add returns the moment d later.
func (t instant) Add(d time.Duration) instant { return t + instant(d) }

// Sub returns the time from u to t.
func (t instant) Sub(u instant) time.Duration { return time.Duration(t - u) }

// reached reports whether the moment has come; 0 never comes.
func (t instant) reached(now instant) bool { return t != 0 && now >= t }

// BootClock returns a clock that reports the id of this boot and the time since it began. The id is "" if the kernel does
// not report it.
func BootClock(root string) func() (boot string, up time.Duration) {
	return func() (string, time.Duration) {
		id, err := os.ReadFile(filepath.Join(root, "/proc/sys/kernel/random/boot_id"))
		if err != nil {
			return "", 0
		}
		var ts unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
			return "", 0
		}
		return string(bytes.TrimSpace(id)), time.Duration(ts.Nano())
	}
}

// Hardware returns the firmware's id of this machine, which differs on a machine with a copy of its disk. It is "" if there
// is no such id, as in a container. Only root can read it.
func Hardware(root string) string {
	id, err := os.ReadFile(filepath.Join(root, "/sys/class/dmi/id/product_uuid"))
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(id))
}

// wallClock converts moments to the wall clock. It is the wall time of instant 0, and changes only if the clock was set by a
// second or more, so that the same moment is always written the same way.
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
