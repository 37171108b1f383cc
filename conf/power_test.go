// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/internal/must"
)

// entry is what a power cut leaves of a file, a folder or a link. link is another name of the same file.
type entry struct {
	path, link, data string
	mode             fs.FileMode
}

// cut is a tree that a power cut left. want is not nil if the call had returned before.
type cut struct {
	left      []entry
	recovered bool // it cut a recovery
	want      map[string]string
}

// drive is the disk below a tree. A folder's names are durable as of its last fsync, a file's data as of its own.
type drive struct {
	t      *testing.T
	mu     sync.Mutex
	faults faults
	root   string
	names  map[string]uint64   // durable ones, with inode numbers
	files  map[uint64]entry    // durable ones
	held   map[uint64]*os.File // so that no inode number is used twice
	now    cut
	known  map[string]*cut
	cuts   []*cut
}

// run cuts before each call of f, and after it.
func (d *drive) run(s *Store, recovers bool, f func(*Store) error) error {
	d.root, d.held, d.now = s.Root, map[uint64]*os.File{}, cut{recovered: recovers}
	d.names, d.files = d.scan()
	s.hook = d.hook
	err := f(s)
	s.hook = nil
	d.now.want = lasting(d.t, s)
	d.cut()
	for _, f := range d.held {
		_ = f.Close()
	}
	return err
}

func (d *drive) hook(call, name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.faults.hook(call, name); err != nil || call == "fstatat" || call == "getdents64" {
		return err
	}
	names, files := d.cut()
	if call == "fsync" {
		d.files[names[name]] = files[names[name]]
		maps.DeleteFunc(d.names, func(path string, _ uint64) bool { return filepath.Dir(path) == name })
		maps.DeleteFunc(names, func(path string, _ uint64) bool { return filepath.Dir(path) != name })
		maps.Copy(d.names, names)
	}
	return nil
}

func (d *drive) scan() (names map[string]uint64, files map[uint64]entry) {
	names, files = map[string]uint64{}, map[uint64]entry{}
	must.OK(d.t, filepath.WalkDir(d.root, func(path string, _ fs.DirEntry, err error) error {
		must.OK(d.t, err)
		info, err := os.Lstat(path)
		must.OK(d.t, err)
		ino, e := info.Sys().(*syscall.Stat_t).Ino, entry{mode: info.Mode()}
		if e.mode.Type() == fs.ModeSymlink {
			e.data, err = os.Readlink(path)
		} else if d.held[ino] == nil {
			d.held[ino], err = os.Open(path)
		}
		if e.mode.IsRegular() {
			data, rerr := os.ReadFile(path)
			e.data, err = string(data), errors.Join(err, rerr)
		}
		names["/"+strings.Trim(path[len(d.root):], "/")], files[ino] = ino, e
		return err
	}))
	return names, files
}

// cut leaves what is durable, alone or with the other changes of one inode's names, such as a rename, or of one folder.
func (d *drive) cut() (names map[string]uint64, files map[uint64]entry) {
	names, files = d.scan()
	changed := maps.Clone(d.names) // with the new inode or, if it is gone, the old one
	maps.Copy(changed, names)
	maps.DeleteFunc(changed, func(path string, _ uint64) bool { return d.names[path] == names[path] })
	kept := map[string]bool{"": true}
	for path, ino := range changed {
		kept[fmt.Sprint(ino)], kept[filepath.Dir(path)] = true, true
	}
	for _, only := range slices.Sorted(maps.Keys(kept)) {
		left := maps.Clone(d.names)
		for path, ino := range changed {
			if only == fmt.Sprint(ino) || only == filepath.Dir(path) {
				left[path] = names[path]
			}
		}
		c, first := d.now, map[uint64]string{}
		for _, path := range slices.Sorted(maps.Keys(left)) {
			ino := left[path]
			if ino == 0 || left[filepath.Dir(path)] == 0 {
				left[path] = 0
				continue
			}
			e, synced := d.files[ino]
			if !synced {
				e.mode = files[ino].mode
			}
			e.path, e.link, first[ino] = path, first[ino], path
			c.left = append(c.left, e)
		}
		key := fmt.Sprint(c.left)
		if d.known[key] == nil {
			d.known[key] = &c
			d.cuts = append(d.cuts, &c)
		}
		if d.known[key].want == nil {
			d.known[key].want = c.want
		}
	}
	return names, files
}

func restore(t *testing.T, s *Store, left []entry) *Store {
	t.Helper()
	must.OK(t, os.RemoveAll(s.Root))
	for _, e := range left {
		switch path := s.Root + e.path; {
		case e.link != "":
			must.OK(t, os.Link(s.Root+e.link, path))
		case e.mode.IsDir():
			must.OK(t, os.Mkdir(path, e.mode.Perm()))
		case e.mode.IsRegular():
			must.OK(t, os.WriteFile(path, []byte(e.data), e.mode))
		default:
			must.OK(t, os.Symlink(e.data, path))
		}
	}
	return s
}

