// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
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
	p := func(v int) *int { return &v }
	const unknown = -1
	type load = cluster.Load
	type gpus = []cluster.GPULoad
	for _, tt := range []struct {
		name   string
		load   load
		limits limits
		want   int
	}{
		{"nothing is known", load{}, limits{}, unknown},
		{"the CPU is nearer to its limit", load{CPU: p(60), Mem: p(50)}, limits{}, 80},
		{"the memory is", load{CPU: p(10), Mem: p(60)}, limits{}, 80},
		{"idle", load{CPU: p(0), Mem: p(0)}, limits{}, 0},
		{"where AMS refuses", load{CPU: p(75)}, limits{}, 100},
		{"above", load{CPU: p(100)}, limits{}, 100},
		{"the same load where the limit is higher", load{CPU: p(60)}, limits{cpu: 100}, 60},
		{"a lower memory limit", load{Mem: p(30)}, limits{memory: 50}, 60},
		{"the CPU is not known", load{Mem: p(30)}, limits{}, 40},
		{"the memory is not known", load{CPU: p(30)}, limits{}, 40},
		{"disk and network are no limit", load{CPU: p(15), Disk: p(100)}, limits{}, 20},
		{"an encoder", load{CPU: p(15), GPUs: gpus{{Util: p(10), Enc: p(90), Dec: p(20)}}}, limits{}, 90},
		{"a decoder", load{CPU: p(15), GPUs: gpus{{Dec: p(91)}}}, limits{}, 91},
		{"the memory of a device", load{CPU: p(15), GPUs: gpus{{Util: p(10), Mem: p(97)}}}, limits{}, 97},
		{"the busiest of several devices", load{CPU: p(15), GPUs: gpus{{Util: p(10)}, {Util: p(70)}, {Util: p(20)}}}, limits{}, 70},
		{"a device without values", load{CPU: p(15), GPUs: gpus{{}}}, limits{}, 20},
		{"a device alone", load{GPUs: gpus{{Util: p(0)}}}, limits{}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := score(tt.load, tt.limits)
			if got == nil && tt.want != unknown || got != nil && *got != tt.want {
				t.Errorf("got %v, want %d", got, tt.want)
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
