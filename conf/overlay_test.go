// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/internal/must"
)

// An overlay whose layers are on two file systems gives the two names of a file
// different inode numbers. That is no change.
func TestOverlay(t *testing.T) {
	lower, merged := t.TempDir(), t.TempDir()
	top, err := os.MkdirTemp("/dev/shm", "overlay") //nolint:usetesting // on another file system than t.TempDir
	if err != nil {
		t.Skipf("no second file system: %v", err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(top) })
	for _, dir := range []string{lower + "/data/conf", top + "/upper", top + "/work"} {
		must.OK(t, os.MkdirAll(dir, 0o755))
	}
	const name, before = "/data/conf/red5.properties", "a=1\n"
	must.OK(t, os.WriteFile(lower+name, []byte(before), 0o644))
	layers := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", lower, top, top)
	if err := unix.Mount("overlay", merged, "overlay", 0, layers); err != nil {
		t.Skipf("an overlay cannot be mounted: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(merged, 0) })

	s := &Store{Root: merged, Dir: "/state"}
	for _, value := range []string{"2", "3"} {
		p := newPlan(t, s)
		must.OK(t, p.Edit(Target{Path: name, Kind: KindProperties}, set("a", value)))
		must.OK(t, p.Commit("test"))
		must.Equal(t, "the file", content(t, s, name), "a="+value+"\n")
	}
	leave(t, s)
	must.Equal(t, "the file after the leave", content(t, s, name), before)
}
