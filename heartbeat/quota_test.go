// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A server that was restarted, or whose quota was changed, starts again; where there is
// no quota, nothing is read but once a minute.
func TestQuotaMeter(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	now, used := time.Unix(1_700_000_000, 0), 1_000_000
	var m quotaMeter
	// look lets 5 s pass, in which the group used so many seconds of CPU time.
	look := func(pid int, started uint64, seconds, want float64) {
		t.Helper()
		now, used = now.Add(5*time.Second), used+int(seconds*1e6)
		write("sys/fs/cgroup/a/cpu.stat", fmt.Sprintf("usage_usec %d\n", used))
		if got := m.read(filepath.Join(root, "proc"), filepath.Join(root, "sys"), pid, started, now); math.Abs(got-want) > 0.01 {
			t.Errorf("%.2f %%, want %.2f", got, want)
		}
	}
	for _, pid := range []string{"812", "813"} {
		write("proc/"+pid+"/cgroup", "0::/a\n")
	}
	write("sys/fs/cgroup/a/cpu.max", "200000 100000\n")
	look(812, 1, 5, 0)
	look(812, 1, 5, 50)
	look(812, 1, 0, 0)
	look(812, 1, 1000, 100)

	look(813, 2, 5, 0) // another process
	look(813, 2, 8, 80)
	look(813, 3, 5, 0) // the same number
	look(813, 3, 4, 40)
	look(0, 0, 4, 0) // it ended
	look(813, 4, 4, 0)
	look(813, 4, 2, 20)

	write("sys/fs/cgroup/a/cpu.max", "400000 100000\n")
	for range 10 {
		look(813, 4, 2, 20)
	}
	look(813, 4, 2, 10) // a minute after the start of the process
	write("sys/fs/cgroup/a/cpu.max", "max 100000\n")
	now = now.Add(time.Minute)
	look(813, 4, 2, 0)

	write("sys/fs/cgroup/a/cpu.max", "100000 100000\n")
	for range 11 {
		look(813, 4, 2, 0)
	}
	look(813, 4, 2, 0) // it is seen
	look(813, 4, 2, 40)

	// No time has passed.
	now = now.Add(-5 * time.Second)
	look(813, 4, 2, 0)
}

// A beat reads one file where there is a quota, and none where there is none.
func BenchmarkQuota(b *testing.B) {
	for _, quota := range []string{"max 100000", "200000 100000"} {
		b.Run(quota, func(b *testing.B) {
			root := b.TempDir()
			for name, text := range map[string]string{"proc/812/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": quota, "sys/fs/cgroup/a/cpu.stat": "usage_usec 1000\n"} {
				name = filepath.Join(root, name)
				if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
					b.Fatal(err)
				}
				if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
					b.Fatal(err)
				}
			}
			var m quotaMeter
			b.ReportAllocs()
			for b.Loop() {
				m.read(filepath.Join(root, "proc"), filepath.Join(root, "sys"), 812, 1, time.Now())
			}
		})
	}
}
