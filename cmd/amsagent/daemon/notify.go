// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// reloading is what systemd wants to hear when a reload begins: with the time, it
// can tell this one from the one before (Type=notify-reload).
func reloading() string {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return "RELOADING=1"
	}
	return fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", ts.Nano()/1000)
}

// ready says that the daemon is up, and with slow beats that the watchdog has to
// wait longer than the unit says: it hears from us once a beat. Never less than
// the unit says; a person may have written it.
func (d *Daemon) ready() string {
	if d.o.Watchdog <= 0 {
		return "READY=1"
	}
	limit := max(d.o.Watchdog, healthLimit*d.o.Settings().Interval)
	return fmt.Sprintf("READY=1\nWATCHDOG_USEC=%d", limit/time.Microsecond)
}
