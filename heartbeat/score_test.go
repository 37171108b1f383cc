// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/must"
)

func TestScore(t *testing.T) {
	t.Parallel()
	p := func(v float64) *float64 { return &v }
	n := func(v uint64) *uint64 { return &v }
	const unknown = -1
	ready := func(d ...GPU) GPUReading { return GPUReading{State: GPUReady, Devices: d} }
	for _, tt := range []struct {
		name   string
		sample Sample
		limits Limits
		want   int
	}{
		{"nothing is known", Sample{}, Limits{}, unknown},
		{"the CPU is nearer to its limit", Sample{CPU: p(60), MemTotal: n(100), MemUsed: n(50)}, Limits{}, 80},
		{"the memory is", Sample{CPU: p(10), MemTotal: n(100), MemUsed: n(60)}, Limits{}, 80},
		{"idle", Sample{CPU: p(0), MemTotal: n(100), MemUsed: n(0)}, Limits{}, 0},
		{"where AMS refuses", Sample{CPU: p(75)}, Limits{}, 100},
		{"above", Sample{CPU: p(100)}, Limits{}, 100},
		{"the same load where the limit is higher", Sample{CPU: p(60)}, Limits{CPU: 100}, 60},
		{"a lower memory limit", Sample{MemTotal: n(100), MemUsed: n(30)}, Limits{Memory: 50}, 60},
		{"the CPU is not known", Sample{MemTotal: n(100), MemUsed: n(30)}, Limits{}, 40},
		{"the memory is not known", Sample{CPU: p(30), MemTotal: n(100)}, Limits{}, 40},
		{"a CPU that is no number", Sample{CPU: p(math.NaN()), MemTotal: n(100), MemUsed: n(30)}, Limits{}, 40},
		{"memory of nothing", Sample{MemTotal: n(0), MemUsed: n(0)}, Limits{}, unknown},
		{"disk and network are no limit", Sample{CPU: p(15), DiskTotal: n(1), DiskUsed: n(1)}, Limits{}, 20},
		{"an encoder", Sample{CPU: p(15), GPUs: ready(GPU{Util: p(10), Enc: p(90), Dec: p(20)})}, Limits{}, 90},
		{"a decoder", Sample{CPU: p(15), GPUs: ready(GPU{Dec: p(91)})}, Limits{}, 91},
		{"the memory of a device", Sample{CPU: p(15), GPUs: ready(GPU{Util: p(10), MemUsed: n(97), MemTotal: n(100)})}, Limits{}, 97},
		{"the busiest of several devices", Sample{CPU: p(15), GPUs: ready(GPU{Util: p(10)}, GPU{Util: p(70)}, GPU{Util: p(20)})}, Limits{}, 70},
		{"a device without values", Sample{CPU: p(15), GPUs: ready(GPU{})}, Limits{}, 20},
		{"a device alone", Sample{GPUs: ready(GPU{Util: p(0)})}, Limits{}, 0},
		{"devices that fail are not known", Sample{CPU: p(15), GPUs: GPUReading{State: GPUFailing, Devices: []GPU{{Util: p(99)}}}}, Limits{}, 20},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := score(&tt.sample, tt.limits)
			if got == nil && tt.want != unknown || got != nil && *got != tt.want {
				t.Errorf("got %v, want %d", whole(nil), tt.want)
				if got != nil {
					t.Errorf("got %d", *got)
				}
			}
		})
	}
}

func TestReadLimits(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, file string
		want       Limits
	}{
		{"as shipped with 3.0", "server.cpu_limit=75\nserver.min_free_ram=10\nserver.memory_limit_percentage=75\n", Limits{CPU: 75, Memory: 75}},
		{"empty", "", Limits{CPU: 75, Memory: 75}},
		{"set by the operator", "server.cpu_limit = 90 \nserver.memory_limit_percentage=85\n", Limits{CPU: 90, Memory: 85}},
		{"below and above what the server takes", "server.cpu_limit=1\nserver.memory_limit_percentage=1000\n", Limits{CPU: 10, Memory: 100}},
		{"no numbers", "server.cpu_limit=most\nserver.memory_limit_percentage=\n", Limits{CPU: 75, Memory: 75}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p, err := conf.ParseProperties([]byte(tt.file))
			must.OK(t, err)
			if diff := cmp.Diff(tt.want, ReadLimits(p.Get)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// New limits count from the next sample on.
func TestSetLimits(t *testing.T) {
	t.Parallel()
	m := openMachine(t, "testdata/machines/iowait-is-idle.txtar") // a fifth of the memory is in use
	s := m.sampler()
	for _, tt := range []struct{ limit, want int }{{0, 27}, {100, 20}, {40, 50}} {
		s.SetLimits(Limits{Memory: tt.limit})
		if got := s.Sample(t.Context()); got.Load.Score == nil || *got.Load.Score != tt.want {
			t.Errorf("limit %d: %v, want %d", tt.limit, got.Load.Score, tt.want)
		}
	}
}
