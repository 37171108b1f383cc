// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import "testing"

// After the counters started again there is one sample without a rate.
func TestNetworkAfterReset(t *testing.T) {
	t.Parallel()
	m := openMachine(t, "testdata/machines/network-counter-reset.txtar")
	s := m.sampler()
	for i, want := range []string{"nothing to compare with yet", "started again", ""} {
		if i > 0 {
			m.look(t, 2)
		}
		got := s.Sample(t.Context())
		if want == "" && (got.Load.NetRx == nil || *got.Load.NetRx != 0) {
			t.Errorf("sample %d: %v", i, got.Missing)
		}
		if want != "" && (got.Load.NetRx != nil || !missing(got, "network", want)) {
			t.Errorf("sample %d: %v", i, got.Missing)
		}
	}
}
