// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
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
	for _, path := range []string{"/ams/conf", "/ams/conf/jee-container.xml", serverPath} {
		must.OK(t, os.Chown(filepath.Join(s.Root, path), 4711, 4711))
	}
	return s
}

// A copy is kept under another name, where the owner of the folder has closed the usual one.
func TestMountedCopy(t *testing.T) {
	s := hisTree(t)
	must.OK(t, planCluster(t, s, "10.0.0.1").Commit("join"))
	const half = "#Sat Nov 21 00:34:56 UTC 2026\nhttp.po"
	putFile(t, s, half, 4711, 0o640)
	saved := filepath.Join(s.Root, SavedName(serverPath))
	must.OK(t, os.WriteFile(saved, nil, 0o644))
	ownFuse(t, saved)
	undoAll(t, s)
	if b, err := os.ReadFile(saved + "-1"); err != nil || string(b) != half {
		t.Errorf("kept is %q, %v", b, err)
	}
}

// A staged file on which the owner of the folder mounts something is left there: the interrupted
// commit comes to its end.
func TestMountedBeside(t *testing.T) {
	// killed interrupts a join just before this call.
	killed := func(t *testing.T, s *Store, call, file, suffix string) {
		t.Helper()
		p := planCluster(t, s, "10.0.0.1")
		var dead atomic.Bool // files are staged side by side
		s.hook = func(c, name string) error {
			if c == call && strings.HasPrefix(filepath.Base(name), "."+filepath.Base(file)) && strings.HasSuffix(name, suffix) {
				dead.Store(true)
			}
			if dead.Load() {
				return errKilled
			}
			return nil
		}
		if err := p.Commit("join"); err == nil {
			t.Fatal("not interrupted")
		}
		s.hook = nil
	}
	beside := func(t *testing.T, s *Store, of, suffix string) string {
		t.Helper()
		all, err := filepath.Glob(filepath.Join(s.Root, filepath.Dir(of), "."+filepath.Base(of)+besideMark+"*"+suffix))
		if err != nil || len(all) != 1 {
			t.Fatalf("beside %s: %v, %v", of, all, err)
		}
		return all[0]
	}
	const container = "/ams/conf/jee-container.xml"
	for name, tt := range map[string]struct {
		call, file, suffix string // what the join did not come to
		mounted            [][2]string
		finish             bool
		left               []string // what stays as the owner of the folder has it
	}{
		"the former file":           {"unlinkat", container, backupSuffix, [][2]string{{container, backupSuffix}}, true, nil},
		"the new file":              {"renameat", serverPath, tempSuffix, [][2]string{{serverPath, tempSuffix}}, false, nil},
		"the new and a former file": {"renameat", serverPath, tempSuffix, [][2]string{{serverPath, tempSuffix}, {container, backupSuffix}}, false, []string{container}},
	} {
		t.Run(name, func(t *testing.T) {
			s := hisTree(t)
			killed(t, s, tt.call, tt.file, tt.suffix)
			for _, m := range tt.mounted {
				ownFuse(t, beside(t, s, m[0], m[1]))
			}
			var stay []string
			s.Left = func(path string, _ error) { stay = append(stay, path) }
			r, err := s.Recover()
			must.OK(t, err)
			var conflicts []string
			for _, c := range r.Conflicts {
				conflicts = append(conflicts, c.Path)
			}
			if r.Finished != tt.finish || len(stay) != len(tt.mounted) || !slices.Equal(conflicts, tt.left) {
				t.Errorf("%+v, left %v", r, stay)
			}
			if r, err := s.Recover(); r != nil || err != nil {
				t.Errorf("again: %v, %v", r, err)
			}
			if record, err := s.Record(); err != nil || (record.File(container) != nil) != (tt.finish || tt.left != nil) {
				t.Errorf("the record: %v, %v", record, err)
			}
		})
	}
}
