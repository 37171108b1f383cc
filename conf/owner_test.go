// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/amsagent/amsagent/files"
	"github.com/amsagent/amsagent/internal/must"
)

const serverPath = "/ams/conf/red5.properties"

// putFile puts a file of a user in the place of what has the name.
func putFile(t *testing.T, s *Store, content string, uid int, mode fs.FileMode) {
	t.Helper()
	real := filepath.Join(s.Root, serverPath)
	must.OK(t, os.Remove(real))
	must.OK(t, os.WriteFile(real, []byte(content), 0o600))
	must.OK(t, os.Chown(real, uid, uid))
	must.OK(t, os.Chmod(real, mode))
}

func planServer(t *testing.T, s *Store) (*Plan, error) {
	t.Helper()
	record, err := s.Record()
	must.OK(t, err)
	p := s.NewPlan(record)
	local := "localhost"
	return p, p.Edit(Target{Path: serverPath, Kind: KindProperties, Private: true, Owner: 4711}, func(src []byte) ([]Span, error) {
		q, err := ParseProperties(src)
		if err != nil {
			return nil, err
		}
		q.Set("clusterdb.host", "10.0.0.1", &local)
		q.Set("clusterdb.password", "", nil)
		return q.Spans(), nil
	})
}

// A user who may exchange a file must not get from the record, in a file of that user's, the content that only
// another user could read before.
func TestRecordOfAnotherOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to give files away")
	}
	const secret = "hunter22"
	for name, tt := range map[string]struct {
		uid     int // of the original
		mode    fs.FileMode
		content string // what stands there afterwards
		now     int
		nowMode fs.FileMode
		back    bool // what the record knows is written
	}{
		"emptied":                      {0, 0o600, "", 4711, 0o640, false},
		"emptied, root's for all":      {0, 0o600, "", 0, 0o644, false},
		"our values":                   {0, 0o600, "clusterdb.host=10.0.0.1\nclusterdb.password=\n", 4711, 0o640, false},
		"our values, root's for all":   {0, 0o600, "clusterdb.host=10.0.0.1\nclusterdb.password=\n", 0, 0o644, false},
		"another user's":               {4712, 0o640, "", 4711, 0o640, false},
		"the same owner":               {4711, 0o640, "", 4711, 0o640, true},
		"the same owner, who shows it": {4711, 0o640, "", 4711, 0o644, true},
		"root's own":                   {0, 0o600, "", 0, 0o600, true},
		"all users could":              {0, 0o644, "", 4711, 0o640, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // an empty file is waited for
			s := newTree(t)
			putFile(t, s, "http.port=5080\nclusterdb.host="+secret+"\nclusterdb.password="+secret+"\n", tt.uid, tt.mode)
			p, err := planServer(t, s)
			must.OK(t, err)
			must.OK(t, p.Commit("join"))
			shown := func(when string) {
				t.Helper()
				b, err := os.ReadFile(filepath.Join(s.Root, serverPath))
				if err != nil || strings.Contains(string(b), secret) != (tt.back && when == "left") {
					t.Errorf("%s: %q, %v", when, b, err)
				}
			}
			putFile(t, s, tt.content, tt.now, tt.nowMode)
			if p, err := planServer(t, s); err == nil {
				must.OK(t, p.Commit("join"))
			} else if tt.back {
				t.Errorf("not planned: %v", err)
			}
			shown("joined")
			putFile(t, s, tt.content, tt.now, tt.nowMode)
			p = planUndo(t, s)
			must.OK(t, p.CommitUndo("leave"))
			shown("left")
		})
	}
}

// The rights that a join took from a file are no other file's.
func TestModeOfAnotherOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to give files away")
	}
	s := newTree(t)
	putFile(t, s, "clusterdb.host=localhost\n", 4711, 0o644)
	p, err := planServer(t, s)
	must.OK(t, err)
	must.OK(t, p.Commit("join"))
	check := func(when string) {
		t.Helper()
		if info, err := os.Stat(filepath.Join(s.Root, serverPath)); err != nil || info.Mode().Perm() != 0o640 {
			t.Errorf("%s: %v, %v", when, info.Mode(), err)
		}
	}
	check("joined")
	const roots = "roots.secret=x\n"
	putFile(t, s, roots, 0, 0o640)
	if p, err = planServer(t, s); err != nil {
		t.Fatal(err)
	}
	must.OK(t, p.Commit("converge"))
	check("converged")
	if _, err := p.Revert("rollback"); err != nil {
		t.Fatal(err)
	}
	check("rolled back")
	putFile(t, s, roots, 0, 0o640)
	p = planUndo(t, s)
	must.OK(t, p.CommitUndo("leave"))
	check("left")
}

