// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package files

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/internal/must"
)

// FuzzWalk compares the walk with the kernel's below a root (RESOLVE_IN_ROOT), in a tree that belongs to this user: both find
// the same inode, or none.
//
// A line of the tree is a kind and a path: d(irectory), f(ile), or l(ink) with " > " and its target.
func FuzzWalk(f *testing.F) {
	for _, seed := range [][2]string{
		{"d a\nf a/b\nl c > a/b", "c"},
		{"d a\nl a/up > ../..\nf x", "a/up/x"},
		{"l a > /b\nd b\nl b/c > ../d\nf d", "a/c"},
		{"l a > b\nl b > a", "a"},
		{"l a > .", "a/a/a"},
		{"f a\nl b > a/..", "b"},
		{"l a > gone", "a"},
		{"l a > gone/x", "a"},
		{"d a\nl b > a/\nf a/c", "b/c"},
		{"d a\nl b > ./a/../a/.\nf a/c", "b/../b/c"},
		{"f a\nl b > a/", "b"},
		{"l a > //d//e\nd d\nf d/e", "/a/"},
		{"d d\nl a > d/../../../f\nf f", "a"},
		{"l a > b/b\nl b > c/c\nl c > d/d\nl d > e/e\nl e > f/f\nl f > .", "a"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, tree, path string) {
		if strings.ContainsRune(path, 0) || len(path) > 1000 {
			return
		}
		root := t.TempDir()
		for i, line := range strings.Split(tree, "\n") {
			if i == 16 {
				break
			}
			grow(root, line)
		}
		want := kernelWalk(t, root, path)
		if got := ourWalk(Root{Path: root}, path); got != want {
			t.Errorf("%q in\n%s\nis %s, and %s for the kernel", path, tree, got, want)
		}
	})
}

// grow makes the file of a line, if possible; no link is followed outside the root.
func grow(root, line string) {
	kind, name, _ := strings.Cut(line, " ")
	name, to, _ := strings.Cut(name, " > ")
	if strings.ContainsRune(line, 0) || len(line) > 200 {
		return
	}
	d, err := os.OpenRoot(root)
	if err != nil {
		return
	}
	defer d.Close()
	name = strings.TrimPrefix(filepath.Join("/", name), "/")
	switch kind { // what cannot be made is not there
	case "d":
		_ = d.Mkdir(name, 0o755)
	case "f":
		_ = d.WriteFile(name, nil, 0o644)
	case "l":
		_ = d.Symlink(to, name)
	}
}

const nowhere = "nowhere"

// kernelWalk is the inode that the kernel comes to.
func kernelWalk(t *testing.T, root, path string) string {
	t.Helper()
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must.OK(t, err)
	defer func() { _ = unix.Close(dir) }()
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(dir, filepath.Join("/", path), &how)
	for errors.Is(err, unix.EAGAIN) { // "..", and a rename or a mount anywhere on this machine at that moment
		fd, err = unix.Openat2(dir, filepath.Join("/", path), &how)
	}
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		t.Skipf("this kernel has no openat2: %v", err)
	}
	if err != nil {
		return nowhere
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	must.OK(t, unix.Fstat(fd, &st))
	return fmt.Sprint(st.Ino)
}

func ourWalk(r Root, path string) string {
	info, err := r.Stat(path)
	if err != nil {
		return nowhere
	}
	return fmt.Sprint(info.ID.Ino)
}
