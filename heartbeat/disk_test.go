// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

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
		{"full for everybody but root", syscall.Statfs_t{Bsize: 4096, Frsize: 4096, Blocks: 1000, Bfree: 50, Bavail: 0}, 4096000, 3891200, 100},
		{"rounded up, as df does", syscall.Statfs_t{Bsize: 1, Frsize: 1, Blocks: 1000, Bfree: 999, Bavail: 999}, 1000, 1, 1},
		{"empty", syscall.Statfs_t{Bsize: 4096, Frsize: 4096, Blocks: 1000, Bfree: 1000, Bavail: 1000}, 4096000, 0, 0},
		{"FUSE, whose fragments are not its blocks", syscall.Statfs_t{Bsize: 131072, Frsize: 512, Blocks: 1000, Bfree: 500, Bavail: 500}, 512000, 256000, 50},
		{"an old kernel without fragments", syscall.Statfs_t{Bsize: 4096, Blocks: 1000, Bfree: 500, Bavail: 500}, 4096000, 2048000, 50},
		{"larger than 16 TiB", syscall.Statfs_t{Bsize: 4096, Frsize: 4096, Blocks: 1 << 40, Bfree: 1 << 39, Bavail: 1 << 39}, 1 << 52, 1 << 51, 50},
		{"all that is left is reserved", syscall.Statfs_t{Bsize: 1, Frsize: 1, Blocks: 10, Bfree: 10}, 10, 0, unknown},
		{"no size, as overlay without a lower layer or proc", syscall.Statfs_t{Bsize: 4096, Frsize: 4096}, 0, 0, unknown},
		{"no unit", syscall.Statfs_t{Blocks: 10, Bfree: 5, Bavail: 5}, 0, 0, unknown},
		{"more free than there is", syscall.Statfs_t{Bsize: 1, Blocks: 10, Bfree: 11, Bavail: 5}, 0, 0, unknown},
		{"a negative unit", syscall.Statfs_t{Bsize: -1, Frsize: -1, Blocks: 10}, 0, 0, unknown},
		{"a size that overflows", syscall.Statfs_t{Bsize: 4096, Frsize: 4096, Blocks: 1 << 60}, 0, 0, unknown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			v, err := newVolume(tt.st)
			if (err != nil) != (tt.total == 0) {
				t.Fatalf("error %v", err)
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

// df is who an operator asks.
func TestVolumeAsDFShowsIt(t *testing.T) {
	t.Parallel()
	for _, dir := range []string{"/", "/dev/shm", t.TempDir()} {
		// Others write meanwhile: another percentage once is theirs, and one that stays is ours.
		must.Until(t, "what df shows of "+dir, func() bool {
			shown, err := df(dir)
			if err != nil {
				t.Skipf("df: %v", err)
			}
			got := NewSampler(SamplerOptions{AMSDir: dir, Wait: time.Hour}).Sample(t.Context())
			if got.Load.Disk == nil {
				t.Fatalf("%s: missing %v", dir, got.Missing)
			}
			return *got.Load.Disk == shown
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

// The installation is below the root, and so are the links on the way to it.
func TestVolumeBelowRoot(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	real := filepath.Join(root, "data/ams")
	if err := errors.Join(
		os.MkdirAll(real, 0o755), os.MkdirAll(filepath.Join(root, "usr/local"), 0o755), os.Symlink("/data/ams", filepath.Join(root, "usr/local/antmedia")),
	); err != nil {
		t.Fatal(err)
	}
	s := NewSampler(SamplerOptions{Root: root, AMSDir: "/usr/local/antmedia", Wait: time.Hour})
	var asked string
	s.statfs = func(path string, _ *syscall.Statfs_t) error { asked = path; return syscall.EIO }
	got := s.Sample(t.Context())
	if asked != real {
		t.Errorf("asked about %s, want %s", asked, real)
	}
	if got.Load.Disk != nil || !missing(got, whatDisk, syscall.EIO) {
		t.Errorf("missing %v", got.Missing)
	}
	if got := NewSampler(SamplerOptions{AMSDir: "/nowhere/antmedia", Wait: time.Hour}).Sample(t.Context()); !missing(got, whatDisk, syscall.ENOENT) {
		t.Errorf("missing %v", got.Missing)
	}
}
