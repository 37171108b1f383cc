// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/amsagent/amsagent/files"
	"github.com/amsagent/amsagent/internal/must"
)

// putFile puts a file of a user in the place of what has the name.
func putFile(t *testing.T, s *Store, content string, uid int, mode fs.FileMode) {
	t.Helper()
	real := at(s, serverPath)
	must.OK(t, errors.Join(os.Remove(real), os.WriteFile(real, []byte(content), 0o600), os.Chown(real, uid, uid), os.Chmod(real, mode)))
}

func planServer(t *testing.T, s *Store) (*Plan, error) {
	t.Helper()
	p, local := newPlan(t, s), "localhost"
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

// joinServer edits the settings of the server alone.
func joinServer(t *testing.T, s *Store) *Plan {
	t.Helper()
	p, err := planServer(t, s)
	must.OK(t, err)
	must.OK(t, p.Commit("join"))
	return p
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
			joinServer(t, s)
			shown := func() bool {
				b, err := os.ReadFile(at(s, serverPath))
				must.OK(t, err)
				return strings.Contains(string(b), secret)
			}
			putFile(t, s, tt.content, tt.now, tt.nowMode)
			if p, err := planServer(t, s); err == nil {
				must.OK(t, p.Commit("join"))
			} else if tt.back {
				t.Errorf("not planned: %v", err)
			}
			must.Equal(t, "it is shown after a second join", shown(), false)
			putFile(t, s, tt.content, tt.now, tt.nowMode)
			leave(t, s)
			must.Equal(t, "it is shown after the leave", shown(), tt.back)
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
	check := func(when string) {
		t.Helper()
		info, err := os.Stat(at(s, serverPath))
		must.OK(t, err)
		must.Equal(t, when, info.Mode(), 0o640)
	}
	joinServer(t, s)
	check("joined")
	const roots = "roots.secret=x\n"
	putFile(t, s, roots, 0, 0o640)
	p := joinServer(t, s)
	check("joined again")
	reverted(t, p)
	check("rolled back")
	putFile(t, s, roots, 0, 0o640)
	leave(t, s)
	check("left")
}

// The copy of an edited file that a leave keeps belongs to the file's owner, who must gain nothing by what
// was put in its place: no program, no other user's rights, and no file elsewhere.
func TestKeptCopy(t *testing.T) {
	const original = "http.port=5080\nclusterdb.host=localhost\n"
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
			}
			putFile(t, s, original, owner, 0o644)
			joinServer(t, s)
			putFile(t, s, edited, owner, tt.mode)
			place := func(late bool) {
				t.Helper()
				if tt.there != nil && (tt.late != nil) == late {
					must.OK(t, tt.there(at(s, SavedName(serverPath)), at(s, rootTarget)))
				}
			}
			place(false)
			undo := planUndo(t, s)
			place(true)
			before := snapshot(t, s)
			err := undo.CommitUndo("leave")
			if tt.late != nil {
				failsWith(t, "CommitUndo", err, tt.late)
				must.NoDiff(t, "the files", snapshot(t, s), before)
				return
			}
			must.OK(t, err)
			after := snapshot(t, s)
			kept := SavedName(serverPath)
			if tt.other {
				must.Equal(t, "what had the name", after[kept], before[kept])
				kept += "-1"
			}
			must.Contain(t, "the former file", fileOwned(t, s, serverPath), fmt.Sprintf("%d:%d -rw", owner, owner), original)
			must.Equal(t, "the kept file", fileOwned(t, s, kept), fmt.Sprintf("%d:%d %v %s", owner, owner, tt.want, edited))
			for path := range after {
				if _, was := before[path]; !was && path != kept {
					t.Errorf("made: %s", path)
				}
			}
			must.Equal(t, "the file outside", after[rootTarget], before[rootTarget])
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