// lasting is a tree without folders, and without files that were staged for no durable journal: the next commit removes
// them.
func lasting(t *testing.T, s *Store) map[string]string {
	t.Helper()
	files := snapshot(t, s)
	maps.DeleteFunc(files, func(path, desc string) bool {
		return desc[0] == 'd' || strings.HasPrefix(filepath.Base(path), ".") && strings.Contains(path, stagedMark)
	})
	return files
}

// TestPowerCut cuts the power at each call of a commit, of its rollback, of a leave and of other writes, and at those of a
// sample of the recoveries. One recovery makes all files old or all new, and what a call has returned stays.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	tree, sample := faultRoot(t), must.Sample(8, 1)
	join := func(s *Store) error { return planCluster(t, s, "10.0.0.1").Commit("join") }
	again := func(s *Store) error { return planCluster(t, s, "10.0.0.2").Commit("join") }
	leave := func(s *Store) error { return planUndo(t, s).CommitUndo("leave") }
	recovery := func(s *Store) error { _, err := s.Recover(); return err }
	write := func(text string) func(s *Store) error {
		return func(s *Store) error { return s.WriteFile("/etc/a/b/c", []byte(text), 0o600, 0o700) }
	}
	edited := func(s *Store) error {
		return errors.Join(join(s), os.WriteFile(s.Root+propertyPaths[1], []byte("db.host=\\uZZZZ"), 0o644), os.WriteFile(s.Root+dropInPath, []byte("x"), 0o644))
	}
	for name, tt := range map[string]struct {
		prepare, run func(*Store) error
		was, is      bool // there is a record
		fails        bool // at the first fsync after a rename
	}{
		"join":                 {recovery, join, false, true, false},
		"join again":           {join, again, true, true, false},
		"rollback":             {join, again, true, true, true},
		"leave":                {join, leave, true, false, false},
		"leave beside an edit": {edited, leave, true, false, false},
		"write":                {write("1"), write("2"), false, false, false},
		"write in new folders": {recovery, write("1"), false, false, false},
		"remove":               {write("1"), func(s *Store) error { return s.RemoveFile("/etc/a/b/c") }, false, false, false},
		"set aside":            {write("1"), func(s *Store) error { _, err := s.SetAside("/etc/a/b/c"); return err }, false, false, false},
	} {
		s := tree()
		must.OK(t, errors.Join(tt.prepare(s), tt.run(s)))
		after, renamed := lasting(t, s), false
		s = tree()
		must.OK(t, tt.prepare(s))
		before, d := lasting(t, s), &drive{t: t, known: map[string]*cut{}}
		if tt.fails {
			d.faults.first = func(call, name string) bool {
				renamed = renamed || call == "renameat" && strings.HasSuffix(name, stagedSuffix)
				return renamed && call == "fsync"
			}
		}
		if err := d.run(s, false, tt.run); tt.fails != (err != nil) {
			t.Fatalf("%s: %v", name, err)
		}
		d.faults.first = nil
		for i := 0; i < len(d.cuts); i++ {
			c := d.cuts[i]
			s, err := restore(t, tree(), c.left), error(nil)
			if c.recovered || i%sample > 0 {
				err = recovery(s)
			} else {
				err = d.run(s, true, recovery)
			}
			got := lasting(t, s)
			old, done := maps.Equal(got, before), maps.Equal(got, after)
			if err != nil || !old && !done || c.want != nil && !maps.Equal(got, c.want) {
				t.Fatalf("%s, cut %d (of a recovery: %v, after it: %v): %v; all old: %v, all new: %v (-new +got):\n%s",
					name, i, c.recovered, c.want != nil, err, old, done, cmp.Diff(after, got))
			}
			// A record that is left over is harmless: it restores what is there.
			record, err := s.Record()
			if left, lerr := s.List(stateDir); err != nil || lerr != nil || len(left) > 1 || record == nil && (old && tt.was || done && tt.is) {
				t.Fatalf("%s, cut %d: the record: %v, %v; left: %v, %v", name, i, record != nil, err, left, lerr)
			}
			if old && i%sample == 0 { // the next run removes what was staged
				must.OK(t, tt.run(s))
				beside, err := filepath.Glob(s.Root + "/ams/conf/.*")
				if err != nil || len(beside) > 0 || !maps.Equal(lasting(t, s), after) {
					t.Fatalf("%s, cut %d, then the next run: %v (-want +got):\n%s", name, i, beside, cmp.Diff(after, lasting(t, s)))
				}
			}
		}
		t.Logf("%s: %d cuts", name, len(d.cuts))
	}
}
