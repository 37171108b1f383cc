// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/ams"
	"github.com/amsagent/amsagent/bootstrap"
	"github.com/amsagent/amsagent/conf"
	"github.com/amsagent/amsagent/files"
)

// treeOf is a machine below another root with these files; they are holes.
func treeOf(t *testing.T, sizes map[string]int64) *patient {
	t.Helper()
	root := t.TempDir()
	for name, size := range sizes {
		real := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(real), 0o755), os.WriteFile(real, nil, 0o644), os.Truncate(real, size)); err != nil {
			t.Fatal(err)
		}
	}
	return &patient{root: root, store: &conf.Store{Root: root, Dir: bootstrap.StateDir}}
}

// A process makes its arguments as large as it likes, and the server's user its files.
func TestReadsAreBounded(t *testing.T) {
	const server = "/usr/local/antmedia/conf/red5.properties"
	p := treeOf(t, map[string]int64{"proc/77/cmdline": 64 << 20, server: 1 << 20})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if p.isServer(77, &bootstrap.Inspection{Install: &ams.Installation{Real: "/usr/local/antmedia"}}) {
		t.Error("it is the server")
	}
	if _, ok := p.read(ams.File{Path: server}, "red5.properties"); ok {
		t.Errorf("a settings file of 1 MB is read")
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 4<<20 {
		t.Errorf("%d MB were taken", n>>20)
	}
	if _, err := p.system("/proc/77/cmdline"); !errors.Is(err, files.ErrTooLarge) {
		t.Error(err)
	}
}

// The search for a process ends when all are found, and with the time.
func TestNamesOfListeners(t *testing.T) {
	p := treeOf(t, map[string]int64{"proc/1/comm": 0, "proc/self": 0})
	for fd, to := range map[string]string{"1/fd/0": "/dev/null", "1/fd/1": "socket:[7]", "2/fd/5": "socket:[8]"} {
		real := filepath.Join(p.root, "proc", fd)
		if err := errors.Join(os.MkdirAll(filepath.Dir(real), 0o755), os.Symlink(to, real)); err != nil {
			t.Fatal(err)
		}
	}
	list := []listener{{inode: "7"}, {inode: "8"}, {inode: "9"}}
	p.name(t.Context(), list)
	if list[0].pid != 1 || list[0].name != "a process" || list[1].pid != 2 || list[2].pid != 0 {
		t.Errorf("%+v", list)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	list = []listener{{inode: "7"}, {inode: "8"}}
	p.name(ended, list)
	if list[0].pid != 0 && list[1].pid != 0 {
		t.Errorf("it goes on after its time: %+v", list)
	}
}

// The record that a leave needs is larger than other files, and is not read here.
func TestLargeUndoRecord(t *testing.T) {
	p := treeOf(t, map[string]int64{undoPath: 8 << 20})
	for path, mode := range map[string]fs.FileMode{undoPath: 0o644, bootstrap.StateDir: 0o755, "/var/lib": 0o755, "/var": 0o755} {
		if err := os.Chmod(filepath.Join(p.root, path), mode); err != nil {
			t.Fatal(err)
		}
	}
	p.inspection = begin(func() (*bootstrap.Inspection, error) { return &bootstrap.Inspection{}, nil })
	found := checkSecrets(t.Context(), p)
	if len(found) != 1 || found[0].Verdict != Bad || !strings.Contains(found[0].Seen, undoPath) {
		t.Errorf("%+v", found)
	}
}
