// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package tree

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// Snapshot lists everything below dir, sorted, one line each: type and mode, owner,
// target of a link or digest of the content, path. Two equal snapshots are two
// byte-identical trees; times are left out, and so are the marks that the server makes and removes
// at each start and stop (.initialized, .closed). Paths that begin with one of skip
// (slash-separated, relative to dir) are left out too.
func Snapshot(dir string, skip ...string) ([]string, error) {
	return SnapshotBy(dir, func(_ string, content []byte) ([]byte, error) { return content, nil }, skip...)
}

// SnapshotBy is Snapshot with the digest of what is made of each file's content; path
// is relative to dir. So two trees can be the same by what their files mean.
func SnapshotBy(dir string, meaning func(path string, content []byte) ([]byte, error), skip ...string) ([]string, error) {
	var out []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(skip, func(s string) bool { return rel == s || strings.HasPrefix(rel, s+"/") }) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if name := d.Name(); name == ".initialized" || name == ".closed" {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		owner := "?"
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			owner = fmt.Sprintf("%d:%d", st.Uid, st.Gid)
		}
		content := "-"
		switch {
		case info.Mode().IsRegular():
			b, err := os.ReadFile(p)
			if err == nil {
				b, err = meaning(filepath.ToSlash(rel), b)
			}
			if err != nil {
				return err
			}
			content = fmt.Sprintf("%x", sha256.Sum256(b))
		case info.Mode()&fs.ModeSymlink != 0:
			if content, err = os.Readlink(p); err != nil {
				return err
			}
		}
		out = append(out, fmt.Sprintf("%s %s %s %s", info.Mode(), owner, content, rel))
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w", dir, err)
	}
	return out, nil
}
