// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/internal/must"
)

func TestScore(t *testing.T) {
	t.Parallel()
	p := func(v float64) *float64 { return &v }
	m := func(used, total uint64) *memoryUse { return &memoryUse{total: total, used: used} }
	full := 100
	n := func(v uint64) *uint64 { return &v }
	const unknown = -1
	ready := func(d ...GPU) GPUReading { return GPUReading{State: GPUReady, Devices: d} }
	for _, tt := range []struct {
		name   string
		sample Sample
		limits limits
		want   int
	}{
		{"nothing is known", Sample{}, limits{}, unknown},
		{"the CPU is nearer to its limit", Sample{cpu: p(60), memory: m(50, 100)}, limits{}, 80},
		{"the memory is", Sample{cpu: p(10), memory: m(60, 100)}, limits{}, 80},
		{"idle", Sample{cpu: p(0), memory: m(0, 100)}, limits{}, 0},
		{"where AMS refuses", Sample{cpu: p(75)}, limits{}, 100},
		{"above", Sample{cpu: p(100)}, limits{}, 100},
		{"the same load where the limit is higher", Sample{cpu: p(60)}, limits{cpu: 100}, 60},
		{"a lower memory limit", Sample{memory: m(30, 100)}, limits{memory: 50}, 60},
		{"the CPU is not known", Sample{memory: m(30, 100)}, limits{}, 40},
		{"the memory is not known", Sample{cpu: p(30)}, limits{}, 40},
		{"a CPU that is no number", Sample{cpu: p(math.NaN()), memory: m(30, 100)}, limits{}, 40},
		{"memory of nothing", Sample{memory: m(0, 0)}, limits{}, unknown},
		{"disk and network are no limit", Sample{cpu: p(15), Load: cluster.Load{Disk: &full}}, limits{}, 20},
		{"an encoder", Sample{cpu: p(15), GPUs: ready(GPU{Util: p(10), Enc: p(90), Dec: p(20)})}, limits{}, 90},
		{"a decoder", Sample{cpu: p(15), GPUs: ready(GPU{Dec: p(91)})}, limits{}, 91},
		{"the memory of a device", Sample{cpu: p(15), GPUs: ready(GPU{Util: p(10), MemUsed: n(97), MemTotal: n(100)})}, limits{}, 97},
		{"the busiest of several devices", Sample{cpu: p(15), GPUs: ready(GPU{Util: p(10)}, GPU{Util: p(70)}, GPU{Util: p(20)})}, limits{}, 70},
		{"a device without values", Sample{cpu: p(15), GPUs: ready(GPU{})}, limits{}, 20},
		{"a device alone", Sample{GPUs: ready(GPU{Util: p(0)})}, limits{}, 0},
		{"devices that fail are not known", Sample{cpu: p(15), GPUs: GPUReading{State: GPUFailing, Devices: []GPU{{Util: p(99)}}}}, limits{}, 20},
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
		want       limits
	}{
		{"as shipped with 3.0", "server.cpu_limit=75\nserver.min_free_ram=10\nserver.memory_limit_percentage=75\n", limits{cpu: 75, memory: 75}},
		{"empty", "", limits{cpu: 75, memory: 75}},
		{"set by the operator", "server.cpu_limit = 90 \nserver.memory_limit_percentage=85\n", limits{cpu: 90, memory: 85}},
		{"below and above what the server takes", "server.cpu_limit=1\nserver.memory_limit_percentage=1000\n", limits{cpu: 10, memory: 100}},
		{"no numbers", "server.cpu_limit=most\nserver.memory_limit_percentage=\n", limits{cpu: 75, memory: 75}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p, err := conf.ParseProperties([]byte(tt.file))
			must.OK(t, err)
			if diff := cmp.Diff(tt.want, readLimits(p.Get), cmp.AllowUnexported(limits{})); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// New limits count from the next look at the installation on; those that cannot be read stay.
func TestLimitsAreReadAgain(t *testing.T) {
	t.Parallel()
	m := openMachine(t, "testdata/machines/iowait-is-idle.txtar") // a fifth of the memory is in use
	tree := t.TempDir()
	must.OK(t, os.CopyFS(filepath.Join(tree, ams.DefaultDir), os.DirFS("../testdata/trees/3.0")))
	settings := filepath.Join(tree, ams.DefaultDir, "conf/red5.properties")
	s := NewSampler(SamplerOptions{
		Root: filepath.Join(m.dir, "root"), Now: func() time.Time { return m.now },
		Open: func() (*ams.Installation, error) { return ams.Open(tree, "") },
	})
	for _, tt := range []struct {
		line string
		want int
	}{{"", 27}, {"server.memory_limit_percentage=100", 20}, {"server.memory_limit_percentage=40", 50}} {
		must.OK(t, os.WriteFile(settings, []byte(tt.line), 0o644))
		s.ask()
		if got := s.Sample(t.Context()); got.Load.Score == nil || *got.Load.Score != tt.want {
			t.Errorf("%q: %v, want %d", tt.line, got.Load.Score, tt.want)
		}
	}
	must.OK(t, os.RemoveAll(filepath.Join(tree, ams.DefaultDir)))
	s.ask()
	if got := s.Sample(t.Context()); *got.Load.Score != 50 {
		t.Errorf("without an installation: %d", *got.Load.Score)
	}
}
