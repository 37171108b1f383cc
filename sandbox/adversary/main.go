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
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
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
	kinds               []*kind
}

// kind is a kind of attack.
type kind struct {
	name string
	// try reports whether it was in place, be it for a moment.
	try         func() bool
	tried, done int
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
	for _, pattern := range []string{"conf", "log", "webapps", "webapps/*", "webapps/*/WEB-INF"} {
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
	a.kinds = a.allKinds()
	for n := 0; ; n++ {
		if done.Load() {
			fmt.Println(n, "attacks")
			for _, k := range a.kinds {
				fmt.Printf("%s: %d of %d\n", k.name, k.done, k.tried)
			}
			return a.calm()
		}
		k := a.kinds[a.rand.IntN(len(a.kinds))]
		k.tried++
		if k.try() {
			k.done++
			never := func(k *kind) bool { return k.done == 0 }
			if k.done == 1 && !slices.ContainsFunc(a.kinds, never) {
				fmt.Println("all")
			}
		}
		// Some commands must come as far as their renames.
		<-time.After(time.Duration(a.rand.IntN(30)) * time.Millisecond)
	}
}

// calm puts everything back.
func (a *adversary) calm() error {
	err := filepath.WalkDir(a.tree, func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
		case d.IsDir() && strings.Contains(d.Name(), ".amsagent-"): // of beside
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
func (a *adversary) exchange(name string, create func(string) error) bool {
	mine := name + ".mine"
	_ = os.RemoveAll(mine)
	if create(mine) != nil {
		return false
	}
	swapped := swap(mine, name)
	if swapped {
		a.linger()
		_ = swap(mine, name)
	}
	_ = os.RemoveAll(mine)
	return swapped
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

// lend lets root read a copy with a wider mode through a link, and points the link to target before root writes.
func (a *adversary) lend(file, target string) (done bool) {
	copied, mine := file+".copy.mine", file+".mine"
	if os.WriteFile(copied, a.passwd, 0o600) != nil || os.Chmod(copied, 0o666) != nil {
		return false
	}
	if os.Symlink(filepath.Base(copied), mine) == nil && swap(mine, file) {
		a.linger()
		next := file + ".next.mine"
		if os.Symlink(target, next) == nil && os.Rename(next, file) == nil {
			done = true
			a.linger()
		}
		_ = swap(mine, file)
	}
	_, _ = os.Remove(mine), os.Remove(copied)
	return done
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
func (a *adversary) clutter(file string) bool {
	const many = 300
	made := 0
	for made < many && unix.Lsetxattr(file, attribute(made), nil, 0) == nil {
		made++
	}
	a.linger()
	for i := range made {
		_ = unix.Lremovexattr(file, attribute(i))
	}
	return made > 0
}

func attribute(i int) string { return fmt.Sprintf("user.%0240d", i) }

func (a *adversary) file() string { return a.files[a.rand.IntN(len(a.files))] }

func (a *adversary) dir() string { return a.dirs[a.rand.IntN(len(a.dirs))] }

// secret is a file of root's, by the agent's name.
func (a *adversary) secret(file string) string {
	return filepath.Join(a.outside, []string{"passwd", "shadow", filepath.Base(file)}[a.rand.IntN(3)])
}

// link makes a link to a file of root's.
func (a *adversary) link(target, name string) error {
	to := target
	// The agent's root may be a folder. There the kernel would take the agent's name to a file that is not there; two
	// other names catch an agent that lets it follow.
	real := filepath.Join(a.root, target)
	switch a.rand.IntN(3) {
	case 0:
		to = real
	case 1: // the same file for both
		var err error
		if to, err = filepath.Rel(filepath.Dir(name), real); err != nil {
			return err
		}
	}
	return os.Symlink(to, name)
}

func (a *adversary) allKinds() []*kind {
	kinds := []*kind{
		{name: "link for a file", try: func() bool {
			file := a.file()
			return a.exchange(file, func(p string) error { return a.link(a.secret(file), p) })
		}},
		{name: "link for a folder", try: func() bool {
			return a.exchange(a.dir(), func(p string) error { return a.link(a.outside, p) })
		}},
		{name: "link after a look", try: func() bool { return a.lend(a.file(), filepath.Join(a.outside, "passwd")) }},
		{name: "pipe", try: func() bool {
			return a.exchange(a.file(), func(p string) error { return unix.Mkfifo(p, 0o666) })
		}},
		{name: "endless file", try: func() bool {
			return a.exchange(a.file(), func(p string) error {
				if err := os.WriteFile(p, nil, 0o666); err != nil {
					return err
				}
				return os.Truncate(p, 1<<30)
			})
		}},
		{name: "hard link", try: func() bool {
			file := a.file()
			return a.exchange(file, func(p string) error {
				if os.Link(filepath.Join(a.root, a.secret(file)), p) == nil {
					return nil
				}
				// fs.protected_hardlinks allows a link to a file that the adversary may write.
				return os.Link(filepath.Join(a.root, a.outside, "shared"), p)
			})
		}},
		{name: "rights of a file", try: func() bool {
			file := a.file()
			mode := []fs.FileMode{fs.ModeSetuid | 0o755, fs.ModeSetgid | 0o777, 0o666, 0}[a.rand.IntN(4)]
			if a.was[file].content == nil || a.setid(file, mode) != nil {
				return false
			}
			_ = os.Chmod(file, a.was[file].mode)
			return true
		}},
		{name: "link for a kept copy", try: func() bool {
			link := a.file() + ".amsagent-saved"
			if a.link(filepath.Join(a.outside, "made"), link) != nil {
				return false
			}
			_ = os.Remove(link)
			return true
		}},
		{name: "folder for a file", try: func() bool {
			return a.exchange(a.file(), func(p string) error { return os.Mkdir(p, 0o755) })
		}},
		{name: "what the agent has beside a file", try: a.beside},
		{name: "file for a folder", try: func() bool {
			return a.exchange(a.dir(), func(p string) error { return os.WriteFile(p, nil, 0o644) })
		}},
		{name: "link to itself, or to a name that no file has", try: func() bool {
			file := a.file()
			to := []string{filepath.Base(file), strings.Repeat("x", 300)}[a.rand.IntN(2)]
			return a.exchange(file, func(p string) error { return os.Symlink(to, p) })
		}},
	}
	if err := unix.Lsetxattr(a.files[0], attribute(0), nil, 0); errors.Is(err, unix.ENOTSUP) {
		fmt.Println("extended attributes are left out: the file system has none")
		return kinds
	}
	_ = unix.Lremovexattr(a.files[0], attribute(0))
	return append(kinds, &kind{name: "extended attributes", try: func() bool { return a.clutter(a.file()) }})
}

// beside attacks a file that the agent has beside one of the server's.
func (a *adversary) beside() bool {
	// It is there for moments only.
	for end := time.Now().Add(50 * time.Millisecond); time.Now().Before(end); <-time.After(time.Millisecond) {
		file := a.file()
		beside, err := filepath.Glob(filepath.Join(filepath.Dir(file), ".*.amsagent-*"))
		if err != nil || len(beside) == 0 {
			continue
		}
		name := beside[a.rand.IntN(len(beside))]
		switch a.rand.IntN(4) {
		case 0:
			return a.setid(name, fs.ModeSetuid|0o755) == nil
		case 1:
			_ = os.Remove(name)
			return a.link(a.secret(file), name) == nil
		case 2:
			return a.exchange(name, func(p string) error { return a.link(a.secret(file), p) })
		case 3:
			_ = os.Remove(name)
			return os.Mkdir(name, 0o755) == nil
		}
	}
	return false
}
