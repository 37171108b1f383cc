// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"testing"
	"time"
)

// After the counters started again there is one sample without a rate.
func TestNetworkAfterReset(t *testing.T) {
	t.Parallel()
	m := openMachine(t, "testdata/machines/network-counter-reset.txtar")
	s := m.sampler()
	for i, want := range []string{"nothing to compare with yet", "started again", ""} {
		if i > 0 {
			m.look(t, 2)
			m.now = m.now.Add(5 * time.Second)
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

// If the clock stands still or is set back there is no rate, and the next one is correct.
func TestClockSetBack(t *testing.T) {
	t.Parallel()
	m := openMachine(t, "testdata/machines/linux-6.8-vm.txtar")
	s := m.sampler()
	s.Sample(t.Context())
	m.look(t, 2)
	m.now = m.now.Add(-time.Hour)
	got := s.Sample(t.Context())
	if got.Load.CPU == nil || *got.Load.CPU != 50 {
		t.Errorf("the cores' own time does not go by the clock: missing %v", got.Missing)
	}
	if got.Load.NetRx != nil || !missing(got, "network", "no time") {
		t.Errorf("rate %v, missing %v", got.Load.NetRx, got.Missing)
	}
	m.now = m.now.Add(5 * time.Second)
	got = s.Sample(t.Context())
	if got.Load.NetRx == nil {
		t.Errorf("missing %v", got.Missing)
	}
}
