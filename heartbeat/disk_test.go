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

func TestDisk(t *testing.T) {
	const unknown = -1
	defer func(f func(string, *syscall.Statfs_t) error) { statfs = f }(statfs)
	for _, tt := range []struct {
		name    string
		st      syscall.Statfs_t
		percent int
	}{
		{"an ext4 with blocks reserved for root", syscall.Statfs_t{Blocks: 1000, Bfree: 500, Bavail: 450}, 53},
		{"full for all users but root", syscall.Statfs_t{Blocks: 1000, Bfree: 50, Bavail: 0}, 100},
		{"rounded up, as df does", syscall.Statfs_t{Blocks: 1000, Bfree: 999, Bavail: 999}, 1},
		{"empty", syscall.Statfs_t{Blocks: 1000, Bfree: 1000, Bavail: 1000}, 0},
		{"larger than 16 TiB", syscall.Statfs_t{Blocks: 1 << 40, Bfree: 1 << 39, Bavail: 1 << 39}, 50},
		{"all that is left is reserved", syscall.Statfs_t{Blocks: 10, Bfree: 10}, unknown},
		{"no size, as overlay without a lower layer or proc", syscall.Statfs_t{}, unknown},
		{"more free than there is", syscall.Statfs_t{Blocks: 10, Bfree: 11, Bavail: 5}, unknown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			statfs = func(_ string, st *syscall.Statfs_t) error { *st = tt.st; return nil }
			d := readDisk("/")
			if (d.err != nil) != (tt.percent == unknown) || d.percent != nil && *d.percent != tt.percent {
				t.Errorf("%v, %v, want %d", d.percent, d.err, tt.percent)
			}
		})
	}
}

// The result is that of df.
func TestDiskAsDFShowsIt(t *testing.T) {
	for _, dir := range []string{"/", "/dev/shm", t.TempDir()} {
		// Other processes write meanwhile: retry before failing.
		must.Until(t, "what df shows of "+dir, func() bool {
			shown, err := df(dir)
			if err != nil {
				t.Skipf("df: %v", err)
			}
			d := readDisk(dir)
			must.OK(t, d.err)
			return *d.percent == shown
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

func TestDiskIsNotThere(t *testing.T) {
	s := NewSampler(SamplerOptions{AMSDir: "/nowhere/antmedia"})
	s.ask()
	if got := s.Sample(t.Context()); got.Load.Disk != nil || !missing(got, whatDisk, syscall.ENOENT) {
		t.Errorf("missing %v", got.Missing)
	}
}
