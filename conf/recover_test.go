// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/amsagent/amsagent/files"
	"github.com/amsagent/amsagent/internal/must"
)

// interrupted leaves a join as a crash does after so many of its renames: staged
// and journalled, the first of its files replaced.
func interrupted(t *testing.T, s *Store, renames int) (before, after map[string]string, j *journal) {
	t.Helper()
	before = snapshot(t, s)
	must.OK(t, planCluster(t, s, "10.0.0.1").Commit("join"))
	after = snapshot(t, s)
	undoAll(t, s)
	p := planCluster(t, s, "10.0.0.1")
	record := &Record{}
	for _, f := range p.files {
		record.Files = append(record.Files, f.record)
	}
	return before, after, interruptedCommit(t, s, "join", p.changes(), record, renames)
}

func interruptedCommit(t *testing.T, s *Store, purpose string, changes []Change, record *Record, renames int) *journal {
	t.Helper()
	state, err := s.makeStateDir()
	must.OK(t, err)
	tx := s.begin(state)
	defer tx.end()
	j, err := tx.newJournal(purpose, changes, record)
	must.OK(t, err)
	data, err := j.encode(maxJournal)
	must.OK(t, err)
	must.OK(t, s.WriteFile(s.statePath(journalName), data, 0o600, 0o700))
	must.OK(t, tx.stageAll(j, changes))
	for _, f := range j.Files[:renames] {
		must.OK(t, tx.install(j, f, nil))
	}
	return j
}

// stagedPath is that of the staged file of a change, below the root.
func (j *journal) stagedPath(f journalFile) string {
	return filepath.Join(filepath.Dir(f.Target), j.stagedName(f.Target))
}

func recovered(t *testing.T, s *Store) *Recovery {
	t.Helper()
	r, err := s.Recover()
	must.OK(t, err)
	return r
}

// makeState makes the state directory, and gives its path on this machine.
func makeState(t *testing.T, s *Store) string {
	t.Helper()
	d, err := s.makeStateDir()
	must.OK(t, err)
	d.Close()
	return filepath.Join(s.Root, stateDir)
}

func stateNames(t *testing.T, s *Store) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.Root, stateDir))
	must.OK(t, err)
	names := []string{}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func remove(t *testing.T, s *Store, path string) {
	t.Helper()
	must.OK(t, os.Remove(filepath.Join(s.Root, path)))
}

// TestRecoverFinishes: with everything staged, however many were replaced, the
// next run finishes, and leave restores what was found.
func TestRecoverFinishes(t *testing.T) {
	for renames := range 6 {
		s := newTree(t)
		before, after, _ := interrupted(t, s, renames)
		r := recovered(t, s)
		if len(r.Files) != 5-renames || len(r.Conflicts) > 0 {
			t.Errorf("after %d renames: %+v", renames, r)
		}
		if d := cmp.Diff(after, snapshot(t, s)); d != "" {
			t.Errorf("after %d renames (-want +got):\n%s", renames, d)
		}
		undoAll(t, s)
		if d := cmp.Diff(before, snapshot(t, s)); d != "" {
			t.Errorf("after %d renames, undone (-want +got):\n%s", renames, d)
		}
	}
}

// TestRecoverWithoutTemps: the staged files were removed. The journal has their contents.
func TestRecoverWithoutTemps(t *testing.T) {
	for _, renames := range []int{0, 2} {
		s := newTree(t)
		_, after, j := interrupted(t, s, renames)
		for _, f := range j.Files[renames:] {
			remove(t, s, j.stagedPath(f))
		}
		if r := recovered(t, s); len(r.Conflicts) > 0 {
			t.Errorf("%d renames: %v", renames, r.Conflicts)
		}
		if d := cmp.Diff(after, snapshot(t, s)); d != "" {
			t.Errorf("%d renames (-want +got):\n%s", renames, d)
		}
		if names := stateNames(t, s); !slices.Equal(names, []string{undoName}) {
			t.Errorf("left: %v", names)
		}
	}
}

