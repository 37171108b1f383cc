// Copyright The amsagent Authors
// SPDX-License-Identifier: Apache-2.0

package conf

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
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
func interrupted(t *testing.T, s *Store, renames int) (after map[string]string, j *journal) {
	t.Helper()
	p := join(t, s, "10.0.0.1")
	after = snapshot(t, s)
	reverted(t, p)
	p = planCluster(t, s, "10.0.0.1")
	return after, interruptedCommit(t, p, "join", &Record{Files: p.next(nil, false)}, renames)
}

func interruptedCommit(t *testing.T, p *Plan, purpose string, record *Record, renames int) *journal {
	t.Helper()
	s, changes := p.store, p.changes()
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

func stateNames(t *testing.T, s *Store) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(at(s, stateDir))
	must.OK(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestRecoverFinishes: with everything staged, however many were replaced, the next run finishes, and a leave restores what
// was found before the first join. The owner of the files may remove what is staged beside them, or put folders with
// something in them there: the journal has the contents, and the folders stay.
func TestRecoverFinishes(t *testing.T) {
	for name, spoil := range map[string]func(staged string) error{
		"staged":  func(string) error { return nil },
		"removed": os.RemoveAll,
		"folders": func(staged string) error {
			return errors.Join(os.RemoveAll(staged), os.MkdirAll(staged+"/theirs", 0o755))
		},
	} {
		for _, again := range []bool{false, true} {
			for renames := range 6 {
				if again && renames > 4 {
					continue // the container is that of a cluster already
				}
				t.Run(fmt.Sprintf("%s, joined before: %v, %d renames", name, again, renames), func(t *testing.T) {
					s := newTree(t)
					found := snapshot(t, s)
					if again {
						join(t, s, "10.0.0.2")
					}
					after, j := interrupted(t, s, renames)
					for _, f := range j.Files {
						must.OK(t, spoil(at(s, j.stagedPath(f))))
					}
					r := recovered(t, s)
					must.Equal(t, "files that the recovery replaced", len(r.Files), len(j.Files)-renames)
					must.Equal(t, "conflicts", len(r.Conflicts), 0)
					now := snapshot(t, s)
					must.Equal(t, "their folders", removeTheirs(now), map[string]int{"folders": len(j.Files)}[name])
					must.NoDiff(t, "the files", now, after)
					must.NoDiff(t, "the state directory", stateNames(t, s), []string{undoName})
					if r := recovered(t, s); r != nil {
						t.Errorf("a second run found %+v", r)
					}
					undoAll(t, s)
					now = snapshot(t, s)
					removeTheirs(now)
					must.NoDiff(t, "the files after a leave", now, found)
				})
			}
		}
	}
}

// removeTheirs takes the folders that were in the place of staged files out of a snapshot, and counts them.
func removeTheirs(files map[string]string) (n int) {
	maps.DeleteFunc(files, func(path, _ string) bool {
		if filepath.Base(path) == "theirs" {
			n++
		}
		return strings.Contains(path, ".folder-")
	})
	return n
}

// TestRecoverOfAnExchangedFile: a file of root's, in a folder of user 4711, is exchanged after a crash for one of that
// user's with the same content. The recovery does not write what root's file would have, and the staged file goes.
func TestRecoverOfAnExchangedFile(t *testing.T) {
	s := hisTree(t)
	const original = "http.port=5080\nclusterdb.host=localhost\n"
	putFile(t, s, original, 0, 0o644)
	p, err := planServer(t, s)
	must.OK(t, err)
	interruptedCommit(t, p, "join", nil, 0)
	putFile(t, s, original, 4711, 0o644)
	conflictOf(t, recovered(t, s).Conflicts, serverPath)
	must.Equal(t, serverPath, fileOwned(t, s, serverPath), "4711:4711 -rw-r--r-- "+original)
	if left, err := filepath.Glob(s.Root + "/ams/conf/.*"); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestRecoverOnAFullDisk: nothing is replaced before there is room for all new files.
func TestRecoverOnAFullDisk(t *testing.T) {
	s := newTree(t)
	before := snapshot(t, s)
	after, j := interrupted(t, s, 0)
	for _, f := range j.Files {
		remove(t, s, j.stagedPath(f))
	}
	s.hook = func(call, name string) error {
		if call == "write" && strings.HasPrefix(name, "/data/") {
			return unix.ENOSPC
		}
		return nil
	}
	_, err := s.Recover()
	failsWith(t, "Recover", err, unix.ENOSPC)
	now := snapshot(t, s)
	for path, was := range before {
		must.Equal(t, path, now[path], was)
	}
	s.hook = nil
	recovered(t, s)
	must.NoDiff(t, "with room", snapshot(t, s), after)
}

// TestRecoverOfAMode: a second join only takes rights from a file, and is killed before that.
func TestRecoverOfAMode(t *testing.T) {
	s := newTree(t)
	join(t, s, "10.0.0.1")
	want := snapshot(t, s)
	must.OK(t, os.Chmod(at(s, serverPath), 0o644))
	p := planCluster(t, s, "10.0.0.1")
	interruptedCommit(t, p, "join", p.record, 0)
	must.NoDiff(t, "files that the recovery replaced", recovered(t, s).Files, []string{serverPath})
	must.NoDiff(t, "the files", snapshot(t, s), want)
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
	join(t, s, "10.0.0.1")
	for path := range snapshot(t, s) {
		if strings.Contains(path, stagedMark) {
			t.Errorf("left: %s", path)
		}
	}
}

// TestRetreatKeepsOwners: a leave fails after it has removed a file and replaced others. Each has its former owner again.
func TestRetreatKeepsOwners(t *testing.T) {
	s := hisTree(t)
	join(t, s, "10.0.0.1")
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
	must.NoDiff(t, "the files", snapshot(t, s), before)
	for path, gid := range map[string]int{dropInPath: 4712, serverPath: 4711} {
		must.Contain(t, path, fileOwned(t, s, path), fmt.Sprintf("4711:%d ", gid))
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
	conflictOf(t, recovered(t, s).Conflicts, serverPath)
	must.NoDiff(t, "files that are not finished", planCluster(t, s, "10.0.0.1").ChangedPaths(), []string(nil))
	undoAll(t, s)
	before[serverPath] = strings.Replace(before[serverPath], "5080", "9090", 1)
	must.NoDiff(t, "undone", snapshot(t, s), before)
}

// TestRecoverForeignEdits: an operator edits a file after the crash. The edit stays,
// it is named, and leave still removes what was ours.
func TestRecoverForeignEdits(t *testing.T) {
	for _, op := range []string{"join", "leave"} {
		for _, renames := range []int{0, 5} {
			s := newTree(t)
			before := snapshot(t, s)
			if op == "join" {
				interrupted(t, s, renames)
			} else {
				join(t, s, "10.0.0.1")
				interruptedCommit(t, planUndo(t, s), "leave", nil, renames)
			}
			replaceIn(t, s, serverPath, "http.port=5080", "http.port=9090")
			conflictOf(t, recovered(t, s).Conflicts, serverPath)
			undoAll(t, s)
			before[serverPath] = strings.Replace(before[serverPath], "5080", "9090", 1)
			must.NoDiff(t, fmt.Sprintf("%s, %d renames, undone", op, renames), snapshot(t, s), before)
			must.NoDiff(t, fmt.Sprintf("%s, %d renames: the state directory", op, renames), stateNames(t, s), []string(nil))
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
			put(t, s, s.statePath(name), tt.content)
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
			must.NoDiff(t, tt.what+" "+name, snapshot(t, s), was)
			must.NoDiff(t, tt.what+" "+name+": the state directory", stateNames(t, s), []string{name})
		}
	}
}

// TestTornJournal: the journal of a commit was not on the disk yet, so it goes.
func TestTornJournal(t *testing.T) {
	s := newTree(t)
	before := snapshot(t, s)
	for _, name := range []string{"." + journalName + writeSuffix, ".state.json" + writeSuffix} {
		put(t, s, s.statePath(name), `{"versi`)
	}
	if r := recovered(t, s); r != nil {
		t.Errorf("recovered %+v", r)
	}
	must.NoDiff(t, "the files", snapshot(t, s), before)
	must.NoDiff(t, "the state directory", stateNames(t, s), []string(nil))
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

// TestLongName: a file whose name leaves no room for that of a copy beside it is left as it is, and the longest one
// that does is changed.
func TestLongName(t *testing.T) {
	for size, refused := range map[int]bool{maxBase: false, maxBase + 1: true, 255: true} {
		s := newTree(t)
		join(t, s, "10.0.0.1")
		moveTo(t, s, serverPath, "/ams/conf/"+strings.Repeat("x", size))
		named := slices.ContainsFunc(leave(t, s), func(c Conflict) bool { return c.Path == serverPath })
		what := fmt.Sprintf("a name of %d bytes: ", size)
		must.Equal(t, what+"a conflict", named, refused)
		must.Equal(t, what+"it is left", strings.Contains(content(t, s, serverPath), "10.0.0.1"), refused)
		must.Equal(t, what+"the container", content(t, s, containerPath), standaloneXML)
	}
}

// TestThenManyNames: what the journal has of files that no record knows is bounded: their owner decides how many there are.
func TestThenManyNames(t *testing.T) {
	s := newTree(t)
	p := s.NewPlan(nil)
	must.OK(t, p.Then(serverPath, KindProperties, noEdit))
	p.names = maxRecordSize / 2
	must.OK(t, p.Then(serverPath, KindProperties, noEdit)) // the plan has it already
	failsWith(t, "one more", p.Then(appPath, KindProperties, noEdit), files.ErrTooLarge)
}

// TestDamagedLetter changes each byte of what the agent wrote down, those before the checksum to every other one: it is
// noticed, paths included, or changes nothing.
func TestDamagedLetter(t *testing.T) {
	s := newTree(t)
	join(t, s, "10.0.0.1")
	undo := []byte(content(t, s, s.statePath(undoName)))
	leave, err := interruptedCommit(t, planUndo(t, s), "leave", nil, 1).encode(maxJournal)
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
	p := s.NewPlan(nil)
	for i := range maxRecordSize / maxFileSize {
		path := fmt.Sprintf("/etc/hosts%d", i)
		put(t, s, path, strings.Repeat("\x00", maxFileSize))
		must.OK(t, p.Edit(Target{Path: path, Kind: KindHosts}, addHost("10.0.0.1")))
	}
	before := snapshot(t, s)
	failsWith(t, "Commit", p.Commit("join"), ErrRecordTooLarge)
	must.NoDiff(t, "the files", snapshot(t, s), before)
	must.NoDiff(t, "the state directory", stateNames(t, s), []string(nil))
}
