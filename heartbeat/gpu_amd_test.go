// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// amdTree unpacks a tree of testdata/amdgpu.
func amdTree(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata/amdgpu", name+".txtar"))
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	var path string
	var content strings.Builder
	put := func() {
		if path == "" {
			return
		}
		path, link, isLink := strings.Cut(path, " -> ")
		file := filepath.Join(root, path)
		err := os.MkdirAll(filepath.Dir(file), 0o755)
		if err == nil && isLink {
			err = os.Symlink(link, file)
		} else if err == nil {
			err = os.WriteFile(file, []byte(content.String()), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for line := range strings.Lines(string(b)) {
		if next, ok := strings.CutPrefix(strings.TrimSuffix(line, " --\n"), "-- "); ok {
			put()
			path = next
			content.Reset()
			continue
		}
		content.WriteString(line)
	}
	put()
	return root
}

func TestAMDTrees(t *testing.T) {
	f := func(v float64) *float64 { return &v }
	n := func(v uint64) *uint64 { return &v }
	at := gpuNoon()
	for name, want := range map[string]GPUReading{
		"v710": {State: GPUReady, At: at, Devices: []GPU{{
			Name: "AMD Radeon Pro V710 MxGPU", UUID: "5f1c1e0a2b3c4d5e", Driver: "6.7.0", Util: f(42), Enc: f(17), Dec: f(17),
			MemUsed: n(1 << 30), MemTotal: n(28 << 30), Temperature: f(51), Power: f(63.5),
		}}},
		"two": {
			State: GPUReady, At: at, Reason: "GPU 1 (AMD 0x67df): the kernel gives no reading",
			Devices: []GPU{
				{Name: "AMD 0x67df", Util: f(0), MemTotal: n(8 << 30), Power: f(9)},
				{Index: 1, Name: "AMD 0x67df", MemTotal: n(8 << 30)},
			},
		},
		"asleep": {State: GPUFailing, At: at, Reason: "GPU 0 (AMD 0x73bf): the kernel gives no reading"},
	} {
		t.Run(name, func(t *testing.T) {
			root := amdTree(t, name)
			if diff := cmp.Diff(want, readAMD(root, amdCards(root), at)); diff != "" {
				t.Error(diff)
			}
		})
	}
	if cards := amdCards(amdTree(t, "es1000")); len(cards) != 0 {
		t.Errorf("%v", cards)
	}
	if cards := amdCards(t.TempDir()); len(cards) != 0 {
		t.Errorf("%v", cards)
	}
}

// Without a child: AMD's devices alone, their driver's coming and going, and the
// kernel's falling silent.
func TestAMDWatched(t *testing.T) {
	g := newGPUWorld(t)
	if err := os.RemoveAll(filepath.Join(g.root, "dev")); err != nil {
		t.Fatal(err)
	}
	g.watch(time.Millisecond, func(p *gpuPace) { p.look = time.Millisecond })
	g.w.o.Log.Info("AMD comes")
	g.becomes(GPUAbsent)
	device := "sys/class/drm/card0/device/"
	g.write(device+"mem_info_vram_total", "1024\n")
	g.write(device+"vendor", "0x1002\n")
	g.becomes(GPUFailing, "the kernel gives no reading")
	g.write(device+"gpu_busy_percent", "5\n")
	eventually(t, "its load", func() bool {
		r := g.w.Latest()
		return r.State == GPUReady && *r.Devices[0].Util == 5 && r.Devices[0].Enc == nil
	})
	if err := os.RemoveAll(filepath.Join(g.root, "sys")); err != nil {
		t.Fatal(err)
	}
	g.becomes(GPUAbsent)
	if g.w.starts.Load() != 0 {
		t.Errorf("%d starts", g.w.starts.Load())
	}
}

// A look at a machine without GPU, as every machine without one takes it.
func BenchmarkGPULook(b *testing.B) {
	w := NewGPUWatcher(GPUOptions{})
	b.ReportAllocs()
	for b.Loop() {
		_ = w.look()
		_ = amdCards("/")
	}
}
