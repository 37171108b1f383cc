// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"net/netip"
	"path"

	"github.com/amsagent/amsagent/ams"
)

// linger keeps the time that a node has to end in order until it has ended. With
// our drop-in that time goes, too, and the vendor's unit leaves a node with streams
// 10 seconds before it is killed. A drop-in below /run holds it meanwhile; it
// bears the name of the other one, which a join puts before it, and no reboot
// keeps it.
//
// What it returns takes that back when the server has been restarted.
func (m *Machine) linger(ctx context.Context) (done func()) {
	nothing := func() {}
	st, err := m.Service.State(ctx)
	if err != nil || !m.DropIn || !st.Running() || st.StopTimeout == 0 {
		return nothing
	}
	store := m.store()
	if err := store.WriteFile(ams.RuntimeDropInPath, ams.DropIn(netip.Addr{}, st.StopTimeout, ""), 0o644, 0o755); err != nil {
		m.log().Warn("the server has only the time of its own unit to stop", "error", err)
		return nothing
	}
	return func() {
		ctx, cancel := after(ctx, reloadTime)
		defer cancel()
		err := store.RemoveFile(ams.RuntimeDropInPath)
		if err == nil {
			// Only an empty folder goes: somebody else may have a file there.
			_ = store.RemoveFolder(path.Dir(ams.RuntimeDropInPath))
			err = m.Service.Reload(ctx)
		}
		if err != nil {
			m.log().Warn("the stop timeout could not be given back; a reboot does it", "path", ams.RuntimeDropInPath, "error", err)
		}
	}
}
