// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const serverPath = "/ams/conf/red5.properties"

// putFile puts a file of a user in the place of what has the name.
func putFile(t *testing.T, s *Store, content string, uid int, mode fs.FileMode) {
	t.Helper()
	real := filepath.Join(s.Root, serverPath)
	if err := os.Remove(real); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(real, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(real, uid, uid); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(real, mode); err != nil {
		t.Fatal(err)
	}
}

func planServer(t *testing.T, s *Store) (*Plan, error) {
	t.Helper()
	record, err := s.Record()
	if err != nil {
		t.Fatal(err)
	}
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

// Whoever may exchange a file must not get from the record, in his own, what only another user
// could read when it was made.
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
		unknown bool // the record of a former release
		back    bool // what the record knows is written
	}{
		"emptied":                      {0, 0o600, "", 4711, 0o640, false, false},
		"emptied, root's for all":      {0, 0o600, "", 0, 0o644, false, false},
		"our values":                   {0, 0o600, "clusterdb.host=10.0.0.1\nclusterdb.password=\n", 4711, 0o640, false, false},
		"our values, root's for all":   {0, 0o600, "clusterdb.host=10.0.0.1\nclusterdb.password=\n", 0, 0o644, false, false},
		"another user's":               {4712, 0o640, "", 4711, 0o640, false, false},
		"the same owner":               {4711, 0o640, "", 4711, 0o640, false, true},
		"the same owner, who shows it": {4711, 0o640, "", 4711, 0o644, false, true},
		"root's own":                   {0, 0o600, "", 0, 0o600, false, true},
		"everybody could":              {0, 0o644, "", 4711, 0o640, false, true},
		"of a former release":          {4711, 0o640, "", 4711, 0o640, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // an empty file is waited for
			s := newTree(t)
			putFile(t, s, "http.port=5080\nclusterdb.host="+secret+"\nclusterdb.password="+secret+"\n", tt.uid, tt.mode)
			p, err := planServer(t, s)
			if err != nil {
				t.Fatal(err)
			}
			if tt.unknown {
				p.files[0].record.Owner = nil
			}
			if err := p.Commit("join"); err != nil {
				t.Fatal(err)
			}
			shown := func(when string) {
				t.Helper()
				b, err := os.ReadFile(filepath.Join(s.Root, serverPath))
				if err != nil || strings.Contains(string(b), secret) != (tt.back && when == "left") {
					t.Errorf("%s: %q, %v", when, b, err)
				}
			}
			putFile(t, s, tt.content, tt.now, tt.nowMode)
			if p, err := planServer(t, s); err == nil {
				if err := p.Commit("join"); err != nil {
					t.Fatal(err)
				}
			} else if tt.back {
				t.Errorf("not planned: %v", err)
			}
			shown("joined")
			putFile(t, s, tt.content, tt.now, tt.nowMode)
			p = planUndo(t, s)
			if err := p.CommitUndo("leave"); err != nil {
				t.Fatal(err)
			}
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
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Commit("join"); err != nil {
		t.Fatal(err)
	}
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
	if err := p.Commit("converge"); err != nil {
		t.Fatal(err)
	}
	check("converged")
	if _, err := p.Revert("rollback"); err != nil {
		t.Fatal(err)
	}
	check("rolled back")
	putFile(t, s, roots, 0, 0o640)
	p = planUndo(t, s)
	if err := p.CommitUndo("leave"); err != nil {
		t.Fatal(err)
	}
	check("left")
}

// A file that root owns, in the folder of the server's user, is edited and given back: it gets a
// second name by the commit itself.
func TestFileOfRootInAnothersFolder(t *testing.T) {
	s := hisTree(t)
	const original = "http.port=5080\nclusterdb.host=localhost\n"
	putFile(t, s, original, 0, 0o644)
	p, err := planServer(t, s)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Commit("join"); err != nil {
		t.Fatal(err)
	}
	undoAll(t, s)
	if f, err := s.Read(serverPath); err != nil || string(f.Bytes) != original || f.UID != 0 || f.Mode != 0o644 {
		t.Errorf("%q, %v; %d %v", f.Bytes, err, f.UID, f.Mode)
	}
}
