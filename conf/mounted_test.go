// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/internal/must"
)

// ownFuse mounts a file system of user 4711 on a file, as fusermount does for that user: root may not
// look into it, nor remove the file below it. It gives the way to take it away.
func ownFuse(t *testing.T, real string) {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("needs FUSE: %v", err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=100000,user_id=4711,group_id=4711", fd)
	if err := unix.Mount("test", real, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		_ = unix.Close(fd)
		t.Skipf("needs the right to mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(real, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
		_ = unix.Close(fd)
	})
}

// hisTree is a tree whose folder conf belongs to user 4711.
func hisTree(t *testing.T) *Store {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to give files away")
	}
	s := newTree(t)
	for _, path := range []string{"/ams/conf", containerPath, serverPath} {
		must.OK(t, os.Chown(at(s, path), 4711, 4711))
	}
	return s
}

// A copy is kept under another name, where the owner of the folder has closed the usual one.
func TestMountedCopy(t *testing.T) {
	s := hisTree(t)
	join(t, s, "10.0.0.1")
	const half = javaDate + "http.po"
	putFile(t, s, half, 4711, 0o640)
	put(t, s, SavedName(serverPath), "")
	ownFuse(t, at(s, SavedName(serverPath)))
	undoAll(t, s)
	must.Equal(t, "the kept file", content(t, s, SavedName(serverPath)+"-1"), half)
}

// A staged file on which the owner of the folder mounts something is left there: the interrupted
// commit comes to its end.
func TestMountedBeside(t *testing.T) {
	s := hisTree(t)
	staged := interrupted(t, s, planCluster(t, s, "10.0.0.1").Commit, 0)
	staged = slices.DeleteFunc(staged, func(name string) bool { return !IsLeftover(serverPath, filepath.Base(name)) })
	must.Equal(t, "staged files", len(staged), 1)
	ownFuse(t, at(s, staged[0]))
	var stay []string
	s.Left = func(path string, _ error) { stay = append(stay, path) }
	r := recovered(t, s)
	must.NoDiff(t, "left", stay, staged)
	conflictOf(t, r.Conflicts, serverPath)
	if r := recovered(t, s); r != nil {
		t.Errorf("again: %v", r)
	}
	if record, err := s.Record(); err != nil || record.File(serverPath) == nil {
		t.Errorf("the record: %v, %v", record, err)
	}
}
