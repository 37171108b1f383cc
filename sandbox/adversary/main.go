// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

// Command adversary is the user of a broken server: it owns the server's folder,
// and exchanges files and folders in it, without a pause, for what it would like
// root to touch. It runs as that user, until its standard input ends; then it puts
// everything back as it found it.
//
//	adversary ROOT TREE OUTSIDE SEED 3>>MARKS
//
// ROOT is what the agent takes for the machine. OUTSIDE is a folder of root's in it, by
// the name that the agent has for it: a link must lead there for the agent, too. To
// MARKS it adds the inode of each file that it makes setuid or setgid, a line each and
// beforehand: any other such file is root's work.
package main

import (
	"cmp"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) != 5 {
		fmt.Fprintln(os.Stderr, "usage: adversary ROOT TREE OUTSIDE SEED")
		os.Exit(2)
	}
	seed, err := strconv.ParseUint(os.Args[4], 10, 64)
	if err == nil {
		err = run(os.Args[1], os.Args[2], os.Args[3], seed)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "adversary:", err)
		os.Exit(1)
	}
}

// adversary is one at work.
type adversary struct {
	root, tree, outside string
	rand                *rand.Rand
	files, dirs         []string
	was                 map[string]saved
	passwd              []byte
	marks               *os.File
}

type saved struct {
	content []byte
	mode    fs.FileMode
}

func run(root, tree, outside string, seed uint64) error {
	a := &adversary{root: root, tree: tree, outside: outside, rand: rand.New(rand.NewPCG(seed, 1)), was: map[string]saved{}, marks: os.NewFile(3, "marks")}
	var err error
	if a.passwd, err = os.ReadFile(filepath.Join(root, outside, "passwd")); err != nil {
		return err
	}
	for _, pattern := range []string{"conf/*.xml", "conf/*.properties", "webapps/*/WEB-INF/*.properties"} {
		found, err := filepath.Glob(filepath.Join(tree, pattern))
		if err != nil {
			return err
		}
		a.files = append(a.files, found...)
	}
	for _, pattern := range []string{"conf", "webapps/*", "webapps/*/WEB-INF"} {
		found, err := filepath.Glob(filepath.Join(tree, pattern))
		if err != nil {
			return err
		}
		a.dirs = append(a.dirs, found...)
	}
	for _, name := range a.files {
		info, err := os.Stat(name)
		if err != nil {
			return err
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		a.was[name] = saved{b, info.Mode().Perm()}
	}
	var done atomic.Bool
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		done.Store(true)
	}()
	fmt.Println("ready")
	for n := 0; ; n++ {
		if done.Load() {
			fmt.Println(n, "attacks")
			return a.calm()
		}
		a.attack()
		// Some commands must come as far as their renames.
		<-time.After(time.Duration(a.rand.IntN(30)) * time.Millisecond)
	}
}

// calm puts everything back.
func (a *adversary) calm() error {
	err := filepath.WalkDir(a.tree, func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
		case d.IsDir() && strings.Contains(d.Name(), ".amsagent-"): // of case 9
			err = cmp.Or(os.RemoveAll(name), fs.SkipDir)
		case strings.HasSuffix(name, ".mine") && !d.IsDir():
			err = os.Remove(name)
		}
		return err
	})
	if err != nil {
		return err
	}
	for name, s := range a.was {
		if err := os.RemoveAll(name); err != nil {
			return err
		}
		if err := os.WriteFile(name, s.content, 0o600); err != nil {
			return err
		}
		if err := os.Chmod(name, s.mode); err != nil {
			return err
		}
	}
	return nil
}

// exchange puts what create makes in the place of a name, for a moment.
func (a *adversary) exchange(name string, create func(string) error) {
	mine := name + ".mine"
	_ = os.RemoveAll(mine)
	if create(mine) != nil {
		return
	}
	if swap(mine, name) {
		a.linger()
		_ = swap(mine, name)
	}
	_ = os.RemoveAll(mine)
}

func swap(mine, name string) bool {
	return unix.Renameat2(unix.AT_FDCWD, mine, unix.AT_FDCWD, name, unix.RENAME_EXCHANGE) == nil
}

