// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/cluster"
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
		limits ams.Limits
		want   int
	}{
		{"nothing is known", load{}, ams.Limits{}, unknown},
		{"the CPU is nearer to its limit", load{CPU: p(60), Mem: p(50)}, ams.Limits{}, 80},
		{"the memory is", load{CPU: p(10), Mem: p(60)}, ams.Limits{}, 80},
		{"idle", load{CPU: p(0), Mem: p(0)}, ams.Limits{}, 0},
		{"where AMS refuses", load{CPU: p(75)}, ams.Limits{}, 100},
		{"above", load{CPU: p(100)}, ams.Limits{}, 100},
		{"the same load where the limit is higher", load{CPU: p(60)}, ams.Limits{CPU: 100}, 60},
		{"a lower memory limit", load{Mem: p(30)}, ams.Limits{Memory: 50}, 60},
		{"the CPU is not known", load{Mem: p(30)}, ams.Limits{}, 40},
		{"the memory is not known", load{CPU: p(30)}, ams.Limits{}, 40},
		{"disk and network are no limit", load{CPU: p(15), Disk: p(100)}, ams.Limits{}, 20},
		{"an encoder", load{CPU: p(15), GPUs: gpus{{Util: p(10), Enc: p(90), Dec: p(20)}}}, ams.Limits{}, 90},
		{"a decoder", load{CPU: p(15), GPUs: gpus{{Dec: p(91)}}}, ams.Limits{}, 91},
		{"the memory of a device", load{CPU: p(15), GPUs: gpus{{Util: p(10), Mem: p(97)}}}, ams.Limits{}, 97},
		{"the busiest of several devices", load{CPU: p(15), GPUs: gpus{{Util: p(10)}, {Util: p(70)}, {Util: p(20)}}}, ams.Limits{}, 70},
		{"a device without values", load{CPU: p(15), GPUs: gpus{{}}}, ams.Limits{}, 20},
		{"a device alone", load{GPUs: gpus{{Util: p(0)}}}, ams.Limits{}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := score(tt.load, tt.limits)
			if got == nil {
				got = p(unknown)
			}
			must.Equal(t, "score", *got, tt.want)
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
	s := newSampler(SamplerOptions{
		Root: filepath.Join(m.dir, "root"),
		Open: func() (*ams.Installation, error) { return ams.Open(tree, "") },
	}, nil)
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
	must.Equal(t, "without an installation", *s.Sample(t.Context()).Load.Score, 50)
}