// TestRecoverASecondJoin: the owner of the files removes what a second join has beside them, after a crash. The next run
// finishes, and a leave restores the files from before the first one.
func TestRecoverASecondJoin(t *testing.T) {
	for renames := range 5 {
		s := newTree(t)
		before := snapshot(t, s)
		must.OK(t, planCluster(t, s, "10.0.0.1").Commit("join"))
		p := planCluster(t, s, "10.0.0.2")
		record := &Record{}
		for _, f := range p.files {
			record.Files = append(record.Files, f.record)
		}
		j := interruptedCommit(t, s, "join", p.changes(), record, renames)
		for _, f := range j.Files {
			if strings.HasPrefix(f.Target, "/ams/") {
				must.OK(t, s.RemoveFile(j.stagedPath(f)))
			}
		}
		recovered(t, s)
		if left := planCluster(t, s, "10.0.0.2").ChangedPaths(); len(left) > 0 {
			t.Errorf("%d renamed: not finished: %v", renames, left)
		}
		undoAll(t, s)
		if d := cmp.Diff(before, snapshot(t, s)); d != "" {
			t.Errorf("%d renamed, undone (-want +got):\n%s", renames, d)
		}
	}
}

// TestRecoverOfAnExchangedFile: a file of root's, in a folder of user 4711, is exchanged after a crash for one of that
// user's with the same content. The recovery does not write what root's file would have, and the staged file goes.
func TestRecoverOfAnExchangedFile(t *testing.T) {
	s := hisTree(t)
	const original = "http.port=5080\nclusterdb.host=localhost\n"
	putFile(t, s, original, 0, 0o644)
	p, err := planServer(t, s)
	must.OK(t, err)
	interruptedCommit(t, s, "join", p.changes(), nil, 0)
	putFile(t, s, original, 4711, 0o644)
	if r := recovered(t, s); len(r.Conflicts) != 1 || r.Conflicts[0].Path != serverPath {
		t.Errorf("conflicts: %v", r.Conflicts)
	}
	if f, err := s.Read(serverPath); err != nil || string(f.Bytes) != original || f.UID != 4711 {
		t.Errorf("%q of uid %d, %v", f.Bytes, f.UID, err)
	}
	if left, err := filepath.Glob(s.Root + "/ams/conf/.*"); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestRecoverOnAFullDisk: nothing is replaced before there is room for all new files.
func TestRecoverOnAFullDisk(t *testing.T) {
	s := newTree(t)
	before, after, j := interrupted(t, s, 0)
	for _, f := range j.Files {
		remove(t, s, j.stagedPath(f))
	}
	s.hook = func(call, name string) error {
		if call == "write" && strings.HasPrefix(name, "/data/") {
			return unix.ENOSPC
		}
		return nil
	}
	if _, err := s.Recover(); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("Recover = %v, want ENOSPC", err)
	}
	now := snapshot(t, s)
	for path, was := range before {
		if now[path] != was {
			t.Errorf("%s was replaced", path)
		}
	}
	s.hook = nil
	recovered(t, s)
	if d := cmp.Diff(after, snapshot(t, s)); d != "" {
		t.Errorf("with room (-want +got):\n%s", d)
	}
}