// A file that root owns, in the folder of the server's user, is edited and given back: it gets a
// second name by the commit itself.
func TestFileOfRootInAnothersFolder(t *testing.T) {
	s := hisTree(t)
	const original = "http.port=5080\nclusterdb.host=localhost\n"
	putFile(t, s, original, 0, 0o644)
	p, err := planServer(t, s)
	must.OK(t, err)
	must.OK(t, p.Commit("join"))
	undoAll(t, s)
	if f, err := s.Read(serverPath); err != nil || string(f.Bytes) != original || f.UID != 0 || f.Mode != 0o644 {
		t.Errorf("%q, %v; %d %v", f.Bytes, err, f.UID, f.Mode)
	}
}

// The copy of an edited file that a leave keeps belongs to the file's owner, who must gain nothing by what
// was put in its place: no program, no other user's rights, and no file elsewhere.
func TestKeptCopy(t *testing.T) {
	const edited = "clusterdb.host=\\uZZZZ\n" // no Java reads it: the former file is put back
	for name, tt := range map[string]struct {
		mode fs.FileMode // of the edited file
		root bool        // it is root's, in the folder of user 4711
		// there puts something in the place of the copy; outside is a file of root's.
		there func(saved, outside string) error
		late  error // it comes after the plan was made, and the commit ends with this
		want  fs.FileMode
		other bool // it gets another name
	}{
		"nothing there":             {mode: 0o640, want: 0o640},
		"a program":                 {mode: 0o755, want: 0o644},
		"a program with rights":     {mode: 0o755 | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky, want: 0o644},
		"a former copy with rights": {mode: 0o640, want: 0o640, there: privileged, other: true},
		"a file of root's":          {mode: 0o755 | fs.ModeSetuid, root: true, want: 0o644},
		"a link":                    {mode: 0o640, want: 0o640, there: linkTo, other: true},
		"a link to nothing":         {mode: 0o640, want: 0o640, there: func(saved, _ string) error { return os.Symlink("/etc/made", saved) }, other: true},
		"a folder":                  {mode: 0o640, want: 0o640, there: func(saved, _ string) error { return os.Mkdir(saved, 0o755) }, other: true},
		"a second name":             {mode: 0o640, want: 0o640, there: func(saved, outside string) error { return os.Link(outside, saved) }, other: true},
		"a link after the plan":     {mode: 0o640, there: linkTo, late: files.ErrLink},
		"a file after the plan":     {mode: 0o640, there: privileged, late: ErrChanged},
	} {
		t.Run(name, func(t *testing.T) {
			s, owner := hisTree(t), 4711
			if tt.root {
				owner = 0
				putFile(t, s, "http.port=5080\nclusterdb.host=localhost\n", owner, 0o644)
			}
			p, err := planServer(t, s)
			must.OK(t, err)
			must.OK(t, p.Commit("join"))
			putFile(t, s, edited, owner, tt.mode)
			outside := filepath.Join(s.Root, "/data/root.properties")
			saved := filepath.Join(s.Root, SavedName(serverPath))
			put := func(late bool) {
				t.Helper()
				if tt.there != nil && (tt.late != nil) == late {
					must.OK(t, tt.there(saved, outside))
				}
			}
			put(false)
			undo := planUndo(t, s)
			put(true)
			before := snapshot(t, s)
			err = undo.CommitUndo("leave")
			if tt.late != nil {
				if d := cmp.Diff(before, snapshot(t, s)); !errors.Is(err, tt.late) || d != "" {
					t.Errorf("%v, and changed (-want +got):\n%s", err, d)
				}
				return
			}
			must.OK(t, err)
			after := snapshot(t, s)
			kept := SavedName(serverPath)
			if tt.other {
				if after[kept] != before[kept] {
					t.Errorf("what had the name is %q, and was %q", after[kept], before[kept])
				}
				kept += "-1"
			}
			if f, err := s.Read(kept); err != nil || string(f.Bytes) != edited || f.UID != owner || f.GID != owner || f.Mode != tt.want {
				t.Errorf("kept is %q, %v; %d:%d %v, want %v", f.Bytes, err, f.UID, f.GID, f.Mode, tt.want)
			}
			for path := range after {
				if _, was := before[path]; !was && path != kept {
					t.Errorf("made: %s", path)
				}
			}
			if is := "/data/root.properties"; after[is] != before[is] {
				t.Errorf("written: %q", after[is])
			}
		})
	}
}

// linkTo is a link of user 4711 to another user's file.
func linkTo(saved, outside string) error {
	return errors.Join(os.Symlink(outside, saved), os.Lchown(saved, 4711, 4711))
}

// privileged is a program of root's that all users may run.
func privileged(saved, _ string) error {
	return errors.Join(os.WriteFile(saved, nil, 0o600), os.Chmod(saved, 0o755|fs.ModeSetuid|fs.ModeSetgid))
}
