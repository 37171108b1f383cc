// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"context"
	"net/netip"
	"path"

	"github.com/amsagent/amsagent/ams"
)

// linger keeps the stop timeout until the server's end: the vendor's unit kills a node with streams after 10
// seconds. It uses a drop-in below /run with the join's file name, which a join's drop-in overrides and a reboot
// removes. Call done after the restart.
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
			// It keeps a folder in which another program has a file.
			_ = store.RemoveFolder(path.Dir(ams.RuntimeDropInPath))
			err = m.Service.Reload(ctx)
		}
		if err != nil {
			m.log().Warn("the stop timeout could not be given back; a reboot does it", "path", ams.RuntimeDropInPath, "error", err)
		}
	}
}
