// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package tree_test

import (
	"bytes"
	stdcmp "cmp"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/amsagent/amsagent/internal/must"
	"github.com/amsagent/amsagent/metadata"
	"github.com/amsagent/amsagent/sandbox/tree"
)

var update = flag.Bool("update", false, "copy the master files to testdata/trees")

func write(t *testing.T, o tree.Options) tree.Tree {
	t.Helper()
	tr, err := tree.Write(filepath.Join(t.TempDir(), "root"), o)
	must.OK(t, err)
	return tr
}

func read(t *testing.T, p string) string {
	t.Helper()
	b, err := os.ReadFile(p)
	must.OK(t, err)
	return string(b)
}

// The agent's own tests use copies of the master files, because an embedded file
// cannot come from another module.
func TestCopiesForTheAgentAreTheSame(t *testing.T) {
	t.Parallel()
	for _, variant := range tree.Variants() {
		files, err := tree.Files(variant)
		must.OK(t, err)
		dir := filepath.Join("..", "..", "testdata", "trees", variant)
		if *update {
			for name, b := range files {
				p := filepath.Join(dir, name)
				must.OK(t, os.MkdirAll(filepath.Dir(p), 0o755))
				must.OK(t, os.WriteFile(p, b, 0o644))
			}
		}
		seen := 0
		err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			seen++
			rel, _ := filepath.Rel(dir, p)
			want, ok := files[filepath.ToSlash(rel)]
			if !ok {
				t.Errorf("%s: no such master file", p)
			} else if got := read(t, p); got != string(want) {
				t.Errorf("%s differs from its master (go test ./tree -update)", p)
			}
			return nil
		})
		must.OK(t, err)
		must.Equal(t, dir+": files (go test ./tree -update)", seen, len(files))
	}
}

// TestFirmware: the agent knows each cloud by its firmware alone, and nothing by the
// firmware of a machine that is in none.
func TestFirmware(t *testing.T) {
	t.Parallel()
	for _, name := range tree.Firmware() {
		tr := write(t, tree.Options{DMI: name})
		d, err := metadata.Detect(metadata.Options{Root: tr.Root})
		must.OK(t, err)
		want := name
		if name == "kvm" {
			want = metadata.Generic
		}
		must.Equal(t, fmt.Sprintf("a machine with the firmware of %s is in, by %+v", name, d.Because), stdcmp.Or(d.Platform, d.Provider), want)
	}
}

func TestSnapshotSeesEverything(t *testing.T) {
	t.Parallel()
	changes := map[string]func(tree.Tree) error{
		"content": func(tr tree.Tree) error { return appendTo(tr.App("root"), " ") },
		"mode":    func(tr tree.Tree) error { return os.Chmod(tr.App("root"), 0o600) },
		"new":     func(tr tree.Tree) error { return os.WriteFile(tr.Conf("new"), nil, 0o644) },
		"gone":    func(tr tree.Tree) error { return os.Remove(tr.App("root")) },
		"link": func(tr tree.Tree) error {
			return errors.Join(os.Remove(filepath.Join(tr.Dir, "log")), os.Symlink("conf", filepath.Join(tr.Dir, "log")))
		},
	}
	for _, name := range slices.Sorted(maps.Keys(changes)) {
		tr := write(t, tree.Options{})
		before, err := tree.Snapshot(tr.Root)
		must.OK(t, err)
		must.OK(t, changes[name](tr))
		after, err := tree.Snapshot(tr.Root)
		must.OK(t, err)
		if slices.Equal(before, after) {
			t.Errorf("a change of kind %s is not seen", name)
		}
		if skipped, err := tree.Snapshot(tr.Root, "usr"); err != nil || len(skipped) >= len(before) || fmt.Sprint(skipped) == "[]" {
			t.Errorf("Snapshot without usr: %d lines, %v", len(skipped), err)
		}
	}
}

func appendTo(p, s string) error {
	b, err := os.ReadFile(p)
	if err != nil {
		return err
	}
	return os.WriteFile(p, append(bytes.Clone(b), s...), 0o644)
}
