// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// reloading returns the message for a reload; Type=notify-reload needs the time.
func reloading() string {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // each kernel has this clock
	return fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", ts.Nano()/1000)
}

// ready extends the unit's watchdog limit for slow heartbeats, which feed the watchdog. It never shortens it.
func (d *Daemon) ready() string {
	if d.o.Watchdog <= 0 {
		return "READY=1"
	}
	limit := max(d.o.Watchdog, healthLimit*d.o.Settings().Interval)
	return fmt.Sprintf("READY=1\nWATCHDOG_USEC=%d", limit/time.Microsecond)
}
