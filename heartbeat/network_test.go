// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/amsagent/amsagent/internal/must"
)

func TestMoved(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name        string
		before, now uint64
		want        uint64
		ok          bool
	}{
		{"on", 100, 300, 200, true},
		{"not at all", 100, 100, 0, true},
		{"on, beyond 32 bits", 1 << 40, 1<<40 + 5, 5, true},
		{"once round 32 bits", math.MaxUint32, 9, 10, true},
		{"nearly half of the way round", 1 << 31, 1, 0, false},
		{"less than half of the way round", 1<<31 + 2, 1, 1<<31 - 1, true},
		{"started again", 5000, 10, 0, false},
		{"started again, beyond 32 bits", 1 << 40, 10, 0, false},
		{"to what 32 bits cannot hold", math.MaxUint64, math.MaxUint32, 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, ok := moved(tt.before, tt.now)
			if ok != tt.ok || ok && got != tt.want {
				t.Errorf("%d %v, want %d %v", got, ok, tt.want, tt.ok)
			}
		})
	}
}

// sysfs is asked when there is a new name, and once a minute, because a name
// may be given to another interface.
func TestInterfacesAreSortedAgain(t *testing.T) {
	t.Parallel()
	m := openMachine(t, "testdata/machines/network-bridges-and-containers.txtar")
	s := m.sampler()
	counted := func() bool {
		s.Sample(t.Context())
		_, ok := s.network.last["docker0"]
		return ok
	}
	if counted() {
		t.Fatal("a bridge counts")
	}
	must.OK(t, os.WriteFile(filepath.Join(m.dir, "1/sys/class/net/docker0/device"), nil, 0o644))
	for range 11 {
		m.now = m.now.Add(5 * time.Second)
		if counted() {
			t.Fatal("asked again too early")
		}
	}
	m.now = m.now.Add(5 * time.Second)
	if !counted() {
		t.Error("not asked again")
	}
}

// After the counters started again there is one sample without a rate.
func TestNetworkAfterReset(t *testing.T) {
	t.Parallel()
	m := openMachine(t, "testdata/machines/network-counter-reset.txtar")
	s := m.sampler()
	for i, want := range []error{ErrFirst, errReset, nil} {
		if i > 0 {
			m.look(t, 2)
			m.now = m.now.Add(5 * time.Second)
		}
		got := s.Sample(t.Context())
		if want == nil && (got.Load.NetRx == nil || *got.Load.NetRx != 0) {
			t.Errorf("sample %d: %v", i, got.Missing)
		}
		if want != nil && (got.Load.NetRx != nil || !missing(got, whatNetwork, want)) {
			t.Errorf("sample %d: %v", i, got.Missing)
		}
	}
}

// A clock that stands still or is set back makes no rate, and the next one is
// right.
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
	if got.Load.NetRx != nil || !missing(got, whatNetwork, errNoTime) {
		t.Errorf("rate %v, missing %v", got.Load.NetRx, got.Missing)
	}
	m.now = m.now.Add(5 * time.Second)
	got = s.Sample(t.Context())
	if got.Load.NetRx == nil {
		t.Errorf("missing %v", got.Missing)
	}
}
