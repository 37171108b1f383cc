// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/amsagent/amsagent/internal/must"
)

func TestDisk(t *testing.T) {
	const unknown = -1
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
			percent, err := usedPercent(tt.st)
			if (err != nil) != (tt.percent == unknown) || (percent != nil) != (err == nil) || percent != nil && *percent != tt.percent {
				t.Errorf("%v, %v, want %d", percent, err, tt.percent)
			}
		})
	}
}

// volume returns a sample of the disk of a folder.
func volume(t *testing.T, dir string) (got Sample) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		got = running(t, SamplerOptions{AMSDir: dir}).Sample(t.Context())
	})
	return got
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
			got := volume(t, dir)
			must.OK(t, got.Missing["disk"])
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

func TestDiskUnknown(t *testing.T) {
	for dir, reason := range map[string]string{"/nowhere/antmedia": "no such file", "/proc": "no size"} {
		if got := volume(t, dir); got.Load.Disk != nil || !missing(got, "disk", reason) {
			t.Errorf("%s: missing %v", dir, got.Missing)
		}
	}
}
