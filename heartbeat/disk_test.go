// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

func TestVolume(t *testing.T) {
	t.Parallel()
	const unknown = -1
	for _, tt := range []struct {
		name        string
		st          syscall.Statfs_t
		total, used uint64
		percent     int
	}{
		{"an ext4 with blocks reserved for root", syscall.Statfs_t{Bsize: 4096, Frsize: 4096, Blocks: 1000, Bfree: 500, Bavail: 450}, 4096000, 2048000, 53},
		{"full for all users but root", syscall.Statfs_t{Bsize: 4096, Frsize: 4096, Blocks: 1000, Bfree: 50, Bavail: 0}, 4096000, 3891200, 100},
		{"rounded up, as df does", syscall.Statfs_t{Bsize: 1, Frsize: 1, Blocks: 1000, Bfree: 999, Bavail: 999}, 1000, 1, 1},
		{"empty", syscall.Statfs_t{Bsize: 4096, Frsize: 4096, Blocks: 1000, Bfree: 1000, Bavail: 1000}, 4096000, 0, 0},
		{"FUSE, whose fragments are not its blocks", syscall.Statfs_t{Bsize: 131072, Frsize: 512, Blocks: 1000, Bfree: 500, Bavail: 500}, 512000, 256000, 50},
		{"larger than 16 TiB", syscall.Statfs_t{Bsize: 4096, Frsize: 4096, Blocks: 1 << 40, Bfree: 1 << 39, Bavail: 1 << 39}, 1 << 52, 1 << 51, 50},
		{"all that is left is reserved", syscall.Statfs_t{Bsize: 1, Frsize: 1, Blocks: 10, Bfree: 10}, 10, 0, unknown},
		{"no size, as overlay without a lower layer or proc", syscall.Statfs_t{Bsize: 4096, Frsize: 4096}, 0, 0, unknown},
		{"no unit", syscall.Statfs_t{Blocks: 10, Bfree: 5, Bavail: 5}, 0, 0, unknown},
		{"more free than there is", syscall.Statfs_t{Frsize: 1, Blocks: 10, Bfree: 11, Bavail: 5}, 0, 0, unknown},
		{"a negative unit", syscall.Statfs_t{Bsize: -1, Frsize: -1, Blocks: 10}, 0, 0, unknown},
		{"a size that overflows", syscall.Statfs_t{Bsize: 4096, Frsize: 4096, Blocks: 1 << 60}, 0, 0, unknown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := NewSampler(SamplerOptions{})
			s.statfs = func(_ string, st *syscall.Statfs_t) error { *st = tt.st; return nil }
			v := s.readVolume()
			if (v.err != nil) != (tt.total == 0) {
				t.Fatalf("error %v", v.err)
			}
			if v.total != tt.total || v.used != tt.used {
				t.Errorf("%d of %d, want %d of %d", v.used, v.total, tt.used, tt.total)
			}
			switch p := v.percent(); {
			case p == nil && tt.percent != unknown, p != nil && *p != tt.percent:
				t.Errorf("percent %v, want %d", p, tt.percent)
			}
		})
	}
}

// The result is that of df.
func TestVolumeAsDFShowsIt(t *testing.T) {
	t.Parallel()
	for _, dir := range []string{"/", "/dev/shm", t.TempDir()} {
		// Other processes write meanwhile: retry before failing.
		must.Until(t, "what df shows of "+dir, func() bool {
			shown, err := df(dir)
			if err != nil {
				t.Skipf("df: %v", err)
			}
			v := NewSampler(SamplerOptions{AMSDir: dir}).readVolume()
			must.OK(t, v.err)
			return *v.percent() == shown
		})
	}
}

func df(dir string) (int, error) {
	out, err := exec.Command("df", "--output=pcent", dir).Output()
	if err != nil {
		return 0, err
	}
	_, text, _ := strings.Cut(string(out), "\n")
	return strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(text), "%"))
}

func TestVolumeIsNotThere(t *testing.T) {
	t.Parallel()
	s := NewSampler(SamplerOptions{AMSDir: "/nowhere/antmedia"})
	s.ask()
	if got := s.Sample(t.Context()); got.Load.Disk != nil || !missing(got, whatDisk, syscall.ENOENT) {
		t.Errorf("missing %v", got.Missing)
	}
}