// linger gives the other side time for a few calls, or for a whole plan.
func (a *adversary) linger() {
	if a.rand.IntN(3) == 0 {
		<-time.After(time.Duration(a.rand.IntN(60)) * time.Millisecond)
	}
	for range a.rand.IntN(2000) {
		_, _ = os.Lstat(a.tree)
	}
}

// lend lets root read a copy with more rights, and puts what he copied in its place
// before root writes.
func (a *adversary) lend(file, target string) {
	copied, mine := file+".copy.mine", file+".mine"
	if os.WriteFile(copied, a.passwd, 0o600) != nil || os.Chmod(copied, 0o666) != nil {
		return
	}
	if os.Symlink(filepath.Base(copied), mine) == nil && swap(mine, file) {
		a.linger()
		next := file + ".next.mine"
		if os.Symlink(target, next) == nil && os.Rename(next, file) == nil {
			a.linger()
		}
		_ = swap(mine, file)
	}
	_, _ = os.Remove(mine), os.Remove(copied)
}

// setid makes a file of the user's setuid or setgid, and notes which one.
func (a *adversary) setid(name string, mode fs.FileMode) error {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(a.marks, st.Ino); err != nil {
		return err
	}
	return f.Chmod(mode)
}

// clutter gives a file more extended attributes than the kernel lists, where the file
// system has room for them, and takes them away again.
func (a *adversary) clutter(file string) {
	const many = 300
	name := func(i int) string { return fmt.Sprintf("user.%0240d", i) }
	made := 0
	for made < many && unix.Lsetxattr(file, name(made), nil, 0) == nil {
		made++
	}
	a.linger()
	for i := range made {
		_ = unix.Lremovexattr(file, name(i))
	}
}

func (a *adversary) attack() {
	file := a.files[a.rand.IntN(len(a.files))]
	dir := a.dirs[a.rand.IntN(len(a.dirs))]
	secret := filepath.Join(a.outside, []string{"passwd", "shadow", filepath.Base(file)}[a.rand.IntN(3)])
	switch a.rand.IntN(13) {
	case 0:
		a.exchange(file, func(p string) error { return os.Symlink(secret, p) })
	case 1:
		a.exchange(dir, func(p string) error { return os.Symlink(a.outside, p) })
	case 2:
		a.lend(file, filepath.Join(a.outside, "passwd"))
	case 3:
		a.exchange(file, func(p string) error { return unix.Mkfifo(p, 0o666) })
	case 4:
		a.exchange(file, func(p string) error {
			if err := os.WriteFile(p, nil, 0o666); err != nil {
				return err
			}
			return os.Truncate(p, 1<<30)
		})
	case 5:
		a.exchange(file, func(p string) error { return os.Link(filepath.Join(a.root, secret), p) })
	case 6:
		mode := []fs.FileMode{fs.ModeSetuid | 0o755, fs.ModeSetgid | 0o777, 0o666, 0}[a.rand.IntN(4)]
		if a.was[file].content != nil && a.setid(file, mode) == nil {
			_ = os.Chmod(file, a.was[file].mode)
		}
	case 7:
		link := file + ".amsagent-saved"
		if os.Symlink(filepath.Join(a.outside, "made"), link) == nil {
			_ = os.Remove(link)
		}
	case 8:
		a.exchange(file, func(p string) error { return os.Mkdir(p, 0o755) })
	case 9: // what the agent has beside its files
		beside, err := filepath.Glob(filepath.Join(filepath.Dir(file), ".*.amsagent-*"))
		if err != nil || len(beside) == 0 {
			return
		}
		name := beside[a.rand.IntN(len(beside))]
		switch a.rand.IntN(4) {
		case 3:
			_ = os.Remove(name)
			_ = os.Mkdir(name, 0o755)
		case 0:
			_ = a.setid(name, fs.ModeSetuid|0o755)
		case 1:
			_ = os.Remove(name)
			_ = os.Symlink(secret, name)
		case 2:
			a.exchange(name, func(p string) error { return os.Symlink(secret, p) })
		}
	case 10:
		a.exchange(dir, func(p string) error { return os.WriteFile(p, nil, 0o644) })
	case 11: // to itself, or to a name that no file has
		to := []string{filepath.Base(file), strings.Repeat("x", 300)}[a.rand.IntN(2)]
		a.exchange(file, func(p string) error { return os.Symlink(to, p) })
	case 12:
		a.clutter(file)
	}
}
