// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package heartbeat

import (
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
)

func volume(t *testing.T, dir string) Sample {
	t.Helper()
	s := NewSampler(SamplerOptions{AMSDir: dir})
	s.ask()
	return s.Sample(t.Context())
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
