// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"bytes"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// BootClock tells which boot this is and for how long it lasts, sleep included.
// Nobody can set that clock: by it a drain keeps its deadline over a restart of
// the agent, whatever happens to the wall clock. boot is "" where it cannot be
// told.
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

// Hardware tells this machine from one with a copy of its disk: the firmware's own id,
// which a cloud gives to each machine, and which only root reads. It is "" where there
// is none, as in a container.
func Hardware(root string) string {
	id, err := os.ReadFile(filepath.Join(root, "/sys/class/dmi/id/product_uuid"))
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(id))
}
