// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
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
	"github.com/amsagent/amsagent/internal/must"
)

// treeOf is a machine below another root with these files; they are holes.
func treeOf(t *testing.T, sizes map[string]int64) *patient {
	t.Helper()
	root := t.TempDir()
	for name, size := range sizes {
		real := filepath.Join(root, name)
		must.OK(t, errors.Join(os.MkdirAll(filepath.Dir(real), 0o755), os.WriteFile(real, nil, 0o644), os.Truncate(real, size)))
	}
	return &patient{root: root, store: &conf.Store{Root: root, Dir: bootstrap.StateDir}}
}

// The server's user makes its files as large as it likes.
func TestReadsAreBounded(t *testing.T) {
	const server = "/usr/local/antmedia/conf/red5.properties"
	p := treeOf(t, map[string]int64{server: 1 << 20})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, ok := p.read(ams.File{Path: server}, "red5.properties"); ok {
		t.Errorf("a settings file of 1 MB is read")
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 4<<20 {
		t.Errorf("%d MB were taken", n>>20)
	}
}

// The record that a leave needs is larger than other files, and is not read here.
func TestLargeUndoRecord(t *testing.T) {
	p := treeOf(t, map[string]int64{undoPath: 8 << 20})
	for path, mode := range map[string]fs.FileMode{undoPath: 0o644, bootstrap.StateDir: 0o755, "/var/lib": 0o755, "/var": 0o755} {
		must.OK(t, os.Chmod(filepath.Join(p.root, path), mode))
	}
	p.inspection = begin(func() (*bootstrap.Inspection, error) { return &bootstrap.Inspection{}, nil })
	found := checkSecrets(t.Context(), p)
	if len(found) != 1 || found[0].Severity != Bad || !strings.Contains(found[0].Text, undoPath) {
		t.Errorf("%+v", found)
	}
}