// TestRecoverOfAMode: a second join only takes rights from a file, and is killed before that.
func TestRecoverOfAMode(t *testing.T) {
	s := newTree(t)
	must.OK(t, planCluster(t, s, "10.0.0.1").Commit("join"))
	want := snapshot(t, s)
	must.OK(t, os.Chmod(s.Root+serverPath, 0o644))
	p := planCluster(t, s, "10.0.0.1")
	j := interruptedCommit(t, s, "join", p.changes(), p.record, 0)
	if r := recovered(t, s); len(j.Files) != 1 || len(r.Files) != 1 {
		t.Errorf("%+v", r)
	}
	if d := cmp.Diff(want, snapshot(t, s)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// TestSetAsideJournal: the next commit removes the staged files of a journal that was damaged.
func TestSetAsideJournal(t *testing.T) {
	s := newTree(t)
	interrupted(t, s, 2)
	name, err := s.SetAside(s.statePath(journalName))
	if err != nil || name != stateDir+"/journal.damaged-1" {
		t.Fatalf("SetAside = %q, %v", name, err)
	}
	if r := recovered(t, s); r != nil {
		t.Errorf("recovered %+v", r)
	}
	must.OK(t, planCluster(t, s, "10.0.0.1").Commit("join"))
	for path := range snapshot(t, s) {
		if strings.Contains(path, stagedMark) {
			t.Errorf("left: %s", path)
		}
	}
}

// TestRetreatKeepsOwners: a leave fails after it has removed a file and replaced others. Each has its former owner again.
func TestRetreatKeepsOwners(t *testing.T) {
	s := hisTree(t)
	must.OK(t, planCluster(t, s, "10.0.0.1").Commit("join"))
	must.OK(t, os.Chown(s.Root+dropInPath, 4711, 4712))
	before := snapshot(t, s)
	p := planUndo(t, s)
	var removed atomic.Bool
	s.hook = func(call, name string) error {
		if call == "unlinkat" && name == dropInPath {
			removed.Store(true)
		}
		if removed.Load() && call == "renameat" && IsLeftover("/ams/conf/jee-container.xml", filepath.Base(name)) {
			return unix.EIO
		}
		return nil
	}
	err := p.CommitUndo("leave")
	s.hook = nil
	if _, unfinished := errors.AsType[*UnfinishedError](err); unfinished || !errors.Is(err, unix.EIO) || !removed.Load() {
		t.Errorf("%v, removed %v", err, removed.Load())
	}
	if d := cmp.Diff(before, snapshot(t, s)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	for path, gid := range map[string]int{dropInPath: 4712, serverPath: 4711} {
		if f, err := s.Read(path); err != nil || f.UID != 4711 || f.GID != gid {
			t.Errorf("%s belongs to %d:%d, %v", path, f.UID, f.GID, err)
		}
	}
}

// TestRetreatMeetsAnEdit: a file that a commit has replaced is edited before the commit fails. It stays as it is, the journal
// brings the others forward, and a leave takes the commit back by keys.
func TestRetreatMeetsAnEdit(t *testing.T) {
	s := newTree(t)
	before := snapshot(t, s)
	renamed := false
	s.hook = func(call, name string) error {
		switch {
		case call == "renameat" && strings.HasPrefix(filepath.Base(name), ".red5.properties"):
			renamed = true
		case renamed && call == "renameat":
			replaceIn(t, s, serverPath, "http.port=5080", "http.port=9090")
			return unix.EIO
		}
		return nil
	}
	err := planCluster(t, s, "10.0.0.1").Commit("join")
	s.hook = nil
	half, ok := errors.AsType[*UnfinishedError](err)
	if !ok || !errors.Is(err, unix.EIO) || !slices.Equal(half.Edited, []string{serverPath}) {
		t.Fatalf("%v, %+v", err, half)
	}
	if r := recovered(t, s); len(r.Conflicts) != 1 || r.Conflicts[0].Path != serverPath {
		t.Errorf("conflicts: %v", r.Conflicts)
	}
	if left := planCluster(t, s, "10.0.0.1").ChangedPaths(); len(left) > 0 {
		t.Errorf("not finished: %v", left)
	}
	undoAll(t, s)
	before[serverPath] = strings.Replace(before[serverPath], "5080", "9090", 1)
	if d := cmp.Diff(before, snapshot(t, s)); d != "" {
		t.Errorf("undone (-want +got):\n%s", d)
	}
}

// TestRecoverForeignEdits: an operator edits a file after the crash. The edit stays,
// it is named, and leave still removes what was ours.
func TestRecoverForeignEdits(t *testing.T) {
	const path = "/ams/conf/red5.properties"
	for _, op := range []string{"join", "leave"} {
		for _, renames := range []int{0, 5} {
			s := newTree(t)
			before := snapshot(t, s)
			if op == "join" {
				interrupted(t, s, renames)
			} else {
				must.OK(t, planCluster(t, s, "10.0.0.1").Commit("join"))
				p := planUndo(t, s)
				interruptedCommit(t, s, "leave", p.changes(), nil, renames)
			}
			replaceIn(t, s, path, "http.port=5080", "http.port=9090")
			r := recovered(t, s)
			if len(r.Conflicts) != 1 || r.Conflicts[0].Path != path {
				t.Errorf("%s, %d renames: conflicts %v", op, renames, r.Conflicts)
			}
			undoAll(t, s)
			before[path] = strings.Replace(before[path], "5080", "9090", 1)
			if d := cmp.Diff(before, snapshot(t, s)); d != "" {
				t.Errorf("%s, %d renames, undone (-want +got):\n%s", op, renames, d)
			}
			if names := stateNames(t, s); len(names) > 0 {
				t.Errorf("%s, %d renames: left %v", op, renames, names)
			}
		}
	}
}

// TestDamagedFiles: what the agent wrote down is torn, garbage, or another
// release's. Each has an error of its own, and nothing is touched.
func TestDamagedFiles(t *testing.T) {
	for _, name := range []string{journalName, undoName} {
		for _, tt := range []struct {
			what, content string
			damaged       bool
		}{
			{"empty", "", true},
			{"torn", `{"version":1,"files":[{"target":"/a`, true},
			{"garbage", "\x00\xff\x00", true},
			{"another thing", "{}", true},
			{"another release's", `{"version":7}`, false},
		} {
			s := newTree(t)
			makeState(t, s)
			must.OK(t, os.WriteFile(filepath.Join(s.Root, stateDir, name), []byte(tt.content), 0o600))
			was := snapshot(t, s)
			var err error
			if name == journalName {
				_, err = s.Recover()
			} else {
				_, err = s.Record()
			}
			var damaged *DamagedError
			var version *VersionError
			if errors.As(err, &damaged) != tt.damaged || errors.As(err, &version) == tt.damaged {
				t.Errorf("%s %s: %v", tt.what, name, err)
			}
			if d := cmp.Diff(was, snapshot(t, s)); d != "" {
				t.Errorf("%s %s: something was changed:\n%s", tt.what, name, d)
			}
			if names := stateNames(t, s); !slices.Equal(names, []string{name}) {
				t.Errorf("%s %s: the state folder holds %v", tt.what, name, names)
			}
		}
	}
}

// TestTornJournal: the journal of a commit was not on the disk yet, so it goes.
func TestTornJournal(t *testing.T) {
	s := newTree(t)
	before := snapshot(t, s)
	dir := makeState(t, s)
	for _, name := range []string{"." + journalName + writeSuffix, ".state.json" + writeSuffix} {
		must.OK(t, os.WriteFile(filepath.Join(dir, name), []byte(`{"versi`), 0o600))
	}
	if r := recovered(t, s); r != nil {
		t.Errorf("recovered %+v", r)
	}
	if d := cmp.Diff(before, snapshot(t, s)); d != "" {
		t.Error(d)
	}
	if names := stateNames(t, s); len(names) > 0 {
		t.Errorf("left: %v", names)
	}
}

// TestWriteBesideARecovery: a file is written while another process removes what interrupted writes left.
func TestWriteBesideARecovery(t *testing.T) {
	s := newTree(t)
	must.OK(t, s.WriteFile("/state/served.json", []byte("0"), 0o600, 0o700))
	for i := range 60 {
		var recovery sync.WaitGroup
		recovery.Go(func() {
			if err := s.RemoveTemps("/state"); err != nil {
				t.Error(err)
			}
		})
		if err := s.WriteFile("/state/served.json", []byte(strconv.Itoa(i)), 0o600, 0o700); err != nil {
			t.Errorf("write %d: %v", i, err)
		}
		recovery.Wait()
	}
}

// TestRevertOfTwoNames: while a commit is in place, one of its files is replaced by a link to another one.
func TestRevertOfTwoNames(t *testing.T) {
	for _, gone := range propertyPaths[:2] {
		s := newTree(t)
		before := snapshot(t, s)
		p := planCluster(t, s, "10.0.0.1")
		must.OK(t, p.Commit("join"))
		kept := propertyPaths[0]
		if gone == kept {
			kept = propertyPaths[1]
		}
		must.OK(t, errors.Join(os.Remove(filepath.Join(s.Root, gone)), os.Symlink(kept, filepath.Join(s.Root, gone))))
		conflicts, err := p.Revert("rollback")
		if err != nil || len(conflicts) != 1 || conflicts[0].Path != gone {
			t.Errorf("%s is %s: %v, %v", gone, kept, conflicts, err)
		}
		after := snapshot(t, s)
		delete(before, gone)
		delete(after, gone)
		if diff := cmp.Diff(before, after); diff != "" {
			t.Errorf("%s is %s (-before +after):\n%s", gone, kept, diff)
		}
		if r, err := s.Record(); err != nil || len(r.Files) != 1 || r.Files[0].Path != gone {
			t.Errorf("%s is %s: record %v, %v", gone, kept, r, err)
		}
	}
}

// TestRevertBesideAnUnchangedFile: one that the commit changed is by now a link to one that it only looked at.
func TestRevertBesideAnUnchangedFile(t *testing.T) {
	s := newTree(t)
	must.OK(t, planCluster(t, s, "10.0.0.1").Commit("join"))
	const later = "/ams/webapps/later/WEB-INF/red5-web.properties"
	real := filepath.Join(s.Root, later)
	must.OK(t, errors.Join(os.MkdirAll(filepath.Dir(real), 0o755), os.WriteFile(real, []byte("db.type=mapdb\ndb.host=localhost\n"), 0o644)))
	p := planCluster(t, s, "10.0.0.1")
	if err := p.Edit(Target{Path: later, Kind: KindProperties}, func(src []byte) ([]Span, error) {
		props, err := ParseProperties(src)
		if err != nil {
			return nil, err
		}
		props.Set("db.host", "10.0.0.1", nil)
		return props.Spans(), nil
	}); err != nil {
		t.Fatal(err)
	}
	must.OK(t, p.Commit("join"))
	before := snapshot(t, s)
	kept := propertyPaths[1]
	must.OK(t, errors.Join(os.Remove(real), os.Symlink(kept, real)))
	if conflicts, err := p.Revert("rollback"); err != nil || len(conflicts) != 1 || conflicts[0].Path != later {
		t.Error(conflicts, err)
	}
	if after := snapshot(t, s); after[kept] != before[kept] {
		t.Errorf("%s is\n%s\nand was\n%s", kept, after[kept], before[kept])
	}
}

// TestRevertOfAThirdFile: two of its files are replaced by links to a third one.
func TestRevertOfAThirdFile(t *testing.T) {
	s := newTree(t)
	p := planCluster(t, s, "10.0.0.1")
	must.OK(t, p.Commit("join"))
	for _, gone := range propertyPaths[:2] {
		must.OK(t, errors.Join(os.Rename(filepath.Join(s.Root, gone), filepath.Join(s.Root, "/ams/third")), os.Symlink("/ams/third", filepath.Join(s.Root, gone))))
	}
	if conflicts, err := p.Revert("rollback"); err != nil || len(conflicts) == 0 {
		t.Fatal(conflicts, err)
	}
	if f, err := s.Read("/ams/conf/jee-container.xml"); err != nil || string(f.Bytes) != standaloneXML {
		t.Errorf("%v, the container is\n%s", err, f.Bytes)
	}
}

// TestLongName: a file whose name leaves no room for that of a copy beside it is left as it is, and the longest one
// that does is changed.
func TestLongName(t *testing.T) {
	for size, refused := range map[int]bool{maxBase: false, maxBase + 1: true, 255: true} {
		s := newTree(t)
		p := planCluster(t, s, "10.0.0.1")
		must.OK(t, p.Commit("join"))
		path := filepath.Join(s.Root, propertyPaths[0])
		name := strings.Repeat("x", size)
		must.OK(t, errors.Join(os.Rename(path, filepath.Join(filepath.Dir(path), name)), os.Symlink(name, path)))
		record, err := s.Record()
		must.OK(t, err)
		undo, err := s.PlanUndo(record)
		must.OK(t, err)
		if named := slices.ContainsFunc(undo.Conflicts, func(c Conflict) bool { return c.Path == propertyPaths[0] }); named != refused {
			t.Errorf("a name of %d bytes: %v", size, undo.Conflicts)
		}
		if err := undo.CommitUndo("leave"); err != nil {
			t.Errorf("a name of %d bytes: %v", size, err)
		}
		if b, err := os.ReadFile(path); err != nil || bytes.Contains(b, []byte("10.0.0.1")) != refused {
			t.Errorf("a name of %d bytes, %v:\n%s", size, err, b)
		}
		if f, err := s.Read("/ams/conf/jee-container.xml"); err != nil || string(f.Bytes) != standaloneXML {
			t.Errorf("a name of %d bytes: %v, the container is\n%s", size, err, f.Bytes)
		}
	}
}

// TestThenManyNames: what the journal has of files that no record knows is bounded: their owner decides how many there are.
func TestThenManyNames(t *testing.T) {
	s := newTree(t)
	p := s.NewPlan(nil)
	whole := func([]byte) ([]Span, error) { return nil, nil }
	must.OK(t, p.Then(propertyPaths[0], KindProperties, whole))
	p.names = maxRecordSize / 2
	if err := p.Then(propertyPaths[0], KindProperties, whole); err != nil {
		t.Error("the plan has it already:", err)
	}
	if err := p.Then(propertyPaths[1], KindProperties, whole); !errors.Is(err, files.ErrTooLarge) {
		t.Error(err)
	}
}

// TestRecoverFolders: the owner of the files puts folders, with something in them, in the place of the staged files. All
// files are new after the next run, nothing keeps a run after that from working, and the folders are there.
func TestRecoverFolders(t *testing.T) {
	for renames := range 6 {
		s := newTree(t)
		_, after, j := interrupted(t, s, renames)
		made := 0
		for _, f := range j.Files {
			if !strings.HasPrefix(f.Target, "/ams/") {
				continue // of root
			}
			name := filepath.Join(s.Root, j.stagedPath(f))
			if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			must.OK(t, os.MkdirAll(filepath.Join(name, "theirs"), 0o755))
			made++
		}
		recovered(t, s)
		now := snapshot(t, s)
		theirs := 0
		for path := range now {
			if strings.Contains(path, ".folder-") {
				if filepath.Base(path) == "theirs" {
					theirs++
				}
				delete(now, path)
			}
		}
		if !cmp.Equal(now, after) || theirs != made {
			t.Errorf("%d renames: %d of %d folders; (-want +got):\n%s", renames, theirs, made, cmp.Diff(after, now))
		}
		if r := recovered(t, s); r != nil {
			t.Errorf("%d renames: a second run found %+v", renames, r)
		}
	}
}

// TestDamagedLetter changes each byte of what the agent wrote down, those before the checksum to every other one: it is
// noticed, paths included, or changes nothing.
func TestDamagedLetter(t *testing.T) {
	s := newTree(t)
	must.OK(t, planCluster(t, s, "10.0.0.1").Commit("join"))
	undo, err := os.ReadFile(filepath.Join(s.Root, stateDir, undoName))
	must.OK(t, err)
	p := planUndo(t, s)
	leave, err := interruptedCommit(t, s, "leave", p.changes(), nil, 1).encode(maxJournal)
	must.OK(t, err)
	for name, data := range map[string][]byte{undoName: undo, journalName: leave} {
		want, err := decodeJournal(name, data)
		must.OK(t, err)
		header := strings.Index(string(data), `"journal"`)
		for i := range data {
			for by := byte(1); by != 0 && (i < header || by == 1); by++ {
				changed := slices.Clone(data)
				changed[i] ^= by
				j, err := decodeJournal(name, changed)
				var damaged *DamagedError
				var version *VersionError
				switch {
				case err == nil && cmp.Equal(j, want): // Sha256 is sha256
				case j != nil, !errors.As(err, &damaged) && !errors.As(err, &version):
					t.Fatalf("%s, byte %d of %d is %q: %v", name, i, len(data), changed[max(0, i-20):i+1], err)
				}
			}
		}
	}
}

// TestDamagedEntries: what was written by hand, or by a broken disk, is an error
// that says so and no panic.
func TestDamagedEntries(t *testing.T) {
	for _, content := range []string{
		`{"id":"1","record":{"files":[null]}}`,
		`{"id":"1","record":{"files":[{"path":"etc/passwd","kind":"whole"}]}}`,
		`{"id":"1","files":[{"target":"a/b"}]}`,
		`{"id":"1","files":[{"target":"/a/b","after":"00","data":"YQ=="}]}`,
		`{"id":"1/../c","files":[{"target":"/a/b"}]}`,
		`{"files":[{"target":"/a/b"}]}`,
		`[]`,
	} {
		_, err := decodeJournal("/undo.json", sealed(t, content))
		var damaged *DamagedError
		if !errors.As(err, &damaged) || strings.Contains(err.Error(), "its checksum") {
			t.Errorf("%s: %v", content, err)
		}
	}
	for _, content := range []string{`{"version":1,"sha256":"","journal":{}}`, `{"version":1}`} {
		_, err := decodeJournal("/undo.json", []byte(content))
		var damaged *DamagedError
		if !errors.As(err, &damaged) {
			t.Errorf("%s: %v", content, err)
		}
	}
}

// sealed is a journal as it is on disk, with its checksum.
func sealed(t testing.TB, journal string) []byte {
	t.Helper()
	data, err := json.Marshal(envelope{Version: journalVersion, SHA256: sum([]byte(journal)), Journal: json.RawMessage(journal)})
	must.OK(t, err)
	return data
}

// TestRecordTooLarge: a change that could not be undone, because its record would
// be larger than what is read again, is not made.
func TestRecordTooLarge(t *testing.T) {
	s := newTree(t)
	var large []string
	for i := range maxRecordSize / maxFileSize {
		large = append(large, fmt.Sprintf("/etc/hosts%d", i))
		must.OK(t, os.WriteFile(filepath.Join(s.Root, large[i]), make([]byte, maxFileSize), 0o644))
	}
	before := snapshot(t, s)
	p := s.NewPlan(nil)
	for _, path := range large {
		must.OK(t, p.Edit(Target{Path: path, Kind: KindHosts}, func(src []byte) ([]Span, error) {
			return AddHost(src, netip.MustParseAddr("10.0.0.1"), "node"), nil
		}))
	}
	if err := p.Commit("join"); !errors.Is(err, ErrRecordTooLarge) {
		t.Errorf("Commit = %v, want ErrRecordTooLarge", err)
	}
	if d := cmp.Diff(before, snapshot(t, s)); d != "" {
		t.Errorf("something was changed:\n%s", d)
	}
	if names := stateNames(t, s); len(names) > 0 {
		t.Errorf("left: %v", names)
	}
}
