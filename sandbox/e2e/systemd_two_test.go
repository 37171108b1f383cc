// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"sync"
	"testing"
)

// Two machines that are booted at once, as by tests in parallel, do not disturb each other: in one control group the systemd of one
// removed the folder in which the other was about to start a process.
func TestSystemdTwoMachines(t *testing.T) {
	machines := [2]*machine{}
	for i := range machines {
		m := newDisk(t, diskOptions{tree: `root_make ""`, boot: "--private-network"})
		m.write(t, "/etc/systemd/system/both.service", `[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
ExecStop=/bin/true
`)
		m.boot(t)
		machines[i] = m
	}
	var both sync.WaitGroup
	for i, m := range machines {
		both.Go(func() {
			const script = "for i in $(seq 100); do systemctl start both && systemctl stop both || exit; done; journalctl -b --no-pager -q -u both -p notice"
			if out, err := m.Command("sh", "-c", script).CombinedOutput(); err != nil || len(out) != 0 {
				t.Errorf("machine %d: %v\n%s", i, err, out)
			}
		})
	}
	both.Wait()
}
